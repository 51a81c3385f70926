"""Derivatives of gradients, of torch's functions whose own are wrong.

https://github.com/pytorch/pytorch/issues/186256
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import parallax
from parallax import bridge, func, nn

V = torch.linspace(-1, 1, 12, dtype=torch.float64).mul(7).cos()
X = torch.linspace(-2, 3, 12, dtype=torch.float64).mul(5).sin() * (torch.arange(12) % 4 != 0)
WEIGHTS = torch.linspace(0.5, 1.5, 12, dtype=torch.float64)
MEAN, VAR = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sinc at zeros": torch.sinc,
    "i0 at zeros": torch.i0,
    "i1 at zeros": torch.special.i1,
    "logit of what is clamped": lambda x: torch.logit(
        torch.where(X == 0, 0.1 * x, 0.5 + 0.2 * x), 0.15
    ),
    "layer_norm": lambda x: F.layer_norm(x.view(3, 4), (4,), x[:4].sin(), x[4:8]),
    "layer_norm without a weight": lambda x: F.layer_norm(x.view(3, 4), (3, 4), bias=None, eps=0.1),
    "group_norm": lambda x: F.group_norm(x.view(2, 2, 3), 1, x[:2].cos(), x[3:5]),
    "group_norm without a weight": lambda x: F.group_norm(x.view(1, 6, 2), 2),
    "batch_norm": lambda x: F.batch_norm(
        x.view(4, 3), MEAN.clone(), VAR.clone(), x[:3].sin(), x[3:6], training=True
    ),
    "batch_norm with a bias": lambda x: F.batch_norm(x.view(4, 3), None, None, None, x[3:6], True),
    "batch_norm by running statistics": lambda x: F.batch_norm(x.view(4, 3), MEAN, VAR, x[:3]),
    "instance_norm": lambda x: F.instance_norm(x.view(1, 3, 4), weight=x[:3]),
    "group_norm and its statistics": lambda x: torch.cat(
        [
            found.flatten()[:8]
            for found in torch.native_group_norm(
                x.view(1, 2, 6), x[:2].cos(), x[3:5], 1, 2, 6, 2, 1e-2
            )
        ]
    ),
    "hardsigmoid": lambda x: F.hardsigmoid(x + 1).pow(3),
    "logcumsumexp": lambda x: torch.logcumsumexp(x.view(3, 4), 1),
    "logaddexp with infinity": lambda x: torch.logaddexp(
        torch.where(X == 0, -torch.inf, x), x.cos()
    ),
    "nn.LayerNorm": lambda x: nn.LayerNorm(4, dtype=x.dtype).initialize(0)(x.view(3, 4)),
}

every = pytest.mark.parametrize("name", FUNCTIONS)
not_batch_norm = pytest.mark.parametrize("name", [n for n in FUNCTIONS if n != "batch_norm"])


def loss(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: (FUNCTIONS[name](x).flatten() * WEIGHTS).sum()


def along(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The derivative along ``V``, by a gradient."""
    return lambda x: func.grad(function)(x) @ V


def derivative(name: str, order: int) -> Tensor:
    """By finite differences of values."""
    h, function = 1e-2, loss(name)
    weights = {2: [1 / 90, -3 / 20, 3 / 2, -49 / 18, 3 / 2, -3 / 20, 1 / 90],
               3: [1 / 8, -1, 13 / 8, 0, -13 / 8, 1, -1 / 8]}[order]  # fmt: skip
    steps = zip(range(-3, 4), weights, strict=True)
    return torch.stack([w * function(X + k * h * V) for k, w in steps]).sum() / h**order


def close(found: Tensor, name: str, order: int) -> None:
    torch.testing.assert_close(found, derivative(name, order), rtol=2e-4, atol=2e-4)


@every
def test_second_derivatives(name: str) -> None:
    f = loss(name)
    close(along(along(f))(X), name, 2)
    close(func.hvp(f, (X,), (V,))[1][0] @ V, name, 2)
    close(func.hessian(f)(X) @ V @ V, name, 2)
    close(func.jvp(along(f), (X,), (V,))[1], name, 2)


@every
def test_third_derivatives(name: str) -> None:
    twice = along(along(loss(name)))
    close(along(twice)(X), name, 3)
    close(func.jvp(twice, (X,), (V,))[1], name, 3)


@not_batch_norm
def test_third_derivatives_in_a_vmap(name: str) -> None:
    twice = along(along(loss(name)))
    batch = torch.stack([X, X])
    for found in func.vmap(along(twice))(batch):
        close(found, name, 3)
    mapped = along(along(lambda x: func.vmap(along(loss(name)))(x[None])[0]))
    close(mapped(X), name, 3)


def _compiled(order: int, names: Sequence[str]) -> None:
    def derivatives(x: Tensor) -> list[Tensor]:
        found = [along(along(loss(name))) for name in names]
        return [(along(f) if order == 3 else f)(x) for f in found]

    values = parallax.compile(derivatives, backend="aot_eager")(X)
    for name, value in zip(names, values, strict=True):
        close(value, name, order)


def test_compiled_second_derivatives() -> None:
    """Torch fails for a batch norm with a bias alone."""
    names = ["sinc at zeros", "logit of what is clamped", "batch_norm with a bias"]
    _compiled(2, names)


