"""Products of small matrices as C++ of ours: the numbers of torch, for every layout and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config
from torch.fx.experimental.proxy_tensor import make_fx

from parallax._compat.inductor_kernels import product
from parallax._compat.inductor_products import rewrite
from tests.compiling import make_compiled

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="another processor"
)

Pair = tuple[Tensor, Tensor]


def _drawn(*sizes: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(sizes))
    return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)


def _layouts(a: Tensor, b: Tensor) -> list[Pair]:
    """The same matrices, with rows or columns side by side, or neither."""
    turned, apart = b.mT.contiguous().mT, b.repeat_interleave(2, -1)[..., ::2]
    return [
        (a, b),
        (a, turned),
        (a.mT.contiguous().mT, b),
        (a.mT.contiguous().mT, turned),
        (a.repeat_interleave(2, -1)[..., ::2], apart),
    ]


def _pairs(dtype: torch.dtype) -> list[Pair]:
    found: list[Pair] = []
    for batch, m, n, k in [((), 3, 5, 7), ((), 40, 17, 33), ((3,), 31, 70, 9)]:
        a, b = _drawn(*batch, m, k, dtype=dtype), _drawn(*batch, k, n, dtype=dtype)
        found += _layouts(a, b)
    one, many = _drawn(6, 8, dtype=dtype), _drawn(4, 8, 10, dtype=dtype)
    large, overlapping = _drawn(9, 12, dtype=dtype), _drawn(40, dtype=dtype).unfold(0, 20, 5)[:4]
    return [
        *found,
        (one.expand(4, 6, 8), many),
        (many.mT, one.mT.expand(4, 8, 6)),
        (large[2:7, 3:8], large[1:6, 5:]),
        (overlapping.unflatten(1, (4, 5)), many[:, :5, :3]),
        (many[:1], many[1:2, :, :8].mT.tile(1, 2, 1)[:, 3:13]),
    ]


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b) if a.dim() == 3 else torch.mm(a, b)


def _products(*given: Tensor) -> list[Tensor]:
    half = len(given) // 2
    pairs = list(zip(given[:half], given[half:], strict=True))
    found = [_product(a, b) for a, b in pairs]
    # These read what the graph has computed, not inputs.
    return found + [_product(a + 1, torch.sin(b)) for a, b in pairs[:5]]


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_of_torch(dtype: torch.dtype) -> None:
    pairs = _pairs(dtype)
    given = [a for a, _ in pairs] + [b for _, b in pairs]
    found = make_compiled(_products)(*given)
    expected = _products(*[one.double() for one in given])
    for one, other in zip(found, expected, strict=True):
        assert one.is_contiguous()
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("options", [{"cpp.simdlen": 256}, {"cpp.threads": 2}])
def test_other_vectors_and_threads(options: dict[str, Any]) -> None:
    a, b = _drawn(20, 30, 33, dtype=torch.float32), _drawn(20, 27, 33, dtype=torch.float32)
    found = make_compiled(lambda a, b: _product(a, b.mT), options=options)(a, b)
    torch.testing.assert_close(found, torch.bmm(a, b.mT))


@pytest.mark.usefixtures("fresh_dynamo")
def test_derivatives_from_outside() -> None:
    a, b = _drawn(3, 4, 5, dtype=torch.float64), _drawn(3, 6, 5, dtype=torch.float64)
    made = make_compiled(lambda a, b: torch.tanh(_product(a, b.mT)))
    inputs = a.requires_grad_(), b.requires_grad_()
    found = torch.autograd.grad(made(*inputs).square().sum(), inputs)
    expected = torch.autograd.grad(torch.tanh(a @ b.mT).square().sum(), inputs)
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("fresh_dynamo")
def test_products_in_branches() -> None:
    def fn(a: Tensor, b: Tensor) -> Tensor:
        taken: Any = torch.cond(
            b.sum() > 0, lambda a, b: a @ b, lambda a, b: torch.sin(a) @ b, (a, b)
        )
        return taken @ b  # type: ignore[no-any-return]  # a branch's result

    a, b = _drawn(4, 5, dtype=torch.float32), torch.eye(5)
    made = make_compiled(fn)
    torch.testing.assert_close(made(a, b), a @ b @ b)
    torch.testing.assert_close(made(a, -b), torch.sin(a) @ b @ b)


def _targets(a: Tensor, b: Tensor, *, in_cpp: bool) -> Sequence[Any]:
    traced: Any = make_fx(_product, tracing_mode="fake")(a, b)
    with config.patch(cpp_wrapper=in_cpp):
        rewrite(traced.graph)
    return [node.target for node in traced.graph.nodes if node.op == "call_function"]


def test_small_ones_are_rewritten() -> None:
    for a, b in _pairs(torch.float32):
        assert _targets(a, b, in_cpp=True) == [product()]
        assert product() not in _targets(a, b, in_cpp=False)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.empty(80, 1024), torch.empty(1024, 16)),  # rows of the left one are far apart
        (torch.empty(80, 200), torch.empty(200, 100)),  # the right one is large
        (torch.empty(2048, 64), torch.empty(64, 64)),  # worth several threads
        (torch.empty(5, 7, dtype=torch.bfloat16), torch.empty(7, 9, dtype=torch.bfloat16)),
        (torch.empty(5, 7, dtype=torch.int64), torch.empty(7, 9, dtype=torch.int64)),
    ],
)
def test_others_stay(a: Tensor, b: Tensor) -> None:
    assert product() not in _targets(a, b, in_cpp=True)
