"""Lets pickles of Parallax 0.1 find the functions that have moved since.

A pickle names functions by their module. Files that 0.1 wrote name four modules that are rooms no
more; each stands here with the very names that such a file can hold, and nothing else.
"""

import sys
from types import ModuleType
from typing import Any

from parallax.core.fields import Buffer, Lazy, Parameter, _restore_lazy
from parallax.core.frozendict import FrozenDict
from parallax.core.module import _restore
from parallax.core.structure import decode

__all__: list[str] = []

_MOVED: dict[str, dict[str, Any]] = {
    "parallax.fields": {
        "Buffer": Buffer,
        "Lazy": Lazy,
        "Parameter": Parameter,
        "_restore_lazy": _restore_lazy,
    },
    "parallax.frozendict": {"FrozenDict": FrozenDict},
    "parallax.module": {"_restore": _restore},
    "parallax.structure": {"decode": decode},
}

for _name, _names in _MOVED.items():
    _module = ModuleType(_name, "Names for pickles of 0.1.")
    _module.__dict__.update(_names)
    sys.modules[_name] = _module
