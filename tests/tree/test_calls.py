"""Bound methods and partials: as functions, and as trees of what they are bound to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Buffer, Module, Parameter, effects, func, io, nn, optim, random, tree


class Line(Module):
    """A module with a method beside forward, and a leaf that is never trained."""

    slope: Parameter
    offset: Parameter
    count: Buffer

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x + self.offset

    def loss(self, x: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        return torch.sum(torch.as_tensor(scale) * self(x) ** 2)


def line() -> Any:
    make: Any = Line
    return make(torch.tensor([2.0, 3.0]), torch.tensor([0.5, -0.5]), torch.tensor(1.0))


def reference(slope: Tensor, offset: Tensor, x: Tensor, scale: Any = 1.0) -> Tensor:
    return torch.sum(scale * (slope * x + offset) ** 2)


X = torch.tensor([1.0, -2.0])


# -- as functions ---------------------------------------------------------------------------------


def test_a_bound_method_is_a_function_of_what_is_left() -> None:
    model = line()
    expected = torch.func.grad(reference, argnums=2)(model.slope, model.offset, X)
    part = partial(model.loss, scale=2.0)
    engines: list[Any] = [lambda f: f, lambda f: parallax.compile(f, backend="eager")]
    for engine in engines:
        torch.testing.assert_close(engine(func.grad(model.loss))(X), expected)
        torch.testing.assert_close(engine(func.grad(part))(X), 2 * expected)
    assert torch.equal(
        func.per_sample_grad(model.loss, in_dims=(0,))(X[None])[0], func.grad(model.loss)(X)
    )


def test_of_the_function_of_the_class_the_module_is_an_argument() -> None:
    model = line()
    grads = func.grad(Line.loss)(model, X)
    slope, offset = torch.func.grad(reference, argnums=(0, 1))(model.slope, model.offset, X)
    torch.testing.assert_close((grads.slope, grads.offset), (slope, offset))
    part = func.grad(partial(Line.loss, x=X))(model)
    assert tree.equal(part, grads)


@pytest.mark.parametrize("bind", [lambda m: m.loss, lambda m: partial(Line.loss, m)])
def test_what_is_captured_is_differentiated_from_outside(bind: Any) -> None:
    model = line()

    def outer(model: Any) -> Any:
        return (func.grad(bind(model))(X) ** 2).sum()

    def expected(slope: Tensor, offset: Tensor) -> Any:
        return (torch.func.grad(reference, argnums=2)(slope, offset, X) ** 2).sum()

    slope, offset = torch.func.grad(expected, argnums=(0, 1))(model.slope, model.offset)
    for transform in (func.grad(outer), torch.func.grad(outer)):
        grads = transform(model)
        torch.testing.assert_close((grads.slope, grads.offset), (slope, offset))


def test_a_compiled_function_of_a_method_has_the_values_of_its_module() -> None:
    step = parallax.compile(lambda f, x: f(x), backend="eager")
    for factor in (1.0, 3.0):
        model = tree.scale(line(), factor)
        assert torch.equal(step(model.loss, X), model.loss(X))
        assert torch.equal(step(partial(model.loss, scale=2.0), X), model.loss(X, 2.0))


# -- as arguments ---------------------------------------------------------------------------------


def close(found: Any, *wanted: Any) -> None:
    torch.testing.assert_close((found.slope, found.offset), wanted)
    assert found.count is None


def call(f: Any, x: Tensor) -> Any:
    return f(x)


BINDS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "method": (lambda m: m.loss, lambda f: f.__self__),
    "partial": (lambda m: partial(Line.loss, m), lambda f: f.args[0]),
    "partial of a method": (lambda m: partial(m.loss, scale=1.0), lambda f: f.func.__self__),
    "in a dict": (lambda m: {"a": {"f": m.loss}}, lambda f: f["a"]["f"].__self__),
}


@pytest.mark.parametrize("how", BINDS)
def test_derivatives_by_what_is_bound_are_those_of_the_module(how: str) -> None:
    bind, opened = BINDS[how]
    model = line()
    leaves, subject = (model.slope, model.offset), bind(model)

    def run(f: Any, x: Tensor) -> Any:
        return f["a"]["f"](x) if isinstance(f, dict) else f(x)

    wanted = torch.func.grad(reference, argnums=(0, 1))(*leaves, X)
    grads = func.grad(run)(subject, X)
    assert type(grads) is type(subject)
    close(opened(grads), *wanted)
    close(opened(func.vjp(run, subject, X)[1](torch.tensor(1.0))[0]), *wanted)
    close(opened(func.jacrev(run)(subject, X)), *wanted)
    close(opened(func.jacfwd(run)(subject, X)), *wanted)
    rows = torch.stack([X, -X, 2 * X])
    each = torch.func.vmap(torch.func.grad(reference, argnums=(0, 1)), (None, None, 0))
    close(opened(func.per_sample_grad(run)(subject, rows)), *each(*leaves, rows))
    ones = tree.map(lambda leaf: torch.ones_like(torch.as_tensor(leaf)), subject)
    tangent = func.jvp(lambda f: run(f, X), (subject,), (ones,))[1]
    torch.testing.assert_close(tangent, sum(leaf.sum() for leaf in wanted))


def test_what_is_given_to_a_partial_is_differentiated() -> None:
    model, scale = line(), torch.tensor([0.5, 2.0])
    grads: Any = func.grad(lambda f: f())(partial(Line.loss, model, X, scale=scale))
    wanted = torch.func.grad(reference, argnums=(0, 1, 2, 3))(model.slope, model.offset, X, scale)
    close(grads.args[0], *wanted[:2])
    torch.testing.assert_close((grads.args[1], grads.keywords["scale"]), wanted[2:])
    assert grads.func is Line.loss
    whole: Any = func.grad(lambda f: f(X).sum())(partial(model))  # a module is the function
    close(whole.func, X, torch.ones(2))
    named = functools.update_wrapper(partial(model.loss), Line.loss)
    assert func.grad(call)(named, X).__name__ == "loss"
    kept: Any = func.grad(call)(partial(lambda power, m, x: m.loss(x) ** power, 2, model), X)
    assert kept.args[0] is None  # a number has no gradient
    assert tree.scale(kept, 2.0).args[0] is None


def test_second_derivatives_and_the_same_module_twice() -> None:
    model = line()
    leaves = model.slope, model.offset

    def outer(f: Any) -> Any:
        return (func.grad(call)(f, X).__self__.slope ** 2).sum()

    def by_hand(slope: Tensor, offset: Tensor) -> Any:
        return (torch.func.grad(reference)(slope, offset, X) ** 2).sum()

    close(func.grad(outer)(model.loss).__self__, *torch.func.grad(by_hand, (0, 1))(*leaves))
    second: Any = func.hessian(call)(model.loss, X)
    torch.testing.assert_close(
        second.__self__.slope.__self__.offset,
        torch.func.jacrev(torch.func.grad(reference), 1)(*leaves, X),
    )
    # Two arguments are two, also if they hold one module, as two tensors are.
    bound, plain = func.grad(lambda f, m: f(X) * m.slope.sum(), (0, 1))(model.loss, model)
    slope, offset = torch.func.grad(reference, (0, 1))(*leaves, X)
    close(bound.__self__, 5.0 * slope, 5.0 * offset)
    torch.testing.assert_close(plain.slope, reference(*leaves, X).expand(2))


def test_one_compiled_graph_goes_on_with_new_values() -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    def step(f: Any, made: Any, x: Tensor) -> Any:
        bound = partial(lambda m, x: m.loss(x), made)
        return func.grad(call)(f, x), func.grad(call)(made.loss, x), func.grad(call)(bound, x)

    compiled: Any = parallax.compile(step, backend=backend)
    model = line()
    for how in ("method", "partial of a method"):
        subject, opened = BINDS[how]
        graphs.clear()
        for _ in range(3):
            wanted = torch.func.grad(reference, (0, 1))(model.slope, model.offset, X)
            first, second, third = compiled(subject(model), model, X)
            for one in (opened(first), second.__self__, third.args[0]):
                close(one, *wanted)
            model = tree.map(lambda leaf: leaf + 1, model)
        assert len(graphs) == 1

    def raw(model: Any) -> Any:
        return func.grad(call)(model.loss, X)

    raw_compiled: Any = torch.compile(raw, backend="eager", fullgraph=True)
    close(
        raw_compiled(model).__self__,
        *torch.func.grad(reference, (0, 1))(model.slope, model.offset, X),
    )


def test_donated_methods_are_gone() -> None:
    def step(f: Any, x: Tensor) -> Any:
        return tree.map(lambda leaf, grad: leaf - grad, f, func.grad(call)(f, x))

    model = line()
    slope = model.slope - torch.func.grad(reference)(model.slope, model.offset, X)
    compiled = parallax.compile(step, donate="f", backend="eager")
    torch.testing.assert_close(compiled(model.loss, X).__self__.slope, slope)
    with pytest.raises(optim.DonatedError, match="Line was given to"):
        model.loss(X)


def test_effects_of_a_bound_module_go_where_those_of_the_module_go() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)).initialize(0)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))

    def plain(m: Any, x: Tensor) -> Any:
        return m(x).sum()

    def transforms(bind: Any) -> list[Any]:
        return [
            lambda m, x: func.grad(lambda f: f(x).sum())(bind(m)),
            lambda m, x: func.vmap(call, (None, 0))(bind(m), x.reshape(2, 3, 2)),
            lambda m, x: func.vmap(bind(m))(x.reshape(2, 3, 2)),
        ]

    wanted = [
        lambda m, x: func.grad(plain)(m, x),
        lambda m, x: func.vmap(call, (None, 0))(m, x.reshape(2, 3, 2)),
    ]
    wanted.append(wanted[1])
    for bind in (lambda m: m.forward, partial):
        for found, expected in zip(transforms(bind), wanted, strict=True):
            after = effects.collect(found)(model.train(random.key(1)), x)[1]
            reference = effects.collect(expected)(model.train(random.key(1)), x)[1]
            assert tree.equal(after, reference)
            assert not tree.equal(after, model)


# -- as trees -------------------------------------------------------------------------------------


def test_bound_methods_and_partials_are_trees(tmp_path: Any) -> None:
    model = line()
    subject: Any = {"f": model.loss, "p": partial(torch.add, X, alpha=2), "g": model}
    paths = ["f.__self__.slope", "f.__self__.offset", "f.__self__.count", "p.args.0"]
    assert [*tree.named_leaves(subject)][:4] == paths
    assert tree.structure(subject) == tree.structure({**subject, "f": tree.scale(model, 2.0).loss})
    assert tree.structure(subject) != tree.structure({**subject, "f": model.forward})
    leaves, spec = tree.flatten(subject)
    assert tree.equal(tree.unflatten(spec, leaves), subject)
    doubled = tree.map(lambda leaf: leaf * 2, subject)
    torch.testing.assert_close(doubled["f"](X), reference(2 * model.slope, 2 * model.offset, X))
    assert doubled["p"].keywords == {"alpha": 4}
    moved = tree.select(subject, "f.__self__.slope").set(torch.zeros(2))
    assert moved["f"](X) == 0.5 and subject["g"] is model
    assert "f.__self__.slope" in str(tree.diff(subject, moved))
    assert tree.to(subject, dtype=torch.float64)["f"].__self__.slope.dtype is torch.float64
    stacked = tree.stack([model.loss, tree.scale(model, 2.0).loss])
    out = func.vmap(call, (0, None))(stacked, X)
    torch.testing.assert_close(out, torch.stack([model.loss(X), doubled["f"](X)]))
    io.save(subject, tmp_path / "tree.pt")
    like = tree.zeros_like(subject)
    assert tree.equal(io.load(tmp_path / "tree.pt", like=like), subject)


@pytest.mark.slow
def test_a_saved_compiled_function_takes_a_method(tmp_path: Any) -> None:
    model = line()
    compiled = parallax.compile(lambda f, x: f(x), backend="inductor")
    compiled.lower(model.loss, X).save(tmp_path / "loss.plx")
    loaded: Any = parallax.load_compiled(tmp_path / "loss.plx")
    assert torch.equal(loaded(model.loss, X), model.loss(X))


def test_other_libraries_see_leaves() -> None:
    import optree
    from torch.utils import _pytree

    method = line().loss
    leaves: Any = optree.tree_leaves
    assert leaves([method]) == [method]
    assert _pytree.tree_leaves([method]) == [method]
