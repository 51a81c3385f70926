"""A network and a step of training it, written without ``parallax.optim``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam as functional_adam

from parallax import Module, tree
from tests.corpus import SIZE, Dense


def adam(p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's own functional Adam, on private copies."""
    p, m, v, t = p.clone(), m.clone(), v.clone(), t.clone()
    functional_adam(
        [p], [g], [m], [v], [], [t], foreach=False, capturable=False, differentiable=False,
        fused=False, grad_scale=None, found_inf=None, has_complex=False, amsgrad=False,
        beta1=0.9, beta2=0.999, lr=0.01, weight_decay=0.0, eps=1e-8, maximize=False,
    )  # fmt: skip
    return p, m, v


class Net(Module):
    first: Dense
    second: Dense

    def forward(self, x: Tensor) -> Any:
        return self.second(torch.relu(self.first(x)))


def net(seed: int = 0) -> Any:
    return Net(Dense(SIZE, 8), Dense(8, 2)).initialize(seed)


def start(model: Any) -> dict[str, Any]:
    m, v = [tree.map(torch.zeros_like, model) for _ in range(2)]
    return {"m": m, "v": v, "t": torch.zeros(())}


def step(model: Any, state: Any, x: Tensor, y: Tensor) -> Any:
    grads, loss = torch.func.grad_and_value(lambda model: F.mse_loss(model(x), y))(model)
    leaves = [tree.leaves(part) for part in (model, grads, state["m"], state["v"])]
    moved = [adam(p, g, m, v, state["t"]) for p, g, m, v in zip(*leaves)]  # noqa: B905
    spec = tree.structure(model)
    p, m, v = [tree.unflatten(spec, list(part)) for part in zip(*moved)]  # noqa: B905
    return p, {"m": m, "v": v, "t": state["t"] + 1}, loss
