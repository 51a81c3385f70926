"""What do explicit randomness and explicit effects cost?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Candidate, Question
from benchmarks.models import BLOCKS, NnGPT, mirror
from parallax import Buffer, Module, Parameter, effects, random, tree

LAYERS = 20


def questions(quick: bool) -> Iterator[Question]:
    n = 10_000 if quick else 1_000_000
    yield _normal(n)
    yield _dropout(n)
    yield _split()
    yield _distribute(150 if quick else 1_002)
    yield _effects()


def _normal(n: int) -> Question:
    key, generator = random.key(0), torch.Generator().manual_seed(0)
    return Question(
        f"{n:,} normal numbers",
        Candidate("torch.randn with a Generator", lambda: torch.randn(n, generator=generator)),
        [Candidate("random.normal", lambda: random.normal(key, (n,)), limit=1.15)],
        context=random.reuse,
    )


def _dropout(n: int) -> Question:
    key, x = random.key(0), torch.randn(n)
    return Question(
        f"dropout of {n:,} numbers",
        Candidate("F.dropout", lambda: F.dropout(x, 0.2)),
        [
            Candidate(
                "x * random.dropout_mask",
                lambda: x * random.dropout_mask(key, x.shape, 0.2),
                limit=1.3,
            )
        ],
        context=random.reuse,
    )


def _split() -> Question:
    key = random.key(0)
    return Question(
        "splitting a key",
        Candidate("torch.empty(2)", lambda: torch.empty(2)),
        [
            Candidate("random.split(key, 2)", lambda: random.split(key, 2), limit=15.0),
            Candidate("random.fold_in(key, 1)", lambda: random.fold_in(key, 1)),
            Candidate("random.key(0)", lambda: random.key(0)),
        ],
        context=random.reuse,
    )


def _distribute(leaves: int) -> Question:
    module, key = mirror(NnGPT(BLOCKS[leaves])), random.key(0)
    return Question(
        f"handing an rng to {leaves:,} leaves",
        Candidate("tree.map", lambda: tree.map(_same, module)),
        [
            Candidate("train(key)", lambda: module.train(key), limit=1.2),
            Candidate("train(seed)", lambda: module.train(0), limit=1.2),
        ],
    )


def _same(leaf: Tensor) -> Tensor:
    return leaf


class Norm(Module):
    """Batch normalisation that may leave its statistics unsaid."""

    weight: Parameter
    bias: Parameter
    running_mean: Buffer
    running_var: Buffer
    says: bool

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean.clone(), self.running_var.clone()
        x = F.batch_norm(x, mean, var, self.weight, self.bias, training=True)
        if self.says:
            self.emit(running_mean=mean, running_var=var)
        return x


class Net(Module):
    convs: tuple[Parameter, ...]
    norms: tuple[Norm, ...]

    def forward(self, x: Tensor) -> Tensor:
        for weight, norm in zip(self.convs, self.norms, strict=True):
            x = norm(F.conv2d(x, weight, padding=1)).relu()
        return x


def _net(says: bool) -> Net:
    convs = random.normal(random.key(0), (LAYERS, 16, 16, 3, 3)) / 12
    norms = [
        Norm(torch.ones(16), torch.zeros(16), torch.zeros(16), torch.ones(16), says)
        for _ in range(LAYERS)
    ]
    fields: dict[str, Any] = {"convs": tuple(convs), "norms": tuple(norms)}
    return Net(**fields)


def _effects() -> Question:
    silent, says = _net(False), _net(True)
    x = torch.randn(8, 16, 16, 16)
    run = effects.collect(Net.forward)
    return Question(
        f"a network of {LAYERS} batch normalisations",
        Candidate("without effects", lambda: silent(x)),
        [Candidate("effects.collect", lambda: run(says, x)[0], limit=1.05)],
        check=torch.testing.assert_close,
        context=torch.no_grad,
    )
