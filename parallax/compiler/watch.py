"""Whether the classes of modules are still what they were when a graph was made.

Modules are made anew while tracing, so dynamo does not guard their methods. A class that changes
(``Net.forward = ...``) moves a clock; only then are the classes of a graph compared.
"""

from __future__ import annotations

from typing import Any

from parallax.core.nodes import CLASS_CLOCK
from parallax.core.structure import Structure

__all__ = ["Watch"]

_OWN = ("__layout__", "__ready__", "_abc_impl", "__abstractmethods__")  # written by the metaclasses


class Watch:
    """What the classes of the modules in ``tokens`` hold now."""

    def __init__(self, tokens: tuple[Any, ...]) -> None:
        self._time = CLASS_CLOCK.time
        structures = [token for token in tokens if type(token) is Structure]
        classes = {node.cls for structure in structures for node in structure.nodes()}
        bases = {base for cls in classes for base in cls.__mro__ if base is not object}
        self._held = {base: dict(vars(base)) for base in bases}

    def unchanged(self) -> bool:
        """Whether no class holds anything else than at the start."""
        time = CLASS_CLOCK.time
        if self._time != time:
            if not all(_same(vars(cls), held) for cls, held in self._held.items()):
                return False
            self._time = time
        return True


def _same(now: Any, held: dict[str, Any]) -> bool:
    names = held.keys() | now.keys()
    return all(now.get(name) is held.get(name) for name in names if name not in _OWN)
