"""``save`` and ``load``: safetensors, and torch's own format without code in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, overload

import torch
from torch import Tensor

from parallax._errors.arguments import answered, check_flags
from parallax.io import background, safetensors, streams
from parallax.io.header import HEADER, difference, dump_header, unreadable
from parallax.io.parts import filled, nodes_of_tree, require_complete, take_apart, tensors
from parallax.io.reading import checked, named, read_file
from parallax.io.report import Convert, converted
from parallax.io.writing import not_written, replacing

__all__ = ["load", "metadata", "read", "save"]

T = TypeVar("T")
File = str | os.PathLike[str] | IO[bytes]
"""A path, or a binary file object."""
_TORCH = (".pt", ".pth", ".bin", ".ckpt")


@overload
def save(
    module: Any,
    path: File,
    *,
    metadata: Mapping[str, Any] | None = None,
    blocking: Literal[True] = True,
) -> None: ...
@overload
def save(
    module: Any,
    path: File,
    *,
    metadata: Mapping[str, Any] | None = None,
    blocking: Literal[False],
) -> Future[None]: ...
@overload
def save(
    module: Any, path: File, *, metadata: Mapping[str, Any] | None = None, blocking: bool
) -> Future[None] | None: ...
@answered("io.save", "io.save(model, 'model.safetensors')")
def save(
    module: Any,
    path: File,
    *,
    metadata: Mapping[str, Any] | None = None,
    blocking: bool = True,
) -> Future[None] | None:
    """Saves a module or tree to a file, under the names that ``bridge.state_dict`` gives.

    A checkpoint may be any tree: a dict of a model, the state of an optimizer, a key and a number.
    The names then begin with the path in the tree. Numbers and strings are kept as they are.

    The suffix of the name decides the format: ``.safetensors`` (extra ``io``), or ``.pt``,
    ``.pth``, ``.bin``, ``.ckpt`` for torch's. Both hold data only, no code. The file is written
    under another name and renamed when it is on the disk: at any moment ``path`` is the old file or
    the new one.

    Args:
        module: a module, or dicts, lists and tuples of modules, tensors, numbers and strings; its
            structure is not saved, only a description to check it by.
        path: the file; or a binary file object (``BytesIO``, ``open(name, "wb")``), which gets
            torch's format, in one piece, when all of it can be saved.
        metadata: other values to keep in the file, of JSON's types; ``io.metadata`` reads them.
        blocking: whether to wait until it is written. Otherwise the tensors are copied to the CPU,
            and written while the program goes on; one file after the other, in the order of the
            calls.

    Returns:
        ``None``; or, if not ``blocking``, a future whose ``result()`` waits and raises what went
        wrong. The program does not end before it is written; what is loaded or saved afterwards
        waits for it.

    Raises:
        FileNotFoundError: if there is no such directory.
        IsADirectoryError: if the path is a directory.
        ImportError: if safetensors is not installed.
        OSError: if the file cannot be written; an older file is intact.
        TypeError: if it holds anything else, or the metadata or a dtype cannot be written.
        UninitializedError: if a leaf has no value yet.
        ValueError: if the suffix is of no known format, or two leaves would have one name; or a
            file object is to be written in the background.

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
    check_flags("io.save", blocking=blocking)
    if streams.is_stream(path) and not blocking:
        raise ValueError(
            "io.save(blocking=False): a file object may be in use while another thread writes it. "
            "Name a file instead, or leave blocking out"
        )
    write = prepared(module, path, metadata, copied=not blocking)
    if not blocking:
        return background.start(write)
    background.finished()
    write()
    return None


def prepared(
    module: Any,
    path: File,
    metadata: Mapping[str, Any] | None,
    *,
    copied: bool,
    family: str | None = None,
) -> Callable[[], None]:
    """What writes a file, once all is checked that can be before.

    Args:
        module: as of ``save``.
        path: as of ``save``.
        metadata: as of ``save``.
        copied: whether it writes copies of the tensors.
        family: as of ``replacing``.
    """
    write = _writer(path, family)
    parts, _ = take_apart(module, "save()")
    held, constants = tensors(parts)
    header = dump_header(nodes_of_tree(parts), metadata, constants)
    return partial(write, background.copied(held) if copied else held, header)


