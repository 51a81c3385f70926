"""Every public name of ``torch.nn`` and ``torch.func`` is here, or says what to write instead."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
import torch

from parallax import func, nn
from parallax.nn import absent

TORCHS = [name for name in dir(torch.nn) if not name.startswith("_")]
ABSENT = [name for name in TORCHS if not hasattr(nn, name)]


@pytest.mark.parametrize("name", ABSENT)
def test_every_absent_name_has_a_line(name: str) -> None:
    assert name in absent.INSTEAD or name.startswith("Lazy"), f"{name}: add a line to nn.absent"
    with pytest.raises(AttributeError, match=f"'parallax.nn' has no attribute '{name}'. Write: "):
        getattr(nn, name)


def test_no_line_is_left_over() -> None:
    # Imported where something asks for them.
    for name in ("intrinsic", "qat", "quantizable", "quantized"):
        importlib.import_module(f"torch.nn.{name}")
    assert [name for name in absent.INSTEAD if not hasattr(torch.nn, name)] == []
    assert [name for name in absent.INSTEAD if name in nn.__all__] == []


@pytest.mark.parametrize(
    "name", [n for n in dir(torch.func) if not n.startswith("_") and n not in func.__all__]
)
def test_every_absent_transform_has_a_line(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'parallax.func' has no attribute '{name}'. Write: "):
        getattr(func, name)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Parameter", "from parallax import Parameter"),
        ("ModuleList", r"'layers: Sequence\[Module\]'"),
        ("ModuleDict", r"'heads: dict\[str, Module\]'"),
        ("ParameterList", r"'weights: Sequence\[Parameter\]'"),
        ("ParameterDict", r"'weights: dict\[str, Parameter\]'"),
        ("init", "from torch.nn import init"),
        ("functional", "import torch.nn.functional as F"),
        ("LazyLinear", r"nn.Linear with its input size, which func.eval_shape\("),
    ],
)
def test_it_says_what_to_write(name: str, line: str) -> None:
    assert hasattr(torch.nn, name) and not hasattr(nn, name)
    with pytest.raises(AttributeError, match=f"'parallax.nn' has no attribute '{name}'. .*{line}"):
        getattr(nn, name)


@pytest.mark.parametrize("room", [nn, func])
def test_a_slip_gets_the_usual_error(room: ModuleType) -> None:
    with pytest.raises(AttributeError, match=rf"module '{room.__name__}' has no attribute 'Gard'$"):
        _ = room.Gard


def test_a_class_of_a_later_torch_can_be_lifted(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.nn, "Later", type("Later", (), {}), raising=False)
    with pytest.raises(AttributeError, match=r"bridge.lift\(torch.nn.Later\(...\)\)"):
        getattr(nn, "Later")  # noqa: B009  # checkers know no such name
