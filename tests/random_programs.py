"""Random programs: random models under random nestings of transforms, by several engines.

A program is a scalar function of a model and an input, made of transforms in transforms. The same
program runs by ``parallax.func``, by raw ``torch.func`` on the model's trained leaves, and by
loops with ``torch.autograd.grad`` alone; and what the first computes, compiled.

    python -m tests.random_programs 1000 [first seed]

runs many and prints how many differ. Everything follows from the seed.
"""

from __future__ import annotations

import math
import random as python_random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parallax import Buffer, Module, Parameter, effects, field, func, random, registry, tree

SIZE = 3
Scalar = Callable[[Any, Tensor], Tensor]


# -- models ---------------------------------------------------------------------------------------


class Dense(Module):
    """A layer with holes, buffers of other dtypes, and constants."""

    weight: Parameter
    bias: Parameter | None
    scale: Buffer | None
    count: Buffer
    act: Callable[[Tensor], Tensor] = field(default=torch.tanh)
    rate: float = 1.0
    options: tuple[Any, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.weight.to(x.dtype) @ x) * self.rate + self.count.to(x.dtype)
        if self.bias is not None:
            y = y + self.bias
        return y if self.scale is None else y * self.scale


class Tracking(Module):
    """Emits what it has seen."""

    mean: Buffer
    gain: Parameter

    def forward(self, x: Tensor) -> Tensor:
        self.emit(mean=0.5 * self.mean + 0.5 * (self.gain * x).mean())
        return x - self.mean


class Noisy(Module):
    """Draws."""

    width: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return x + self.width * random.normal(self.rng, x.shape, dtype=x.dtype)


class Holder:
    """A class of the user's own."""

    def __init__(self, inner: Any, note: Any) -> None:
        self.inner = inner
        self.note = note


registry.register(
    Holder, lambda h: ((h.inner,), h.note), lambda note, inner: Holder(next(iter(inner)), note)
)


class Bag(Module):
    """Containers of layers, some of them tied."""

    parts: tuple[Module, ...]
    named: dict[str, Module]
    held: Holder | None = None

    def forward(self, x: Tensor) -> Tensor:
        for part in (*self.parts, *self.named.values()):
            x = part(x)
        return x if self.held is None else self.held.inner(x)


def numbers(rng: python_random.Random, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)


def matrix(rng: python_random.Random) -> Any:
    """A square matrix: dense, transposed, strided, expanded, or in single precision."""
    made: list[Callable[[], Tensor]] = [
        lambda: numbers(rng, SIZE, SIZE),
        lambda: numbers(rng, SIZE, SIZE).T,
        lambda: numbers(rng, SIZE, 2 * SIZE)[:, ::2],
        lambda: numbers(rng, SIZE, 1).expand(SIZE, SIZE),
        lambda: numbers(rng, SIZE, SIZE).float(),
    ]
    return rng.choice(made)()


def leaf_module(rng: python_random.Random) -> Any:
    kind = rng.randrange(8)
    if kind == 0:
        return Tracking(numbers(rng), numbers(rng))
    if kind == 1:
        return Noisy(numbers(rng))
    weight: Any = matrix(rng)
    bias: Any = numbers(rng, SIZE) if rng.random() < 0.6 else None
    scale: Any = rng.choice([None, numbers(rng), numbers(rng, SIZE)])
    acts: list[Any] = [torch.tanh, torch.sin, torch.nn.functional.softplus]
    return Dense(
        weight,
        bias,
        scale,
        torch.tensor(rng.randrange(3)),
        act=rng.choice(acts),
        rate=rng.choice([1.0, 0.5, -2.0]),
        options=rng.choice([(), (1, True, 1.0), ("a", None, (2,)), (float, 3j)]),
    )


def model_of(rng: python_random.Random, depth: int = 2) -> Any:
    """A random model of at most 3 modules a level."""
    if depth == 0 or rng.random() < 0.2:
        return leaf_module(rng)
    parts = [model_of(rng, depth - 1) for _ in range(rng.randrange(1, 3))]
    if rng.random() < 0.3 and not draws(parts[0]) and not emits(parts[0]):
        parts.append(parts[0])  # the same module twice
    named = {key: leaf_module(rng) for key in rng.sample(["z", "a", "1"], rng.randrange(2))}
    if rng.random() < 0.2 and isinstance(parts[0], Dense):
        named["tied"] = leaf_module(rng)
        if isinstance(named["tied"], Dense):
            named["tied"] = named["tied"].replace(weight=parts[0].weight)
    held = Holder(leaf_module(rng), "note") if rng.random() < 0.2 else None
    return Bag(tuple(parts), named, held)


