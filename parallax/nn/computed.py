"""Layers one of whose parameters is computed before each call: by any function, or a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

import torch
from torch import Tensor
from typing_extensions import TypeVar

from parallax._errors.arguments import check_function, check_module, shown
from parallax.core.fields import Buffer
from parallax.core.module import Module
from parallax.core.registry import flatten_module, unflatten_module
from parallax.nn.refusal import where
from parallax.tree.state_names import names_of

__all__ = ["Computed", "L", "Masked", "Parametrized", "path_of", "with_leaf"]

L = TypeVar("L", bound=Module, default=Any)  # the layer that is wrapped


class Computed(Module, Generic[L]):
    """A layer one of whose parameters is computed.

    The layer may be any, also one that has many others in it. ``tree.select(model, path).apply``
    puts the wrapper in the place of a layer of a model, and ``merged`` takes it away again.

    Args:
        layer: the layer that has the parameter; it holds, in its place, what it is computed from.
        name: the name of the parameter in the layer's state dict.

    Shape:
        - input, output: the layer's

    Raises:
        TypeError: if ``layer`` is not a module.
        ValueError: if it has no such parameter.
    """

    layer: L
    name: str
    place: int  # of the parameter among the layer's leaves

    def __init__(self, layer: L, name: str) -> None:
        super().__init__()
        self.layer = layer
        self.name = name
        self.place = self._place_of(layer, name)

    def __check_init__(self) -> None:
        if self._place_of(self.layer, self.name) != self.place:
            raise ValueError(
                f"{type(self).__name__}(layer=): {self.name!r} stands in another place of the new "
                f"layer. Wrap it: {type(self).__name__}(layer, {self.name!r})"
            )

    def _place_of(self, layer: Any, name: Any) -> int:
        own = type(self).__name__
        check_module(own, layer, "layer")
        names = dict(names_of(flatten_module(layer)[1]))
        if name not in names:
            raise ValueError(
                f"{own}(name=): {type(layer).__name__} has no parameter {shown(name)}. "
                f"Give one of those it has: {', '.join(names)}"
            )
        return names[name]

    def original(self) -> Tensor:
        """The tensor that the parameter is computed from, which the layer holds."""
        tensor: Tensor = flatten_module(self.layer)[0][self.place]
        return tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns with the computed parameter."""
        return self._call(self._weight(), args, kwargs)

    def merged(self) -> L:
        """The layer itself, with the computed parameter as its own."""
        layer: L = with_leaf(self.layer, self.place, self._weight())
        return layer

    def _weight(self) -> Tensor:
        """The computed parameter, which most wrappers show as ``weight``."""
        own: Any = self
        weight: Tensor = own.weight
        return weight

    def _call(self, weight: Tensor, args: Any, kwargs: Any) -> Any:
        """What the layer returns with this parameter."""
        made = with_leaf(self.layer, self.place, weight)
        return made(*args, **kwargs)

    @staticmethod
    def __copies__(names: dict[str, Any]) -> list[tuple[str, Any]]:
        return [("layer", names["made"])] if "made" in names else []


