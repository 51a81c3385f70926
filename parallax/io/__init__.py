"""Files: save a module's leaves, load them into a module of the same structure."""

from typing import TYPE_CHECKING, Any

from parallax.io.checkpoints import Checkpoints
from parallax.io.distributed import load_distributed, save_distributed
from parallax.io.files import load, metadata, read, save
from parallax.io.report import Report, report

__all__ = [
    "Checkpoints",
    "Report",
    "load",
    "load_distributed",
    "metadata",
    "read",
    "report",
    "save",
    "save_distributed",
]


if not TYPE_CHECKING:  # checkers would accept every name otherwise

    def __getattr__(name: str) -> Any:
        from parallax._errors.absent import no_such_name

        raise no_such_name(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)