def draws(model: Any) -> bool:
    return any(isinstance(module, Noisy) for module in all_modules(model))


def emits(model: Any) -> bool:
    return any(isinstance(module, Tracking) for module in all_modules(model))


def all_modules(model: Any) -> tuple[Any, ...]:
    found: tuple[Any, ...] = tree.select(model, Module).get()
    return found


# -- engines --------------------------------------------------------------------------------------


class Ours:
    """By ``parallax.func``."""

    def grads(self, fn: Scalar, model: Any, x: Tensor) -> list[Tensor]:
        return trained(func.grad(fn)(model, x))

    def step(self, fn: Scalar, model: Any, x: Tensor) -> Any:
        return model.update(lambda p, g: p - 0.1 * g, func.grad(fn)(model, x))

    def along(self, fn: Scalar, model: Any, x: Tensor) -> Tensor:
        slope: Tensor = func.jvp(lambda at: fn(model, at), (x,), (torch.cos(x),))[1]
        return slope

    def mapped(self, fn: Scalar, model: Any, xs: Tensor) -> Tensor:
        values: Tensor = func.vmap(fn, in_dims=(None, 0))(model, xs)
        return values

    def members(self, fn: Scalar, models: list[Any], x: Tensor) -> Tensor:
        values: Tensor = func.vmap(fn, in_dims=(0, None))(tree.stack(models), x)
        return values

    def rows(self, fn: Scalar, model: Any, x: Tensor) -> Tensor:
        row: Tensor = func.jacrev(lambda at: fn(model, at))(x)
        return row


class Raw(Ours):
    """By ``torch.func`` on a list of the trained leaves."""

    def grads(self, fn: Scalar, model: Any, x: Tensor) -> list[Tensor]:
        leaves = trained(model)
        return list(torch.func.grad(lambda given: fn(with_trained(model, given), x))(leaves))

    def step(self, fn: Scalar, model: Any, x: Tensor) -> Any:
        grads = self.grads(fn, model, x)
        pairs = zip(trained(model), grads, strict=True)
        return with_trained(model, [p - 0.1 * g for p, g in pairs])

    def along(self, fn: Scalar, model: Any, x: Tensor) -> Tensor:
        slope: Tensor = torch.func.jvp(lambda at: fn(model, at), (x,), (torch.cos(x),))[1]
        return slope

    def mapped(self, fn: Scalar, model: Any, xs: Tensor) -> Tensor:
        return torch.func.vmap(lambda x: fn(model, x))(xs)

    def members(self, fn: Scalar, models: list[Any], x: Tensor) -> Tensor:
        columns = [torch.stack(leaves) for leaves in zip(*map(trained, models), strict=True)]
        return torch.func.vmap(lambda given: fn(with_trained(models[0], given), x))(columns)

    def rows(self, fn: Scalar, model: Any, x: Tensor) -> Tensor:
        row: Tensor = torch.func.jacrev(lambda at: fn(model, at))(x)
        return row


class Loops(Raw):
    """By loops, and ``torch.autograd.grad`` alone."""

    def grads(self, fn: Scalar, model: Any, x: Tensor) -> list[Tensor]:
        leaves = [alone(leaf) for leaf in trained(model)]
        return derivatives(fn(with_trained(model, leaves), x), leaves)

    def along(self, fn: Scalar, model: Any, x: Tensor) -> Tensor:
        return (self.rows(fn, model, x) * torch.cos(x)).sum()

    def rows(self, fn: Scalar, model: Any, x: Tensor) -> Tensor:
        at = alone(x)
        return derivatives(fn(model, at), [at])[0]

    def mapped(self, fn: Scalar, model: Any, xs: Tensor) -> Tensor:
        return torch.stack([fn(model, x) for x in xs])

    def members(self, fn: Scalar, models: list[Any], x: Tensor) -> Tensor:
        return torch.stack([fn(model, x) for model in models])


