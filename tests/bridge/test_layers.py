"""Every layer class of torch.nn, lifted, does what it did."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from parallax import bridge, effects, func
from tests.bridge.checks import check_gradients, check_step, same, total
from tests.bridge.zoo import layer, public_layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
]


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
    if any(p.requires_grad for p in original.parameters()):
        reference = copy.deepcopy(original)
        total(reference(*inputs)).backward()
        grads = func.grad(lambda m: total(m(*inputs)))(lifted)
        check_gradients(grads, reference)
        check_step(lifted, grads, reference)

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
