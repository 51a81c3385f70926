"""Numbers and sizes: which become symbols, and when there are too many graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from parallax import Module, Parameter
from tests.compiling import graphs, make_compiled
from tests.corpus import Dense, Scale

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_numbers_become_symbols_and_do_not_recompile_for_ever() -> None:
    compiled = make_compiled(lambda x, n, rate: x * n + rate, backend="eager")
    x = torch.ones(2)
    for n in range(10):
        torch.testing.assert_close(compiled(x, n, n / 4), x * n + n / 4)
    assert graphs() <= 4


def test_sizes_of_plain_tensors_become_symbolic() -> None:
    compiled = make_compiled(lambda scale, x: scale(x) * x.shape[0], backend="aot_eager")
    scale = Scale(torch.ones(3))
    for n in (4, 5, 6, 7, 1, 9, 4, 0, 12, 1):
        x = torch.randn(n, 3)
        torch.testing.assert_close(compiled(scale, x), scale(x) * n)
    assert graphs() <= 4
    with pytest.raises(RuntimeError):
        compiled(scale, torch.randn(4, 2))
    x = torch.randn(3, 8).t()
    torch.testing.assert_close(compiled(scale, x), scale(x) * 8)


def test_dynamic_false_makes_a_graph_per_size_and_true_one() -> None:
    for dynamic, made in ((False, 3), (True, 1)):
        torch.compiler.reset()
        counters.clear()
        compiled = make_compiled(lambda x: x + x.shape[0], backend="eager", dynamic=dynamic)
        for n in (4, 5, 6, 4, 5, 6):
            assert torch.equal(compiled(torch.ones(n)), torch.ones(n) + n)
        assert graphs() == made


def test_models_of_another_size_get_graphs_of_their_own() -> None:
    compiled = make_compiled(lambda dense, x: dense(x), backend="eager")
    for n in (3, 4, 5, 3, 4):
        dense, x = Dense(n, n).initialize(0), torch.randn(n)
        torch.testing.assert_close(compiled(dense, x), dense(x))
    assert graphs() == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda k: (Scale(torch.ones(k + 2)), 0), r"scale\.by.*size"),
        (lambda k: (Scale(torch.ones((2,) * k)), 0), r"scale\.by.*rank|scale\.by.*dimension"),
        (
            lambda k: (Constant(torch.ones(2), k), 0),
            r"scale\.number was the constant 3.*constant 4",
        ),
        (lambda k: (Scale(torch.ones(2)), torch.ones((1,) * k)), r"x.*rank|x.*dimension"),
    ],
)
def test_what_changes_at_every_call_is_named(change: Callable[[int], Any], said: str) -> None:
    def fn(scale: Any, x: Any) -> Any:
        return scale.by * 1, x

    compiled = make_compiled(fn, backend="eager", recompile_limit=4)
    for k in range(4):
        compiled(*change(k))
    with pytest.raises(RuntimeError, match=said):
        compiled(*change(4))
    compiled(*change(3))
    lenient = make_compiled(fn, backend="eager", recompile_limit=1, fullgraph=False)
    lenient(*change(0))
    with pytest.warns(RuntimeWarning, match="called as it is"):
        assert torch.equal(lenient(*change(1))[0], change(1)[0].by)


class Constant(Module):
    by: Parameter
    number: int
