"""Loading into another structure: what is missing, unexpected, converted, and what is told."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import bridge, io, nn, optim, random, tree
from tests.io.test_files import FORMATS


def old() -> Any:
    """An encoder with its layers in one order, as it was saved."""
    layers = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    return {"encoder": layers.initialize(0), "step": 3}


def renamed(name: str, value: Tensor) -> tuple[str, Tensor] | None:
    return name.replace("encoder.", "body."), value


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_function_renames_and_reshapes_is_loaded(tmp_path: Path, name: str) -> None:
    io.save(old(), tmp_path / name)

    def convert(name: str, value: Tensor) -> tuple[str, Tensor] | None:
        if name == "encoder.1.bias":
            return None
        value = value.reshape(1, 1, *value.shape).mT if name == "encoder.1.weight" else value
        return name.replace("encoder.", "body.").replace("1.weight", "1.kernel"), value

    kernel = {"body": {"0": nn.Linear(2, 3), "1": {"kernel": torch.zeros(1, 1, 3, 4)}}, "step": 0}
    found: Any = io.load(tmp_path / name, like=kernel, convert=convert)
    before = old()["encoder"]
    assert tree.equal(found["body"]["0"], before[0])
    assert torch.equal(found["body"]["1"]["kernel"][0, 0], before[1].weight.T)
    assert found["step"] == 3

    told = io.report(tmp_path / name, like=kernel, convert=convert)
    assert told.fits and told.left_out == ("encoder.1.bias",)
    assert set(told.loaded) == {"body.0.weight", "body.0.bias", "body.1.kernel", "step"}
    assert told.renamed["encoder.1.weight"] == "body.1.kernel" and len(told.renamed) == 3
    assert told.misfits == {} and told.structure is None


def test_a_report_lists_what_strict_loading_refuses(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    io.save(old(), path)
    like = {
        "encoder": nn.Sequential(nn.Linear(2, 3, dtype=torch.float64), nn.Linear(3, 5)),
        "head": nn.Linear(4, 1, bias=False),
        "scale": torch.ones(2),
        "rate": 0.5,
    }
    told = io.report(path, like=like)
    assert not told.fits
    assert told.missing == ("head.weight", "scale", "rate")
    assert told.unexpected == ("step",)
    assert set(told.misfits) == {f"encoder.{k}.{p}" for k in (0, 1) for p in ("weight", "bias")}
    assert told.loaded == () and "encoder" in (told.structure or "")
    assert set(io.report(path, like=like, cast=True).misfits) == {
        "encoder.1.weight",
        "encoder.1.bias",
    }
    lines = repr(told)
    for part in (
        f"Report of {path}: 0 values fit",
        "missing in the file (3):\n    head.weight",
        "unexpected in the file (1):\n    step",
        "misfits (4):\n    dtype mismatch for encoder.0.weight: torch.float32 in checkpoint",
        "another structure: ",
    ):
        assert part in lines
    with pytest.raises(RuntimeError) as caught:
        io.load(path, like=like)
    for name in (*told.missing, *(each.partition(".")[2] for each in told.misfits)):
        assert name.removeprefix("head.") in str(caught.value)


def test_without_strict_what_is_missing_stays_and_what_fits_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    io.save(old(), path)
    like = {"body": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), "head": nn.Linear(4, 1)}
    initialized = {name: part.initialize(9) for name, part in like.items()}
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*weight"):
        io.load(path, like=initialized, convert=renamed)
    found: Any = io.load(path, like=initialized, convert=renamed, strict=False)
    assert tree.equal(found["body"], old()["encoder"])
    assert tree.equal(found["head"], initialized["head"])
    told = io.report(path, like=initialized, convert=renamed)
    assert told.missing == ("head.weight", "head.bias") and told.unexpected == ("step",)
    assert len(told.loaded) == 4


def test_a_report_of_what_fits_and_of_other_files(tmp_path: Path) -> None:
    run: Any = {"model": nn.Linear(2, 3).initialize(0), "key": random.key(1)}
    adam = optim.Adam(amsgrad=True)
    state = adam.init(run["model"])
    _, state = adam.step(run["model"], run["model"], state)
    run = {**run, "state": state}
    buffer = BytesIO()
    io.save(run, buffer)
    buffer.seek(0)
    like = {**run, "state": adam.init(run["model"])}  # which has other holes
    told = io.report(buffer, like=like)
    assert (told.fits and told.structure is None) or "state" in (told.structure or "")
    assert told.file == "the BytesIO"
    twin = torch.nn.Sequential(torch.nn.Linear(2, 3))
    torch.save(twin.state_dict(), tmp_path / "torch.pt")
    assert io.report(tmp_path / "torch.pt", like=nn.Sequential(nn.Linear(2, 3))).fits
    assert io.report(tmp_path / "torch.pt", like=bridge.lift(twin)).fits


def test_constants_of_another_class_are_misfits(tmp_path: Path) -> None:
    io.save({"a": 3, "b": 1 + 2j, "c": "x", "d": 0.5}, tmp_path / "old.pt")
    like = {"a": 0.0, "b": 0j, "c": "", "d": 1}
    found = io.report(tmp_path / "old.pt", like=like)
    assert found.loaded == ("b", "c") and list(found.misfits) == ["a", "d"] and not found.fits
    assert found.misfits["a"] == "a is 3 in the checkpoint, where this tree has a float"
    with pytest.raises(ValueError, match="a is 3 in the checkpoint, where this tree has a float"):
        io.load(tmp_path / "old.pt", like=like)


def test_tied_leaves_need_one_of_their_names(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    tied = nn.Sequential(layer, layer).initialize(0)
    io.save(tied, tmp_path / "a.pt")
    told = io.report(tmp_path / "a.pt", like=tied)
    assert told.fits and told.loaded == ("0.weight", "0.bias")


def test_long_lists_are_cut(tmp_path: Path) -> None:
    io.save({f"x{k}": torch.ones(1) for k in range(25)}, tmp_path / "a.pt")
    lines = repr(io.report(tmp_path / "a.pt", like={"y": torch.ones(1)}))
    assert "unexpected in the file (25):" in lines and "... and 15 more" in lines


WRONG: list[tuple[Any, type[Exception], str]] = [
    (3, TypeError, r"\(convert=\): expected a function, got 3"),
    (lambda name, value: name, TypeError, r"for 'encoder.0.weight' it returned 'encoder.0.weight'"),
    (lambda name, value: (value, name), TypeError, r"expected a name and a tensor, or None"),
    (
        lambda name, value: ("x", value),
        ValueError,
        r"calls both 'encoder.0.weight' and 'encoder.0.bias' 'x'",
    ),
]


@pytest.mark.parametrize(("convert", "error", "message"), WRONG)
@pytest.mark.parametrize("call", [io.load, io.report])
def test_functions_that_are_refused(
    tmp_path: Path, call: Callable[..., Any], convert: Any, error: type[Exception], message: str
) -> None:
    io.save(old(), tmp_path / "a.pt")
    with pytest.raises(error, match=rf"io\.{call.__name__}.*{message}"):
        call(tmp_path / "a.pt", like=old(), convert=convert)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file"):
        io.report(tmp_path / "a.pt", like=old())
    io.save(old(), tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data[:-50])
    with pytest.raises(ValueError, match=r"truncated"):
        io.report(tmp_path / "a.pt", like=old())
    found = torch.load(BytesIO(data), weights_only=True)
    header = found["parallax"].replace('"version": 1', '"version": 2')
    torch.save({**found, "parallax": header}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"its header has version 2, this release reads 1"):
        io.report(tmp_path / "a.pt", like=old())
