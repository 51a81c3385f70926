"""Every layer class of torch.nn, lifted, does what it did."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as torch_pytree

from parallax import bridge, effects, func
from tests.bridge.zoo import layer, public_layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
]


def tensors_of(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch_pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def total(value: Any) -> Tensor:
    floating = [x for x in tensors_of(value) if x.is_floating_point() and x.numel()]
    return torch.stack([(x * x).sum() for x in floating]).sum()


def same(one: Any, two: Any) -> None:
    ones, twos = tensors_of(one), tensors_of(two)
    assert len(ones) == len(twos)
    for a, b in zip(ones, twos, strict=True):
        assert torch.equal(a, b) or (
            torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
        )


@pytest.mark.parametrize("name", public_layers())
def test_layer_is_lifted_and_lowered_exactly(name: str) -> None:
    torch.manual_seed(0)
    original = layer(name).make().eval()
    inputs = layer(name).inputs()
    before = copy.deepcopy(original.state_dict())
    lifted = bridge.lift(original)
    lowered = bridge.lower(lifted)

    # bit-equal in eval; torch picks kernels by requires_grad, so it is switched off on both sides
    frozen = copy.deepcopy(original).requires_grad_(False)
    with torch.no_grad():
        same(lifted(*inputs), frozen(*inputs))

    # gradients equal to backward's
    names = [n for n, p in original.named_parameters() if p.requires_grad]
    if names:
        reference = copy.deepcopy(original)
        total(reference(*inputs)).backward()
        grads = func.grad(lambda m: total(m(*inputs)))(lifted)
        found = bridge.state_dict(grads)
        for n, p in reference.named_parameters():
            torch.testing.assert_close(found[n], torch.zeros_like(p) if p.grad is None else p.grad)
        # one step of SGD, as a tree and in place
        torch.optim.SGD(reference.parameters(), lr=0.1).step()
        stepped = lifted.update(lambda p, g: p - 0.1 * g, grads)
        for n, p in reference.named_parameters():
            torch.testing.assert_close(bridge.state_dict(stepped)[n], p.detach())

    # lift and lower are inverse on state dicts, and nothing was written into the original
    assert type(lowered) is type(original)
    assert list(lowered.state_dict()) == list(before) == list(bridge.state_dict(lifted))
    for key, value in before.items():
        same(lowered.state_dict()[key], value)
        same(original.state_dict()[key], value)


# torch trains SyncBatchNorm on accelerators only.
@pytest.mark.parametrize("name", [name for name in public_layers() if name != "SyncBatchNorm"])
def test_layer_in_training_returns_what_it_writes(name: str) -> None:
    torch.manual_seed(0)
    original = layer(name).make().train()
    inputs = layer(name).inputs()
    lifted = bridge.lift(original)
    before = copy.deepcopy(original.state_dict())

    torch.manual_seed(1)
    out, after = effects.collect(type(lifted).__call__)(lifted, *inputs)
    same(list(original.state_dict().values()), list(before.values()))

    torch.manual_seed(1)
    same(out, original.requires_grad_(False)(*inputs))
    same(list(bridge.state_dict(after).values()), list(original.state_dict().values()))


def test_every_public_class_is_in_the_zoo() -> None:
    for name in public_layers():
        assert isinstance(layer(name).make(), nn.Module)
