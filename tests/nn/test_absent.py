"""Names of ``torch.nn`` that ``parallax.nn`` has not say what to write."""

from __future__ import annotations

import pytest
import torch

from parallax import nn


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Parameter", "from parallax import Parameter"),
        ("ModuleList", r"'layers: Sequence\[Module\]'"),
        ("ModuleDict", r"'heads: dict\[str, Module\]'"),
        ("init", "from torch.nn import init"),
        ("functional", "import torch.nn.functional as F"),
        ("CrossEntropyLoss", "F.cross_entropy"),
        ("LazyLinear", r"bridge.lift\(module, sample=x\)"),
        ("Fold", r"bridge.lift\(torch.nn.Fold"),
    ],
)
def test_it_says_what_to_write(name: str, line: str) -> None:
    assert hasattr(torch.nn, name) and not hasattr(nn, name)
    with pytest.raises(AttributeError, match=f"'parallax.nn' has no attribute '{name}'. .*{line}"):
        getattr(nn, name)


def test_a_slip_gets_the_usual_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'parallax.nn' has no attribute 'Linaer'$"):
        _ = nn.Linaer  # type: ignore[attr-defined]  # what is refused
