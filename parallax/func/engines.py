"""The two engines behind every reverse-mode derivative, and which of them a call gets.

*tape*: detach the leaves, run, ask autograd's tape. As fast and as lean as ``loss.backward()``.
*functorch*: ``torch.func``. Inside another transform, while dynamo traces and in inference mode
the tape cannot be used, or would cost exactness.

Both mean what ``torch.func.grad`` means. The tape gets there by watching who else needs the graph:
where an input requires grad already, or the result's graph reaches a tensor that the tape did not
make (one from a closure, a global, ``self``), the graph of the derivative is built and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax import _compat
from parallax.func.graph import escapes, escaping
from parallax.tree import core

__all__ = ["Pullback", "gradient", "pullback", "use_tape"]

Run = Callable[[Sequence[Tensor]], tuple[Any, Any]]


def use_tape(inputs: Sequence[Tensor]) -> bool:
    """Whether the tape gives what ``torch.func`` would, here and for these inputs."""
    return not (
        _compat.is_compiling()
        or _compat.transform_active()
        or _compat.forward_level_active()
        or torch.is_inference_mode_enabled()
        or any([x.is_inference() for x in inputs])
    )


def gradient(run: Run, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Any]:
    """The gradient of a scalar.

    Args:
        run: takes values for the inputs to a scalar and something beside it.
        inputs: where to differentiate.

    Returns:
        One gradient per input, the scalar, and what came beside it.
    """
    if use_tape(inputs):
        try:
            return _gradient_by_tape(run, inputs)
        except RuntimeError as error:
            # A captured tensor was made in inference mode, which shows only when it is met.
            if not _compat.is_inference_refusal(error):
                raise
    return _gradient_by_functorch(run, inputs)


# -- the tape -----------------------------------------------------------------------------------


class Tape:
    """The leaves of one recording, and who needs its graph afterwards."""

    __slots__ = ("aliased", "inputs", "leaves", "own", "recording", "versions")

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self.inputs = inputs
        self.recording = torch.is_grad_enabled()
        self.aliased = self.recording and any([x.requires_grad for x in inputs])
        if self.aliased:
            self.versions = [x._version for x in inputs]
            self.leaves = [
                x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in inputs
            ]
        else:
            self.leaves = [x.detach().requires_grad_() for x in inputs]
        self.own = set(map(id, self.leaves))

    def check_unwritten(self) -> None:
        """Refuses a write into an input, which autograd itself stops unless it is an alias."""
        if self.aliased and self.versions != [x._version for x in self.inputs]:
            raise RuntimeError(
                "an argument was written in place while it was differentiated. "
                "Compute a new tensor instead: x = x + 1, not x += 1"
            )

    def reaches_out(self, tensors: Sequence[Tensor]) -> bool:
        """Whether somebody outside can ask for derivatives of these tensors."""
        return self.recording and (self.aliased or escapes(tensors, self.own))

    def release(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors as the caller may see them: no graph but one that leads outside."""
        if not any([t.requires_grad for t in tensors]):
            return list(tensors)
        known = {id(leaf): x for leaf, x in zip(self.leaves, self.inputs, strict=True)}
        outside = escaping(tensors, self.own) if self.recording else [False] * len(tensors)
        return [
            known[id(t)] if id(t) in known
            else t if out or not t.requires_grad
            else t.detach()
            for t, out in zip(tensors, outside, strict=True)
        ]  # fmt: skip


def _gradient_by_tape(run: Run, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Any]:
    with torch.enable_grad():
        tape = Tape(inputs)
        loss, aux = run(tape.leaves)
        tape.check_unwritten()
        beside, close = _tensors_of(aux)
        keep = tape.reaches_out([loss, *beside])
        if not loss.requires_grad:
            grads = [torch.zeros_like(x) for x in inputs]
        else:
            found = _compat.backward([loss], [torch.ones_like(loss)], tape.leaves, keep, keep)
            grads = tape.release(found) if keep else found
    if not keep:
        loss = loss.detach() if loss.requires_grad else loss
        if beside:
            aux = close(tape.release(beside))
        return grads, loss, aux
    loss, *beside = tape.release([loss, *beside])
    return grads, loss, close(beside)


# -- functorch ----------------------------------------------------------------------------------


