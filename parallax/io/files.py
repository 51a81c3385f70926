"""``save`` and ``load``: safetensors, and torch's own format without code in it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax.bridge.states import loaded, names_of, state_dict
from parallax.core.fields import Lazy
from parallax.core.nodes import is_module
from parallax.core.registry import flatten_module
from parallax.io.header import difference, dump_header, load_header
from parallax.io.resuming import as_saved
from parallax.io.writing import replacing

__all__ = ["load", "metadata", "placed", "read", "require_complete", "save"]

M = TypeVar("M")
_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_HEADER = "parallax"
_INDEX = ".safetensors.index.json"


def save(
    module: Any, path: str | os.PathLike[str], *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Saves the leaves of a module, under the names that ``bridge.state_dict`` gives them.

    The format goes by the name: ``.safetensors`` (extra ``io``), or ``.pt``, ``.pth``, ``.bin``,
    ``.ckpt`` for torch's. Either is data alone, without code. The file is written beside and
    renamed when it is on the disk: at any moment ``path`` is the old file or the new one.

    Args:
        module: the module; its structure is not saved, only a description to check it by.
        path: the file.
        metadata: what else to keep in the file, as JSON has it; ``io.metadata`` reads it.

    Raises:
        FileNotFoundError: if there is no such directory.
        IsADirectoryError: if the path is a directory.
        ImportError: if safetensors is not installed.
        OSError: if the file cannot be written; what was there is intact.
        TypeError: if it is no module, or the metadata or a dtype cannot be written.
        UninitializedError: if a leaf has no value yet.
        ValueError: if the name says no format.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> from parallax import bridge, io
        >>> linear = bridge.lift(nn.Linear(2, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     io.save(linear, f"{folder}/linear.pt", metadata={"step": 3})
        ...     again = io.load(f"{folder}/linear.pt", like=linear)
        ...     io.metadata(f"{folder}/linear.pt")
        {'step': 3}
    """
    target = _checked(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {target.parent} to save {target.name} in")
    tensors = {name: _compact(tensor) for name, tensor in _once(module).items()}
    header = dump_header(flatten_module(module)[1], metadata)
    if target.suffix in _TORCH:
        with replacing(target) as temporary:
            try:
                torch.save({_HEADER: header, "state_dict": tensors}, temporary)
            except RuntimeError as error:
                raise _not_written(target, error) from error
        return
    if target.suffix != ".safetensors":
        raise ValueError(
            f"save: {target.name} says no format. Name it *.safetensors, or *.pt for torch's"
        )
    safetensors = _safetensors()
    with replacing(target) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, {"format": "pt", _HEADER: header})
        except safetensors.SafetensorError as error:
            raise _not_written(target, error) from error
        except (KeyError, ValueError) as error:
            raise TypeError(f"save: safetensors cannot hold it ({error}). Name it *.pt") from error


def load(path: str | os.PathLike[str], *, like: M, strict: bool = True, cast: bool = False) -> M:
    """A module of the structure of ``like`` with the leaves of a file.

    Tensors on the CPU are mapped from the file rather than read, and private: writing into one
    does not reach the file. Checkpoints that Parallax did not write load, too: state dicts in
    either format, and the sharded ones whose index is ``*.safetensors.index.json``.

    Args:
        path: the file.
        like: a module of the structure; it stays as it is. Leaves on the meta device and
            declarations do: nothing is computed that the file replaces.
        strict: whether all names must be there, no others, and the structure be the one that was
            saved. Otherwise missing leaves are those of ``like``.
        cast: convert values to the dtype of the leaf; otherwise another dtype is an error.

    Returns:
        The module.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if the path is a directory.
        ImportError: if safetensors is needed and not installed.
        RuntimeError: if names, shapes or dtypes do not fit; all of them are listed.
        ValueError: if the file is truncated, no checkpoint, holds code, or is of another structure.
    """
    if not is_module(like):
        raise TypeError(f"load(like=): expected a parallax.Module, got {type(like).__name__}")
    header, tensors = _read(path)
    like = as_saved(like, header, tensors)
    try:
        module = loaded(like, tensors, strict, cast, placed)
    except RuntimeError as error:
        raise RuntimeError(f"{os.fspath(path)}: {error}") from None
    found = difference(header, flatten_module(module)[1]) if strict else None
    if found is not None:
        raise ValueError(
            f"{os.fspath(path)} was saved from another structure: {found}. "
            f"Names and shapes fit; if the numbers are meant, load(..., strict=False)"
        )
    require_complete(module, path)
    return module


def metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What was given to ``save`` as metadata.

    Args:
        path: the file.

    Returns:
        The metadata; empty for files that Parallax did not write.

    Raises:
        OSError: as ``load``.
        ValueError: as ``load``.
    """
    return dict(_read(path)[0]["metadata"])


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, mapped from the file.

    Args:
        path: a file that ``load`` takes.

    Returns:
        A state dict, for ``bridge.load_state_dict``.

    Raises:
        OSError: as ``load``.
        ValueError: as ``load``.
    """
    return _read(path)[1]


def _once(module: Any) -> dict[str, Tensor]:
    """The state dict with each tied leaf under its first name only."""
    tensors = state_dict(module)
    seen: set[int] = set()
    found = {}
    for name, index in names_of(flatten_module(module)[1]):
        if name in tensors and index not in seen:
            seen.add(index)
            found[name] = tensors[name]
    return found


def _compact(tensor: Tensor) -> Tensor:
    """The tensor without what else its storage holds."""
    if tensor.is_meta:
        raise ValueError("save: a leaf is on the meta device and has no value. Initialize first")
    if tensor.layout != torch.strided:
        return tensor
    tensor = tensor.resolve_conj().resolve_neg()  # what is in memory is what is meant
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def placed(value: Tensor, leaf: Any) -> Tensor:
    """A value where the leaf is that it replaces; as it is if that is nowhere yet."""
    value = value.detach()  # a Parameter of torch may have been saved
    if isinstance(leaf, Tensor) and not leaf.is_meta:
        return value.to(device=leaf.device, dtype=leaf.dtype)
    return value.to(dtype=leaf.dtype)


def require_complete(module: Any, path: str | os.PathLike[str]) -> None:
    """Refuses a module of which a part has no value.

    Raises:
        ValueError: naming the leaves.
    """
    leaves, structure = flatten_module(module)
    lacking = [
        name
        for name, leaf in zip(structure.paths, leaves, strict=True)
        if isinstance(leaf, Lazy) or (isinstance(leaf, Tensor) and leaf.is_meta)
    ]
    if lacking:
        raise ValueError(
            f"{os.fspath(path)} has no value for {', '.join(lacking[:5])}"
            f"{', ...' if len(lacking) > 5 else ''}, and neither has the module given as like. "
            f"Give one that has (buffers that are not persistent are in no file)"
        )


# -- reading --------------------------------------------------------------------------------------


def _checked(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(
            f"{target} is a directory. Name a file in it, such as {target / 'model.safetensors'} "
            f"(of a sharded checkpoint its index: model{_INDEX})"
        )
    return target


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file."""
    source = _checked(path)
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}")
    try:
        if source.name.endswith(_INDEX):
            return load_header(None), _read_shards(source)
        if source.suffix == ".safetensors":
            return _read_safetensors(source)
        return _read_torch(source)
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise _unreadable(source, error) from error


def _read_safetensors(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(source, framework="pt") as file:
            header = _header((file.metadata() or {}).get(_HEADER), source)
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    except safetensors.SafetensorError as error:
        raise _unreadable(source, error) from error


def _read_torch(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        mapped = zipfile.is_zipfile(source)  # files of old are not, and cannot be mapped
        found = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{source} holds more than tensors, or is no checkpoint at all; it was not loaded, for "
            f"unpickling it could run any code. Save its state_dict alone"
        ) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a place outside of the file
            raise
        raise _unreadable(source, error) from error
    except Exception as error:  # what is read from damaged data fails in any way
        raise _unreadable(source, error) from error
    header = None
    if isinstance(found, dict) and _HEADER in found and "state_dict" in found:
        header, found = found[_HEADER], found["state_dict"]
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        keys = f" with the keys {list(found)[:5]}" if isinstance(found, dict) else ""
        raise ValueError(
            f"{source} holds a {type(found).__name__}{keys}, no tensors by name. Take the part "
            f"that is a state dict: bridge.load_state_dict(module, torch.load(path)[key])"
        )
    return _header(header, source), dict(found)


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
        _, found = _read_safetensors(file)
        for name in names:
            if name not in found:
                raise ValueError(f"{file} lacks {name!r}, which {source.name} says it holds")
            tensors[name] = found[name]
    return tensors


def _header(text: Any, source: Path) -> dict[str, Any]:
    try:
        return load_header(text)
    except ValueError as error:
        raise _unreadable(source, error) from error


def _unreadable(source: Path, error: Exception) -> ValueError:
    return ValueError(f"{source} is truncated or no checkpoint: {error}. Nothing was loaded")


def _not_written(target: Path, error: Exception) -> OSError:
    return OSError(f"{target} could not be written: {error}. What was there before is intact")


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise ImportError(
            "*.safetensors files need safetensors, which the extra 'io' installs: "
            "pip install 'parallax[io]'. Or name the file *.pt"
        ) from None
    return safetensors
