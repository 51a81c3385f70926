"""The README's tour runs, block after block, in one namespace."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_every_python_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    # A module of its own, so that annotations and dynamo find names as in a script.
    script = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", script)
    for block in blocks:
        exec(compile(block, str(README), "exec"), vars(script))


def test_every_claim_of_speed_names_the_command_that_shows_it() -> None:
    text = README.read_text()
    claims = text.split("## What it costs")[1]
    assert "python -m benchmarks call" in claims
    assert "python -m benchmarks tree" in claims
