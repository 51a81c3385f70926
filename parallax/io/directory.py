"""What a directory of ``torch.distributed.checkpoint`` holds, read without running code."""

from __future__ import annotations

import enum
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["saved_tensors", "unreadable"]


def unreadable(path: str | os.PathLike[str], why: Any) -> ValueError:
    """The error for a directory that is damaged."""
    return ValueError(f"{os.fspath(path)} is truncated or no checkpoint: {why}. Nothing was loaded")


class _Unpickler(pickle.Unpickler):
    """Reads the directory's metadata, which torch pickles, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module in _MODULES and "." not in name) or (module, name) in _ALLOWED:
            found = super().find_class(module, name)
            if (module, name) in _ALLOWED or isinstance(found, type):
                return found
        if (module, name) == ("builtins", "getattr"):
            return _member
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which could run any code")


def _member(cls: Any, name: str) -> Any:
    """A member of an enumeration, as Python before 3.11.4 pickles one: by ``getattr``."""
    if not (isinstance(cls, type) and issubclass(cls, enum.Enum)):
        raise pickle.UnpicklingError(f"it reads {name!r} of {cls!r}, which could run any code")
    return cls[name]


_MODULES = ("torch.distributed.checkpoint.metadata", "pathlib", "pathlib._local")
_ALLOWED = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
}


def saved_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the meta device."""
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

    source = path / ".metadata"
    if not source.is_file():
        raise FileNotFoundError(f"{path} holds no distributed checkpoint")
    try:
        with source.open("rb") as file:
            metadata = _Unpickler(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise unreadable(path, error) from error
    if not isinstance(metadata, Metadata):
        raise unreadable(path, f"its metadata is {type(metadata).__name__}")
    found = {}
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(
                f"{path} holds {name!r}, which is not a tensor: unpickling it could run any code. "
                f"Save tensors alone"
            )
        found[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    return found
