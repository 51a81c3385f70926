"""The main job, `python -m parallax`: train a small network on the handwritten digits."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

from parallax import tree
from parallax.examples.digits import load
from parallax.examples.digits_net import DigitsNet, accuracy, train
from parallax.examples.progress import progress

# What a generator of torch takes as a seed.
_LARGEST = 2**63 - 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and report the test accuracy and the network that was found."""
    asked = _parser().parse_args(arguments)
    digits = load()
    net = DigitsNet().initialize(asked.seed)
    loss = float("nan")
    start = time.perf_counter()
    epochs = train(net, digits, epochs=asked.epochs, seed=asked.seed)
    for net, loss in progress(epochs, asked.epochs, "epochs"):  # noqa: B007
        pass
    seconds = time.perf_counter() - start
    print(tree.summary(net))
    print(f"\n{asked.epochs} epochs, seed {asked.seed}: {seconds:.1f} s, training loss {loss:.4f}")
    print(f"test accuracy: {accuracy(net, digits.test_x, digits.test_y):.2%}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m parallax", description=__doc__)
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
    main()
