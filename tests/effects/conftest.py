"""What the tests of effects share."""

from __future__ import annotations

import pytest
from torch import Tensor

from parallax import random


@pytest.fixture
def x() -> Tensor:
    return random.normal(random.key(0), (8, 3)) * 2 + 1
