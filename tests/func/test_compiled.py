"""Every transform inside of ``torch.compile(fullgraph=True)``: one graph, equal numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from parallax import func, tree
from tests.compiling import eager_and_aot
from tests.func.nets import Net, Twice, X, loss, net

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

MODEL = Twice(net(0), net(1, bias=False))
SHARED = net(3)
TIED = Twice(SHARED, SHARED)
FROZEN = tree.select(Twice(net(0), net(1)), "first").freeze()
STACK = tree.stack([Twice(net(k), net(k + 5)) for k in range(3)])
BATCH = torch.stack([X, 2 * X, X - 1])
V = func.grad(loss)(MODEL)
LINEAR = nn.Linear(3, 2).double()


def with_aux(m: Any, x: Tensor) -> tuple[Tensor, Any]:
    return loss(m, x), {"x": x, "n": 2}


def linearized(m: Any, v: Any) -> Any:
    value, push = func.linearize(lambda m: m(X), m)
    return value, push(v), push(tree.map(lambda t: 2 * t, v))


def slope_along(m: Any, v: Any) -> Any:
    out: Any = func.jvp(lambda m: m(X), (m,), (v,))
    return out[1]


def built(x: Tensor, scale: Tensor) -> Any:
    """A step of a module made in the trace, which holds one buffer twice."""
    m = Twice(Net(x, None, scale, scale), Net(x, None, scale, scale))
    return m.update(lambda p, g: p - g, func.grad(loss)(m))


RUNS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "grad": (lambda m: func.grad(loss)(m), (MODEL,)),
    "grad of a tied module": (lambda m: func.grad(loss)(m), (TIED,)),
    "grad of a frozen module": (lambda m: func.grad(loss)(m), (FROZEN,)),
    "grad and value, aux": (
        lambda m, x: func.grad_and_value(with_aux, argnums=(0, 1), has_aux=True)(m, x),
        (MODEL, X),
    ),
    "grad of grad": (
        lambda m: func.grad(lambda m: sum(g.sum() for g in tree.leaves(func.grad(loss)(m))))(m),
        (MODEL,),
    ),
    "step": (lambda m: m.update(lambda p, g: p - 0.1 * g, func.grad(loss)(m)), (MODEL,)),
    "made in the trace": (
        lambda m, x: func.grad(loss)(
            Twice(m.first, Net(x, None, m.first.scale + 1, m.first.steps + 1))
        ),
        (MODEL, MODEL.second.weight),
    ),
    "made with ties": (built, (MODEL.first.weight, MODEL.first.scale)),
    "vjp": (lambda m, x: func.vjp(lambda m: m(x), m)[1](torch.ones(2, 3).double()), (MODEL, X)),
    "jvp": (lambda m, v: func.jvp(lambda m: m(X), (m,), (v,)), (MODEL, V)),
    "jvp of jvp": (lambda m, v: func.jvp(lambda m: slope_along(m, v), (m,), (v,)), (MODEL, V)),
    "linearize": (linearized, (MODEL, V)),
    "jacrev": (lambda m: func.jacrev(lambda m: m(X))(m), (MODEL,)),
    "jacfwd": (lambda m: func.jacfwd(lambda m: m(X))(m), (MODEL,)),
    "hessian": (lambda m: func.hessian_matrix(loss)(m), (MODEL,)),
    "hvp": (lambda m, v: func.hvp(loss, (m,), (v,)), (MODEL, V)),
    "vmap": (lambda m, x: func.vmap(Twice.forward, (0, None))(m, x), (STACK, X)),
    "vmap out_dims": (
        lambda x: func.vmap(lambda x: {"a": x, "b": x.sum()}, out_dims={"a": 1, "b": 0})(x),
        (BATCH,),
    ),
    "vmap to modules": (
        lambda m: func.vmap(lambda m: m.update(lambda p: p + 1))(m),
        (STACK,),
    ),
    "per sample": (lambda m, x: func.per_sample_grad(loss)(m, x), (MODEL, BATCH)),
    "ensemble": (lambda m, x: func.ensemble_grad(loss)(m, x), (STACK, X)),
    "functional_call": (
        lambda m, w, x: func.functional_call(m, {"first.weight": w}, x),
        (MODEL, MODEL.second.weight, X),
    ),
    "functional_call of nn": (
        lambda w, x: func.grad(lambda w: func.functional_call(LINEAR, {"weight": w}, x).sum())(w),
        (LINEAR.weight.detach() + 1, X),
    ),
    "captured": (lambda m: func.grad(lambda k: loss(m) * k)(torch.ones(()).double()), (MODEL,)),
}


@pytest.mark.parametrize("name", RUNS)
def test_compiled_equals_eager(name: str) -> None:
    fn, args = RUNS[name]
    compiled = torch.compile(fn, backend=eager_and_aot, fullgraph=True)
    ours, theirs = compiled(*args), fn(*args)
    one, two = tree.leaves(ours), tree.leaves(theirs)
    assert tree.structure(ours) == tree.structure(theirs)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)


def test_a_training_loop_compiles_once() -> None:
    counter = CompileCounter()

    @torch.compile(backend=counter, fullgraph=True)
    def step(m: Any, x: Tensor) -> tuple[Any, Tensor]:
        grads, value = func.grad_and_value(loss)(m, x)
        return m.update(lambda p, g: p - 0.1 * g, grads), value

    model: Any = MODEL
    expected: Any = MODEL
    for _ in range(5):
        model, _ = step(model, X)
        expected = expected.update(lambda p, g: p - 0.1 * g, func.grad(loss)(expected, X))
    assert counter.frame_count == 1
    assert tree.allclose(model, expected)


def test_freezing_compiles_once_more() -> None:
    counter = CompileCounter()
    step = torch.compile(lambda m: func.grad(loss)(m), backend=counter, fullgraph=True)
    assert step(MODEL).first.weight is not None
    frozen = tree.select(MODEL, "first.weight").freeze()
    assert step(frozen).first.weight is None
    assert step(MODEL).first.weight is not None
    assert counter.frame_count == 2


def test_errors_keep_their_words_while_tracing() -> None:
    step = torch.compile(lambda m: func.grad(lambda m: m(X))(m), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="only a scalar has a gradient"):
        step(MODEL)
