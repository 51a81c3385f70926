"""Names of other libraries get an error with a line to write, in each room and in imports."""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType
from typing import Any

import pytest

import parallax
from parallax import Module, func, nn, optim, random, tree
from parallax.core.absent import ANYWHERE, no_such_name
from parallax.tree import Selection

ROOMS = ("func", "tree", "nn", "optim", "random", "effects", "io", "bridge", "debug")


def tables() -> dict[str, dict[str, str]]:
    found = {room: importlib.import_module(f"parallax.{room}.absent").INSTEAD for room in ROOMS}
    return {**found, "": ANYWHERE, "nn ": importlib.import_module("parallax.nn.absent").ELSEWHERE}


@pytest.mark.parametrize("room", tables())
def test_every_name_of_a_table_is_absent_and_says_what_to_write(room: str) -> None:
    table = tables()[room]
    holder: Any = getattr(parallax, room.strip()) if room else parallax
    for name in table:
        assert not hasattr(holder, name), name
        with pytest.raises(AttributeError, match=rf"no attribute '{name}'\. Write: "):
            getattr(holder, name)


@pytest.mark.parametrize("room", tables())
def test_what_is_to_be_written_exists(room: str) -> None:
    for text in tables()[room].values():
        line = re.sub(r"\btorch[.\w]*|\bdistributions\.\w+|'Coming from nn.Module'", "", text)
        for where, name in re.findall(rf"(?<![.\w])({'|'.join(ROOMS)})\.(\w+)", line):
            assert name in getattr(parallax, where).__all__, line
        for name in re.findall(r"schedules\.(\w+)", line):
            assert name in optim.schedules.__all__, line
        for name in re.findall(r"\bmodel\.(\w+)\(", line):
            assert callable(getattr(Module, name)), line
        for name in re.findall(r"select\(\w+, \w+\)\.(\w+)", line):
            assert callable(getattr(Selection, name)), line


@pytest.mark.parametrize(
    ("room", "name", "line"),
    [
        (parallax, "filter_grad", "func.grad(loss)"),
        (parallax, "filter_jvp", "func.jvp"),
        (parallax, "tree_map", "tree.map"),
        (parallax, "Linear", "nn.Linear"),
        (parallax, "apply_updates", "model, state = opt.step(model, grads, state)"),
        (tree, "tree_at", "tree.select(model, lambda m: m.out.weight).set(new)"),
        (tree, "state_dict", "bridge.state_dict"),
        (func, "stack", "tree.stack(models)"),
        (func, "jit", "parallax.compile(fn)"),
        (optim, "grad", "func.grad"),
        (nn, "relu", "F.relu(x), with torch.nn.functional as F, or the layer nn.ReLU"),
        (random, "randn", "random.normal(key, shape)"),
    ],
)
def test_a_name_of_another_room_or_library(room: ModuleType, name: str, line: str) -> None:
    with pytest.raises(AttributeError, match=rf"'{name}'\. Write: {re.escape(line)}$"):
        getattr(room, name)


@pytest.mark.parametrize(
    ("room", "name", "line"),
    [
        (optim, "sgd", "optim.SGD"),
        (optim, "lookahead", "optim.chain(opt, optim.Lookahead(5, 0.5))"),
        (optim, "clip", "optim.ClipValue(1.0)"),
        (nn, "linear", "F.linear(x)"),
        (nn, "stack", "nn.Stack"),
        (tree, "freeze", "tree.select(model, path).freeze()"),
    ],
)
def test_a_file_is_no_name_of_its_room(room: ModuleType, name: str, line: str) -> None:
    path = f"{room.__name__}.{name}"
    assert importlib.import_module(path).__name__ == path  # there is a file, and it is found
    with pytest.raises(AttributeError, match=rf"'{name}'\. Write: {re.escape(line)}"):
        getattr(room, name)


def test_an_import_says_it_too_and_files_are_imported_as_before() -> None:
    for statement, line in (
        ("from parallax.nn import Linear, ModuleList", "'layers: Sequence[Module]'"),
        ("from parallax import filter_jit", "parallax.compile(fn)"),
        ("from parallax.optim import sgd", "optim.SGD"),
    ):
        with pytest.raises(ImportError, match=re.escape(line)):
            exec(statement, {})
    with pytest.raises(ImportError, match="cannot import name 'Linaer'"):
        exec("from parallax.nn import Linaer", {})
    names: dict[str, Any] = {}
    exec("from parallax.optim.sgd import SGD\nfrom parallax.optim import plan", names)
    assert names["SGD"] is optim.SGD and names["plan"] is sys.modules["parallax.optim.plan"]


def test_a_slip_gets_the_usual_error() -> None:
    for room in (parallax, *[getattr(parallax, room) for room in ROOMS]):
        with pytest.raises(AttributeError, match=rf"module '{room.__name__}' has no .*'Gard'$"):
            _ = room.Gard
    assert str(no_such_name("parallax.nn", "__wrapped__")).endswith("'__wrapped__'")
