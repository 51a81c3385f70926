"""Layers with state and with randomness in one net: a pure step, mapped, compiled, exported."""

from __future__ import annotations

import torch
from torch import Tensor

import parallax
from parallax import Module, bridge, effects, func, nn, random, tree
from tests.nn.parity import assert_same


class Net(Module):
    """Reads images as sequences."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    drop: nn.Dropout2d
    rnn: nn.GRU
    head: nn.SpectralNorm

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4, momentum=None)
        self.drop = nn.Dropout2d(0.5)
        self.rnn = nn.GRU(4, 4, num_layers=2, dropout=0.5)
        self.head = nn.SpectralNorm(nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.norm(self.conv(x)))).flatten(2).permute(2, 0, 1)[:3]
        out: Tensor = self.head(self.rnn(x)[1][-1])
        return out


def loss(net: Net, x: Tensor) -> tuple[Tensor, tuple[Tensor, Net]]:
    out, after = effects.collect(Net.forward)(net, x)
    return (out**2).sum(), (out.detach(), after)


def step(net: Net, key: random.Key, x: Tensor) -> tuple[Net, Tensor]:
    grads, (out, after) = func.grad(loss, has_aux=True)(net.train(key), x)
    return tree.update(lambda p, g: p - 0.1 * g, after, grads), out


def test_a_compiled_step_is_the_eager_one() -> None:
    net, x = Net().initialize(0), torch.randn(5, 1, 6, 6)
    expected, out = step(net, random.key(0), x)
    found, out_again = parallax.compile(step, backend="aot_eager")(net, random.key(0), x)
    assert_same([*tree.leaves(found), out_again], [*tree.leaves(expected), out], 1e-6)


def test_a_step_mapped_over_keys_and_batches_is_a_loop() -> None:
    net, xs = Net().initialize(0), torch.randn(3, 5, 1, 6, 6)
    keys = random.split(random.key(1), 3)
    mapped = torch.vmap(step, (None, 0, 0))(net, keys, xs)
    looped = [step(net, random.clone(keys[k]), xs[k]) for k in range(3)]
    assert_same(mapped[1], torch.stack([out for _, out in looped]), 1e-5)
    expected = tree.stack([after for after, _ in looped])
    for one, two in zip(tree.leaves(mapped[0]), tree.leaves(expected), strict=True):
        assert_same(one.expand_as(two), two, 1e-5)


def test_a_lowered_net_is_exported() -> None:
    net, x = Net().initialize(0).eval(), torch.randn(5, 1, 6, 6)
    program = torch.export.export(bridge.lower(net), (x,))
    assert_same(program.module()(x), net(x), 1e-6)
