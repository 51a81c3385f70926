"""torch.distributed.checkpoint holds a module's leaves."""

from __future__ import annotations

import functools
import os
import pickle
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint

from parallax import UninitializedError, bridge, io, optim, random, tree
from parallax import nn as layers
from parallax.io import background
from parallax.io.directory import _Unpickler
from tests.meshes import run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


def module() -> object:
    return bridge.lift(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))


def test_round_trip(tmp_path: Path) -> None:
    saved = module()
    io.save_distributed(saved, tmp_path / "it")
    like = module()
    before = tree.map(torch.clone, like)
    assert tree.equal(io.load_distributed(tmp_path / "it", like=like), saved)
    assert tree.equal(like, before)
    assert tree.equal(io.load_distributed(tmp_path / "it", like=tree.to(like, "meta")), saved)


def test_torch_reads_it(tmp_path: Path) -> None:
    saved = nn.Linear(2, 3)
    io.save_distributed(bridge.lift(saved), tmp_path / "it")
    state = nn.Linear(2, 3).state_dict()
    checkpoint.load(state, checkpoint_id=str(tmp_path / "it"), no_dist=True)  # type: ignore[attr-defined]  # torch exports it
    assert torch.equal(state["weight"], saved.weight)


def test_dtypes_are_converted_only_on_request(tmp_path: Path) -> None:
    saved = bridge.lift(nn.Linear(2, 3).double())
    io.save_distributed(saved, tmp_path / "it")
    like = bridge.lift(nn.Linear(2, 3))
    with pytest.raises(RuntimeError, match=r"dtype mismatch for weight: torch.float64.*cast=True"):
        io.load_distributed(tmp_path / "it", like=like)
    found = io.load_distributed(tmp_path / "it", like=like, cast=True)
    assert torch.equal(found.weight, saved.weight.float())


def test_a_directory_that_torch_wrote(tmp_path: Path) -> None:
    saved = nn.Linear(2, 3)
    checkpoint.save(saved.state_dict(), checkpoint_id=str(tmp_path / "a"), no_dist=True)  # type: ignore[attr-defined]  # torch exports it
    found = io.load_distributed(tmp_path / "a", like=bridge.lift(nn.Linear(2, 3)))
    assert torch.equal(found.weight, saved.weight)
    more = {**saved.state_dict(), "step": 3}
    checkpoint.save(more, checkpoint_id=str(tmp_path / "b"), no_dist=True)  # type: ignore[attr-defined]  # torch exports it
    with pytest.raises(ValueError, match="holds 'step', which is not a tensor: unpickling"):
        io.load_distributed(tmp_path / "b", like=found)


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "damage", ["shorter metadata", "other metadata", "bomb", "shorter", "gone"]
)
def test_damaged_directories(damage: str, tmp_path: Path) -> None:
    io.save_distributed(module(), tmp_path)
    metadata, data = tmp_path / ".metadata", next(tmp_path.rglob("*.distcp"))
    if damage == "shorter metadata":
        metadata.write_bytes(metadata.read_bytes()[:100])
    elif damage == "other metadata":
        metadata.write_bytes(pickle.dumps({}))
    elif damage == "bomb":
        metadata.write_bytes(pickle.dumps(Bomb(str(tmp_path / "ran"))))
    elif damage == "shorter":
        data.write_bytes(data.read_bytes()[:100])
    else:
        data.unlink()
    with pytest.raises(ValueError, match=r"is truncated or no checkpoint: .*Nothing was loaded"):
        io.load_distributed(tmp_path, like=module())
    assert not (tmp_path / "ran").exists()


def test_what_does_not_fit(tmp_path: Path) -> None:
    io.save_distributed(module(), tmp_path / "it")
    other = bridge.lift(nn.Sequential(nn.Linear(2, 4)))
    with pytest.raises(
        RuntimeError, match=r"Unexpected key.*1.weight(.|\n)*size mismatch for 0.weight"
    ):
        io.load_distributed(tmp_path / "it", like=other)
    with pytest.raises(FileNotFoundError, match="holds no distributed checkpoint"):
        io.load_distributed(tmp_path / "none", like=other)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file; name a directory"):
        io.save_distributed(module(), tmp_path / "file")
    with pytest.raises(TypeError, match=r"takes a parallax.Module, got Linear. Lift"):
        io.load_distributed(tmp_path / "it", like=nn.Linear(1, 1))


