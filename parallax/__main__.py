"""The main job, `python -m parallax`: train a small network on the handwritten digits."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from parallax import __version__, tree
from parallax.examples._command import run_quietly
from parallax.examples._digit_pictures import confusion_table, digit_pictures
from parallax.examples._digits import load
from parallax.examples._digits_net import DigitsNet, predict, train
from parallax.examples._progress import progress

# What a generator of torch takes as a seed.
_LARGEST = 2**63 - 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and show the network, some digits with what it reads in them, and its accuracy."""
    asked = _parser().parse_args(arguments)
    digits = load()
    net = DigitsNet().initialize(asked.seed)
    loss = float("nan")
    start = time.perf_counter()
    epochs = train(net, digits, epochs=asked.epochs, seed=asked.seed)
    for net, loss in progress(epochs, asked.epochs, "epochs"):  # noqa: B007
        pass
    seconds = time.perf_counter() - start
    columns = shutil.get_terminal_size().columns  # 80 where it is unknown
    print(format(tree.summary(net), str(columns)))
    read = predict(net, digits.test_x)
    _show(digits.test_x, digits.test_y, read)
    print(f"\n{asked.epochs} epochs, seed {asked.seed}: {seconds:.1f} s, training loss {loss:.4f}")
    print(f"test accuracy: {(read == digits.test_y).double().mean():.2%}")


def _show(images: Tensor, labels: Tensor, read: Tensor) -> None:
    wrong = read != labels
    # Those that were misread first, up to three, then others.
    chosen = torch.cat([wrong.nonzero().flatten()[:3], (~wrong).nonzero().flatten()[:20]])
    columns = shutil.get_terminal_size().columns
    print(f"\n{digit_pictures(images[chosen], labels[chosen], read[chosen], columns)}")
    print(f"\nDigits by row, what was read by column:\n{confusion_table(labels, read)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m parallax", description=__doc__)
    parser.add_argument("--version", action="version", version=f"parallax {__version__}")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="default: 0")
    parser.add_argument("--epochs", type=_at_least(1), default=30, help="default: 30")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= _LARGEST:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, got {text}")
        return int(text)

    return parse


if __name__ == "__main__":
    torch.set_num_threads(1)  # the network is small: threads would mostly wait for each other
    sys.exit(run_quietly(main))
