"""Checks at run time.

- ``pure``, ``deterministic``, ``nans``: does a function change what it is given, does it repeat
  itself, where do non-finite numbers begin? ``shapes``: do tensors have the shapes that annotations
  of jaxtyping say? Each returns a function of the same arguments and results that checks as it
  runs, for looking into something and not for training.
- ``check``: an assertion about the numbers in tensors, in mapped and compiled code, too.
- ``trace_counts``: how often functions were compiled, and why.
"""

from typing import TYPE_CHECKING, Any

from parallax.debug.check import CheckError, check
from parallax.debug.deterministic import deterministic
from parallax.debug.nans import NonFiniteError, nans
from parallax.debug.pure import ImpureError, pure
from parallax.debug.shapes import ShapeError, shapes
from parallax.debug.trace_counts import trace_counts

__all__ = [
    "CheckError",
    "ImpureError",
    "NonFiniteError",
    "ShapeError",
    "check",
    "deterministic",
    "nans",
    "pure",
    "shapes",
    "trace_counts",
]


if not TYPE_CHECKING:  # checkers would accept every name otherwise

    def __getattr__(name: str) -> Any:
        from parallax._errors.absent import no_such_name

        raise no_such_name(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)
