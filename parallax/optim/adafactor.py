"""Adafactor."""

from __future__ import annotations

from dataclasses import KW_ONLY
import torch
from torch import Tensor

from parallax import _compat
from parallax.optim.base import Optimizer
from parallax.optim.hyper import Hyper, Number
from parallax.optim.lists import How, Lists

__all__ = ["Adafactor"]


class Adafactor(Optimizer):
    """Adam with a factored second moment: memory of a row and a column per matrix.

    As ``torch.optim.Adafactor``, and its kernels. Shazeer and Stern 2018.

    Args:
        lr: learning rate: a number, a tensor of no dimension, or a function of the step.
        beta2_decay: power of the decay of the second moment.
        eps: added to the squared gradient, and the least scale of a parameter.
        d: threshold that clips the update.
        weight_decay: how much of ``lr`` times itself a parameter loses per step.
        foreach: torch's kernels over lists; ``None`` lets torch choose.
        maximize: climb instead of descending.
        groups: other hyper-parameters for some leaves: conditions of ``tree.select`` to dicts.

    Raises:
        ValueError: if torch refuses a value, a negative learning rate say.
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
        _compat.adafactor(
            at.params, at.grads, at["row_var"], at["col_var"], at["variance"], at.steps(how),
            d=h["d"], lr=h["lr"], beta2_decay=h["beta2_decay"], weight_decay=h["weight_decay"],
            eps1=h["eps"][0], eps2=h["eps"][1], maximize=h["maximize"], foreach=how.foreach,
        )  # fmt: skip
        return at
