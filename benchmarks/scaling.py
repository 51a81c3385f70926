"""How do costs grow: with the leaves of a tree, its depth, the members of an ensemble?

And the tree operations of a model with 1e8 parameters, which move no parameter, on the meta device
and in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import optree
import torch
from torch import Tensor, nn
from torch.utils import _pytree as torch_pytree

from benchmarks import floor
from benchmarks.harness import Candidate, Question, Row, from_floor
from benchmarks.memory import peak_bytes
from benchmarks.models import NnChain, NnMLP, as_dict, mirror
from benchmarks.records import Curve
from parallax import Module, Parameter, effects, func, random, tree

LATE = True

Ask = Callable[[Question], list[Row]]
Runs = dict[str, Callable[[], Any]]

HUGE = 100_000_000


class Twig(Module):
    """A module in a module in a module."""

    weight: Parameter
    inner: Module | None

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.weight
        return x if self.inner is None else self.inner(x)


class NnTwig(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.inner = NnTwig(depth - 1) if depth > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.weight
        return x if self.inner is None else self.inner(x)


class Wide(Module):
    """Every parameter of a model of the size of a small language model."""

    layers: tuple[Parameter, ...]


def curves(quick: bool, ask: Ask) -> Iterator[Curve]:
    leaves = (10, 100) if quick else (10, 100, 1_000, 10_000, 100_000)
    yield _curve("tree operations", "leaves", leaves, _with_leaves, ask)
    layers = (1, 10) if quick else (1, 10, 100, 1_000)
    yield _curve("layers in a row, 8 wide", "layers", layers, _with_layers, ask)
    # Modules nest up to 200 deep; beyond that a clear error asks for a tuple. Calls of nested
    # nn.Modules, three frames for each, end at Python's limit of 1,000 frames soon after.
    depths = (1, 10) if quick else (1, 10, 100, 200)
    yield _curve("nested modules", "depth", depths, _with_depth, ask)
    members = (1, 4) if quick else (1, 4, 16, 64, 256)
    yield _curve("an ensemble of MLPs, 8 wide", "members", members, _with_members, ask)


def _curve(
    name: str, axis: str, sizes: tuple[int, ...], runs_of: Callable[[int], Runs], ask: Ask
) -> Curve:
    series: dict[str, list[tuple[float, float]]] = {}
    for size in sizes:
        (first, run), *others = runs_of(size).items()
        candidates = [Candidate(name, other) for name, other in others]
        question = Question(
            f"{name}, {size} {axis}", Candidate(first, run), candidates, most_rounds=5
        )
        rows = ask(question)
        for row in [rows[0], *rows[2:]]:
            series.setdefault(row.name, []).append((size, row.seconds))
    return Curve("scaling", name, axis, "seconds", series)


def _with_leaves(count: int) -> Runs:
    module = mirror(NnChain(count // 2, 1))
    other = tree.map(Tensor.clone, module)
    plain: Any = as_dict(module)
    leaves = tree.leaves(module)
    return {
        "optree.tree_map, dicts": lambda: optree.tree_map(_identity, plain),
        "torch pytree, dicts": lambda: torch_pytree.tree_map(_identity, plain),
        "tree.map": lambda: tree.map(_identity, module),
        "tree.map, two trees": lambda: tree.map(_first, module, other),
        "train(key)": lambda: module.train(random.clone(_KEY)),
        "a flat list": lambda: [_identity(leaf) for leaf in leaves],
    }


_KEY = random.key(0)


def _with_layers(count: int) -> Runs:
    reference, x = NnChain(count, 8).requires_grad_(False), torch.randn(1, 8)
    module: Any = mirror(reference)
    straight = floor.forward_of(reference)
    gradient = func.grad(lambda m: m(x).sum())

    def backward() -> None:
        leaves = [leaf.detach().requires_grad_() for leaf in reference.parameters()]
        torch.autograd.grad(floor.chain(leaves, x).sum(), leaves)

    return {
        "nn.Module call": lambda: reference(x),
        "call": lambda: module(x),
        "straight-line calls": lambda: straight(x),
        "func.grad": lambda: gradient(module),
        "autograd over a flat list": backward,
        "tree.map": lambda: tree.map(_identity, module),
    }


def _with_depth(depth: int) -> Runs:
    module: Any = None
    for _ in range(depth):
        module = Twig(torch.ones(1), module)
    reference, x = NnTwig(depth), torch.ones(1)
    reference.requires_grad_(False)
    return {
        "nn.Module call": lambda: reference(x),
        "call": lambda: module(x),
        "tree.map": lambda: tree.map(_identity, module),
        "repr": lambda: repr(module),
        "collect": lambda: effects.collect(Twig.forward)(module, x),
    }


def _with_members(count: int) -> Runs:
    models = [NnMLP((8, 8, 8, 8)) for _ in range(count)]
    stacked: Any = tree.stack([mirror(model) for model in models])
    x = torch.randn(16, 8)
    state = torch.func.stack_module_state(models)

    def raw(parameters: Any) -> Tensor:
        out: Tensor = torch.func.functional_call(models[0], parameters, (x,))
        return out

    def loss(module: Any) -> Tensor:
        value: Tensor = module(x).square().mean()
        return value

    parameters = {name: value.detach() for name, value in state[0].items()}
    return {
        "torch.vmap, stack_module_state": lambda: torch.vmap(raw)(parameters),
        "func.vmap": lambda: func.vmap(lambda m: m(x))(stacked),
        "func.ensemble_grad": lambda: func.ensemble_grad(loss)(stacked),
    }


def questions(quick: bool) -> Iterator[Question]:
    yield from from_floor(_of_a_huge_model(quick))


def _of_a_huge_model(quick: bool) -> Iterator[Question]:
    size = HUGE // 100 if quick else HUGE
    called = f"1e{len(str(size)) - 1} parameters"
    for device in ("meta", "cpu"):
        module = _huge(size, device)
        flat = tree.leaves(module)
        yield Question(
            f"{called} on {device}: without moving one",
            Candidate("a flat list, mapped", partial(_all, flat)),
            [
                Candidate("tree.map", partial(tree.map, _identity, module)),
                Candidate("tree.flatten", partial(tree.flatten, module)),
                Candidate("tree.select", partial(_first_layer, module)),
                Candidate("tree.partition", partial(tree.partition, module, "layers.0")),
            ],
            remains="A module is built around the leaves; a partition builds two",
        )
        yield Question(
            f"{called} on {device}: moving each",
            Candidate("a flat list, doubled", partial(_doubled, flat)),
            [
                Candidate("tree.scale", partial(tree.scale, module, 2.0)),
                Candidate("tree.to", partial(tree.to, module, dtype=torch.bfloat16)),
                Candidate("tree.stack of one", partial(tree.stack, [module])),
            ],
            most_rounds=3,
            all_threads=device == "cpu",
        )
    module = _huge(size, "cpu")
    yield Question(
        f"{called}: peak memory (1 MB as 1 ms)",
        _peak("a flat list, doubled", partial(_doubled, tree.leaves(module))),
        [
            _peak("tree.map of the identity", partial(tree.map, _identity, module)),
            _peak("tree.scale", partial(tree.scale, module, 2.0)),
        ],
        most_rounds=2,
    )


def _huge(size: int, device: str) -> Wide:
    layers: Any = tuple(torch.ones(size // 100, device=device) for _ in range(100))
    return Wide(layers)


def _peak(name: str, run: Callable[[], Any]) -> Candidate:
    return Candidate(name, lambda: max(peak_bytes(run), 1) * 1e-9, self_timed=True)


def _all(leaves: list[Tensor]) -> list[Tensor]:
    return [_identity(leaf) for leaf in leaves]


def _doubled(leaves: list[Tensor]) -> list[Tensor]:
    return [leaf * 2 for leaf in leaves]


def _first_layer(module: Module) -> Any:
    return tree.select(module, "layers.0").get()


def _identity(leaf: Any) -> Any:
    return leaf


def _first(leaf: Any, other: object) -> Any:
    del other
    return leaf
