"""Damaged and foreign files are refused, and no code in them runs."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from parallax import bridge, io, optim
from tests.io.test_files import FORMATS, Scale, pair, safetensors_torch


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("keep", [0, 4, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, name: str, keep: float) -> None:
    io.save(pair(), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(ValueError, match=r"model\.\w+ (is truncated or no checkpoint|holds more)"):
        io.load(tmp_path / name, like=pair())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "data", [b"hello", b"\x00" * 100, b"PK\x03\x04" + b"\x00" * 50, b"\xff" * 64]
)
def test_foreign_files(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(
        ValueError, match=r"(is truncated or no checkpoint|holds more than tensors)"
    ):
        io.load(tmp_path / name, like=pair())


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_loaded_or_refused_and_nothing_else(tmp_path: Path, name: str) -> None:
    saved: Any = optim.Adam().init(bridge.lift(nn.Linear(2, 2)))
    io.save(saved, tmp_path / name)
    data, rng = (tmp_path / name).read_bytes(), random.Random(0)
    messages = []
    for _ in range(150):
        damaged, at = bytearray(data), rng.randrange(len(data))
        if rng.random() < 0.5:
            damaged[at] = rng.randrange(256)
        else:
            del damaged[at : at + rng.randrange(1, 20)]
        (tmp_path / f"damaged-{name}").write_bytes(damaged)
        try:
            io.load(tmp_path / f"damaged-{name}", like=saved)
        except (RuntimeError, ValueError) as error:
            messages.append(str(error))
    assert len(messages) > 50 and all(f"damaged-{name}" in message for message in messages)


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_bomb_is_refused(tmp_path: Path, zipped: bool) -> None:
    bomb = {"first.by": Bomb(str(tmp_path / "exploded"))}
    torch.save(bomb, tmp_path / "bomb.pt", _use_new_zipfile_serialization=zipped)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(bomb, protocol=2))
    for name in ("bomb.pt", "raw.pt"):
        with pytest.raises(ValueError, match=r"holds more than tensors.*could run any code"):
            io.load(tmp_path / name, like=pair())
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_holds_something_else(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, no tensors by name"):
        io.load(tmp_path / "list.pt", like=pair())
    torch.save({"epoch": 3, "model": {}}, tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"keys \['epoch', 'model'\].*Take the part"):
        io.load(tmp_path / "whole.pt", like=pair())


NODES = {"nodes": [["", "Linear", {}]], "fingerprint": "a", "metadata": {}}


@pytest.mark.parametrize(
    "header",
    [3, "x", "{}", "[]", '{"version": 1}', torch.ones(1), '{"version": 2}']
    + [json.dumps({"version": 1, **NODES, **change})
       for change in ({"nodes": 3}, {"nodes": [1]}, {"nodes": [["", "Linear"]]}, {"metadata": 3},
                      {"fingerprint": None})],
)  # fmt: skip
def test_a_header_that_is_none(tmp_path: Path, header: Any) -> None:
    linear = bridge.lift(nn.Linear(1, 1))
    saved = {"parallax": header, "state_dict": bridge.state_dict(linear)}
    torch.save(saved, tmp_path / "m.pt")
    for reading in (lambda path: io.load(path, like=linear), io.read, io.metadata):
        with pytest.raises(ValueError, match=r"m\.pt is truncated or no checkpoint"):
            reading(tmp_path / "m.pt")


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "header",
    [
        DEEP,
        f'{{"version": 1, "metadata": {{"x": {DEEP}}}}}',
        f'{{"version": 1, "nodes": [["", "Linear", {{"x": {DEEP}}}]]}}',
        json.dumps({"version": 1, **NODES, "values": []}),
        json.dumps({"version": 1, **NODES, "nodes": [["", "Linear", {"x": []}]]}),
    ],
    ids=["whole", "metadata", "nodes", "values", "constants"],
)
@pytest.mark.parametrize("name", FORMATS)
def test_a_header_that_is_a_bomb(tmp_path: Path, header: str, name: str) -> None:
    linear = bridge.lift(nn.Linear(1, 1))
    if name.endswith(".pt"):
        torch.save({"parallax": header, "state_dict": bridge.state_dict(linear)}, tmp_path / name)
    else:
        safetensors_torch.save_file(
            bridge.state_dict(linear), tmp_path / name, {"parallax": header}
        )
    for reading in (lambda path: io.load(path, like=linear), io.read, io.metadata):
        with pytest.raises(ValueError, match=r"is truncated or no checkpoint"):
            reading(tmp_path / name)


def test_a_constant_that_is_a_bomb(tmp_path: Path) -> None:
    state: Any = optim.Adam().init(bridge.lift(nn.Linear(1, 1)))
    io.save(state, tmp_path / "it.pt")
    found = torch.load(tmp_path / "it.pt")
    header = json.loads(found["parallax"])
    header["nodes"][0][2]["clock_of"] = DEEP
    header["fingerprint"] = hashlib.sha256(json.dumps(header["nodes"]).encode()).hexdigest()
    torch.save({**found, "parallax": json.dumps(header)}, tmp_path / "it.pt")
    with pytest.raises(ValueError, match=r"is truncated or no checkpoint"):
        io.load(tmp_path / "it.pt", like=state)


def test_names_that_are_none(tmp_path: Path) -> None:
    torch.save({1: torch.ones(1)}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"keys \[1\], no tensors by name"):
        io.read(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "text", ['{"weight_map": 3}', '{"weight_map": {"by": 3}}', '{"weight_map": {"by": ""}}',
             '{"weight_map": {"by": "."}}', '{"weight_map": {"by": "x.pt"}}', "\xff", DEEP],
    ids=range(7),
)  # fmt: skip
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"no checkpoint|not beside it"):
        io.load(index, like=Scale(torch.ones(1)))
