"""Trees whose leaves are distributed over processes go into files whole and come back in parts."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from parallax import Module, Parameter, bridge, io, tree
from tests.meshes import ranks, run, spread, whole

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


class Pair(Module):
    one: Parameter
    two: Parameter


def pair(start: float = 0.0) -> Any:
    return Pair(torch.arange(start, start + 18.0).view(6, 3), torch.arange(start, start + 4.0))


def sharded(mesh: Any, module: Any, *placements: Any) -> Any:
    return tree.map(lambda leaf: spread(leaf, mesh, *placements), module)


# -- values by name -------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(4,), (2, 2)], ids=str)
@pytest.mark.parametrize("kind", ["plain", "cut alike", "cut otherwise", "on another mesh"])
def test_a_leaf_keeps_its_placement_whatever_its_value_has(
    kind: str, sizes: tuple[int, ...]
) -> None:
    cut = (Shard(0), Replicate())[: len(sizes)]
    other = (Replicate(), Shard(0))[-len(sizes) :]
    with ranks(*sizes) as mesh:
        values: Any = bridge.state_dict(pair(5))
        if kind != "plain":
            on = init_device_mesh("cpu", (1, 4)) if kind == "on another mesh" else mesh
            how = (Replicate(), Shard(0)) if kind == "on another mesh" else other
            how = cut if kind == "cut alike" else how
            values = bridge.state_dict(sharded(on, pair(5), *how))
        model = sharded(mesh, pair(), *cut)
        found = bridge.load_state_dict(model, values)
        for leaf, old, expected in zip(*map(tree.leaves, (found, model, pair(5))), strict=True):
            assert (leaf.device_mesh, leaf.placements) == (mesh, cut)
            assert torch.equal(whole(leaf), expected)
            assert not torch.equal(whole(old), expected)
        assert type(bridge.load_state_dict(model, values, assign=True).one) is type(values["one"])


def test_plain_leaves_get_whole_values() -> None:
    with ranks(4) as mesh:
        found = bridge.load_state_dict(pair(), bridge.state_dict(sharded(mesh, pair(5), Shard(0))))
        assert not any(isinstance(leaf, DTensor) for leaf in tree.leaves(found))
        for leaf, expected in zip(tree.leaves(found), tree.leaves(pair(5)), strict=True):
            assert torch.equal(whole(leaf), expected)


def test_a_file_is_read_into_parts(tmp_path: Path) -> None:
    io.save(pair(5), tmp_path / "it.pt")
    with ranks(4) as mesh:
        found = io.load(tmp_path / "it.pt", like=sharded(mesh, pair(), Shard(0)))
        assert found.one.placements == (Shard(0),)
        assert torch.equal(whole(found.one), pair(5).one)


def test_one_file_of_parts_is_refused_by_name(tmp_path: Path) -> None:
    with ranks(4) as mesh:
        model = sharded(mesh, pair(), Shard(0))
        said = r"model\.one is a DTensor, \(Shard\(dim=0\),\) over 4 process.*io\.save_distributed"
        for name in ("it.pt", "it.safetensors"):
            with pytest.raises(TypeError, match=said):
                io.save({"model": model}, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# -- directories ----------------------------------------------------------------------------------


def _load_one_leaf_by_two_names(mesh: Any) -> None:
    leaf = torch.arange(18.0).view(6, 3)
    cut = spread(leaf, mesh, Shard(0))
    other = leaf.clone()
    other[5] = 0  # the part of one process
    for values in ({"one": cut, "two": leaf}, {"one": leaf, "two": cut}):
        found = bridge.load_state_dict(Pair(cut, cut), values)
        assert found.one is found.two
        for differs in ({"two": other}, {"two": spread(other, mesh, Shard(0))}):
            with pytest.raises(RuntimeError, match=r"are one tied tensor.*values differ"):
                bridge.load_state_dict(Pair(cut, cut), values | differs)


def _save_and_cut_again(rank: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (2,))
    io.save_distributed(sharded(mesh, pair(5), Shard(0)), f"{folder}/two")
    for like in (sharded(mesh, pair(), Replicate()), sharded(mesh, pair(), Shard(0))):
        for source, start in (("two", 5), ("one", 7)):
            for where in (like, tree.to(like, "meta")):
                found = io.load_distributed(f"{folder}/{source}", like=where)
                assert found.one.placements == like.one.placements
                assert found.one.to_local().shape == like.one.to_local().shape
                for leaf, expected in zip(*map(tree.leaves, (found, pair(start))), strict=True):
                    assert torch.equal(leaf.full_tensor(), expected)
    _load_one_leaf_by_two_names(mesh)
    cut = bridge.load_state_dict(sharded(mesh, pair(), Shard(0)), bridge.state_dict(pair(5)))
    assert cut.one.to_local().untyped_storage().nbytes() == 3 * 3 * 4  # the rest is not held
    with pytest.raises(RuntimeError, match="size mismatch for one"):
        io.load_distributed(f"{folder}/two", like=Pair(torch.ones(5, 3), torch.ones(4)))


def test_a_directory_is_cut_again_for_any_number_of_processes(tmp_path: Path) -> None:
    io.save_distributed(pair(7), tmp_path / "one")
    run(_save_and_cut_again, tmp_path, 2)
    assert tree.equal(io.load_distributed(tmp_path / "two", like=pair()), pair(5))


def test_a_directory_that_is_saved_into_again_holds_the_last_alone(tmp_path: Path) -> None:
    for start in range(3):
        io.save_distributed(pair(start), tmp_path)
        (tmp_path / "mine").touch()
        (tmp_path / "__0_0.distcp").touch()  # as earlier releases and torch call their data
    io.save_distributed(pair(9), tmp_path)
    assert tree.equal(io.load_distributed(tmp_path, like=pair()), pair(9))
    data = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in data) == [".metadata", "__0_0.distcp", "mine"]


def test_a_directory_that_cannot_be_written_keeps_what_it_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io.save_distributed(pair(1), tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"could not be written: .*No space.*before is intact"):
            io.save_distributed(pair(2), tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert tree.equal(io.load_distributed(tmp_path, like=pair()), pair(1))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_that_is_killed_while_saving_leaves_one_checkpoint(tmp_path: Path) -> None:
    io.save_distributed(pair(0), tmp_path)
    chance = random.Random(0)
    seen = set()
    for turn in range(12):
        child = os.fork()
        if child == 0:  # saves until it is killed, and returns to no test
            try:
                for k in range(10_000):
                    io.save_distributed(pair(1 + 100_000 * turn + k), tmp_path)
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.02, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = io.load_distributed(tmp_path, like=pair())
        start = float(found.one[0, 0])
        assert tree.equal(found, pair(start))
        seen.add(start)
    assert len(seen) > 1
