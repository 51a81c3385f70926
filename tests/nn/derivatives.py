"""Derivatives of any order of a layer along a line, and what they must be.

A layer, its parameters and its inputs make one scalar function of a number ``t``: everything is
moved by ``t`` times a direction, and the outputs go through a weighted sum of sines. The
derivatives at zero come from values alone, by interpolation in Chebyshev points, or from nested
transforms: a word such as ``RVF`` is a gradient of a vmap of a forward derivative.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax import Module, effects, random

Point = tuple[Tensor, ...]
Scalar = Callable[[Point, Point], Tensor]

# Relative to one plus the derivative, by order: what interpolation can tell.
TOLERANCE = {1: 1e-8, 2: 1e-7, 3: 1e-5, 4: 1e-3}

MEMBERS = 3
FACTORS = torch.linspace(0.5, 1.5, MEMBERS, dtype=torch.float64)


class Line:
    """A layer and its inputs as a function of everything in them that has derivatives.

    Attributes:
        shared: for each tensor whether it is a parameter.
        points: one for each of a few members of a batch.
        direction: in which they are moved.
    """

    def __init__(self, layer: Any, inputs: Sequence[Any], scale: float = 1.0) -> None:
        self.layer: Any = layer
        self.leaves, self.spec = torch_pytree.tree_flatten(layer)
        self.leaves = self.leaves if isinstance(layer, Module) else []
        given, self.inputs = torch_pytree.tree_flatten(tuple(inputs))
        self.given = [_wide(x) for x in [*self.leaves, *given]]
        statistics = _statistics(layer)
        self.places = [
            k
            for k, x in enumerate([*self.leaves, *given])
            if isinstance(x, Tensor) and x.is_floating_point() and id(x) not in statistics
        ]
        self.shared = [k < len(self.leaves) for k in self.places]
        for seed in range(40):
            self._choose(seed, scale * 0.9**seed)
            found = [self._known(point) for point in [*self.points, *self.others]]
            self.wanted = [known for known in found if known is not None]
            if len(self.wanted) == len(found):
                return
        raise AssertionError("no place where values tell the derivatives: kinks are too near")

    def _choose(self, seed: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, dtype=torch.float64)

        start = tuple(self.given[k] + 0.3 * noise(self.given[k]) for k in self.places)
        along = tuple(noise(x) * self._free(x) for x in start)
        length = math.sqrt(sum(float((v * v).sum()) for v in along))
        self.direction = tuple(2 * scale / length * v for v in along)
        more = range(MEMBERS - 1)
        # Members that differ in everything, and members of one set of parameters.
        self.points = [start, *[tuple(x + 0.2 * noise(x) for x in start) for _ in more]]
        pairs = list(zip(start, self.shared, strict=True))
        self.others = [
            tuple(x if shared else x + 0.2 * noise(x) for x, shared in pairs) for _ in more
        ]

    def _free(self, tensor: Tensor) -> Tensor:
        """Zero for the row of a table that has no derivative."""
        free = torch.ones_like(tensor)
        padding = getattr(self.layer, "padding_idx", None)
        if padding is not None and tensor.shape == self.layer.weight.shape:
            free[padding] = 0
        return free

    def __call__(self, point: Point) -> Tensor:
        everything = list(self.given)
        for k, value in zip(self.places, point, strict=True):
            everything[k] = value
        count = len(self.leaves)
        inputs = torch_pytree.tree_unflatten(everything[count:], self.inputs)
        if not self.leaves:
            with random.reuse():
                return _total(self.layer(*inputs))

        def call(layer: Any) -> Any:
            return layer(*inputs)

        layer = torch_pytree.tree_unflatten(everything[:count], self.spec)
        with random.reuse():  # the same function in every call
            return _total(effects.collect(call)(layer)[0])

    def _known(self, point: Point) -> list[float] | None:
        """The derivatives from order one, or ``None`` if values do not tell them."""

        def at(t: float) -> Tensor:
            return self(tuple(x + t * v for x, v in zip(point, self.direction, strict=True)))

        with torch.no_grad():
            first, second = interpolated(at, 0.1, 15), interpolated(at, 0.07, 13)
        pairs = zip(first[1:], second[1:], TOLERANCE.values(), strict=True)
        sure = all(abs(a - b) <= tolerance * (1 + abs(a)) for a, b, tolerance in pairs)
        return first if sure else None

    def expected(self, order: int, variant: str) -> float:
        """The derivative at the first point, or the sum over members with factors."""
        if variant == "one":
            return self.wanted[0][order]
        chosen = self.wanted[:MEMBERS]
        if variant == "shared":
            chosen = [self.wanted[0], *self.wanted[MEMBERS:]]
        return sum([float(f) * known[order] for f, known in zip(FACTORS, chosen, strict=True)])

    def found(self, word: str, variant: str, engine: Any) -> float:
        """The derivative by nested transforms.

        Args:
            word: the transforms, the outermost first.
            variant: ``"one"`` point; ``"all"`` members of a batch that differ in everything;
                members with ``"shared"`` parameters.
            engine: a namespace with ``grad``, ``jvp`` and ``vmap``.
        """
        function = nested(word, lambda point, _: self(point), engine, self.dims(variant))
        return float(function(*self.at(variant)).detach())

    def dims(self, variant: str) -> tuple[int | None, ...]:
        """Which dimension of each tensor is mapped."""
        return tuple(None if own and variant == "shared" else 0 for own in self.shared)

    def at(self, variant: str) -> tuple[Point, Point]:
        """The point, or a stack of the members' points, and the direction of each."""
        if variant == "one":
            return self.points[0], self.direction
        dims = self.dims(variant)
        members = self.points if variant == "all" else [self.points[0], *self.others]
        stacked = [
            xs[0] if dim is None else torch.stack(xs)
            for xs, dim in zip(zip(*members, strict=True), dims, strict=True)
        ]
        along = [
            v if dim is None else v.expand(MEMBERS, *v.shape)
            for v, dim in zip(self.direction, dims, strict=True)
        ]
        return tuple(stacked), tuple(along)

    def variants(self, word: str) -> list[str]:
        """Which variants make sense of a word."""
        if "V" not in word:
            return ["one"]
        return ["all", "shared"] if any(self.shared) and not all(self.shared) else ["all"]


