"""Compiled training steps and calls: the whole step as one graph, against torch's best.

The reference step is an `nn.Module` with forward, loss and backward compiled together, and the
optimizer's step compiled. Cold compile times are taken in fresh processes and an empty cache.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import floor, peers
from benchmarks.cold import first
from benchmarks.harness import Candidate, Question
from benchmarks.models import CONTEXT, VOCABULARY, NnGPT, NnMLP, mirror
from parallax import compile as compile_tree
from parallax import optim, tree

LATE = True

RATE, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8

_TREE = "The leaves of three trees are checked and three trees are made"

Run = Callable[[], Any]
Loss = Callable[[Any, Tensor, Tensor], Tensor]


def questions(quick: bool) -> Iterator[Question]:
    yield _overhead(1 if quick else 83)
    if quick:
        return
    yield Question(
        "cold compile of the Adam step of a 2-layer GPT",
        Candidate("nn.Module", first("compile", "reference", "whole"), self_timed=True),
        [
            Candidate(
                "parallax.compile",
                first("compile", "whole", "reference"),
                self_timed=True,
                limit=1.1,
            )
        ],
        floor=Candidate("floor: flat lists", first("compile", "straight"), self_timed=True),
        most_rounds=2,
    )
    written, ours = "parallax.compile of the whole step", "the same, with parallax.optim.Adam"
    absent: dict[str, str] = {}
    straight = "floor: torch.compile of the step on flat lists"
    yield Question(
        "compiled Adam step of a tiny MLP",
        Candidate("nn.Module, compiled forward/backward and step", _reference_step("tiny MLP")),
        [
            Candidate(written, _whole_step("tiny MLP"), limit=0.25),
            Candidate(ours, _library_step("tiny MLP")),
        ],
        peers=peers.equinox("step", "jax with equinox, jitted, in a process of its own", absent),
        absent=absent,
        floor=Candidate(straight, _straight_step("tiny MLP")),
        remains=_TREE,
    )
    yield Question(
        "compiled Adam step of a 2-layer GPT",
        Candidate("nn.Module, compiled forward/backward and step", _reference_step("2-layer GPT")),
        [Candidate(written, _whole_step("2-layer GPT"), limit=0.90)],
        floor=Candidate(straight, _straight_step("2-layer GPT")),
        remains=_TREE,
    )


# -- the step -----------------------------------------------------------------------------------


def _example(name: str) -> tuple[nn.Module, Tensor, Tensor, Loss]:
    torch.manual_seed(0)
    if name == "tiny MLP":
        return NnMLP((16, 32, 32, 4)), torch.randn(8, 16), torch.randn(8, 4), _squares
    tokens = torch.randint(VOCABULARY, (2, 4, CONTEXT))
    return NnGPT(2), tokens[0], tokens[1], _cross_entropy


def _squares(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def _cross_entropy(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def _reference_step(name: str) -> Run:
    model, x, y, loss = _example(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    forward = torch.compile(lambda x, y: loss(model, x, y))
    move = torch.compile(optimizer.step)

    def run() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = forward(x, y)
        value.backward()
        move()
        return value.detach()

    return _warm(run)


def _whole_step(name: str) -> Run:
    template, x, y, loss = _example(name)
    model = mirror(template)

    @compile_tree
    def step(model: Any, state: Any, x: Tensor, y: Tensor) -> Any:
        grads, value = torch.func.grad_and_value(loss)(model, x, y)
        t = state["t"] + 1
        m = tree.map(lambda m, g: m + (1 - BETA1) * (g - m), state["m"], grads)
        v = tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, state["v"], grads)
        rate, scale = RATE / (1 - BETA1**t), (1 - BETA2**t).sqrt()
        model = tree.map(lambda p, m, v: p - rate * m / (v.sqrt() / scale + EPS), model, m, v)
        return model, {"t": t, "m": m, "v": v}, value

    zeros = [tree.map(torch.zeros_like, model) for _ in range(2)]
    held = [model, {"t": torch.zeros(()), "m": zeros[0], "v": zeros[1]}]

    def run() -> Tensor:
        held[0], held[1], value = step(held[0], held[1], x, y)
        result: Tensor = value
        return result

    return _warm(run)


def _library_step(name: str) -> Run:
    template, x, y, loss = _example(name)
    model, adam = mirror(template), optim.Adam(lr=RATE)

    @compile_tree
    def step(model: Any, state: Any, x: Tensor, y: Tensor) -> Any:
        grads, value = torch.func.grad_and_value(loss)(model, x, y)
        return *adam.step(model, grads, state), value

    held: list[Any] = [model, adam.init(model)]

    def run() -> Tensor:
        held[0], held[1], value = step(held[0], held[1], x, y)
        result: Tensor = value
        return result

    return _warm(run)


def _straight_step(name: str) -> Run:
    template, x, y, loss = _example(name)
    line, leaves = floor.line_of(template), [p.detach() for p in template.parameters()]

    def value_of(leaves: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(lambda x: line(leaves, x), x, y)

    def step(leaves: Any, m: Any, v: Any, t: Tensor, x: Tensor, y: Tensor) -> Any:
        grads, value = torch.func.grad_and_value(value_of)(leaves, x, y)
        t = t + 1
        m = [a + (1 - BETA1) * (g - a) for a, g in zip(m, grads)]  # noqa: B905  # dynamo traces no strict=
        v = [BETA2 * a + (1 - BETA2) * g * g for a, g in zip(v, grads)]  # noqa: B905
        rate, scale = RATE / (1 - BETA1**t), (1 - BETA2**t).sqrt()
        moved = zip(leaves, m, v)  # noqa: B905
        return [p - rate * a / (b.sqrt() / scale + EPS) for p, a, b in moved], m, v, t, value

    compiled: Any = torch.compile(step, fullgraph=True)
    zeros = [[torch.zeros_like(leaf) for leaf in leaves] for _ in range(2)]
    held: list[Any] = [leaves, *zeros, torch.zeros(())]

    def run() -> Tensor:
        *held[:], value = compiled(*held, x, y)
        result: Tensor = value
        return result

    return _warm(run)


def _warm(run: Run) -> Run:
    """Compiled already: the harness takes its first call for an ordinary one."""
    for _ in range(3):
        run()
    return run


# -- the first call -----------------------------------------------------------------------------


def _main(which: str) -> None:
    torch.set_num_threads(1)
    torch.compile(torch.sin)(torch.ones(3))  # what is only done once, whoever compiles
    steps = {"reference": _reference_step, "whole": _whole_step, "straight": _straight_step}
    start = time.perf_counter()
    steps[which]("2-layer GPT")
    sys.stdout.write(f"{time.perf_counter() - start}\n")


# -- the border ---------------------------------------------------------------------------------


def _overhead(blocks: int) -> Question:
    """A call that computes nothing, with every leaf of a GPT going in."""
    model = tree.map(lambda leaf: torch.zeros(3), mirror(NnGPT(blocks)))
    leaves, x = tree.leaves(model), torch.zeros(3)

    def add(leaves: list[Tensor], x: Tensor) -> Tensor:
        for leaf in leaves:
            x = x + leaf
        return x

    flat = torch.compile(add, backend=_nothing, fullgraph=True)
    result = (torch.zeros(3),)
    graph: Any = lambda *_: result  # noqa: E731  # what the backend makes of it

    def add_all(model: Any, x: Tensor) -> Tensor:
        return add(tree.leaves(model), x)

    whole = compile_tree(add_all, backend=_nothing)
    inside = torch.compile(add_all, backend=_nothing, fullgraph=True)
    _warm(lambda: (flat(leaves, x), whole(model, x), inside(model, x)))
    return Question(
        f"call of a compiled function of {len(leaves)} leaves, a backend that does nothing",
        Candidate("torch.compile, leaves flattened by hand", lambda: flat(leaves, x)),
        [
            Candidate("parallax.compile", lambda: whole(model, x), limit=1.3),
            Candidate("torch.compile of the module", lambda: inside(model, x)),
        ],
        floor=Candidate("floor: the graph alone", lambda: graph(*leaves, x)),
        remains="The shape, dtype, device and requires_grad of each leaf are checked",
    )


def _nothing(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., tuple[Tensor]]:
    result = (torch.zeros(3),)
    return lambda *_: result


if __name__ == "__main__":
    _main(sys.argv[1])
