"""What importing the package loads, and what it leaves for later."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import parallax

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


# Each row may import what is in it and in the rows before.
ORDER = (
    ("_compat", "_errors"),
    ("core",),
    ("tree", "random", "effects"),
    ("func", "compiler", "debug"),
    ("optim", "bridge", "io", "distributed"),
    ("nn",),
    ("examples",),
)
# A class must name its methods; the others import when a file or a tree of theirs needs it.
UPWARDS = {
    ("core/module.py", "random"),
    ("core/module.py", "effects"),
    ("core/module.py", "tree"),
    ("core/registry.py", "random"),
    ("core/registry.py", "tree"),
    ("core/entries.py", "distributed"),
    ("bridge/mirrors.py", "nn"),
}


def imported(node: ast.AST) -> Iterator[str]:
    """The rooms that a statement imports from."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
        package, _, rest = name.partition(".")
        if package == "parallax" and rest:
            yield rest.partition(".")[0]


def for_checkers(tree: ast.AST) -> set[ast.AST]:
    """What only type checkers run."""
    guarded = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    return {below for node in guarded for part in node.body for below in ast.walk(part)}


def test_rooms_import_downwards_only() -> None:
    rank = {room: k for k, rooms in enumerate(ORDER) for room in rooms}
    package = Path(parallax.__file__).parent
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert folders == set(rank)
    found = set()
    for path in [path for room in rank for path in (package / room).rglob("*.py")]:
        here = path.relative_to(package)
        tree = ast.parse(path.read_text("utf-8"))
        skipped = for_checkers(tree)
        rooms = {room for node in ast.walk(tree) if node not in skipped for room in imported(node)}
        above = {room for room in rooms & set(rank) if rank[room] > rank[here.parts[0]]}
        found |= {(here.as_posix(), room) for room in above}
    assert found == UPWARDS
