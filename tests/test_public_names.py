"""Every public name has a docstring that says what it takes and returns, with an example.

``test_site`` counts the pages of the reference, and ``test_typing`` looks at types in use.
"""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import sys
import types
from typing import Any, get_overloads

import parallax
from parallax.optim.schedules import Schedule

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


# Functions whose results are of type Any, or hold it, and why no annotation says more.
RESULTS_OF_ANY_TYPE = {
    "parallax.bridge.lift": "the class of the result is made for the class of its argument",
    "parallax.core.registry.flatten_module": "a leaf is a tensor, a declaration or None",
    "parallax.core.registry.unflatten_module": "a structure does not carry the class of its module",
    "parallax.func.hessian": "a tensor for a tensor, and for a module a module of modules",
    "parallax.io.metadata": "what JSON holds",
    "parallax.load_compiled": "a file does not carry the types of its function",
    "parallax.tree.allclose": "a bool in eager code, a tensor where values are not known",
    "parallax.tree.equal": "a bool in eager code, a tensor where values are not known",
    "parallax.tree.flatten": "a leaf may be anything",
    "parallax.tree.leaves": "a leaf may be anything",
    "parallax.tree.named_leaves": "a leaf may be anything",
    "parallax.tree.unflatten": "a structure does not carry the class of its tree",
}


def test_results_have_types() -> None:
    # Of several overloads one must know: others are for arguments of which types do not tell.
    unknown = [
        name
        for name, value in DOCUMENTED.items()
        if inspect.isfunction(value)
        and all(holds_any(f.__annotations__["return"]) for f in get_overloads(value) or [value])
    ]
    assert sorted(unknown) == sorted(RESULTS_OF_ANY_TYPE)


# The same for methods, and ``at`` of schedules: a float for an int, and for a tensor a tensor.
METHODS_OF_ANY_TYPE = {
    "Computed.forward": "what its layer returns",
    "Computed.merged": "a layer of the class that was given",
    "Identity.forward": "what it is given; the checkers lose a type variable of forward in a call",
    "Lambda.forward": "what its function returns",
    "Lifted.forward": "what the forward of the lifted class returns",
    "LoRA.forward": "what its layer returns",
    "Lowered.forward": "what the forward of the lowered class returns",
    "Module.forward": "what the subclass says",
    "Selection.get": "a leaf or a node, or a tuple of them",
    "Sequential.forward": "what its last layer returns",
    "SpectralNorm.forward": "what its layer returns",
    "Stack.forward": "what its blocks return",
    "TreeSpec.build": "a structure does not carry the class of its tree",
    "_AdaptiveMaxPool.forward": "a tensor, or with return_indices a pair",
    "_FractionalMaxPool.forward": "a tensor, or with return_indices a pair",
    "_MaxPool.forward": "a tensor, or with return_indices a pair",
}


def test_methods_have_types() -> None:
    unknown = {
        method.__qualname__
        for cls in DOCUMENTED.values()
        if inspect.isclass(cls)
        for short in dir(cls)
        if inspect.isfunction(method := inspect.getattr_static(cls, short))
        and not short.startswith("_")
        and method.__module__.startswith("parallax.")
        and not (issubclass(cls, Schedule) and short == "at")
        and holds_any(method.__annotations__["return"])
    }
    assert sorted(unknown) == sorted(METHODS_OF_ANY_TYPE)


def holds_any(annotation: str | type) -> bool:
    if isinstance(annotation, type):
        return False
    nodes = ast.walk(ast.parse(annotation))
    return any(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
