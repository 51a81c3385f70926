"""Every public name has a docstring that says what it takes and returns, with an example.

``test_site`` counts the pages of the reference, and ``test_typing`` looks at types in use.
"""

from __future__ import annotations

import doctest
import inspect
import re
import sys
import types
from typing import Any

import parallax

# An alias of types and a string cannot hold a docstring; the text below them is in the reference.
CONSTANTS = {"parallax.core.registry.NAMESPACE", "parallax.random.Rng"}

# Classes that users get from a function and never construct: that function tells the arguments.
MADE_BY_FUNCTIONS = {
    "parallax.Module",  # by its subclasses, which have their own arguments
    "parallax.bridge.Lifted",
    "parallax.bridge.Lowered",
    "parallax.optim.Optimizer",  # by its subclasses
    "parallax.tree.Selection",
    "parallax.tree.TreeSpec",
}


def rooms() -> dict[str, types.ModuleType]:
    """The public modules by their names; a module in an ``__all__`` is one, too."""
    found: dict[str, types.ModuleType] = {}
    todo = [parallax]
    while todo:
        room = todo.pop()
        found[room.__name__] = room
        todo += [m for name in room.__all__ if inspect.ismodule(m := getattr(room, name))]
    return found


def public() -> dict[str, Any]:
    """Every public object by its name."""
    return {
        f"{name}.{short}": getattr(room, short)
        for name, room in rooms().items()
        for short in room.__all__
        if not inspect.ismodule(getattr(room, short))
    }


PUBLIC = public()
DOCUMENTED = {name: value for name, value in PUBLIC.items() if name not in CONSTANTS}


def docstring(value: Any) -> str:
    return inspect.getdoc(value) or ""


def section(text: str, *titles: str) -> str:
    """The lines of some sections of a docstring."""
    pattern = rf"^(?:{'|'.join(titles)}):\n((?:[ ].*\n|\n)*)"
    return "".join(re.findall(pattern, text + "\n", re.MULTILINE))


def described(text: str) -> set[str]:
    """The names of the arguments and attributes that a docstring describes."""
    entries = re.findall(r"^    (\S[^:]*):\s", section(text, "Args", "Attributes"), re.MULTILINE)
    return {name.strip(" *") for entry in entries for name in entry.split(",")}


def test_the_names_are_counted() -> None:
    assert len(PUBLIC) > 280
    assert set(PUBLIC) > CONSTANTS
    assert set(PUBLIC) > MADE_BY_FUNCTIONS


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name, value in DOCUMENTED.items() if not docstring(value)] == []


def test_every_public_name_has_an_example() -> None:
    parser = doctest.DocTestParser()
    without = [name for name, v in DOCUMENTED.items() if not parser.get_examples(docstring(v))]
    assert without == []


def test_every_example_is_run() -> None:
    # pytest collects them from the files of the package, where each object is by its own name.
    hidden = []
    for name, value in DOCUMENTED.items():
        file = sys.modules[value.__module__]
        if not value.__module__.startswith("parallax.") or vars(file)[value.__name__] is not value:
            hidden.append(name)
    assert hidden == []


def test_every_argument_is_described() -> None:
    missing = []
    for name, value in DOCUMENTED.items():
        if name in MADE_BY_FUNCTIONS or is_exception(value):
            continue
        known = described(docstring(value))
        missing += [f"{name}({k})" for k in inspect.signature(value).parameters if k not in known]
    assert missing == []


def test_no_argument_is_described_that_does_not_exist() -> None:
    extra = []
    for name, value in DOCUMENTED.items():
        names = re.findall(r"^    \**(\w+):\s", section(docstring(value), "Args"), re.MULTILINE)
        parameters = inspect.signature(value).parameters if names else {}
        extra += [f"{name}({k})" for k in names if k not in parameters]
    assert extra == []


def test_every_result_is_described() -> None:
    missing = [
        name
        for name, value in DOCUMENTED.items()
        if inspect.isfunction(value)
        and value.__annotations__["return"] != "None"
        and not section(docstring(value), "Returns")
    ]
    assert missing == []


def is_exception(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, BaseException)