# -- any tree, and in the background --------------------------------------------------------------


def test_any_tree(tmp_path: Path) -> None:
    model = layers.MLP([2, 3, 1]).initialize(0)
    state = optim.AdamW(lr=0.1).init(model)
    model, state = optim.AdamW(lr=0.1).step(model, model, state)
    held = {
        "model": model,
        "state": state,
        "step": 3,
        "key": random.key(5),
        "parts": [torch.ones(2)],
    }
    io.save_distributed(held, tmp_path)
    fresh = layers.MLP([2, 3, 1]).initialize(1)
    like: Any = {
        "model": fresh, "state": optim.AdamW(lr=0.1).init(fresh), "step": 0, "key": random.key(0),
        "parts": [torch.zeros(2)],
    }  # fmt: skip
    found = io.load_distributed(tmp_path, like=like)
    assert found["step"] == 3 and like["step"] == 0
    assert tree.equal(found, held)
    with pytest.raises(RuntimeError, match=r"Missing key.*more(.|\n)*Unexpected key.*parts.0"):
        io.load_distributed(tmp_path, like={**held, "parts": [], "more": torch.ones(1)})
    with pytest.raises(ValueError, match="step is 3 in the checkpoint, where this tree has a str"):
        io.load_distributed(tmp_path, like={**held, "step": "0"})
    with pytest.raises(UninitializedError, match=r"model.layers.0.weight is on the meta device"):
        io.save_distributed(tree.to(held, "meta"), tmp_path)
    with pytest.raises(TypeError, match=r"got .*function.* at 'act'"):
        io.save_distributed({**held, "act": torch.relu}, tmp_path)


def test_what_is_saved_in_the_background_is_what_was_there(tmp_path: Path) -> None:
    leaf = torch.arange(4.0)
    waiting = threading.Event()

    def write() -> None:  # a checkpoint that takes long
        waiting.wait(30)

    background.start(write)
    saving = io.save_distributed({"leaf": leaf, "step": 1}, tmp_path / "one", blocking=False)
    leaf.zero_()  # as a step that was given the memory does
    later = io.save_distributed({"leaf": leaf, "step": 2}, tmp_path / "one", blocking=False)
    other = io.save_distributed({"leaf": leaf + 5, "step": 3}, tmp_path / "two", blocking=False)
    assert not saving.done() and not (tmp_path / "one").exists()
    waiting.set()
    like: Any = {"leaf": torch.empty(4), "step": 0}
    # What is read, is read when all of it is written.
    assert tree.equal(
        io.load_distributed(tmp_path / "two", like=like), {"leaf": leaf + 5, "step": 3}
    )
    assert saving.done() and later.done() and other.done()
    assert tree.equal(io.load_distributed(tmp_path / "one", like=like), {"leaf": leaf, "step": 2})
    first = io.save_distributed({"leaf": torch.arange(4.0), "step": 1}, tmp_path, blocking=False)
    assert first.result() is None
    assert io.load_distributed(tmp_path, like=like)["leaf"].tolist() == [0, 1, 2, 3]


