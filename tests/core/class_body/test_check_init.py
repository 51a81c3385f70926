"""What runs on a module when its ``__init__`` is done."""

import dataclasses
from typing import Any

import pytest
import torch

from parallax import Module, field, tree
from tests.corpus import Dense


def test_field_init_false_without_a_default_is_set_by_post_init() -> None:
    class Area(Module):
        width: int
        height: int
        area: int = field(init=False)

        def __post_init__(self) -> None:
            self.area = self.width * self.height

    assert Area(3, 4).area == 12


def test_check_init_of_every_class_runs_base_first_on_the_finished_module() -> None:
    ran: list[str] = []

    class Mixin:
        def __check_init__(self) -> None:
            ran.append("mixin")

    class Base(Module):
        sizes: list[Dense]

        def __check_init__(self) -> None:
            ran.append("base")
            sizes: Any = self.sizes
            assert type(sizes) is tuple  # frozen by now
            with pytest.raises(dataclasses.FrozenInstanceError):
                self.sizes = []

    class Child(Mixin, Base):
        def __check_init__(self) -> None:
            ran.append("child")

    module = Child([Dense()])
    assert ran == ["base", "mixin", "child"]
    tree.map(torch.relu, module.initialize(0))
    assert len(ran) == 3
    module.replace(sizes=())
    assert ran[3:] == ["base", "mixin", "child"]


def test_a_failing_check_reaches_the_caller_as_it_is() -> None:
    class Positive(Module):
        n: int

        def __check_init__(self) -> None:
            if self.n <= 0:
                raise ValueError("n must be positive")

    assert Positive(1).n == 1
    with pytest.raises(ValueError, match="n must be positive"):
        Positive(0)
    with pytest.raises(ValueError, match="n must be positive"):
        Positive(1).replace(n=-1)
