"""A step in a graph as one operator, which runs torch's fused kernel as an eager step does.

Leaf by leaf, the optimizer is most of what dynamo traces of a training step, in every process
anew, and half of the code that is compiled for it. As an operator it is one line of both.

``parallax::step_`` writes into the tensors that it is given. What a trace calls is
``parallax::step``, which is made of it and returns new tensors.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import functorch, in_trace, kernels
from parallax._compat.memory import Addresses
from parallax._compat.opaque import real
from parallax.optim.hyper import Hyper
from parallax.optim.lists import How, Lists, joined

__all__ = ["fits", "step"]

_FEW = 8  # so many leaves cost less than the call of an operator that is written in Python
_library = torch.library.Library("parallax", "FRAGMENT")
_library.define(
    "step_(Tensor(a!)[] params, Tensor(b!)[] moments, Tensor[] old, Tensor[] grads, "
    "Tensor[] clocks, int[] clock_of, Tensor[] numbers, str recipe) -> ()"
)
_library.define(
    "step(Tensor[] params, Tensor[] moments, Tensor[] grads, Tensor[] clocks, int[] clock_of, "
    "Tensor[] numbers, str recipe, bool given) -> Tensor[]"
)


# -- while dynamo traces ------------------------------------------------------------------------


def fits(opt: Any, at: Lists, h: Hyper) -> bool:
    """Whether lists are stepped by the operator.

    Not in a derivative or under ``vmap``, which it has no rule for; nor where eager code would not
    run a fused kernel. On the CPU alone: a CUDA graph cannot hold an operator that reads clocks.

    Args:
        opt: an optimizer.
        at: the lists; they do not fit if a moment is missing.
        h: its hyper-parameters, as numbers and tensors.
    """
    if not opt._fused_on or len(at.params) <= _FEW or h["fused"] is False:
        return False
    if h["foreach"] is not None and not h["fused"]:
        return False
    # ``_look`` reads these locals. To trace its questions would take longer than all else.
    values = [
        part for value in h.values() for part in (value if type(value) is tuple else (value,))
    ]
    tensors = joined([at.params, at.grads, *at.moments.values()])
    count, halves = len(at.params), opt._fused_halves
    in_trace.at_trace()(_look)
    del count, halves, tensors, values
    return _is_ours(type(opt)) and in_trace.replied()


@real
def _is_ours(cls: type) -> bool:
    return _class(cls.__name__) is cls


def _look(context: Any) -> None:
    """Answers the question of ``fits``, from its locals."""
    count, halves = [in_trace.constant(context, name) for name in ("count", "halves")]
    tensors, values = in_trace.items(context, "tensors"), in_trace.items(context, "values")
    in_trace.reply(context, _are_read(values) and _are_fused(tensors, count, halves))


def _are_read(values: list[Any]) -> bool:
    """Whether hyper-parameters are constants, or tensors that the operator can read."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    return not any([value is in_trace.NOT_FIXED for value in values]) and all(
        [in_trace.is_plain(tensor) and tensor.device.type == "cpu" for tensor in tensors]
    )


def _are_fused(tensors: list[Any], count: int, halves: bool) -> bool:
    """Whether torch has a fused kernel for columns of so many tensors, as ``Lists.fusable``."""
    if functorch.transform_active() or not all(map(in_trace.is_plain, tensors)):
        return False
    for k, param in enumerate(tensors[:count]):
        if not (param.is_floating_point() and param.device.type == "cpu"):
            return False
        if param.itemsize < 4 and not halves:
            return False
        if any([t.dtype != param.dtype or t.device != param.device for t in tensors[k::count]]):
            return False
    return True


