"""Both engines mean what ``torch.func`` means, however transforms are nested and mixed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parallax.func import engines
from tests.func.programs import Ours, Reference, build, programs

DOUBLE = torch.float64
W = torch.tensor([0.3, -0.7, 0.5], dtype=DOUBLE)
B = torch.tensor([0.2, 0.4, -0.6], dtype=DOUBLE)
X = torch.tensor([0.9, -0.3, 0.1], dtype=DOUBLE)
C = torch.tensor([0.5, 0.8, -0.2], dtype=DOUBLE)


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Takes the tape away, so that the other engine has to do it all."""
    before = engines.on_tape
    if name == "functorch":
        engines.on_tape = lambda: False
    try:
        yield
    finally:
        engines.on_tape = before


ENGINES = pytest.mark.parametrize("name", ["tape", "functorch"])


def results(program: Any, side: Any, wants: tuple[bool, ...], second: bool) -> list[Tensor]:
    """The gradient at the top, the derivatives behind it, and what requires grad."""
    w, b, x, c = (
        t.clone().requires_grad_(want) for t, want in zip((W, B, X, C), wants, strict=True)
    )
    fn = build(program, side)
    (gp, gx), value = side.lib.grad_and_value(fn, argnums=(0, 1))(side.point(w, b), x, c)
    first = [*side.leaves(gp), gx, value]
    out = [t.detach() for t in first]
    if second and any(t.requires_grad for t in first):
        total = sum(
            [(t * t).sum() for t in first if t.requires_grad], torch.zeros((), dtype=DOUBLE)
        )
        total.backward()
        out += [torch.zeros_like(t) if t.grad is None else t.grad for t in (w, b, x, c)]
    return out


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, check_dtype=False)


@ENGINES
@given(
    program=programs(),
    wants=st.tuples(*[st.booleans()] * 4),
)
def test_programs_nested_three_deep_and_an_outer_backward(
    name: str, program: Any, wants: tuple[bool, ...]
) -> None:
    with engine(name):
        ours = results(program, Ours, wants, second=True)
    same(ours, results(program, Reference, wants, second=True))


@ENGINES
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no", "inference"])
@given(program=programs(2))
def test_programs_without_a_recording_around_them(name: str, mode: Any, program: Any) -> None:
    with engine(name), mode():
        ours = results(program, Ours, (False,) * 4, second=False)
    same(ours, results(program, Reference, (False,) * 4, second=False))


@ENGINES
@given(program=programs(2), wants=st.tuples(*[st.booleans()] * 4))
def test_who_requires_grad_is_the_same(name: str, program: Any, wants: tuple[bool, ...]) -> None:
    leaves = [t.clone().requires_grad_(want) for t, want in zip((W, B, X, C), wants, strict=True)]
    marks = []
    for side in (Ours, Reference):
        with engine(name):
            fn = build(program, side)
            point = side.point(leaves[0], leaves[1])
            grads, value = side.lib.grad_and_value(fn)(point, leaves[2], leaves[3])
        marks.append([t.requires_grad for t in (*side.leaves(grads), value)])
    assert marks[0] == marks[1]


@pytest.mark.slow
@given(program=programs(4), wants=st.tuples(*[st.booleans()] * 4))
def test_deeper_programs(program: Any, wants: tuple[bool, ...]) -> None:
    ours = results(program, Ours, wants, second=True)
    same(ours, results(program, Reference, wants, second=True))
