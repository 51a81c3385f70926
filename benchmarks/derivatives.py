"""What does a derivative that is written by hand cost, beside torch's bare autograd function?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Candidate, Question
from parallax import func, nn


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (grad,) = grad_outputs
        x: Tensor = ctx.saved_tensors[0]
        return grad * (3 * x * x)


class _Wave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return torch.sin(x) * y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grad_outputs
        x, y = ctx.saved_tensors
        return grad * torch.cos(x) * y, grad * torch.sin(x)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(weight, x)
        return torch.addmm(bias, x, weight.t())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad,) = grad_outputs
        weight, x = ctx.saved_tensors
        return grad.t() @ x, grad.sum(0), grad @ weight


@func.custom_vjp
def _cube(x: Tensor) -> Tensor:
    return x * x * x


@func.custom_vjp
def _wave(x: Tensor, y: Tensor) -> Tensor:
    return torch.sin(x) * y


@func.custom_vjp
def _affine(layer: nn.Linear, x: Tensor) -> Tensor:
    assert layer.bias is not None
    return torch.addmm(layer.bias, x, layer.weight.t())


def _cube_bwd(x: Tensor, grad: Tensor) -> tuple[Tensor]:
    return (grad * (3 * x * x),)


def _wave_bwd(kept: tuple[Tensor, Tensor], grad: Tensor) -> tuple[Tensor, Tensor]:
    x, y = kept
    return grad * torch.cos(x) * y, grad * torch.sin(x)


def _affine_bwd(kept: tuple[nn.Linear, Tensor], grad: Tensor) -> tuple[Any, Tensor]:
    layer, x = kept
    return layer.replace(weight=grad.t() @ x, bias=grad.sum(0)), grad @ layer.weight


_cube.defvjp(lambda x: (x * x * x, x), _cube_bwd)
_wave.defvjp(lambda x, y: (torch.sin(x) * y, (x, y)), _wave_bwd)
_affine.defvjp(
    lambda layer, x: (torch.addmm(layer.bias, x, layer.weight.t()), (layer, x)), _affine_bwd
)


def questions(quick: bool) -> Iterator[Question]:
    size = 8 if quick else 64
    x, y = (torch.randn(size, size, requires_grad=True) for _ in range(2))
    layer = nn.Linear(size, size).initialize(0).reset(0)
    yield _backward("one tensor", [x], lambda: _Cube.apply(x), lambda: _cube(x))  # type: ignore[no-untyped-call]  # torch's
    yield _backward("two tensors", [x, y], lambda: _Wave.apply(x, y), lambda: _wave(x, y))  # type: ignore[no-untyped-call]  # torch's
    leaves = [layer.weight, layer.bias]
    yield _backward(
        "a module and a tensor", [*leaves, x],
        lambda: _Affine.apply(*leaves, x), lambda: _affine(layer, x),  # type: ignore[no-untyped-call]  # torch's
    )  # fmt: skip


def _backward(
    name: str, inputs: list[Any], theirs: Callable[[], Any], ours: Callable[[], Any]
) -> Question:
    def run(call: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(call().sum(), inputs)

    return Question(
        f"a derivative of one's own, value and backward: {name}",
        Candidate("torch.autograd.Function", run(theirs)),
        [Candidate("func.custom_vjp", run(ours), limit=1.3)],
        check=torch.testing.assert_close,
    )
