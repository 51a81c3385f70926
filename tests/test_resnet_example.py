"""The ResNet example takes torch.nn's steps, and learns."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.residual import NnResNet
from parallax import bridge, optim
from parallax.examples._digits import load
from parallax.examples.resnet import ResNet, accuracy, images, train, train_step


def test_a_step_is_torchs() -> None:
    torch.manual_seed(0)
    theirs = NnResNet(width=4)
    ours = bridge.load_state_dict(ResNet(per_group=1, width=4), theirs.state_dict())
    hyper: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    opt, torch_opt = optim.SGD(**hyper), torch.optim.SGD(theirs.parameters(), **hyper)
    digits = load()
    state: Any = opt.init(ours)
    for step in range(3):
        x, y = images(digits.train_x[step * 8 :][:8]), digits.train_y[step * 8 :][:8]
        ours, state, loss = train_step(opt, ours, state, x, y)
        torch_opt.zero_grad()
        expected = F.cross_entropy(theirs(x), y)
        expected.backward()
        torch_opt.step()
        torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(bridge.state_dict(ours), theirs.state_dict())


def test_it_has_twenty_layers_and_learns() -> None:
    weights = [p for p in bridge.state_dict(ResNet().initialize(0)).values() if p.dim() > 1]
    assert len(weights) - 2 == 20  # two shortcuts do not count
    digits = load()
    net = ResNet(per_group=1, width=8).initialize(0)
    *_, last = train(net, digits, epochs=3, seed=0)
    assert last.loss < 0.5
    assert accuracy(last.net, digits.test_x, digits.test_y) > 0.9