@pytest.mark.parametrize(
    "names",
    [["sinc at zeros", "i0 at zeros", "i1 at zeros", "logit of what is clamped", "hardsigmoid",
      "logcumsumexp", "logaddexp with infinity"],
     ["layer_norm", "group_norm", "batch_norm", "instance_norm"]],
)  # fmt: skip
def test_compiled_third_derivatives(names: Sequence[str]) -> None:
    _compiled(3, names)


def test_compiled_second_derivatives_of_attention() -> None:
    def attention(x: Tensor) -> Tensor:
        q = x.view(1, 3, 4)
        found: Tensor = F.scaled_dot_product_attention(q, 2 * q, q, is_causal=True).sin()
        return found.sum()

    curve = torch.compile(func.grad(lambda x: along(attention)(x)), backend="aot_eager")
    leaf = X.clone().requires_grad_()
    q = leaf.view(1, 3, 4)
    weights = (q @ (2 * q).mT / 2).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    value = (weights.softmax(-1) @ q).sin().sum()
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
    torch.testing.assert_close(curve(X), torch.autograd.grad(slope @ V, leaf)[0])


def test_compiled_second_derivatives_of_a_lifted_attention_layer() -> None:
    layer = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dtype=X.dtype).eval()
    lifted = bridge.lift(layer)

    def slope(x: Tensor) -> Tensor:
        return func.grad(lambda x: lifted(x.view(1, 3, 4)).sin().sum())(x)

    curve = parallax.compile(func.grad(lambda x: slope(x) @ V), backend="aot_eager")
    h = 1e-5
    expected = (slope(X + h * V) - slope(X - h * V)) / (2 * h)
    torch.testing.assert_close(curve(X), expected, rtol=1e-6, atol=1e-7)


def test_compiled_a_function_without_a_formula_is_called_as_it_is() -> None:
    def product(x: Tensor) -> tuple[Tensor, Tensor]:
        return func.jvp(torch.prod, (x,), (3 * x,))

    x = torch.tensor(2.0)
    torch.testing.assert_close(parallax.compile(product, backend="aot_eager")(x), (x, 3 * x))


@every
def test_a_later_backward_of_a_gradient(name: str) -> None:
    """The point is an argument that requires grad, or captured by the function."""
    leaf, step = X.clone().requires_grad_(), torch.zeros((), dtype=X.dtype, requires_grad=True)
    captured = along(lambda x: loss(name)(x + step * V))(X)
    for found, start, direction in ((along(loss(name))(leaf), leaf, V), (captured, step, 1)):
        (slope,) = torch.autograd.grad(found, start, create_graph=True)
        slope = (slope * direction).sum()
        close(slope.detach(), name, 2)
        if slope.requires_grad:
            close((torch.autograd.grad(slope, start)[0] * direction).sum(), name, 3)
        else:
            close(torch.zeros_like(slope), name, 3)


def test_first_derivatives_are_those_of_the_kernels() -> None:
    x, out = X.view(3, 4), torch.randn(3, 4, dtype=torch.float64)
    expected = X.clone().requires_grad_()
    (F.layer_norm(expected.view(3, 4), (4,)) * out).sum().backward()
    leaf = x.clone().requires_grad_()
    found = func.grad(lambda x: (F.layer_norm(x, (4,)) * out).sum())(leaf)
    assert expected.grad is not None
    torch.testing.assert_close(found.detach().flatten(), expected.grad)
    assert func.grad(lambda x: (F.layer_norm(x, (4,)) * out).sum())(x).grad_fn is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_half_precision(dtype: torch.dtype) -> None:
    """Gradients have the dtype of the arguments, and are computed in single precision."""
    half = X.to(dtype)

    def twice(x: Tensor) -> Tensor:
        inner = func.grad(lambda x: (F.layer_norm(x.view(3, 4), (4,)).flatten() * WEIGHTS).sum())
        found: Tensor = (inner(x) * V.to(x.dtype)).sum()
        return found

    found = func.grad(twice)(half)
    assert found.dtype is dtype
    torch.testing.assert_close(found.double(), func.grad(twice)(half.double()), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_mish_does_not_overflow(dtype: torch.dtype) -> None:
    x = torch.tensor([-300.0, -100, -20, 0, 20, 100, 300, 6e4], dtype=dtype)

    def slope(x: Tensor) -> Tensor:
        found: Tensor = func.grad(lambda x: F.mish(x).sum())(x)
        return found

    expected = [torch.tensor([0.0, 0, 0, 0.64, 0, 0, 0, 0], dtype=dtype)] * 4
    found = [
        func.grad(lambda x: slope(x).sum())(x),
        func.jvp(slope, (x,), (torch.ones_like(x),))[1],
        func.grad(lambda x: func.jvp(F.mish, (x,), (torch.ones_like(x),))[1].sum())(x),
        func.jet(F.mish, (x,), ((torch.ones_like(x), None),))[1][1],
    ]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-5)


def test_the_loss_of_labels_has_a_gradient_at_the_ends_in_half_precision() -> None:
    x = torch.tensor([0.0, 1, 1, 0.5], dtype=torch.float16)
    target = torch.tensor([0.0, 1, 1, 1], dtype=torch.float16)
    loss = nn.BCELoss(reduction="sum")
    found = func.grad(lambda x: loss(x, target))(x)
    assert found.dtype is torch.float16
    torch.testing.assert_close(found, torch.tensor([0.0, 0, 0, -2]).half())
