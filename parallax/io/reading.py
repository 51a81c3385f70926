"""What a file holds: its header and its tensors, whatever format it is in."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallax.io import background, safetensors, streams
from parallax.io.header import HEADER, load_header, readable_header, unreadable

__all__ = ["INDEX", "check_path", "checked", "named", "read_file"]

INDEX = ".safetensors.index.json"
"""How the index of a sharded checkpoint ends."""


def check_path(path: Any) -> None:
    """Raises for what is no path.

    Raises:
        TypeError: saying what came.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"expected the path of a file, got {type(path).__name__}. "
            f"Give its name: io.save(module, 'model.safetensors'), io.load('model.pt', like=module)"
        )


def checked(path: str | os.PathLike[str]) -> Path:
    """The path of a file.

    Raises:
        IsADirectoryError: if it is a directory.
        TypeError: if it is no path.
    """
    check_path(path)
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(
            f"{target} is a directory. Name a file in it, such as {target / 'model.safetensors'} "
            f"(of a sharded checkpoint its index: model{INDEX})"
        )
    return target


def named(path: Any) -> str:
    """How errors call a file."""
    return streams.named(path) if streams.is_stream(path) else os.fspath(path)


def read_file(path: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file.

    Args:
        path: of the file; or a binary file object, which is read to its end.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        TypeError: if it is neither.
        ValueError: if it is truncated, no checkpoint, or holds code.
    """
    background.finished()
    try:
        return _read_stream(path) if streams.is_stream(path) else _read_path(checked(path))
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError, RecursionError) as error:
        raise unreadable(named(path), error) from error


def _read_path(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}")
    if source.name.endswith(INDEX):
        return load_header(None), _read_shards(source)
    if source.suffix == ".safetensors":
        return safetensors.read(source)
    return _read_torch(source, source)


def _read_stream(file: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of what a file object holds from where it is now."""
    data, name = streams.content(file), streams.named(file)
    if data[8:9] != b"{":  # a file of safetensors begins with the length of its header
        return _read_torch(name, io.BytesIO(data))
    return safetensors.read_bytes(data, name)


def _read_torch(source: Path | str, file: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As ``read_file``; ``source`` is how errors call ``file``."""
    try:
        with warnings.catch_warnings():
            # Newer releases of torch say that this takes time.
            warnings.filterwarnings("ignore", "Validating sparse tensor invariants", UserWarning)
            mmap = isinstance(file, Path) and _can_be_mapped(file)
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{source} holds more than tensors, or is no checkpoint at all; it was not loaded, for "
            f"unpickling it could run any code. Save its state_dict alone"
        ) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a place outside of the file
            raise
        raise unreadable(source, error) from error
    except Warning:  # which was made an error
        raise
    except Exception as error:  # what is read from damaged data fails in any way
        raise unreadable(source, error) from error
    header = None
    if isinstance(found, dict) and HEADER in found and "state_dict" in found:
        header, found = found[HEADER], found["state_dict"]
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        keys = f" with the keys {list(found)[:5]}" if isinstance(found, dict) else ""
        raise ValueError(
            f"{source} holds a {type(found).__name__}{keys}, no tensors by name. Take the part "
            f"that is a state dict: bridge.load_state_dict(module, torch.load(path)[key])"
        )
    return readable_header(header, source), dict(found)


def _can_be_mapped(source: Path) -> bool:
    """Whether the tensors stand in a file as they are: it is an archive, and not compressed."""
    if not zipfile.is_zipfile(source):  # the format before torch 1.6 is no archive
        return False
    with zipfile.ZipFile(source) as archive:
        return all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


def _read_shards(source: Path) -> dict[str, Tensor]:
    """The tensors of a sharded checkpoint, by its index."""
    index = json.loads(source.read_bytes())
    named = index["weight_map"] if isinstance(index, dict) else None
    if not isinstance(named, dict) or not all(isinstance(shard, str) for shard in named.values()):
        raise ValueError(f"{source} is truncated or no checkpoint: it holds no weight_map")
    tensors: dict[str, Tensor] = {}
    shards: dict[str, list[str]] = {}
    for name, shard in named.items():
        shards.setdefault(shard, []).append(name)
    for shard, names in shards.items():
        file = source.parent / shard
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{source} names the shard {shard!r}, which is not beside it")
        if not file.exists():
            raise FileNotFoundError(f"{source} names the shard {shard}, which is not there")
        _, found = safetensors.read(file)
        for name in names:
            if name not in found:
                raise ValueError(f"{file} lacks {name!r}, which {source.name} says it holds")
            tensors[name] = found[name]
    return tensors
