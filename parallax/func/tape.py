"""Reverse-mode derivatives by autograd's tape: detach the leaves, run, ask for the gradient.

They mean what ``torch.func`` means, because the tape watches who else needs the graph: where an
input requires grad already, or the result's graph reaches a tensor that the tape did not make (one
from a closure, a global, ``self``), the graph of the derivative is built and kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from parallax import random
from parallax._compat import autograd, collectives, functorch, modes, once, shards
from parallax.func.backward_formulas import gradients_again
from parallax.func.call import Call
from parallax.func.captured import are_held, take_graphs_off, written_by
from parallax.func.graph import escaping, made_since, outside, retire
from parallax.func.nesting import Nesting
from parallax.func.results import open_tensors
from parallax.func.transforms import Finish, Pullback, pullback_by_functorch, through
from parallax.tree.recording import RUNNING

__all__ = ["Recorded", "SecondOrderError", "Tape", "gradient_by_tape", "pullback_by_tape"]


class Recorded(Protocol):
    """A function of tensors, and where it is evaluated."""

    @property
    def what(self) -> str:
        """What is called, for error messages."""
        ...

    @property
    def values(self) -> list[Tensor]:
        """The tensors at which it is evaluated."""
        ...

    def at(self, values: Sequence[Tensor]) -> Any:
        """The function at these tensors."""
        ...


class Tape:
    """The leaves of one recording, and whether its graph is needed afterwards."""

    __slots__ = (
        "aliased", "alone", "inputs", "leaves", "nodes", "own", "recording", "since", "versions",
    )  # fmt: skip

    def __init__(self, inputs: Sequence[Tensor], recording: bool) -> None:
        self.inputs = inputs
        self.recording = recording
        self.aliased = recording and any([x.requires_grad for x in inputs])
        if self.aliased:
            self.versions = [x._version for x in inputs]
            self.leaves = [
                x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in inputs
            ]
        else:
            self.leaves = [shards.detached(x).requires_grad_() for x in inputs]
        self.own = {id(leaf): place for place, leaf in enumerate(self.leaves)}
        self.since = autograd.next_number()

    def run(self, call: Recorded, finish: Finish) -> tuple[Any, Any]:
        """The result of the call on the leaves."""
        result = finish(call.at(self.leaves))
        if self.aliased:
            self.check_unwritten()
        if not all([leaf.requires_grad for leaf in self.leaves]):
            raise RuntimeError(
                f"{call.what}: requires_grad_(False) or detach_() was called on a tensor that is "
                f"being differentiated. Write x = x.detach() instead: it leaves the tensor alone"
            )
        return result

    def check_unwritten(self) -> None:
        """Refuses a write into an input, which autograd itself stops unless it is an alias."""
        if self.versions != [x._version for x in self.inputs]:
            raise RuntimeError(
                "an argument was written in place while it was differentiated. "
                "Compute a new tensor instead: x = x + 1, not x += 1"
            )

    def reaches_out(self, tensors: Sequence[Tensor]) -> bool:
        """Whether somebody outside can ask for derivatives of these tensors.

        Afterwards ``alone`` says whether it is known that their graph ends at our leaves only; if
        so, ``nodes`` are all of that graph, and if not, those that were made since the tape began.
        """
        self.alone = False
        self.nodes: list[Any] = []
        keep = self.recording
        if self.recording and not self.aliased:
            keep, others = outside(tensors, self.own, self.nodes)
            self.alone = not others
        if not self.alone:
            self.nodes = list(made_since(tensors, self.since))
            once.refuse_second(self.nodes, self.leaves)
        if keep:
            self.retire()
        return keep

    def graph_of(self, tensors: Sequence[Tensor]) -> Iterable[Any]:
        """All nodes of the graph of the tensors that ``reaches_out`` was asked about."""
        return self.nodes if self.alone else autograd.nodes_of(tensors)

    def left_others(self) -> bool:
        """Whether the function made nodes that the graph of its result does not hold, or may have.

        Every node that this thread makes takes the next number.
        """
        return not self.alone or autograd.next_number() - self.since > len(self.nodes)

    def differentiates_backward(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the graph of these holds derivatives of derivatives."""
        return autograd.differentiates_backward(self.graph_of(tensors))

    def unaccumulated(self) -> bool:
        """Whether no leaf has a ``.grad``, as it has if the function itself went backward."""
        return not any([leaf.grad is not None for leaf in self.leaves])

    def retire(self) -> None:
        """Marks the leaves: a graph is kept that may contain them."""
        pairs = zip(self.leaves, self.inputs, strict=True)
        retire([leaf for leaf, x in pairs if not (self.aliased and x.requires_grad)])

    def release(self, tensors: Sequence[Tensor], keep: bool) -> list[Tensor]:
        """The tensors for the caller: detached, unless their graph leads outside."""
        if not any([t.requires_grad for t in tensors]):
            return list(tensors)
        outside = escaping(tensors, self.own) if keep else [False] * len(tensors)
        released = []
        for tensor, out in zip(tensors, outside, strict=True):
            place = self.own.get(id(tensor))
            if place is not None:  # a leaf itself comes back as what was given
                released.append(self.inputs[place])
            else:
                released.append(tensor if out or not tensor.requires_grad else tensor.detach())
        return released


def gradient_by_tape(
    call: Recorded, finish: Finish, second: bool = True
) -> tuple[list[Tensor], Tensor, Any]:
    """As ``engines.gradient``, on the tape.

    Raises:
        SecondOrderError: unless ``second``, if the function took derivatives itself, through
            operators whose backward is an operator of its own.
    """
    if isinstance(call, Call) and call.collects():
        inner, nesting = call.nested(levels=0)
        return _handing_on(inner, nesting, finish, second)
    return _gradient_by_tape(call, finish, second)


