"""A call is ``forward``, wherever that comes from."""

from typing import Any

import pytest

from parallax import Module


def test_a_call_is_forward_itself() -> None:
    class Add(Module):
        def forward(self, x: int, *rest: int, y: int = 1, **more: int) -> int:
            return x + sum(rest) + y + sum(more.values())

    assert Add.__call__ is Add.forward
    assert Add()(1, 2, 3, y=4, z=5) == 15


def test_reassigning_forward_reaches_the_class_and_its_subclasses() -> None:
    class Base(Module):
        def forward(self, x: int) -> int:
            return x

    class Child(Base):
        pass

    class Own(Base):
        def forward(self, x: int) -> int:
            return 100 * x

    class Mixed(Child, Own):
        pass

    made = Base(), Child(), Own(), Mixed()
    assert [module(1) for module in made] == [1, 1, 100, 100]
    Base.forward = lambda self, x: x + 1  # type: ignore[method-assign]  # what is tested
    assert [module(1) for module in made] == [2, 2, 100, 100]
    Child.forward = lambda self, x: -x  # type: ignore[method-assign]  # likewise
    assert [module(1) for module in made] == [2, -1, 100, -1]
    del Child.forward
    assert [module(1) for module in made] == [2, 2, 100, 100]


def test_a_call_that_a_user_wrote_wins_for_the_class_and_those_below() -> None:
    class Logged(Module):
        def forward(self, x: int) -> int:
            return x

        # pyright wants the arguments of every forward; define forward, and it is content.
        def __call__(self, x: int) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return "logged", self.forward(x)

    class Child(Logged):
        pass

    class Other(Logged):
        def forward(self, x: int) -> int:
            return 2 * x

    assert [cls()(3) for cls in (Logged, Child, Other)] == [
        ("logged", 3),
        ("logged", 3),
        ("logged", 6),
    ]
    Logged.forward = lambda self, x: 5 * x  # type: ignore[method-assign]  # what is tested
    assert [cls()(3) for cls in (Logged, Child, Other)] == [
        ("logged", 15),
        ("logged", 15),
        ("logged", 6),
    ]
    Other.__call__ = lambda self, x: "own"  # type: ignore[method-assign]  # likewise
    Other.forward = lambda self, x: 7 * x  # type: ignore[method-assign]  # likewise
    assert Other()(3) == "own"
    del Other.__call__
    assert Other()(3) == ("logged", 21)


def test_forward_may_be_a_static_or_class_method_or_a_partial() -> None:
    class Static(Module):
        @staticmethod
        def forward(x: int) -> int:
            return x + 1

    class OfClass(Module):
        @classmethod
        def forward(cls, x: int) -> Any:
            return cls.__name__, x

    assert Static()(1) == 2
    assert OfClass()(1) == ("OfClass", 1)


def test_a_module_without_forward_says_so_when_called() -> None:
    class Nothing(Module):
        pass

    with pytest.raises(TypeError, match=r"Nothing defines no forward.*def forward"):
        Nothing()(1)


def test_a_mixin_can_supply_forward() -> None:
    class Identity:
        def forward(self, x: int) -> int:
            return x

    class Layer(Identity, Module):
        pass

    assert Layer()(3) == 3


def test_a_deleted_init_gives_way_to_that_of_the_base() -> None:
    class Base(Module):
        x: int

        def __init__(self, x: int) -> None:
            super().__init__()
            self.x = x

    class Child(Base):
        def __init__(self, x: int) -> None:
            super().__init__(10 * x)

        def helper(self) -> None: ...

    assert Child(1).x == 10
    del Child.helper
    assert Child(2).x == 20
    del Child.__init__
    assert Child(1).x == 1
