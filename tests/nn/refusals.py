"""How tests see that a layer names its path where it refuses an input."""

from __future__ import annotations

import re
from typing import Any

import pytest
from torch import Tensor

from parallax import Module


class Net(Module):
    """Holds a layer, so that an error has a path to name."""

    layer: Module

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        return self.layer(*inputs, **keywords)


def assert_refused(layer: Module, misfit: Tensor, expected: str, no_tensor: Any) -> None:
    """``misfit`` is of another shape than ``expected``, which may be its beginning only."""
    path = f"Net.layer ({type(layer).__name__}): "
    said = f"{path}expected input of shape {expected}"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        Net(layer)(misfit)
    said = f"{path}input must be a tensor, got {type(no_tensor).__name__}"
    with pytest.raises(TypeError, match=f"^{re.escape(said)}"):
        Net(layer)(no_tensor)
