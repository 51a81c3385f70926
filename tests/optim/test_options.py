"""Docstrings of optimizers: whole at run time."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from parallax import optim

OPTIMIZERS = [
    value
    for value in map(optim.__dict__.get, optim.__all__)
    if isinstance(value, type)
    and issubclass(value, optim.Optimizer)
    and value is not optim.Optimizer
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.__name__)
def test_every_argument_is_described_once(optimizer: Any) -> None:
    doc = inspect.getdoc(optimizer) or ""
    arguments, rest = doc.split("\n\nArgs:\n")[1].split("\n\nRaises:\n")
    described = [line.split(":")[0].strip() for line in arguments.splitlines() if line[4] != " "]
    assert sorted(described) == sorted(inspect.signature(optimizer).parameters)
    raises, example = rest.split("\n\nExample:\n")
    assert raises == "    ValueError: if a value is refused, such as a negative learning rate."
    assert example.startswith("    >>> ")


def test_what_an_optimizer_says_of_an_option_counts() -> None:
    assert "weight_decay: factor of the L2 penalty." in (optim.Adam.__doc__ or "")
    assert "weight_decay: each step multiplies" in (optim.AdamW.__doc__ or "")
    assert "lr: the first size of the steps." in (optim.Rprop.__doc__ or "")


def test_optimizers_that_users_write_keep_their_docstrings() -> None:
    class Mine(optim.SGD):
        """My own."""

    assert Mine.__doc__ == "My own."
