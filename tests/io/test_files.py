"""Files: what is saved is loaded, and what is no checkpoint of this module is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallax import Buffer, Module, Parameter, UninitializedError, bridge, io, tree

safetensors_torch = pytest.importorskip(
    "safetensors.torch", reason="the extra 'io' installs safetensors"
)
FORMATS = ("model.safetensors", "model.pt")


class Scale(Module):
    by: Parameter
    power: float = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return (self.by * x) ** self.power


class Pair(Module):
    first: Scale
    second: Scale


def pair(power: float = 2.0) -> Pair:
    return Pair(Scale(torch.arange(3.0), power), Scale(torch.ones(2, 2, dtype=torch.float64)))


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(tmp_path: Path, name: str) -> None:
    module = pair()
    io.save(module, tmp_path / name, metadata={"step": 3, "tags": ["a", {"b": None}]})
    loaded = io.load(tmp_path / name, like=pair())
    assert tree.equal(loaded, module) and type(loaded) is Pair
    assert io.metadata(tmp_path / name) == {"step": 3, "tags": ["a", {"b": None}]}
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", FORMATS)
def test_like_may_be_on_the_meta_device_or_declared(tmp_path: Path, name: str) -> None:
    module = pair()
    io.save(module, tmp_path / name)
    meta = tree.to(pair(), "meta")
    assert tree.equal(io.load(tmp_path / name, like=meta), module)
    zeros = nn.init.zeros_
    declared = Pair(
        Scale(Parameter((3,), zeros)), Scale(Parameter((2, 2), zeros, dtype=torch.float64))
    )
    assert tree.equal(io.load(tmp_path / name, like=declared), module)


@pytest.mark.parametrize("name", FORMATS)
def test_leaves_are_mapped_and_private(tmp_path: Path, name: str) -> None:
    module = Scale(torch.randn(1000))
    io.save(module, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    loaded = io.load(tmp_path / name, like=module)
    loaded.by.add_(1)
    assert (tmp_path / name).read_bytes() == before
    assert not torch.equal(io.load(tmp_path / name, like=module).by, loaded.by)


@pytest.mark.parametrize("name", FORMATS)
def test_ties_are_saved_once_and_stay(tmp_path: Path, name: str) -> None:
    x = torch.randn(4)
    module = Pair(Scale(x), Scale(x))
    io.save(module, tmp_path / name)
    assert list(io.read(tmp_path / name)) == ["first.by"]
    loaded = io.load(tmp_path / name, like=module)
    assert loaded.first.by is loaded.second.by and torch.equal(loaded.first.by, x)


@pytest.mark.parametrize("name", FORMATS)
def test_views_are_saved_without_the_rest_of_their_storage(tmp_path: Path, name: str) -> None:
    big = torch.randn(100_000)
    module = Pair(Scale(big[:3]), Scale(big[:6].view(2, 3).t()))
    io.save(module, tmp_path / name)
    assert (tmp_path / name).stat().st_size < 10_000
    assert tree.equal(io.load(tmp_path / name, like=module), module)


@pytest.mark.parametrize("name", FORMATS)
def test_what_torch_computes_when_it_is_read_is_saved_computed(tmp_path: Path, name: str) -> None:
    class Waves(Module):
        conjugate: Buffer
        negative: Buffer

    z = torch.randn(3, dtype=torch.complex64)
    saved = Waves(z.conj(), z.conj().imag)  # in memory they are z
    io.save(saved, tmp_path / name)
    found = io.read(tmp_path / name)
    assert torch.equal(found["conjugate"], torch.complex(z.real, -z.imag))
    assert torch.equal(found["negative"], -z.imag)


def test_sparse_leaves_go_into_files_of_torch(tmp_path: Path) -> None:
    saved = Scale(torch.eye(3).to_sparse())
    io.save(saved, tmp_path / "it.pt")
    assert torch.equal(io.load(tmp_path / "it.pt", like=saved).by.to_dense(), torch.eye(3))
    with pytest.raises(TypeError, match=r"safetensors cannot hold it .*Name it \*\.pt"):
        io.save(saved, tmp_path / "it.safetensors")
    with pytest.raises(TypeError, match=r"by has the layout torch.sparse_coo.*io\.save"):
        io.save_distributed(saved, tmp_path / "it")


@pytest.mark.filterwarnings("error")
def test_sparse_leaves_are_read_without_a_warning(tmp_path: Path) -> None:
    saved = Scale(torch.eye(3).to_sparse())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch may say that it does not check them
        io.save(saved, tmp_path / "it.pt")
    assert io.load(tmp_path / "it.pt", like=saved).by.is_sparse


def test_a_warning_that_is_made_an_error_is_no_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io.save(pair(), tmp_path / "it.pt")
    load = torch.load

    def warning(*args: Any, **kwargs: Any) -> Any:
        warnings.warn("of another kind", FutureWarning, stacklevel=1)
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", warning)
    with pytest.raises(FutureWarning, match="of another kind"):
        io.load(tmp_path / "it.pt", like=pair())


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("every", [1, 2])
def test_an_archive_that_was_compressed_is_read_or_refused(
    tmp_path: Path, method: int, every: int
) -> None:
    module = Pair(Scale(torch.arange(40.0) % 3), Scale(torch.ones(2, 2, dtype=torch.float64)))
    io.save(module, tmp_path / "it.pt")
    with (
        zipfile.ZipFile(tmp_path / "it.pt") as source,
        zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed,
    ):
        for number, name in enumerate(source.namelist()):
            kind = zipfile.ZIP_STORED if number % every else method
            packed.writestr(name, source.read(name), kind)
    if method == zipfile.ZIP_DEFLATED:
        assert tree.equal(io.load(tmp_path / "packed.pt", like=module), module)
    else:
        with pytest.raises(ValueError, match=r"packed.pt is truncated or no checkpoint"):
            io.load(tmp_path / "packed.pt", like=module)


def test_parameters_that_torch_saved_are_leaves_without_a_graph(tmp_path: Path) -> None:
    saved = nn.Linear(2, 1)
    torch.save(dict(saved.named_parameters()), tmp_path / "it.pt")
    found = io.load(tmp_path / "it.pt", like=bridge.lift(nn.Linear(2, 1)))
    assert torch.equal(found.weight, saved.weight) and not found.weight.requires_grad


def test_a_lifted_model_and_torch_read_each_others_files(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    lifted = bridge.lift(model)
    io.save(lifted, tmp_path / "mine.safetensors")
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    other.load_state_dict(safetensors_torch.load_file(tmp_path / "mine.safetensors"))
    assert torch.equal(other[0].weight, model[0].weight)  # type: ignore[arg-type]  # a tensor
    for name, save in {
        "a.safetensors": lambda f: safetensors_torch.save_file(model.state_dict(), f),
        "a.pt": lambda f: torch.save(model.state_dict(), f),
        "old.bin": lambda f: torch.save(
            model.state_dict(), f, _use_new_zipfile_serialization=False
        ),
    }.items():
        save(tmp_path / name)  # type: ignore[no-untyped-call]  # torch does not say
        assert tree.equal(io.load(tmp_path / name, like=tree.zeros_like(lifted)), lifted)
        assert io.metadata(tmp_path / name) == {}


def test_sharded_checkpoints(tmp_path: Path) -> None:
    module = pair()
    state = bridge.state_dict(module)
    shards = {
        "first.by": "model-00001-of-00002.safetensors",
        "second.by": "model-00002-of-00002.safetensors",
    }
    for name, shard in shards.items():
        safetensors_torch.save_file({name: state[name]}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert tree.equal(io.load(index, like=tree.to(module, "meta")), module)

    (tmp_path / shards["second.by"]).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"names the shard model-00002-of-00002.safetensors"
    ):
        io.load(index, like=module)
    safetensors_torch.save_file({"x": torch.ones(1)}, tmp_path / shards["second.by"])
    with pytest.raises(ValueError, match=r"lacks 'second.by'"):
        io.load(index, like=module)
    index.write_text(json.dumps({"weight_map": {"first.by": "../../secret.safetensors"}}))
    (tmp_path / "secret.safetensors").touch()
    with pytest.raises(ValueError, match="which is not beside it"):
        io.load(index, like=module)
    for text in ("{}", "no json", "[]"):
        index.write_text(text)
        with pytest.raises(ValueError, match="truncated or no checkpoint"):
            io.load(index, like=module)


# -- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_another_structure(tmp_path: Path, name: str) -> None:
    io.save(pair(), tmp_path / name)
    with pytest.raises(
        RuntimeError, match=r"model\.\w+: Error.*\n.*Missing key.*\"by\".*\n.*Unexpected"
    ):
        io.load(tmp_path / name, like=Scale(torch.ones(1)))
    with pytest.raises(
        ValueError, match=r"another structure: at 'first' the file has Scale\(power="
    ):
        io.load(tmp_path / name, like=pair(power=3.0))
    loaded = io.load(tmp_path / name, like=pair(power=3.0), strict=False)
    assert loaded.first.power == 3.0 and torch.equal(loaded.first.by, torch.arange(3.0))
    longer = Pair(Scale(torch.ones(4)), pair().second)
    with pytest.raises(RuntimeError, match=r"size mismatch for first.by.*\n.*io.report\("):
        io.load(tmp_path / name, like=longer)
    single = tree.to(pair(), dtype=torch.float32)
    with pytest.raises(RuntimeError, match=r"dtype mismatch for second.by.*cast=True"):
        io.load(tmp_path / name, like=single)
    assert io.load(tmp_path / name, like=single, cast=True).second.by.dtype is torch.float32


def test_two_architectures_with_the_same_names_and_shapes(tmp_path: Path) -> None:
    relu, tanh = (bridge.lift(nn.Sequential(nn.Linear(2, 2), f)) for f in (nn.ReLU(), nn.Tanh()))
    io.save(relu, tmp_path / "m.pt")
    with pytest.raises(
        ValueError, match=r"at '1' the file has ReLU\(inplace=False\), this module Tanh"
    ):
        io.load(tmp_path / "m.pt", like=tanh)


def test_missing_values_on_the_meta_device_are_named(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    module.register_buffer("table", torch.ones(1), persistent=False)
    lifted = bridge.lift(module)
    io.save(lifted, tmp_path / "m.pt")
    assert tree.equal(io.load(tmp_path / "m.pt", like=lifted), lifted)
    with pytest.raises(ValueError, match="no value for table, and like= lacks it too"):
        io.load(tmp_path / "m.pt", like=tree.to(lifted, "meta"))


# -- paths, arguments, disks ----------------------------------------------------------------------


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"is a directory. Name a file in it"):
        io.save(pair(), tmp_path)
    with pytest.raises(IsADirectoryError, match=r"is a directory. Name a file in it"):
        io.load(tmp_path, like=pair())
    with pytest.raises(FileNotFoundError, match="there is no file"):
        io.load(tmp_path / "none.pt", like=pair())
    with pytest.raises(ValueError, match=r"has no known suffix. Name it \*.safetensors, or \*.pt"):
        io.save(pair(), tmp_path / "model.xyz")
    with pytest.raises(
        FileNotFoundError, match=r"there is no directory .*such to save folder.pt in"
    ):
        io.save(pair(), tmp_path / "no" / "such" / "folder.pt")
    assert list(tmp_path.iterdir()) == []


def test_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"takes a parallax.Module, got Linear"):
        io.save(nn.Linear(1, 1), tmp_path / "m.pt")
    with pytest.raises(TypeError, match=r"load\(like=\) takes a parallax.Module, got Linear"):
        io.load(tmp_path / "m.pt", like=nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"save\(metadata=\).*not JSON serializable"):
        io.save(pair(), tmp_path / "m.pt", metadata={"x": object()})
    with pytest.raises(UninitializedError, match=r"Scale.by is not initialized"):
        io.save(Scale(Parameter((1,), nn.init.zeros_)), tmp_path / "m.pt")
    with pytest.raises(ValueError, match="on the meta device"):
        io.save(Scale(torch.empty(1, device="meta")), tmp_path / "m.pt")
    with pytest.raises(TypeError, match=r"save\(metadata=\) takes a dict, got str"):
        io.save(pair(), tmp_path / "m.pt", metadata="step")  # type: ignore[call-overload]  # tested
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(TypeError, match=r"save\(metadata=\).*recursion"):
        io.save(pair(), tmp_path / "m.pt", metadata={"x": nested})
    wrong: Any
    for wrong in (None, 3, b"m.pt"):
        for call in (
            lambda path: io.save(pair(), path),
            lambda path: io.load(path, like=pair()),
            io.read,
            io.metadata,
        ):
            with pytest.raises(TypeError, match=r"expected the path of a file, got"):
                call(wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.pt").touch()
    (tmp_path / "link.pt").symlink_to(tmp_path / "real.pt")
    io.save(pair(), tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink()
    assert tree.equal(io.load(tmp_path / "real.pt", like=pair()), pair())


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    """The limit on a file's size stands for a full disk: writing fails half-way through."""
    program = textwrap.dedent(
        f"""
        import resource, signal, torch
        from parallax import Module, Parameter, io, tree
        class Scale(Module):
            by: Parameter
        old, big = Scale(torch.ones(3)), Scale(torch.randn(100_000))
        path = {str(tmp_path / name)!r}
        io.save(old, path)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            io.save(big, path)
        except OSError as error:
            assert "could not be written" in str(error), error
        else:
            raise SystemExit("it was written")
        assert tree.equal(io.load(path, like=old), old)
        """
    )
    assert signal.SIGXFSZ
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_interruption_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io.save(pair(), tmp_path / "m.pt")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        io.save(pair(3.0), tmp_path / "m.pt")
    monkeypatch.undo()
    assert tree.equal(io.load(tmp_path / "m.pt", like=pair()), pair())
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


def test_without_safetensors_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"'io' installs: pip install 'parallax-torch\[io\]'"):
        io.save(pair(), tmp_path / "m.safetensors")
    io.save(pair(), tmp_path / "m.pt")


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_loaded_stays_when_its_file_is_replaced(tmp_path: Path, name: str) -> None:
    module = pair()
    io.save(module, tmp_path / name)
    loaded = io.load(tmp_path / name, like=module)
    io.save(tree.zeros_like(module), tmp_path / name)
    assert tree.equal(loaded, module)


def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    io.save(pair(), path)
    path.chmod(0o600)
    io.save(pair(), path)
    assert path.stat().st_mode & 0o777 == 0o600
