"""Products of matrices in compiled code: the same numbers in the forms that a CPU computes fast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from parallax._compat.inductor_products import rewrite
from tests.compiling import make_compiled

ATEN = torch.ops.aten


def batched(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b)


def plain(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b)


def _rewritten(fn: Any, a: Tensor, b: Tensor) -> Any:
    traced: Any = make_fx(fn, tracing_mode="fake")(a, b)
    rewrite(traced.graph)
    traced.recompile()
    return traced


def _calls(traced: Any) -> list[Any]:
    return [node.target for node in traced.graph.nodes if node.op == "call_function"]


def _is_as_described(traced: Any, fn: Any, a: Tensor, b: Tensor) -> None:
    found, expected = traced(a, b), fn(a, b)
    torch.testing.assert_close(found, expected)
    described = traced.graph.output_node().args[0].meta["val"]
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert (described.shape, described.stride()) == (expected.shape, expected.stride())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sizes", [(5, 1, 7), (5, 6, 1), (1, 6, 7), (1, 1, 7), (1, 6, 1), (1, 1, 1)]
)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("fn", [batched, plain])
def test_thin_products_are_loops(
    fn: Any, sizes: tuple[int, int, int], turned: bool, dtype: torch.dtype
) -> None:
    m, k, n = sizes
    batch = (3,) if fn is batched else ()
    a, b = torch.randn(*batch, m, k, dtype=dtype), torch.randn(*batch, k, n, dtype=dtype)
    if turned:
        a, b = a.mT.contiguous().mT, b.mT.contiguous().mT
    traced = _rewritten(fn, a, b)
    assert not {ATEN.bmm.default, ATEN.mm.default} & {*_calls(traced)}
    _is_as_described(traced, fn, a, b)


@pytest.mark.parametrize("rows", [2, 9])
def test_a_batch_with_one_left_matrix_is_one_product(rows: int) -> None:
    a, w = torch.randn(rows, 20).expand(3, rows, 20), torch.randn(3, 30, 20)
    traced = _rewritten(batched, a, w.mT)
    assert ATEN.mm.default in _calls(traced)
    assert ATEN.bmm.default not in _calls(traced)
    _is_as_described(traced, batched, a, w.mT)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.randn(3, 9, 20), torch.randn(3, 30, 20).mT),  # not shared
        (torch.randn(9, 20).expand(3, 9, 20), torch.randn(3, 20, 30)),  # not side by side
        (torch.randn(99, 20).expand(3, 99, 20), torch.randn(3, 200, 20).mT),  # large
        (torch.randn(1, 9, 20), torch.randn(1, 30, 20).mT),
    ],
)
def test_other_batches_stay(a: Tensor, b: Tensor) -> None:
    assert _calls(_rewritten(batched, a, b)).count(ATEN.bmm.default) == 1


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.randn(64, 20), torch.randn(20, 30)),
        (torch.randn(5, 1).bfloat16(), torch.randn(1, 6).bfloat16()),  # sums in float32
        (torch.ones(5, 1, dtype=torch.int64), torch.ones(1, 6, dtype=torch.int64)),
        (torch.randn(5, 1, dtype=torch.complex64), torch.randn(1, 6, dtype=torch.complex64)),
        (torch.randn(1, 300), torch.randn(300, 300)),  # thin, but large
        (torch.randn(5, 0), torch.randn(0, 6)),
    ],
)
def test_other_products_stay(a: Tensor, b: Tensor) -> None:
    assert _calls(_rewritten(plain, a, b)) == [ATEN.mm.default]


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_products_are_those_of_eager_code() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    def fn(x: Tensor, w: Tensor, v: Tensor, t: Tensor) -> list[Tensor]:
        h = torch.tanh(torch.bmm(x, w.mT) + v)
        column = torch.bmm(h, w[:, :1].mT)  # what tanh gives is read several times
        outer = torch.bmm(torch.exp(column), w[:, 1:2])
        row = torch.bmm(h[:, :1], torch.sin(w))
        shared = torch.relu(torch.bmm(t.expand(4, *t.shape), w.mT) + v)
        after = torch.bmm(shared, w.mT)
        turned = torch.bmm(h.mT, torch.bmm(column, column.mT))
        logits = torch.nn.functional.linear(t, w[0], v[0, 0])
        inner = torch.mm(torch.sin(t[:, :1]).T, torch.cos(t))
        return [
            h,
            column,
            outer,
            row,
            shared,
            after,
            turned,
            logits,
            inner,
            torch.mm(inner, logits[:24]).mT,
        ]

    given = draw(4, 40, 24), draw(4, 24, 24), draw(4, 1, 24), draw(64, 24)
    found, expected = make_compiled(fn)(*given), fn(*given)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert one.stride() == other.stride()
