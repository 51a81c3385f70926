"""Adafactor."""

from __future__ import annotations

from dataclasses import KW_ONLY

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, kernels, shards
from parallax.optim.hyper import Hyper, Number
from parallax.optim.kernel import ByKernel
from parallax.optim.lists import How, Lists

__all__ = ["Adafactor"]


class Adafactor(ByKernel):
    """Adam with a factored second moment, which stores a row and a column per matrix.

    As ``torch.optim.Adafactor``, and its kernels. Shazeer and Stern 2018.

    Args:
        beta2_decay: the exponent of the step count in the decay of the second moment.
        eps: two numbers: one added to the squared gradient, and the least scale of a parameter.
        d: threshold that clips the update.
        weight_decay: each step multiplies a parameter by ``1 - lr * weight_decay``.

    Example:
        >>> from parallax import nn, optim
        >>> model = nn.Linear(1000, 500, bias=False).initialize(0)
        >>> state = optim.Adafactor().init(model)
        >>> state.moments["row_var"].weight.shape, state.moments["col_var"].weight.shape
        (torch.Size([500, 1]), torch.Size([1, 1000]))
    """

    _torch = torch.optim.Adafactor

    lr: Number = 1e-2
    beta2_decay: Number = -0.8
    eps: tuple[float | None, float] = (None, 1e-3)
    d: Number = 1.0
    weight_decay: Number = 0.0
    _: KW_ONLY
    foreach: bool | None = None
    maximize: bool = False

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("row_var", "col_var", "variance")

    def _fresh(self, name: str, param: Tensor, h: Hyper) -> Tensor | None:
        if (param.dim() > 1) != (name != "variance"):
            return None
        if name == "variance":
            return torch.zeros_like(param)
        return param.new_zeros(param.sum(-1 if name == "row_var" else -2, keepdim=True).shape)

    def _check_leaf(self, path: str, param: Tensor) -> None:
        if param.is_complex():
            raise TypeError(f"optim.Adafactor: {path} is complex, which Adafactor does not support")

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        if dynamo.is_compiling() or at.on_meta() or functorch.differentiating():
            return _traced(at, h, at.steps(how))
        if shards.any_distributed(at.params):  # of which no number is read: it may be in parts
            private = at.pick(list(range(len(at.params))))
            return _traced(private, h, at.steps(how._replace(foreach=False)))
        if any([param.numel() == 0 for param in at.params]):  # torch would divide by it
            some = [k for k, param in enumerate(at.params) if param.numel() > 0]
            if some:
                at.put(self._kernel(at.pick(some), h, how), some)
            return at
        kernels.adafactor(
            at.params, at.grads, at["row_var"], at["col_var"], at["variance"], at.steps(how),
            d=h["d"], lr=h["lr"], beta2_decay=h["beta2_decay"], weight_decay=h["weight_decay"],
            eps1=h["eps"][0], eps2=h["eps"][1], maximize=h["maximize"], foreach=how.foreach,
        )  # fmt: skip
        return at


def _traced(at: Lists, h: Hyper, ages: list[Tensor]) -> Lists:
    """The numbers of the kernel, which reads values of tensors; of those no derivative is known."""
    row, column, whole = at["row_var"], at["col_var"], at["variance"]
    for k, (param, age) in enumerate(zip(at.params, ages, strict=True)):
        wide = torch.promote_types(param.dtype, torch.float32)
        grad = -at.grads[k] if h["maximize"] else at.grads[k]
        eps = torch.finfo(param.dtype).eps if h["eps"][0] is None else h["eps"][0]
        age = age + 1  # noqa: PLW2901  # after this step
        weight = age ** h["beta2_decay"]
        root = param.numel() ** 0.5
        size = (param.norm(2).to(age.dtype) / root).clamp(min=h["eps"][1])
        rate = size * (age**-0.5).clamp(max=h["lr"])
        if grad.dim() > 1:
            row[k] = _toward(row[k], _mean_square(grad, -1), weight)
            column[k] = _toward(column[k], _mean_square(grad, -2), weight)
            variance = row[k] @ column[k] / row[k].mean(-2, keepdim=True).clamp(min=eps)
        else:
            variance = whole[k] = _toward(whole[k], grad * grad, weight)
        update = variance.clamp(min=eps * eps).rsqrt() * grad
        clip = (update.norm(2).to(age.dtype) / (root * h["d"])).clamp(min=1.0)
        kept = param if h["weight_decay"] == 0 else param * (1 - h["lr"] * h["weight_decay"])
        step = (rate / clip).to(wide) * update.to(wide)
        at.params[k] = (kept.to(wide) - step).to(param.dtype)
    return at


def _mean_square(grad: Tensor, dim: int) -> Tensor:
    norm: Tensor = torch.norm(grad, dim=dim, keepdim=True)
    return norm.square() / grad.size(dim)


def _toward(average: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    wide = torch.promote_types(average.dtype, torch.float32)
    moved: Tensor = average.to(wide).lerp(value.to(wide), weight.to(wide))
    return moved.to(average.dtype)
