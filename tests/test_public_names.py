"""Every public name has a docstring that says what it takes and returns, with an example.

``test_site`` counts the pages of the reference, and ``test_typing`` looks at types in use.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from typing import get_overloads

from parallax.optim.schedules import Schedule
from tests.public import (
    CONSTANTS,
    DOCUMENTED,
    MADE_BY_FUNCTIONS,
    PUBLIC,
    docstring,
    examples_of,
    is_exception,
    public_methods,
)

CLASSES = [value for value in DOCUMENTED.values() if inspect.isclass(value)]


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
    assert [name for name, v in DOCUMENTED.items() if not examples_of(docstring(v))] == []


# Methods that others call, and who.
CALLED_BY_OTHERS = {
    "at": "a call of the schedule",
    "extra_repr": "repr",
    "forward": "a call of the module",
    "AddNoise.update": "the step of optim.chain",
    "ClipAdaptive.update": "the step of optim.chain",
    "Lookahead.update": "the step of optim.chain",
    "ChannelNorm.by_operators": "forward",
    "ChannelNorm.expected": "forward, for its errors",
    "ChannelNorm.own_statistics": "forward",
    "ChannelNorm.stepped": "forward",
    "GRU.kernel": "forward",
    "GRU.step": "forward",
    "LSTM.kernel": "forward",
    "LSTM.step": "forward",
    "RNN.kernel": "forward",
    "RNN.step": "forward",
    "Recurrent.run": "forward",
    "Lazy.copy": "__init__, for the default of a field",
    "Lazy.refuse": "every computation with a declaration",
    "Lowered.add_module": "users of nn.Module, whose method it is",
    "Plan.marked": "initialize(plan=)",
    "Plan.raise_in_all": "whatever uses a plan, where it fails in one process",
    "Plan.shares_of": "initialize(plan=)",
    "TreeSpec.with_rngs": "the transforms, for the keys of a tree",
}


def test_every_public_method_has_a_docstring() -> None:
    methods = {method for cls in CLASSES for _, method in public_methods(cls)}
    assert len(methods) > 200
    assert [method.__qualname__ for method in methods if not method.__doc__] == []


def test_every_public_method_is_called_in_an_example_of_its_class() -> None:
    # Its class, or one of several that inherit it.
    missing: dict[str, bool] = {}
    for cls in CLASSES:
        methods = dict(public_methods(cls))
        texts = [docstring(cls), *map(docstring, methods.values())]
        examples = "".join(example for text in texts for example in examples_of(text))
        for short, method in methods.items():
            shown = re.search(rf"\.{short}\b", examples) is not None
            name = method.__qualname__
            missing[name] = missing.get(name, True) and not shown
    without = {name for name, is_missing in missing.items() if is_missing}
    others = {name for name in without if CALLED_BY_OTHERS.keys() & {name, name.split(".")[-1]}}
    assert sorted(without - others) == []
    stale = {name for name in CALLED_BY_OTHERS if "." in name} - others
    assert sorted(stale) == []


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
    "Identity.forward": "what it is given; the checkers lose a type variable of forward in a call",
    "Lambda.forward": "what its function returns",
    "Lifted.forward": "what the forward of the lifted class returns",
    "LoRA.forward": "what its layer returns",
    "Lowered.forward": "what the forward of the lowered class returns",
    "Module.forward": "what the subclass says",
    "Module.rng": "of the kind that reset or train was given",
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
        for cls in CLASSES
        for short, method in public_methods(cls)
        if not (issubclass(cls, Schedule) and short == "at")
        and holds_any(method.__annotations__["return"])
    }
    assert sorted(unknown) == sorted(METHODS_OF_ANY_TYPE)


def holds_any(annotation: str | type) -> bool:
    if isinstance(annotation, type):
        return False
    nodes = ast.walk(ast.parse(annotation))
    return any(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
