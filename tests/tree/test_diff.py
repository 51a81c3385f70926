"""diff: where two trees differ."""

from __future__ import annotations

import enum
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from parallax import Module, Parameter, nn, optim, tree
from parallax.core.structure import MAX_DEPTH
from tests.corpus import MLP, MODULES, Case, Dense, Many, Norm, Residual, TiedParameter
from tests.tree.strategies import trees


def far(one: Tensor, two: Tensor) -> float:
    wide = torch.complex128 if one.is_complex() else torch.float64
    return float((one.to(wide) - two.to(wide)).abs().max())


def told(one: Any, two: Any, **tolerances: Any) -> list[str]:
    return [str(row) for row in tree.diff(one, two, **tolerances)]


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_there_is_a_difference_where_trees_are_not_equal(case: Case) -> None:
    module = case.make()
    assert not tree.diff(module, tree.map(torch.clone, module))
    for path, leaf in tree.named_leaves(module).items():
        if not leaf.numel():
            continue
        other = ~leaf if leaf.dtype == torch.bool else leaf + 1
        found = tree.diff(module, tree.select(module, path).set(other))
        assert [(row.path, row.kind) for row in found] == [(path, "values")]
        if leaf.dtype != torch.bool:
            assert found.rows[0].distance == far(other, leaf)


@given(trees())
def test_a_tree_does_not_differ_from_its_copy(subject: Any) -> None:
    assert not tree.diff(subject, tree.map(torch.clone, subject), equal_nan=True)


@pytest.mark.parametrize(
    ("one", "two", "says"),
    [
        (torch.ones(2), torch.ones(2, dtype=torch.float64), ["a  dtype: float32 and float64"]),
        (torch.ones(2), torch.ones(1, 2), ["a  shape: [2] and [1, 2]"]),
        (torch.ones(2), torch.ones(2, device="meta"), ["a  device: cpu and meta"]),
        (torch.ones(2), None, ["a  leaf: f32[2] and a hole"]),
        (torch.ones((), dtype=torch.bfloat16), 1, ["a  leaf: bf16[] and 1"]),
        (1, True, ["a  leaf: 1 and True"]),
        ([1], (1,), ["a  class: list and tuple"]),
        ([1], 1, ["a  class: list and 1"]),
        ([1, 2], [1], ["a.1  only the first has it: 2"]),
        ({"x": 1}, {"x": 1, "y": Dense()}, ["a.y  only the second has it: Dense"]),
        ({"x": 1, "y": 2}, {"y": 2, "x": 1}, ["a  order: x, y and y, x"]),
        (np.ones(1), np.zeros(1), ["a  leaf: array([1.]) and array([0.])"]),
        (
            torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
            torch.tensor([[1.0, 2.5], [3.0, 1.0]]),
            ["a  values: 2 of 4 differ, by at most 3 at [1, 1]: 4 and 1"],
        ),
        (torch.tensor(1), torch.tensor(3), ["a  values: 1 of 1 differ, by at most 2: 1 and 3"]),
        (
            torch.tensor([0.0, float("nan")]),
            torch.tensor([9.0, 1.0]),
            ["a  values: 2 of 2 differ, by at most nan at [1]: nan and 1"],
        ),
        (
            torch.tensor([3j]),
            torch.tensor([4.0 + 0j]),
            ["a  values: 1 of 1 differ, by at most 5"],
        ),
    ],
)
def test_each_kind(one: Any, two: Any, says: list[str]) -> None:
    found = told({"a": one}, {"a": two})
    assert len(found) == len(says)
    assert all(line.startswith(start) for line, start in zip(found, says, strict=True))


