"""``torch.distributed.checkpoint``: a directory that many processes write and read together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from parallax.bridge.states import loaded, names_of, state_dict
from parallax.io.files import placed, require_complete
from parallax.nodes import is_module
from parallax.registry import flatten_module

__all__ = ["load_distributed", "save_distributed"]

M = TypeVar("M")


def save_distributed(module: Any, path: str | os.PathLike[str]) -> None:
    """Saves the leaves of a module with ``torch.distributed.checkpoint``.

    Every process of the default group calls it; without one it is this process alone.

    Args:
        module: the module.
        path: the directory.

    Raises:
        NotADirectoryError: if the path is a file.
        TypeError: if it is no module.
        UninitializedError: if a leaf has no value yet.
    """
    from torch.distributed.checkpoint import state_dict_saver

    if Path(path).is_file():
        raise NotADirectoryError(f"{os.fspath(path)} is a file; name a directory")
    tensors = state_dict(module)
    with _as_one_process() as alone:
        state_dict_saver.save(tensors, checkpoint_id=os.fspath(path), no_dist=alone)


def load_distributed(path: str | os.PathLike[str], *, like: M) -> M:
    """A module of the structure of ``like`` with the leaves that ``save_distributed`` saved.

    Args:
        path: the directory.
        like: a module of the structure, which stays as it is; leaves may be on the meta device.

    Returns:
        The module.

    Raises:
        FileNotFoundError: if the directory holds no checkpoint.
        RuntimeError: if names or shapes do not fit.
        ValueError: if a leaf has a value in neither.
    """
    from torch.distributed.checkpoint import filesystem, state_dict_loader

    if not is_module(like):
        raise TypeError(
            f"load_distributed(like=): expected a parallax.Module, got {type(like).__name__}"
        )
    if not (Path(path) / ".metadata").is_file():
        raise FileNotFoundError(f"{os.fspath(path)} holds no distributed checkpoint")
    targets = _targets(like)
    _check_shapes(filesystem.FileSystemReader(path).read_metadata(), targets, path)
    with _as_one_process() as alone:
        state_dict_loader.load(targets, checkpoint_id=os.fspath(path), no_dist=alone)
    module = loaded(like, targets, True, True, placed)
    require_complete(module, path)
    return module


@contextmanager
def _as_one_process() -> Iterator[bool]:
    """Whether this process is alone, of which torch warns even if told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)
        yield not (dist.is_available() and dist.is_initialized())


def _targets(like: Any) -> dict[str, Tensor]:
    """Fresh tensors to read into, for a checkpoint is loaded in place."""
    leaves, structure = flatten_module(like)
    fresh: dict[int, Tensor] = {}
    targets = {}
    for name, k in names_of(structure):
        leaf = leaves[k]
        if leaf is not None:
            if k not in fresh:
                on = leaf.device if isinstance(leaf, Tensor) and not leaf.is_meta else "cpu"
                fresh[k] = torch.empty(leaf.shape, dtype=leaf.dtype, device=on)
            targets[name] = fresh[k]
    return targets


def _check_shapes(metadata: Any, targets: Mapping[str, Tensor], path: Any) -> None:
    saved = metadata.state_dict_metadata
    missing = [name for name in targets if name not in saved]
    unexpected = [name for name in saved if name not in targets]
    problems = [f"Missing key(s) in checkpoint: {missing}. "] if missing else []
    problems += [f"Unexpected key(s) in checkpoint: {unexpected}. "] if unexpected else []
    for name, target in targets.items():
        if name in saved and saved[name].size != target.shape:
            problems.append(
                f"size mismatch for {name}: {saved[name].size} in checkpoint, the shape in "
                f"current model is {target.shape}."
            )
    if problems:
        text = "\n\t".join(problems)
        raise RuntimeError(f"Error(s) in loading {os.fspath(path)}:\n\t{text}")
