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
    lines = doc.split("\n\nArgs:\n")[1].split("\n\nRaises:\n")[0].splitlines()
    described = [line.split(":")[0].strip() for line in lines if line[4] != " "]
    assert sorted(described) == sorted(inspect.signature(optimizer).parameters)
    assert doc.endswith("ValueError: if torch refuses a value, a negative learning rate say.")


def test_what_an_optimizer_says_of_an_option_counts() -> None:
    assert "weight_decay: factor of the L2 penalty." in (optim.Adam.__doc__ or "")
    assert "weight_decay: how much of ``lr`` times itself" in (optim.AdamW.__doc__ or "")
    assert "lr: the first size of the steps." in (optim.Rprop.__doc__ or "")


def test_optimizers_that_users_write_keep_their_docstrings() -> None:
    class Mine(optim.SGD):
        """My own."""

    assert Mine.__doc__ == "My own."
