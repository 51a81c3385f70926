"""Torch's own database of modules and their inputs, which ships in the wheel."""

from __future__ import annotations

import sys
import types
import unittest
from typing import Any

__all__ = ["MODULES"]


def _modules() -> list[Any]:
    # Torch's test helpers want expecttest for a base class that nothing here uses.
    missing = "expecttest" not in sys.modules
    if missing:
        stand_in: Any = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase
        sys.modules["expecttest"] = stand_in
    try:
        from torch.testing._internal.common_modules import module_db
    finally:
        if missing:
            del sys.modules["expecttest"]
    return list(module_db)


MODULES = _modules()
