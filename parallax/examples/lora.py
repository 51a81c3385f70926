"""Low-rank adaptation of a lifted transformer: training, saving the adapters, merging them.

An ``nn.Module`` is lifted, each of its linear maps gets an adapter with two small matrices,
everything else is frozen, and only what was trained is saved.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import bridge, func, io, optim, random, tree
from parallax.examples._command import command_line, run_quietly
from parallax.examples._progress import progress
from parallax.nn import lora, merge_lora

__all__ = ["adapt", "load_adapters", "make_model", "save_adapters", "train"]


class Classifier(nn.Module):
    """A small transformer of torch's that says which of a few classes a sequence is of."""

    def __init__(self, tokens: int = 16, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(2))
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores of the classes."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(-2))  # type: ignore[no-any-return]  # nn.Module.__call__ says nothing


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v))  # type: ignore[no-any-return]  # as above


def make_model(seed: int = 0) -> nn.Module:
    """The model to adapt; here with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier()


def adapt(model: nn.Module, *, rank: int, seed: int) -> Any:
    """The lifted model with an adapter around each linear map, all else frozen.

    Args:
        model: it stays as it is, and shares its weights.
        rank: of the change.
        seed: of the adapters' values.

    Returns:
        A module that computes what ``model`` does, until it is trained.
    """
    return lora(bridge.lift(model), bridge.lifted_type(nn.Linear), rank=rank).initialize(seed)


def train(
    module: Any, x: Tensor, y: Tensor, *, steps: int, rate: float
) -> Iterator[tuple[Any, Tensor]]:
    """Trains what is not frozen, with Adam.

    Args:
        module: an adapted model.
        x: ids of tokens, ``(batch, length)``.
        y: classes, ``(batch,)``.
        steps: how many.
        rate: the learning rate.

    Yields:
        The module and the loss before it, after every step.
    """

    def loss_of(module: Any) -> Tensor:
        return F.cross_entropy(module(x), y)

    adam = optim.Adam(lr=rate)
    state = adam.init(module)
    for _ in range(steps):
        grads, loss = func.grad_and_value(loss_of)(module)
        module, state = adam.step(module, grads, state)
        yield module, loss


def save_adapters(module: Any, path: str | os.PathLike[str]) -> None:
    """Saves only what is trained.

    Args:
        module: an adapted model.
        path: a file name that ends in ``.pt`` or ``.safetensors``.
    """
    trained, _ = tree.partition(module, "trainable")
    io.save(trained, path)


def load_adapters(module: Any, path: str | os.PathLike[str]) -> Any:
    """The adapted model with what was saved of another.

    Args:
        module: an adapted model, of the same base and rank.
        path: the file.

    Returns:
        The module.
    """
    trained, rest = tree.partition(module, "trainable")
    return tree.combine(io.load(path, like=trained), rest)


def main(arguments: Sequence[str] | None = None) -> None:
    """Adapt, train, save the adapters alone, and load them into another copy."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--save", type=Path, metavar="FILE", help="where to keep the adapters")
    asked = parser.parse_args(arguments)
    steps, key = 5 if asked.quick else 200, random.key(asked.seed)
    x = random.randint(key, (256, 8), 0, 16)
    y, model = x.sum(1) % 4, make_model(asked.seed)
    start = adapt(model, rank=4, seed=asked.seed)
    trained_by_step = train(start, x, y, steps=steps, rate=0.02)
    models, losses = zip(*progress(trained_by_step, steps, "steps"), strict=True)
    adapted = models[-1]
    trained, _ = tree.partition(adapted, "trainable")
    print(f"{tree.size(trained):,} of {tree.size(adapted):,} numbers were trained")
    print(f"cross-entropy loss {losses[0]:.3f} before, {losses[-1]:.3f} after {steps} steps")
    with TemporaryDirectory() as folder:
        path = asked.save or Path(folder, "adapters.pt")
        save_adapters(adapted, path)
        again = load_adapters(adapt(model, rank=4, seed=asked.seed + 1), path)
        print(f"the file of the adapters has {path.stat().st_size:,} bytes")
    print(f"loaded beside the same model, they compute the same: {tree.equal(again, adapted)}")
    same = torch.allclose(merge_lora(adapted)(x), adapted(x), atol=1e-4)
    print(f"added to its weights, they compute the same: {same}")


if __name__ == "__main__":
    sys.exit(run_quietly(main))
