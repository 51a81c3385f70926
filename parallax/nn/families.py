"""What layers need not say again: the docstring of their family, ``extra_repr`` of torch's layer.

``Conv1d``, ``Conv2d`` and ``Conv3d`` have the same arguments, shapes and errors, and so have most
layers of ``torch.nn`` a few relatives. The base class of a family says once what all have in
common. A layer itself has a first sentence and an example, which is what an editor shows that only
reads the file; ``help()`` shows the whole.

It is done once for all public layers, at the end of ``parallax/nn/__init__.py``, and not when a
class is made: classes that users derive from a layer have the docstrings that they wrote.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from parallax.core.module import Module

__all__ = ["complete", "shown_as"]

_HEADING = re.compile(r"^(Args|Attributes|Shape|Raises|Source|Example):", re.MULTILINE)
_ENTRY = re.compile(r"^(?=    [^ ])", re.MULTILINE)

# What is the same in every docstring.
_DTYPE = "    dtype: of the parameters; by default torch's default dtype.\n"
_IMPORTS = "\n    >>> import torch\n    >>> from parallax import nn"

_WORDS = {
    1: {"n": "1", "one": "one", "L": "L", "two": "two", "sides": "before and after"},
    2: {
        "n": "2",
        "one": "two",
        "L": "H, W",
        "two": "four",
        "sides": "left, right, above and below",
    },
    3: {
        "n": "3",
        "one": "three",
        "L": "D, H, W",
        "two": "six",
        "sides": "left, right, above, below, in front and behind",
    },
}
"""What stands for ``{n}`` and so on in the docstring of a family, by the number of dimensions."""


def complete(layer: Any) -> None:
    """Gives a layer the whole docstring: what it says, and what the classes above it say.

    Each entry of a section (an argument, an input, an exception) comes from the class itself, or
    else from the nearest class that has it; so does the source. Arguments are those of the
    constructor, in its order. Of a family's text all but the first sentence counts. The example is
    the layer's own, after the imports that all examples begin with.

    Args:
        layer: the class. Under ``python -OO`` it has no docstring, and gets none.
    """
    if layer.__doc__ is None:
        return
    above = [base for base in layer.__mro__[1:] if issubclass(base, Module) and base is not Module]
    docs = [_sections(cls.__doc__) for cls in (layer, *above) if cls.__doc__]
    texts = [docs[0][""], *[doc[""].partition("\n\n")[2] for doc in docs[1:]]]
    parts = [text for text in texts if text]
    for name in ("Args", "Attributes", "Shape", "Raises"):
        entries: dict[str, str] = {}
        for doc in reversed(docs):
            entries |= _entries(doc.get(name, ""))
        if name == "Args":
            entries = _in_order(entries, layer)
        if "- output" in entries:
            entries["- output"] = entries.pop("- output")
        if entries:
            parts.append(f"{name}:\n" + "".join(entries.values()).rstrip())
    parts += [f"Source:{doc['Source']}" for doc in docs if "Source" in doc][:1]
    parts += [f"Example:{_IMPORTS}{doc['Example']}" for doc in docs[:1] if "Example" in doc]
    whole = "\n\n".join(parts)
    for token, word in _WORDS.get(getattr(layer, "dims", 0), {}).items():
        whole = whole.replace(f"{{{token}}}", word)
    layer.__doc__ = whole


def _sections(doc: str) -> dict[str, str]:
    """The text of a docstring, by ``""``, and its sections by their headings."""
    text, *rest = _HEADING.split(inspect.cleandoc(doc))
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    return {name: section.rstrip() for name, section in {"": text, **sections}.items()}


def _entries(section: str) -> dict[str, str]:
    """The entries of a section, by their names."""
    entries = _ENTRY.split(section + "\n")[1:]
    return {entry.partition(":")[0].strip(): entry for entry in entries}


def _in_order(entries: dict[str, str], layer: Any) -> dict[str, str]:
    """The entries of the arguments that a layer takes."""
    parameters = inspect.signature(layer).parameters.values()
    # As they are written: ``*args``, without annotations and defaults.
    plain = [p.replace(annotation=p.empty, default=p.empty) for p in parameters]
    entries = {"dtype": _DTYPE, **entries}
    return {name: entries[name] for name in map(str, plain) if name in entries}


def shown_as(layer: type[Any]) -> Any:
    """``extra_repr`` of a layer of ``torch.nn``, for a layer of ours that has the same fields.

    Args:
        layer: torch's class.
    """
    return layer.extra_repr
