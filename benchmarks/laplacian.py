"""A step of a physics-informed network: the gradient of a loss that holds a Laplacian.

The network is an MLP of three layers, of width 64 with tanh, and the loss the squared residual of
an equation at 256 points in the plane. The reference in eager mode is what people write by hand:
the tape twice, with `create_graph=True`. Compiled, where the tape cannot be used, it is
`torch.func`, with reverse mode twice, as its other ways do not compile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import parallax
from benchmarks import peers
from benchmarks.harness import Candidate, Question
from parallax import func, nn, tree

LATE = True

POINTS, WIDTH = 256, 64

Found = tuple[Sequence[Tensor], Tensor]


def questions(quick: bool) -> Iterator[Question]:
    net = nn.MLP((2, WIDTH, WIDTH, 1), torch.tanh).initialize(0)
    leaves, points = tree.leaves(net), torch.rand(POINTS, 2)

    def loss(net: Any) -> Tensor:
        found: Tensor = func.vmap(func.laplacian(value_at, argnums=1), in_dims=(None, 0))(
            net, points
        )
        return (found - 1).square().mean()

    def by_hessian(net: Any) -> Tensor:
        def trace(net: Any, x: Tensor) -> Tensor:
            found: Tensor = func.hessian(value_at, argnums=1)(net, x)
            return found.trace()

        found: Tensor = func.vmap(trace, in_dims=(None, 0))(net, points)
        return (found - 1).square().mean()

    yield Question(
        f"gradient of a Laplacian's loss, {POINTS} points",
        Candidate("autograd.grad three times, by hand", lambda: by_hand(leaves, points)),
        [
            Candidate("parallax func.laplacian", lambda: _of(loss, net), limit=0.9),
            Candidate("parallax func.hessian", lambda: _of(by_hessian, net)),
        ],
        [Candidate("torch.func, reverse mode twice", lambda: reverse_twice(leaves, points))],
        check=_same,
        floor=Candidate("floor: its rules on a flat list", lambda: _rules(leaves, points)),
        remains="Each operator costs a call of vmap's and one of the rule's",
    )
    if quick:
        return
    absent: dict[str, str] = {}
    functional: Any = torch.compile(reverse_twice, fullgraph=True)
    ours: Any = parallax.compile(lambda net: _of(loss, net))
    yield Question(
        f"compiled gradient of a Laplacian's loss, {POINTS} points",
        Candidate("torch.func, reverse mode twice", lambda: functional(leaves, points)),
        [Candidate("parallax func.laplacian", lambda: ours(net), limit=0.7)],
        peers.equinox("laplacian", "jax, jitted, in a process of its own", absent),
        check=_same,
        absent=absent,
    )


def value_at(net: nn.MLP, x: Tensor) -> Tensor:
    out: Tensor = net(x)
    return out[0]


def _of(loss: Callable[[Any], Tensor], net: nn.MLP) -> Found:
    grads, value = func.grad_and_value(loss)(net)
    return tree.leaves(grads), value


def _line(leaves: Sequence[Tensor], x: Tensor) -> Tensor:
    for k in range(0, len(leaves) - 2, 2):
        x = F.linear(x, leaves[k], leaves[k + 1]).tanh()
    return F.linear(x, leaves[-2], leaves[-1])


def by_hand(flat: Sequence[Tensor], points: Tensor) -> Found:
    leaves = [value.detach().requires_grad_() for value in flat]
    x = points.detach().requires_grad_()
    (slopes,) = torch.autograd.grad(_line(leaves, x).sum(), x, create_graph=True)
    found = torch.zeros(())
    for k in range(2):
        (bend,) = torch.autograd.grad(slopes[:, k].sum(), x, create_graph=True)
        found = found + bend[:, k]
    return _finished(leaves, found)


def _rules(flat: Sequence[Tensor], points: Tensor) -> Found:
    """Value, slopes and Laplacian through the layers, as the rules of `func.laplacian` have it."""
    leaves = [value.detach().requires_grad_() for value in flat]
    x, slopes, bend = points, torch.eye(2).unsqueeze(1), torch.zeros(())
    for k in range(0, len(leaves), 2):
        x, slopes = F.linear(x, leaves[k], leaves[k + 1]), F.linear(slopes, leaves[k])
        bend = F.linear(bend, leaves[k]) if k else bend
        if k < len(leaves) - 2:
            x = x.tanh()
            steep = 1 - x * x
            bend = steep * (bend - 2 * x * (slopes * slopes).sum(0))
            slopes = steep * slopes
    return _finished(leaves, bend[:, 0])


def _finished(leaves: Sequence[Tensor], found: Tensor) -> Found:
    loss = (found - 1).square().mean()
    return torch.autograd.grad(loss, leaves, materialize_grads=True), loss.detach()


def reverse_twice(leaves: Sequence[Tensor], points: Tensor) -> Found:
    def loss(leaves: Sequence[Tensor]) -> Tensor:
        twice = torch.func.jacrev(torch.func.jacrev(lambda x: _line(leaves, x)[0]))
        found: Tensor = torch.func.vmap(lambda x: twice(x).trace())(points)
        return (found - 1).square().mean()

    found: Found = torch.func.grad_and_value(loss)(tuple(leaves))
    return found


def _same(one: Found, other: Found) -> None:
    pairs = zip([*one[0], one[1]], [*other[0], other[1]], strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
