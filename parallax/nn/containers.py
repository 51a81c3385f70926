"""Modules made of modules and functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Generic, overload

import torch
from torch import Tensor
from typing_extensions import TypeVar

from parallax._errors.arguments import check_flags, shown
from parallax.core.module import Module
from parallax.nn.arguments import positive
from parallax.nn.linear import Linear
from parallax.nn.refusal import ends_with, refuse, where

__all__ = ["MLP", "Lambda", "Residual", "Sequential"]

Layer = Module | Callable[..., Any]
Inner = TypeVar("Inner", bound=Layer, default=Any)


class Sequential(Module):
    """Layers, each called with what the one before returned.

    Args:
        *layers: modules and functions of one argument. Without any, the input is returned.

    Raises:
        TypeError: if one is neither a module nor a function.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), torch.tanh, nn.Linear(3, 1)).initialize(0)
        >>> net(torch.ones(5, 2)).shape
        torch.Size([5, 1])
        >>> net[0]
        Linear(in_features=2, out_features=3, bias=True)
        >>> len(net[:2])
        2
    """

    layers: tuple[Module | Callable[..., Any], ...]

    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        for index, layer in enumerate(layers):
            _require_layer("Sequential", f"layer {index}", layer)
        self.layers = layers

    def forward(self, input: Any) -> Any:
        """What the last layer returns, where each is called with what the one before returned."""
        value = input
        for layer in self.layers:
            value = layer(value)
        return value

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Sequential(*self.layers[index])
        return self.layers[index]

    def __shown__(self) -> list[tuple[str, Any]]:
        return [(str(index), layer) for index, layer in enumerate(self.layers)]

    @staticmethod
    def __state_name__(name: str, _: dict[str, Any]) -> str:
        return name.removeprefix("layers.")


class Lambda(Module):
    """A function as a module.

    Args:
        function: the function that a call runs. It is a constant, so it must not hold tensors.

    Raises:
        TypeError: if it cannot be called, or is a module.

    Example:
        >>> nn.Lambda(torch.relu)(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        if isinstance(function, (Module, torch.nn.Module)) or not callable(function):
            raise TypeError(
                f"Lambda(function=): expected a function, got {shown(function)}. "
                f"Write Lambda(torch.tanh)"
            )
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.function(*args, **kwargs)

    def extra_repr(self) -> str:
        """The name of the function."""
        return str(getattr(self.function, "__qualname__", repr(self.function)))


class Residual(Module, Generic[Inner]):
    """A residual connection around a layer: :math:`y = x + f(x)`.

    Args:
        inner: a module or function, :math:`f`, that keeps the shape.

    Shape:
        - input: ``(*)``
        - output: as the input

    Raises:
        TypeError: if ``inner`` is neither a module nor a function.
        ValueError: if ``inner`` returned another shape.

    Source: K. He et al., "Deep Residual Learning for Image Recognition", 2015.

    Example:
        >>> nn.Residual(torch.exp)(torch.zeros(2))
        tensor([1., 1.])
    """

    inner: Inner

    def __init__(self, inner: Inner) -> None:
        super().__init__()
        _require_layer("Residual", "inner", inner)
        self.inner = inner

    def forward(self, input: Tensor) -> Tensor:
        """The input plus what the inner layer returns for it."""
        output: Tensor = self.inner(input)
        if output.shape != input.shape:
            raise ValueError(
                f"{where(self)}: the inner layer took an input of shape {tuple(input.shape)} to "
                f"{tuple(output.shape)}, and both are added: it must keep the shape"
            )
        return input + output


class MLP(Module):
    """A multilayer perceptron: affine maps with an activation between each two.

    Args:
        sizes: of the last dimension: the input's, the hidden ones, the output's.
        activation: a function or a module; a module is shared by all.
        bias: whether the maps add a bias.

    Shape:
        - input: ``(*, sizes[0])``
        - output: ``(*, sizes[-1])``

    Raises:
        TypeError: if ``sizes`` is not made of ints, or ``activation`` cannot be called.
        ValueError: if there are fewer than two sizes, or one is not positive; or the input has
            another last dimension.

    Example:
        >>> nn.MLP((4, 32, 32, 2)).initialize(0)(torch.ones(5, 4)).shape
        torch.Size([5, 2])
    """

    layers: tuple[Linear, ...]
    activation: Module | Callable[..., Any]

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Layer = torch.relu,
        bias: bool = True,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(sizes, Sequence):
            raise TypeError(
                f"MLP(sizes=): expected a sequence of ints, got {shown(sizes)}. "
                f"Write MLP((3, 8, 2))"
            )
        if len(sizes) < 2:
            raise ValueError(f"MLP(sizes=): expected at least two, got {tuple(sizes)}")
        check_flags("MLP", bias=bias)
        positive("MLP", **{f"sizes[{k}]": size for k, size in enumerate(sizes)})
        _require_layer("MLP", "activation", activation)
        self.layers = tuple([Linear(i, o, bias, dtype=dtype) for i, o in pairwise(sizes)])
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        """The output of the last affine map."""
        if not ends_with(input, self.layers[0].in_features):
            refuse(self, f"(*, {self.layers[0].in_features})", input)
        activation = self.activation
        *hidden, last = self.layers
        value = input
        for layer in hidden:
            value = activation(layer(value))
        output: Tensor = last(value)
        return output


def _require_layer(owner: str, name: str, layer: Any) -> None:
    if isinstance(layer, (type, torch.nn.Module)) or not callable(layer):
        raise TypeError(
            f"{owner}: {name} is {shown(layer)}; expected a parallax.Module or a function of a "
            f"tensor. Write {_meant(layer)}"
        )


def _meant(layer: Any) -> str:
    """What to write for a layer that is none of ours."""
    if isinstance(layer, torch.nn.Module):
        return f"bridge.lift({type(layer).__name__}(...)), or a layer of parallax.nn"
    return f"{layer.__name__}(...)" if isinstance(layer, type) else "torch.relu, for example"
