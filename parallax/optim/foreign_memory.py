"""Whether the tensors that a class of torch's kind keeps can be copied one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax._compat import memory
from parallax.optim.attributes import attributes_of
from parallax.optim.checks import paths_of

__all__ = ["beside", "check_apart"]

Named = list[tuple[str, Any]]


class _Taken(NamedTuple):
    """A tensor, and whether the class makes it when it is constructed.

    What is made then shares memory again in the next step; what a state holds does not.
    """

    label: str
    tensor: Tensor
    made: bool


def beside(
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Mapping[str, Any]],
    attributes: Mapping[str, Any],
    shared: Mapping[Any, Any],
) -> tuple[Named, Named]:
    """What an optimizer keeps beside its parameters, each with a name for errors.

    Args:
        optimizer: the optimizer.
        groups: what goes into the state of each group.
        attributes: likewise of its attributes.
        shared: what it keeps in its state under no parameter.

    Returns:
        What goes into the state, and what does not, since the class makes it again.
    """
    carried = [(f"state[{key!r}]", value) for key, value in shared.items()]
    left: Named = []
    for group, written in zip(optimizer.param_groups, groups, strict=True):
        for name, value in group.items():
            if name != "params":
                (carried if name in written else left).append((f"group[{name!r}]", value))
    for name, value in attributes_of(optimizer).items():
        (carried if name in attributes else left).append((f"its attribute {name}", value))
    return carried, left


def check_apart(
    what: str,
    model: Any,
    params: Mapping[int, Tensor],
    kept: Mapping[int, Mapping[str, Any]],
    carried: Named,
    left: Named,
) -> None:
    """Raises if two tensors that an optimizer keeps share memory, as each is copied by itself.

    Args:
        what: who keeps them.
        model: the model.
        params: its parameters.
        kept: per parameter what is kept of it, by name.
        carried: what else goes into the state, each with a name for the error.
        left: what does not, since the class makes it again; likewise.

    Raises:
        TypeError: naming both.
    """
    paths, own = paths_of(model), set(map(id, params.values()))

    def inside(value: Any) -> list[Tensor]:
        found = [x for x in torch_pytree.tree_leaves(value) if isinstance(x, Tensor)]
        return [x for x in found if id(x) not in own]  # where a parameter stays what it is

    taken = [_Taken(f"the parameter {paths[k]}", param, True) for k, param in params.items()]
    for k, values in kept.items():
        for name, value in values.items():
            tensors = [value] if isinstance(value, Tensor) else inside(value)
            taken += [_Taken(f"state[{name!r}] of {paths[k]}", tensor, False) for tensor in tensors]
    for named, made in ((carried, False), (left, True)):
        for label, value in named:
            taken += [_Taken(label, tensor, made) for tensor in inside(value)]
    regions: dict[int, list[_Taken]] = {}
    for one in taken:
        if one.tensor.layout is not torch.strided or one.tensor.numel() == 0:
            continue
        others = regions.setdefault(memory.storage_of(one.tensor), [])
        for other in others:
            if not (one.made and other.made) and memory.meet(one.tensor, other.tensor):
                raise TypeError(
                    f"{what}: {other.label} and {one.label} share memory, and a step of the class "
                    f"may write into both at once; a state holds each alone. Copy one where the "
                    f"class makes it: tensor.clone()"
                )
        others.append(one)
