"""The per-sample gradients of a function as factors, from one backward without any weight's.

The losses of all samples are computed by one ``vmap``. Where a leaf meets an operator whose rule is
known (``per_sample_uses``), the operator runs on the leaf itself; the gradient of a sample is then
a product of its input and the gradient of its output. Everywhere else the leaf is a copy for each
sample, so that autograd gives the gradient of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax import random
from parallax._compat import dynamo, functorch
from parallax.func.differentiated import filled
from parallax.func.outer import Outer, PerSample
from parallax.func.per_sample_uses import Found, TogetherMode, TracedMode
from parallax.func.summed import Chunk, Summed
from parallax.func.tape import Tape
from parallax.tree.recording import RUNNING

__all__ = ["InexactError", "WithoutRuleError", "factored"]

_PLAIN = (Tensor, torch.nn.Parameter)
_EXACT = (torch.float32, torch.float64)


class InexactError(Exception):
    """The factors would not give the numbers of the gradients; the reason is the message."""


class WithoutRuleError(Exception):
    """A leaf is used by an operator whose rule is not known."""


def factored(
    summed: Summed, chunk_size: int | None, exact: bool, finish: Callable[[list[PerSample]], Any]
) -> tuple[list[Any], Any]:
    """The per-sample gradients of each leaf, used and forgotten chunk by chunk.

    Args:
        summed: the losses.
        chunk_size: how many samples to compute at once.
        exact: whether leaves may be used otherwise than by operators with a rule.
        finish: takes the gradients, one for each leaf, to what is kept of them.

    Returns:
        What ``finish`` returned for each chunk, and the stacked ``aux``.

    Raises:
        InexactError: if the factors would not give the numbers of the gradients.
        WithoutRuleError: unless ``exact``, if a leaf is used otherwise.
    """
    kept, besides = [], []
    for chunk in summed.chunks(chunk_size):
        watched = _Traced(chunk) if dynamo.is_compiling() else _Watched(chunk)
        leaves, beside = watched.gradients(exact)
        kept.append(finish(leaves))
        besides.append(beside)
        del leaves
    return kept, summed.aux(besides)


class _Factored:
    """The per-sample gradients of a chunk of losses."""

    uses: Any  # a UseMode, of the kind that a class below takes

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.what = chunk.what
        summed = chunk.summed
        shared = [summed.batch.shared.get(place) for place in summed.places]
        self.shared = [leaf if _has_rules(leaf) else None for leaf in shared]

    def _by_leaf(
        self, calls: Sequence[tuple[Found, Tensor]], own: Sequence[Tensor | None], exact: bool
    ) -> list[PerSample]:
        """All gradients of each leaf together.

        Args:
            calls: what was called, each with the gradient of its output; both of all samples.
            own: the gradients of the copies of the leaves, the samples first.
            exact: whether there may be one of a matrix.
        """
        if not exact:
            self._refuse_unknown(own)
        outers: list[list[Outer]] = [[] for _ in own]
        wholes = [[] if grad is None else [grad] for grad in own]
        for call, grad in calls:
            outer, bias = call.use.gradient(call.given, grad, self.chunk.size)
            outers[call.weight].append(outer)
            if call.bias is not None and bias is not None:
                wholes[call.bias].append(bias)
        made = []
        for k, value in enumerate(self.chunk.values):
            front = self._in_front(k, value)
            if not (outers[k] or wholes[k]):  # nothing depends on it
                wholes[k].append(front.new_zeros(()).expand(front.shape))
            made.append(PerSample(front.shape[1:], outers[k], wholes[k]))
        return made

    def _in_front(self, k: int, grad: Tensor) -> Tensor:
        """The copies of a leaf, or their gradient, the samples first."""
        summed = self.chunk.summed
        return grad.movedim(summed.batch.dims[summed.places[k]], 0)

    def _refuse_unknown(self, own: Sequence[Tensor | None]) -> None:
        """Raises if a copy of a matrix, a kernel or a table was used."""
        for k, grad in enumerate(own):
            if grad is not None and grad.dim() > 2 and k not in self.uses.scaled:
                raise WithoutRuleError(
                    f"{self.what}: {self.chunk.summed.path(k)} is used by an operator without a "
                    f"rule for norms (F.linear, F.conv1d to F.conv3d and F.embedding have one). "
                    f"Leave out exact=False to compute its per-sample gradient, or freeze it with "
                    f"tree.select(module, path).freeze()"
                )


def _has_rules(leaf: Tensor | None) -> bool:
    """Whether a leaf that all samples share may be used as it is."""
    return leaf is not None and type(leaf) in _PLAIN and leaf.dtype in _EXACT


class _Watched(_Factored):
    """On the tape: a function of copies of all leaves, and of the shared ones."""

    uses: TogetherMode

    def __init__(self, chunk: Chunk) -> None:
        super().__init__(chunk)
        leaves = [leaf for leaf in self.shared if leaf is not None]
        self.values: list[Tensor] = [*chunk.values, *leaves]

    def at(self, values: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """The losses, and what comes beside them."""
        summed, count = self.chunk.summed, len(self.chunk.values)
        rest = iter(values[count:])
        shared = [None if leaf is None else next(rest) for leaf in self.shared]

        def losses(members: Sequence[Tensor]) -> list[Tensor]:
            own = [members[place] for place in summed.places]
            with TogetherMode(own, shared) as self.uses:
                return summed.losses(members)

        return self.chunk.mapped(losses, values[:count])

    def gradients(self, exact: bool) -> tuple[list[PerSample], list[Tensor]]:
        """The gradients of each leaf, and what comes beside the losses."""
        recording = torch.is_grad_enabled()
        if recording and any([value.requires_grad for value in self.values]):
            raise InexactError("an argument requires grad")
        with RUNNING, torch.enable_grad():
            tape = Tape(self.values, recording)
            losses, beside = tape.run(self, lambda result: (result, None))[0]
            self._check(tape, losses, beside)
            found = self.uses.found
            copies = tape.leaves[: len(self.chunk.values)]
            grads: Sequence[Tensor | None] = torch.autograd.grad(
                losses, [*[call.output for call in found], *copies], torch.ones_like(losses),
                allow_unused=True,
            )  # fmt: skip
        own = [
            None if grad is None else self._in_front(k, grad)
            for k, grad in enumerate(grads[len(found) :])
        ]
        pairs = zip(found, grads, strict=False)
        calls = [(call, grad) for call, grad in pairs if grad is not None]
        with torch.no_grad():
            return self._by_leaf(calls, own, exact), tape.release(beside, False)

    def _check(self, tape: Tape, losses: Tensor, beside: Sequence[Tensor]) -> None:
        """Raises where the factors would not give the numbers of the gradients."""
        if tape.reaches_out([losses, *beside]):
            raise InexactError("the result is differentiated outside")
        if losses.grad_fn is None:
            raise InexactError("nothing is differentiated")
        if self.uses.written:
            raise InexactError("the input of a layer was written in place")
        if tape.differentiates_backward([losses]):
            raise InexactError("the function takes derivatives itself")


class _Traced(_Factored):
    """In a trace: ``vmap`` of the gradient, cut at the outputs of the known calls.

    A trace does not tell which gradients are zero, and to add up those of matrices would cost more
    than all the rest. So the function is traced once or twice before, to see which leaves it needs
    beside the known calls; nothing of that stays in the graph.
    """

    needs: bool

    def gradients(self, exact: bool) -> tuple[list[PerSample], list[Tensor]]:
        """The gradients of each leaf, and what comes beside the losses."""
        own: list[int] = []
        _, tensors = self.chunk.mapped(
            lambda members: self._sample(members, own), self.chunk.values
        )
        found, count = self.uses.found, len(self.uses.found)
        calls = []
        for call, given, grad in zip(found, tensors, tensors[count:], strict=False):
            leaf = self.shared[call.weight]
            call.given, call.use.weight = call.use.flat(given), leaf
            calls.append((call, call.use.flat_output(grad)))
        copies = dict(zip(own, tensors[2 * count :], strict=False))
        grads = [copies.get(k) for k in range(len(self.shared))]
        return self._by_leaf(calls, grads, exact), list(tensors[2 * count + len(own) :])

    def _sample(self, members: Sequence[Tensor], own: list[int]) -> list[Tensor]:
        """The loss of one sample; inputs and gradients of calls, gradients of leaves, and the rest.

        Args:
            members: one member of each mapped tensor.
            own: gets the leaves that are needed beside the calls.
        """
        pairs = zip(self.shared, self.chunk.summed.places, strict=True)
        leaves = [members[place] if leaf is None else leaf for leaf, place in pairs]
        with random.reuse():
            own.extend(self._needed(members, leaves))
        whole = [leaf for leaf in self.shared if leaf is not None]

        def cut(copies: list[Tensor], rest: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            left = iter(rest)
            shared = [None if leaf is None else next(left) for leaf in self.shared]
            loss, *beside = self._losses(members, filled(list(leaves), own, copies), shared)
            found = self.uses.found
            inputs = [*[call.output for call in found], *copies]
            grads = functorch.gradients_here(loss, inputs)
            return loss, [*[call.given for call in found], *grads, *beside]

        found: Any = torch.func.vjp(cut, [leaves[k] for k in own], whole, has_aux=True)
        return [found[0], *found[2]]

    def _needed(self, members: Sequence[Tensor], leaves: list[Tensor]) -> list[int]:
        """The leaves that the loss depends on, or may, otherwise than by the known calls."""

        def needs(some: list[int]) -> bool:
            def uncut(copies: list[Tensor]) -> Tensor:
                own = filled(list(leaves), some, copies)
                loss = self._losses(members, own, self.shared)[0]
                self.needs = loss.requires_grad
                return loss

            if some:
                torch.func.vjp(uncut, [leaves[k] for k in some])
            return bool(some) and self.needs

        everything = list(range(len(leaves)))
        matrices = [k for k, leaf in enumerate(self.shared) if leaf is not None and leaf.dim() > 1]
        if not needs(matrices):
            return [k for k in everything if k not in matrices]
        known = {call.weight for call in self.uses.found}
        if not needs([k for k in matrices if k in known]):
            return [k for k in everything if k not in known]
        return everything

    def _losses(
        self, members: Sequence[Tensor], own: Sequence[Tensor], shared: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """The loss of one sample and what is beside, at these leaves."""
        summed = self.chunk.summed
        self.uses = TracedMode(own, shared)
        with self.uses:  # dynamo gives nothing to "as"
            return summed.losses(filled(list(members), summed.places, own))
