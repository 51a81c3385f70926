"""Muon."""

from __future__ import annotations

import torch
from torch import Tensor

from parallax._compat import kernels, shards
from parallax.optim.arguments import check_at_least
from parallax.optim.hyper import Hyper, Number
from parallax.optim.kernel import ByKernel
from parallax.optim.lists import How, Lists

__all__ = ["Muon"]


class Muon(ByKernel):
    """Momentum with orthogonalised updates; for matrices only.

    As ``torch.optim.Muon``, and its kernels. Jordan 2024.
    Give other leaves to another optimizer with ``Split``.

    Args:
        weight_decay: each step multiplies a parameter by ``1 - lr * weight_decay``.
        momentum: decay of the running average of the gradient.
        ns_coefficients: of the Newton-Schulz polynomial.
        eps: added to the norm.
        ns_steps: how many Newton-Schulz iterations.
        adjust_lr_fn: how the rate depends on the shape: ``"original"`` or ``"match_rms_adamw"``.

    Example:
        >>> import torch
        >>> from parallax import func, nn, optim
        >>> model = nn.Linear(3, 2).initialize(0)
        >>> matrices = {lambda path, p: p.ndim == 2: optim.Muon(lr=0.02)}
        >>> opt = optim.Split(matrices, rest=optim.AdamW())  # which steps the bias
        >>> state = opt.init(model)
        >>> grads = func.grad(lambda model: model(torch.ones(4, 3)).square().mean())(model)
        >>> model, state = opt.step(model, grads, state)
    """

    _torch = torch.optim.Muon

    lr: Number = 1e-3
    weight_decay: Number = 0.1
    momentum: Number = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    eps: Number = 1e-7
    ns_steps: int = 5
    adjust_lr_fn: str | None = None

    def _validate(self) -> None:
        super()._validate()
        for hyper in self._hypers:
            if not callable(hyper["eps"]):
                check_at_least("optim.Muon", "eps", hyper["eps"], 0)  # torch does not check it

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("momentum_buffer",)

    def _check_leaf(self, path: str, param: Tensor) -> None:
        if param.ndim != 2 or param.is_complex():
            raise TypeError(
                f"optim.Muon: {path} is {param.dtype} of shape {tuple(param.shape)}, and Muon "
                f"steps real matrices only. Give the rest to another optimizer: optim.Split("
                f"{{lambda path, p: p.ndim == 2: optim.Muon()}}, rest=optim.AdamW())"
            )

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        rate = h["lr"]
        if shards.any_distributed(at.params):
            return _of_whole_matrices(at, h)
        if not isinstance(rate, Tensor):
            return _step(at, h)
        # The update has half precision; multiplied by a tensor it would be rounded a second time.
        params, at.params = at.params, [torch.zeros_like(p) for p in at.params]
        at = _step(at, {**h, "lr": 1.0, "weight_decay": 0.0})
        keep = 1 - rate * h["weight_decay"]
        at.params = [p * keep + rate * change for p, change in zip(params, at.params, strict=True)]
        return at


def _step(at: Lists, h: Hyper) -> Lists:
    kernels.muon(
        at.params, at.grads, at["momentum_buffer"],
        lr=h["lr"], weight_decay=h["weight_decay"], momentum=h["momentum"],
        nesterov=h["nesterov"], ns_coefficients=h["ns_coefficients"], ns_steps=h["ns_steps"],
        eps=h["eps"], adjust_lr_fn=h["adjust_lr_fn"], has_complex=False,
    )  # fmt: skip
    return at


def _of_whole_matrices(at: Lists, h: Hyper) -> Lists:
    """A step of distributed matrices, each put together for the iterations.

    These have half precision: of parts they would be sums in another order, which differ in the
    third digit. Put together, one matrix after the other, they are those of one process, and are
    gathered once in place of a sum for each product.
    """
    decay = h["momentum"]
    apart = {**h, "lr": 1.0, "weight_decay": 0.0, "momentum": 0.0, "nesterov": False}
    keep = 1 - h["lr"] * h["weight_decay"]
    triples = zip(at.params, at.grads, at["momentum_buffer"], strict=True)
    for k, (param, grad, mean) in enumerate(triples):
        at["momentum_buffer"][k] = mean = mean.lerp(grad, 1 - decay)  # noqa: PLW2901  # the new one
        update = shards.whole(grad.lerp(mean, decay) if h["nesterov"] else mean)
        moments = {"momentum_buffer": [torch.zeros_like(update)]}
        one = Lists([torch.zeros_like(update)], [update], moments, [], [])
        change = shards.placed_as(shards.beside(_step(one, apart).params[0], param), param)
        at.params[k] = param * keep + h["lr"] * change
    return at
