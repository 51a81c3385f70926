"""What is compared in every test of the zoo: outputs, gradients, steps; always bit by bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as torch_pytree

from parallax import bridge, optim


def tensors_of(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch_pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def total(value: Any) -> Tensor:
    floating = [x for x in tensors_of(value) if x.is_floating_point() and x.numel()]
    return torch.stack([(x * x).sum() for x in floating]).sum()


def same(one: Any, two: Any) -> None:
    """Both hold the same tensors, bit by bit, not-a-number where the other has it."""
    ones, twos = tensors_of(one), tensors_of(two)
    assert len(ones) == len(twos)
    for a, b in zip(ones, twos, strict=True):
        assert torch.equal(a, b) or (
            torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
        )


def check_gradients(grads: Any, reference: nn.Module) -> None:
    """The gradients are those that ``backward`` left in the reference."""
    found = bridge.state_dict(grads)
    for name, p in reference.named_parameters():
        if p.requires_grad:
            same(found[name], torch.zeros_like(p) if p.grad is None else p.grad)


def check_step(lifted: Any, grads: Any, reference: nn.Module) -> None:
    """One step of Adam is the one that ``torch.optim`` makes with the same kernel."""
    for p in reference.parameters():  # torch leaves alone what has no gradient at all
        p.grad = torch.zeros_like(p) if p.grad is None and p.requires_grad else p.grad
    torch.optim.Adam(reference.parameters(), lr=0.1, fused=True).step()
    adam = optim.Adam(lr=0.1)
    stepped, _ = adam.step(lifted, grads, adam.init(lifted))
    found = bridge.state_dict(stepped)
    for name, p in reference.named_parameters():
        same(found[name], p.detach())