def _gradient_by_functorch(run: Run, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Any]:
    closes: list[Any] = []

    def flat(*values: Tensor) -> tuple[Tensor, list[Tensor]]:
        loss, aux = run(values)
        if _compat.is_compiling():
            _compat.refuse_traced_checkpoint()
        beside, close = _tensors_of(aux)
        closes.append(close)
        return loss, beside

    if _compat.is_compiling():
        everything = tuple(range(len(inputs)))
        grads, (loss, beside) = torch.func.grad_and_value(flat, everything, has_aux=True)(*inputs)
    else:
        loss, pull, beside = _vjp(flat, inputs)
        grads = pull(torch.ones_like(loss))
    return list(grads), loss, closes[0](beside)


def _vjp(flat: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
    if _compat.is_compiling():
        return torch.func.vjp(flat, *inputs, has_aux=True)
    try:
        return torch.func.vjp(flat, *inputs, has_aux=True)
    except RuntimeError as error:
        if _compat.is_hook_refusal(error):
            raise RuntimeError(_compat.NO_CHECKPOINT) from error
        raise


def _tensors_of(aux: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The tensors in a tree, and how to build it around others in their place."""
    if aux is None:
        return [], _nothing
    if isinstance(aux, Tensor):
        return [aux], _first
    leaves, spec = core.flatten(aux)
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def close(tensors: Sequence[Tensor]) -> Any:
        values = list(leaves)
        same = True
        for place, tensor in zip(places, tensors):  # noqa: B905  # dynamo traces no strict=
            same = same and values[place] is tensor
            values[place] = tensor
        return aux if same else core.unflatten(spec, values)

    return [leaves[k] for k in places], close


def _nothing(tensors: Sequence[Tensor]) -> None:
    del tensors


def _first(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


# -- vector-Jacobian products -------------------------------------------------------------------

Pullback = Callable[[Sequence[Tensor]], list[Tensor]]


def pullback(run: Run, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Pullback, Any]:
    """Values and the function from their cotangents to those of the inputs.

    Args:
        run: takes values for the inputs to a list of tensors and something beside it.
        inputs: where to differentiate.

    Returns:
        The tensors, the pullback (to be called as often as wanted), and what came beside.
    """
    if use_tape(inputs):
        try:
            return _pullback_by_tape(run, inputs)
        except RuntimeError as error:
            if not _compat.is_inference_refusal(error):
                raise
    return _pullback_by_functorch(run, inputs)


def _pullback_by_tape(
    run: Run, inputs: Sequence[Tensor]
) -> tuple[list[Tensor], Pullback, Any]:
    with torch.enable_grad():
        tape = Tape(inputs)
        outs, aux = run(tape.leaves)
        tape.check_unwritten()
        beside, close = _tensors_of(aux)
        keep = tape.reaches_out([*outs, *beside])
    reached = [k for k, out in enumerate(outs) if out.requires_grad]

    def pull(cotangents: Sequence[Tensor]) -> list[Tensor]:
        if _compat.is_compiling() or _compat.differentiating() or torch.is_inference_mode_enabled():
            # A transform differentiates the pullback itself: all of it happens at its level.
            return _pullback_by_functorch(run, inputs)[1](cotangents)
        if not reached:
            return [torch.zeros_like(x) for x in inputs]
        wanted = [cotangents[k] for k in reached]
        build = torch.is_grad_enabled() and (keep or any([c.requires_grad for c in wanted]))
        found = _compat.backward([outs[k] for k in reached], wanted, tape.leaves, True, build)
        return tape.release(found) if build else found

    released = tape.release([*outs, *beside])
    return released[: len(outs)], pull, close(released[len(outs) :])


def _pullback_by_functorch(
    run: Run, inputs: Sequence[Tensor]
) -> tuple[list[Tensor], Pullback, Any]:
    closes: list[Any] = []

    def flat(*values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        outs, aux = run(values)
        if _compat.is_compiling():
            _compat.refuse_traced_checkpoint()
        beside, close = _tensors_of(aux)
        closes.append(close)
        return list(outs), beside

    outs, pull, beside = _vjp(flat, inputs)
    return outs, lambda cotangents: list(pull(list(cotangents))), closes[0](beside)
