"""``func.scan`` against loops written by hand, in eager code and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Buffer, Module, Parameter, UninitializedError, effects, func, nn, random, tree
from parallax.random import KeyReusedError
from tests.bad_input.errors import says
from tests.compiling import eager_and_aot, make_compiled

CELL: Any = nn.GRUCell(3, 2).initialize(0, dtype=torch.float64)
X = torch.sin(torch.arange(24.0, dtype=torch.float64)).reshape(4, 2, 3)
H = torch.cos(torch.arange(4.0, dtype=torch.float64)).reshape(2, 2)

Unroll = Callable[..., Any]


def loop(fn: Any, init: Any, xs: Any, *, dim: int = 0, reverse: bool = False) -> Any:
    """What ``scan`` means, for rows and results that are tensors or dicts of them."""
    rows = [
        tree.map(lambda x, k=k: x.select(dim, k), xs) for k in range(tree.leaves(xs)[0].shape[dim])
    ]
    found, carry = [], init
    for row in rows[::-1] if reverse else rows:
        carry, y = fn(carry, row)
        found.append(y)
    found = found[::-1] if reverse else found
    stack: Any = lambda *ys: torch.stack(ys, dim if dim <= ys[0].dim() else 0)  # noqa: E731  # short
    return carry, None if found[0] is None else tree.map(stack, *found)


def states(scan: Unroll, cell: Any, h: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    def step(h: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        h = cell(x, h)
        return h, {"h": h, "norm": h.norm()}

    return scan(step, h, x)  # type: ignore[no-any-return]  # a pair


def loss(scan: Unroll, cell: Any, h: Tensor, x: Tensor) -> Tensor:
    last, found = states(scan, cell, h, x)
    return last.sum() + (found["h"] ** 2).mean() + found["norm"][1]


def squares(trees: Any) -> Tensor:
    return torch.stack([(leaf**2).sum() for leaf in tree.leaves(trees)]).sum()


def descended(scan: Unroll, h: Tensor) -> Tensor:
    """Each step takes a gradient itself."""

    def step(h: Tensor, x: Tensor) -> tuple[Tensor, None]:
        return h - 0.1 * func.grad(lambda h: (torch.sin(h) * x.sum()).prod())(h), None

    return scan(step, h, X)[0]  # type: ignore[no-any-return]  # a tensor


PROGRAMS: dict[str, Callable[..., Any]] = {
    "values": lambda scan, c: states(scan, c, H, X),
    "reverse": lambda scan, c: scan(lambda h, x: (c(x, h), h), H, X, reverse=True),
    "dimension": lambda scan, c: scan(lambda h, x: (c(x, h), h), H, X.movedim(0, 1), dim=1),
    "gradient": lambda scan, c: func.grad(lambda c, h, x: loss(scan, c, h, x), (0, 1, 2))(c, H, X),
    "second derivative": lambda scan, c: func.grad(
        lambda c: squares(func.grad(lambda c: loss(scan, c, H, X))(c))
    )(c),
    "vmap": lambda scan, c: func.vmap(lambda h, x: states(scan, c, h[None], x[:, None]), (0, 1))(
        H, X
    ),
    "per sample": lambda scan, c: func.per_sample_grad(
        lambda c, h, x: loss(scan, c, h[None], x[:, None]), in_dims=(None, 0, 1)
    )(c, H, X),
    "gradient of vmap": lambda scan, c: func.grad(
        lambda c: squares(func.vmap(lambda x: states(scan, c, H, x), 1)(torch.stack([X, -X], 1)))
    )(c),
    "gradient steps": lambda scan, c: descended(scan, H),
    "gradient of gradient steps": lambda scan, c: func.grad(
        lambda h: squares(func.vmap(lambda h: descended(scan, h))(h))
    )(H),
    "views of one tensor": lambda scan, c: func.grad(
        lambda h: scan(lambda c, x: (c + h @ h.T + h, None), h, X)[0].sum()
    )(H),
    "nested": lambda scan, c: func.grad(
        lambda c: squares(
            scan(lambda h, _: (scan(lambda h, x: (c(x, h), x), h, X)[0], h), H, torch.ones(2))
        )
    )(c),
}
"""Functions of a loop and a cell."""


def all_of(scan: Unroll, names: Iterable[str]) -> Callable[[Any], Any]:
    return lambda cell: {name: PROGRAMS[name](scan, cell) for name in names}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_it_is_the_loop(program: Any) -> None:
    torch.testing.assert_close(
        tree.leaves(program(func.scan, CELL)), tree.leaves(program(loop, CELL))
    )


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    ("backend", "names"),
    [
        pytest.param(eager_and_aot, list(PROGRAMS), id="aot"),
        pytest.param(
            "inductor", ["reverse", "gradient", "per sample"], id="default", marks=pytest.mark.slow
        ),
    ],
)
def test_compiled_it_is_one_graph_with_the_numbers_of_the_loop(
    backend: Any, names: list[str]
) -> None:
    compiled: Any = torch.compile(all_of(func.scan, names), backend=backend, fullgraph=True)
    found, expected = compiled(CELL), all_of(loop, names)(CELL)
    for name in names:
        torch.testing.assert_close(tree.leaves(found[name]), tree.leaves(expected[name]), msg=name)


@pytest.mark.usefixtures("fresh_dynamo")
def test_forward_mode_and_the_tape_around_compiled_code() -> None:
    def push(scan: Unroll, cell: Any) -> Any:
        return func.jvp(lambda c: loss(scan, c, H, X), (cell,), (cell,))

    found: Any = torch.compile(lambda c: push(func.scan, c), backend="aot_eager")(CELL)
    torch.testing.assert_close(found, push(loop, CELL))
    h = H.clone().requires_grad_()
    found = torch.compile(lambda h: descended(func.scan, h), backend="aot_eager")(h)
    torch.testing.assert_close(found, descended(loop, h))
    leaves = [x.clone().requires_grad_() for x in tree.leaves(CELL)]
    cell = tree.unflatten(tree.structure(CELL), leaves)
    value = parallax.compile(lambda c: loss(func.scan, c, H, X), backend="aot_eager")(cell)
    torch.testing.assert_close(
        torch.autograd.grad(value, leaves), torch.autograd.grad(loss(loop, cell, H, X), leaves)
    )


@pytest.mark.usefixtures("fresh_dynamo")
def test_the_step_is_traced_once_whatever_the_length() -> None:
    traced: list[int] = []

    def count(graph: Any, _: Any) -> Any:
        traced.append(sum(len(m.graph.nodes) for m in graph.modules() if hasattr(m, "graph")))
        return graph

    for length in (3, 60):
        torch._dynamo.reset()
        torch.compile(lambda x: states(func.scan, CELL, H, x), backend=count)(
            X[0].expand(length, 2, 3)
        )
    assert traced[0] == traced[1]


class Block(Module):
    weight: Parameter
    name: str

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight)


BLOCKS = [Block(torch.eye(2, dtype=torch.float64) + k, "block") for k in range(3)]


def through_blocks(stacked: Any, x: Tensor) -> Any:
    """Modules as rows, as carry and as results."""

    def step(carry: Any, block: Any) -> Any:
        block = block.update(lambda w: w / 2)
        x = block(carry["x"])
        return {"x": x, "last": block}, block

    return func.scan(step, {"x": x, "last": BLOCKS[0]}, stacked)


@pytest.mark.usefixtures("fresh_dynamo")
def test_modules_are_rows_carry_and_results() -> None:
    halves = [block.update(lambda w: w / 2) for block in BLOCKS]
    x = H
    for block in halves:
        x = block(x)
    stacked = tree.stack(BLOCKS)
    compiled = torch.compile(through_blocks, backend="aot_eager", fullgraph=True)
    for run in (through_blocks, compiled):
        carry, blocks = run(stacked, H)
        torch.testing.assert_close(carry["x"], x)
        assert tree.allclose(carry["last"], halves[-1])
        assert tree.allclose(blocks, tree.stack(halves)) and blocks.name == "block"


SHARED = Block(torch.eye(2, dtype=torch.float64), "shared")


def tied(pair: Any) -> Any:
    return func.grad(lambda p: func.scan(lambda x, _: (p[1](p[0](x)), None), H, X)[0].sum())(pair)


class Two(Module):
    one: Block
    two: Block

    def __getitem__(self, k: int) -> Any:
        return (self.one, self.two)[k]


@pytest.mark.usefixtures("fresh_dynamo")
def test_ties_are_kept() -> None:
    both = Two(SHARED, SHARED)
    expected = func.grad(lambda s: loop_of(s)[0].sum())(SHARED).weight
    for run in (tied, torch.compile(tied, backend="aot_eager", fullgraph=True)):
        found = run(both)
        torch.testing.assert_close(found.one.weight, expected)
        assert found.one.weight is found.two.weight


def loop_of(block: Block) -> tuple[Tensor, None]:
    x = H
    for _ in X:
        x = block(block(x))
    return x, None


# -- keys ---------------------------------------------------------------------------------------


def noisy(key: Any) -> Any:
    one, two, three = random.split(key, 3)
    drop = nn.Dropout(0.5).train(random.split(two, 4))

    def step(carry: Any, row: Any) -> Any:
        key, other = random.split(carry["key"])
        drop, noise = row
        x = drop(carry["x"]) + random.normal(noise, (2,)) + random.uniform(other, (2,))
        return {"x": x, "key": key}, x

    init = {"x": torch.ones(2), "key": three}
    return func.scan(step, init, (drop, random.split(one, 4)))


def noisy_loop(key: Any) -> Tensor:
    one, two, key = random.split(key, 3)
    drops = [nn.Dropout(0.5).train(k) for k in random.split(two, 4)]
    x, found = torch.ones(2), []
    for drop, noise in zip(drops, random.split(one, 4), strict=True):
        key, other = random.split(key)
        x = drop(x) + random.normal(noise, (2,)) + random.uniform(other, (2,))
        found.append(x)
    return torch.stack(found)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    "backend", [None, "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_keys_of_rows_and_carry_give_each_step_its_numbers(backend: Any) -> None:
    run: Any = parallax.compile(noisy, backend=backend) if backend else noisy
    torch.testing.assert_close(run(random.key(0))[1], noisy_loop(random.key(0)))


SAME: dict[str, Callable[[Any], Any]] = {
    "outside": lambda key: func.scan(lambda c, x: (c + random.normal(key), None), X.sum(), X),
    "carried along": lambda key: func.scan(
        lambda c, x: ((c[0] + random.normal(c[1]), c[1]), None), (X.sum(), key), X
    ),
    "a module carried along": lambda key: func.scan(
        lambda c, x: ((c[1](c[0]), c[1]), None), (X[0], nn.Dropout(0.5).train(key)), X
    ),
}


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("program", SAME.values(), ids=SAME)
def test_a_key_that_would_repeat_its_numbers_is_an_error(program: Any) -> None:
    for run in (program, make_compiled(program, backend="eager")):
        with pytest.raises(KeyReusedError, match="would repeat"):
            run(random.key(0))


@pytest.mark.usefixtures("fresh_dynamo")
def test_folding_a_counter_into_one_key_is_no_second_use() -> None:
    def run(key: Any) -> Any:
        def step(carry: Any, k: Any) -> Any:
            return carry, random.normal(random.fold_in(carry, k))

        return func.scan(step, key, torch.arange(3))[1]

    expected = torch.stack([random.normal(random.fold_in(random.key(0), k)) for k in range(3)])
    for made in (run, parallax.compile(run, backend="aot_eager")):
        torch.testing.assert_close(made(random.key(0)), expected)


# -- effects ------------------------------------------------------------------------------------


class Counting(Module):
    total: Buffer

    def forward(self, x: Tensor) -> Tensor:
        self.emit(total=self.total + x.sum(), merge="sum")
        return 2 * x


def emitting(module: Any, x: Tensor) -> Any:
    return func.scan(lambda c, x: (c, module(x)), torch.zeros(()), x)[1]


def threading(module: Any, x: Tensor) -> Any:
    return func.scan(lambda m, x: effects.collect(lambda m, x: m(x))(m, x)[::-1], module, x)


@pytest.mark.usefixtures("fresh_dynamo")
def test_effects_are_collected_around_and_within() -> None:
    module, x = Counting(torch.tensor(0.0)), torch.ones(3)
    around: Any = lambda m, x: effects.collect(emitting)(m, x)  # noqa: E731  # short
    for run in (around, torch.compile(around, backend="aot_eager", fullgraph=True)):
        out, after = run(module, x)
        assert out.tolist() == [2.0, 2.0, 2.0] and float(after.total) == 3.0
    for run in (threading, torch.compile(threading, backend="aot_eager", fullgraph=True)):
        after, out = run(module, x)
        assert out.tolist() == [2.0, 2.0, 2.0] and float(after.total) == 3.0


# -- bad input ----------------------------------------------------------------------------------


def add(c: Any, x: Any) -> Any:
    return c + x, None


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda: func.scan(3, H, X), TypeError, ("combine_fn must be a function", "got 3")),  # type: ignore[arg-type]
        (
            lambda: func.scan(lambda c, x: c, H, X),  # type: ignore[arg-type, return-value]
            TypeError,
            ("pair (carry, result)", "return c"),
        ),
        (lambda: func.scan(add, 0, X), TypeError, ("init is 0", "torch.tensor(1.0)")),
        (lambda: func.scan(add, {"h": [1]}, X), TypeError, ("init: h.0 is 1", "Write")),
        (lambda: func.scan(add, nn.Linear(2, 2), X), UninitializedError, ("init: Linear.weight",)),
        (lambda: func.scan(add, H, None), ValueError, ("xs holds no tensor", "fori_loop")),
        (lambda: func.scan(add, H, X[:0]), ValueError, ("length 0", "if len(x) > 0")),
        (lambda: func.scan(add, H, X, dim=3), ValueError, ("(4, 2, 3)", "no dimension 3")),
        (lambda: func.scan(add, H, X, dim=0.5), TypeError, ("dim must be an int", "dim=0")),  # type: ignore[arg-type]
        (lambda: func.scan(add, H, X, reverse=1), TypeError, ("reverse must be a bool",)),  # type: ignore[arg-type]
        (
            lambda: func.scan(add, H, {"a": X, "b": X[:2]}),
            ValueError,
            ("b in xs has length 2", "the first tensor 4", "x[:n]"),
        ),
        (
            lambda: func.scan(lambda c, x: ({"h": x}, None), {"h": H}, X),
            ValueError,
            ("the carry that was returned: h has shape (2, 3)", "(2, 2)", "Keep the shape"),
        ),
        (
            lambda: func.scan(lambda c, x: (c.float(), None), H, X),
            ValueError,
            ("dtype torch.float32", "Cast it: .to(torch.float64)"),
        ),
        (
            lambda: func.scan(lambda c, x: ((c, c), None), H, X),  # type: ignore[arg-type, return-value]
            ValueError,
            ("another structure than the first", "Return a Tensor"),
        ),
        (
            lambda: func.scan(lambda c, x: (c, "y"), H, X),
            TypeError,
            ("the result of a step is 'y'", "only tensors and None"),
        ),
    ],
)
def test_what_is_refused_says_what_to_write(call: Any, error: Any, parts: tuple[str, ...]) -> None:
    with says(error, "func.scan", *parts):
        call()


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_code_says_the_same() -> None:
    with pytest.raises(Exception, match="Keep the shape from the start"):
        torch.compile(lambda x: func.scan(lambda c, x: (x, None), H, x), backend="eager")(X)


@pytest.mark.usefixtures("fresh_dynamo")
def test_what_torch_draws_in_a_step_is_drawn_once_for_value_and_gradient() -> None:
    def dropped(total: Tensor, x: Tensor) -> Tensor:
        return total + torch.nn.functional.dropout(x, 0.5).sum()

    def run(w: Tensor) -> tuple[Any, Any]:
        def scanned(w: Tensor) -> Any:
            return func.scan(lambda c, x: (dropped(c, x * w), None), 0 * w, torch.ones(3, 16))[0]

        def counted(w: Tensor) -> Any:
            return func.fori_loop(0, 3, lambda i, c: dropped(c, w.expand(16)), 0 * w)

        return func.grad_and_value(scanned)(w), func.grad_and_value(counted)(w)

    w = torch.tensor(3.0)
    # Both are linear in the weight.
    for slope, value in parallax.compile(run, backend="aot_eager")(w):
        assert value > 0 and torch.equal(value, w * slope)
