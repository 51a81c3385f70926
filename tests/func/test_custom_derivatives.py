"""``func.custom_vjp`` and ``func.custom_jvp`` against derivatives written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Module, Parameter, UninitializedError, func, nn, tree
from tests.bad_input.errors import says
from tests.compiling import eager_and_aot

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
Y = torch.tensor([1.5, 0.25, -0.5], dtype=torch.float64)
XS = torch.stack([X, 2 * X])


class Wave(Module):
    by: Parameter
    name: str

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.by * x)


WAVE = Wave(Y, "wave")


# -- a rule that is three times the derivative, so that it is seen to be the one that is used ------


@func.custom_vjp
def sine(tree: Any, scale: Tensor) -> Any:
    return {"a": torch.sin(tree["w"]) * scale, "count": torch.tensor(1), "none": None}


def sine_fwd(tree: Any, scale: Tensor) -> Any:
    out = {"a": torch.sin(tree["w"]) * scale, "count": torch.tensor(1), "none": None}
    return out, (torch.cos(tree["w"]), tree["w"], scale)


def sine_bwd(residuals: Any, cotangent: Any) -> Any:
    cos, _, scale = residuals
    return {"w": 3 * cotangent["a"] * cos * scale, "none": None}, None


sine.defvjp(sine_fwd, sine_bwd)


@func.custom_jvp
def double(x: Tensor, y: Tensor) -> Tensor:
    return torch.sin(x) * y


def double_rule(primals: Any, tangents: Any) -> Any:
    x, y = primals
    return torch.sin(x) * y, 2 * tangents[0] * torch.cos(x) * y + tangents[1] * torch.sin(x)


double.defjvp(double_rule)


def loss_of_sine(x: Tensor) -> Tensor:
    return (sine({"w": x, "none": None}, Y)["a"] ** 2).sum()  # type: ignore[no-any-return]  # a tensor


def loss_of_double(x: Tensor) -> Tensor:
    return (double(x, Y) ** 2).sum()


def slope(x: Tensor, times: int) -> Tensor:
    """Of the sum of squares of ``sin(x) y``, by a rule that is so many times the derivative."""
    return 2 * times * torch.sin(x) * torch.cos(x) * Y**2


def curvature(x: Tensor, times: int) -> Tensor:
    """The derivative of that: of ``sin(x) y`` by the rule again, of ``cos(x)`` the true one."""
    return 2 * times * Y**2 * (times * torch.cos(x) ** 2 - torch.sin(x) ** 2)


def doubled(x: Tensor) -> Tensor:
    return torch.stack([x, 2 * x])


def twice(loss: Any) -> Any:
    return lambda x: func.grad(lambda x: func.grad(loss)(x).sum())(x)


Program = Callable[[Tensor], Any]


def runs_of(loss: Program, times: int) -> dict[str, tuple[Program, Program]]:
    """Programs, and what each is."""
    return {
        "value": (loss, lambda x: ((torch.sin(x) * Y) ** 2).sum()),
        "gradient": (func.grad(loss), lambda x: slope(x, times)),
        "second derivative": (twice(loss), lambda x: curvature(x, times)),
        "gradients under vmap": (
            lambda x: func.vmap(func.grad(loss))(torch.stack([x, 2 * x])),
            lambda x: torch.stack([slope(x, times), slope(2 * x, times)]),
        ),
        "gradient of vmap": (
            lambda x: func.grad(lambda x: func.vmap(loss)(doubled(x)).sum())(x),
            lambda x: slope(x, times) + 2 * slope(2 * x, times),
        ),
        "jacrev": (
            lambda x: func.jacrev(func.grad(loss))(x),
            lambda x: torch.diag(curvature(x, times)),
        ),
    }


RUNS = {f"vjp: {name}": pair for name, pair in runs_of(loss_of_sine, 3).items()}
RUNS |= {f"jvp: {name}": pair for name, pair in runs_of(loss_of_double, 2).items()}
FORWARD: dict[str, tuple[Program, Program]] = {
    "jvp": (lambda x: func.jvp(loss_of_double, (x,), (Y,))[1], lambda x: (slope(x, 2) * Y).sum()),
    "jvp under vmap": (
        lambda x: func.vmap(lambda v: func.jvp(loss_of_double, (x,), (v,))[1])(XS),
        lambda x: XS @ slope(x, 2),
    ),
    "jvp of a gradient": (
        lambda x: func.jvp(func.grad(loss_of_double), (x,), (Y,))[1],
        lambda x: curvature(x, 2) * Y,
    ),
    "gradient of a jvp": (
        lambda x: func.grad(lambda x: func.jvp(loss_of_double, (x,), (Y,))[1])(x),
        lambda x: curvature(x, 2) * Y,
    ),
    "jacfwd": (func.jacfwd(loss_of_double), lambda x: slope(x, 2)),
}


EAGER = RUNS | FORWARD


@pytest.mark.parametrize(("run", "expected"), EAGER.values(), ids=EAGER)
def test_the_rule_is_the_derivative(run: Any, expected: Any) -> None:
    torch.testing.assert_close(run(X), expected(X))


@pytest.mark.parametrize("loss", [loss_of_sine, loss_of_double])
def test_on_the_tape_and_by_torch(loss: Any) -> None:
    times = 3 if loss is loss_of_sine else 2
    x = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(x), x, create_graph=True)
    torch.testing.assert_close(found, slope(X, times))
    torch.testing.assert_close(torch.autograd.grad(found.sum(), x)[0], curvature(X, times))
    torch.testing.assert_close(torch.func.grad(loss)(X), slope(X, times))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    ("backend", "names"),
    [(eager_and_aot, list(RUNS)), ("inductor", ["vjp: gradient", "jvp: gradients under vmap"])],
    ids=["aot", "default"],
)
def test_compiled_it_is_one_graph(backend: Any, names: list[str]) -> None:
    def run(x: Tensor) -> dict[str, Any]:
        return {name: RUNS[name][0](x) for name in names}

    found = torch.compile(run, backend=backend, fullgraph=True)(X)
    for name in names:
        torch.testing.assert_close(found[name], RUNS[name][1](X), msg=name)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("loss", [loss_of_sine, loss_of_double])
def test_the_tape_around_compiled_code(loss: Any) -> None:
    times = 3 if loss is loss_of_sine else 2
    x = X.clone().requires_grad_()
    run: Any = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(run(x), x)[0], slope(X, times))


# -- modules, constants, arguments that are not differentiated ------------------------------------


def called_of(times: int) -> Any:
    def call(power: int, model: Any, x: Tensor, how: str) -> Tensor:
        assert how == "up"
        return model(x) ** power  # type: ignore[no-any-return]  # a tensor

    made = func.custom_vjp(call, nondiff_argnums=(0, 3))

    def fwd(power: int, model: Any, x: Tensor, how: str) -> Any:
        return call(power, model, x, how), (model, x)

    def bwd(power: int, how: str, residuals: Any, cotangent: Tensor) -> Any:
        assert how == "up"
        model, x = residuals
        _, pull = func.vjp(lambda m, x: m(x) ** power, model, x)
        grads, _ = pull(times * cotangent)
        return grads, None

    made.defvjp(fwd, bwd)
    return made


def test_modules_and_what_is_not_differentiated() -> None:
    wave = called_of(5)
    plain: Any = lambda m, x: (m(x) ** 2).sum()  # noqa: E731  # short
    found = func.grad(lambda m, x: wave(2, m, x, "up").sum(), (0, 1))(WAVE, X)
    expected = func.grad(lambda m: 5 * plain(m, X))(WAVE)
    assert tree.allclose(found[0], expected) and found[0].name == "wave"
    assert torch.equal(found[1], torch.zeros_like(X))
    torch.testing.assert_close(wave(2, WAVE, X, "up"), WAVE(X) ** 2)


def test_where_nothing_is_differentiated_the_function_itself_is_called() -> None:
    calls: list[str] = []

    def fun(x: Tensor) -> Tensor:
        calls.append("fun")
        return 2 * x

    def fwd(x: Tensor) -> tuple[Tensor, None]:
        calls.append("fwd")
        return 2 * x, None

    made = func.custom_vjp(fun)
    made.defvjp(fwd, lambda _, g: (g,))
    made(X)
    func.grad(lambda x: made(x).sum())(X)
    with torch.no_grad():
        made(X.clone().requires_grad_())
    assert calls == ["fun", "fwd", "fun"]


def test_names_are_kept() -> None:
    assert sine.__name__ == "sine" and double.__name__ == "double"  # type: ignore[attr-defined]


# -- bad input ------------------------------------------------------------------------------------


def rule(fwd: Any, bwd: Any) -> Any:
    made = func.custom_vjp(lambda x: x)
    made.defvjp(fwd, bwd)
    return lambda x: func.grad(lambda x: made(x).sum())(x)


def tangent(jvp: Any) -> Any:
    made = func.custom_jvp(lambda x: x)
    made.defjvp(jvp)
    return lambda x: func.grad(lambda x: made(x).sum())(x)


def same(x: Any) -> Any:
    return x, None


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda: func.custom_vjp(3), TypeError, ("func.custom_vjp", "got 3")),  # type: ignore[arg-type]
        (lambda: func.custom_vjp(same, "x"), TypeError, ("nondiff_argnums=(0,)",)),  # type: ignore[arg-type]
        (lambda: func.custom_vjp(same)(X), TypeError, ("no rule yet", "f.defvjp(fwd, bwd)")),
        (lambda: func.custom_jvp(same)(X), TypeError, ("no rule yet", "f.defjvp(jvp)")),
        (lambda: func.custom_vjp(same).defvjp(1, same), TypeError, ("fwd must be a function",)),  # type: ignore[arg-type]
        (lambda: func.custom_jvp(same).defjvp(1), TypeError, ("jvp must be a function",)),  # type: ignore[arg-type]
        (lambda: sine(3, X), TypeError, ("argument 0 is 3", "torch.tensor(1.0)")),
        (
            lambda: sine(nn.Linear(2, 2), X),
            UninitializedError,
            ("argument 0: Linear.weight", "initialize"),
        ),
        (lambda: called_of(1)(2), ValueError, ("nondiff_argnums names argument 3",)),
        (lambda: rule(lambda x: x, same)(X), TypeError, ("fwd returns a pair", "return out, None")),
        (
            lambda: rule(same, lambda _, g: g)(X),
            TypeError,
            ("bwd returns a tuple", "return (cotangent,)"),
        ),
        (
            lambda: rule(same, lambda _, g: (g.sum(),))(X),
            ValueError,
            ("the cotangent of argument 0 has shape (3,) and was given ()", "same shape"),
        ),
        (
            lambda: rule(same, lambda _, g: ({"a": g},))(X),
            ValueError,
            ("the cotangent of argument 0", "given dict"),
        ),
        (
            lambda: func.jvp(loss_of_sine, (X,), (X,)),
            NotImplementedError,
            ("func.custom_vjp(sine)", "func.custom_jvp"),
        ),
        (lambda: tangent(lambda p, t: p[0])(X), TypeError, ("jvp returns a pair",)),
        (
            lambda: tangent(lambda p, t: (p[0], t[0].sum()))(X),
            ValueError,
            ("the tangent of the result has shape ()",),
        ),
    ],
)
def test_what_is_refused_says_what_to_write(call: Any, error: Any, parts: tuple[str, ...]) -> None:
    with says(error, *parts):
        call()


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_forward_mode_is_refused() -> None:
    with says(NotImplementedError, "func.custom_jvp(double)", "no forward mode in compiled code"):
        parallax.compile(lambda x: func.jvp(loss_of_double, (x,), (x,)), backend="aot_eager")(X)


def test_a_module_that_is_kept_is_the_argument_unless_its_tensors_came_back_changed() -> None:
    """Saved tensors may be packed: what the rule gets is what was unpacked."""
    seen: list[Any] = []

    @func.custom_vjp
    def product(layer: nn.Linear, x: Tensor) -> Tensor:
        return x @ layer.weight.t()

    def pull(kept: Any, grad: Tensor) -> Any:
        layer, x = kept
        seen.append(layer)
        return layer.replace(weight=grad.t() @ x), grad @ layer.weight

    product.defvjp(lambda layer, x: (x @ layer.weight.t(), (layer, x)), pull)
    layer = nn.Linear(3, 2, bias=False).initialize(0).reset(0)
    x = torch.ones(4, 3, requires_grad=True)
    (plain,) = torch.autograd.grad(product(layer, x).sum(), [x])
    assert seen[0] is layer
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach() * 2, lambda t: t):
        (doubled,) = torch.autograd.grad(product(layer, x).sum(), [x])
    assert seen[1] is not layer and torch.equal(seen[1].weight, 2 * layer.weight)
    torch.testing.assert_close(doubled, 2 * plain)
    torch.testing.assert_close(plain, layer.weight.sum(0).expand(4, 3))


def sines(y: Tensor) -> Tensor:
    return (y.sin() * y.cumsum(0)).sum()


@pytest.mark.parametrize(
    "slope",
    [lambda y: func.vjp(sines, y)[1](torch.ones((), dtype=y.dtype))[0],
     lambda y: func.grad(sines)(y),
     lambda y: torch.func.grad(sines)(y),
     lambda y: func.jacfwd(sines)(y)],
    ids=["vjp", "grad", "torch.func.grad", "jacfwd"],
)  # fmt: skip
def test_a_rule_that_takes_derivatives_itself(slope: Callable[[Tensor], Tensor]) -> None:
    """In other transforms, too: what was kept for it has wrappers of one that has ended."""
    ruled = func.custom_vjp(sines)
    ruled.defvjp(lambda y: (sines(y), (y, y.cos())), lambda kept, g: (g * slope(kept[0]),))
    rows = torch.tensor([[0.3, -1.0, 0.7], [1.2, 0.1, -0.4]], dtype=torch.float64)
    slopes = torch.stack([torch.func.grad(sines)(row) for row in rows])
    curves = torch.stack([torch.func.hessian(sines)(row) for row in rows])
    torch.testing.assert_close(func.vmap(func.grad(ruled))(rows), slopes)
    torch.testing.assert_close(func.grad(lambda x: func.vmap(ruled)(x).sum())(rows), slopes)
    torch.testing.assert_close(func.jacrev(func.grad(ruled))(rows[0]), curves[0])
    torch.testing.assert_close(func.vmap(func.jacrev(func.grad(ruled)))(rows), curves)
    mapped = func.grad(lambda x: func.vmap(func.grad(ruled))(x).sum())(rows)
    torch.testing.assert_close(mapped, curves.sum(-1))


# Rules that call their own function, as JAX's do. The factor of 2 shows whose derivative is taken.


@func.custom_vjp
def grown(x: Tensor) -> Tensor:
    return x.exp()


grown.defvjp(lambda x: (grown(x), x), lambda x, cotangent: (2 * cotangent * grown(x),))


@func.custom_jvp
def swollen(x: Tensor) -> Tensor:
    return x.exp()


swollen.defjvp(lambda primals, tangents: (swollen(*primals), 2 * tangents[0] * swollen(*primals)))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("function", [grown, swollen], ids=["vjp", "jvp"])
def test_a_rule_may_call_its_own_function(function: Any) -> None:
    at = torch.tensor(0.3, dtype=torch.float64)
    first = func.grad(function)
    twice = func.grad(first)

    def all_of_them(x: Tensor) -> tuple[Tensor, ...]:
        return first(x), twice(x), func.vmap(first)(x[None])[0]

    expected = (2 * at.exp(), 4 * at.exp(), 2 * at.exp())
    torch.testing.assert_close(all_of_them(at), expected)
    torch.testing.assert_close(torch.func.grad(torch.func.grad(function))(at), 4 * at.exp())
    torch.testing.assert_close(parallax.compile(all_of_them, backend="eager")(at), expected)
    if function is swollen:
        along = func.jvp(function, (at,), (torch.ones_like(at),))[1]
        torch.testing.assert_close(along, 2 * at.exp())
