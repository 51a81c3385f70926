"""Whether a derivative of ``func`` runs in this thread, so that nothing is left out silently."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

from parallax._compat import dynamo, mended, once, underivable
from parallax._compat.trace_derivatives import differentiated, is_taken
from parallax.tree.recording import RUNNING

__all__ = ["EXPANDED", "derivative_runs", "refuse_what_has_no_derivative"]


class _Within(threading.local):
    """The number of functions that run in transforms of ``torch.func``; entered for each."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


WITHIN = _Within()
EXPANDED = _Within()
"""The number of compiled functions whose Taylor expansion is computed of their graphs."""


def derivative_runs() -> AbstractContextManager[object]:
    """Within it a function runs, or is traced, that a transform differentiates."""
    return differentiated() if dynamo.is_compiling() else WITHIN


@dynamo.constant_in_traces
def refuse_what_has_no_derivative() -> None:
    """Has torch ask before it takes something for constant; once, before a first derivative.

    Operators whose first derivative is wrong are mended.
    """
    if underivable.refuse_derivatives(_asked):
        mended.mend()
    once.refuse_in_transforms(_running)


def _asked() -> bool:
    return EXPANDED.depth > 0 or is_taken(_running)


def _running() -> bool:
    return RUNNING.depth > 0 or WITHIN.depth > 0
