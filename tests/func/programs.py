"""Programs of nested transforms, in two spellings: ``parallax.func`` on a module, and
``torch.func`` on a dict of the same tensors. The second is the reference for the first."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from parallax import Buffer, Module, Parameter, func, tree


class Pair(Module):
    """Two trained leaves, one of them tied into a second place, and two that never move."""

    w: Parameter
    b: Parameter
    again: Parameter
    shift: Buffer
    count: Buffer


def pair(w: Tensor, b: Tensor) -> Pair:
    return Pair(w, b, b, torch.full((3,), 0.25), torch.tensor(2))


class Ours:
    """A program in terms of modules and ``parallax.func``."""

    lib: Any = func

    @staticmethod
    def point(w: Tensor, b: Tensor) -> Any:
        return pair(w, b)

    @staticmethod
    def leaves(point: Any) -> list[Tensor]:
        return [point.w, point.b]

    view: Any = staticmethod(lambda point: point)


class Reference:
    """The same in terms of dicts and ``torch.func``."""

    lib: Any = torch.func

    @staticmethod
    def point(w: Tensor, b: Tensor) -> Any:
        return {"w": w, "b": b}

    @staticmethod
    def leaves(point: Any) -> list[Tensor]:
        return [point["w"], point["b"]]

    @staticmethod
    def view(point: Any) -> Any:
        return SimpleNamespace(**point, again=point["b"], shift=torch.full((3,), 0.25))


Loss = Callable[[Any, Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "mixed": lambda p, x, c: (p.w * x).sin().sum() * c.sum() + (p.b**3).sum(),
    "tied": lambda p, x, c: (p.w * p.b * x + c * p.again).tanh().sum(),
    "shifted": lambda p, x, c: ((p.w + p.shift) * x).exp().sum() * (c * p.b).cos().sum(),
    "of w only": lambda p, x, c: (p.w.exp() * x).sum(),
    "of b, linear": lambda p, x, c: (p.b * x).sum(),
    "of the captured only": lambda p, x, c: (c * x * c).sum(),
    "a detour": lambda p, x, c: (p.w.detach() * p.b).sum() + (p.w * c).sigmoid().sum(),
    "a leaf": lambda p, x, c: p.w[0] + 0.0,
}

STEPS = ["grad", "grad of x", "grad_and_value", "vjp", "jvp", "vmap", "raw grad", "raw vmap",
         "jacrev", "jacfwd", "no_grad", "detached", "closed over"]  # fmt: skip


def programs(most: int = 3) -> st.SearchStrategy[tuple[str, list[str]]]:
    steps = st.lists(st.sampled_from(STEPS), min_size=1, max_size=most)
    return st.tuples(st.sampled_from(sorted(LOSSES)), steps)


def build(program: tuple[str, list[str]], side: Any) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """A function of a point, an input and a captured tensor to a scalar."""
    name, steps = program
    fn: Any = lambda p, x, c: LOSSES[name](side.view(p), x, c)  # noqa: E731  # rebound below
    for step in steps:
        fn = wrap(step, fn, side)
    return fn  # type: ignore[no-any-return]  # as built


def wrap(step: str, fn: Any, side: Any) -> Any:
    lib = side.lib

    def dot(point: Any, grads: Any) -> Tensor:
        pairs = zip(side.leaves(point), side.leaves(grads), strict=True)
        return sum([(leaf.sin() * g).sum() for leaf, g in pairs], torch.zeros(()))

    def apply(p: Any, x: Tensor, c: Tensor) -> Any:
        if step == "grad":
            return dot(p, lib.grad(fn)(p, x, c))
        if step == "grad of x":
            return (lib.grad(fn, argnums=1)(p, x, c) * x).sum()
        if step == "grad_and_value":
            (gp, gc), value = lib.grad_and_value(fn, argnums=(0, 2))(p, x, c)
            return dot(p, gp) + value + (gc * x).sum()
        if step == "vjp":
            out, pull = lib.vjp(lambda q: fn(q, x, c), p)
            return dot(p, pull(2.0 * torch.ones_like(out))[0]) + out
        if step == "jvp":
            out, tangent = lib.jvp(lambda q: fn(q, x, c), (p,), (p,)) if side is Reference else (
                func.jvp(lambda q: fn(q, x, c), (p,), (tree.map(lambda t: t, p),))
            )  # fmt: skip
            return out + tangent
        if step == "vmap":
            return lib.vmap(fn, (None, 0, None))(p, torch.stack([x, 2 * x]), c).sum()
        if step == "raw grad":
            return (torch.func.grad(fn, argnums=1)(p, x, c) * c).sum()
        if step == "raw vmap":
            return torch.func.vmap(lambda row: fn(p, row, c))(torch.stack([x, -x])).sum()
        if step == "jacrev":
            return dot(p, lib.jacrev(lambda q: fn(q, x, c).expand(2))(p)).sum()
        if step == "jacfwd":
            return dot(p, lib.jacfwd(lambda q: fn(q, x, c).expand(2))(p)).sum()
        if step == "no_grad":
            with torch.no_grad():
                return fn(p, x, c)
        if step == "detached":
            return fn(p, x.detach(), c) * x.sum()
        assert step == "closed over"
        return (lib.grad(lambda y: fn(p, y, c))(x) * x).sum()

    return apply
