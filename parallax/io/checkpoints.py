"""``Checkpoints``: a directory of numbered checkpoints, of which the latest are kept."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from parallax._errors.arguments import check_flags, shown
from parallax.io import background, files
from parallax.io.reading import check_path

__all__ = ["Checkpoints"]

T = TypeVar("T")
_NAME = re.compile(r"step-(0|[1-9]\d*)\.(pt|safetensors)")
_FAMILY = "step-*"
_SUFFIXES = (".pt", ".safetensors")
_TRIES = 8  # a process that saves may remove the latest between its being found and being opened


@dataclass(frozen=True)
class Checkpoints:
    """A directory of numbered checkpoints, of which the latest are kept.

    The checkpoint of step 300 is the file ``step-300.pt``, which ``io.load`` reads, too. It has
    that name only when it is whole and on the disk; so whatever happens to a process that saves,
    the directory holds whole checkpoints. What killed processes left is removed by the next save.
    Older checkpoints are removed when the new one is there.

    One process at a time saves into a directory; any number of them may read.

    Args:
        path: the directory; ``save`` makes it.
        keep: how many checkpoints are kept; ``None`` for all.
        suffix: ``".pt"`` for torch's format, or ``".safetensors"``.

    Raises:
        TypeError: if ``path`` is no path, or ``keep`` no int.
        ValueError: if ``keep`` is less than 1, or the suffix another.

    Example:
        >>> import tempfile
        >>> from parallax import io, nn
        >>> model = nn.Linear(2, 1).initialize(0)
        >>> folder = tempfile.TemporaryDirectory()
        >>> checkpoints = io.Checkpoints(folder.name, keep=2)
        >>> run = checkpoints.resume({"model": model, "step": 0})  # there is none yet
        >>> for step in range(run["step"] + 1, 5):
        ...     run = {"model": run["model"], "step": step}
        ...     checkpoints.save(run, step)
        >>> checkpoints.steps()
        (3, 4)
        >>> checkpoints.resume({"model": model, "step": 0})["step"]
        4
        >>> checkpoints.file().name, checkpoints.load(run, step=3)["step"]
        ('step-4.pt', 3)
        >>> folder.cleanup()
    """

    path: str | os.PathLike[str]
    keep: int | None = 3
    suffix: str = ".pt"

    def __post_init__(self) -> None:
        check_path(self.path)
        if self.keep is not None and (type(self.keep) is not int):
            raise TypeError(
                f"io.Checkpoints(keep=): expected an int or None, got {shown(self.keep)}. "
                f"Write keep=3"
            )
        if self.keep is not None and self.keep < 1:
            raise ValueError(
                f"io.Checkpoints(keep=): must be at least 1, got {self.keep}. Write keep=3, or "
                f"keep=None for all"
            )
        if self.suffix not in _SUFFIXES:
            raise ValueError(
                f"io.Checkpoints(suffix=): expected '.pt' or '.safetensors', got "
                f"{shown(self.suffix)}. Write suffix='.pt'"
            )

    def steps(self) -> tuple[int, ...]:
        """The steps of the checkpoints that are there, in order.

        Returns:
            Their numbers; none if there is no directory. It waits for those under way.
        """
        background.finished()
        return tuple(self._files())

    @overload
    def save(
        self,
        module: Any,
        step: int,
        *,
        metadata: Mapping[str, Any] | None = None,
        blocking: Literal[True] = True,
    ) -> None: ...
    @overload
    def save(
        self,
        module: Any,
        step: int,
        *,
        metadata: Mapping[str, Any] | None = None,
        blocking: Literal[False],
    ) -> Future[None]: ...
    def save(
        self,
        module: Any,
        step: int,
        *,
        metadata: Mapping[str, Any] | None = None,
        blocking: bool = True,
    ) -> Future[None] | None:
        """Saves a module or tree as the checkpoint of a step, and removes the oldest.

        Args:
            module: as of ``io.save``.
            step: its number; not less than that of the latest checkpoint, which it may replace.
            metadata: as of ``io.save``.
            blocking: as of ``io.save``.

        Returns:
            ``None``; or, if not ``blocking``, a future whose ``result()`` waits and raises what
            went wrong.

        Raises:
            NotADirectoryError: if the path is a file.
            OSError: if the file cannot be written; those before are intact.
            TypeError: as ``io.save``; or if the step is no int.
            UninitializedError: as ``io.save``.
            ValueError: if the step is negative, or less than that of the latest checkpoint.
        """
        check_flags("Checkpoints.save", blocking=blocking)
        _check_step("save", step)
        folder = Path(self.path)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file. Name a directory: io.Checkpoints('run')")
        if blocking:
            background.finished()
        self._require_latest(step)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"step-{step}{self.suffix}"
        write = files.prepared(module, target, metadata, copied=not blocking, family=_FAMILY)

        def save() -> None:
            self._require_latest(step)  # of those that were under way
            write()
            self._remove_old(step)

        if not blocking:
            return background.start(save)
        save()
        return None

    def load(
        self, like: T, *, step: int | None = None, strict: bool = True, cast: bool = False
    ) -> T:
        """Loads a checkpoint, by default the latest, into the structure of ``like``.

        Args:
            like: as of ``io.load``.
            step: which checkpoint. The latest is looked for again if another process has just
                removed it.
            strict: as of ``io.load``.
            cast: as of ``io.load``.

        Returns:
            The module or tree.

        Raises:
            FileNotFoundError: if there is no checkpoint, or none of this step; those that are
                there are listed.
            RuntimeError: as ``io.load``.
            ValueError: as ``io.load``.
        """
        for _ in range(_TRIES if step is None else 0):
            path = self.file()
            try:
                return files.load(path, like=like, strict=strict, cast=cast)
            except FileNotFoundError:
                if path.exists():  # then it is another file that is missing
                    raise
        return files.load(self.file(step), like=like, strict=strict, cast=cast)

    def resume(self, run: T, *, strict: bool = True, cast: bool = False) -> T:
        """The latest checkpoint, or what a run begins with if there is none.

        Args:
            run: what it begins with, and the structure of the checkpoint.
            strict: as of ``io.load``.
            cast: as of ``io.load``.

        Returns:
            The checkpoint, or ``run`` itself.

        Raises:
            RuntimeError: as ``io.load``.
            ValueError: as ``io.load``.
        """
        return self.load(like=run, strict=strict, cast=cast) if self.steps() else run

    def file(self, step: int | None = None) -> Path:
        """The file of a checkpoint, by default of the latest.

        Args:
            step: which checkpoint.

        Returns:
            Its path.

        Raises:
            FileNotFoundError: as ``load``.
            TypeError: if the step is no int.
        """
        if step is not None:
            _check_step("file", step)
        background.finished()
        found = self._files()
        if not found:
            raise FileNotFoundError(
                f"there is no checkpoint in {os.fspath(self.path)}. Begin a run and save one: "
                f"Checkpoints.save(run, step)"
            )
        if step is not None and step not in found:
            raise FileNotFoundError(
                f"there is no checkpoint of step {step} in {os.fspath(self.path)}; there are "
                f"{', '.join(map(str, found))}"
            )
        return found[max(found) if step is None else step]

    def _files(self) -> dict[int, Path]:
        """The checkpoints that are there, by step, in order."""
        folder = Path(self.path)
        if not folder.is_dir():
            return {}
        names = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
        found = sorted([(int(name[1]), path) for name, path in names if name is not None])
        return dict(found)

    def _require_latest(self, step: int) -> None:
        """Raises if there is a checkpoint of a later step."""
        latest = max(self._files(), default=step)
        if latest > step:
            raise ValueError(
                f"Checkpoints.save(step={step}): {os.fspath(self.path)} holds a checkpoint of step "
                f"{latest}, which would count as the later one. Save into another directory, or "
                f"remove the later files"
            )

    def _remove_old(self, step: int) -> None:
        """Removes all but the latest, and one of the same step in the other format."""
        old = [Path(self.path) / f"step-{step}{s}" for s in _SUFFIXES if s != self.suffix]
        if self.keep is not None:
            old += list(self._files().values())[: -self.keep]
        for path in old:
            with suppress(OSError):  # somebody reads it, or was faster: the next save tries
                path.unlink()


def _check_step(method: str, step: Any) -> None:
    if type(step) is not int:
        raise TypeError(
            f"Checkpoints.{method}(step=): expected an int, got {shown(step)}. Write step=100"
        )
    if step < 0:
        raise ValueError(f"Checkpoints.{method}(step=): must be at least 0, got {step}")
