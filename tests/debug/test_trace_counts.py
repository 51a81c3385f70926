"""``debug.trace_counts`` counts what dynamo compiles, by function, with reasons."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported

import parallax
from parallax import debug, nn
from tests.compiling import graphs, make_compiled

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_as_many_as_dynamo_counts() -> None:
    step = make_compiled(lambda x: 2 * x, backend="eager")
    other = make_compiled(lambda x: 3 * x, backend="eager")
    step(torch.ones(2))
    with debug.trace_counts() as counts:
        before = graphs()
        step(torch.ones(2))
        assert counts[step] == counts[other] == graphs() - before == 0
        step(torch.ones(3))
        other(torch.ones(3))
        step(torch.ones(4))
        assert (counts[step], counts[other]) == (1, 1)
        assert graphs() - before == 2
    step(torch.ones((2, 2)))
    assert counts[step] == 1
    assert counts.reasons(step) == ["tensor 'x' size mismatch at index 0. expected 2, actual 3"]
    assert counts.reasons(other) == []
    assert repr(counts).count("<lambda> (") == 2 and "again: tensor 'x' size" in repr(counts)


def test_what_changes_in_a_module_is_named() -> None:
    net = nn.Linear(2, 2).initialize(0)
    step = parallax.compile(nn.Linear.forward, backend="eager")
    with debug.trace_counts() as counts:
        step(net, torch.ones(2))
        step(net.eval(), torch.ones(2))
        step(nn.Linear(2, 3).initialize(0), torch.ones(2))
    assert counts[step] == 3
    mode, sizes = counts.reasons(step)
    assert "the mode" in mode and "out_features" in sizes


def test_a_guard_on_what_the_function_reads() -> None:
    factor = [2]
    step = make_compiled(lambda x: factor[0] * x, backend="eager")
    with debug.trace_counts() as counts:
        step(torch.ones(2))
        factor[0] = 3
        assert torch.equal(step(torch.ones(2)), torch.full((2,), 3.0))
    assert counts[step] == 2
    assert "[0] == 2" in counts.reasons(step)[0]


def test_modules_are_told_apart() -> None:
    nets: list[Any] = [nn.Linear(2, 2).initialize(0), nn.Linear(2, 3).initialize(0)]
    first, second, method = [
        make_compiled(fn, backend="eager") for fn in (nets[0], nets[1], nets[1].forward)
    ]
    with debug.trace_counts() as counts:
        first(torch.ones(2))
        method(torch.ones(2))
        method(torch.ones(4, 2))
    assert (counts[first], counts[second], counts[method]) == (1, 0, 2)


def test_functions_of_torch_compile() -> None:
    def f(x: Tensor) -> Tensor:
        return x.sin()

    class Shift(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    step: Any = torch.compile(f, backend="aot_eager", dynamic=False)
    shift: Any = torch.compile(Shift(), backend="eager")
    with debug.trace_counts() as counts:
        step(torch.ones(2, requires_grad=True)).sum().backward()
        step(torch.ones(3, requires_grad=True))
        shift(torch.ones(2))
    assert (counts[step], counts[f], counts[shift]) == (2, 2, 1)
    assert counts[functools.wraps(step)(lambda x: step(x))] == 2
    assert counts.reasons(step) == ["tensor 'x' size mismatch at index 0. expected 2, actual 3"]


def test_what_follows_a_graph_break_is_one_more() -> None:
    def f(x: Tensor) -> Tensor:
        y = x.sin()
        torch._dynamo.graph_break()
        return y.cos()

    step: Any = torch.compile(f, backend="eager")
    with debug.trace_counts() as counts:
        step(torch.ones(2))
    assert counts[step] == graphs() == 2


def test_what_failed_is_not_counted() -> None:
    def f(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x

    step = make_compiled(f, backend="eager")
    with debug.trace_counts() as counts, pytest.raises(Unsupported):
        step(torch.ones(2))
    assert counts[step] == 0
    assert repr(counts) == "nothing was compiled"


def test_blocks_within_blocks_and_more_traces_than_torch_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._dynamo import utils

    limit = utils._compilation_metrics.maxlen
    utils.set_compilation_metrics_limit(1)
    try:
        steps = [make_compiled(lambda x, k=k: k * x, backend="eager") for k in range(3)]
        with debug.trace_counts() as outer:
            steps[0](torch.ones(1))
            with debug.trace_counts() as inner:
                steps[1](torch.ones(1))
            steps[2](torch.ones(1))
        assert [outer[step] for step in steps] == [1, 1, 1]
        assert [inner[step] for step in steps] == [0, 1, 0]
        assert utils._compilation_metrics.maxlen == 1
    finally:
        assert limit is not None
        utils.set_compilation_metrics_limit(limit)


def test_what_is_not_compiled_is_refused() -> None:
    def f(x: Tensor) -> Tensor:
        return x

    with debug.trace_counts() as counts:
        pass
    with pytest.raises(LookupError, match=r"f is not compiled.*step = parallax.compile\(step\)"):
        counts[f]
    with pytest.raises(LookupError, match="sin is not written in Python, or in torch"):
        counts[torch.compile(torch.sin)]
    with pytest.raises(TypeError, match="got 3"):
        counts[3]  # type: ignore[index]  # what is refused
    assert counts[parallax.compile(f)] == 0
