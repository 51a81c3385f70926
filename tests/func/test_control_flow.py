"""``cond``, ``while_loop``, ``fori_loop`` and ``associative_scan`` against Python's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Buffer, Module, Parameter, UninitializedError, effects, func, nn, random, tree
from parallax.random import KeyReusedError
from tests.bad_input.errors import says
from tests.compiling import eager_and_aot

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
YES, NO = torch.tensor(True), torch.tensor(False)
BOTH = torch.tensor([True, False, True])
ROWS = torch.stack([X, 2 * X, X - 1])


class Scale(Module):
    by: Parameter
    name: str

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.by * x)


MODEL = Scale(torch.tensor(1.5, dtype=torch.float64), "scale")


def squares(found: Any) -> Tensor:
    return torch.stack([(leaf**2).sum() for leaf in tree.leaves(found)]).sum()


# -- what each means ------------------------------------------------------------------------------


class Ours:
    cond = staticmethod(func.cond)
    while_loop = staticmethod(func.while_loop)
    fori_loop = staticmethod(func.fori_loop)
    associative_scan = staticmethod(func.associative_scan)


class Plain:
    """The same by ``if``, ``while`` and ``for``."""

    @staticmethod
    def cond(pred: Any, true_fn: Any, false_fn: Any, operands: Any = ()) -> Any:
        return true_fn(*operands) if bool(pred) else false_fn(*operands)

    @staticmethod
    def while_loop(cond_fn: Any, body_fn: Any, carried: Any) -> Any:
        while bool(cond_fn(*carried)):
            carried = body_fn(*carried)
        return carried

    @staticmethod
    def fori_loop(lower: int, upper: int, body_fun: Any, value: Any) -> Any:
        for k in range(lower, upper):
            value = body_fun(torch.tensor(k), value)
        return value

    @staticmethod
    def associative_scan(combine_fn: Any, xs: Any, dim: int = 0, reverse: bool = False) -> Any:
        count = tree.leaves(xs)[0].shape[dim]
        rows = [tree.map(lambda x, k=k: x.select(dim, k), xs) for k in range(count)]
        rows = rows[::-1] if reverse else rows
        found = [rows[0]]
        for row in rows[1:]:
            found.append(combine_fn(found[-1], row))
        found = found[::-1] if reverse else found
        return tree.map(lambda *ys: torch.stack(ys, dim), *found)


def chosen(flow: Any, pred: Any, model: Any, x: Tensor) -> Any:
    """Modules are operands and results."""
    return flow.cond(
        pred,
        lambda m, x: {"y": m(x), "m": tree.map(lambda w: 2 * w, m)},
        lambda m, x: {"y": x * m.by**2, "m": m},
        (model, x),
    )


def halved(flow: Any, model: Any, x: Tensor) -> Any:
    """A module is carried, and one captured."""
    return flow.while_loop(
        lambda m, x: (x.abs() > 0.2).any(),
        lambda m, x: (tree.map(lambda w: w * 0.9, m), model(x) * m.by * 0.6),
        (model, x),
    )


def repeated(flow: Any, model: Any, x: Tensor) -> Any:
    return flow.fori_loop(2, 7, lambda i, x: model(x) + 0.1 * i, x)


def affine(one: Any, two: Any) -> Any:
    """The composition of ``x -> a x + b``, which is associative and not commutative."""
    return {"a": one["a"] * two["a"], "b": two["a"] * one["b"] + two["b"]}


def recurrence(flow: Any, model: Any, rows: Tensor, **options: Any) -> Any:
    return flow.associative_scan(affine, {"a": rows.cos(), "b": model(rows)}, **options)


LONG = torch.linspace(-1, 1, 21, dtype=torch.float64).reshape(7, 3)


def values(run: Any) -> Any:
    return lambda flow: run(flow, MODEL)


def slope(run: Any) -> Any:
    return lambda flow: func.grad(lambda m: squares(run(flow, m)))(MODEL)


def second(run: Any) -> Any:
    return lambda flow: func.grad(lambda m: squares(func.grad(lambda m: squares(run(flow, m)))(m)))(
        MODEL
    )


RUNS: dict[str, Callable[[Any, Any], Any]] = {
    "cond": lambda flow, m: [chosen(flow, p, m, X) for p in (YES, NO, True, False)],
    "fori_loop": lambda flow, m: repeated(flow, m, X),
    "associative_scan": lambda flow, m: [
        recurrence(flow, m, LONG[:n], reverse=r) for n in (1, 2, 7) for r in (False, True)
    ],
    "in another dimension": lambda flow, m: recurrence(flow, m, LONG, dim=1),
    "cond in fori_loop": lambda flow, m: flow.fori_loop(
        0, 3, lambda i, x: flow.cond(i > 0, lambda: m(x), lambda: 2 * x), X
    ),
}
PROGRAMS: dict[str, Callable[[Any], Any]] = {
    **{name: values(run) for name, run in RUNS.items()},
    **{f"gradient of {name}": slope(run) for name, run in RUNS.items()},
    **{f"second derivative of {name}": second(run) for name, run in RUNS.items()},
    "while_loop": lambda flow: halved(flow, MODEL, X),
}


SECOND = [name for name in PROGRAMS if name.startswith("second")]
FIRST = [name for name in PROGRAMS if name not in SECOND]


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_it_is_pythons(program: Any) -> None:
    torch.testing.assert_close(tree.leaves(program(Ours)), tree.leaves(program(Plain)))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    ("backend", "names"),
    [
        pytest.param(eager_and_aot, [*FIRST, *SECOND[:2]], id="aot"),
        pytest.param(eager_and_aot, SECOND[2:], id="aot, second", marks=pytest.mark.slow),
        pytest.param(
            "inductor", [name for name in FIRST if "associative" not in name],
            id="default", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_compiled_it_is_one_graph(backend: Any, names: list[str]) -> None:
    @torch.compile(backend=backend, fullgraph=True)
    def run() -> Any:
        return {name: PROGRAMS[name](Ours) for name in names}

    found = run()
    for name in names:
        torch.testing.assert_close(
            tree.leaves(found[name]), tree.leaves(PROGRAMS[name](Plain)), msg=name
        )


@pytest.mark.usefixtures("fresh_dynamo")
def test_loops_of_one_result_on_the_default_backend() -> None:
    def run(x: Tensor) -> Any:
        last, rows = func.scan(lambda c, row: (c, c * row), x, ROWS)
        carried = func.scan(lambda c, row: (c * row, None), x, ROWS)[0]
        return func.fori_loop(0, 4, lambda i, y: y.sin() + i, x), last, rows, carried

    found = parallax.compile(run)(X)
    expected = X
    for k in range(4):
        expected = expected.sin() + k
    torch.testing.assert_close(found, (expected, X, X * ROWS, X * ROWS.prod(0)))


def test_while_loop_is_differentiated_in_eager_code() -> None:
    found = [func.grad(lambda m, f=f: squares(halved(f, m, X)))(MODEL) for f in (Ours, Plain)]
    assert tree.allclose(found[0], found[1])


MAPPED: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "cond": (lambda flow, p, x: chosen(flow, p, MODEL, x), (BOTH, ROWS)),
    "cond, of one for all": (lambda flow, x: chosen(flow, NO, MODEL, x), (ROWS,)),
    "gradient of cond": (
        lambda flow, p, x: func.grad(lambda x: squares(chosen(flow, p, MODEL, x)))(x),
        (BOTH, ROWS),
    ),
    "cond within a gradient": (
        lambda flow, x: func.grad(
            lambda x: squares(flow.cond(x.sum() > 1.4, lambda: x**2, lambda: x.sin()))
        )(x),
        (ROWS,),
    ),
    "while_loop": (lambda flow, x: halved(flow, MODEL, x), (ROWS,)),
    "fori_loop": (lambda flow, x: repeated(flow, MODEL, x), (ROWS,)),
    "associative_scan": (lambda flow, x: recurrence(flow, MODEL, x), (LONG.reshape(1, 7, 3),)),
}


def members(fn: Any, columns: Any) -> Any:
    return tree.stack([fn(Plain, *row) for row in zip(*columns, strict=True)])


@pytest.mark.parametrize(("fn", "columns"), MAPPED.values(), ids=MAPPED)
def test_under_vmap(fn: Any, columns: Any) -> None:
    found = func.vmap(lambda *row: fn(Ours, *row))(*columns)
    torch.testing.assert_close(tree.leaves(found), tree.leaves(members(fn, columns)))


@pytest.mark.usefixtures("fresh_dynamo")
def test_under_vmap_compiled() -> None:
    @torch.compile(backend=eager_and_aot, fullgraph=True)
    def run() -> Any:
        return {
            name: func.vmap(lambda *row, fn=fn: fn(Ours, *row))(*columns)
            for name, (fn, columns) in MAPPED.items()
        }

    found = run()
    for name, (fn, columns) in MAPPED.items():
        torch.testing.assert_close(
            tree.leaves(found[name]), tree.leaves(members(fn, columns)), msg=name
        )


@pytest.mark.usefixtures("fresh_dynamo")
def test_the_tape_around_compiled_code() -> None:
    by = MODEL.by.detach().requires_grad_()
    model = Scale(by, "scale")

    @torch.compile(backend="aot_eager", fullgraph=True)
    def run(model: Any, pred: Any) -> Any:
        return squares([chosen(Ours, pred, model, X), repeated(Ours, model, X)])

    for pred in (YES, NO):
        expected = squares([chosen(Plain, pred, model, X), repeated(Plain, model, X)])
        found = run(model, pred)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, by), torch.autograd.grad(expected, by)
        )


def choice(x: Tensor) -> Any:
    return func.cond(x.sum() > 0, lambda x: x.sin() * x, lambda x: x.cos(), (x,))


@pytest.mark.usefixtures("fresh_dynamo")
def test_forward_derivatives_of_compiled_branches() -> None:
    def derivatives(x: Tensor) -> Any:
        return func.jvp(choice, (x,), (ROWS[1],)), func.jacfwd(choice)(x)

    compiled = parallax.compile(derivatives, backend=eager_and_aot)
    for x, slope in ((X, X.cos() * X + X.sin()), (-X, X.sin())):
        (value, along), jacobian = compiled(x)
        torch.testing.assert_close(value, choice(x))
        torch.testing.assert_close(along, slope * ROWS[1])
        torch.testing.assert_close(jacobian, slope.diag())


def test_forward_derivatives_that_compiled_code_has_not_say_what_to_write() -> None:
    def doubled(x: Tensor) -> Any:
        return func.while_loop(lambda x: x.sum() < 9, lambda x: (x + 1,), (x,))[0]

    def slope(x: Tensor) -> Any:
        return func.grad(lambda x: choice(x).sum())(x)

    def along(call: Any, x: Tensor) -> Any:
        return func.jvp(call, (x,), (x,))

    for call, text in ((doubled, "Use func.fori_loop or func.scan"), (slope, "such as func.hvp")):
        with pytest.raises(Exception, match=text):
            parallax.compile(along, backend="aot_eager")(call, X)


def test_a_compiled_while_loop_says_that_it_has_no_gradient() -> None:
    def slope(model: Any) -> Any:
        return func.grad(lambda m: squares(halved(Ours, m, X)))(model)

    with pytest.raises(Exception, match=r"Use func\.fori_loop or func\.scan"):
        parallax.compile(slope, backend="aot_eager")(MODEL)

    def detached(model: Any) -> Any:
        return func.grad(lambda m: squares(halved(Ours, tree.map(Tensor.detach, m), X)) * m.by)(
            model
        )

    found = parallax.compile(detached, backend="aot_eager")(MODEL)
    torch.testing.assert_close(found.by, squares(halved(Plain, MODEL, X)))


# -- keys and effects -----------------------------------------------------------------------------


def drawing(key: Any) -> Any:
    one, two, three = random.split(key, 3)
    picked = func.cond(YES, lambda: random.normal(one, (2,)), lambda: random.uniform(one, (2,)))

    def body(i: Any, key: Any, x: Tensor) -> Any:
        key, other = random.split(key)
        return i + 1, key, x + random.normal(other, (2,))

    loop = func.while_loop(lambda i, key, x: i < 3, body, (torch.tensor(0), two, torch.zeros(2)))
    folded = func.fori_loop(
        0, 3, lambda i, x: x + random.normal(random.fold_in(three, i), (2,)), torch.zeros(2)
    )
    return picked, loop[2], folded


def drawing_plainly(key: Any) -> Any:
    one, two, three = random.split(key, 3)
    x = torch.zeros(2)
    for _ in range(3):
        two, other = random.split(two)
        x = x + random.normal(other, (2,))
    folded = [random.normal(random.fold_in(three, i), (2,)) for i in range(3)]
    return random.normal(one, (2,)), x, folded[0] + folded[1] + folded[2]


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_draws_are_those_of_plain_code(backend: Any) -> None:
    run: Any = parallax.compile(drawing, backend=backend) if backend else drawing
    torch.testing.assert_close(run(random.key(0)), drawing_plainly(random.key(0)))


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_key_that_would_repeat_its_numbers_is_an_error() -> None:
    def same(key: Any) -> Any:
        return func.while_loop(
            lambda i, x: i < 3, lambda i, x: (i + 1, x + random.normal(key)), (torch.tensor(0), X)
        )

    for run in (same, parallax.compile(same, backend="eager")):
        with pytest.raises(KeyReusedError, match="would repeat"):
            run(random.key(0))


class Seen(Module):
    count: Buffer

    def forward(self, x: Tensor) -> Tensor:
        self.emit(count=self.count + 1, merge="sum")
        return x + 1


def test_effects_of_the_branch_and_the_passes() -> None:
    seen = Seen(torch.tensor(0))

    def run(seen: Any) -> Any:
        x = func.cond(YES, lambda: seen(X), lambda: X)
        return func.fori_loop(0, 2, lambda i, x: seen(x), x)

    x, after = effects.collect(run)(seen)
    assert int(after.count) == 3
    torch.testing.assert_close(x, X + 3)


def test_effects_of_both_branches_are_refused() -> None:
    def run(seen: Any) -> Any:
        return func.vmap(lambda p, s: func.cond(p, lambda s: s(X), lambda s: X, (s,)), (0, None))(
            BOTH, seen
        )

    with pytest.raises(effects.EffectError, match=r"effects\.collect\(fn\)\(module, x\)"):
        effects.collect(run)(Seen(torch.tensor(0)))


# -- bad input ------------------------------------------------------------------------------------


def same(x: Any) -> Any:
    return (x,)


def less(x: Tensor) -> Tensor:
    return (x < 1).all()


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda: func.cond(1, same, same), TypeError, ("pred must be a bool", "x.sum() > 0")),  # type: ignore[arg-type]
        (lambda: func.cond(BOTH, same, same), TypeError, ("shape (3,)", "(x > 0).all()")),
        (lambda: func.cond(YES, 1, same), TypeError, ("true_fn must be a function",)),  # type: ignore[arg-type]
        (lambda: func.cond(YES, same, same, X), TypeError, ("operands must be a tuple",)),  # type: ignore[arg-type]
        (
            lambda: func.vmap(lambda p: func.cond(p, lambda: X, lambda: X[0]))(BOTH),
            ValueError,
            ("the result of false_fn has shape ()", "(3,)"),
        ),
        (
            lambda: func.vmap(lambda p: func.cond(p, lambda: X, lambda: "x"))(BOTH),
            TypeError,
            ("the result of false_fn is 'x'",),
        ),
        (lambda: func.while_loop(less, same, X), TypeError, ("must be a tuple", "(value,)")),  # type: ignore[call-overload]
        (lambda: func.while_loop(less, same, (1,)), TypeError, ("carried_inputs: 0 is 1",)),
        (
            lambda: func.while_loop(lambda x: x, same, (X,)),
            TypeError,
            ("what cond_fn returns", "(x > 0).all()"),
        ),
        (
            lambda: func.while_loop(less, lambda x: x, (X - 9,)),
            TypeError,
            ("tuple of the next 1", "return (value,)"),
        ),
        (
            lambda: func.while_loop(less, lambda x: (x.sum(),), (X - 9,)),
            ValueError,
            ("what body_fn returned: 0 has shape ()", "Keep the shape"),
        ),
        (lambda: func.fori_loop(0.5, 3, less, X), TypeError, ("lower must be an int",)),  # type: ignore[arg-type]
        (
            lambda: func.fori_loop(0, 3, lambda i, x: x[0], X),
            ValueError,
            ("has shape ()", "Keep the shape"),
        ),
        (
            lambda: func.fori_loop(0, 3, lambda i, m: m, nn.Linear(2, 2)),
            UninitializedError,
            ("Linear.weight",),
        ),
        (lambda: func.associative_scan(3, X), TypeError, ("combine_fn must be a function",)),  # type: ignore[arg-type]
        (lambda: func.associative_scan(torch.add, 3), TypeError, ("xs is 3",)),  # type: ignore[arg-type]
        (
            lambda: func.associative_scan(lambda a, b: (a, b), X),  # type: ignore[arg-type, return-value]
            ValueError,
            ("what combine_fn returned has another structure", "Return a Tensor"),
        ),
    ],
)
def test_what_is_refused_says_what_to_write(call: Any, error: Any, parts: tuple[str, ...]) -> None:
    with says(error, *parts):
        call()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    ("other", "said"),
    [(lambda: (X, X), "different structures"), (lambda: X[0], r"and false_fn one of \(\)")],
)
def test_compiled_branches_return_the_same(other: Any, said: str) -> None:
    with pytest.raises(Exception, match=said):
        parallax.compile(lambda p: func.cond(p, lambda: X, other), backend="eager")(YES)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_branches_have_no_effects() -> None:
    def run(seen: Any, pred: Tensor) -> Any:
        return func.cond(pred, lambda s: s(X), lambda s: X, (seen,))

    with pytest.raises(Exception, match="effects cannot be collected here"):
        parallax.compile(lambda s, p: effects.collect(run)(s, p), backend="eager")(
            Seen(torch.tensor(0)), YES
        )


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_branches_that_torch_draws_in_have_no_derivative() -> None:
    def run(w: Tensor) -> Any:
        dropped = lambda w: torch.nn.functional.dropout(w.expand(16), 0.5).sum()  # noqa: E731  # short
        return func.cond(w > 0, dropped, lambda w: 2 * w, (w,))

    w = torch.tensor(3.0)
    assert parallax.compile(run, backend="aot_eager")(w) > 0
    with pytest.raises(Exception, match=r"a branch draws from torch's own .* Draw with a key"):
        parallax.compile(lambda w: func.grad(run)(w), backend="aot_eager")(w)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_branches_of_other_sizes() -> None:
    def choose(x: Tensor) -> Any:
        return func.cond(x.sum() > 3, lambda x: x.sin(), lambda x: x.cos(), (x,))

    compiled: Any = parallax.compile(choose, backend="eager")
    for x in (torch.ones(2, 3), torch.ones(3, 2), torch.ones(5, 4) / 9, torch.ones(4)):
        assert torch.equal(compiled(x), x.sin() if x.sum() > 3 else x.cos())
