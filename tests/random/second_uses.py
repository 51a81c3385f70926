"""Programs that use a key once, twice, or in ways that are no second use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parallax import Module, func, nn, random, tree
from parallax.random import Key, fold_in, normal, split

Program = Callable[[Key, Tensor], Any]


class Twice(Module):
    drop: nn.Dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x) + self.drop(x)


class Copies(Module):
    drop: nn.Dropout

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.drop.split(2)
        return first(x) + second(x)


class Once(Module):
    drop: nn.Dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x)


class Shared(Module):
    drop: nn.Dropout

    def forward(self, x: Tensor, key: Key) -> Tensor:
        return self.drop(x) + normal(key)


TWICE, COPIES, ONCE = [cls(nn.Dropout(0.5)) for cls in (Twice, Copies, Once)]
STACK, TWICES = nn.Stack(ONCE, 3), nn.Stack(TWICE, 2)
SHARED = nn.Stack(Shared(nn.Dropout(0.5)), 2)


def _copied(key: Key) -> Key:
    return tree.map(torch.clone, {"key": key})["key"]


def _with(value: Any, fn: Callable[[Any], Any]) -> Any:
    return fn(value)


def _unstacked(key: Key, first: int) -> Any:
    one, two = split(key)
    members = tree.unstack(tree.stack([one, two]))
    return normal([one, two][first]), normal(members[0])


def _reused(key: Key) -> Any:
    with random.reuse():
        return normal(key), normal(key)


def _reused_and_left(key: Key) -> Any:
    with random.reuse():
        one = normal(key)
    return one, normal(key), normal(key)


def _noise(key: Key) -> Callable[[Tensor], Tensor]:
    return lambda x: x * normal(key)


def _noise_twice(key: Key) -> Callable[[Tensor], Tensor]:
    return lambda x: x * normal(key) * normal(key)


def _mapped(fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return torch.vmap(fn, **options)(*args)


def _checkpointed(fn: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    return checkpoint(fn, x, use_reentrant=False)


SECOND: dict[str, Program] = {
    "two draws": lambda k, x: (normal(k), normal(k)),
    "a loop": lambda k, x: [normal(k) for _ in range(3)],
    "the same fold": lambda k, x: (normal(fold_in(k, 3)), normal(fold_in(k, 3))),
    "the same name": lambda k, x: (normal(fold_in(k, "a")), normal(fold_in(k, "a"))),
    "the same step": lambda k, x: [normal(fold_in(k, torch.tensor(3))) for _ in range(2)],
    "a copy": lambda k, x: (normal(k), normal(_copied(k))),
    "a copy first": lambda k, x: _with(_copied(k), lambda c: (normal(c), normal(k))),
    "an unstacked key": lambda k, x: _unstacked(k, 0),
    "a row": lambda k, x: _with(split(k), lambda rows: (normal(rows[1]), normal(rows[-1]))),
    "after reuse": lambda k, x: _reused_and_left(k),
    "a module": lambda k, x: TWICE.train(k)(x),
    "a tree": lambda k, x: _with(COPIES.train(k), lambda m: (m(x), m(x))),
    "two trees": lambda k, x: (COPIES.train(k)(x), COPIES.train(k)(x)),
    "two trees, the same fold": lambda k, x: [COPIES.train(fold_in(k, 1))(x) for _ in range(2)],
    "a Stack": lambda k, x: _with(STACK.train(k), lambda m: m(m(x))),
    "a Stack of such": lambda k, x: TWICES.train(k)(x),
    "in all blocks": lambda k, x: SHARED.train(k)(x, fold_in(k, "noise")),
    "in vmap": lambda k, x: _mapped(_noise_twice(k), x),
    "in func.vmap": lambda k, x: func.vmap(_noise_twice(k))(x),
    "in vmap and outside": lambda k, x: _mapped(_noise(k), x) * normal(k),
    "in two vmaps": lambda k, x: _mapped(
        lambda row: _mapped(_noise(k), row) * normal(k), x.reshape(2, 2)
    ),
    "in a chunk": lambda k, x: _mapped(_noise_twice(k), x, chunk_size=2),
    "mapped": lambda k, x: _mapped(lambda k: normal(k) * normal(k), split(k)),
    "mapped and a row": lambda k, x: _with(
        split(k), lambda rows: (_mapped(normal, rows), normal(rows[0]))
    ),
    "a row and mapped": lambda k, x: _with(
        split(k), lambda rows: (normal(rows[0]), _mapped(normal, rows))
    ),
    "the same fold, mapped": lambda k, x: _mapped(
        lambda k: normal(fold_in(k, 1)) * normal(fold_in(k, 1)), split(k)
    ),
    "a mapped module": lambda k, x: _mapped(lambda k: TWICE.train(k)(x), split(k)),
    "in grad": lambda k, x: torch.func.grad(lambda x: _noise_twice(k)(x).sum())(x),
    "in func.grad": lambda k, x: func.grad(lambda x: _noise_twice(k)(x).sum())(x),
    "in grad and outside": lambda k, x: func.grad(lambda x: _noise(k)(x).sum())(x) * normal(k),
    "in grad of vmap": lambda k, x: torch.func.grad(lambda x: _mapped(_noise_twice(k), x).sum())(x),
    "in jacfwd": lambda k, x: torch.func.jacfwd(_noise_twice(k))(x),
    "in func.hessian": lambda k, x: func.hessian(lambda x: _noise_twice(k)(x).square().sum())(x),
    "in a checkpoint": lambda k, x: _checkpointed(_noise_twice(k), x),
    "in a checkpoint and outside": lambda k, x: normal(k) * _checkpointed(_noise(k), x),
}
"""Each uses a key twice."""

SINGLE: dict[str, Program] = {
    "one draw": lambda k, x: normal(k),
    "other folds": lambda k, x: [normal(fold_in(k, i)) for i in (0, 1, "0")],
    "other steps": lambda k, x: _with(
        torch.tensor(3), lambda step: [normal(fold_in(k, step)), normal(fold_in(k, step + 1))]
    ),
    "other rows": lambda k, x: _with(split(k), lambda rows: (normal(rows[0]), normal(rows[-1]))),
    "another unstacked key": lambda k, x: _unstacked(k, 1),
    "a clone": lambda k, x: (normal(k), normal(random.clone(k))),
    "reuse": lambda k, x: _reused(k),
    "copies of a module": lambda k, x: COPIES.train(k)(x),
    "a Stack": lambda k, x: STACK.train(k)(x),
    "in vmap": lambda k, x: _mapped(_noise(k), x),
    "in chunks": lambda k, x: _mapped(_noise(k), x, chunk_size=2),
    "in chunks of func.vmap": lambda k, x: func.vmap(_noise(k), chunk_size=2)(x),
    "mapped": lambda k, x: _mapped(normal, split(k)),
    "mapped and split": lambda k, x: _mapped(
        lambda k: torch.stack([normal(j) for j in split(k)]), split(k)
    ),
    "in jacfwd": lambda k, x: torch.func.jacfwd(lambda x: _noise(k)(x) ** 2)(x),
    "in func.hessian": lambda k, x: func.hessian(lambda x: _noise(k)(x).square().sum())(x),
    "linearized": lambda k, x: func.linearize(lambda x: _noise(k)(x) ** 2, x)[1](x),
    "in a checkpoint": lambda k, x: _checkpointed(_noise(k), x),
}
"""Each uses a key once, or as often as it may."""
