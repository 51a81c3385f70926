"""Text of Python becomes functions, which keep nothing alive but what they use."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from parallax.core.code import define, function_of


def test_several_names_come_back_in_the_order_they_were_asked_for() -> None:
    source = "def one():\n    return base\ndef two():\n    return 2 * base\n"
    two, one = define(source, {"base": 4}, ["two", "one"])
    assert (one(), two()) == (4, 8)


def test_a_function_has_its_head_its_lines_and_its_globals() -> None:
    made = function_of(
        "add(a, b=2, *, c)", ["total = a + b", "return total + c + extra"], {"extra": 10}
    )
    assert made(1, c=3) == 16 and made.__name__ == "add"
    with pytest.raises(TypeError, match="keyword-only argument: 'c'"):
        made(1)


def test_a_function_without_lines_does_nothing() -> None:
    assert function_of("nothing(self)", [], {})(0) is None


def test_what_generated_code_uses_is_released_with_it() -> None:
    class Held:
        pass

    held = Held()
    gone, made = weakref.ref(held), function_of("get()", ["return held"], {"held": held})
    del held
    assert made() is gone() is not None
    gc.disable()  # a cycle would keep it until the collector runs
    try:
        del made
        assert gone() is None
    finally:
        gc.enable()


def test_the_globals_do_not_name_the_function() -> None:
    names: dict[str, Any] = {}
    made = function_of("f()", ["return 1"], names)
    assert "f" not in names and made.__globals__ is names
