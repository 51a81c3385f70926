"""x"""

from __future__ import annotations

import pytest
from torch.nn import init

from parallax import Buffer, Module, Parameter


def test_a_buffer_slot_takes_a_declaration_of_a_buffer_only() -> None:
    class Both(Module):
        a: Parameter
        b: Buffer

    with pytest.raises(TypeError, match=r"Both\.b is annotated Buffer.*'b: Parameter'"):
        Both(Parameter((1,), init.ones_), Parameter((1,), init.ones_))
