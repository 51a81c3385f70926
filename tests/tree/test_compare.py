"""equal and allclose."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

from parallax import tree
from tests.corpus import MLP, MODULES, Case, Dense, Norm, TiedParameter
from tests.tree.strategies import trees


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_a_module_equals_its_copy_and_not_another(case: Case) -> None:
    module = case.make()
    copy = tree.map(lambda leaf: leaf.clone(), module)
    assert tree.equal(module, copy) is True
    assert tree.allclose(module, copy) is True
    declared = case.declare()
    assert tree.equal(declared, declared) is True
    if any(leaf.numel() for leaf in tree.leaves(module)):
        other = tree.map(lambda leaf: ~leaf if leaf.dtype == torch.bool else leaf + 1, module)
        assert tree.equal(module, other) is False
        assert tree.allclose(module, other) is False


@given(trees())
def test_any_tree_equals_its_copy(subject: Any) -> None:
    copy = tree.map(lambda leaf: leaf.clone(), subject)
    assert tree.equal(subject, copy) is True
    assert tree.equal(copy, subject) is True


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.ones(2), torch.ones(1, 2)),
        (torch.ones(2), torch.ones(2, device="meta")),
        (torch.ones(2), None),
        (torch.ones(2), 1),
        (torch.tensor(float("nan")), torch.tensor(float("nan"))),
        (1, True),
    ],
)
def test_other_shapes_dtypes_devices_and_kinds_are_not_equal(one: Any, two: Any) -> None:
    assert tree.equal({"a": one}, {"a": two}) is False
    assert tree.equal({"a": two}, {"a": one}) is False
    assert tree.allclose({"a": one}, {"a": two}) is False


def test_other_structures_are_not_equal() -> None:
    assert not tree.equal(Dense().initialize(0), Norm().initialize(0))
    assert not tree.equal([torch.ones(1)], (torch.ones(1),))
    assert not tree.equal(MLP(torch.relu).initialize(0), MLP(torch.tanh).initialize(0))


def test_tied_and_untied_are_not_equal_either_way_round() -> None:
    tied = TiedParameter().initialize(0)
    clone = tied.decoder.replace(weight=tied.decoder.weight.clone())
    loose = tied.replace(decoder=clone)
    assert tree.equal(tied, loose) is False
    assert tree.equal(loose, tied) is False


def test_modes_and_marks_are_not_compared() -> None:
    module = MLP().initialize(0)
    assert tree.equal(module, tree.select(module.eval(), "first").freeze())


def test_declarations_are_compared_by_what_they_declare() -> None:
    assert tree.equal(Dense(), Dense())
    assert not tree.equal(Dense(), Dense(4, 3))
    assert not tree.equal(Dense(), Dense().initialize(0))


def test_allclose_is_torch_s() -> None:
    one = {"a": torch.tensor([1.0, float("nan")]), "n": torch.arange(2)}
    two = {"a": torch.tensor([1.0 + 1e-3, float("nan")]), "n": torch.arange(2)}
    assert not tree.allclose(one, two, rtol=1e-2)
    assert tree.allclose(one, two, rtol=1e-2, equal_nan=True)
    assert not tree.allclose(one, two, equal_nan=True)
    assert tree.allclose(one, two, atol=1e-2, equal_nan=True)


def test_under_vmap_it_is_a_tensor_per_member() -> None:
    one, two = Dense().initialize(0), Dense().initialize(1)
    stacked = tree.stack([one, two])
    assert torch.vmap(lambda m: tree.equal(m, one))(stacked).tolist() == [True, False]
    assert torch.vmap(lambda m: tree.allclose(m, two))(stacked).tolist() == [False, True]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (np.array([1.0, 2.0]), np.array([1.0, 2.0 + 1e-7])),
        (np.arange(3)[::-1], np.array([2, 1, 1])),
        (np.ones(2, np.dtype(">f8")), np.array([1.0, 1.1], np.dtype(">f8"))),
        (np.array([1, None], dtype=object), np.array([1, 2], dtype=object)),
        (np.array(["x", "y"]), np.array(["x", "z"])),
        (np.float32(1), np.float32(1.001)),
        (np.ones(2, np.longdouble), np.zeros(2, np.longdouble)),
        (np.array([np.nan]), np.array([np.nan])),
        (1.0, 1.0 + 1e-7),
        (1j, 2j),
    ],
)
def test_arrays_and_numbers_are_compared_as_numpy_does(one: Any, two: Any) -> None:
    for a, b in ((one, one), (one, two), (two, one)):
        kept = {"a": a}, {"a": b.copy() if isinstance(b, np.ndarray) else b}
        assert tree.equal(*kept) is np.array_equal(a, b)
        kind = np.asarray(a).dtype.kind
        for rtol in (1e-5, 1e-2):
            near = np.allclose(a, b, rtol=rtol) if kind in "fc" else np.array_equal(a, b)
            assert tree.allclose(*kept, rtol=rtol) is near
    if np.asarray(one).dtype.kind == "f" and np.isnan(one).any():
        assert tree.allclose({"a": one}, {"a": two}, equal_nan=True)


def test_arrays_of_other_dtypes_shapes_and_libraries_differ() -> None:
    ones = np.ones(2)
    for other in (np.ones(2, np.float32), np.ones((1, 2)), torch.ones(2, dtype=torch.float64), 1.0):
        assert tree.equal([ones], [other]) is tree.allclose([other], [ones]) is False


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_layouts_and_dtypes_for_which_torch_has_no_comparison() -> None:
    eye = torch.eye(3)
    halves = torch.tensor([[0, 0, 1, 2], [0, 0, 1, 2]]), torch.tensor([0.5, 0.5, 1.0, 1.0])
    twice = torch.sparse_coo_tensor(*halves, (3, 3), check_invariants=True)  # two in one place
    zeros = torch.sparse_coo_tensor(
        torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2]]), torch.tensor([1.0, 0.0, 1.0, 1.0]), (3, 3),
        check_invariants=True,
    )  # fmt: skip
    float8 = torch.float8_e4m3fn
    for same in (tree.equal, tree.allclose):
        assert same(eye.to_sparse(), twice) is True and same(eye.to_sparse(), zeros) is True
        assert same(eye.to_sparse_csr(), eye.to_sparse_csr()) is True
        assert same(eye.to_sparse(), eye) is False  # as tree.diff says
        assert same(eye.to_sparse(), (2 * eye).to_sparse()) is False
        assert same(eye.to_sparse_csr(), (2 * eye).to_sparse_csr()) is False
        assert same(eye.to(float8), eye.to(float8)) is True
        assert same(eye.to(float8), (2 * eye).to(float8)) is False
        with pytest.raises(TypeError, match=r"tree\..*: a.1 is on the device meta, and has no val"):
            same({"a": [eye, eye.to("meta")]}, {"a": [eye, eye.to("meta")]})
    assert tree.allclose(eye.to(float8), (1.125 * eye).to(float8), rtol=0.2) is True


def test_the_order_of_a_dict_around_modules_does_not_count() -> None:
    def several(weight: float) -> dict[str, Any]:
        tied = tree.map(lambda leaf: torch.full_like(leaf, weight), TiedParameter().initialize(0))
        return {"dense": Dense().initialize(0), "tied": tied, "leaf": torch.ones(1)}

    one, other = several(1.0), several(2.0)
    turned = dict(reversed(one.items()))
    assert tree.equal(one, turned) is True and tree.allclose(turned, one) is True
    assert tree.equal(turned, other) is False
    untied = copy.deepcopy(one["dense"]), one["dense"]
    assert (
        tree.equal({"a": untied[0], "b": one["tied"]}, {"b": one["tied"], "a": untied[1]}) is True
    )
