"""A diffusion model that draws digits, trained by one compiled step.

The network is given a noisy image, the digit that it shows and how much noise there is, and learns
to tell noise and image apart. Images are drawn by a moving average of the networks: it starts from
noise alone and takes the noise away in steps.

Source: J. Ho, A. Jain, P. Abbeel, "Denoising diffusion probabilistic models", 2020; the samples by
J. Song, C. Meng, S. Ermon, "Denoising diffusion implicit models", 2021; what is predicted by
T. Salimans, J. Ho, "Progressive distillation for fast sampling of diffusion models", 2022.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import parallax
from parallax import Module, func, nn, optim, random
from parallax.examples._command import command_line, run_quietly
from parallax.examples._digit_pictures import digit_pictures
from parallax.examples._digits import load
from parallax.examples._figures import new_figure, save_figure, show_images
from parallax.examples._progress import progress, waiting

BATCH = 256
RATE = 2e-3
WIDTH = 256


class Denoiser(Module):
    """Predicts the velocity: how an image changes as noise is mixed in."""

    digit: nn.Embedding
    start: nn.Linear
    blocks: tuple[nn.Residual, ...]
    end: nn.Linear

    def __init__(self, width: int = WIDTH, blocks: int = 3) -> None:
        super().__init__()
        self.digit = nn.Embedding(10, width)
        self.start = nn.Linear(64 + 16, width)
        self.blocks = tuple(
            nn.Residual(nn.Sequential(nn.LayerNorm(width), nn.MLP((width, width, width), F.silu)))
            for _ in range(blocks)
        )
        self.end = nn.Linear(width, 64)

    def forward(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """The velocity of each image.

        Args:
            x: noisy images, (batch, 64).
            y: the digits that they show, (batch,).
            t: how much of each is noise, from 0 to 1, (batch,).
        """
        angles = t[:, None] * math.pi * 2.0 ** torch.arange(8)
        hidden = self.start(torch.cat([x, angles.sin(), angles.cos()], 1)) + self.digit(y)
        for block in self.blocks:
            hidden = block(hidden)
        velocity: Tensor = self.end(hidden)
        return velocity


def mixed(images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Images with a share of noise; the variance stays what it is."""
    angle = (t * math.pi / 2)[:, None]
    return torch.cos(angle) * images + torch.sin(angle) * noise


def velocity_loss(net: Denoiser, images: Tensor, labels: Tensor, key: random.Key) -> Tensor:
    """The mean squared error of the predicted velocity."""
    a, b = random.split(key)
    t = random.uniform(a, (len(images),))
    noise = random.normal(b, images.shape)
    velocity = mixed(noise, -images, t)  # the derivative of what is mixed, by the angle
    return F.mse_loss(net(mixed(images, noise, t), labels, t), velocity)


def train(steps: int, seed: int, *, backend: str = "inductor") -> tuple[Denoiser, float]:
    """Trains; returns the average of the networks, and the mean loss of the last steps."""
    digits, key = load(), random.key(seed)
    net = Denoiser().initialize(random.fold_in(key, "net"))
    adam = optim.Adam(lr=optim.schedules.WarmupCosineLR(RATE, steps // 10, steps))
    ema = optim.EMA(0.995)

    @parallax.compile(backend=backend)
    def step(net: Denoiser, average: Any, state: Any, x: Tensor, y: Tensor, key: random.Key) -> Any:
        choose, rest = random.split(key)
        batch = random.randint(choose, (BATCH,), 0, len(x))
        grads, loss = func.grad_and_value(velocity_loss)(net, x[batch], y[batch], rest)
        net, state = adam.step(net, grads, state)
        return net, ema.update(average, net), state, loss

    images = digits.train_x * 2 - 1
    average: Any = ema.init(net)
    state, losses = adam.init(net), []
    for number in progress(range(steps), steps, "steps"):
        with waiting("compiling the training step", number == 0):
            net, average, state, loss = step(
                net, average, state, images, digits.train_y, random.fold_in(key, number)
            )
        losses.append(loss)
    return average.model, float(torch.stack(losses[-50:]).mean())


def sample(net: Denoiser, labels: Tensor, key: random.Key, steps: int = 50) -> Tensor:
    """Draws an image of each digit.

    Args:
        net: a trained network.
        labels: which digits to draw, (n,).
        key: the same key draws the same images.
        steps: in how many the noise is taken away.

    Returns:
        Images of shape (n, 64), from 0 to 1.
    """
    times = torch.linspace(1, 0, steps + 1)
    x = random.normal(key, (len(labels), 64))
    with torch.no_grad():
        for now, then in pairwise(times):
            t = now.expand(len(labels))
            velocity = net(x, labels, t)
            image, noise = mixed(x, -velocity, t), mixed(velocity, x, t)
            x = mixed(image.clamp(-1, 1), noise, then.expand(len(labels)))
    return (x.clamp(-1, 1) + 1) / 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and draw each digit."""
    asked = command_line(__file__, __doc__, "eight samples of each digit").parse_args(arguments)
    steps, backend = (20, "eager") if asked.quick else (3000, "inductor")
    net, loss = train(steps, asked.seed, backend=backend)
    labels = torch.arange(10).repeat_interleave(8)
    images = sample(net, labels, random.key(asked.seed))
    print(f"mean squared error of the velocity after {steps} steps: {loss:.3f}")
    for row in (slice(0, 40, 8), slice(40, 80, 8)):
        print(f"\n{digit_pictures(images[row], labels[row], labels[row], 80)}")
    if asked.picture:
        figure = new_figure(4, 5)
        show_images(figure, images, 8)
        save_figure(figure, asked.picture)


if __name__ == "__main__":
    sys.exit(run_quietly(main))
