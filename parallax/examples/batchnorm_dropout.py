"""A convolutional network with batch normalisation and dropout, trained by one pure function.

A training step reads a module, a key and a batch, and returns a module and a loss: nothing is
written, and what is random is an argument. So the whole step, with its derivative, its running
statistics and its masks, compiles to one graph.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from parallax import Buffer, Module, Parameter, effects, func, random, tree
from parallax.examples._command import command_line, run_quietly
from parallax.examples._digits import load
from parallax.examples._progress import progress

BATCH = 64
RATE = 0.05
MOMENTUM = 0.1
EPS = 1e-5
DROP = 0.25


class Conv(Module):
    """A 3 x 3 convolution that keeps the size."""

    weight: Parameter

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.weight = Parameter((channels_out, channels_in, 3, 3), init.kaiming_normal_)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a batch of images."""
        return F.conv2d(x, self.weight, padding=1)


class BatchNorm(Module):
    """Normalise each channel: by the batch while training, by what was seen otherwise.

    Source: S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015.
    """

    weight: Parameter
    bias: Parameter
    running_mean: Buffer
    running_var: Buffer

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = Parameter((channels,), init.ones_)
        self.bias = Parameter((channels,), init.zeros_)
        self.running_mean = Buffer((channels,), init.zeros_)
        self.running_var = Buffer((channels,), init.ones_)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch of images; while training, emit the new running statistics."""
        if self.mode == "train":
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            n = x.numel() // x.shape[1]
            self.emit(
                running_mean=torch.lerp(self.running_mean, mean, MOMENTUM),
                running_var=torch.lerp(self.running_var, var * (n / (n - 1)), MOMENTUM),
            )
        else:
            mean, var = self.running_mean, self.running_var
        scale = self.weight * torch.rsqrt(var + EPS)
        shift = self.bias - mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Dropout(Module):
    """Set some of the numbers to zero while training; which ones depends on the key alone."""

    rate: float

    def forward(self, x: Tensor) -> Tensor:
        """Drop numbers and scale up the rest."""
        if self.mode != "train":
            return x
        return x * random.dropout_mask(self.rng, x.shape, self.rate)


class Dense(Module):
    """An affine map."""

    weight: Parameter
    bias: Parameter

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.weight = Parameter((size_out, size_in), init.xavier_normal_)
        self.bias = Parameter((size_out,), init.zeros_)

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of rows."""
        return F.linear(x, self.weight, self.bias)


class ConvNet(Module):
    """Two convolutions, each normalised, and an affine map after dropout."""

    conv1: Conv
    norm1: BatchNorm
    conv2: Conv
    norm2: BatchNorm
    dropout: Dropout
    dense: Dense

    def __init__(self, channels: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = Conv(1, channels)
        self.norm1 = BatchNorm(channels)
        self.conv2 = Conv(channels, 2 * channels)
        self.norm2 = BatchNorm(2 * channels)
        self.dropout = Dropout(DROP)
        self.dense = Dense(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Score each class, for a batch of images with one channel."""
        x = F.max_pool2d(torch.relu(self.norm1(self.conv1(x))), 2)
        x = torch.relu(self.norm2(self.conv2(x))).mean((2, 3))
        scores: Tensor = self.dense(self.dropout(x))
        return scores


def loss(net: ConvNet, x: Tensor, y: Tensor) -> Tensor:
    """The cross entropy of the scores."""
    return F.cross_entropy(net(x), y)


def train_step(net: ConvNet, key: random.Key, x: Tensor, y: Tensor) -> tuple[ConvNet, Tensor]:
    """One step of gradient descent.

    Args:
        net: The network; it stays as it is.
        key: Decides what is dropped; give each step a key of its own.
        x: Images, of shape (batch, 1, height, width).
        y: The class of each.

    Returns:
        The next network and the loss of this one.
    """
    grads, (value, after) = func.grad(value_and_effects, has_aux=True)(net.train(key), x, y)
    return tree.update(lambda p, g: p - RATE * g, after, grads), value


def value_and_effects(net: ConvNet, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ConvNet]]:
    """The loss to differentiate, and beside it its value and the net with new statistics."""
    value, after = effects.collect(loss)(net, x, y)
    return value, (value.detach(), after)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print how many digits are read rightly."""
    asked = command_line(__file__, __doc__).parse_args(arguments)
    steps = 5 if asked.quick else 300
    digits, key = load(), random.key(asked.seed)
    net = ConvNet(16).initialize(random.fold_in(key, "net"))
    losses = []
    for number in progress(range(steps), steps, "steps"):
        choose, drop = random.split(random.fold_in(key, number))
        batch = random.randint(choose, (BATCH,), 0, len(digits.train_x))
        x = digits.train_x[batch].reshape(-1, 1, 8, 8)
        net, value = train_step(net, drop, x, digits.train_y[batch])
        losses.append(value.item())
    read = net.eval()(digits.test_x.reshape(-1, 1, 8, 8)).argmax(1)
    print(f"loss {losses[-1]:.3f}, test accuracy {(read == digits.test_y).double().mean():.1%}")


if __name__ == "__main__":
    sys.exit(run_quietly(main))
