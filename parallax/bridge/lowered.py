"""``Lowered``: one node of a Parallax tree as an ``nn.Module``."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from parallax.bridge.blueprint import STRUCTURE
from parallax.bridge.places import held, places_of, structure_in
from parallax.bridge.runs import Run
from parallax.bridge.signatures import LoweredMeta
from parallax.core.entries import Static
from parallax.core.structure import Structure, structure_of

__all__ = ["Lowered", "lowered_as"]


class Lowered(nn.Module, metaclass=LoweredMeta):
    """One node of a Parallax tree as an ``nn.Module``: what ``bridge.lower`` makes of it.

    ``forward`` has the arguments of the tree's. It runs the code of the tree, with the tensors that
    are registered, and calls the modules below where that calls its children. In training mode
    modules draw from torch's global generator, and effects are written into the buffers, as layers
    of ``torch.nn`` do.

    Example:
        >>> import torch
        >>> from parallax import bridge, nn
        >>> model = bridge.lower(nn.MLP((3, 8, 2)).initialize(0))
        >>> isinstance(model, bridge.Lowered) and isinstance(model.layers[0], torch.nn.Linear)
        True
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> model(torch.ones(4, 3)).sum().backward()
        >>> opt.step()
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the code of the tree."""
        with Run(self) as (call, tree):
            return call(tree, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        structure = structure_in(self)
        if structure is not None and name in structure.cls.__layout__.constants:
            return structure.local.constants[structure.cls.__layout__.constants.index(name)]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        structure = structure_in(self)
        if structure is not None and name in structure.cls.__layout__.fields:
            changed = _with_field(self, structure, name, value)
            if changed is not None:
                vars(self)[STRUCTURE] = changed
                if name not in vars(self):  # else torch has it, too
                    return
        super().__setattr__(name, value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As ``nn.Module.add_module``."""
        if module is not None and self._modules.get(name) is module:
            _refuse_conversion(structure_in(self), name, module)
        super().add_module(name, module)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As ``nn.Module._apply``, which makes a tensor in two places two."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        structure: Structure = structure_in(self)
        if structure.ties:
            places = places_of(structure)
            nodes: list[Any] = [self]
            for above, name in places.modules:
                found = None if nodes[above] is None else nodes[above]._modules.get(name)
                nodes.append(found)
            for place, first in structure.ties:
                (index, name), (source, origin) = places.slots[place], places.slots[first]
                if nodes[index] is not None and nodes[source] is not None:
                    for table in (nodes[index]._buffers, nodes[index]._parameters):
                        if name in table:
                            table[name] = held(nodes[source], origin)
        return self

    def __getitem__(self, key: Any) -> Any:
        name = str(key)
        for home in (self._modules, self._parameters, self._buffers):
            if name in home:
                return home[name]
        raise KeyError(f"{structure_in(self).cls.__name__} has no {key!r}")

    def extra_repr(self) -> str:
        """The class that was lowered, and its constants."""
        structure = structure_in(self)
        layout = structure.cls.__layout__
        pairs = zip(layout.constants, structure.local.constants, strict=True)
        return ", ".join([structure.cls.__name__, *(f"{name}={value!r}" for name, value in pairs)])


def _with_field(module: Lowered, structure: Structure, name: str, value: Any) -> Structure | None:
    """The structure with another constant in a field; ``None`` if it holds something else."""
    cls: Any = structure.cls
    where, children = f"{cls.__name__}.{name}", list(structure.children)
    if name in cls.__layout__.constants:
        if name in vars(module) and name not in _OF_NORMS:
            raise AttributeError(
                f"{where} cannot be set any more: other numbers of this layer follow from it. "
                f"Replace the layer, here by one of torch.nn or in the tree before it is lowered"
            )
        pairs = zip(cls.__layout__.constants, structure.local.constants, strict=True)
        constants = tuple([value if name == key else old for key, old in pairs])
        local = cls.__layout__.local(constants, tuple(structure.local.note))
        return structure_of(local, structure.children, structure.expand)
    index = cls.__layout__.children.index(name)
    if type(children[index]) is not Static:
        return None
    if isinstance(value, nn.Module):
        raise AttributeError(
            f"{where} is no module in the tree but {children[index].value!r}, and a module cannot "
            f"take its place here. Put one into the tree before it is lowered"
        )
    children[index] = Static(value, where)
    return structure_of(structure.local, tuple(children), structure.expand)


_OF_NORMS = ("eps", "momentum")  # what code of torch sets on layers of a model


def _refuse_conversion(holder: Any, name: str, module: nn.Module) -> None:
    """Raises where torch puts back a norm that it should have converted, and did not know."""
    for path, part in module.named_modules():
        lowered = isinstance(part, Lowered) and not isinstance(part, _NormBase)
        if lowered and "running_mean" in part._buffers:
            where = f"{holder.cls.__name__}.{name}{path and f'.{path}'}"
            raise TypeError(
                f"{where} is no torch.nn.BatchNorm, so torch cannot convert it to SyncBatchNorm. "
                f"Replace the layer in the tree by an nn.BatchNorm1d, 2d or 3d, or one that "
                f"inherits its forward"
            )


@functools.cache
def lowered_as(layer: Any) -> Any:
    """The class of lowered modules that are of a class of ``torch.nn``, too.

    Args:
        layer: that class.
    """
    # torch.fx does not trace into what is of torch's modules.
    space: dict[str, Any] = {
        "__module__": layer.__module__,
        "__doc__": Lowered.__doc__,
        "extra_repr": layer.extra_repr,
    }
    made: Any = LoweredMeta(layer.__name__, (Lowered, layer), space)
    made.made_for = (lowered_as, layer)
    return made