def _handing_on(
    inner: Call, nesting: Nesting, finish: Finish, second: bool
) -> tuple[list[Tensor], Tensor, Any]:
    """As ``_gradient_by_tape``; what was collected inside comes out as what is beside the loss."""

    def finished(result: Any) -> tuple[Any, Any]:
        out, aux = finish(result)
        return out, (aux, nesting.emitted())

    grads, loss, (aux, told) = _gradient_by_tape(inner, finished, second)
    nesting.relay(told)
    return grads, loss, aux


def _gradient_by_tape(
    call: Recorded, finish: Finish, second: bool
) -> tuple[list[Tensor], Tensor, Any]:
    still = _without_graph(call)
    # Backward too belongs to the derivative: a checkpoint calls the function once more there.
    with RUNNING:
        if torch.is_grad_enabled():
            tape = Tape(call.values, recording=True)
            found = _record_gradient(call, finish, tape, second)
        else:
            with torch.enable_grad():
                tape = Tape(call.values, recording=False)
                found = _record_gradient(call, finish, tape, second)
    if any([arg.requires_grad for arg in still]):
        take_graphs_off(still, tape.own, call.what)
    if tape.alone and isinstance(call, Call) and tape.left_others():
        tape.nodes.clear()
        if are_held(tape.leaves):
            take_graphs_off(written_by(call.func), tape.own, call.what)
    return found


def _without_graph(call: Recorded) -> list[Tensor]:
    """The arguments that are not differentiated now, nor by anybody else."""
    if not isinstance(call, Call) or len(call.args) == len(call.parts):
        return []
    return [arg for _, arg in call.still() if not arg.requires_grad]


def _refuse_cut(call: Recorded, finish: Finish) -> None:
    """Raises where the result depends on nothing because the function cut the graph.

    ``torch.func`` raises there; the tape would return zeros silently.
    """
    if not isinstance(call, Call):
        return
    try:
        with random.reuse(), torch.random.fork_rng(devices=[]):
            torch.func.vjp(through(call, finish)[0], *call.values, has_aux=True)
    except RuntimeError as error:
        if autograd.is_cut_refusal(error):
            raise RuntimeError(
                f"{call.what}: nothing of the result depends on what is differentiated, as a graph "
                f"was cut. Inside, use func.grad or func.jacrev, not torch.autograd.functional (or "
                f"write create_graph=True there), and give an autograd.Function tensors, no module"
            ) from error


class SecondOrderError(Exception):
    """A function takes derivatives itself where this is not wanted."""


def _record_gradient(
    call: Recorded, finish: Finish, tape: Tape, second: bool
) -> tuple[list[Tensor], Tensor, Any]:
    loss, aux = tape.run(call, finish)
    beside, close = ([], None) if aux is None else open_tensors(aux, call.what)
    keep = tape.reaches_out([loss, *beside])
    if keep:
        gradients_again(tape.nodes)
    if not second and tape.differentiates_backward([loss]):
        raise SecondOrderError
    if tape.alone and loss.grad_fn is not None and tape.unaccumulated():
        grads = autograd.accumulated(loss, torch.ones_like(loss), tape.leaves)
    elif autograd.connected(loss):
        grads = autograd.backward([loss], [torch.ones_like(loss)], tape.leaves, keep, keep)
    else:
        _refuse_cut(call, finish)
        grads = [torch.zeros_like(x) for x in tape.inputs]
    grads = collectives.gradients_placed(grads, tape.inputs)
    if keep or beside or loss.grad_fn is None:
        grads, (loss, *beside) = tape.release(grads, keep), tape.release([loss, *beside], keep)
    else:  # the usual case, with less
        loss = loss.detach()
    return grads, loss, None if close is None else close(beside)


def pullback_by_tape(call: Call, finish: Finish) -> tuple[list[Tensor], Pullback, Any]:
    """As ``engines.pullback``, on the tape."""
    tape = Tape(call.values, recording=torch.is_grad_enabled())
    with RUNNING, torch.enable_grad():
        outs, aux = tape.run(call, finish)
    beside, close = open_tensors(aux, call.what)
    keep = tape.reaches_out([*outs, *beside])
    if tape.alone:
        once.refuse_second(tape.nodes, tape.leaves)  # a cotangent may be differentiated
    gradients_again(tape.nodes)  # a cotangent may be differentiated, or the arguments
    reached = [k for k, out in enumerate(outs) if autograd.connected(out)]
    if tape.left_others():  # the graph of the result is kept, so its leaves are held anyway
        results = set(map(id, [*outs, *beside]))
        written = [t for t in written_by(call.func) if id(t) not in results]
        take_graphs_off(written, tape.own, call.what)

    def pull(cotangents: Sequence[Tensor]) -> list[Tensor]:
        if not modes.tape_is_exact() and functorch.differentiating():
            # Somebody differentiates the pullback itself: all of it happens at that level.
            with random.reuse():
                return pullback_by_functorch(call, finish)[1](cotangents)
        if not reached:
            return [torch.zeros_like(x) for x in tape.inputs]
        wanted = [cotangents[k] for k in reached]
        build = torch.is_grad_enabled() and (keep or any([c.requires_grad for c in wanted]))
        with RUNNING:
            found = autograd.backward([outs[k] for k in reached], wanted, tape.leaves, True, build)
        if build:
            tape.retire()
        return tape.release(collectives.gradients_placed(found, tape.inputs), build)

    released = tape.release([*outs, *beside], keep)
    return released[: len(outs)], pull, close(released[len(outs) :])
