"""torch.distributed.checkpoint holds a module's leaves."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint

from parallax import bridge, io, tree

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
    with pytest.raises(TypeError, match=r"expected a parallax.Module"):
        io.load_distributed(tmp_path / "it", like=nn.Linear(1, 1))
