"""Where ties are found: one tensor in several places."""

from __future__ import annotations

from typing import Any

import torch

from parallax import Module, Parameter, nn
from parallax.core.module_structure import spec_of
from parallax.core.ties import find_ties


def test_ties_are_found_by_identity_and_numbers_are_none() -> None:
    one, two = torch.ones(1), torch.ones(1)
    assert find_ties([one, two, None, None, 3, 3]) == ((one, two, None, None, 3, 3), None)
    unique, expand = find_ties([one, None, two, one, None])
    assert unique[0] is one and unique[2] is two and expand == (0, 1, 2, 0, 3)
    assert len(unique) == 4 and unique[1] is None and unique[3] is None


def test_a_module_given_twice_is_one() -> None:
    class Two(Module):
        first: Module
        second: Module

    layer = nn.Linear(2, 2).initialize(0)
    assert spec_of(Two(layer, layer)).expand == (0, 1, 0, 1)


def test_several_holes_are_no_tie_and_hide_none() -> None:
    class Two(Module):
        first: nn.Linear
        second: nn.Linear
        third: Parameter | None

    one, two = (nn.Linear(2, 2, bias=False).initialize(k) for k in range(2))
    weight: Any = two.weight
    Two(one, two, None)  # the second module of a class is made by its generated code
    assert spec_of(Two(one, two, None)).expand is None
    assert spec_of(Two(one, two, weight)).expand == (0, 1, 2, 3, 2)
    assert spec_of(Two(one, one, None)).expand == (0, 1, 0, 2, 3)
