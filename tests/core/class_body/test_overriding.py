"""Fields, defaults, properties and methods that take the place of an inherited name."""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from parallax import Module, field, tree


def test_a_default_can_be_changed_without_repeating_the_annotation() -> None:
    class Base(Module):
        rate: float = 0.1
        sizes: tuple[int, ...] = field(default=(), converter=tuple)
        activation: Callable[[Tensor], Tensor] = torch.relu
        note: str = field(default="", kw_only=True)

    class Child(Base):
        rate = 0.2
        sizes = field(default_factory=lambda: (1,), converter=tuple)  # pyright: ignore[reportGeneralTypeIssues, reportAssignmentType]  # what is tested
        activation = torch.tanh
        note = "changed"

    assert (Base().rate, Child().rate, Child(0.3).rate) == (0.1, 0.2, 0.3)
    assert (Base().sizes, Child().sizes) == ((), (1,))
    assert (Base().activation, Child().activation) == (torch.relu, torch.tanh)
    assert Child().note == "changed"
    assert list(inspect.signature(Child).parameters) == ["rate", "sizes", "activation", "note"]


def test_a_property_or_method_takes_the_place_of_an_inherited_field() -> None:
    class Base(Module):
        rate: float
        scale: float

        def forward(self, x: Any) -> Any:
            return x * self.rate

    class Fixed(Base):
        @property  # type: ignore[misc]  # what is tested
        def rate(self) -> float:  # type: ignore[override]  # on purpose
            return 2 * self.scale

    assert Fixed(0.5)(3) == 3  # type: ignore[call-arg]  # checkers see the fields
    assert list(inspect.signature(Fixed).parameters) == ["scale"]


def test_a_field_takes_the_place_of_an_inherited_property_or_method() -> None:
    class Base(Module, ABC):
        @property
        @abstractmethod
        def width(self) -> int: ...

        def height(self) -> int:
            return 1

    class Wide(Base):
        width: int  # pyright: ignore[reportIncompatibleMethodOverride]  # what is tested
        height: int  # type: ignore[assignment]  # likewise

    assert (Wide(3, 4).width, Wide(3, 4).height) == (3, 4)
    assert tree.structure(Wide(3, 4)) != tree.structure(Wide(3, 5))

    class Unset(Base):
        width: int  # pyright: ignore[reportIncompatibleMethodOverride]  # what is tested

        def __init__(self) -> None:
            super().__init__()

    with pytest.raises(TypeError, match=r"Unset\.width was never set"):
        Unset()


def test_class_and_static_methods_and_cached_values_of_the_class() -> None:
    class Table(Module):
        size: int
        count: ClassVar[int] = 3

        @classmethod
        def small(cls) -> "Table":
            return cls(cls.count)

        @staticmethod
        def twice(n: int) -> int:
            return 2 * n

        @functools.cache  # of the class, not of instances
        @staticmethod
        def table() -> str:
            return "made"

    class Bigger(Table):
        count = 4

    assert (Table.small().size, Bigger.small().size, type(Bigger.small())) == (3, 4, Bigger)
    assert Table.small().twice(4) == Table.twice(4) == 8


def declaring(name: str) -> Any:
    """A class with one field."""
    meta: Any = type(Module)
    return meta("Made", (Module,), {"__module__": __name__, "__annotations__": {name: "float"}})


@pytest.mark.parametrize("name", ["replace", "mode", "emit", "_spec", "_leaves", "_rng"])
def test_what_every_module_has_is_no_name_of_a_field(name: str) -> None:
    text = rf"Made\.{name}: '{name}' is a verb or attribute.*another name, such as '{name}_'"
    with pytest.raises(TypeError, match=text):
        declaring(name)


def test_names_with_two_underscores_are_for_python() -> None:
    with pytest.raises(TypeError, match=r"Made\.__x: .* must not start with two underscores"):
        declaring("__x")


def test_names_of_torchs_modules_are_free() -> None:
    assert declaring("parameters")(0.5).parameters == 0.5
    assert declaring("replace_")(0.5).replace_ == 0.5
