"""Checks of arguments: what is let through, and what an error says of the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallax import nn
from parallax._errors.arguments import check_flags, check_function, check_module, shown
from tests.bad_input.errors import says


def test_what_is_right_goes_through() -> None:
    check_flags("f", one=True, two=False)
    for callable_ in (torch.neg, str, lambda: 0, nn.Linear(2, 3)):
        check_function("f", callable_, "f(torch.neg)")
    check_module("f", nn.Linear(2, 3))


@pytest.mark.parametrize("value", [1, 0, None, "no", torch.tensor(True), torch.ones(2)])
def test_a_flag_is_a_bool_and_nothing_that_counts_as_one(value: Any) -> None:
    with says(TypeError, "layer(bias=)", "expected a bool", shown(value), "Write bias=True"):
        check_flags("layer", other=True, bias=value)


def test_the_errors_name_the_argument_and_a_call_that_is_right() -> None:
    with says(TypeError, "f(op=)", "expected a function", "got 3", "f(torch.neg)"):
        check_function("f", 3, "f(torch.neg)", "op")
    with says(TypeError, "f(model=)", "a Linear, which is a torch.nn.Module", "bridge.lift"):
        check_module("f", torch.nn.Linear(2, 3), "model")
    with says(TypeError, "f(module=)", "the class Linear", "nn.Linear(2, 3)"):
        check_module("f", nn.Linear)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ("wrong", "'wrong'"),
        (2.5, "2.5"),
        ("x" * 1000, "'" + "x" * 59),
        (torch.ones(50, 70), "a tensor of shape (50, 70)"),
        (torch.float16, "torch.float16"),
        (torch.device("cpu"), "device(type='cpu')"),
        ((1, "a"), "(1, 'a')"),
        ((1,), "(1,)"),
        ([torch.ones(2)], "[a tensor of shape (2,)]"),
        (list(range(100)), "a list"),
        (nn.Linear(2, 3), "a Linear"),
        (nn.Linear, "the class Linear"),
        (torch.relu, "the function relu"),
        (object(), "a object"),
    ],
)
def test_what_came_is_shown_in_a_few_words(value: Any, text: str) -> None:
    assert shown(value) == text
