"""The Taylor rules of torch's functions, against nested derivatives of torch's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallax import func

Program = Callable[[Tensor], Any]

X = torch.tensor([[0.3, -0.7, 1.1], [0.9, 0.45, -0.2]], dtype=torch.float64)
V, W = X.cos(), X.sin() + 0.2
M = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4).sin()
ROW = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64)
CUBE = torch.linspace(0.1, 2, 12, dtype=torch.float64).reshape(2, 2, 3).cos()
IMAGE = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(1, 1, 3, 3)


def positive(x: Tensor) -> Tensor:
    return x * x + 0.5


PROGRAMS: dict[str, Program] = {
    # sums and products
    "add": lambda x: x + 2 + ROW + x.sin() + torch.add(x, x, alpha=3) + (1 + x) + torch.add(ROW, x),
    "add in more dimensions": lambda x: (x[0] + CUBE) + (CUBE + x) * x[:, :1],
    "sub": lambda x: (x - 2 - ROW) * (3 - x) * (ROW - x) + torch.sub(x, x.cos(), alpha=2),
    "rsub": lambda x: torch.rsub(x, ROW) * x,
    "mul": lambda x: 2 * x * ROW * x.exp() * (CUBE * x)[0],
    "mul in more dimensions": lambda x: x[0] * CUBE * x[:, :1],
    "mul by a scalar": lambda x: x * x.sum() * x[0, 0],
    "div": lambda x: x / 3 + x / (ROW + 3) + x / positive(x) + 2 / positive(x) + ROW / positive(x),
    "div in more dimensions": lambda x: CUBE / positive(x[0]) + positive(x)[0] / CUBE,
    "pow": lambda x: x**2 + x**3 + positive(x) ** 1.5 + x.pow(1) + positive(x) ** -2 + x**0,
    "addcmul": lambda x: torch.addcmul(x, x.sin(), ROW, value=2.0),
    "lerp": lambda x: torch.lerp(x, x * x, x.cos()),
    "neg": lambda x: -x * x,
    "matmul": lambda x: (x @ M) @ (M.T @ x.T) @ x @ x[0],
    "matmul of vectors": lambda x: (x[0] @ x[1]) * (x @ ROW) + (M.T @ x[0])[:2] + ROW @ x.T,
    "matmul of many": lambda x: (CUBE @ x.T) @ x + CUBE @ (x.T @ x),
    "bilinear": lambda x: torch.mm(x, x.T) + torch.outer(*x.T[:2]) * torch.dot(*x),
    "bmm": lambda x: torch.bmm(x.expand(2, 2, 3), CUBE.mT + x[0, 0]),
    "inner": lambda x: torch.inner(x, x.sin()) + torch.tensordot(x, x) * torch.mv(x, ROW)[0],
    "kron": lambda x: torch.kron(x, x.cos()),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x.sin()) + torch.einsum("ij->i", x),
    "linear": lambda x: F.linear(x, M.T, M[0]) + F.linear(x, M.T, x.sum() * M[0]),
    "linear in its weight": lambda x: F.linear(CUBE, x, x[:, 0]) * F.linear(x, x)[0],
    "linear of a vector": lambda x: F.linear(x[0], M.T, M[1]) ** 2,
    "conv1d": lambda x: F.conv1d(x[None], CUBE, M[0, :2], padding=1) ** 2,
    "conv1d in its weight": lambda x: F.conv1d(x[None].sin(), x[None]),
    "conv2d": lambda x: F.conv2d((x @ M)[None, None], IMAGE, padding=1).square(),
    "conv_transpose1d": lambda x: F.conv_transpose1d(x[None], CUBE, stride=2),
    # linear functions
    "getitem": lambda x: x[0] * x[1] + x[:, 1].sum() + x[..., None][0, :, 0] * x[[1, 0]][0],
    "shapes": lambda x: x.reshape(3, 2).T.flatten().view(2, 3).unsqueeze(0).squeeze(0) * x,
    "view of a transpose": lambda x: (x * x).T.contiguous().view(6) * x.expand(2, 2, 3)[0].ravel(),
    "sums": lambda x: x.sum() * x.mean(0) * x.sum(-1, keepdim=True).sin() * x.mean(),
    "dims": lambda x: x.permute(1, 0).movedim(0, 1).transpose(0, 1).mT.swapaxes(0, 1).mT * x,
    "parts": lambda x: sum((p.sin() for p in (*x.unbind(0), *x.chunk(2), *x.split(1))), x),
    "cumsum": lambda x: x.cumsum(1).sin() * x.flip(0).roll(1, 1),
    "tril": lambda x: (x.T @ x).tril().triu(-1).diagonal() * torch.diag(x[0]).trace(),
    "gather": lambda x: x.gather(1, torch.tensor([[0, 2], [1, 1]])) ** 2 * x.narrow(1, 0, 2),
    "repeat": lambda x: x.repeat(2, 1).square() * x.repeat_interleave(2, 0) * x.index_select(
        0, torch.tensor([0, 1, 1, 0])
    ),
    "cat": lambda x: torch.cat([x, x.sin(), X]) * torch.stack([ROW, x[0], x[1], x[1], ROW, ROW]),
    "where": lambda x: torch.where(x > 0, x.sin(), 1.0) * torch.where(X > 0.4, X, x * x),
    "masked_fill": lambda x: x.square().masked_fill(x > 1, 3.0),
    "pad": lambda x: F.pad(x, (1, 2), value=2.0).square() + F.pad(x[None], (1, 2), "reflect")[0],
    "casts": lambda x: x.float().double().to(torch.float64).clone().contiguous() * x,
    "pooling": lambda x: F.avg_pool1d(x.exp()[None], 2, 1) * F.adaptive_avg_pool1d(x[None], 2),
    "constants": lambda x: x * (x > 0) * torch.ones_like(x) * x.sign() * x.floor() * x.shape[0],
    # of each entry, with derivatives that are known
    "exp": lambda x: x.exp() + torch.expm1(x) + torch.exp2(x),
    "log": lambda x: sum(f(positive(x)) for f in (torch.log, torch.log1p, torch.log2, torch.log10)),
    "sin": lambda x: x.sin() * x.cos() + torch.sinh(x) * torch.cosh(x),
    "tanh": lambda x: x.tanh() + F.tanh(x * x),
    "sigmoid": lambda x: x.sigmoid() + torch.special.expit(x),
    "sqrt": lambda x: sum(f(positive(x)) for f in (torch.sqrt, torch.rsqrt, torch.reciprocal)),
    "square": lambda x: x.square() * x,
    "erf": lambda x: torch.erf(x) + torch.special.erf(x),
    "silu": lambda x: F.silu(x),
    "gelu": lambda x: F.gelu(x) + F.gelu(x, approximate="none"),
    # of each entry, by differentiation
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "others": lambda x: x.tan() + x.atan() + (x / 2).asin() + (x / 2).acos() + x.asinh() + x.abs(),
    "clamp": lambda x: x.clamp(-0.5, 1).square() + torch.clamp(x, min=ROW),
    "lgamma": lambda x: torch.lgamma(positive(x)) + torch.erfc(x),
    # others
    "softmax": lambda x: F.softmax(x, -1) * torch.softmax(x, 0) + x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, 1) + torch.logsumexp(x, 1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp(0) * torch.logsumexp(x, (0, 1)),
    "layer_norm": lambda x: F.layer_norm(x, (3,), ROW, ROW, 1e-3) + F.layer_norm(X, (3,), x[0]),
    "rms_norm": lambda x: F.rms_norm(x, (3,), ROW, 1e-3),
    "group_norm": lambda x: F.group_norm(x.expand(2, 2, 3), 2, ROW[:2], ROW[1:], 1e-3),
    "var": lambda x: x.var(0) * torch.std(x, 1)[0] + x.var() + x.var(1, correction=0)[0],
}  # fmt: skip


def normalized(x: Tensor) -> Tensor:
    """The formula: the second forward derivative of torch's kernel is wrong."""
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-3).sqrt() * ROW