def alone(tensor: Any) -> Any:
    """A tensor to differentiate by, and nothing that was computed of it before."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def derivatives(value: Any, at: list[Any]) -> list[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in at]
    found: Any = torch.autograd.grad(value, at, create_graph=True, allow_unused=True)
    pairs = zip(at, found, strict=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in pairs]


def trained(model: Any) -> list[Any]:
    chosen, _ = tree.partition(model, "trainable")
    return tree.leaves(chosen)


def with_trained(model: Any, leaves: Any) -> Any:
    """The model with other trained leaves."""
    given = iter(leaves)
    chosen, rest = tree.partition(model, "trainable")
    return tree.combine(tree.map(lambda _: next(given), chosen), rest)


# -- programs -------------------------------------------------------------------------------------


def base(model: Any, x: Tensor) -> Any:
    """A loss: the output, and what the model emits."""
    if draws(model):
        model = model.train(random.key(7))
    out, after = effects.collect(lambda m, at: m(at))(model, x)
    seen = [leaf for leaf in tree.leaves(after) if leaf.is_floating_point() and leaf.ndim == 0]
    total: Any = out.square().mean()
    for leaf in seen:
        total = total + 0.1 * leaf.square()
    return total


def squares(values: list[Tensor]) -> Any:
    return sum([value.square().sum().double() for value in values])


def wrapped(engine: Any, kind: str, fn: Scalar) -> Scalar:
    """The program of one more transform around another."""
    if kind == "grad":
        return lambda m, x: squares(engine.grads(fn, m, x))
    if kind == "step":
        return lambda m, x: fn(engine.step(fn, m, x), x)
    if kind == "along":
        return lambda m, x: engine.along(fn, m, x)
    if kind == "rows":
        return lambda m, x: engine.rows(fn, m, x).square().sum()
    if kind == "mapped":
        return lambda m, x: engine.mapped(fn, m, torch.stack([x, 2 * x, x.flip(0)])).square().mean()
    return lambda m, x: engine.members(fn, [m, scaled(m)], x).square().sum()


def scaled(model: Any) -> Any:
    return with_trained(model, [0.5 * leaf for leaf in trained(model)])


KINDS = ("grad", "step", "along", "rows", "mapped", "members")


def program(seed: int) -> tuple[Any, Tensor, list[str]]:
    """A model, an input, and the transforms around the loss, innermost first."""
    rng = python_random.Random(seed)
    model = model_of(rng)
    while not trained(model):
        model = model_of(rng)
    if rng.random() < 0.3:
        parameters = list(tree.named_leaves(tree.partition(model, "parameter")[0]))
        if len(parameters) > 1:
            model = tree.select(model, rng.choice(parameters)).freeze()
    if not trained(model):
        model = tree.select(model, "frozen").unfreeze()
    kinds: list[str] = rng.choices(KINDS, k=rng.randrange(1, 4))
    return model, numbers(rng, SIZE), kinds


def runner(engine: Any, kinds: list[str]) -> Callable[[Any, Tensor], list[Tensor]]:
    """The value of a program and its gradient: all by one engine."""
    fn: Scalar = base
    for kind in kinds:
        fn = wrapped(engine, kind, fn)
    return lambda model, x: [fn(model, x), *engine.grads(fn, model, x)]


def differences(seed: int, engines: dict[str, Any]) -> list[str]:
    """What differs from what loops give, by engine; and what failed."""
    model, x, kinds = program(seed)
    expected = runner(Loops(), kinds)(model, x)
    found = []
    for name, run in engines.items():
        try:
            made = run(runner(Ours() if name != "raw" else Raw(), kinds))(model, x)
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            found.append(f"{seed} {name} {kinds}: {type(error).__name__}: {text}")
            continue
        single = any(leaf.dtype == torch.float32 for leaf in tree.leaves(model))
        gap = largest_gap(made, expected)
        # Steps in steps may blow up, and then the last digit of a weight decides about the first of
        # the result; how far it does is measured by the loops alone.
        if gap > (2e-4 if single else 1e-8) and gap > 10 * spread(model, x, kinds, single):
            found.append(f"{seed} {name} {kinds}: off by {gap:.1e}")
    return found


def largest_gap(made: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, in parts of the largest entry of each result."""
    gaps = [0.0]
    for mine, theirs in zip(made, expected, strict=True):
        if not (theirs.isnan().any() and mine.isnan().any()):
            scale = theirs.detach().abs().max().clamp(min=1.0)
            gap = float(((mine - theirs).detach().abs() / scale).max())
            gaps.append(math.inf if math.isnan(gap) else gap)
    return max(gaps)


def spread(model: Any, x: Tensor, kinds: list[str], single: bool) -> float:
    """How far the loops' result moves when the trained leaves change in their last digits."""
    digits = 2.0**-23 if single else 2.0**-52
    run = runner(Loops(), kinds)
    moved = with_trained(model, [leaf * (1 + 4 * digits) for leaf in trained(model)])
    return largest_gap(run(moved, x), run(model, x))


EAGER: dict[str, Any] = {"ours": lambda fn: fn, "raw": lambda fn: fn}


def main(arguments: list[str]) -> None:
    count, first = int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 0
    torch.set_num_threads(1)
    bad = 0
    for seed in range(first, first + count):
        for line in differences(seed, EAGER):
            bad += 1
            print(line, flush=True)
    print(f"{count} programs, {bad} differences")


if __name__ == "__main__":
    main(sys.argv[1:])
