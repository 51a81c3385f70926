"""``functools.cached_property`` in a module: computed once, without a lock."""

from __future__ import annotations

from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch

from parallax import Module, Parameter
from parallax._compat.cached import Cached, without_locks

runs: list[str] = []


class Square(Module):
    side: Parameter

    @cached_property
    def area(self) -> Any:
        """The area."""
        runs.append("area")
        return self.side * self.side


def test_it_is_computed_when_it_is_first_read_and_kept() -> None:
    runs.clear()
    one, other = Square(torch.tensor(3.0)), Square(torch.tensor(2.0))
    assert not runs
    first = one.area
    assert first == 9 and one.area is first and runs == ["area"]
    assert other.area == 4 and runs == ["area", "area"]


def test_of_the_class_it_is_the_property_itself() -> None:
    cls: Any = Square
    held = vars(cls)["area"]
    assert type(held) is Cached and cls.area is held  # as functools gives itself
    assert held.func.__name__ == "area"


def test_other_values_of_a_class_body_stay_what_they_are() -> None:
    names: dict[str, Any] = {"a": property(lambda self: 1), "b": 2}
    kept = dict(names)
    without_locks(names)
    assert names == kept


def test_what_is_kept_already_is_not_computed_again() -> None:
    prop = Cached(lambda _: 1 / 0)
    prop.__set_name__(SimpleNamespace, "value")
    assert prop.__get__(SimpleNamespace(value=5)) == 5
