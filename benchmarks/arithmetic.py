"""What does a sum, a multiple, a norm of whole trees cost?

The reference is torch's own function of flat lists: no tree at all, the floor. Against it the tree
functions, and what one would write over nested dicts: a map of the function for one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import optree
import torch
from torch import Tensor

from benchmarks.harness import Candidate, Question, from_floor
from benchmarks.models import BLOCKS, NnGPT, NnMLP, as_dict, mirror
from parallax import Module, tree
from parallax._compat import kernels

_MODULES = "Beyond torch's call, three quarters build modules, the rest checks dtypes"


def questions(quick: bool) -> Iterator[Question]:
    del quick
    for leaves in (6, 150):
        model = NnGPT(BLOCKS[leaves], width=8) if leaves in BLOCKS else NnMLP((8, 8, 8, 8))
        module = mirror(model)
        yield from from_floor(_of_two(module, leaves))
        yield from from_floor(_of_one(module, leaves))


def _of_two(module: Module, leaves: int) -> Iterator[Question]:
    other = tree.scale(module, 0.5)
    flat, flat_other = tree.leaves(module), tree.leaves(other)
    plain, plain_other = as_dict(module), as_dict(other)
    pairs: list[tuple[str, Callable[[], Any], Callable[[], Any], Callable[..., Any]]] = [
        (
            "add",
            lambda: kernels.foreach_add(flat, flat_other, alpha=0.1),
            lambda: tree.add(module, other, alpha=0.1),
            lambda a, b: torch.add(a, b, alpha=0.1),
        ),
        (
            "sub",
            lambda: kernels.foreach_sub(flat, flat_other),
            lambda: tree.sub(module, other),
            torch.sub,
        ),
        (
            "lerp",
            lambda: kernels.foreach_lerp(flat, flat_other, 0.1),
            lambda: tree.lerp(module, other, 0.1),
            lambda a, b: torch.lerp(a, b, 0.1),
        ),
    ]
    for name, floor, mine, single in pairs:
        yield Question(
            f"{name}, {leaves} leaves",
            Candidate("flat lists", floor),
            [
                Candidate("parallax.tree", mine),
            ],
            peers=[Candidate("optree, nested dict", _mapped(single, plain, plain_other))],
            check=_same_values,
            remains=_MODULES,
        )
    yield Question(
        f"vdot, {leaves} leaves",
        Candidate("flat lists", lambda: _foreach_vdot(flat, flat_other)),
        [
            Candidate("parallax.tree", lambda: tree.vdot(module, other)),
        ],
        peers=[Candidate("optree, nested dict", lambda: _optree_vdot(plain, plain_other))],
        check=_same_sum,
    )


def _of_one(module: Module, leaves: int) -> Iterator[Question]:
    flat, plain = tree.leaves(module), as_dict(module)
    yield Question(
        f"scale, {leaves} leaves",
        Candidate("flat lists", lambda: kernels.foreach_mul(flat, 0.1)),
        [
            Candidate("parallax.tree", lambda: tree.scale(module, 0.1)),
        ],
        peers=[Candidate("optree, nested dict", _mapped(lambda a: a * 0.1, plain))],
        check=_same_values,
        remains=_MODULES,
    )
    yield Question(
        f"norm, {leaves} leaves",
        Candidate("flat lists", lambda: _norm_of(kernels.foreach_norm(flat))),
        [
            Candidate("parallax.tree", lambda: tree.norm(module)),
        ],
        peers=[Candidate("optree, nested dict", lambda: _optree_norm(plain))],
        check=torch.testing.assert_close,
    )
    yield Question(
        f"zeros_like, {leaves} leaves",
        Candidate("flat lists", lambda: [torch.zeros_like(leaf) for leaf in flat]),
        [
            Candidate("parallax.tree", lambda: tree.zeros_like(module)),
        ],
        peers=[Candidate("optree, nested dict", _mapped(torch.zeros_like, plain))],
        check=_same_values,
        remains=_MODULES,
    )


def _same_sum(one: Tensor, two: Tensor) -> None:
    # Many products added in another order.
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def _mapped(function: Callable[..., Any], *plains: Any) -> Callable[[], Any]:
    return lambda: optree.tree_map(function, *plains)


def _norm_of(norms: Any) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(norms))  # type: ignore[no-any-return]  # torch leaves it untyped


def _optree_norm(plain: Any) -> Tensor:
    return _norm_of([torch.linalg.vector_norm(leaf) for leaf in optree.tree_leaves(plain)])


def _foreach_vdot(one: list[Tensor], two: list[Tensor]) -> Tensor:
    return torch.stack([product.sum() for product in kernels.foreach_mul(one, two)]).sum()


def _optree_vdot(one: Any, two: Any) -> Tensor:
    pairs = zip(optree.tree_leaves(one), optree.tree_leaves(two), strict=True)
    return torch.stack([(a * b).sum() for a, b in pairs]).sum()


def _same_values(expected: Any, made: Any) -> None:
    # optree sorts dicts and modules keep the order of their fields: compare without order.
    sums = [sorted(float(leaf.sum()) for leaf in tree.leaves(t)) for t in (expected, made)]
    torch.testing.assert_close(*map(torch.tensor, sums))
