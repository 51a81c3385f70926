"""What importing the package loads, and what it leaves for later."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

LATER = ("torch._dynamo", "torch._inductor", "sympy", "rich", "safetensors", "tqdm", "matplotlib")
ROOMS = ("", ".nn", ".func", ".optim", ".bridge", ".io", ".debug")


@pytest.fixture(scope="module")
def added() -> dict[str, list[str]]:
    """The modules that each room adds to those before it, in a process that has torch alone."""
    code = (
        "import json, sys, torch\n"
        "before, added = set(sys.modules), {}\n"
        "import parallax\n"
        f"for room in {ROOMS}:\n"
        "    eval('parallax' + room)\n"
        "    added[room] = sorted(set(sys.modules) - before)\n"
        "    before = set(sys.modules)\n"
        "print(json.dumps(added))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_an_import_loads_nothing_that_takes_long(room: str, added: dict[str, list[str]]) -> None:
    assert not set(LATER) & set(added[room])


def test_rooms_are_loaded_when_they_are_first_asked_for(added: dict[str, list[str]]) -> None:
    assert "parallax" in added[""]
    assert "parallax.nn" not in added[""]
    assert "parallax.nn" in added[".nn"]


PUBLIC = ("tree", "func", "random", "effects", "optim", "optim.schedules", "bridge", "io", "nn")


@pytest.mark.parametrize("room", ["", *PUBLIC])
def test_dir_shows_the_public_names_and_nothing_else(room: str) -> None:
    module = importlib.import_module(f"parallax.{room}".rstrip("."))
    assert dir(module) == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)
