"""The network of `parallax.examples.resnet` in torch.nn, under the same names.

Source: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NnBlock(nn.Module):
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

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class NnResNet(nn.Module):
    """Eight layers: one block in each of the three groups."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.start = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            NnBlock(width, width, 1), NnBlock(width, 2 * width, 2), NnBlock(2 * width, 4 * width, 2)
        )
        self.scores = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.blocks(self.start(x)).mean((2, 3)))
        return scores