def step(opt: Any, at: Lists, h: Hyper) -> Lists:
    """Steps lists that fit, as one node of the graph.

    Args:
        opt: the optimizer.
        at: the lists.
        h: its hyper-parameters, as numbers and tensors.
    """
    names = tuple(at.moments)
    numbers: list[Tensor] = []
    values: list[Any] = []
    for value in h.values():
        whole = type(value) is tuple
        parts: list[Any] = []
        for part in value if whole else (value,):
            if isinstance(part, Tensor):
                parts.append({"number": len(numbers)})
                numbers.append(part)
            else:
                parts.append(part)
        values.append(parts if whole else parts[0])
    recipe = _recipe(type(opt).__name__, names, tuple(h), tuple(values))
    moments = joined(at.moments.values())
    made = torch.ops.parallax.step(
        at.params,
        moments,
        at.grads,
        at.clocks,
        at.clock_of,
        numbers,
        recipe,
        in_trace.allows_donation(),
    )
    n = len(at.params)
    columns = {name: made[k * n + n : k * n + 2 * n] for k, name in enumerate(names)}
    return Lists(made[:n], at.grads, columns, at.clocks, at.clock_of)


@real
def _recipe(*parts: Any) -> str:
    """What the operator is to do: a text, since compiled graphs outlive a process.

    Inductor writes it into C++ as it is, between double quotes.
    """
    return json.dumps(parts).replace('"', "'")


# -- the operators ------------------------------------------------------------------------------


def _step(
    params: list[Tensor], moments: list[Tensor], grads: list[Tensor], clocks: list[Tensor],
    clock_of: list[int], numbers: list[Tensor], recipe: str, given: bool,
) -> list[Tensor]:  # fmt: skip
    old, n = [*params, *moments], len(params)
    if given:
        # Inductor leaves out a copy of what is overwritten in the end, if nothing else reads it.
        made, old = [torch.clone(tensor) for tensor in old], []
    else:
        # The operator copies, so that no kernel is compiled for it.
        made = [torch.empty_like(tensor) for tensor in old]
    torch.ops.parallax.step_(made[:n], made[n:], old, grads, clocks, clock_of, numbers, recipe)
    return made


def _step_in_place(
    params: list[Tensor], moments: list[Tensor], old: list[Tensor], grads: list[Tensor],
    clocks: list[Tensor], clock_of: list[int], numbers: list[Tensor], recipe: str,
) -> None:  # fmt: skip
    opt, names, hyper = _read(recipe)
    if old:
        kernels.foreach_copy_([*params, *moments], old)
    else:
        grads = _apart(grads, [*params, *moments])
    n = len(params)
    columns = {name: moments[k * n : k * n + n] for k, name in enumerate(names)}
    given = [number.item() for number in numbers]
    h = {name: _filled(value, given) for name, value in hyper.items()}
    opt._kernel(Lists(params, grads, columns, clocks, clock_of), h, How(None, True))


def _apart(grads: list[Tensor], written: list[Tensor]) -> list[Tensor]:
    """Gradients, of which none lies in memory that is written.

    A gradient that is a copy of a parameter may be that very parameter here: inductor leaves out
    copies, and does not look at what else an operator reads.
    """
    addresses = Addresses([(t.data_ptr(), t.data_ptr() + t.nbytes) for t in written])
    return [grad.clone() if addresses.hold(grad.data_ptr()) else grad for grad in grads]


@functools.lru_cache(256)
def _read(recipe: str) -> tuple[Any, tuple[str, ...], Hyper]:
    kind, moments, names, values = json.loads(recipe.replace("'", '"'))
    return _class(kind)(), tuple(moments), dict(zip(names, values, strict=True))


def _class(name: str) -> Any:
    from parallax import optim  # which imports this file

    return getattr(optim, name, None)


def _filled(value: Any, numbers: Sequence[Any]) -> Any:
    if isinstance(value, dict):
        return numbers[value["number"]]
    return tuple([_filled(part, numbers) for part in value]) if isinstance(value, list) else value


_library.impl("step", _step, "CompositeImplicitAutograd")
_library.impl("step_", _step_in_place, "CompositeExplicitAutograd")
_library.impl("step_", lambda *_: None, "Meta")