def test_what_goes_wrong_in_the_background_is_told_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io.save_distributed(module(), tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        saving = io.save_distributed(module(), tmp_path, blocking=False)
        with pytest.raises(OSError, match=r"could not be written: .*No space.*before is intact"):
            saving.result()
    assert sorted(tmp_path.rglob("*")) == before
    again = io.save_distributed(module(), tmp_path, blocking=False)
    assert again.result() is None
    with pytest.raises(TypeError, match=r"save_distributed\(blocking=\): expected a bool"):
        io.save_distributed(module(), tmp_path, blocking="no")  # type: ignore[call-overload]  # tested


def test_members_of_enumerations_are_read_as_python_before_3_11_4_pickles_them() -> None:
    """By ``getattr``, which reads nothing else here."""

    def read(cls: str, name: str) -> Any:
        code = f"cbuiltins\ngetattr\n(c{cls}\nV{name}\ntR.".encode()
        return _Unpickler(BytesIO(code)).load()

    metadata = "torch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING"
    assert read(metadata, "TORCH_CONTIGUOUS_FORMAT").name == "TORCH_CONTIGUOUS_FORMAT"
    with pytest.raises(pickle.UnpicklingError, match=r"reads 'count' of .*could run any code"):
        read("torch\nSize", "count")


# -- several processes ----------------------------------------------------------------------------


def _savings_differ(save: Callable[[Any, str], Any], first: bool, folder: str) -> None:
    path, model = f"{folder}/it", layers.Linear(2, 3).initialize(0)
    # One fails by itself: it says why, and the other is told.
    bad: Any = model if first else layers.Linear(2, 3)
    said = "in process 1 it raised UninitializedError: Linear.weight is not init"
    with pytest.raises(
        ValueError if first else UninitializedError,
        match=said if first else r"Linear.weight is not initialized",
    ):
        save(bad, path)
    with pytest.raises(
        ValueError,
        match=r"io.save_distributed: the processes differ. In process 0 of 2 the path is .*/it; in "
        r"process 1 the path is .*/other. Give every process the same path and tree",
    ):
        save(model, path if first else f"{folder}/other")
    said = r"In process 0 of 2 the tree is Linear\(in_features=2, .*; in process 1 the tree is MLP"
    with pytest.raises(ValueError, match=said):
        save(model if first else layers.MLP([2, 3]).initialize(0), path)
    wide: Any = layers.Linear(2, 3).initialize(0, dtype=torch.float64)
    said = r"0 of 2 weight is torch.float32\[3, 2\] \(plain\); in process 1 weight is torch.float64"
    with pytest.raises(ValueError, match=said):
        save(model if first else wide, path)


def _differ(rank: int, folder: str) -> None:
    first, model, path = rank == 0, layers.Linear(2, 3).initialize(0), f"{folder}/it"
    like: Any = {"model": model, "step": 0}
    # The numbers are those of the first process, whoever writes which tensor.
    for steps in ((1, 2), (9, 10), (10, 9)):
        io.save_distributed({"model": model, "step": steps[rank]}, path)
        assert io.load_distributed(path, like=like)["step"] == steps[0]
    _savings_differ(io.save_distributed, first, folder)
    _savings_differ(functools.partial(io.save_distributed, blocking=False), first, folder)
    with pytest.raises(ValueError, match="called with blocking=True; in process 1 it is called"):
        io.save_distributed(model, path, blocking=first)
    # Nothing was written, and no process waits for another.
    assert os.listdir(folder).count("other") == 0
    assert io.load_distributed(path, like=like)["step"] == 10
    said = r"0 of 2 the path is .*; in process 1 it raised FileNotFoundError: .*none holds no"
    with pytest.raises(
        ValueError if first else FileNotFoundError,
        match=said if first else "none holds no distributed checkpoint",
    ):
        io.load_distributed(path if first else f"{folder}/none", like=like)
    said = r"0 of 2 the tree fits the checkpoint; in process 1 it raised RuntimeError: Error"
    with pytest.raises(
        ValueError if first else RuntimeError,
        match=said if first else r"Unexpected key.*model.weight",
    ):
        io.load_distributed(path, like=like if first else {"step": 0})
    said = "in process 1 it raised ValueError: step is 10 in" if first else "^step is 10 in the"
    with pytest.raises(ValueError, match=said):
        io.load_distributed(path, like={**like, "step": 0 if first else "0"})
    # The checkpoint of another model: the same error in each.
    with pytest.raises(RuntimeError, match=r"^Error(.|\n)*size mismatch for model.weight"):
        io.load_distributed(path, like={**like, "model": layers.Linear(2, 4).initialize(0)})


def test_processes_that_differ_are_told_and_none_waits(tmp_path: Path) -> None:
    run(_differ, tmp_path, 2)
