"""The dict of a frozen module: it reads as a dict, and nothing changes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from parallax.core.frozendict import FrozenDict
from tests.saving import pickled

GIVEN = {"b": 1, "a": 2}


def test_it_reads_as_the_dict_that_was_given() -> None:
    found = FrozenDict(GIVEN)
    assert found == GIVEN and list(found) == ["b", "a"] and dict(**found) == GIVEN
    more = {**found, "c": 3}
    assert type(more) is dict and "c" not in found


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickled, FrozenDict])
def test_copies_are_frozen_too(make: Callable[[Any], Any]) -> None:
    made = make(FrozenDict(GIVEN))
    assert type(made) is FrozenDict and list(made.items()) == [("b", 1), ("a", 2)]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.__setitem__("a", 0),
        lambda d: d.__delitem__("a"),
        lambda d: d.__ior__({"a": 0}),
        lambda d: d.clear(),
        lambda d: d.pop("a"),
        lambda d: d.pop("none", 0),
        lambda d: d.popitem(),
        lambda d: d.setdefault("a", 0),
        lambda d: d.update(a=0),
    ],
)
def test_every_method_that_writes_is_refused(change: Callable[[Any], Any]) -> None:
    found = FrozenDict(GIVEN)
    with pytest.raises(TypeError, match=r"module\.replace\(field="):
        change(found)
    assert found == GIVEN


def test_no_method_of_a_dict_that_writes_was_forgotten() -> None:
    reading = {
        "__class_getitem__", "__contains__", "__eq__", "__ge__", "__getattribute__", "__getitem__",
        "__gt__", "__init__", "__iter__", "__le__", "__len__", "__lt__", "__ne__", "__new__",
        "__or__", "__repr__", "__reversed__", "__ror__", "__sizeof__", "__doc__", "__hash__",
        "copy", "fromkeys", "get", "items", "keys", "values",
    }  # fmt: skip
    writing = set(vars(dict)) - reading
    assert writing <= set(vars(FrozenDict))
