"""add, sub, scale, lerp, vdot, norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from parallax import tree
from tests.corpus import FLOAT, MLP, MODULES, Case, Dense
from tests.tree.strategies import modules

inf = float("inf")
PAIRWISE: list[tuple[str, Callable[..., Any], Callable[[Tensor, Tensor], Tensor]]] = [
    ("add", tree.add, torch.add),
    ("add_alpha", lambda a, b: tree.add(a, b, alpha=0.5), lambda a, b: a + 0.5 * b),
    ("sub", tree.sub, torch.sub),
    ("sub_alpha", lambda a, b: tree.sub(a, b, alpha=2), lambda a, b: a - 2 * b),
    ("add_tensor", lambda a, b: tree.add(a, b, torch.tensor(0.5)), lambda a, b: a + 0.5 * b),
    ("sub_tensor", lambda a, b: tree.sub(a, b, torch.tensor(0.5)), lambda a, b: a - 0.5 * b),
    ("lerp", lambda a, b: tree.lerp(a, b, 0.25), lambda a, b: torch.lerp(a, b, 0.25)),
    (
        "lerp_tensor",
        lambda a, b: tree.lerp(a, b, torch.tensor(0.25)),
        lambda a, b: torch.lerp(a, b, 0.25),
    ),
    ("scale", lambda a, b: tree.scale(a, 3), lambda a, b: 3 * a),
    ("scale_float", lambda a, b: tree.scale(a, 0.1), lambda a, b: 0.1 * a),
    ("scale_tensor", lambda a, b: tree.scale(a, torch.tensor(0.1)), lambda a, b: 0.1 * a),
]


def is_inexact(leaf: Any) -> bool:
    return bool(leaf.is_floating_point() or leaf.is_complex())


@pytest.mark.parametrize("case", MODULES, ids=str)
@pytest.mark.parametrize(("name", "mine", "torchs"), PAIRWISE, ids=[row[0] for row in PAIRWISE])
def test_each_leaf_is_what_torch_computes(case: Case, name: str, mine: Any, torchs: Any) -> None:
    one, two = case.make(0), case.make(1)
    made = mine(one, two)
    assert tree.structure(made) == tree.structure(one)
    leaves = (tree.leaves(made), tree.leaves(one), tree.leaves(two))
    for leaf, a, b in zip(*leaves, strict=True):
        if is_inexact(a):
            torch.testing.assert_close(leaf, torchs(a, b))
        else:
            assert leaf is a


@pytest.mark.parametrize("factor", [0.1, 3, -1e-3, True])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
)
def test_a_number_scales_to_the_bits_that_torch_gives(factor: Any, dtype: torch.dtype) -> None:
    leaf = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(dtype)
    made = tree.scale([leaf], factor)[0]
    assert made.dtype == (leaf * factor).dtype
    assert torch.equal(made, leaf * factor)


@pytest.mark.parametrize("case", MODULES, ids=str)
@pytest.mark.parametrize("p", [2, 1, inf, 3, 0, -inf])
def test_the_norm_is_that_of_the_raveled_tree(case: Case, p: float) -> None:
    module = case.make()
    flat = tree.ravel(module)[0]
    made = tree.norm(module, p)
    if not flat.numel():
        assert made == 0
        return
    # The vector may be double because one leaf is; each leaf is summed in its own precision.
    torch.testing.assert_close(made.float(), torch.linalg.vector_norm(flat, p).float())


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_the_inner_product_is_that_of_the_raveled_trees(case: Case) -> None:
    one, two = case.make(0), case.make(1)
    expected = torch.vdot(tree.ravel(one)[0], tree.ravel(two)[0])
    made = tree.vdot(one, two)
    assert made.dtype == expected.dtype
    single = torch.complex64 if made.is_complex() else torch.float32
    torch.testing.assert_close(made.to(single), expected.to(single))


@given(modules())
def test_large_leaves_and_small_ones_have_the_same_norm(module: Any) -> None:
    wide = tree.map(lambda leaf: leaf.expand(2, *leaf.shape), tree.to(module, dtype=torch.float64))
    flat = tree.ravel(wide)[0]
    torch.testing.assert_close(tree.norm(wide).double(), torch.linalg.vector_norm(flat).double())


def test_leaves_too_large_to_copy_give_the_same() -> None:
    leaves = [torch.randn(300, 300, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    one, two = {"a": leaves[0], "b": leaves[1]}, {"a": leaves[1], "b": leaves[1]}
    flats = [tree.ravel(subject)[0].double() for subject in (one, two)]
    torch.testing.assert_close(tree.norm(one), torch.linalg.vector_norm(flats[0]).float())
    torch.testing.assert_close(tree.vdot(one, two), torch.vdot(*flats).float())
    assert tree.norm(one, 0) == 2 * 300 * 300


def test_trees_without_numbers_have_norm_and_product_zero() -> None:
    subjects: list[Any] = [{"a": None}, {"n": torch.arange(3)}, []]
    for subject in subjects:
        assert tree.norm(subject) == 0
        assert tree.vdot(subject, subject) == 0


def test_a_hole_in_the_second_tree_leaves_the_leaf_and_one_in_the_first_stays() -> None:
    one: Any = MLP().initialize(0)
    two: Any = MLP().initialize(1)
    part, _ = tree.partition(two, "**.bias")
    operations: list[Any] = [tree.add, tree.sub, lambda a, b: tree.lerp(a, b, 0.5)]
    for operate in operations:
        made = operate(one, part)
        assert made.first.weight is one.first.weight
        assert not torch.equal(made.first.bias, one.first.bias)
        assert operate(part, one).first.weight is None
    expected = torch.vdot(one.first.bias, two.first.bias)
    expected = expected + torch.vdot(one.second.bias, two.second.bias)
    torch.testing.assert_close(tree.vdot(one, part), expected)
    torch.testing.assert_close(tree.vdot(part, one), expected)


def test_mixed_dtypes_and_devices_are_computed_leaf_by_leaf() -> None:
    one = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.float64),
           "m": torch.ones(2, device="meta")}  # fmt: skip
    two = {"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(2),
           "m": torch.ones(2, device="meta")}  # fmt: skip
    made = tree.add(one, two)
    assert [leaf.dtype for leaf in made.values()] == [torch.float64, torch.float64, torch.float32]
    assert made["m"].device.type == "meta"
    mixed = tree.lerp(one, two, 0.5)
    assert [leaf.dtype for leaf in mixed.values()] == [torch.float32, torch.float64, torch.float32]
    assert tree.scale(one, 2.0)["m"].device.type == "meta"


@pytest.mark.parametrize(("name", "mine", "torchs"), PAIRWISE, ids=[row[0] for row in PAIRWISE])
def test_gradients_on_the_tape_flow_through(name: str, mine: Any, torchs: Any) -> None:
    leaves = [torch.randn(3, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    results = []
    for operate in (lambda a, b: mine([a], [b])[0], torchs):
        one, two = (leaf.clone().requires_grad_() for leaf in leaves)
        operate(one, two).square().sum().backward()
        results.append([leaf.grad for leaf in (one, two)])
    for mine_grad, torch_grad in zip(*results, strict=True):
        if torch_grad is None:
            assert mine_grad is None
        else:
            torch.testing.assert_close(mine_grad, torch_grad)


def test_gradients_of_norm_and_product_flow_through() -> None:
    leaf = torch.tensor([3.0, 4.0], requires_grad=True)
    (grad,) = torch.autograd.grad(tree.norm({"a": leaf}), leaf)
    torch.testing.assert_close(grad, torch.tensor([0.6, 0.8]))
    (grad,) = torch.autograd.grad(tree.vdot({"a": leaf}, {"a": torch.ones(2)}), leaf)
    torch.testing.assert_close(grad, torch.ones(2))


@pytest.mark.parametrize("case", FLOAT, ids=str)
def test_under_vmap_jvp_and_grad_it_is_the_same(case: Case) -> None:
    one, two = case.make(0), case.make(1)
    if not tree.leaves(one):
        return
    stacked, others = tree.stack([one, two]), tree.stack([two, one])

    def everything(a: Any, b: Any) -> Any:
        sums = [row[1](a, b) for row in PAIRWISE]
        return [*map(tree.leaves, sums), tree.norm(a), tree.vdot(a, b), tree.norm(a, 1)]

    made = torch.vmap(everything)(stacked, others)
    expected = [everything(one, two), everything(two, one)]
    for leaf, *pair in zip(tree.leaves(made), *map(tree.leaves, expected), strict=True):
        torch.testing.assert_close(leaf, torch.stack(pair))

    tangent = torch.func.jvp(tree.norm, (one,), (two,))[1]
    torch.testing.assert_close(tangent, tree.vdot(one, two) / tree.norm(one))
    grads = torch.func.grad(tree.norm)(one)
    torch.testing.assert_close(tree.leaves(grads), tree.leaves(tree.scale(one, 1 / tree.norm(one))))


def test_a_vmapped_factor_scales_each_member() -> None:
    module = Dense().initialize(0)
    made: Any = torch.vmap(lambda factor: tree.scale(module, factor))(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(made.weight, torch.stack([module.weight, 2 * module.weight]))


def test_a_factor_that_requires_grad_gets_one() -> None:
    module: Any = Dense().initialize(0)
    factor = torch.tensor(2.0, requires_grad=True)
    (grad,) = torch.autograd.grad(tree.scale(module, factor).bias.sum(), factor)
    torch.testing.assert_close(grad, module.bias.sum())


@pytest.mark.parametrize(("name", "mine", "torchs"), PAIRWISE, ids=[row[0] for row in PAIRWISE])
@pytest.mark.parametrize("wants", [(True, False), (False, True), (True, True), (False, False)])
def test_a_leaf_requires_grad_where_torchs_does(
    name: str, mine: Any, torchs: Any, wants: tuple[bool, bool]
) -> None:
    one = {k: torch.ones(2, requires_grad=k in "ab") for k in "abcd"}
    two = {k: torch.full((2,), 3.0, requires_grad=k in "bc") for k in "abcd"}
    if not wants[0]:
        one = tree.map(Tensor.detach, one)
    if not wants[1]:
        two = tree.map(Tensor.detach, two)
    for left, right in ((one, two), ({**one, "n": torch.ones(2).int()}, {**two, "n": None})):
        made = mine(left, right)
        for key, leaf in one.items():
            expected = torchs(leaf, two[key])
            assert made[key].requires_grad == expected.requires_grad
            torch.testing.assert_close(made[key], expected)
            if expected.requires_grad:
                inputs = [t for t in (leaf, two[key]) if t.requires_grad]
                found = torch.autograd.grad(made[key].sum(), inputs, allow_unused=True)
                slopes = torch.autograd.grad(expected.sum(), inputs, allow_unused=True)
                torch.testing.assert_close(found, slopes)


@pytest.mark.parametrize("p", [1, 2, 3.5, math.inf])
def test_sparse_leaves_have_a_norm_and_are_named_elsewhere(p: float) -> None:
    places = torch.tensor([[0, 0, 1], [0, 0, 1]])
    twice = torch.sparse_coo_tensor(  # two entries in one place
        places, torch.tensor([1.0, 2.0, 4.0]), (3, 3), check_invariants=True
    )
    held = {"a": torch.ones(2), "s": twice}
    flat = torch.cat([torch.ones(2), twice.to_dense().reshape(-1)])
    torch.testing.assert_close(tree.norm(held, p), torch.linalg.vector_norm(flat, p))
    assert tree.norm(torch.zeros(3).to_sparse(), p).item() == 0
    calls: list[Any] = [tree.ravel, lambda t: tree.vdot(t, t), lambda t: tree.lerp(t, t, 0.5)]
    for call in calls:
        with pytest.raises(
            ValueError, match=r"tree\..*: s is torch.sparse_coo.*Make it dense first"
        ):
            call(held)
