"""The modules of a lowered tree that hold others: lists, dicts and sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from parallax.core.entries import SLOT, Static
from parallax.core.frozendict import FrozenDict
from parallax.core.structure import Structure

__all__ = ["Function", "Part", "container_of", "hold_functions", "holds_modules"]


class Function(nn.Module):
    """A function among the layers of a ``torch.nn.Sequential``.

    Args:
        function: what a call computes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, value: Any) -> Any:
        """Call the function."""
        return self.function(value)

    def extra_repr(self) -> str:
        """The function's name."""
        return str(getattr(self.function, "__qualname__", repr(self.function)))


class Part(nn.Module):
    """Holds what stands in a container of the tree, by name or number."""

    def __len__(self) -> int:
        return len(self._held())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._held().values())

    def __getitem__(self, key: Any) -> Any:
        return self._held()[str(key)]

    def _held(self) -> dict[str, Any]:
        return {**self._parameters, **self._buffers, **self._modules}


def hold_functions(sequence: nn.Module, structure: Structure) -> None:
    """Puts the functions of a ``Sequential`` into a module, and makes room between them.

    Args:
        sequence: the module.
        structure: of the ``Sequential``.
    """
    (layers,) = structure.children
    for key, child in zip(layers.keys(), layers.children, strict=True):
        held = Function(child.value) if type(child) is Static else None
        sequence._modules[str(key)] = held


def container_of(structure: Structure) -> nn.Module:
    """A ``ModuleList`` or ``ModuleDict`` for a tuple or dict of modules, with room for them.

    Args:
        structure: of a container.

    Returns:
        The container; a ``Part`` if it holds something else than modules.
    """
    if not holds_modules(structure):
        return Part()
    made = nn.ModuleDict() if structure.cls is FrozenDict else nn.ModuleList()
    names = [str(name) for name in structure.keys()]  # noqa: SIM118  # no dict
    made._modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None is allowed
    return made


def holds_modules(structure: Structure) -> bool:
    """Whether a container is a tuple or dict of modules, such as ``torch.nn`` has."""
    if structure.cls is FrozenDict:
        keys = structure.local.constants[0]
        fits = all([isinstance(key, str) and "." not in key for key in keys])
    else:
        fits = structure.cls is tuple
    return fits and all([child is SLOT or _is_module(child) for child in structure.children])


def _is_module(child: Any) -> bool:
    return type(child) is Structure and hasattr(child.cls, "__layout__")
