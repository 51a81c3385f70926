"""Checkpoints that are trees of modules, states, keys, tensors and numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from parallax import Module, Parameter, func, io, nn, optim, random, tree

FORMATS = ("it.safetensors", "it.pt")


class Both(NamedTuple):
    """A named tuple."""

    first: Any
    second: Any


class Point(Module):
    at: Parameter


def trained(steps: int) -> tuple[Any, Any, Any]:
    model, opt = nn.Linear(2, 1).initialize(0), optim.Adam(lr=0.1)
    state = opt.init(model)
    for _ in range(steps):
        grads = func.grad(lambda model: model(torch.ones(2)).sum())(model)
        model, state = opt.step(model, grads, state)
    return model, opt, state


TREES: dict[str, Any] = {
    "numbers": {"a": 1, "b": 2.5, "c": True, "d": "text", "e": None, "f": 1 + 2j, "g": 2**80},
    "floats": [math.inf, -0.0, 1e-320, 0.1],
    "tensors": (torch.arange(3), [torch.ones(2, 2).double()], {"x": torch.tensor(True)}),
    "named tuple": Both(Point(torch.ones(2)), {"deep": [Point(torch.zeros(1)), 3]}),
    "keys": {"key": random.key(3), "keys": [random.key(4)]},
    "integer keys": {1: torch.ones(2), 2: torch.zeros(2)},
    "empty": {"nothing": [], "some": torch.ones(1)},
    "one tensor": torch.arange(4.0),
}


def zeroed(value: Any) -> Any:
    """The same structure with other values."""
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    return value if value is None else type(value)()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("saved", TREES.values(), ids=list(TREES))
def test_a_tree_is_loaded_as_it_was(tmp_path: Path, name: str, saved: Any) -> None:
    path = tmp_path / name
    io.save(saved, path, metadata={"step": 1})
    leaves, spec = tree.flatten(saved)
    like = tree.unflatten(spec, [zeroed(leaf) for leaf in leaves])
    loaded = io.load(path, like=like)
    assert tree.structure(loaded) == spec
    for one, two in zip(tree.leaves(loaded), tree.leaves(saved), strict=True):
        assert type(one) is type(two)
        if isinstance(one, torch.Tensor):
            assert one.dtype == two.dtype and torch.equal(one, two)
        else:
            assert repr(one) == repr(two)  # which tells -0.0 from 0.0
    assert io.metadata(path) == {"step": 1}


@pytest.mark.parametrize("name", FORMATS)
def test_training_goes_on_from_a_dict_of_model_state_and_key(tmp_path: Path, name: str) -> None:
    model, opt, state = trained(2)
    checkpoint = {"model": model, "state": state, "key": random.key(7), "step": 2, "best": model}
    io.save(checkpoint, tmp_path / name)
    fresh, _, start = trained(0)
    like = {"model": fresh, "state": start, "key": random.key(0), "step": 0, "best": fresh}
    loaded = io.load(tmp_path / name, like=like)
    assert loaded["step"] == 2 and tree.equal(loaded["best"], model)
    assert tree.equal(loaded["model"], model) and tree.equal(loaded["state"], state)
    draw = random.normal(loaded["key"], (3,))
    assert torch.equal(draw, random.normal(random.key(7), (3,)))
    grads = tree.map(torch.ones_like, model)
    again = opt.step(loaded["model"], grads, loaded["state"])
    assert tree.equal(again, opt.step(model, grads, state))
    assert tree.equal(trained(0)[0], fresh)


def test_the_names_of_a_tree_begin_with_its_path(tmp_path: Path) -> None:
    model = nn.Linear(2, 1).initialize(0)
    io.save({"a": [model], "b": torch.ones(1)}, tmp_path / "it.pt")
    assert list(io.read(tmp_path / "it.pt")) == ["a.0.weight", "a.0.bias", "b"]
    torch.save({"a.at": torch.ones(2), "n": torch.zeros(1)}, tmp_path / "plain.pt")
    like = {"a": Point(torch.zeros(2)), "n": torch.ones(1)}
    loaded: Any = io.load(tmp_path / "plain.pt", like=like)
    assert torch.equal(loaded["a"].at, torch.ones(2)) and torch.equal(loaded["n"], torch.zeros(1))


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    saved = {"model": Point(torch.ones(2)), "x": torch.ones(3), "step": 3}
    io.save(saved, tmp_path / "it.pt")
    wrong: list[tuple[Any, type[Exception], str]] = [
        ({**saved, "more": torch.ones(1)}, RuntimeError, 'Missing key.*"more"'),
        ({**saved, "count": 1}, RuntimeError, "count is not in the checkpoint"),
        ({"model": saved["model"], "step": 0}, RuntimeError, "Unexpected key.*'x'"),
        ({**saved, "x": torch.ones(4)}, RuntimeError, "size mismatch for x"),
        ({**saved, "x": torch.ones(3).double()}, RuntimeError, "dtype mismatch for x"),
        (
            {**saved, "model": Point(torch.ones(3))},
            RuntimeError,
            r"in model: (.|\n)*size mismatch for at",
        ),
        ({**saved, "step": 1.0}, ValueError, "step is 3 in the checkpoint.* a float"),
        ({"model": saved["model"], "x": saved["x"]}, ValueError, "saved from another structure"),
    ]
    for like, error, message in wrong:
        with pytest.raises(error, match=message):
            io.load(tmp_path / "it.pt", like=like)
    more = {**saved, "x": torch.zeros(3), "more": torch.ones(1), "step": 0}
    loaded: Any = io.load(tmp_path / "it.pt", like=more, strict=False)
    assert torch.equal(loaded["x"], torch.ones(3)) and torch.equal(loaded["more"], torch.ones(1))
    assert loaded["step"] == 3


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    for wrong, message in (
        ({"net": torch.nn.Linear(1, 1)}, r"got Linear at 'net'. Lift an nn.Module"),
        ({"f": print}, "numbers and strings; got builtin_function_or_method at 'f'"),
        (object(), "numbers and strings; got object"),
    ):
        with pytest.raises(TypeError, match=message):
            io.save(wrong, tmp_path / "it.pt")
        with pytest.raises(TypeError, match=message):
            io.load(tmp_path / "it.pt", like=wrong)
    for alike in (
        {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}},
        {1: torch.ones(1), "1": torch.ones(1)},
        {"a": Point(torch.ones(1)), "a.at": torch.ones(1)},
    ):
        with pytest.raises(ValueError, match=r"are called '.*'.*Rename a key"):
            io.save(alike, tmp_path / "it.pt")
    with pytest.raises(ValueError, match="on the meta device"):
        io.save({"x": torch.empty(1, device="meta")}, tmp_path / "it.pt")
    assert list(tmp_path.iterdir()) == []


class Measured(torch.Tensor):
    """A tensor of a class of the user's."""


@pytest.mark.parametrize("name", ["tree.pt", "tree.safetensors"])
def test_a_leaf_of_a_subclass_is_saved_as_numbers_and_loads(tmp_path: Path, name: str) -> None:
    numbers = torch.arange(6.0).reshape(2, 3)
    tree_of = {"a": numbers.as_subclass(Measured), "b": torch.nn.Parameter(numbers.clone())}
    io.save(tree_of, tmp_path / name)
    loaded = io.load(tmp_path / name, like=tree_of)
    assert all(
        type(leaf) is torch.Tensor and torch.equal(leaf, numbers) for leaf in loaded.values()
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_is_refused_before_anything_is_written(
    tmp_path: Path, layout: torch.layout
) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    with pytest.raises(TypeError, match=r"save: a is a nested tensor.*unbind"):
        io.save({"a": nested}, tmp_path / "tree.pt")
    assert not (tmp_path / "tree.pt").exists()
