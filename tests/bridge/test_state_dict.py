"""State dicts: torch's names, torch's reports, nothing half-done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallax import Module, Parameter, UninitializedError, bridge, tree
from parallax import nn as layers


class Pair(Module):
    first: Parameter
    second: Parameter

    def forward(self) -> Tensor:
        return self.first + self.second


class Deep(Module):
    pairs: tuple[Pair, ...]


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def test_names_and_values_are_those_of_torch() -> None:
    original = model()
    found = bridge.state_dict(bridge.lift(original))
    for (name, value), (theirs, expected) in zip(
        found.items(), original.state_dict().items(), strict=True
    ):
        assert name == theirs and torch.equal(value, expected)
        assert value.data_ptr() == expected.data_ptr() and not value.requires_grad


def test_ties_appear_under_each_name() -> None:
    x = torch.ones(2)
    assert list(bridge.state_dict(Deep((Pair(x, x), Pair(x, torch.zeros(2)))))) == [
        "pairs.0.first", "pairs.0.second", "pairs.1.first", "pairs.1.second",
    ]  # fmt: skip


def test_loading_makes_a_new_module_of_copies() -> None:
    lifted, other = bridge.lift(model()), model()
    before = {k: v.clone() for k, v in bridge.state_dict(lifted).items()}
    loaded = bridge.load_state_dict(lifted, other.state_dict())
    x = torch.randn(4, 2)
    torch.testing.assert_close(loaded.eval()(x), other.eval()(x))
    assert loaded[0].weight.data_ptr() != other[0].weight.data_ptr()  # type: ignore[operator]  # a module
    for name, value in before.items():
        assert torch.equal(bridge.state_dict(lifted)[name], value)
    assert loaded.mode == lifted.mode


def test_assign_takes_the_tensors_themselves() -> None:
    lifted = bridge.lift(nn.Linear(1, 1))
    mapping = {"weight": torch.ones(1, 1, dtype=torch.float64), "bias": torch.zeros(1)}
    loaded = bridge.load_state_dict(lifted, mapping, assign=True)
    assert loaded.weight.data_ptr() == mapping["weight"].data_ptr()
    assert loaded.weight.dtype is torch.float64


def test_dtypes_are_converted_only_on_request() -> None:
    lifted = bridge.lift(nn.Linear(1, 1))
    mapping = {"weight": torch.ones(1, 1, dtype=torch.float64), "bias": torch.zeros(1)}
    with pytest.raises(
        RuntimeError, match=r"dtype mismatch for weight: torch.float64 in .*cast=True"
    ):
        bridge.load_state_dict(lifted, mapping)
    assert bridge.load_state_dict(lifted, mapping, cast=True).weight.dtype is torch.float32


def test_all_problems_are_reported_at_once_in_torchs_words() -> None:
    original = model()
    mapping: dict[str, Any] = dict(original.state_dict())
    mapping["0.weight"] = torch.zeros(5, 2)
    mapping["extra"] = mapping.pop("2.bias")
    with pytest.raises(RuntimeError) as mine:
        bridge.load_state_dict(bridge.lift(original), mapping)
    with pytest.raises(RuntimeError) as theirs:
        model().load_state_dict(mapping)
    assert [line.strip() for line in str(mine.value).splitlines()] == [
        line.strip() for line in str(theirs.value).splitlines()
    ]


def test_near_misses_and_prefixes_are_named() -> None:
    lifted = bridge.lift(nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match='Did you mean "weight" by "wieght"'):
        bridge.load_state_dict(lifted, {"wieght": torch.ones(1, 1), "bias": torch.ones(1)})
    wrapped = {f"module.{k}": v for k, v in bridge.state_dict(lifted).items()}
    with pytest.raises(
        RuntimeError, match=r"differ by the prefix 'module.'.*removeprefix\('module.'\)"
    ):
        bridge.load_state_dict(lifted, wrapped)


def test_not_strict_leaves_out_and_ignores_but_checks_shapes() -> None:
    lifted = bridge.lift(nn.Linear(1, 1))
    loaded = bridge.load_state_dict(
        lifted, {"bias": torch.ones(1), "other": torch.ones(1)}, strict=False
    )
    assert torch.equal(loaded.weight, lifted.weight) and torch.equal(loaded.bias, torch.ones(1))
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        bridge.load_state_dict(lifted, {"bias": torch.ones(2)}, strict=False)


def test_a_tied_leaf_needs_one_name_and_no_contradiction() -> None:
    x = torch.zeros(2)
    pair = Pair(x, x)
    loaded = bridge.load_state_dict(pair, {"second": torch.ones(2)})
    assert loaded.first is loaded.second and torch.equal(loaded.first, torch.ones(2))
    bridge.load_state_dict(pair, {"first": torch.ones(2), "second": torch.ones(2)})
    with pytest.raises(RuntimeError, match='"first" and "second" are one tied tensor'):
        bridge.load_state_dict(pair, {"first": torch.ones(2), "second": torch.zeros(2)})
    with pytest.raises(RuntimeError, match=r'Missing key.*"first", "second"'):
        bridge.load_state_dict(pair, {})


def test_declarations_and_meta_leaves_get_their_values() -> None:
    declared = Pair(Parameter((2,), nn.init.zeros_), Parameter((2,), nn.init.zeros_))
    values = {"first": torch.ones(2), "second": torch.zeros(2)}
    assert torch.equal(bridge.load_state_dict(declared, values)(), torch.ones(2))
    meta = declared.initialize(0, device="meta")
    assert torch.equal(bridge.load_state_dict(meta, values)(), torch.ones(2))
    with pytest.raises(
        UninitializedError, match=r"Pair.first is not initialized.*initialize\(rng\)"
    ):
        bridge.state_dict(declared)


def test_mistakes() -> None:
    with pytest.raises(TypeError, match=r"expected a parallax.Module, got a Linear.*bridge.lift"):
        bridge.state_dict(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="expected tensors by name, got "):
        bridge.load_state_dict(bridge.lift(nn.Linear(1, 1)), [])  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(TypeError, match='"weight" is int, expected a tensor'):
        bridge.load_state_dict(bridge.lift(nn.Linear(1, 1)), {"weight": 1}, strict=False)


def test_holes_are_left_out() -> None:
    lifted = bridge.lift(nn.Linear(2, 2, bias=False))
    assert list(bridge.state_dict(lifted)) == ["weight"]
    assert tree.equal(bridge.load_state_dict(lifted, bridge.state_dict(lifted)), lifted)


def test_names_are_strings_and_layouts_agree() -> None:
    lifted = bridge.lift(nn.Linear(1, 1))
    mapping: Any = {"weight": torch.ones(1, 1), "bias": torch.ones(1), 2: torch.ones(1)}
    with pytest.raises(TypeError, match="the names are strings, got 2"):
        bridge.load_state_dict(lifted, mapping)
    sparse = {"weight": torch.ones(1, 1).to_sparse(), "bias": torch.ones(1)}
    with pytest.raises(RuntimeError, match=r"layout mismatch for weight: torch.sparse_coo in"):
        bridge.load_state_dict(lifted, sparse)
    with pytest.raises(RuntimeError, match=r"layout mismatch for weight: torch.sparse_coo in"):
        bridge.load_state_dict(layers.Linear(1, 1), sparse)


def test_the_extra_state_of_a_module_is_named() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> int:
            return 1

    model = Extra(1, 1)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"_extra_state"(.|\n)*is no leaf'):
        bridge.load_state_dict(bridge.lift(model), model.state_dict())
