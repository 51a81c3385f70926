"""The notebook of the guides: its cells run in order, and the last value of each can be shown."""

from __future__ import annotations

import ast
import json
import sys
import types

import pytest

from parallax import Module
from tests.guides import ROOT

NOTEBOOK = ROOT / "parallax/docs/notebook.ipynb"


def cells() -> list[str]:
    """The code cells."""
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def run(cell: str, script: types.ModuleType) -> object:
    """Runs a cell as a notebook does; returns the value of its last line, if that is one."""
    parsed = ast.parse(cell)
    last = parsed.body.pop() if isinstance(parsed.body[-1], ast.Expr) else None
    exec(compile(parsed, str(NOTEBOOK), "exec"), vars(script))
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), vars(script))


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    script = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, script.__name__, script)
    values = [run(cell, script) for cell in cells()]
    shown = [value for value in values if isinstance(value, Module)]
    assert len(shown) == 1
    assert "<b>Net</b>" in shown[0]._repr_html_()
    accuracy, trained = vars(script)["accuracy"], vars(script)["trained"]
    assert accuracy(shown[0].initialize(0)) < 0.3
    assert accuracy(trained) > 0.9


def test_no_output_is_kept() -> None:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in found)
