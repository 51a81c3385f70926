"""Names of other libraries get an error with a line to write, in each room and in imports."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Buffer, Module, Parameter, func, io, nn, optim, random, tree
from parallax._errors.absent import ANYWHERE, no_such_name
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
        found = getattr(holder, name, None)
        if isinstance(found, ModuleType):
            with pytest.raises(TypeError, match=rf"\.{name} is a file\. Write: "):
                getattr(holder, name)(0.1)
            continue
        assert found is None, name
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
        (func, "jacobian", "func.jacrev(fn), or func.jacobian_matrix(fn) as one matrix"),
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
        (optim, "sgd", "optim.SGD(...)"),
        (optim, "lookahead", "optim.chain(opt, optim.Lookahead(5, 0.5))"),
        (optim, "clip", "optim.ClipValue(1.0), in optim.chain"),
        (nn, "linear", "F.linear(x), with torch.nn.functional as F, or the layer nn.Linear"),
        (nn, "stack", "nn.Stack(...)"),
        (tree, "freeze", "tree.select(model, path).freeze()"),
    ],
)
def test_a_file_is_found_and_says_what_to_write_when_it_is_called(
    room: ModuleType, name: str, line: str
) -> None:
    path = f"{room.__name__}.{name}"
    file: Any = getattr(room, name)
    assert file is importlib.import_module(path)
    assert file is sys.modules[path] and inspect.getsourcefile(file)
    with pytest.raises(TypeError, match=rf"^{path} is a file\. Write: {re.escape(line)}$"):
        getattr(room, name)(0.1)


def test_what_is_public_stays_a_plain_module() -> None:
    assert type(optim.schedules) is ModuleType and not callable(optim.schedules)


def test_an_import_says_it_too_and_files_are_imported_as_before() -> None:
    for statement, line in (
        ("from parallax.nn import Linear, ModuleList", "'layers: Sequence[Module]'"),
        ("from parallax import filter_jit", "parallax.compile(fn)"),
    ):
        with pytest.raises(ImportError, match=re.escape(line)):
            exec(statement, {})
    with pytest.raises(ImportError, match="cannot import name 'Linaer'"):
        exec("from parallax.nn import Linaer", {})
    names: dict[str, Any] = {}
    exec("from parallax.optim.sgd import SGD\nfrom parallax.optim import plan, sgd", names)
    assert names["SGD"] is optim.SGD and names["plan"] is sys.modules["parallax.optim.plan"]
    assert names["sgd"] is sys.modules["parallax.optim.sgd"] and names["sgd"].SGD is optim.SGD


def test_a_slip_gets_the_usual_error() -> None:
    for room in (parallax, *[getattr(parallax, room) for room in ROOMS]):
        with pytest.raises(AttributeError, match=rf"module '{room.__name__}' has no .*'Gard'$"):
            _ = room.Gard
    # Nor is there a line for what tools ask for, or for names that another room's table has.
    for room, name in ((nn, "__wrapped__"), (nn, "_relu"), (optim, "_sgd"), (io, "relu")):
        with pytest.raises(AttributeError, match=rf"has no attribute '{name}'$"):
            getattr(room, name)
    assert str(no_such_name("parallax.nn", "_jit")).endswith("'_jit'")


# What stands for "..." in a line.
FILLED = {"device": "'cpu'", "dtype": "torch.float64", "lr": "1e-3", "mean": "1"}
# What one process cannot run alone, or only in a forward, and what is of a user's own classes.
OTHERS = ("dist.", "plan.apply", "self.emit", "self.sow", "breakpoint()", "loss.backward()",
          "model.grad()", "register(cls", "model.replace(field")  # fmt: skip
# Where a remedy ends and words begin, or another remedy.
BORDERS = (
    r"; (?:then )?|, (?:or|and|then|in|with|where|from|as in|as the|to|after|on|called)\b ?"
    r"|, (?:which|for|of|given)\b ?"
    r"| (?:or|and) (?=tree\.|optim\.|model\.|f')| for (?!x in)| to see|,$"
)


def segments(text: str) -> list[str]:
    """The parts of a remedy that are code with a call in it."""
    found = []
    for part in re.split(BORDERS, text):
        line = re.sub(r"(\w+)=\.\.\.", lambda m: f"{m[1]}={FILLED.get(m[1], '...')}", part)
        line = line.removeprefix("for x in loader: ").removeprefix("numbers, ").strip()
        if "(" not in line or "..." in line or any(name in line for name in OTHERS):
            continue
        try:
            compile(line, "", "exec")
        except SyntaxError:  # words
            continue
        found.append(line)
    return found


class Model(Module):
    weight: Parameter
    mean: Buffer
    out: nn.Linear
    count: Buffer

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
        self.mean = torch.tensor([-1.0, 1.0])
        self.out = nn.Linear(2, 2).initialize(0)
        self.count = torch.tensor(-3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.out(x @ self.weight - self.mean))


def loss(model: Model, x: Tensor) -> Tensor:
    return model(x).square().sum()


def scope(directory: Path, line: str) -> dict[str, Any]:
    """What the names in the lines are."""
    model, x, one = Model(), torch.tensor([[0.5, -1.0], [1.0, 2.0]]), torch.rand(3)
    held: Any = nn.Sequential(nn.WeightNorm(nn.Linear(2, 2))).initialize(0)
    grads = func.grad(loss)(model, x)
    opt: Any = optim.AdamWScheduleFree() if "averaged" in line else optim.Adam()
    names: dict[str, Any] = {
        **{name: getattr(parallax, name) for name in ROOMS}, "parallax": parallax, "torch": torch,
        "F": torch.nn.functional, "functools": functools, "distributions": torch.distributions,
        "Parameter": Parameter, "Buffer": Buffer, "field": parallax.field, "model": model, "x": x,
        "module": torch.nn.Linear(2, 2), "layer": nn.Linear(2, 2), "models": [model, model],
        "loss": loss, "grads": grads, "first": grads, "second": grads, "opt": opt, "args": (x,),
        "state": opt.init(model), "path": "weight", "fn": lambda *given: given[-1], "seed": 0,
        "new": torch.ones(2, 2), "key": random.key(0), "rng": 0, "device": "cpu", "shape": (3,),
        "n": 3, "d": 2, "p": one, "mean": torch.zeros(2), "cov": torch.eye(2), "y": one,
        "target": one, "logits": torch.randn(3, 4), "targets": torch.rand(3, 4), "value": 1.5,
        "index": 0, "condition": torch.tensor(True), "schedule": lambda step: 0.1, "n_in": 2,
        "n_out": 2, "number": 4, "width": 4, "heads": 2, "directory": directory, "lower": 0,
        "mapping": parallax.bridge.state_dict(model), "cls": torch.optim.SGD, "upper": 2,
        "step": lambda carry, x: (carry, x), "start": x, "xs": x, "init": x, "tensor": x,
        "solver": lambda *_: x, "gmres": lambda *_: x, "pattern": "a b -> b a",
    }  # fmt: skip
    cases: dict[str, dict[str, Any]] = {
        "io.": {"path": directory / "model.safetensors"},
        "initialize(": {"model": nn.Linear(2, 2)},
        "shape, init": {"init": torch.nn.init.ones_},
        "lifted_type": {"cls": torch.nn.Linear},
        "lower(tree)": {"tree": model},
        "[index]": {"model": tree.stack([model, model])},
        "unstack": {"model": tree.stack([model, model])},
        "nn.WeightNorm)": {"model": held},
        "func.argmin": {"loss": lambda x: (x - 1).square().sum()},
        "insert_before": {"model": held, "path": "layers.0"},
    }
    for part, other in cases.items():
        names |= other if part in line else {}
    if "io.load" in line:
        io.save(model, names["path"])
    return names


LINES = sorted(
    {line for table in tables().values() for text in table.values() for line in segments(text)}
)


@pytest.mark.parametrize("line", LINES)
def test_what_is_to_be_written_runs(line: str, tmp_path: Path) -> None:
    with torch.autograd.set_detect_anomaly(False):  # one of the lines turns it on for good
        exec(line, scope(tmp_path, line))


def test_nearly_every_line_is_run() -> None:
    assert len(LINES) > 150 and "tree.leaves(tree.partition(model, 'parameter')[0])" in LINES


def lines_for(room: ModuleType, name: str, **names: Any) -> Any:
    """The value of the first expression that is to be written instead of a name."""
    line = segments(str(no_such_name(room.__name__, name)).partition(". Write: ")[2])[0]
    return eval(line, scope(Path(), line) | names)


def test_what_is_to_be_written_does_what_the_name_does_elsewhere() -> None:
    model = Model()
    held = [model.weight, model.out.weight, model.out.bias]
    for room in (parallax, tree):
        found = lines_for(room, "parameters", model=model)
        assert [id(leaf) for leaf in found] == [id(leaf) for leaf in held]
    clamped = lines_for(optim, "keep_params_nonnegative", model=model)
    assert torch.equal(clamped.weight, torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
    assert clamped.mean is model.mean and clamped.count is model.count  # buffers may be negative
    y, target = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])
    assert torch.equal(lines_for(optim, "l2_loss", y=y, target=target), torch.tensor([0.5, 2.0]))
    assert lines_for(optim, "squared_error", y=y, target=target).tolist() == [1.0, 4.0]
    logits, chances = torch.randn(3, 4), torch.rand(3, 4).softmax(1)
    one_each = -(chances * logits.log_softmax(1)).sum(1)
    found = lines_for(optim, "softmax_cross_entropy", logits=logits, targets=chances)
    torch.testing.assert_close(found, one_each)
    labels, name = torch.tensor([0, 3, 1]), "softmax_cross_entropy_with_integer_labels"
    one_each = -logits.log_softmax(1)[range(3), labels]
    torch.testing.assert_close(lines_for(optim, name, logits=logits, targets=labels), one_each)
    found = lines_for(optim, "sigmoid_binary_cross_entropy", logits=logits, targets=chances)
    each = -(chances * logits.sigmoid().log() + (1 - chances) * (1 - logits.sigmoid()).log())
    torch.testing.assert_close(found, each)
    normed = nn.WeightNorm(nn.Linear(2, 3)).initialize(0)
    plain = lines_for(nn, "remove_weight_norm", model=nn.Sequential(normed))
    assert type(plain[0]) is nn.Linear
    assert torch.equal(plain(torch.eye(2)), normed(torch.eye(2)))
    signs = lines_for(random, "rademacher", shape=(100,))
    assert signs.shape == (100,) and set(signs.tolist()) == {-1, 1}
    noise = lines_for(tree, "random_like")
    assert noise.weight.shape == (2, 2) and noise.count is None
    assert not torch.equal(noise.weight, noise.out.weight)  # each leaf has a key of its own
