"""A recurrent network whose initial states are learned, written for one sequence.

Containers hold as many modules and parameters as there are layers, and are ordinary tuples. The
network reads one sequence; `vmap` makes it read a batch, and `func.grad` derives it with respect
to all that it holds, its initial states included.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from parallax import Module, Parameter, func, nn, optim
from parallax.examples._command import command_line, run_quietly
from parallax.examples._digits import load
from parallax.examples._progress import progress

BATCH = 128
RATE = 0.01
ROW = 8


class Reader(Module):
    """LSTM cells on top of each other, each with a learned initial state."""

    cells: tuple[nn.LSTMCell, ...]
    h: tuple[Parameter, ...]
    c: tuple[Parameter, ...]
    scores: nn.Linear

    def __init__(self, input_size: int, hidden_size: int, classes: int, layers: int) -> None:
        super().__init__()
        sizes = [input_size] + [hidden_size] * (layers - 1)
        self.cells = tuple(nn.LSTMCell(size, hidden_size) for size in sizes)
        self.h = tuple(Parameter((hidden_size,), init.zeros_) for _ in sizes)
        self.c = tuple(Parameter((hidden_size,), init.zeros_) for _ in sizes)
        self.scores = nn.Linear(hidden_size, classes)

    def forward(self, sequence: Tensor) -> Tensor:
        """Score each class, for one sequence of shape (steps, input_size)."""
        states: list[tuple[Tensor, Tensor]] = list(zip(self.h, self.c, strict=True))
        top = self.h[-1]
        for x in sequence:
            below = x
            for k, cell in enumerate(self.cells):
                states[k] = cell(below, states[k])
                below = states[k][0]
            top = below
        scores: Tensor = self.scores(top)
        return scores


def read(reader: Reader, sequences: Tensor) -> Tensor:
    """Score each class for a batch of sequences."""
    scores: Tensor = func.vmap(Reader.forward, in_dims=(None, 0))(reader, sequences)
    return scores


def loss(reader: Reader, sequences: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of the scores."""
    return F.cross_entropy(read(reader, sequences), labels)


def rows(images: Tensor) -> Tensor:
    """Images as sequences of their rows."""
    return images.reshape(*images.shape[:-1], -1, ROW)


def train(steps: int, seed: int, layers: int = 2) -> Iterator[tuple[Reader, float]]:
    """Learn to read digits row by row.

    Args:
        steps: How many steps of Adam.
        seed: Decides the start and the batches.
        layers: How many cells are on top of each other.

    Yields:
        The network and the loss that led to it, after every step.
    """
    digits = load()
    reader = Reader(ROW, 32, 10, layers).initialize(seed)
    adam = optim.Adam(lr=RATE)
    state = adam.init(reader)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(digits.train_x), (BATCH,), generator=rng)
        x, y = rows(digits.train_x[batch]), digits.train_y[batch]
        grads, value = func.grad_and_value(loss)(reader, x, y)
        reader, state = adam.step(reader, grads, state)
        yield reader, float(value)


def accuracy(reader: Reader) -> float:
    """The share of unseen digits that are read rightly."""
    digits = load()
    with torch.no_grad():
        found = read(reader, rows(digits.test_x)).argmax(-1)
    return float((found == digits.test_y).double().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print the accuracy and how far the initial states moved."""
    asked = command_line(__file__, __doc__).parse_args(arguments)
    steps = 5 if asked.quick else 150
    *_, (reader, value) = progress(train(steps, asked.seed), steps, "steps")
    moved = torch.stack([*reader.h, *reader.c]).norm()
    print(f"loss {value:.3f}, test accuracy {accuracy(reader):.1%}")
    print(f"norm of the initial states, which were zero: {moved:.2f}")


if __name__ == "__main__":
    sys.exit(run_quietly(main))
