"""Random programs compute what loops do: eager by two engines, and compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import parallax
from tests.random_programs import EAGER, differences, program

BLOCK = 30
COMPILED: dict[str, Any] = {
    "parallax.compile": lambda fn: parallax.compile(fn, backend="eager"),
    "torch.compile": lambda fn: torch.compile(fn, backend="eager", fullgraph=True),
}
SHORT = [seed for seed in range(200) if len(program(seed)[2]) == 1]
"""Programs of one transform, which compile quickly."""


@pytest.mark.parametrize("block", range(10))
def test_a_program_is_what_loops_compute(block: int) -> None:
    seeds = range(block * BLOCK, (block + 1) * BLOCK)
    assert not [line for seed in seeds for line in differences(seed, EAGER)]


@pytest.mark.slow
@pytest.mark.parametrize("block", range(1000))
def test_a_hundred_programs_are(block: int) -> None:
    seeds = range(1000 + block * 100, 1000 + (block + 1) * 100)
    assert not [line for seed in seeds for line in differences(seed, EAGER)]


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("seed", SHORT[:3])
def test_a_compiled_program_is(seed: int) -> None:
    assert not differences(seed, COMPILED)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("seed", range(100))
def test_any_compiled_program_is(seed: int) -> None:
    assert not differences(seed, COMPILED)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("seed", SHORT[:20])
def test_a_program_on_the_default_backend_is(seed: int) -> None:
    assert not differences(seed, {"inductor": parallax.compile})
