"""A small residual network in both forms, under the same names.

Source: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2; the
shortcuts have no parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import Module
from parallax import nn as layers


def shortcut(x: Tensor, channels: int, stride: int) -> Tensor:
    """Takes every so many pixels, and adds channels of zeros."""
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, channels - x.shape[1]))


class Block(Module):
    conv1: layers.Conv2d
    norm1: layers.BatchNorm2d
    conv2: layers.Conv2d
    norm2: layers.BatchNorm2d
    channels: int
    stride: int

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layers.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = layers.BatchNorm2d(channels)
        self.conv2 = layers.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = layers.BatchNorm2d(channels)
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return torch.relu(y + shortcut(x, self.channels, self.stride))


class ResNet(Module):
    conv: layers.Conv2d
    norm: layers.BatchNorm2d
    blocks: tuple[Block, ...]
    linear: layers.Linear

    def __init__(self, channels: int = 8, classes: int = 10) -> None:
        super().__init__()
        wide = [channels, 2 * channels, 4 * channels]
        self.conv = layers.Conv2d(1, channels, 3, 1, 1, bias=False)
        self.norm = layers.BatchNorm2d(channels)
        self.blocks = tuple(
            Block(before, after, 1 if before == after else 2)
            for before, after in zip([channels, *wide], wide, strict=False)
        )
        self.linear = layers.Linear(wide[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


class NnBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return torch.relu(y + shortcut(x, self.channels, self.stride))


class NnResNet(nn.Module):
    def __init__(self, channels: int = 8, classes: int = 10) -> None:
        super().__init__()
        wide = [channels, 2 * channels, 4 * channels]
        self.conv = nn.Conv2d(1, channels, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.blocks = nn.ModuleList(
            NnBlock(before, after, 1 if before == after else 2)
            for before, after in zip([channels, *wide], wide, strict=False)
        )
        self.linear = nn.Linear(wide[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.linear(x.mean((2, 3)))
        return out
