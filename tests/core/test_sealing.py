"""Sealing: what the general path does where the generated one steps aside."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
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


def test_a_value_is_converted_each_time() -> None:
    weight = torch.ones(2)
    rates = [Converted(weight, rate=2).rate for _ in range(3)]
    assert rates == [2.0] * 3 and {type(rate) for rate in rates} == {float}


def test_what_a_function_captures_is_released_with_the_latest_modules() -> None:
    class Applied(Module):
        fn: Callable[[Any], Any]

    class Captured:
        pass

    def keeping(held: Any) -> Callable[[Any], Any]:
        return lambda x: (held, x)

    captured = Captured()
    released = weakref.ref(captured)
    Applied(keeping(captured))
    del captured
    for number in range(20):
        Applied(keeping(number))
    gc.collect()
    assert released() is None
