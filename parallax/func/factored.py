"""The per-sample gradients of a function as factors, from one backward without any weight's.

The losses of all samples are computed by one ``vmap``. Where a leaf meets an operator whose rule is
known (``uses``), the operator runs on the leaf itself; the gradient of a sample is then a product
of its input and the gradient of its output. Everywhere else the leaf is a copy for each sample, so
that autograd gives the gradient of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax.core.graph import RUNNING
from parallax.func.engines import Tape
from parallax.func.outer import Outer, PerSample
from parallax.func.summed import Chunk, Summed
from parallax.func.uses import Watch

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
        leaves, beside = _Watched(chunk).gradients(exact)
        kept.append(finish(leaves))
        besides.append(beside)
        del leaves
    return kept, summed.aux(besides)


class _Watched:
    """A chunk of losses, as a function of copies of all leaves, and of the shared ones."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.what = chunk.what
        summed = chunk.summed
        shared = [summed.batch.shared.get(place) for place in summed.places]
        pairs = [(k, leaf) for k, leaf in enumerate(shared) if leaf is not None]
        pairs = [(k, leaf) for k, leaf in pairs if type(leaf) in _PLAIN and leaf.dtype in _EXACT]
        self.shared = [k for k, _ in pairs]
        self.values: list[Tensor] = [*chunk.values, *[leaf for _, leaf in pairs]]

    def at(self, values: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """The losses, and what comes beside them."""
        summed, count = self.chunk.summed, len(self.chunk.values)
        shared: list[Tensor | None] = [None] * count
        for k, value in zip(self.shared, values[count:], strict=True):
            shared[k] = value

        def losses(members: Sequence[Tensor]) -> list[Tensor]:
            with Watch([members[place] for place in summed.places], shared) as self.watch:
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
            found = self.watch.found
            copies = tape.leaves[: len(self.chunk.values)]
            grads: Sequence[Tensor | None] = torch.autograd.grad(
                losses, [*[use.edge for use in found], *copies], torch.ones_like(losses),
                allow_unused=True,
            )  # fmt: skip
        own = grads[len(found) :]
        if not exact:
            self._refuse_unknown(own)
        with torch.no_grad():
            return self._by_leaf(grads, own, copies), tape.release(beside, False)

    def _check(self, tape: Tape, losses: Tensor, beside: Sequence[Tensor]) -> None:
        """Raises where the factors would not give the numbers of the gradients."""
        if tape.reaches_out([losses, *beside]):
            raise InexactError("the result is differentiated outside")
        if losses.grad_fn is None:
            raise InexactError("nothing is differentiated")
        if any([use.written for use in self.watch.found]):
            raise InexactError("the input of a layer was written in place")
        if tape.differentiates_backward([losses]):
            raise InexactError("the function takes derivatives itself")

    def _by_leaf(
        self, grads: Sequence[Tensor | None], own: Sequence[Tensor | None], copies: Sequence[Tensor]
    ) -> list[PerSample]:
        """All gradients of each leaf together.

        Args:
            grads: of the outputs of the calls that were found.
            own: of the copies of the leaves.
            copies: the copies.
        """
        outers: list[list[Outer]] = [[] for _ in copies]
        wholes = [[] if grad is None else [self._in_front(k, grad)] for k, grad in enumerate(own)]
        for call, grad in zip(self.watch.found, grads, strict=False):
            if grad is None:  # nothing depends on it
                continue
            outer, bias = call.gradient(grad, self.chunk.size)
            outers[call.weight].append(outer)
            if call.bias is not None and bias is not None:
                wholes[call.bias].append(bias)
        made = []
        for k, copy in enumerate(copies):
            front = self._in_front(k, copy)
            if not (outers[k] or wholes[k]):
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
            if grad is not None and grad.dim() > 2 and k not in self.watch.scaled:
                raise WithoutRuleError(
                    f"{self.what}: {self.chunk.summed.path(k)} is used by an operator without a "
                    f"rule for norms (F.linear, F.conv1d to F.conv3d and F.embedding have one). "
                    f"Leave out exact=False to compute its per-sample gradient, or freeze it with "
                    f"tree.select(module, path).freeze()"
                )