class Wrong(NamedTuple):
    """A derivative that is not what it must be."""

    word: str
    variant: str
    found: Any
    expected: float


def wrong_derivatives(line: Line, words: Sequence[str], engine: Any) -> list[Wrong]:
    """All that differ from those that values tell, or that end in an error."""
    wrong = []
    for word in words:
        order = len(word.replace("V", ""))
        for variant in line.variants(word):
            expected = line.expected(order, variant)
            try:
                found: Any = line.found(word, variant, engine)
            except Exception as error:  # whatever it is, it is reported
                wrong.append(Wrong(word, variant, f"{type(error).__name__}: {error}", expected))
                continue
            if not abs(found - expected) <= TOLERANCE[order] * (1 + abs(expected)):
                wrong.append(Wrong(word, variant, found, expected))
    return wrong


def words(orders: int, *, mapped: bool = True) -> list[str]:
    """All nestings of forward and reverse derivatives, without and with a vmap at every place."""
    plain = ["".join(w) for n in range(1, orders + 1) for w in itertools.product("RF", repeat=n)]
    if not mapped:
        return plain
    return plain + [f"{w[:k]}V{w[k:]}" for w in plain for k in range(len(w) + 1)]


def nested(word: str, function: Scalar, engine: Any, dims: tuple[int | None, ...]) -> Scalar:
    """The directional derivatives and vmaps of a word, around a function of point and direction."""
    for letter in reversed(word):
        function = _TRANSFORMS[letter](function, engine, dims)
    return function


def _reverse(function: Scalar, engine: Any, _: Any) -> Scalar:
    def derived(point: Point, along: Point) -> Tensor:
        grads = engine.grad(lambda point: function(point, along))(point)
        return _product(grads, along)

    return derived


def _forward(function: Scalar, engine: Any, _: Any) -> Scalar:
    def derived(point: Point, along: Point) -> Tensor:
        out: Tensor = engine.jvp(lambda point: function(point, along), (point,), (along,))[1]
        return out

    return derived


def _tape(function: Scalar, _: Any, __: Any) -> Scalar:
    """The gradient by ``torch.autograd.grad``, which stays differentiable."""

    def derived(point: Point, along: Point) -> Tensor:
        leaves = [x if x.requires_grad else x.detach().requires_grad_() for x in point]
        views = tuple(x.view_as(x) for x in leaves)
        grads = torch.autograd.grad(
            function(views, along), views, create_graph=True, materialize_grads=True
        )
        return _product(grads, along)

    return derived


def _mapped(function: Scalar, engine: Any, dims: Any) -> Scalar:
    def derived(point: Point, along: Point) -> Tensor:
        outs = engine.vmap(function, in_dims=(dims, dims))(point, along)
        total: Tensor = (outs * FACTORS).sum()
        return total

    return derived


_TRANSFORMS: dict[str, Callable[..., Scalar]] = {
    "R": _reverse, "F": _forward, "T": _tape, "V": _mapped,
}  # fmt: skip


def interpolated(function: Callable[[float], Tensor], radius: float, count: int) -> list[float]:
    """Value and derivatives to order four at zero, from values in Chebyshev points."""
    angles = torch.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    values = torch.stack([function(radius * float(t)) for t in angles.cos()])
    orders = torch.arange(count, dtype=torch.float64)
    series = torch.cos(angles[:, None] * orders).T @ values * 2 / count
    series[0] /= 2
    found = []
    for order in range(5):
        signs = torch.tensor([_at_zero(k) for k in range(len(series))], dtype=torch.float64)
        found.append(float(series @ signs) / radius**order)
        series = _derived(series)
    return found


def _at_zero(k: int) -> float:
    """The value of the Chebyshev polynomial of degree ``k`` at zero."""
    return 0.0 if k % 2 else (-1.0) ** (k // 2)


def _derived(series: Tensor) -> Tensor:
    """The Chebyshev series of the derivative."""
    derived = torch.zeros(max(len(series) - 1, 1), dtype=series.dtype)
    for k in range(len(series) - 1, 0, -1):
        above = derived[k + 1] if k + 1 < len(derived) else 0.0
        derived[k - 1] = above + 2 * k * series[k]
    derived[0] /= 2
    return derived


def _product(grads: Any, along: Point) -> Tensor:
    return torch.stack([(g * v).sum() for g, v in zip(grads, along, strict=True)]).sum()


def _total(out: Any) -> Tensor:
    """A sum of sines, so that no derivative of an output's is zero."""
    parts = [x for x in torch_pytree.tree_leaves(out) if isinstance(x, Tensor)]
    floats = [x for x in parts if x.is_floating_point()]
    return torch.stack(
        [
            (torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype) * (x.flatten() + k).sin()).sum()
            for k, x in enumerate(floats)
        ]
    ).sum()


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _statistics(layer: Any) -> set[int]:
    """The running statistics, which are no parameters."""
    if not isinstance(layer, Module):
        return set()
    names = ("running_mean", "running_var", "u", "v")
    return {id(getattr(m, name, None)) for m in layer.modules() for name in names}
