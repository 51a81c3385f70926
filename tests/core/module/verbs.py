"""What the tests of a module's verbs share."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from tests.corpus import FLOAT, MODULES

# What a registered class holds itself is no Parameter, hence not trained.
TRAINED = [case for case in FLOAT if case.name != "foreign"]

every_module = pytest.mark.parametrize("case", MODULES, ids=str)


def sum_of(module: Any, x: Tensor) -> Any:
    return module(x).sum()
