"""Modules, layers of lists and attributes of a lowered model may be changed, as torch's may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn

from parallax import Module, bridge, nn, tree

X = torch.randn(5, 4)


class Block(Module):
    linear: nn.Linear
    norm: nn.BatchNorm1d
    act: Module | Callable[[Tensor], Tensor]
    rate: float = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return x + self.rate * self.act(self.norm(self.linear(x)))


class Net(Module):
    blocks: tuple[Block, ...]
    heads: dict[str, nn.Linear]
    drop: nn.Dropout

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        for head in self.heads.values():
            x = head(x)
        return self.drop.split(1)[0](x)


def net() -> Any:
    blocks = [Block(nn.Linear(4, 4), nn.BatchNorm1d(4), torch.relu) for _ in range(3)]
    heads = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}
    return Net(tuple(blocks), heads, nn.Dropout(0.5)).initialize(0).eval()


def test_lists_and_dicts_of_modules_are_those_of_now(fresh_dynamo: None) -> None:
    module = net()
    model: Any = bridge.lower(module)
    model.blocks = model.blocks[1:]
    del model.heads["a"]
    fewer = module.replace(blocks=module.blocks[1:], heads={"b": module.heads["b"]})
    torch.testing.assert_close(model(X), fewer(X))
    model.blocks.append(torch_nn.Softplus())
    model.blocks.insert(0, bridge.lower(nn.Linear(4, 4).initialize(1)))
    model.heads["c"] = torch_nn.Tanh()
    want: Any = nn.Linear(4, 4).initialize(1)(X)
    for block in fewer.blocks:
        want = block(want)
    want = fewer.heads["b"](torch.nn.functional.softplus(want)).tanh()
    torch.testing.assert_close(model(X), want)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), want)


def test_attributes_that_are_set_on_layers_act() -> None:
    model: Any = bridge.lower(net().train(), copy=True)
    for layer in model.modules():
        if isinstance(layer, torch_nn.BatchNorm1d):
            layer.momentum, layer.eps = 1.0, 0.1
    block = model.blocks[0]
    block.rate, block.act = 2.0, torch.tanh
    hidden = block.linear(X)
    normed = torch.nn.functional.batch_norm(hidden, None, None, training=True, eps=0.1)
    torch.testing.assert_close(block(X), X + 2.0 * normed.tanh())
    torch.testing.assert_close(block.norm.running_mean, hidden.mean(0))
    assert block.rate == 2.0 and "rate=2.0" in repr(block)
    with pytest.raises(AttributeError, match=r"BatchNorm1d\.num_features cannot be set any more"):
        block.norm.num_features = 3
    with pytest.raises(AttributeError, match=r"Block\.act is no module in the tree but <built-in"):
        block.act = torch_nn.ReLU()


def test_what_would_be_ignored_where_a_part_is_taken_apart_is_refused() -> None:
    model: Any = bridge.lower(net())
    model.drop.p = 0.1
    with pytest.raises(RuntimeError, match="the lowered module 'drop' has another p"):
        model(X)
    model.drop.p = 0.5
    model(X)
    model.drop.add_module("more", torch_nn.Identity())
    with pytest.raises(RuntimeError, match="the lowered module 'drop' has a module 'more' more"):
        model(X)


CHANGES: dict[str, Callable[[Any], Any]] = {
    r"'' of a lowered Net has a module 'more' more": lambda m: m.add_module("more", m.drop),
    r"'blocks' of a lowered Net has a module '3' more": lambda m: m.blocks.append(m.drop),
    r"'blocks\.1' of a lowered Net has another constant": lambda m: setattr(
        m.blocks[1], "rate", 0.1
    ),
    r"'drop' of a lowered Net has another p": lambda m: setattr(m.drop, "p", 0.1),
    r"'heads\.a' of a lowered Net is a Linear now": lambda m: m.heads.update(
        {"a": torch_nn.Linear(4, 4)}
    ),
    r"'2' was taken out of what bridge\.lower made": lambda m: m.blocks.__delitem__(0),
}


@pytest.mark.parametrize("message", CHANGES)
def test_what_has_no_place_in_the_tree_is_not_lifted(message: str) -> None:
    model = bridge.lower(net())
    CHANGES[message](model)
    with pytest.raises((TypeError, RuntimeError), match=message):
        bridge.lift(model)


def test_what_runs_by_torchs_code_alone_is_lifted_as_torchs() -> None:
    model: Any = bridge.lower(nn.Sequential(nn.Linear(4, 4), torch.tanh).initialize(0))
    model.append(torch_nn.Linear(4, 2))
    lifted = bridge.lift(model)
    assert isinstance(lifted, bridge.Lifted) and isinstance(lifted[0], nn.Linear)
    torch.testing.assert_close(lifted(X), model(X))
    unchanged = nn.Sequential(nn.Linear(4, 4), torch.tanh).initialize(0)
    assert tree.equal(bridge.lift(bridge.lower(unchanged)), unchanged)