def test_of_modules() -> None:
    one = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.ReLU()).initialize(0)
    two = tree.select(one, "layers.1").set(nn.Dropout(0.1))
    two = tree.select(two, "layers.2").set(nn.Tanh())
    two = tree.select(two, "layers.0.bias").freeze()
    assert told(one, two) == [
        "layers.0.bias  frozen: not frozen and frozen",
        "layers.1.p  constant: 0.5 and 0.1",
        "layers.2  class: ReLU and Tanh",
    ]
    assert told(one, one.eval()) == ["(the root)  mode: 'train' and 'eval'"]
    kept = tree.select(one, "layers.0").eval()
    assert told(one, kept) == ["layers.0  mode: 'train' and 'eval', where it stays"]
    assert told(MLP(torch.relu), MLP(torch.sin)) == ["activation  constant: relu and sin"]
    assert told({"n": Norm()}, {"n": Dense()}) == ["n  class: Norm and Dense"]
    assert told(Many(1), Many(2))[0] == "layers.1  only the second has it: Dense"


def test_of_nodes_that_are_no_modules() -> None:
    assert told(optim.Adam(0.1), optim.Adam(0.2)) == ["(the root)  constant: 0.1 and 0.2"]
    assert not tree.diff({"o": optim.Adam(0.1)}, {"o": optim.Adam(0.1)})
    one, two = deque([1], maxlen=2), deque([1], maxlen=3)
    assert told([one], [two]) == ["0  constant: 2 and 3"]
    sparse = torch.eye(2).to_sparse()
    assert not tree.diff([sparse], [torch.eye(2).to_sparse()])
    assert [row.kind for row in tree.diff([sparse], [2 * torch.eye(2)])] == ["layout", "values"]


def test_ties() -> None:
    tied = TiedParameter().initialize(0)
    loose = tied.replace(decoder=tied.decoder.replace(weight=tied.decoder.weight.clone()))
    assert told(tied, loose) == ["decoder.weight  tie: tied to encoder.weight and not tied"]
    other = tree.map(lambda leaf: leaf + 1, tied)
    assert [line.split()[0] for line in told(tied, other)] == [
        "encoder.weight", "encoder.bias", "decoder.bias"
    ]  # fmt: skip


def test_declarations() -> None:
    assert told(Dense(), Dense().initialize(0))[0] == (
        "weight  leaf: f32[4,4] uninitialized and f32[4,4]"
    )
    assert told(Dense(), Dense(4, 3))[0].endswith(" uninitialized and f32[3,4] uninitialized")


@pytest.mark.parametrize("distance", [1e-7, 1e-3])
def test_tolerances_are_those_of_allclose(distance: float) -> None:
    one = {"a": torch.tensor([1.0, 0.0, float("inf")], dtype=torch.float64)}
    two = tree.map(lambda leaf: leaf + distance, one)
    for rtol, atol in ((0.0, 0.0), (1e-5, 0.0), (0.0, 1e-5), (1e-2, 0.0), (0.0, 1e-2)):
        near = tree.allclose(one, two, rtol=rtol, atol=atol)
        assert bool(tree.diff(one, two, rtol=rtol, atol=atol)) is not near
    nan = {"a": torch.tensor([float("nan")])}
    assert tree.diff(nan, nan) and not tree.diff(nan, nan, equal_nan=True)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ([2**62, 0], [2**62 + 1, 3]),
        ([2**63 - 1, 1], [-(2**63), 5]),
        ([-(2**63), 2**63 - 1], [-(2**63) + 7, 2**63 - 2]),
    ],
)
def test_distances_of_integers_are_exact_and_no_tolerance_is_for_them(one: Any, two: Any) -> None:
    row = tree.diff(torch.tensor(one), torch.tensor(two), atol=1e30, rtol=1.0).rows[0]
    assert row.distance == max(abs(a - b) for a, b in zip(one, two, strict=True))
    assert f"by at most {row.distance} at" in row.first
    largest = torch.tensor([2**64 - 1, 1], dtype=torch.uint64)
    row = tree.diff(largest, torch.tensor([1, 0], dtype=torch.uint64)).rows[0]
    assert row.distance == 2**64 - 2
    assert tree.diff(torch.tensor([True]), torch.tensor([False]), atol=2.0).rows[0].distance == 1


