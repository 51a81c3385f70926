"""What is no tree, function or number is refused, with what came and what to write."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from parallax import Buffer, Module, Parameter, nn, tree
from tests.bad_input.errors import says


class Net(Module):
    weight: Parameter
    mean: Buffer


def net() -> Any:
    return Net(torch.ones(3), torch.zeros(3))


def _named(value: Any) -> str:
    return type(value).__name__


def beside(given: Any) -> Any:
    """A tree of tensors with the containers of another."""
    return {"a": torch.ones(2), "b": [torch.ones(2)]} if type(given) is dict else torch.ones(2)


OF_ONE: dict[str, Callable[[Any], Any]] = {
    "norm": tree.norm,
    "size": tree.size,
    "nbytes": tree.nbytes,
    "ravel": tree.ravel,
    "scale": lambda t: tree.scale(t, 2.0),
    "add": lambda t: tree.add(t, t),
    "sub": lambda t: tree.sub(t, t),
    "lerp": lambda t: tree.lerp(t, t, 0.5),
    "vdot": lambda t: tree.vdot(t, t),
    "to": lambda t: tree.to(t, "meta"),
    "zeros_like": tree.zeros_like,
    "stack": lambda t: tree.stack([t, t]),
    "unstack": tree.unstack,
}
OF_ANY: dict[str, Callable[[Any], Any]] = {
    **OF_ONE,
    "map": lambda t: tree.map(lambda leaf: leaf, t),
    "map second": lambda t: tree.map(lambda a, b: a, beside(t), t),
    "leaves": tree.leaves,
    "flatten": tree.flatten,
    "structure": tree.structure,
    "named_leaves": tree.named_leaves,
    "equal": lambda t: tree.equal(t, t),
    "allclose": lambda t: tree.allclose(t, t),
    "combine": lambda t: tree.combine(t, t),
    "partition": lambda t: tree.partition(t, "**"),
    "select": lambda t: tree.select(t, "**"),
    "tie": lambda t: tree.tie(t, t),
    "update": lambda t: tree.update(lambda leaf: leaf, t),
    "summary": tree.summary,
}


@pytest.mark.parametrize("value", [None, "oops", 3, object()], ids=_named)
@pytest.mark.parametrize("name", OF_ONE)
def test_what_is_no_tree_of_numbers_is_refused_by_name(name: str, value: Any) -> None:
    shown = "an object" if type(value) is object else repr(value)
    with says(TypeError, f"tree.{name}(", shown.removeprefix("an ")):
        OF_ONE[name](value)


@pytest.mark.parametrize(
    ("value", "line"),
    [(None, "None is a hole"), (3, "torch.tensor(3)"), ("oops", "{'weight': torch.ones(2)}")],
)
def test_what_is_no_tree_of_numbers_gets_a_line_to_write(value: Any, line: str) -> None:
    with pytest.raises(TypeError, match=re.escape(line)):
        tree.size(value)


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a dict"])
@pytest.mark.parametrize("name", OF_ANY)
def test_a_module_of_torch_is_no_tree(name: str, inside: bool) -> None:
    linear: Any = torch.nn.Linear(3, 2)
    given = {"a": torch.ones(2), "b": [linear]} if inside else linear
    with pytest.raises((TypeError, ValueError)) as caught:
        OF_ANY[name](given)
    said = str(caught.value)
    assert "bridge.lift" in said, said
    assert "Linear" in said or (name == "summary" and inside), said


@pytest.mark.parametrize("value", [None, "2", torch.ones(2), net(), object()], ids=_named)
@pytest.mark.parametrize("argument", ["alpha", "factor", "weight"])
def test_a_number_is_a_number(argument: str, value: Any) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "alpha": lambda: tree.add(net(), net(), alpha=value),
        "factor": lambda: tree.scale(net(), value),
        "weight": lambda: tree.lerp(net(), net(), value),
    }
    with says(TypeError, f"{argument}=", "a number or a tensor of no dimension"):
        calls[argument]()


@pytest.mark.parametrize("number", [2, 2.0, np.float32(2), torch.tensor(2.0)])
def test_numbers_of_every_kind_scale(number: Any) -> None:
    wanted = torch.full((3,), float(number))
    torch.testing.assert_close(tree.scale(net(), number).weight, wanted)
    torch.testing.assert_close(tree.add(tree.zeros_like(net()), net(), number).weight, wanted)


def test_functions_are_functions() -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda fn: tree.map(fn, net()),
        lambda fn: tree.map_with_path(fn, net()),
        lambda fn: tree.update(fn, net()),
        lambda fn: tree.select(net(), "weight").apply(fn),
    ]
    for call in calls:
        for value in (None, 3, torch.ones(2)):
            with says(TypeError, "(fn=)", "expected a function", "Give one, such as"):
                call(value)


def test_two_classes_of_one_name_are_told_apart() -> None:
    def cell() -> Any:
        class Cell(Module):
            weight: Parameter

        return Cell(torch.ones(2))

    with says(
        ValueError, "Cell was defined again", "Construct both anew", "bridge.load_state_dict"
    ):
        tree.add(cell(), cell())
    with says(ValueError, "a.layers.0", "defined again"):
        tree.add({"a": nn.Sequential(cell())}, {"a": nn.Sequential(cell())})


def test_arrays_of_numpy_are_compared_as_tensors_are() -> None:
    one, other = {"a": np.arange(3.0)}, {"a": np.arange(3.0) + 1e-9}
    assert tree.equal(one, {"a": np.arange(3.0)}) is True
    assert tree.equal(one, other) is False and tree.allclose(one, other) is True
    assert tree.equal(one, {"a": np.arange(3)}) is False  # of another dtype
    assert tree.equal(one, {"a": torch.arange(3.0, dtype=torch.float64)}) is False


class Undecided:
    """A value of which ``==`` tells nothing, as of some tables."""

    def __eq__(self, other: object) -> Any:
        return torch.ones(2) == 1

    def __hash__(self) -> int:
        return 0


def test_leaves_that_cannot_be_compared_are_told() -> None:
    with says(TypeError, "Undecided", "torch.as_tensor"):
        tree.equal({"a": Undecided()}, {"a": Undecided()})
