"""A small network that reads handwritten digits, and the loop that trains it.

Parameters are declared with a shape and an initializer, each layer gets its random state from the
tree, and one layer is used twice after a `split`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from parallax import Module, Parameter, tree
from parallax.examples._digits import Digits

BATCH = 64
RATE = 0.05
MOMENTUM = 0.9


class Dense(Module):
    """An affine map of the last dimension."""

    weight: Parameter
    bias: Parameter

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.weight = Parameter((out_size, in_size), init.xavier_normal_)
        self.bias = Parameter((out_size,), init.zeros_)

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of rows."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Show the sizes, as `torch.nn.Linear` does."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


class Dropout(Module):
    """Set some of the numbers to zero while training; which ones depends on `self.rng` alone."""

    rate: float

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop numbers and scale up the rest, or do nothing when not training."""
        if self.mode != "train":
            return x
        keep = torch.full_like(x, 1 - self.rate)
        return x * torch.bernoulli(keep, generator=self.rng) / keep


class DigitsNet(Module):
    """Three dense layers, the middle one used twice."""

    dense1: Dense
    dense2: Dense
    dense3: Dense
    dropout: Dropout

    def __init__(self, hidden_size: int = 64) -> None:
        super().__init__()
        self.dense1 = Dense(64, hidden_size)
        self.dense2 = Dense(hidden_size, hidden_size)
        self.dense3 = Dense(hidden_size, 10)
        self.dropout = Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Score each of the ten digits, for a batch of images."""
        x = self.dropout(torch.tanh(self.dense1(x)))
        dense2_a, dense2_b = self.dense2.split(2)
        x = torch.tanh(dense2_a(x))
        x = torch.tanh(dense2_b(x))
        return self.dense3(x)


class Epoch(NamedTuple):
    """The network and its mean loss after one pass over the training images."""

    net: DigitsNet
    loss: float


def train(net: DigitsNet, digits: Digits, *, epochs: int, seed: int) -> Iterator[Epoch]:
    """Train by gradient descent with momentum.

    Each step prepares the tree (`reset`), runs it, reads the gradients off as a tree of the same
    shape (`grad`) and computes the next tree from them (`update`).

    Args:
        net: An initialised network; it stays as it is.
        digits: Images and labels.
        epochs: How many passes over the training images.
        seed: Decides the order of the images and what is dropped.

    Yields:
        The network and its mean loss, after every pass.
    """
    rng = torch.Generator().manual_seed(seed)
    velocity = tree.zeros_like(net)
    for _ in range(epochs):
        losses = []
        for batch in torch.randperm(len(digits.train_x), generator=rng).split(BATCH):
            net = net.reset(_next_generator(rng), mode="train")
            loss = F.cross_entropy(net(digits.train_x[batch]), digits.train_y[batch])
            loss.backward()
            velocity = velocity.update(lambda v, g: MOMENTUM * v + g, net.grad())
            net = net.update(lambda p, v: p - RATE * v, velocity)
            losses.append(loss.item())
        yield Epoch(net, sum(losses) / len(losses))


def _next_generator(rng: torch.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=rng)))


def predict(net: DigitsNet, x: Tensor) -> Tensor:
    """Tell which digit the network reads in each image, with nothing dropped."""
    with torch.no_grad():
        return net.eval()(x).argmax(1)


def accuracy(net: DigitsNet, x: Tensor, y: Tensor) -> float:
    """Tell what share of the images the network reads rightly."""
    return float((predict(net, x) == y).double().mean())