def test_tolerances_are_for_numbers_and_arrays_outside_of_tensors() -> None:
    near = {"f": 1.0, "c": 1 + 1j, "a": np.ones(2), "n": np.float64(1.0)}
    far = {"f": 1.0 + 1e-9, "c": 1 + 1j + 1e-9, "a": np.ones(2) + 1e-9, "n": np.float64(1 + 1e-9)}
    assert [row.path for row in tree.diff(near, far)] == [*near]
    assert not tree.diff(near, far, rtol=1e-8) and not tree.diff(near, far, atol=1e-8)
    nans = {"f": float("nan"), "a": np.array([1.0, np.nan]), "inf": float("inf")}
    assert [row.path for row in tree.diff(nans, dict(nans))] == ["f", "a"]
    assert not tree.diff(nans, dict(nans), equal_nan=True)
    assert len(tree.diff({"i": 1, "a": np.array([1])}, {"i": 2, "a": np.array([2])}, atol=3)) == 2


def test_it_prints_a_list_and_not_too_long_a_one() -> None:
    one, two = Many(40).initialize(0), Many(40).initialize(1)
    found = tree.diff(one, two)
    lines = repr(found).split("\n")
    assert lines[0] == f"{len(found)} differences (first and second):"
    assert len(lines) == 51 and lines[-1] == f"  ... {len(found) - 49} more"
    assert "\x1b" not in repr(found) and str(found) == repr(found)
    assert repr(tree.diff({"a": 1}, {"a": 2})).startswith("1 difference (first")


def test_deep_trees() -> None:
    module: Any = Dense().initialize(0)
    for _ in range(MAX_DEPTH - 1):
        module = Residual(module)
    other = tree.map(lambda leaf: leaf + 1, module)
    assert [row.path.count("inner") for row in tree.diff(module, other)] == [MAX_DEPTH - 1] * 2


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"bridge.lift"):
        tree.diff({"a": torch.nn.Linear(1, 1)}, {"a": 1})
    with pytest.raises(ValueError, match=r"tree.diff\(rtol=\)"):
        tree.diff(1, 2, rtol=-1.0)
    with pytest.raises(ValueError, match=r"tree.diff\(atol=\)"):
        tree.diff(1, 2, atol=-1.0)
    with pytest.raises(RuntimeError, match="not known inside a transform"):
        torch.vmap(lambda x: torch.ones(len(tree.diff(x, x))))(torch.ones(2))


class Slot(enum.IntEnum):
    FIRST = 1


class Keyed(Module):
    parts: dict[Any, Parameter]


def test_a_class_that_was_defined_again_is_not_called_by_its_name_alone() -> None:
    def define() -> Any:
        class Cell(Module):
            weight: Parameter

        return Cell

    one, two = define()(torch.ones(1)), define()(torch.ones(1))
    (row,) = tree.diff(one, two)
    assert (row.kind, row.first, row.second) == ("class", "Cell", "another class of that name")


@pytest.mark.parametrize("make", [dict, Keyed], ids=["dict", "module"])
def test_keys_that_read_alike_are_told_apart(make: Any) -> None:
    start = "" if make is dict else "parts."
    for other in ("1", Slot.FIRST):
        (row,) = tree.diff(make({1: torch.ones(1)}), make({other: torch.ones(1)}))
        words = f"a key of class {type(other).__name__}"
        assert (row.path, row.kind) == (f"{start}1", "key")
        assert (row.first, row.second) == ("a key of class int", words)


def test_values_under_two_keys_that_read_alike_are_both_compared() -> None:
    one = {1: torch.ones(1), "1": torch.ones(1)}
    for key in one:
        (row,) = tree.diff(one, {**one, key: torch.zeros(1)})
        assert (row.path, row.kind) == ("1", "values")
