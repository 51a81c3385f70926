"""Docstrings of layers: whole at run time, useful to a tool that only reads the file."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from parallax import Module, nn

CLASSES = [getattr(nn, name) for name in nn.__all__ if isinstance(getattr(nn, name), type)]
LAYERS = [cls for cls in CLASSES if issubclass(cls, Module)]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)


def _sections(layer: type) -> dict[str, str]:
    """What stands under each heading of a docstring."""
    found: dict[str, str] = {}
    heading = ""
    for line in (layer.__doc__ or "").splitlines():
        if line and not line.startswith(" "):
            heading = line.partition(":")[0]
        found[heading] = found.get(heading, "") + line + "\n"
    return found


@every_layer
def test_it_describes_every_argument_in_order(layer: type) -> None:
    described = [
        line.strip().partition(":")[0]
        for line in _sections(layer).get("Args", "").splitlines()[1:]
        if line.startswith("    ") and line[4] != " "
    ]
    parameters = inspect.signature(layer).parameters.values()
    assert described == [str(p.replace(annotation=p.empty, default=p.empty)) for p in parameters]


@every_layer
def test_it_has_an_example_that_can_be_copied(layer: type) -> None:
    example = _sections(layer)["Example"]
    assert example.startswith("Example:\n    >>> import torch\n    >>> from parallax import nn\n")
    assert f"nn.{layer.__name__}" in example


def test_nothing_is_left_to_fill_in() -> None:
    docs = [layer.__doc__ or "" for layer in LAYERS if hasattr(layer, "dims")]
    words = ["{n}", "{one}", "{L}", "{two}", "{sides}"]
    assert docs and not [doc for doc in docs if any(word in doc for word in words)]


@every_layer
def test_the_file_alone_shows_a_first_sentence_and_an_example(layer: type) -> None:
    file = Path(inspect.getfile(layer))
    (written,) = [
        ast.get_docstring(node) or ""
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == layer.__name__
    ]
    assert written.splitlines()[0].endswith(".")
    assert written.splitlines()[0] == (layer.__doc__ or "").splitlines()[0]
    assert f">>> nn.{layer.__name__}" in written or f"nn.{layer.__name__}(" in written


def test_a_family_says_it_in_the_words_of_each_dimension() -> None:
    one, two = _sections(nn.MaxPool1d), _sections(nn.MaxPool2d)
    assert "an int or a tuple of one" in one["Args"] and "an int or a tuple of two" in two["Args"]
    assert "(N, C, L)" in one["Shape"] and "(N, C, H, W)" in two["Shape"]
    assert "MaxUnpool2d" in two["Args"] and two["Raises"] == one["Raises"]
    assert "divisor_override" in (nn.AvgPool2d.__doc__ or "")
    assert "divisor_override" not in (nn.AvgPool1d.__doc__ or "")


def test_classes_that_users_derive_keep_their_docstrings() -> None:
    class Silent(nn.Conv2d):
        pass

    class Told(nn.Conv2d):
        """My own."""

    assert Silent.__doc__ is None and Told.__doc__ == "My own."


def test_it_imports_without_docstrings() -> None:
    code = "from parallax import nn; raise SystemExit(nn.Conv1d.__doc__ is not None)"
    assert subprocess.run([sys.executable, "-OO", "-c", code], check=False).returncode == 0
