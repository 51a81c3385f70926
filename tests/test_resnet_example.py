"""The ResNet example takes torch.nn's steps, learns, and runs as a program."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import bridge, optim
from parallax.examples.digits import load
from parallax.examples.resnet import ResNet, accuracy, images, main, train, train_step


class TorchBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.body(x) + self.shortcut(x))


class TorchResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.blocks = nn.Sequential(TorchBlock(4, 4, 1), TorchBlock(4, 8, 2), TorchBlock(8, 16, 2))
        self.scores = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Any:
        return self.scores(self.blocks(self.start(x)).mean((2, 3)))


def test_a_step_is_torchs() -> None:
    torch.manual_seed(0)
    theirs = TorchResNet()
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


def test_it_runs_as_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--epochs", "1"])
    assert "pass 1: loss " in capsys.readouterr().out
