"""Files of safetensors, read and written: a header and tensors in the format of that package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallax.io.header import HEADER, readable_header, unreadable
from parallax.io.writing import not_written, replacing

__all__ = ["read", "read_bytes", "require", "write"]


def read(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file."""
    safetensors = require()
    try:
        with safetensors.safe_open(source, framework="pt") as file:
            header = readable_header((file.metadata() or {}).get(HEADER), source)
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    except safetensors.SafetensorError as error:
        raise unreadable(source, error) from error


def read_bytes(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of what a file holds; ``name`` is how errors call it."""
    safetensors = require()
    try:
        found = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise unreadable(name, error) from error
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    return readable_header(about.get(HEADER), name), found


def write(target: Path, family: str | None, held: dict[str, Tensor], header: str) -> None:
    """Writes a file, or replaces it when all is written; ``family`` is as of ``replacing``."""
    safetensors = require()
    apart = _apart(held)
    with replacing(target, family) as temporary:
        try:
            safetensors.torch.save_file(apart, temporary, {"format": "pt", HEADER: header})
        except safetensors.SafetensorError as error:
            raise not_written(target, error) from error
        except (KeyError, ValueError) as error:
            raise TypeError(f"save: safetensors cannot hold it ({error}). Name it *.pt") from error


def _apart(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each in memory of its own, which safetensors insists on."""
    seen: set[int] = set()
    found = {}
    for name, tensor in held.items():
        place = tensor.data_ptr() if tensor.layout == torch.strided else 0
        found[name] = tensor.clone() if place and place in seen else tensor
        seen.add(place)
    return found


def require() -> Any:
    """The package safetensors.

    Raises:
        ImportError: if it is not installed; the message names the extra.
    """
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise ImportError(
            "*.safetensors files need safetensors, which the extra 'io' installs: "
            "pip install 'parallax-torch[io]'. Or name the file *.pt"
        ) from None
    return safetensors
