"""Writing a directory of ``torch.distributed.checkpoint`` so that it is the old or the new one.

Torch's writer takes the old metadata away and writes over the old data. Here the data go into a
folder of their own, of a new name. The metadata, which say where the data are, come last. The
rename that puts them in the place of the old ones is the switch: a process that is killed before
leaves the old checkpoint as it was. Torch's own reader reads such a directory as any other.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan

from parallax.io.writing import sync_folder

__all__ = ["SwitchingWriter"]

_START = "data-"
_FLAT = re.compile(r"__\d+_\d+\.distcp")  # data as torch's own writer calls them
_METADATA = ".metadata"


class SwitchingWriter(FileSystemWriter):
    """Writes a checkpoint beside the one that is in the directory, and switches at the end.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._directory = path
        self._folder: Path | None = None

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """In each process: torch's warns here that a checkpoint is there, which stays."""
        self._directory.mkdir(parents=True, exist_ok=True)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """In the process that coordinates: says to all of them where to write."""
        self._folder = self._directory / f"{_START}{self.save_id}"
        self._folder.mkdir()
        return [
            replace(
                plan,
                storage_data=replace(
                    plan.storage_data, prefix=f"{self._folder.name}/{plan.storage_data.prefix}"
                ),
            )
            for plan in super().prepare_global_plan(plans)
        ]

    def finish(self, metadata: Metadata, results: Any) -> None:
        """In the process that coordinates, when all have written: the switch."""
        assert self._folder is not None
        self.path = self._folder
        try:
            super().finish(metadata, results)
        finally:
            self.path = self._directory
        sync_folder(self._folder)
        (self._folder / _METADATA).replace(self._directory / _METADATA)
        sync_folder(self._directory)
        self._remove_others()

    def discard(self) -> None:
        """Removes what was written, after an error."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _remove_others(self) -> None:
        """Removes the data of the checkpoint before, and what killed processes left."""
        for path in self._directory.iterdir():
            if path.name.startswith(_START) and path != self._folder:
                shutil.rmtree(path, ignore_errors=True)
            elif _FLAT.fullmatch(path.name):
                with suppress(OSError):
                    path.unlink()
