"""Sealing: what the general path does where the generated one steps aside."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallax import Module, Parameter, UninitializedError, field, nn
from parallax.core.layout import find_ties, spec_of


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


def test_ties_are_found_by_identity_and_numbers_are_none() -> None:
    one, two = torch.ones(1), torch.ones(1)
    assert find_ties([one, two, None, None, 3, 3]) == ((one, two, None, None, 3, 3), None)
    unique, expand = find_ties([one, two, one])
    assert unique[0] is one and unique[1] is two and expand == (0, 1, 0)


def test_a_module_given_twice_is_one() -> None:
    class Two(Module):
        first: Module
        second: Module

    layer = nn.Linear(2, 2).initialize(0)
    assert spec_of(Two(layer, layer)).expand == (0, 1, 0, 1)
