"""Sealing: what the general path does where the generated one steps aside."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallax import Module, Parameter, UninitializedError, field
from parallax.core.module_structure import spec_of


class Plain(Module):
    weight: Parameter


class Converted(Module):
    weight: Parameter
    rate: float = field(default=1, converter=float)


class Several(Module):
    weights: tuple[Parameter, ...]


@pytest.mark.parametrize(
    ("make", "owner"),
    [
        (lambda p: Plain(p), "Plain.weight"),
        (lambda p: Converted(p), "Converted.weight"),
        (lambda p: Several((p,)), "Several.weights[0]"),
    ],
)
def test_a_declaration_knows_the_field_it_was_given_to(make: Any, owner: str) -> None:
    declared = Parameter((2,), torch.nn.init.zeros_)
    made = make(declared)
    with pytest.raises(UninitializedError, match=owner.replace("[", r"\[")):
        _ = declared + 1
    make(declared)
    assert spec_of(made).cls is type(made)
