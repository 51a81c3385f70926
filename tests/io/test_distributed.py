"""torch.distributed.checkpoint holds a module's leaves."""

from __future__ import annotations

from pathlib import Path

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
