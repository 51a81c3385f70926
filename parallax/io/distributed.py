"""``torch.distributed.checkpoint``: a directory that many processes write and read together."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from parallax._compat import shards
from parallax.bridge.states import loaded, names_of, state_dict
from parallax.core.arguments import check_flags, check_module
from parallax.core.registry import flatten_module
from parallax.io.header import dump_header, load_header, nodes_of
from parallax.io.parts import placed, require_complete
from parallax.io.reading import check_path
from parallax.io.resuming import as_saved

__all__ = ["load_distributed", "save_distributed"]

M = TypeVar("M")

# Among the tensors, as bytes; no field is called so. An entry that is not a tensor, torch would
# unpickle, which could run any code.
_HEADER = "parallax header"


def save_distributed(module: Any, path: str | os.PathLike[str]) -> None:
    """Saves the leaves of a module with ``torch.distributed.checkpoint``.

    Every process of the default group calls it; without one, this process alone. Of a distributed
    leaf (``DTensor``) each process writes its part. If the directory holds a checkpoint already,
    the new data are written beside the old, and one rename switches to them: at any moment the
    directory holds the old checkpoint or the new one.

    Args:
        module: the module; its structure is not saved, only a description of it.
        path: the directory, which all processes see.

    Raises:
        NotADirectoryError: if the path is a file.
        OSError: if a file cannot be written; the checkpoint before is intact.
        TypeError: if it is not a module, or a leaf is sparse.
        UninitializedError: if a leaf has no value yet.

    Example:
        >>> import tempfile
        >>> from parallax import io, nn
        >>> model = nn.Linear(2, 1).initialize(0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     io.save_distributed(model, f"{folder}/step_100")  # in every process
        ...     again = io.load_distributed(f"{folder}/step_100", like=model)
    """
    check_path(path)
    if Path(path).is_file():
        raise NotADirectoryError(f"{os.fspath(path)} is a file; name a directory")
    check_module("io.save_distributed", module)
    tensors = state_dict(module)
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise TypeError(
                f"save_distributed: {name} has the layout {tensor.layout}, which torch cannot "
                f"write in pieces. Save it in one file: io.save(module, 'name.pt')"
            )
    header = dump_header(nodes_of(flatten_module(module)[1]), None).encode()
    tensors[_HEADER] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
    _write(Path(path), tensors)


def load_distributed(path: str | os.PathLike[str], *, like: M, cast: bool = False) -> M:
    """Loads what ``save_distributed`` saved into a module of the structure of ``like``.

    Args:
        path: the directory.
        like: a module of the structure, which stays as it is; leaves may be on the meta device.
            Where its leaves are distributed (``DTensor``), so are those of the result, each process
            reading its part, however many wrote the checkpoint.
        cast: convert values to the dtype of the leaf; otherwise another dtype is an error.

    Returns:
        The module.

    Raises:
        FileNotFoundError: if the directory holds no checkpoint.
        RuntimeError: if names, shapes or dtypes do not fit; all of them are listed.
        ValueError: if a file is truncated or not a checkpoint, or a leaf has a value neither in it
            nor in ``like``.

    Example:
        >>> import tempfile, torch
        >>> from parallax import io, nn
        >>> model = nn.Linear(2, 1).initialize(0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     io.save_distributed(model, folder)
        ...     with torch.device("meta"):  # allocates nothing
        ...         like = nn.Linear(2, 1).initialize(0)
        ...     again = io.load_distributed(folder, like=like)
        >>> torch.equal(again.weight, model.weight)
        True
    """
    check_path(path)
    check_flags("io.load_distributed", cast=cast)
    check_module("io.load_distributed", like, "like")
    saved = _saved_tensors(Path(path))
    header: dict[str, Any] = {}
    if _HEADER in saved:
        text = {_HEADER: torch.empty_like(saved.pop(_HEADER), device="cpu")}
        _read(path, text)
        header = _header(bytes(text[_HEADER].tolist()), path)
    like = as_saved(like, header, saved)
    targets = _targets(like)
    _check(saved, targets, cast, path)
    _read(path, targets)
    module = loaded(like, targets, True, True, placed)
    require_complete(module, path)
    return module


@contextmanager
def _as_one_process() -> Iterator[bool]:
    """Whether this is the only process; torch's warning about that is silenced inside."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)
        yield not (dist.is_available() and dist.is_initialized())


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors, all processes together."""
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.api import CheckpointException

    from parallax.io.switching import SwitchingWriter

    writer = SwitchingWriter(path)
    try:
        with _as_one_process() as alone:
            state_dict_saver.save(tensors, storage_writer=writer, no_dist=alone)
    except CheckpointException as error:
        writer.discard()
        cause = next(failure for failure, _ in error.failures.values())
        raise OSError(
            f"{path} could not be written: {cause}. What was there before is intact"
        ) from error


def _read(path: str | os.PathLike[str], targets: dict[str, Tensor]) -> None:
    """Reads into tensors, all processes together."""
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with _as_one_process() as alone:
            state_dict_loader.load(targets, checkpoint_id=os.fspath(path), no_dist=alone)
    except CheckpointException as error:
        cause = next(failure for failure, _ in error.failures.values())
        raise _unreadable(
            path, cause if isinstance(cause, OSError) else type(cause).__name__
        ) from error


def _unreadable(path: str | os.PathLike[str], why: Any) -> ValueError:
    return ValueError(f"{os.fspath(path)} is truncated or no checkpoint: {why}. Nothing was loaded")


def _header(text: bytes, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        return load_header(text.decode())
    except ValueError as error:
        raise _unreadable(path, error) from error


# -- what a directory holds -----------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    """Reads the directory's metadata, which torch pickles, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module in _MODULES and "." not in name) or (module, name) in _ALLOWED:
            found = super().find_class(module, name)
            if (module, name) in _ALLOWED or isinstance(found, type):
                return found
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which could run any code")


_MODULES = ("torch.distributed.checkpoint.metadata", "pathlib", "pathlib._local")
_ALLOWED = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
}


def _saved_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the meta device."""
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

    source = path / ".metadata"
    if not source.is_file():
        raise FileNotFoundError(f"{path} holds no distributed checkpoint")
    try:
        with source.open("rb") as file:
            metadata = _Unpickler(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(metadata, Metadata):
        raise _unreadable(path, f"its metadata is {type(metadata).__name__}")
    found = {}
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(
                f"{path} holds {name!r}, which is not a tensor: unpickling it could run any code. "
                f"Save tensors alone"
            )
        found[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    return found


def _targets(like: Any) -> dict[str, Tensor]:
    """Fresh tensors to read into, for a checkpoint is loaded in place."""
    leaves, structure = flatten_module(like)
    fresh: dict[int, Tensor] = {}
    targets = {}
    for name, k in names_of(structure):
        leaf = leaves[k]
        if leaf is not None:
            if k not in fresh:
                fresh[k] = _fresh(leaf)
            targets[name] = fresh[k]
    return targets


def _fresh(leaf: Any) -> Tensor:
    """A tensor to read a leaf's value into, placed as the leaf."""
    if shards.is_distributed(leaf):
        on = leaf.device_mesh.device_type if leaf.is_meta else leaf.device
        return torch.empty_like(leaf, device=on, requires_grad=False)
    on = leaf.device if isinstance(leaf, Tensor) and not leaf.is_meta else "cpu"
    return torch.empty(leaf.shape, dtype=leaf.dtype, device=on)


def _check(
    saved: Mapping[str, Tensor], targets: Mapping[str, Tensor], cast: bool, path: Any
) -> None:
    missing = [name for name in targets if name not in saved]
    unexpected = [name for name in saved if name not in targets]
    problems = [f"Missing key(s) in checkpoint: {missing}. "] if missing else []
    problems += [f"Unexpected key(s) in checkpoint: {unexpected}. "] if unexpected else []
    for name, target in targets.items():
        if name in saved and saved[name].shape != target.shape:
            problems.append(
                f"size mismatch for {name}: {saved[name].shape} in checkpoint, the shape in "
                f"current model is {target.shape}."
            )
        elif name in saved and saved[name].dtype != target.dtype and not cast:
            problems.append(
                f"dtype mismatch for {name}: {saved[name].dtype} in checkpoint, {target.dtype} in "
                f"current model. Convert with cast=True."
            )
    if problems:
        text = "\n\t".join(problems)
        raise RuntimeError(f"Error(s) in loading {os.fspath(path)}:\n\t{text}")
