"""What a lifted module offers: the original's attributes and methods, and a tree's verbs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from parallax import Module, Parameter, bridge, func, tree
from tests.bridge.models import Block, Model


def test_methods_properties_and_statics_are_the_originals() -> None:
    block = Block().requires_grad_(False)
    lifted = bridge.lift(block)
    x = torch.randn(4)
    assert torch.equal(lifted.twice(x, times=3), block.twice(x, times=3))
    assert torch.equal(lifted.doubled, block.doubled)
    assert lifted.plain(1) == 2


def test_pickle_copy_and_repr() -> None:
    lifted = bridge.lift(Model())
    again = pickle.loads(pickle.dumps(lifted))
    assert type(again) is type(lifted) and tree.equal(again, lifted)
    assert tree.equal(copy.deepcopy(lifted), lifted) and copy.deepcopy(lifted) is not lifted
    assert "Linear(in_features=4, out_features=2, bias=True)" in repr(lifted)


def test_select_by_the_class_that_was_lifted() -> None:
    lifted = bridge.lift(Model())
    chosen = tree.select(lifted, bridge.lifted_type(nn.Linear))
    assert chosen.paths == ("blocks.0.linear", "blocks.1.linear", "heads.one", "heads.a-b")
    assert isinstance(lifted.blocks[0], bridge.lifted_type(Block))
    assert not isinstance(lifted.blocks[0], bridge.lifted_type(nn.Linear))
    with pytest.raises(LookupError, match=r"select by bridge\.lifted_type\(torch\.nn\.Linear\)"):
        tree.select(lifted, nn.Linear)
    with pytest.raises(TypeError, match=r"expected a class of nn.Module"):
        bridge.lifted_type(int)  # type: ignore[arg-type]  # the mistake that is tested


def test_surgery_with_parallax_modules_inside() -> None:
    class Adapter(Module):
        base: Module
        down: Parameter

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + x @ self.down  # type: ignore[no-any-return]  # a tensor

    model = Model()
    lifted = bridge.lift(model)
    x = torch.randn(4)
    changed = tree.select(lifted, "blocks.*.linear").apply(
        lambda base: Adapter(base, torch.zeros(4, 4))
    )
    torch.testing.assert_close(changed(x), model(x))
    grads = func.grad(lambda m: m(x).sum())(changed)
    assert grads.blocks[0].linear.down.abs().sum() > 0
    lowered = bridge.lower(changed)
    torch.testing.assert_close(lowered(x), model(x))
    assert set(dict(lowered.named_parameters())) >= {
        "blocks.0.linear.base.weight",
        "blocks.0.linear.down",
    }
    assert tree.equal(bridge.lift(lowered), changed)


def test_what_belongs_to_mutable_modules_says_what_to_write() -> None:
    lifted = bridge.lift(nn.Linear(1, 1))
    for name, instead in {
        "parameters": r"tree.leaves\(module\)",
        "state_dict": r"bridge.state_dict\(module\)",
        "to": r"tree.to\(module",
        "register_buffer": "Lower it first",
    }.items():
        with pytest.raises(AttributeError, match=instead):
            getattr(lifted, name)
    with pytest.raises(AttributeError, match="writes into parameters"):
        _ = lifted.reset_parameters
    with pytest.raises(AttributeError, match="lifted Linear has no attribute 'wieght'"):
        _ = lifted.wieght
    with pytest.raises(KeyError, match="wieght"):
        lifted["wieght"]
    with pytest.raises(TypeError, match=r"bridge.lift makes"):
        type(lifted)()