def _writer(path: Any, family: str | None) -> Callable[[dict[str, Tensor], str], None]:
    """What writes tensors and a header into a file, in the format of its name.

    Raises:
        FileNotFoundError: if there is no such directory.
        IsADirectoryError: if the path is a directory.
        ImportError: if safetensors is not installed.
        ValueError: if the suffix is of no known format.
    """
    if streams.is_stream(path):
        return partial(_write_stream, path)
    target = checked(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {target.parent} to save {target.name} in")
    if target.suffix in _TORCH:
        return partial(_write_torch, target, family)
    if target.suffix != ".safetensors":
        raise ValueError(
            f"save: {target.name} has no known suffix. Name it *.safetensors, or *.pt for torch's"
        )
    safetensors.require()
    return partial(safetensors.write, target, family)


def _write_stream(file: Any, held: dict[str, Tensor], header: str) -> None:
    buffer = BytesIO()
    torch.save({HEADER: header, "state_dict": held}, buffer)
    streams.write(file, buffer.getbuffer())


def _write_torch(target: Path, family: str | None, held: dict[str, Tensor], header: str) -> None:
    with replacing(target, family) as temporary:
        try:
            torch.save({HEADER: header, "state_dict": held}, temporary)
        except RuntimeError as error:
            raise not_written(target, error) from error


_FITTING = (
    "io.report(path, model) lists what fits. To load that alone, write io.load(path, model, "
    "convert=fn, strict=False), where fn(name, value) returns (name, value), or None for what is "
    "left out"
)


@answered("io.load", "io.load('model.safetensors', like=model)")
def load(
    path: File,
    like: T,
    *,
    convert: Convert | None = None,
    strict: bool = True,
    cast: bool = False,
) -> T:
    """Loads the leaves of a file into a module, or tree, of the structure of ``like``.

    Tensors on the CPU are mapped from the file rather than read, and private: writing into one
    does not reach the file. Checkpoints that Parallax did not write load, too: state dicts in
    either format, and the sharded ones whose index is ``*.safetensors.index.json``.

    Args:
        path: the file; or a binary file object, which is read to its end.
        like: a module or tree of the structure; it stays as it is. Its leaves may be declarations,
            or on the meta device, so that nothing is computed that the file replaces.
        convert: a function of the name and the tensor of each leaf in the file, which returns those
            that are meant in ``like``, or ``None`` for what is left out. What was saved may have
            another structure then.
        strict: whether the file must hold exactly the names of ``like``, saved from the same
            structure. Otherwise missing leaves are those of ``like``, and other names are ignored;
            ``io.report`` says which.
        cast: convert values to the dtype of the leaf; otherwise another dtype is an error.

    Returns:
        The module or tree.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if the path is a directory.
        ImportError: if safetensors is needed and not installed.
        RuntimeError: if names, shapes or dtypes do not fit; all of them are listed.
        TypeError: if ``convert`` is no function, or returns something else.
        ValueError: if the file is truncated, not a checkpoint, holds code, or was saved from
            another structure; or ``convert`` gives two tensors one name.

    Example:
        >>> import tempfile, torch
        >>> from parallax import io, nn, optim
        >>> model, opt = nn.Linear(2, 1).initialize(0), optim.Adam()
        >>> checkpoint = {"model": model, "opt": opt.init(model), "step": 100}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     io.save(checkpoint, f"{folder}/last.pt")
        ...     fresh = nn.Linear(2, 1).initialize(1)
        ...     like = {"model": fresh, "opt": opt.init(fresh), "step": 0}
        ...     loaded = io.load(f"{folder}/last.pt", like=like)
        >>> loaded["step"], torch.equal(loaded["model"].weight, model.weight)
        (100, True)
    """
    check_flags("io.load", strict=strict, cast=cast)
    parts, spec = take_apart(like, "load(like=)")
    header, found = read_file(path)
    held, _, _ = converted(found, convert, "io.load")
    try:
        made = filled(parts, header, held, strict, cast)
    except RecursionError as error:  # a constant in the header that is nested too deeply
        raise unreadable(named(path), error) from error
    except RuntimeError as error:
        raise RuntimeError(f"{named(path)}: {error}\n\t{_FITTING}") from None
    after = [part._replace(value=value) for part, value in zip(parts, made, strict=True)]
    other = difference(header, nodes_of_tree(after)) if strict and convert is None else None
    if other is not None:
        raise ValueError(
            f"{named(path)} was saved from another structure: {other}. "
            f"Names and shapes fit; if the numbers are meant, load(..., strict=False)"
        )
    for value in made:
        require_complete(value, named(path))
    return made[0] if spec is None else spec.unflatten(made)  # type: ignore[no-any-return]  # as like


def metadata(path: File) -> dict[str, Any]:
    """The metadata of a file, as it was given to ``save``.

    Args:
        path: the file.

    Returns:
        The metadata; empty for files that Parallax did not write.

    Raises:
        OSError: as ``load``.
        ValueError: as ``load``.

    Example:
        >>> import tempfile
        >>> from parallax import io, nn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model, about = nn.Linear(2, 1).initialize(0), {"accuracy": 0.9, "epochs": [1, 2]}
        ...     io.save(model, f"{folder}/model.pt", metadata=about)
        ...     io.metadata(f"{folder}/model.pt")
        {'accuracy': 0.9, 'epochs': [1, 2]}
    """
    return dict(read_file(path)[0]["metadata"])


def read(path: File) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, mapped from the file.

    Args:
        path: a file that ``load`` takes.

    Returns:
        A state dict, for ``bridge.load_state_dict``.

    Raises:
        OSError: as ``load``.
        ValueError: as ``load``.

    Example:
        >>> import tempfile
        >>> from parallax import io, nn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     io.save(nn.Linear(2, 1).initialize(0), f"{folder}/model.pt")
        ...     {name: tensor.shape for name, tensor in io.read(f"{folder}/model.pt").items()}
        {'weight': torch.Size([1, 2]), 'bias': torch.Size([1])}
    """
    return read_file(path)[1]
