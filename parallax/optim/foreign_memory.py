"""Whether the tensors that a class of torch's kind keeps can be copied one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax.optim.checks import paths_of

__all__ = ["check_apart"]


def check_apart(
    what: str, model: Any, params: Mapping[int, Tensor], kept: Mapping[int, Mapping[str, Any]]
) -> None:
    """Raises if two tensors that an optimizer keeps share memory, as each is copied by itself."""
    paths, own = paths_of(model), set(map(id, params.values()))
    taken = [(f"the parameter {paths[k]}", param) for k, param in params.items()]
    for k, values in kept.items():
        for name, value in values.items():
            inside = [x for x in torch_pytree.tree_leaves(value) if isinstance(x, Tensor)]
            if not isinstance(value, Tensor):  # in a list a parameter stays what it is
                inside = [x for x in inside if id(x) not in own]
            taken += [(f"state[{name!r}] of {paths[k]}", tensor) for tensor in inside]
    regions: dict[int, list[tuple[int, int, str]]] = {}
    for label, tensor in taken:
        if tensor.layout is not torch.strided or tensor.numel() == 0:
            continue
        start = tensor.storage_offset() * tensor.itemsize
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        end = start + (1 + sum([(size - 1) * step for size, step in steps])) * tensor.itemsize
        others = regions.setdefault(tensor.untyped_storage()._cdata, [])
        for first, last, other in others:
            if start < last and first < end:
                raise TypeError(
                    f"{what}: {other} and {label} share memory, and a step of the class may write "
                    f"into both at once; a state holds each alone. Copy one where the class makes "
                    f"it: tensor.clone()"
                )
        others.append((int(start), int(end), label))
