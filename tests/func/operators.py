"""Torch's operators at their samples, as functions along a line that have derivatives.

Everything that floats among the arguments of a sample is moved by ``t`` times a direction, and the
results go through a weighted sum of sines, as in ``tests.nn.derivatives``. What the derivatives at
zero must be is told by values alone, where three interpolations agree: at kinks they do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from tests.nn.derivatives import TOLERANCE, interpolated, nested

__all__ = ["FORMS", "Operator"]

Point = tuple[Tensor, ...]

FORMS = ("function", "zeros", "in place")
"""How an operator is called: at its sample, with zeros in it, and in place."""

_RADII = (0.1, 0.02)
_INTERPOLATIONS = ((1.0, 15), (0.7, 13), (0.4, 12))
_MEMBERS = 2
_FACTORS = torch.tensor([0.7, 1.3], dtype=torch.float64)


class Operator:
    """An operator at one of torch's samples, along a line.

    Attributes:
        number: of the sample.
        points: two, one for each member of a batch.
        direction: in which they are moved.
        known: of each point the derivatives of orders 0 to 3; ``None`` where values tell none.
    """

    @classmethod
    def of(cls, info: Any, sample: Any, number: int, form: str, asked: bool) -> Operator | None:
        """The operator of torch's database; ``None`` if there is nothing to differentiate.

        Args:
            info: what torch knows of the operator.
            sample: its arguments.
            number: of the sample.
            form: one of ``FORMS``.
            asked: whether only that is moved which torch says can be differentiated.
        """
        call = _call_of(info, form)
        given = (sample.input, *sample.args), dict(sample.kwargs)
        leaves, spec = torch_pytree.tree_flatten(given)
        places = [k for k, x in enumerate(leaves) if _floats(x)]
        marked = [k for k in places if leaves[k].requires_grad]
        if call is None or not places or (asked and marked in ([], places)):
            return None
        leaves = [x.detach() if isinstance(x, Tensor) else x for x in leaves]
        places = marked if asked else places
        if form == "zeros":
            for k in places:
                leaves[k] = leaves[k].clone(memory_format=torch.contiguous_format)
                leaves[k].view(-1)[::3] = 0

        def function(point: Point) -> Tensor | None:
            values = list(leaves)
            for k, value in zip(places, point, strict=True):
                values[k] = value
            args, kwargs = torch_pytree.tree_unflatten(values, spec)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(3)  # the same function in every call
                return _total(sample.output_process_fn_grad(call(*args, **kwargs)))

        start = tuple([leaves[k] for k in places])
        return None if function(start) is None else cls(function, start, number)

    def __init__(self, function: Callable[[Point], Any], start: Point, number: int) -> None:
        self.function, self.number = function, number
        generator = torch.Generator().manual_seed(number)

        def noise(like: Tensor) -> Tensor:
            made = torch.randn(like.shape, generator=generator, dtype=like.dtype)
            return made + made.mH if _is_hermitian(like) else made

        along = [noise(x) for x in start]
        length = math.sqrt(sum([float((v.abs() ** 2).sum()) for v in along]))
        self.direction = tuple([v / length for v in along])
        self.points = [start, tuple([x + 0.03 * noise(x) for x in start])]
        self.known = [self._known(point) for point in self.points]

    def _known(self, point: Point) -> Sequence[float | None]:
        def at(t: float) -> Any:
            return self.function(
                tuple([x + t * v for x, v in zip(point, self.direction, strict=True)])
            )

        known: list[float | None] = [None] * 4
        with torch.no_grad():
            for radius in _RADII:
                rows = [interpolated(at, radius * f, n) for f, n in _INTERPOLATIONS]
                for order in range(4):
                    first, *others = [row[order] for row in rows]
                    same = [_close(order, x, first, radius) for x in others]
                    if known[order] is None and all(same):
                        known[order] = first
        # At an even kink the odd ones seem to be zero.
        return [None] * 4 if None in known[:3] else known

    def expected(self, word: str) -> float | None:
        """What a word must give; ``None`` if values do not tell it."""
        order = _order(word)
        if "V" not in word:
            return self.known[0][order]
        parts = [known[order] for known in self.known]
        pairs = zip(_FACTORS.tolist(), parts, strict=True)
        found = [factor * part for factor, part in pairs if part is not None]
        return sum(found) if len(found) == _MEMBERS else None

    def found(self, word: str, engine: Any) -> float:
        """The derivative by nested transforms, the outermost first."""
        dims = (0,) * len(self.direction)
        before, mapped, behind = word.partition("V")
        inner: Any = nested(
            behind if mapped else before, lambda point, _: self.function(point), engine, dims
        )
        if not mapped:
            return float(inner(self.points[0], self.direction).detach())

        def members(point: Point, along: Point) -> Tensor:
            outs: Tensor = engine.vmap(inner, in_dims=(dims, dims))(point, along)
            return (outs * _FACTORS).sum()

        function = nested(before, members, engine, dims)
        stacked = tuple([torch.stack(xs) for xs in zip(*self.points, strict=True)])
        along = tuple([v.expand(_MEMBERS, *v.shape) for v in self.direction])
        return float(function(stacked, along).detach())

    @staticmethod
    def is_close(word: str, found: float, expected: float) -> bool:
        """Whether it is what values tell."""
        return _close(_order(word), found, expected, _RADII[-1])


def _order(word: str) -> int:
    return len(word.replace("V", ""))


def _close(order: int, found: float, expected: float, radius: float) -> bool:
    tolerance = TOLERANCE.get(order, 1e-9) * (1 if radius == _RADII[0] else 10)
    return abs(found - expected) <= tolerance * (1 + abs(expected))


def _call_of(info: Any, form: str) -> Callable[..., Any] | None:
    if form != "in place":
        return lambda *args, **kwargs: info.gradcheck_wrapper(info.op, *args, **kwargs)
    written = info.inplace_variant
    if written is None:
        return None
    return lambda x, *args, **kwargs: written(x.clone(), *args, **kwargs)


def _is_hermitian(x: Tensor) -> bool:
    """Then an operator may read half of it, and autograd shares its derivative with the other."""
    return x.dim() > 1 and x.shape[-1] == x.shape[-2] and torch.equal(x, x.mH)


def _floats(x: Any) -> bool:
    if not isinstance(x, Tensor) or x.layout is not torch.strided or x.numel() == 0:
        return False
    return x.is_floating_point() or x.is_complex()


def _total(out: Any) -> Tensor | None:
    """A sum of sines, so that no derivative of an output's is zero; ``None`` of no numbers."""
    parts = [x for x in torch_pytree.tree_leaves(out) if isinstance(x, Tensor)]
    reals = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in parts]
    sums = [
        (torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype) * (x.reshape(-1) + k).sin()).sum()
        for k, x in enumerate(reals)
        if x.is_floating_point() and x.numel()
    ]
    return torch.stack([x.double() for x in sums]).sum() if sums else None
