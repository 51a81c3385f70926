"""What do explicit randomness and explicit effects cost?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Candidate, Question, from_floor
from benchmarks.models import BLOCKS, NnGPT, mirror
from parallax import Buffer, Module, Parameter, effects, random, tree

LAYERS = 20


def questions(quick: bool) -> Iterator[Question]:
    yield from from_floor(_all(quick))


def _all(quick: bool) -> Iterator[Question]:
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
        all_threads=True,
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
        all_threads=True,
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
        floor=Candidate("floor: torch.randint", lambda: torch.randint(2**62, (2,))),
        remains="Ten rounds of Philox on Python integers; compiled code computes the same",
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
    """Batch normalisation that computes its statistics, and says them or not."""

    weight: Parameter
    bias: Parameter
    running_mean: Buffer
    running_var: Buffer

    def forward(self, x: Tensor) -> Tensor:
        x, _, _ = _normalised(self, x)
        return x


class SayingNorm(Norm):
    """The same, as a module that emits."""

    def forward(self, x: Tensor) -> Tensor:
        x, mean, var = _normalised(self, x)
        self.emit(running_mean=mean, running_var=var)
        return x


class KeepingNorm(Norm):
    """The same with no effects at all: the statistics go into a list that somebody holds."""

    def forward(self, x: Tensor) -> Tensor:
        x, mean, var = _normalised(self, x)
        _kept.append(mean)
        _kept.append(var)
        return x


_kept: list[Tensor] = []


def _normalised(norm: Norm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, training=True), mean, var


class Net(Module):
    convs: tuple[Parameter, ...]
    norms: tuple[Norm, ...]

    def forward(self, x: Tensor) -> Tensor:
        for weight, norm in zip(self.convs, self.norms, strict=True):
            x = norm(F.conv2d(x, weight, padding=1)).relu()
        return x


def _net(cls: type[Norm]) -> Net:
    convs = random.normal(random.key(0), (LAYERS, 16, 16, 3, 3)) / 12
    leaves = torch.ones(16), torch.zeros(16), torch.zeros(16), torch.ones(16)
    norms = [cls(*[leaf.clone() for leaf in leaves]) for _ in range(LAYERS)]
    fields: dict[str, Any] = {"convs": tuple(convs), "norms": tuple(norms)}
    return Net(**fields)


def _effects() -> Question:
    silent, says = _net(Norm), _net(SayingNorm)
    x = torch.randn(8, 16, 16, 16)
    run = effects.collect(Net.forward)
    return Question(
        f"a network of {LAYERS} batch normalisations",
        Candidate("without effects", lambda: silent(x)),
        [Candidate("effects.collect", lambda: run(says, x)[0], limit=1.05)],
        check=torch.testing.assert_close,
        context=torch.no_grad,
        floor=Candidate("floor: kept in a list, two trees built", _by_hand(x)),
    )


def _by_hand(x: Tensor) -> Callable[[], Tensor]:
    """What any collection must do: a tree for the call, the statistics kept, a tree of them."""
    net = _net(KeepingNorm)
    leaves, structure = tree.flatten(net)
    names = list(tree.named_leaves(net))
    places = [k for k, name in enumerate(names) if "running" in name]

    def run() -> Tensor:
        _kept.clear()
        out: Tensor = tree.unflatten(structure, leaves)(x)
        new = list(leaves)
        for place, value in zip(places, _kept, strict=True):
            new[place] = value
        tree.unflatten(structure, new)
        return out

    return run
