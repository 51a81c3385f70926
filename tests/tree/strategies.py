"""Random modules and trees for hypothesis: nested, with ties, holes, buffers and marks."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from parallax import Buffer, Module, Parameter, tree


class Bag(Module):
    """Any number of leaves and modules, and a constant."""

    weight: Parameter | None
    named: dict[str, Parameter | None]
    stat: Buffer | None
    inner: tuple[Module, ...]
    tag: int


def _tensor(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def tensors(dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)) -> Any:
    """Tensors of few shapes, the empty and the scalar among them."""
    shapes = st.sampled_from([(), (2,), (2, 3), (0,)])
    return st.builds(_tensor, st.integers(0, 99), shapes, st.sampled_from(dtypes))


@st.composite
def modules(draw: Any, depth: int = 3, pool: list[Tensor] | None = None) -> Any:
    """Modules whose leaves come partly from a small pool, so that some are tied."""
    if pool is None:
        pool = draw(st.lists(tensors(), max_size=2))
    fresh = st.one_of(st.none(), tensors())
    leaf = st.one_of(fresh, st.sampled_from(pool)) if pool else fresh
    integers = tensors((torch.int64, torch.bool, torch.float32))
    inner = [] if depth == 0 else draw(st.lists(modules(depth - 1, pool), max_size=2))
    made = Bag(
        draw(leaf),
        draw(st.dictionaries(st.sampled_from(["z", "a", "m"]), leaf, max_size=2)),
        draw(st.one_of(st.none(), integers)),
        tuple(inner),
        draw(st.integers(0, 1)),
    )
    return made.eval() if draw(st.booleans()) else made


def trees() -> Any:
    """Pytrees of modules and tensors, modules alone included."""
    leaves = st.one_of(modules(2), tensors())
    return st.one_of(
        modules(),
        st.recursive(
            leaves,
            lambda inner: st.one_of(
                st.lists(inner, max_size=2),
                st.dictionaries(st.sampled_from(["z", "a"]), inner, max_size=2),
                st.tuples(inner, inner),
            ),
            max_leaves=4,
        ),
    )


def assert_same(one: Any, two: Any) -> None:
    """The very tensors, in trees of equal structure."""
    leaves, spec = tree.flatten(one)
    others, other_spec = tree.flatten(two)
    assert spec == other_spec
    assert [id(leaf) for leaf in leaves] == [id(leaf) for leaf in others]


def values(leaves: list[Any]) -> list[Any]:
    """Leaves in a form that compares by value."""
    return [None if leaf is None else (leaf.dtype, leaf.tolist()) for leaf in leaves]
