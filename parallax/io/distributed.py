"""``torch.distributed.checkpoint``: a directory that many processes write and read together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import torch
import torch.distributed as dist
from torch import Tensor

from parallax._compat import directories, shards
from parallax._errors.arguments import check_flags
from parallax.core.fields import Lazy, UninitializedError
from parallax.core.nodes import is_module
from parallax.core.registry import flatten_module
from parallax.io import background
from parallax.io.directory import saved_tensors, unreadable
from parallax.io.header import below, dump_header, load_header, show
from parallax.io.parts import (
    Part,
    filled,
    named_tensors,
    nodes_of_tree,
    require_complete,
    take_apart,
)
from parallax.io.reading import check_path
from parallax.io.resuming import as_saved
from parallax.tree.state_names import names_of

__all__ = ["load_distributed", "save_distributed"]

T = TypeVar("T")
M = TypeVar("M")

# Among the tensors, as bytes; no field is called so. An entry that is not a tensor, torch would
# unpickle, which could run any code.
_HEADER = "parallax header"


@overload
def save_distributed(
    module: Any, path: str | os.PathLike[str], *, blocking: Literal[True] = True
) -> None: ...
@overload
def save_distributed(
    module: Any, path: str | os.PathLike[str], *, blocking: Literal[False]
) -> Future[None]: ...
@overload
def save_distributed(
    module: Any, path: str | os.PathLike[str], *, blocking: bool
) -> Future[None] | None: ...
def save_distributed(
    module: Any, path: str | os.PathLike[str], *, blocking: bool = True
) -> Future[None] | None:
    """Saves a module or tree with ``torch.distributed.checkpoint``.

    Every process of the default group calls it, with the same path and tree; without one, this
    process alone. Of a distributed leaf (``DTensor``) each process writes its part; any other leaf
    has one value, which one of them writes. If the directory holds a checkpoint already,
    the new data are written beside the old, and one rename switches to them: at any moment the
    directory holds the old checkpoint or the new one.

    A checkpoint may be any tree: a dict of a model, the state of an optimizer, a key and a number.

    Args:
        module: a module, or dicts, lists and tuples of modules, tensors, numbers and strings; its
            structure is not saved, only a description of it. Numbers and strings are those of the
            first process.
        path: the directory, which all processes see.
        blocking: whether to wait until it is written. Otherwise the tensors are copied to the CPU,
            and written while the program goes on; one checkpoint after the other.

    Returns:
        ``None``; or, if not ``blocking``, a future whose ``result()`` waits and raises what went
        wrong. The program does not end before it is written.

    Raises:
        NotADirectoryError: if the path is a file.
        OSError: if a file cannot be written; the checkpoint before is intact.
        TypeError: if it holds anything else, or a leaf is sparse.
        UninitializedError: if a leaf has no value yet.
        ValueError: if two leaves would have one name; or, in every process, if the processes give
            different paths or trees, or another one raises.

    Example:
        >>> import tempfile
        >>> from parallax import io, nn
        >>> model = nn.Linear(2, 1).initialize(0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saving = io.save_distributed(  # in every process
        ...         {"model": model, "step": 3}, f"{folder}/checkpoint", blocking=False
        ...     )
        ...     saving.result()  # when it must be there
        ...     again = io.load_distributed(
        ...         f"{folder}/checkpoint", like={"model": model, "step": 0}
        ...     )
        >>> again["step"]
        3
    """
    from parallax.io.switching import SwitchingWriter

    def prepare() -> tuple[dict[str, Tensor], list[str]]:
        check_path(path)
        check_flags("io.save_distributed", blocking=blocking)
        if Path(path).is_file():
            raise NotADirectoryError(f"{os.fspath(path)} is a file; name a directory")
        tensors, facts = _tensors(module)
        facts = [_place(path), f"it is called with {blocking=}", *facts]
        return tensors if blocking else background.copied(tensors), facts

    tensors = _together("io.save_distributed", prepare)
    writer = SwitchingWriter(Path(path))
    if blocking:
        background.finished()
        _write(Path(path), tensors, writer)
        return None
    group = background.group()
    return background.start(lambda: _write(Path(path), tensors, writer, group))


def _together(what: str, prepare: Callable[[], tuple[M, list[str]]]) -> M:
    """Calls a function that can fail; if it fails in one process, there is an error in each.

    What it returns beside its result must be alike in all processes, too. What comes after are
    collectives, in which the others would wait for a process that has failed.
    """
    if directories.is_alone():
        return prepare()[0]
    from parallax.distributed.agreement import agree

    made: list[M] = []

    def lines() -> list[str]:
        result, facts = prepare()
        made.append(result)
        return facts

    agree(what, lines, None, "Give every process the same path and tree")
    return made[0]


def _place(path: str | os.PathLike[str]) -> str:
    return f"the path is {os.path.abspath(path)}"


def _tensors(module: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that this process gives a directory, and what is alike in all processes.

    The header goes along in the first process alone, for it has the numbers and strings.
    """
    parts, _ = take_apart(module, "save_distributed()")
    tensors, constants = named_tensors(parts)
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise UninitializedError(
                f"save_distributed: {name} is on the meta device and has no value. "
                f"Initialize the model first: model.initialize(0)"
            )
        if tensor.layout != torch.strided:
            raise TypeError(
                f"save_distributed: {name} has the layout {tensor.layout}, which torch cannot "
                f"write in pieces. Save it in one file: io.save(module, 'name.pt')"
            )
    nodes = nodes_of_tree(parts)
    facts = [f"{node[0] or 'the tree'} is {show(node)}" for node in nodes]
    for name, tensor in tensors.items():
        placement = shards.shown(tensor)
        facts.append(f"{name} is {tensor.dtype}{list(tensor.shape)} ({placement})")
    if directories.is_alone() or dist.get_rank() == 0:
        header = dump_header(nodes, None, constants).encode()
        tensors[_HEADER] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
    return tensors, facts


def load_distributed(path: str | os.PathLike[str], like: T, *, cast: bool = False) -> T:
    """Loads what ``save_distributed`` saved into a module or tree of the structure of ``like``.

    Every process of the default group calls it, with the same path; without one, this process
    alone.

    Args:
        path: the directory.
        like: a module or tree of the structure, which stays as it is; leaves may be on the meta
            device. Where its leaves are distributed (``DTensor``), so are those of the result, each
            process reading its part, however many wrote the checkpoint.
        cast: convert values to the dtype of the leaf; otherwise another dtype is an error.

    Returns:
        The module or tree.

    Raises:
        FileNotFoundError: if the directory holds no checkpoint.
        RuntimeError: if names, shapes or dtypes do not fit; all of them are listed.
        ValueError: if a file is truncated or not a checkpoint, or a leaf has a value neither in it
            nor in ``like``; or, in every process, if the processes give different paths, or
            another one raises.

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
    what = "io.load_distributed"

    def find() -> tuple[tuple[list[Part], Any, dict[str, Tensor]], list[str]]:
        check_path(path)
        check_flags(what, cast=cast)
        parts, spec = take_apart(like, "load_distributed(like=)")
        background.finished()
        saved = saved_tensors(Path(path))
        held = [f"it holds {name}, {t.dtype}{list(t.shape)}" for name, t in saved.items()]
        return (parts, spec, saved), [_place(path), *held]

    parts, spec, saved = _together(what, find)
    header: dict[str, Any] = {"metadata": {}}
    if _HEADER in saved:
        text = {_HEADER: torch.empty_like(saved.pop(_HEADER), device="cpu")}
        _read(path, text)
        header = _header(bytes(text[_HEADER].tolist()), path)

    def fit() -> tuple[dict[str, Tensor], list[str]]:
        targets = _targets(parts, header, saved)
        _check(saved, targets, cast, path)
        return targets, ["the tree fits the checkpoint"]

    targets = _together(what, fit)
    _read(path, targets)

    def fill() -> tuple[list[Any], list[str]]:
        try:
            made = filled(parts, header, targets, True, cast)
        except RuntimeError as error:
            raise RuntimeError(f"{os.fspath(path)}: {error}") from None
        for value in made:
            require_complete(value, path)
        return made, ["the tree is loaded"]

    made = _together(what, fill)
    return made[0] if spec is None else spec.unflatten(made)  # type: ignore[no-any-return]  # as like


def _write(path: Path, tensors: dict[str, Tensor], writer: Any, group: Any = None) -> None:
    """Writes tensors, all processes together."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        directories.write(tensors, writer, group)
    except CheckpointException as error:
        writer.discard()
        cause = next(failure for failure, _ in error.failures.values())
        raise OSError(
            f"{path} could not be written: {cause}. What was there before is intact"
        ) from error


def _read(path: str | os.PathLike[str], targets: dict[str, Tensor]) -> None:
    """Reads into tensors, all processes together."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        directories.read(os.fspath(path), targets)
    except CheckpointException as error:
        cause = next(failure for failure, _ in error.failures.values())
        raise unreadable(
            path, cause if isinstance(cause, OSError) else type(cause).__name__
        ) from error


def _header(text: bytes, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        return load_header(text.decode())
    except ValueError as error:
        raise unreadable(path, error) from error


# -- into a tree ----------------------------------------------------------------------------------


def _targets(
    parts: list[Part], header: dict[str, Any], saved: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Fresh tensors to read into, for a checkpoint is loaded in place; ties stay ties."""
    targets = {}
    for part in parts:
        if not is_module(part.value):
            if isinstance(part.value, Tensor | Lazy):
                targets[part.path] = _fresh(part.value)
            continue
        begin = part.start
        mine = {n.removeprefix(begin): t for n, t in saved.items() if n.startswith(begin)}
        leaves, structure = flatten_module(as_saved(part.value, below(header, part.path), mine))
        fresh: dict[int, Tensor] = {}
        for name, k in names_of(structure):
            leaf = leaves[k]
            if leaf is not None:
                if k not in fresh:
                    fresh[k] = _fresh(leaf)
                targets[begin + name] = fresh[k]
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
