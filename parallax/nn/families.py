"""What similar layers share: parts of their docstrings, and ``extra_repr`` of torch's layers.

``Conv1d``, ``Conv2d`` and ``Conv3d`` have the same arguments, shapes and errors, and most layers of
``torch.nn`` have such relatives. The docstring of their base class describes these once. In the
file a layer has its first sentence and an example, which is what an editor shows that only reads
the file; ``help()`` shows the whole.

``parallax/nn/__init__.py`` completes the docstrings of all public layers once, at its end. Classes
that users derive from a layer keep their own docstrings.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["complete", "completed", "shown_as"]

_HEADING = re.compile(r"^(Args|Attributes|Shape|Raises|Source|Example):", re.MULTILINE)
_ENTRY = re.compile(r"^(?=    [^ ])", re.MULTILINE)

# The part that every docstring has.
_DTYPE = "    dtype: of the parameters; by default torch's default dtype.\n"
_IMPORTS = "\n    >>> import torch\n    >>> from parallax import nn"

_PLACES = ("{n}", "{one}", "{L}", "{two}", "{sides}")
_WORDS = {
    0: (),
    1: ("1", "one", "L", "two", "before and after"),
    2: ("2", "two", "H, W", "four", "left, right, above and below"),
    3: ("3", "three", "D, H, W", "six", "left, right, above, below, in front and behind"),
}
"""What stands in these places of a family's docstring, by the number of dimensions."""


def complete(layer: Any) -> None:
    """Completes the docstring of a layer by those of its base classes.

    Args:
        layer: the class. Under ``python -OO`` it has no docstring, and gets none.
    """
    above = [base for base in layer.__mro__[1:] if base.__module__.startswith("parallax.nn.")]
    docs = [cls.__doc__ for cls in (layer, *above) if cls.__doc__]
    parameters = inspect.signature(layer).parameters.values()
    # As they are written: ``*args``, without annotations and defaults.
    arguments = [str(p.replace(annotation=p.empty, default=p.empty)) for p in parameters]
    if layer.__doc__:
        layer.__doc__ = completed(docs, arguments, getattr(layer, "dims", 0))


def completed(docs: Sequence[str], arguments: Sequence[str], dims: int) -> str:
    """A docstring combined from those of several classes.

    Each entry of a section (an argument, an input, an exception) comes from the class itself, or
    else from the nearest class that has it; so does the source. Of a family's text all but the
    first sentence counts. The example is the layer's own, after the imports that all begin with.

    Args:
        docs: the docstring of a layer, and those of the classes above it, the nearest first.
        arguments: what the constructor takes, in order.
        dims: the number of spatial dimensions; 0 if the layers have none.
    """
    found = [_sections(doc) for doc in docs]
    texts = [found[0][""], *[sections[""].partition("\n\n")[2] for sections in found[1:]]]
    parts = [text for text in texts if text]
    for name in ("Args", "Attributes", "Shape", "Raises"):
        entries = {"dtype": _DTYPE} if name == "Args" else {}
        for sections in reversed(found):
            entries |= _entries(sections.get(name, ""))
        if name == "Args":
            entries = {name: entries[name] for name in arguments if name in entries}
        if "- output" in entries:
            entries["- output"] = entries.pop("- output")
        if entries:
            parts.append(f"{name}:\n" + "".join(entries.values()).rstrip())
    parts += [f"Source:{sections['Source']}" for sections in found if "Source" in sections][:1]
    parts += [f"Example:{_IMPORTS}{own['Example']}" for own in found[:1] if "Example" in own]
    whole = "\n\n".join(parts)
    for place, word in zip(_PLACES, _WORDS[dims], strict=False):
        whole = whole.replace(place, word)
    return whole


def _sections(doc: str) -> dict[str, str]:
    """The text of a docstring, by ``""``, and its sections by their headings."""
    text, *rest = _HEADING.split(inspect.cleandoc(doc))
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    return {name: section.rstrip() for name, section in {"": text, **sections}.items()}


def _entries(section: str) -> dict[str, str]:
    """The entries of a section, by their names."""
    entries = _ENTRY.split(section + "\n")[1:]
    return {entry.partition(":")[0].strip(): entry for entry in entries}


def shown_as(layer: type[Any]) -> Any:
    """``extra_repr`` of a layer of ``torch.nn``, for a layer of ours that has the same fields.

    Args:
        layer: torch's class.
    """
    return layer.extra_repr