class Parametrized(Computed[L]):
    """Computes a parameter of a layer by a function of it, before each call.

    Gradients are those of what the function is given, and of its parameters if it is a module.

    Args:
        function: takes the tensor that the layer holds to the parameter, of the same shape.

    Raises:
        TypeError: if ``function`` cannot be called.
        ValueError: when called, if it changes the shape.

    Source: numbers and state dict as of ``torch.nn.utils.parametrize.register_parametrization``,
    but that the layer's tensor is what the function is given, without ``right_inverse``.

    Example:
        >>> symmetric = lambda w: w.triu() + w.triu(1).mT
        >>> layer = nn.Parametrized(nn.Linear(3, 3), symmetric).initialize(0)
        >>> torch.equal(layer.weight, layer.weight.mT)
        True
        >>> layer.merged()
        Linear(in_features=3, out_features=3, bias=True)
    """

    function: Module | Callable[..., Any]

    def __init__(
        self, layer: L, function: Callable[[Tensor], Tensor], name: str = "weight"
    ) -> None:
        check_function("Parametrized", function, "nn.Parametrized(layer, torch.exp)", "function")
        super().__init__(layer, name)
        if isinstance(function, (torch.nn.Module, type)):
            raise TypeError(
                f"Parametrized(function=): got {shown(function)}. "
                f"Give a function of a tensor, a module of ours, or bridge.lift(module)"
            )
        self.function = function

    @property
    def weight(self) -> Tensor:
        """The parameter that the layer is called with, whatever its name."""
        given = self.original()
        found: Any = self.function(given)
        if not isinstance(found, Tensor) or found.shape != given.shape:
            raise ValueError(
                f"{where(self)}: the function must return a tensor of shape {tuple(given.shape)}, "
                f"as {self.name!r} has, got {shown(found)}. Return one of that shape"
            )
        return found

    @staticmethod
    def __state_name__(name: str, constants: dict[str, Any]) -> str:
        own = f"parametrizations.{constants['name']}"
        if name.startswith("function."):
            return f"{own}.0.{name.removeprefix('function.')}"
        whole = name == f"layer.{constants['name']}"
        return f"{own}.original" if whole else name.removeprefix("layer.")

    def extra_repr(self) -> str:
        """The arguments."""
        named = "" if isinstance(self.function, Module) else f"function={shown(self.function)}, "
        return f"{named}name={self.name!r}"


class Masked(Computed[L]):
    """Multiplies a parameter of a layer with a mask before each call: pruning, as data.

    What the mask drops has no gradient, and stays in the layer.

    Args:
        mask: bools, true for what is kept, or factors, in the shape of the parameter; a buffer.

    Raises:
        TypeError: if ``mask`` is not a tensor.
        ValueError: if it has another shape.

    Source: numbers and state dict as of ``torch.nn.utils.prune``.

    Example:
        >>> linear = nn.Linear(3, 2).initialize(0)
        >>> layer = nn.Masked(linear, linear.weight.abs() > linear.weight.abs().median())
        >>> int((layer.weight == 0).sum()), torch.equal(layer.original(), linear.weight)
        (3, True)
    """

    mask: Buffer

    def __init__(self, layer: L, mask: Tensor, name: str = "weight") -> None:
        super().__init__(layer, name)
        whole: Any = self.original()
        given: Any = mask
        shape = tuple(whole.shape)
        if not isinstance(given, Tensor):
            raise TypeError(
                f"Masked(mask=): expected a tensor of shape {shape}, got {shown(given)}. "
                f"Write mask=layer.weight.abs() > 0.01"
            )
        if tuple(given.shape) != shape:
            raise ValueError(
                f"Masked(mask=): expected shape {shape}, as {name!r} has, got "
                f"{tuple(given.shape)}. Give mask.expand({shape})"
            )
        self.mask = given.to(whole.dtype, copy=True)

    @property
    def weight(self) -> Tensor:
        """The parameter that the layer is called with, whatever its name."""
        return self.original() * self.mask

    @staticmethod
    def __state_name__(name: str, constants: dict[str, Any]) -> str:
        own = constants["name"]
        known = {"mask": f"{own}_mask", f"layer.{own}": f"{own}_orig"}
        return known.get(name) or name.removeprefix("layer.")

    def extra_repr(self) -> str:
        """The arguments."""
        return f"name={self.name!r}"


def with_leaf(layer: Any, place: int, leaf: Any) -> Any:
    """A module with another leaf in a place among its leaves."""
    leaves, structure = flatten_module(layer)
    return unflatten_module(structure, (*leaves[:place], leaf, *leaves[place + 1 :]), layer._rng)


def path_of(layer: Module, place: int) -> str:
    """The path of a leaf of a layer, from the module that holds the layer."""
    return f"layer.{flatten_module(layer)[1].paths[place]}"
