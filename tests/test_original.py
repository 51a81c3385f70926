"""The example this project was created from runs as it was written, and keeps running."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import tree

EXAMPLE = Path(__file__).with_name("original.txt").read_text()
HEAD, LOOP = EXAMPLE.split("for i in range(10):")
PRINTED = """\
BinaryNetwork(
  (dense1): Dense(5, 10) (uninitialized)
  (dense2): Dense(10, 10) (uninitialized)
  (dense3): Dense(10, 1) (uninitialized)
  (dropout): Dropout(rate=0.2)
)
BinaryNetwork(
  (dense1): Dense(5, 10)
  (dense2): Dense(10, 10)
  (dense3): Dense(10, 1)
  (dropout): Dropout(rate=0.2)
)
"""


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    """The example draws from the global RNG and sets it; the other tests never notice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def run(source: str, namespace: dict[str, Any]) -> dict[str, Any]:
    exec(compile(source, "original.txt", "exec"), namespace)
    return namespace


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A module that can be imported, as a script's names can: pickle looks classes up in it."""
    module = types.ModuleType("original_example")
    monkeypatch.setitem(sys.modules, "original_example", module)
    return vars(module)


def steps(n: int) -> str:
    return f"for i in range({n}):{LOOP}"


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(found), Tensor) for found in gc.get_objects())


def test_the_example_runs_and_prints_both_forms(
    space: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(EXAMPLE, space)
    assert capsys.readouterr().out == PRINTED


def test_one_step_equals_the_same_step_on_plain_tensors(space: dict[str, Any]) -> None:
    before = run(HEAD, space)["layer"]
    run(steps(1), space)
    weights = {
        path: leaf.detach().clone().requires_grad_()
        for path, leaf in tree.named_leaves(before).items()
    }

    def dense(name: str, x: Tensor) -> Any:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    # The example's loop left the tree it computed with as nothing but its random state.
    layer = before.reset(space["rng"], mode="train")
    torch.random.set_rng_state(layer.dropout.rng)
    x = torch.nn.functional.dropout(torch.tanh(dense("dense1", torch.zeros(5))), p=0.2)
    x = torch.tanh(dense("dense2", torch.tanh(dense("dense2", x))))
    out: Any = torch.sigmoid(dense("dense3", torch.tanh(x)))
    out.backward()

    assert list(tree.named_leaves(space["grad"])) == list(weights)
    for path, weight in weights.items():
        assert weight.grad is not None
        torch.testing.assert_close(tree.named_leaves(space["grad"])[path], weight.grad)
        torch.testing.assert_close(
            tree.named_leaves(space["layer"])[path], (weight + weight.grad).detach()
        )


@pytest.mark.usefixtures("small_heap")
def test_a_thousand_steps_hold_memory_flat_and_leave_no_graph(space: dict[str, Any]) -> None:
    run(HEAD, space)
    run(steps(50), space)  # caches fill once
    tensors = live_tensors()
    tracemalloc.start()
    try:
        run(steps(50), space)
        gc.collect()
        early = tracemalloc.get_traced_memory()[0]
        run(steps(900), space)
        gc.collect()
        late = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert live_tensors() == tensors
    assert late - early < 10_000  # bytes: what a leak of one small object per step would pass
    for leaf in tree.leaves(space["layer"]):
        assert leaf.grad_fn is None
        assert leaf.grad is None


def test_what_the_example_leaves_can_be_copied_and_saved(space: dict[str, Any]) -> None:
    layer = run(EXAMPLE, space)["layer"]
    deep = copy.deepcopy(layer)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for other in (deep, saved, pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert type(other) is type(layer)
        assert tree.structure(other) == tree.structure(layer)
        assert other.mode == "train"
        for ours, theirs in zip(tree.leaves(layer), tree.leaves(other), strict=True):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(tree.leaves(layer), tree.leaves(deep), strict=True):
        assert ours.data_ptr() != theirs.data_ptr()