REFERENCES: dict[str, Program] = {
    "layer_norm": lambda x: normalized(x) + ROW + F.layer_norm(X, (3,)) * x[0],
}


def along(program: Program, order: int) -> Any:
    """The derivatives along a curve, by torch's forward mode in one variable, again and again."""

    def curve(t: Tensor) -> tuple[Tensor, ...]:
        return (program(X + t * V + t**2 / 2 * W),)

    def onward(function: Any) -> Any:
        def more(t: Tensor) -> Any:
            found: Any = torch.func.jvp(function, (t,), (torch.ones_like(t),))
            values, slopes = found
            return (*values, slopes[-1])

        return more

    function: Any = curve
    for _ in range(order):
        function = onward(function)
    return function(torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_rule_gives_what_nested_derivatives_give(name: str, refused: list[str]) -> None:
    program = PROGRAMS[name]
    reference = REFERENCES.get(name, program)
    value, series = func.jet(program, (X,), ((V, W, None),))
    for ours, theirs in zip([value, *series], along(reference, 3), strict=True):
        torch.testing.assert_close(ours, theirs)
    hessian = torch.func.jacfwd(torch.func.jacfwd(reference))(X)
    hessian = hessian.flatten(-4, -3).flatten(-2, -1)
    trace = hessian.diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(func.laplacian(program)(X), trace)
    assert not refused


def test_constant_tensors_as_exponents(refused: list[str]) -> None:
    x = torch.tensor([0.0, 2.0, 0.0, -1.0, 0.0], dtype=torch.float64)
    one = torch.ones_like(x)
    exponents = torch.tensor([0, 0, 1, 2, 3])
    slopes = [[0, 0, 1, -2, 0], [0, 0, 0, 2, 0], [0, 0, 0, 0, 6]]
    for given in (exponents, exponents.double()):
        _, series = func.jet(lambda x, e=given: x**e, (x,), ((one, None, None),))
        torch.testing.assert_close(torch.stack(series), torch.tensor(slopes).double())
    _, (slope,) = func.jet(lambda x: x[2] ** exponents, (x,), ((one,),))
    torch.testing.assert_close(slope, torch.tensor([0, 0, 1, 0, 0]).double())
    assert not refused


@pytest.mark.parametrize("low", [[0, 1], [1], [0, 3]])
def test_sums_that_begin_with_nothing(low: list[int], refused: list[str]) -> None:
    x = torch.tensor([-0.5, 1.0, 2.0, 0.3], dtype=torch.float64)
    x[low] = -torch.inf
    rest, along = x > -torch.inf, torch.tensor([1.0, 0.5, 2.0, -1.0], dtype=torch.float64)
    series = func.jet(lambda x: x.logcumsumexp(0), (x,), ((along, None),))[1]
    known = func.jet(lambda x: x.logcumsumexp(0), (x[rest],), ((along[rest], None),))[1]
    for ours, theirs in zip(series, known, strict=True):
        torch.testing.assert_close(ours[rest], theirs)
        assert not ours[: int(rest.nonzero()[0])].any()
    assert not refused


def test_sinc_has_all_derivatives_at_zero(refused: list[str]) -> None:
    """They are those of the mean of ``cos(pi x t)`` over t from 0 to 1."""
    x = torch.tensor([0.0, 0.2, -0.4, 1.0, -2.5], dtype=torch.float64)
    along = torch.tensor([1.0, 0.5, 2.0, -1.0, 1.0], dtype=torch.float64)
    value, series = func.jet(torch.sinc, (x,), ((along, None, None, None),))
    steps = torch.linspace(0, 1, 401, dtype=torch.float64)
    weights = torch.tensor([1.0, *[4, 2] * 199, 4, 1], dtype=torch.float64) / 1200  # Simpson's
    for order, found in enumerate([value, *series]):
        curve = torch.cos(math.pi * (x[:, None] * steps + order / 2))
        expected = (curve * (math.pi * steps) ** order) @ weights * along**order
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    half = func.jet(torch.sinc, (x[:2].half(),), ((along[:2].half(), None),))
    assert half[0].dtype is half[1][1].dtype is torch.float16
    assert not refused
