"""Kernels whose gradient is put in the place of torch's where a graph of it is recorded."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import checkpoint as torch_checkpoint

from parallax import Module, bridge, nn, tree

Call = Callable[[Tensor], Tensor]


def in_double(layer: Module) -> Any:
    started = layer.initialize(0)
    noise = torch.Generator().manual_seed(0)
    return tree.map(
        lambda x: x.double() + 0.3 * torch.randn(x.shape, generator=noise, dtype=torch.float64),
        started,
    )


NORM = in_double(nn.LayerNorm(4))
ATTENTION = in_double(nn.MultiheadAttention(4, 2))
X = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def norm(x: Tensor) -> Tensor:
    out: Tensor = NORM(x)
    return out


def attention(x: Tensor) -> Tensor:
    out: Tensor = ATTENTION(x, x, x, need_weights=False)[0]
    return out


def norm_by_operators(layer: Any, x: Tensor) -> Tensor:
    """Layer norm as it is defined."""
    centred = x - x.mean(-1, keepdim=True)
    scale = layer.weight / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred * scale + layer.bias  # type: ignore[no-any-return]  # a tensor


def attention_by_operators(x: Tensor) -> Tensor:
    """Attention as it is defined."""
    q, k, v = (x @ ATTENTION.in_proj_weight.T + ATTENTION.in_proj_bias).chunk(3, -1)
    q, k, v = [y.unflatten(-1, (2, 2)).permute(1, 2, 0, 3) for y in (q, k, v)]
    out = torch.softmax(q @ k.transpose(-1, -2) / 2**0.5, -1) @ v
    last = ATTENTION.out_proj
    total: Tensor = out.permute(2, 0, 1, 3).flatten(2) @ last.weight.T + last.bias
    return total


def norm_defined(x: Tensor) -> Tensor:
    return norm_by_operators(NORM, x)


both = pytest.mark.parametrize(
    ("layer", "defined"),
    [(norm, norm_defined), (attention, attention_by_operators)],
    ids=["norm", "attention"],
)


def derivative(call: Call, order: int, x: Tensor = X) -> Tensor:
    """A directional derivative on the plain tape, as a gradient."""
    along = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    leaf = x.clone().requires_grad_()
    total, grad = call(leaf).sin().sum(), leaf
    for _ in range(order):
        (grad,) = torch.autograd.grad(total, leaf, create_graph=True)
        total = (grad * along).sum()
    return grad.detach()


@both
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_on_the_plain_tape(layer: Call, defined: Call, order: int) -> None:
    torch.testing.assert_close(derivative(layer, order), derivative(defined, order))


@both
def test_inside_a_checkpoint(layer: Call, defined: Call) -> None:
    def checkpointed(x: Tensor) -> Tensor:
        out: Tensor = torch_checkpoint.checkpoint(layer, x * 2, use_reentrant=False)
        return out

    expected = derivative(lambda x: defined(x * 2), 3)
    torch.testing.assert_close(derivative(checkpointed, 3), expected)


@both
def test_for_many_cotangents_at_once(layer: Call, defined: Call) -> None:
    def hessian(call: Call) -> Any:
        def gradient(x: Tensor) -> Tensor:
            return torch.autograd.grad(call(x).sin().sum(), x, create_graph=True)[0]

        x = X[:, :1].clone().requires_grad_()
        rows = torch.autograd.functional.jacobian(gradient, x, create_graph=True, vectorize=True)
        return torch.autograd.grad((rows**2).sum(), x)[0]

    torch.testing.assert_close(hessian(layer), hessian(defined))


def test_of_a_module_prepared_by_reset() -> None:
    def grads(call: Callable[[Any, Tensor], Tensor]) -> list[Any]:
        net, x = NORM.reset(0), X.clone().requires_grad_()
        total = call(net, x).sin().sum()
        for _ in range(3):
            total = torch.autograd.grad(total, x, create_graph=True)[0].sin().sum()
        total.backward()
        return [net.weight.grad, x.grad]

    for found, expected in zip(grads(nn.LayerNorm.forward), grads(norm_by_operators), strict=True):
        torch.testing.assert_close(found, expected)


def test_again_on_the_same_graph() -> None:
    leaf = X.clone().requires_grad_()
    total = norm(leaf).sin().sum()
    grads = [torch.autograd.grad(total, leaf, create_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads)
    plain = torch.autograd.grad(total, leaf)[0]
    torch.testing.assert_close(grads[0], plain)


def test_a_hook_of_the_user_sees_its_own_output_only() -> None:
    leaf, seen = X.clone().requires_grad_(), []
    first, second = norm(leaf), norm(leaf)
    handle = first.register_hook(lambda grad: seen.append(grad))
    (second * 2).sum().backward()
    assert seen == []
    first.sum().backward()
    assert len(seen) == 1
    handle.remove()
    norm(leaf).sum().backward()
    assert len(seen) == 1


def test_an_output_that_is_written_to() -> None:
    def written(call: Call) -> Call:
        return lambda x: call(x).mul_(2).add_(x)

    torch.testing.assert_close(derivative(written(norm), 3), derivative(written(norm_defined), 3))


def test_an_output_is_saved_without_a_warning() -> None:
    file = io.BytesIO()
    torch.save(norm(X.clone().requires_grad_()).detach(), file)
    torch.save(norm(X.clone().requires_grad_()), file)


def test_nothing_waits_where_nothing_is_differentiated() -> None:
    assert norm(X)._backward_hooks is None
    with torch.no_grad():
        assert norm(X.clone().requires_grad_())._backward_hooks is None


def test_a_lowered_layer_has_them_too() -> None:
    module = bridge.lower(NORM)
    torch.testing.assert_close(derivative(module, 3), derivative(norm_defined, 3))


def test_where_autocast_lowers_the_precision() -> None:
    layer = tree.to(ATTENTION, dtype=torch.float32)

    def gradient(recorded: bool) -> Tensor:
        leaf = X.float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = layer(leaf, leaf, leaf, need_weights=False)[0].sum()
        return torch.autograd.grad(total, leaf, create_graph=recorded)[0]

    torch.testing.assert_close(gradient(True), gradient(False), rtol=0.05, atol=0.02)
