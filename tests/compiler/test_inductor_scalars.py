"""Numbers that whole tensors read are computed once, not in every loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.utils
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from parallax._compat.inductor_scalars import keep_numbers
from tests.compiling import make_compiled

KEEP = torch.ops.aten.as_strided.default


def correction(x: Tensor, t: Tensor) -> Tensor:
    return x / (1 - 0.999**t).sqrt()


def schedule(x: Tensor, t: Tensor) -> Tensor:
    rate = 0.1 * torch.cos(t / 10)
    return x - rate * x.sum(0) + rate.expand(4)


def cheap(x: Tensor, t: Tensor) -> Tensor:
    return x * (t * 2 + 1)


def alone(x: Tensor, t: Tensor) -> Tensor:
    return x.sum() * torch.exp(t)


@pytest.mark.parametrize(("fn", "kept"), [(correction, 1), (schedule, 1), (cheap, 0), (alone, 0)])
def test_what_is_kept(fn: Callable[[Tensor, Tensor], Tensor], kept: int) -> None:
    x, t = torch.rand(3, 4), torch.tensor(7.0)
    traced: Any = make_fx(fn, tracing_mode="fake")(x, t)
    keep_numbers(traced.graph)
    traced.recompile()
    found = [node for node in traced.graph.nodes if node.target is KEEP]
    assert len(found) == kept
    assert all(reader.meta["val"].dim() > 0 for node in found for reader in node.users)
    torch.testing.assert_close(traced(x, t), fn(x, t), rtol=0, atol=0)


def test_complex_numbers_are_left_alone() -> None:
    x, t = torch.rand(3, 4, dtype=torch.complex64), torch.tensor(7.0 + 1j)
    traced: Any = make_fx(lambda x, t: x * torch.exp(t), tracing_mode="fake")(x, t)
    keep_numbers(traced.graph)
    assert KEEP not in [node.target for node in traced.graph.nodes]


@pytest.mark.usefixtures("fresh_dynamo")
def test_no_power_is_taken_in_the_loop_over_entries() -> None:
    x, t = torch.rand(64, 4), torch.tensor(7.0)
    compiled = make_compiled(correction)
    with torch._inductor.utils.fresh_cache():
        found, code = torch._inductor.utils.run_and_get_cpp_code(compiled, x, t)
    torch.testing.assert_close(found, correction(x, t))
    kernel = code[code.index("pow(") :]
    assert "for(" in kernel
    assert "pow(" not in kernel[kernel.index("for(") :]
