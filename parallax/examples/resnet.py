"""A ResNet-20 on the digits, with batch norms as effects.

A step takes a network, the optimizer's state and a batch, and returns the next of each: the running
statistics of the batch norms come back beside the loss, and nothing is written.

Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
section 4.2.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax import Module, effects, func, nn, optim
from parallax.examples._command import command_line, run_quietly
from parallax.examples._digits import Digits, load
from parallax.examples._progress import progress

BATCH = 64
SIDE = 8


class Block(Module):
    """A residual block of two convolutions."""

    body: nn.Sequential
    shortcut: Module

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """The rectified sum of the input and of two convolutions."""
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(Module):
    """A convolution, three groups of blocks, each on images of half the side, and an affine map."""

    start: nn.Sequential
    blocks: tuple[Block, ...]
    scores: nn.Linear

    def __init__(self, per_group: int = 3, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.start = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        blocks, channels = [], width
        for group in range(3):
            for index in range(per_group):
                stride = 2 if group > 0 and index == 0 else 1
                blocks.append(Block(channels, width * 2**group, stride))
                channels = width * 2**group
        self.blocks = tuple(blocks)
        self.scores = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Score each class, for a batch of images with one channel."""
        x = self.start(x)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.scores(x.mean((2, 3)))
        return scores


class Epoch(NamedTuple):
    """The network and its mean loss after one pass over the training images."""

    net: ResNet
    loss: float


def loss_of(net: ResNet, x: Tensor, y: Tensor) -> Tensor:
    """Compute the mean cross-entropy."""
    return F.cross_entropy(net(x), y)


def loss_and_effects(net: ResNet, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ResNet]]:
    """The mean cross-entropy to differentiate; beside it its value, and the net after the batch."""
    loss, after = effects.collect(loss_of)(net, x, y)
    return loss, (loss.detach(), after)


def train_step(
    opt: optim.SGD, net: ResNet, state: Any, x: Tensor, y: Tensor
) -> tuple[ResNet, Any, Tensor]:
    """Take one step.

    Args:
        opt: the optimizer.
        net: the network; it stays as it is, as does the state.
        state: the optimizer's.
        x: images, of shape (batch, 1, height, width).
        y: the class of each.

    Returns:
        The next network, the next state, and the loss of this step.
    """
    grads, (loss, after) = func.grad(loss_and_effects, has_aux=True)(net, x, y)
    net, state = opt.step(after, grads, state)
    return net, state, loss


def train(net: ResNet, digits: Digits, *, epochs: int, seed: int) -> Iterator[Epoch]:
    """Train by gradient descent with Nesterov's momentum, warmed up and cooled down.

    Args:
        net: an initialised network; it stays as it is.
        digits: images and labels.
        epochs: how many passes over the training images.
        seed: decides the order of the images.

    Yields:
        The network and its mean loss, after every pass.
    """
    rng = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(digits.train_x) // BATCH)
    rate = optim.schedules.WarmupCosineLR(0.1, steps // 5, steps)
    opt = optim.SGD(lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    net, state = net.train(), opt.init(net)
    for _ in range(epochs):
        losses = []
        for batch in torch.randperm(len(digits.train_x), generator=rng).split(BATCH):
            x, y = images(digits.train_x[batch]), digits.train_y[batch]
            net, state, loss = train_step(opt, net, state, x, y)
            losses.append(loss.item())
        yield Epoch(net, sum(losses) / len(losses))


def images(rows: Tensor) -> Tensor:
    """Make images with one channel of rows of pixels, centred on zero."""
    return rows.reshape(-1, 1, SIDE, SIDE) * 2 - 1


def accuracy(net: ResNet, x: Tensor, y: Tensor) -> float:
    """Tell what share of the images the network reads rightly, by its running statistics."""
    with torch.no_grad():
        scores = net.eval()(images(x))
    return float((scores.argmax(1) == y).double().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print the accuracy after each pass."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training images")
    asked = parser.parse_args(arguments)
    digits, epochs = load(), 1 if asked.quick else asked.epochs
    net = ResNet(1 if asked.quick else 3).initialize(asked.seed)
    passes = train(net, digits, epochs=epochs, seed=asked.seed)
    for number, (after, loss) in enumerate(progress(passes, epochs, "epochs"), start=1):
        share = accuracy(after, digits.test_x, digits.test_y)
        print(f"pass {number}: loss {loss:.3f}, test accuracy {share:.2%}")


if __name__ == "__main__":
    sys.exit(run_quietly(main))
