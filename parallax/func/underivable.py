"""Whether a derivative of ``func`` runs in this thread, so that nothing is left out silently."""

from __future__ import annotations

import threading

from parallax._compat import underivable
from parallax.tree.recording import RUNNING

__all__ = ["WITHIN", "refuse_what_has_no_derivative"]


class _Within(threading.local):
    """The number of functions that run in transforms of ``torch.func``; entered for each."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


WITHIN = _Within()


def refuse_what_has_no_derivative() -> None:
    """Has torch ask before it takes an operator for constant; once, before a first derivative."""
    underivable.refuse_derivatives(_running)


def _running() -> bool:
    return RUNNING.depth > 0 or WITHIN.depth > 0
