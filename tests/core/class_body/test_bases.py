"""What a module class may have as bases: modules, ABCs, generics, protocols, plain classes."""

import abc
import inspect
from abc import abstractmethod
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import pytest
import torch
import typing_extensions
from torch import Tensor

from parallax import Module, Parameter, tree
from tests.corpus import Dense, leaf

T = TypeVar("T")
ModuleT = TypeVar("ModuleT", bound=Module)


def test_a_diamond_has_each_field_once_in_mro_order() -> None:
    class Top(Module):
        a: int
        b: int = 2

    class Left(Top):
        c: int = 3

    class Right(Top):
        d: int = 4
        b: int = 5

    class Bottom(Left, Right):
        e: int = 6
        c = 7

    assert list(inspect.signature(Bottom).parameters) == ["a", "b", "d", "c", "e"]
    bottom = Bottom(1)
    assert (bottom.a, bottom.b, bottom.c, bottom.d, bottom.e) == (1, 5, 7, 4, 6)


def test_several_bases_run_cooperative_inits() -> None:
    class Named(Module):
        name: str

        def __init__(self, name: str, **rest: Any) -> None:
            super().__init__(**rest)
            self.name = name

    class Sized(Module):
        size: int

        def __init__(self, size: int, **rest: Any) -> None:
            super().__init__(**rest)
            self.size = size

    class Both(Named, Sized):
        weight: Parameter

        def __init__(self) -> None:
            super().__init__(name="both", size=2)
            self.weight = leaf()

    both = Both()
    assert (both.name, both.size) == ("both", 2)
    assert list(tree.named_leaves(both)) == ["weight"]


def test_an_abstract_class_cannot_be_made_until_its_methods_are_defined() -> None:
    class Layer(Module, abc.ABC):
        @abstractmethod
        def forward(self, x: Any) -> Any: ...

        @property
        @abstractmethod
        def width(self) -> int: ...

    class Half(Layer):
        def forward(self, x: Any) -> Any:
            return x

    class Whole(Half):
        width: int  # pyright: ignore[reportIncompatibleMethodOverride]  # what is tested

    for cls in (Layer, Half):
        with pytest.raises(TypeError, match="abstract"):
            cls()  # type: ignore[abstract]  # wrong on purpose
    assert Whole(3)(4) == 4


def test_generic_modules_can_be_subscripted_and_nested() -> None:
    class Residual(Module, Generic[ModuleT, T]):
        inner: ModuleT
        note: T

        def forward(self, x: Tensor) -> Any:
            return x + self.inner(x)

    class Concrete(Residual[Dense, str]):
        pass

    made = Concrete(Dense(), "n").initialize(0)
    x = torch.ones(4)
    torch.testing.assert_close(made(x), x + made.inner(x))
    assert type(Residual[Dense, str](Dense(), "n")) is Residual
    assert len(tree.leaves(Residual(Residual(Dense(), 1), 2))) == 2


@runtime_checkable
class HasWidth(Protocol):
    width: int

    def forward(self, x: Any) -> Any: ...


class Calls(Protocol):
    def __call__(self, x: Any) -> Any: ...


def test_protocols_may_be_bases_before_and_after_module() -> None:
    class First(HasWidth, Calls, Module):
        width: int

        def forward(self, x: Any) -> Any:
            return x + self.width

    class Last(Module, HasWidth, Calls):
        width: int

        def forward(self, x: Any) -> Any:
            return x + self.width

    class Extended(typing_extensions.Protocol):
        width: int

    class Third(Extended, Module):
        width: int

        def forward(self, x: Any) -> Any:
            return x + self.width

    for cls in (First, Last, Third):
        module = cls(3)  # type: ignore[abstract]  # what is tested
        assert (module.width, module(4)) == (3, 7)
        assert isinstance(module, HasWidth)


def test_plain_mixins_give_methods_class_state_and_hooks() -> None:
    seen: list[type] = []

    class Counts:
        total = 0
        label: str = "not a field"

        def __init_subclass__(cls, tag: str = "", **rest: Any) -> None:
            super().__init_subclass__(**rest)
            seen.append(cls)
            cls.tag = tag

        def describe(self) -> str:
            return f"{type(self).__name__} {self.total} {self.label}"

        tag: str

    class Layer(Counts, Module, tag="x"):
        total: int

    assert seen == [Layer]
    assert Layer.tag == "x"
    assert Layer(3).describe() == "Layer 3 not a field"


def test_a_mixin_with_an_init_of_its_own_is_run_by_super() -> None:
    class Mixin:
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size

    class Layer(Mixin, Module):
        size: int

    assert Layer(4).size == 4
