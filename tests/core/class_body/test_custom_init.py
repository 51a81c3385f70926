"""An ``__init__`` that is written by hand: what it calls, and who inherits it."""

import dataclasses
from typing import Any, Optional

import pytest
from torch.nn import init

from parallax import Module, Parameter, tree


def test_super_init_may_be_called_with_and_without_fields() -> None:
    class Plain(Module):
        a: int

        def __init__(self) -> None:
            super().__init__()
            self.a = 1

    class Silent(Module):
        a: int

        def __init__(self) -> None:
            self.a = 1

    class Generated(Module):
        a: int

    class Above(Generated):
        b: int

        def __init__(self) -> None:
            super().__init__(5)
            self.b = self.a + 1

    assert Plain().a == Silent().a == 1
    assert (Above().a, Above().b) == (5, 6)


def test_a_custom_init_is_inherited_and_child_fields_extend() -> None:
    class Base(Module):
        weight: Parameter
        size: int

        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size
            self.weight = Parameter((size,), init.ones_)

    class Child(Base):
        rate: float = 0.5
        extra: Optional[Parameter] = None  # noqa: UP045

    class Grandchild(Child):
        def __init__(self, size: int) -> None:
            super().__init__(size + 1)  # type: ignore[arg-type, call-arg]  # what is tested
            self.extra = Parameter((1,), init.zeros_)

    # Checkers see the fields; what is run is the inherited __init__.
    child: Any = Child(3)  # type: ignore[arg-type, call-arg]  # as said
    assert (child.size, child.rate) == (3, 0.5)
    assert list(tree.named_leaves(child)) == ["weight"]
    assert list(tree.named_leaves(Grandchild(3))) == ["weight", "extra"]
    assert Grandchild(3).size == 4


def test_a_child_field_that_the_inherited_init_does_not_know_needs_a_default() -> None:
    class Base(Module):
        a: int

        def __init__(self) -> None:
            self.a = 1

    class Child(Base):
        b: int

    with pytest.raises(
        TypeError, match=r"Child\.b was never set.*self\.b = .*field\(default="
    ) as e:
        Child()  # type: ignore[call-arg]  # checkers see the fields
    assert "Child.__init__" in str(e.value)


def test_a_class_may_say_that_it_inherits_its_init() -> None:
    class Base(Module):
        size: int

        def __init__(self, half: int) -> None:
            super().__init__()
            self.size = 2 * half

    class Derived(Base, init=False):
        pass

    assert Derived(half=3).size == 6


def test_setters_and_getters_work_while_constructing() -> None:
    class Angle(Module):
        radians: float

        def __init__(self, degrees: float) -> None:
            super().__init__()
            self.degrees = degrees

        @property  # type: ignore[no-redef]  # what is tested
        def degrees(self) -> float:
            return self.radians * 180

        @degrees.setter
        def degrees(self, value: float) -> None:
            self.radians = value / 180

    angle = Angle(90.0)
    assert (angle.radians, angle.degrees) == (0.5, 90.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        angle.degrees = 3.0
