"""Mistakes in a class: each error names the class, the field and the line to write."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import init

from parallax import Buffer, Module, Parameter, registry, tree
from parallax import nn as layers
from tests.bad_input.errors import META, registered, says
from tests.corpus import Dense

# -- declaring -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.ones(1), "Parameter"),
        (Parameter((1,), init.ones_), "Parameter"),
        (Buffer((1,)), "Buffer"),
        (Dense(), "Dense"),
        (0.5, "float"),
        ("text", "str"),
    ],
)
def test_an_undeclared_attribute(value: Any, kind: str) -> None:
    class Layer(Module):
        weight: Parameter

        def __init__(self) -> None:
            super().__init__()
            self.extra = value

    with says(AttributeError, "Layer", "'extra'", "class body", f"'extra: {kind}'"):
        Layer()


def test_a_misspelled_attribute_names_the_one_that_is_near() -> None:
    class Layer(Module):
        weight: Parameter

        def __init__(self) -> None:
            super().__init__()
            self.wieght = Parameter((1,), init.ones_)

    with says(AttributeError, "Layer", "'wieght'", "weight"):
        Layer()
    with says(AttributeError, "Dense", "'wieght'", "weight"):
        Dense().replace(wieght=torch.ones(1))


def test_an_unset_field() -> None:
    class Layer(Module):
        weight: Parameter
        bias: Parameter | None
        rate: float
        size: int = 3

        def __init__(self) -> None:
            super().__init__()
            self.rate = 0.5

    with says(TypeError, "Layer.weight", "Layer.__init__", "self.weight = ...; self.bias = ...",
              "field(default=...)") as caught:  # fmt: skip
        Layer()
    assert "self.rate" not in str(caught.value) and "self.size" not in str(caught.value)


def test_a_forgotten_super_init_is_no_mistake() -> None:
    class Layer(Module):
        size: int

        def __init__(self) -> None:
            self.size = 1

    assert Layer().size == 1


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (torch.ones(2), ["a tensor", "'rate: Parameter'", "'rate: Buffer'"]),
        (Parameter((2,), init.ones_), ["Parameter declaration", "'rate: Parameter'"]),
        (Buffer((2,)), ["Buffer declaration", "'rate: Buffer'"]),
        (Dense(), ["the module Dense", "'rate: Module'", "'rate: Dense'"]),
        (nn.Linear(2, 2), ["Linear", "torch.nn.Module", "'rate: Module'"]),
        ((Dense(),), ["the module Dense", "tuple[Module, ...]"]),
        ([1], ["hashable", "list", "'rate: tuple = field(converter=tuple)'"]),
        ({1}, ["hashable", "set", "'rate: frozenset = field(converter=frozenset)'"]),
        ({"a": 1}, ["hashable", "dict"]),
        ([Dense()], ["a list that holds a module", "'rate: Sequence[Module]'"]),
        ({"a": Dense()}, ["a dict that holds a module", "'rate: dict[str, Module]'"]),
        ([torch.ones(2)], ["a list that holds a parameter", "'rate: Sequence[Parameter]'"]),
    ],
)
def test_what_cannot_be_a_constant(value: Any, parts: list[str]) -> None:
    class Layer(Module):
        rate: float

    with says(TypeError, "Layer.rate", *parts):
        Layer(value)
    with says(TypeError, "Layer.rate", *parts):
        Layer(0.5).replace(rate=value)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (3, ["Layer.weight", "Parameter", "int", "self.weight = Parameter(shape, init)"]),
        (None, ["Layer.weight", "None", "'weight: ... | None'"]),
        (Dense(), ["Layer.weight", "Parameter", "Dense"]),
        (nn.Linear(1, 1), ["Layer.weight", "Parameter", "Linear"]),
        ([torch.ones(1)], ["Layer.weight", "Parameter", "list"]),
        (Buffer((1,)), ["Layer.weight", "Buffer declaration", "'weight: Buffer'"]),
    ],
)
def test_what_cannot_be_a_parameter(value: Any, parts: list[str]) -> None:
    class Layer(Module):
        weight: Parameter

    with says(TypeError, *parts):
        Layer(value)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (torch.ones(1), ["Layer.child", "Tensor", "child"]),
        (torch.relu, ["Layer.child", "'child: Module |"]),
        (nn.ReLU(), ["Layer.child", "torch.nn.Module"]),
        (None, ["Layer.child", "None", "'child: ... | None'"]),
        ([Dense()], ["Layer.child", "list", "'child: tuple[Module, ...]'"]),
        ({"a": Dense()}, ["Layer.child", "dict", "'child: dict[str, Module]'"]),
    ],
)
def test_what_cannot_be_a_child(value: Any, parts: list[str]) -> None:
    class Layer(Module):
        child: Module

    with says(TypeError, *parts):
        Layer(value)


@pytest.mark.parametrize(
    ("annotation", "value", "parts"),
    [
        ("tuple[Dense, ...]", Dense(), ["Layer.x", "Dense"]),
        ("tuple[Dense, ...]", (Dense(), 3), ["Layer.x[1]", "int"]),
        ("tuple[Dense, ...]", (Dense(), None), ["Layer.x[1]", "None"]),
        ("tuple[Dense, int]", (Dense(),), ["Layer.x", "2 items", "got 1"]),
        ("dict[str, Dense]", {"a": 1}, ["Layer.x['a']", "int"]),
        ("dict[str, tuple[Parameter, ...]]", {"a": (1,)}, ["Layer.x['a'][0]", "Parameter", "int"]),
        ("dict[str, Dense]", [Dense()], ["Layer.x", "list"]),
        ("list[Dense]", (Dense() for _ in range(2)), ["Layer.x", "generator"]),
        ("tuple[Dense | int, ...]", (torch.ones(1),), ["Layer.x[0]", "tensor"]),
        ("tuple[Dense | int, ...]", (nn.Linear(1, 1),), ["Layer.x[0]", "Linear"]),
    ],
)
def test_what_cannot_be_in_a_container(annotation: str, value: Any, parts: list[str]) -> None:
    space: dict[str, Any] = {"__annotations__": {"x": annotation}, "__module__": __name__}
    cls: Any = META("Layer", (Module,), space)
    with says(TypeError, *parts):
        cls(value)


VERBS = [
    "initialize", "reset", "split", "grad", "update", "modules", "extra_repr", "train", "eval",
    "mode", "rng", "replace", "forward",
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_a_field_named_like_a_verb(verb: str) -> None:
    before = registered()
    with says(TypeError, f"Layer.{verb}", "verb", f"'{verb}_'"):
        META("Layer", (Module,), {"__annotations__": {verb: int}, "__module__": __name__})
    after = registered()
    assert after == before


def test_a_field_with_two_underscores() -> None:
    with says(TypeError, "Layer.__secret", "underscores"):
        META("Layer", (Module,), {"__annotations__": {"__secret": int}})


# -- registering -----------------------------------------------------------------------------------


def test_registering_twice_or_nonsense_changes_nothing() -> None:
    class Thing:
        pass

    def flatten(thing: Any) -> Any:
        return (), None

    registry.register(Thing, flatten, lambda *_: Thing())
    with says(ValueError, "Thing", "registered already", "nothing was changed"):
        registry.register(Thing, flatten, lambda *_: Thing())
    with says(ValueError, "Dense", "registered already"):
        registry.register(Dense, flatten, lambda *_: Dense())
    with says(TypeError, "takes a class"):
        registry.register(Thing(), flatten, lambda *_: Thing())  # type: ignore[arg-type]  # wrong on purpose


def test_a_field_of_a_child_that_is_set_in_init_names_the_copy() -> None:
    class Tied(Module):
        table: layers.Embedding
        head: layers.Linear

        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.table = layers.Embedding(5, 3)
            self.head = layers.Linear(3, 5, bias=False)
            if tied:
                self.head = self.head.replace(weight=self.table.weight)
            else:
                self.head.weight = self.table.weight

    with pytest.raises(
        FrozenInstanceError, match=r"in __init__: self\.head = \.\.\. of such a copy"
    ):
        Tied(tied=False)
    assert len(tree.leaves(Tied(tied=True).initialize(0))) == 1
