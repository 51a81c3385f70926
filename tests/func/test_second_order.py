"""Second derivatives where torch's own composition is wrong or missing: against autograd twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import parallax
from parallax import func, nn
from parallax import random as random_keys

# Torch tells which rules for vmap it lacks, and inductor of a function of torch's that it uses.
pytestmark = pytest.mark.filterwarnings(
    "ignore:There is a performance drop", "ignore::FutureWarning"
)

DOUBLE = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


W, B, Y = random(4, 1, seed=1), random(4, seed=2), random(4, seed=3)
X = random(3, 4, seed=4)
SCALE, SHIFT = 1 + 0.1 * random(4, seed=5), random(4, seed=6)


def matrix(x: Tensor) -> Tensor:
    return torch.tanh(F.linear(x[:, None], W, B))


LOSSES: dict[str, Any] = {
    "slogdet": lambda x: torch.linalg.slogdet(matrix(x))[1],
    "logdet": lambda x: torch.logdet(matrix(x) @ matrix(x).T + torch.eye(4, dtype=DOUBLE)),
    "det": lambda x: torch.linalg.det(matrix(x)),
    "inverse": lambda x: torch.linalg.inv(matrix(x) + 3 * torch.eye(4, dtype=DOUBLE)).sin().sum(),
    "mse_loss": lambda x: F.mse_loss(x.sin(), Y),
    "huber_loss": lambda x: F.huber_loss(x.sin(), Y),
    "smooth_l1_loss": lambda x: F.smooth_l1_loss(x.sin(), Y),
    "soft_margin_loss": lambda x: F.soft_margin_loss(x.sin(), Y.sign()),
    "bce with logits": lambda x: F.binary_cross_entropy_with_logits(x.sin(), Y.sigmoid()),
    "glu": lambda x: F.glu(x.sin(), -1).pow(2).sum(),
    "layer_norm": lambda x: F.layer_norm(x, (4,), SCALE, SHIFT).pow(3).sum(),
    "softmax": lambda x: (torch.softmax(x, 0) * Y).pow(2).sum(),
}


def reference(name: str) -> Tensor:
    fn: Any = torch.autograd.functional.hessian
    return torch.stack([fn(LOSSES[name], x) for x in X])


WAYS: dict[str, Any] = {
    "hessian": lambda f: func.hessian(f),
    "hessian_matrix": lambda f: func.hessian_matrix(f),
    "jacrev of grad": lambda f: func.jacrev(func.grad(f)),
    "jacfwd of grad": lambda f: func.jacfwd(func.grad(f)),
    "forward matrix": lambda f: func.jacobian_matrix(func.grad(f), mode="forward"),
    "hvp": lambda f: lambda x: columns(lambda v: func.hvp(f, (x,), (v,))[1][0], x),
    "jvp of grad": lambda f: lambda x: columns(lambda v: func.jvp(func.grad(f), (x,), (v,))[1], x),
    "linearize of grad": lambda f: lambda x: columns(func.linearize(func.grad(f), x)[1], x),
}
BY_FORWARD = {"jacfwd of grad", "forward matrix", "jvp of grad", "linearize of grad"}


def columns(product: Any, x: Tensor) -> Tensor:
    return torch.stack([product(v) for v in torch.eye(len(x), dtype=x.dtype)])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives_in_a_loop(name: str, way: str) -> None:
    ours = torch.stack([WAYS[way](LOSSES[name])(x) for x in X])
    torch.testing.assert_close(ours, reference(name), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("way", sorted(set(WAYS) - BY_FORWARD))
@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives_under_vmap(name: str, way: str) -> None:
    expected = reference(name)
    ours = func.vmap(WAYS[way](LOSSES[name]))(X)
    scale = float(expected.abs().max())
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-9 * scale)


@pytest.mark.parametrize("name", ["mse_loss", "huber_loss", "soft_margin_loss"])
def test_forward_over_reverse_under_vmap_and_under_grad(name: str) -> None:
    loss = LOSSES[name]
    product: Any = lambda x: func.jvp(func.grad(loss), (x,), (Y,))[1]  # noqa: E731  # short
    torch.testing.assert_close(func.vmap(product)(X), reference(name) @ Y)
    ours = func.grad(lambda x: product(x).pow(2).sum())(X[0])
    x = X[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (along,) = torch.autograd.grad(slope @ Y, x, create_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(along.pow(2).sum(), x)[0])


def test_what_comes_beside_a_derivative_taken_by_reverse_mode() -> None:
    def slopes(x: Tensor) -> tuple[Tensor, Any]:
        return func.grad(LOSSES["huber_loss"])(x), {"x": x, "name": "x"}

    value, along, aux = func.jvp(slopes, (X[0],), (Y,), has_aux=True)
    torch.testing.assert_close(along, reference("huber_loss")[0] @ Y)
    torch.testing.assert_close(value, func.grad(LOSSES["huber_loss"])(X[0]))
    assert aux["name"] == "x" and torch.equal(aux["x"], X[0])
    found, aux = func.jacfwd(slopes, has_aux=True)(X[0])
    torch.testing.assert_close(found, reference("huber_loss")[0])
    assert aux["name"] == "x" and torch.equal(aux["x"], X[0])


def test_an_operator_without_any_second_derivative_says_so() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.detach() * 2

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Any) -> Any:
            return 2 * grad_outputs[0]

    with pytest.raises(RuntimeError, match="forward"):
        func.jvp(Once.apply, (X[0],), (Y,), strict=True)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_on_the_default_backend() -> None:
    names = ["mse_loss", "huber_loss", "slogdet", "layer_norm"]

    def everything(x: Tensor) -> list[Tensor]:
        found = [func.hessian_matrix(LOSSES[name])(x[0]) for name in names]
        return [*found, func.vmap(func.hessian(LOSSES["slogdet"]))(x)]

    expected = [*(reference(name)[0] for name in names), reference("slogdet")]
    for ours, one in zip(parallax.compile(everything)(X), expected, strict=True):
        torch.testing.assert_close(ours, one, rtol=1e-6, atol=1e-9 * float(one.abs().max()))


@pytest.mark.usefixtures("fresh_dynamo")
def test_forward_derivatives_of_forward_ones_compile() -> None:
    """Dynamo cannot take the second of a product with a tensor that has no derivative."""
    norm = nn.LayerNorm(4).initialize(0, dtype=DOUBLE).update(lambda w: w * SCALE + SHIFT)
    key = random_keys.key(0)
    losses: dict[str, Any] = {
        "product": lambda x: (x * Y).sin().sum(),
        "layer": lambda x: norm(x).pow(3).sum(),
        "noise": lambda x: (x * random_keys.normal(random_keys.clone(key), (4,))).sin().sum(),
    }

    def along(f: Any, x: Tensor) -> Any:
        return func.jvp(f, (x,), (B,))[1]

    def everything(x: Tensor) -> list[Tensor]:
        found = [along(lambda x, f=f: along(f, x), x[0]) for f in losses.values()]
        third = along(lambda x: along(lambda x: along(losses["product"], x), x), x[0])
        return [*found, third]

    def second(f: Any, x: Tensor) -> Any:
        hessian: Any = torch.autograd.functional.hessian
        return B @ hessian(f, x) @ B

    expected = [second(f, X[0]) for f in losses.values()]
    expected.append(-(torch.cos(X[0] * Y) * (B * Y) ** 3).sum())
    run = parallax.compile(everything, backend="aot_eager")  # inductor has nothing to do with it
    for ours, one in zip(run(X), expected, strict=True):
        torch.testing.assert_close(ours, one, rtol=1e-6, atol=1e-9)


FORWARD_LOSSES: dict[str, Any] = {
    "solve": lambda x: torch.linalg.solve(matrix(x) + 3 * torch.eye(4, dtype=DOUBLE), x).sum(),
    "batch norm": lambda x: F.batch_norm(matrix(x), None, None, Y, training=True).sin().sum(),
    "layer norm and no rule": lambda x: torch.linalg.norm(F.layer_norm(x.sin(), (4,)) + Y),
    "logcumsumexp": lambda x: (torch.logcumsumexp(x.sin(), 0) * Y).sum(),
}


def along(f: Any, x: Tensor) -> Tensor:
    slope: Tensor = func.jvp(f, (x,), (B,))[1]
    return slope


@pytest.mark.parametrize("name", FORWARD_LOSSES)
def test_second_derivatives_by_jets(name: str) -> None:
    f, step = FORWARD_LOSSES[name], 1e-3
    with torch.no_grad():
        around = [f(X[0] + k * step * B) for k in (-2, -1, 0, 1, 2)]
    weights = torch.tensor([-1, 16, -30, 16, -1], dtype=DOUBLE) / (12 * step**2)
    expected = (torch.stack(around) * weights).sum()
    found = func.jet(f, (X[0],), ((B, None),))[1][1]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_what_runs_without_gradients_is_passed_as_torch_passes_it() -> None:
    def f(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * x
        out: Tensor = (x.square() * y).sum()
        return out

    first, second = 4 * X[0] ** 3 @ B, 12 * X[0] ** 2 @ (B * B)
    for found in (along(f, X[0]), func.linearize(f, X[0])[1](B)):
        torch.testing.assert_close(found, first)
    torch.testing.assert_close(func.jet(f, (X[0],), ((B, None),))[1], (first, second))
    torch.testing.assert_close(along(lambda x: along(f, x), X[0]), second)


def test_jets_through_complex_numbers() -> None:
    def f(x: Tensor) -> Tensor:
        out: Tensor = (x * (1 + 2j) + 1j).abs().sum() + (x * (2 - 1j)).var()
        return out

    x = X[0]
    hessian: Any = torch.autograd.functional.hessian
    torch.testing.assert_close(func.laplacian(f)(x), hessian(f, x).trace())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_jets_of_norms_in_half_precision(dtype: torch.dtype) -> None:
    norm: Any = lambda x: F.layer_norm(x, (4,))  # noqa: E731  # short
    x, along = (X[0] * 400).to(dtype), B.to(dtype)
    value, (slope,) = func.jet(norm, (x,), ((along,),))
    known = torch.func.jvp(norm, (x.double(),), (along.double(),))
    torch.testing.assert_close(value, known[0].to(dtype), rtol=0.02, atol=0.01)
    torch.testing.assert_close(slope, known[1].to(dtype), rtol=0.05, atol=1e-3)
