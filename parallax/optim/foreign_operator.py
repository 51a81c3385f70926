"""A step of a class of torch's kind in a graph: one operator, which makes the step as it is.

What such a class does is Python that no graph can hold. The operator runs it on the numbers, when
they are known. What comes out is known before: the class makes one step on other numbers of the
same shapes while the code is traced. Where the real step keeps something else, it raises.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallax._compat import in_trace
from parallax._compat.opaque import constant_while_tracing, real
from parallax.core.registry import flatten_module, unflatten_module
from parallax.optim.state import around

__all__ = ["Known", "step"]

Stepped = Callable[[Any, Any, Any], tuple[Any, Any]]

_library = torch.library.Library("parallax", "FRAGMENT")
_library.define(
    "foreign_step(Tensor[] leaves, Tensor[] grads, Tensor[] state, str call) -> Tensor[]"
)


@constant_while_tracing
class Known:
    """What runs a step, as a constant while dynamo traces.

    Attributes:
        what: what is called, for error messages.
        stepped: takes a model, gradients and a state to the next model and state.
    """

    __slots__ = ("stepped", "what")

    def __init__(self, what: str, stepped: Stepped) -> None:
        self.what = what
        self.stepped = stepped

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class _Part(NamedTuple):
    """The structure of a module, and which of its leaves are tensors."""

    structure: Any
    present: tuple[int, ...]

    def around(self, tensors: Sequence[Tensor]) -> Any:
        """The module of these tensors."""
        leaves: list[Any] = [None] * self.structure.n_leaves
        for place, tensor in zip(self.present, tensors, strict=True):
            leaves[place] = tensor
        return unflatten_module(self.structure, leaves)


class _Call(NamedTuple):
    """A step as a graph holds it.

    Attributes:
        known: what runs it.
        model: the model.
        given: which leaves have gradients.
        state: the state before.
        after: the state after.
        moved: which leaves of the model are others after the step.
        results: shape, strides, dtype and device of each tensor that comes out.
    """

    known: Known
    model: _Part
    given: tuple[int, ...]
    state: _Part
    after: _Part
    moved: tuple[int, ...]
    results: tuple[Any, ...]

    def run(self, leaves: list[Tensor], grads: list[Tensor], state: list[Tensor]) -> list[Tensor]:
        """The tensors that come out."""
        found, after = _made(self.known, self.model, self.given, self.state, (leaves, grads, state))
        tensors = [found[k] for k in self.moved]
        others, structure = flatten_module(after)
        tensors += [leaf for leaf in others if leaf is not None]
        seen = tuple([_look(tensor) for tensor in tensors])
        if structure != self.after.structure or [x[0::2] for x in seen] != [
            x[0::2] for x in self.results
        ]:
            raise RuntimeError(
                f"{self.known.what}: with these numbers it keeps something else than when it was "
                f"compiled, which a graph cannot hold. Compile the gradient alone, and step in "
                f"eager code"
            )
        pairs = zip(tensors, seen, self.results, strict=True)
        return [x if a == b else _blank(b).copy_(x) for x, a, b in pairs]


_calls: dict[str, _Call] = {}
_numbers = count()


# -- while dynamo traces ------------------------------------------------------------------------


def step(known: Known, model: Any, given: Sequence[Any], state: Any) -> tuple[Any, Any]:
    """The next model and state.

    Args:
        known: what runs a step.
        model: the model.
        given: the gradients in the order of its leaves.
        state: the state.
    """
    leaves, part = flatten_module(model)
    others, structure = flatten_module(state)
    present = tuple([k for k, leaf in enumerate(leaves) if leaf is not None])
    chosen = tuple([k for k, grad in enumerate(given) if grad is not None])
    held = tuple([k for k, leaf in enumerate(others) if leaf is not None])
    mine = [leaves[k].detach() for k in present]
    grads = [given[k].detach() for k in chosen]
    kept = [others[k].detach() for k in held]
    tensors = [*mine, *grads, *kept]
    in_trace.at_trace()(_note_shapes)
    del tensors
    call, moved, after, places = _prepared(
        known, part, present, chosen, structure, held, in_trace.replied()
    )
    found = torch.ops.parallax.foreign_step(mine, grads, kept, call)
    made, rest = list(leaves), [None] * after.n_leaves
    for k, place in enumerate(moved):
        made[place] = found[k]
    for k, place in enumerate(places):
        rest[place] = found[len(moved) + k]
    next_model = unflatten_module(part, made, model._rng)
    return next_model, unflatten_module(after, rest)


def _note_shapes(context: Any) -> None:
    """Replies what the tensors of ``step`` look like."""
    looks = [_look(tensor) for tensor in in_trace.items(context, "tensors")]
    in_trace.reply(context, json.dumps(looks))


@real
def _prepared(
    known: Known, part: Any, present: tuple[int, ...], given: tuple[int, ...], structure: Any,
    held: tuple[int, ...], looks: str,
) -> tuple[str, tuple[int, ...], Any, tuple[int, ...]]:  # fmt: skip
    """The name of a call, which leaves it moves, and the structure and places of the next state."""
    model, state = _Part(part, present), _Part(structure, held)
    tensors = _others(json.loads(looks), len(present) + len(given))
    lists = _split(tensors, len(present), len(given))
    with torch.random.fork_rng(devices=[]):
        found, after = _made(known, model, given, state, lists)
    pairs = zip(present, lists[0], strict=True)
    moved = tuple([k for k, leaf in pairs if found[k] is not leaf])
    rest, structure = flatten_module(after)
    places = tuple([k for k, leaf in enumerate(rest) if leaf is not None])
    results = tuple([_look(x) for x in [*[found[k] for k in moved], *[rest[k] for k in places]]])
    call = _Call(known, model, given, state, _Part(structure, places), moved, results)
    text = json.dumps([known.what, looks, results])
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{next(_numbers)}"
    _calls[name] = call
    return name, moved, structure, places


def _made(
    known: Known, model: _Part, given: tuple[int, ...], state: _Part, lists: Sequence[Any]
) -> tuple[Sequence[Any], Any]:
    """The leaves of the next model, and the next state."""
    leaves, grads, kept = lists
    whole = model.around(leaves)
    column: list[Any] = [None] * model.structure.n_leaves
    for place, grad in zip(given, grads, strict=True):
        column[place] = grad
    made, after = known.stepped(whole, around(whole, column), state.around(kept))
    return flatten_module(made)[0], after


def _split(tensors: list[Tensor], *counts: int) -> list[list[Tensor]]:
    one, two = counts
    return [tensors[:one], tensors[one : one + two], tensors[one + two :]]


# -- what tensors look like ---------------------------------------------------------------------


def _look(tensor: Tensor) -> tuple[list[int], list[int], str, str]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape, stride = [int(n) for n in tensor.shape], [int(n) for n in tensor.stride()]
    return shape, stride, dtype, str(tensor.device)


def _blank(look: Sequence[Any]) -> Tensor:
    shape, stride, dtype, device = look
    return torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device=device)


def _others(looks: Sequence[Any], normal: int) -> list[Tensor]:
    """Tensors that look so: of normal numbers, so many; and of ones."""
    generator = torch.Generator().manual_seed(0)
    tensors: list[Tensor] = []
    for k, look in enumerate(looks):
        tensor = _blank(look).fill_(1)
        if k < normal and (tensor.is_floating_point() or tensor.is_complex()):
            tensor.copy_(torch.randn(look[0], generator=generator))
        tensors.append(tensor)
    return tensors


# -- the operator -------------------------------------------------------------------------------


def _step(
    leaves: list[Tensor], grads: list[Tensor], state: list[Tensor], call: str
) -> list[Tensor]:
    if call not in _calls:
        raise RuntimeError(
            "from_torch: this step was compiled in another process, and its class is not in the "
            "file. Compile it here: parallax.compile(step)"
        )
    return _calls[call].run(leaves, grads, state)


def _no_numbers(
    leaves: list[Tensor], grads: list[Tensor], state: list[Tensor], call: str
) -> list[Tensor]:
    del leaves, grads, state
    return [_blank(look) for look in _calls[call].results]


_library.impl("foreign_step", _step, "CompositeExplicitAutograd")
torch.library.register_fake("parallax::foreign_step", _no_numbers, lib=_library)
