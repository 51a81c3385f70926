"""``func.jet``, ``func.laplacian``, ``func.divergence``."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallax import Buffer, Module, Parameter, bridge, effects, func, nn, random, tree
from parallax.func.jets import Expansion
from tests.compiling import eager_and_aot, make_compiled

X = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
POINTS = torch.tensor([[0.1, 0.9], [0.4, -0.3], [-1.2, 0.5]], dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)


def mlp(activation: Any = torch.tanh) -> nn.MLP:
    return tree.to(nn.MLP((2, 5, 5, 1), activation).initialize(0), dtype=torch.float64)


def u(net: Any, x: Tensor) -> Tensor:
    out: Tensor = net(x)
    return out.squeeze(0)


def hessian_trace(net: Any, x: Tensor) -> Tensor:
    found: Tensor = torch.func.jacrev(torch.func.jacrev(lambda x: u(net, x)))(x)
    return found.trace()


def traces(net: Any) -> Tensor:
    return torch.stack([hessian_trace(net, x) for x in POINTS])


laplacians = func.vmap(func.laplacian(u, argnums=1), in_dims=(None, 0))


def residual(net: Any) -> Tensor:
    found: Tensor = laplacians(net, POINTS)
    return (found - 1).square().mean()


def straight(net: Any) -> Tensor:
    """The same by derivatives of derivatives."""
    return (traces(net) - 1).square().mean()


def equal(ours: Any, theirs: Any) -> None:
    for a, b in zip(tree.leaves(ours), tree.leaves(theirs), strict=True):
        torch.testing.assert_close(a, b)


# -- closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_jets_of_polynomials_and_sines(order: int) -> None:
    t = torch.tensor(0.7, dtype=torch.float64)
    series = (ONE, *[None] * (order - 1))
    value, found = func.jet(lambda t: 2 * t**5 - t**3 + 4, (t,), (series,))
    x = 0.7
    powers = [10 * x**4 - 3 * x**2, 40 * x**3 - 6 * x, 120 * x**2 - 6, 240 * x, 240.0]
    assert value == pytest.approx(2 * x**5 - x**3 + 4)
    assert torch.stack(found).tolist() == pytest.approx(powers[:order])
    _, found = func.jet(lambda t: (3 * t).sin(), (t,), (series,))
    sines = [3**k * math.sin(3 * x + k * math.pi / 2) for k in range(1, order + 1)]
    assert torch.stack(found).tolist() == pytest.approx(sines)


def test_a_jet_along_a_curve() -> None:
    """The formula of Faa di Bruno, by hand."""
    x, a, b, c = (torch.tensor(v, dtype=torch.float64) for v in (0.4, 2.0, -3.0, 0.5))
    _, (one, two, three) = func.jet(torch.exp, (x,), ((a, b, c),))
    torch.testing.assert_close(one, x.exp() * a)
    torch.testing.assert_close(two, x.exp() * (b + a * a))
    torch.testing.assert_close(three, x.exp() * (c + 3 * a * b + a**3))


def test_laplacians_in_closed_form() -> None:
    def bell(x: Tensor) -> Tensor:
        return torch.exp(-x.square().sum())

    squared = X.square().sum()
    torch.testing.assert_close(func.laplacian(bell)(X), (4 * squared - 6) * bell(X))
    # Harmonic functions.
    torch.testing.assert_close(func.laplacian(lambda x: 1 / x.square().sum().sqrt())(X), 0 * ONE)
    torch.testing.assert_close(func.laplacian(lambda x: x[0] * x[1] - x[2])(X), 0 * ONE)
    found = func.laplacian(lambda x: {"a": x.sin(), "b": (x[0] ** 4 * x[1], x.sum())})(X)
    torch.testing.assert_close(found["a"], -X.sin())
    torch.testing.assert_close(found["b"], (12 * X[0] ** 2 * X[1], 0 * ONE))


def test_laplacian_of_laplacian() -> None:
    twice = func.laplacian(func.laplacian(lambda x: x.square().sum() ** 2 + x.sin().prod()))
    # Of |x|^4 in 3 dimensions it is 120; of a product of sines 9 times the product.
    torch.testing.assert_close(twice(X), 120 + 9 * X.sin().prod())
    inner = func.laplacian(lambda x, y: (x * y).sin().sum(), argnums=1)
    found = func.laplacian(inner)(X, 2 * X)
    y = 2 * X
    theirs = torch.func.hessian(lambda x: -(x * x * (x * y).sin()).sum())(X).trace()
    torch.testing.assert_close(found, theirs)


def test_divergences() -> None:
    torch.testing.assert_close(func.divergence(lambda x: x * x.sum())(X), 4 * X.sum())
    field = func.divergence(lambda xs: {"a": xs["b"].flip(0), "b": xs["a"] * xs["b"]})
    torch.testing.assert_close(field({"a": X, "b": X.cos()}), X.sum())
    torch.testing.assert_close(func.divergence(lambda x: torch.ones_like(x))(X), 0 * ONE)
    gradient = func.divergence(func.grad(lambda x: x.square().sum() ** 2))
    torch.testing.assert_close(gradient(X), 20 * X.square().sum())


def test_several_arguments() -> None:
    def f(a: Tensor, b: Tensor) -> Tensor:
        return (a**3).sum() * b.sin()

    found = func.laplacian(f, argnums=(0, 1))(X, ONE)
    torch.testing.assert_close(found, (6 * X.sum() - (X**3).sum()) * ONE.sin())
    torch.testing.assert_close(func.laplacian(f, argnums=-1)(X, ONE), -f(X, ONE))


# -- modules ------------------------------------------------------------------------------------


def test_with_respect_to_a_module() -> None:
    net = tree.to(nn.MLP((2, 3, 1), torch.tanh).initialize(0), dtype=torch.float64)
    frozen = tree.select(net, "layers.0").freeze()
    for module in (net, frozen):
        theirs = func.hessian_matrix(lambda net: u(net, POINTS[0]))(module).trace()
        torch.testing.assert_close(func.laplacian(u)(module, POINTS[0]), theirs)
    direction = tree.map(torch.cos, net)
    _, (one, two) = func.jet(lambda net: net(POINTS), (net,), ((direction, None),))
    _, slope = func.jvp(lambda net: net(POINTS), (net,), (direction,))
    torch.testing.assert_close(one, slope)
    step = 1e-4
    ahead, behind = [
        net.update(lambda p, d, s=s: p + s * d, direction)(POINTS) for s in (step, -step)
    ]
    torch.testing.assert_close(
        two, (ahead - 2 * net(POINTS) + behind) / step**2, rtol=1e-5, atol=1e-6
    )


def test_a_module_as_result() -> None:
    net = mlp()

    def moved(t: Tensor) -> Any:
        return net.update(lambda p: p * t**2)

    value, (one, two) = func.jet(moved, (3 * ONE,), ((ONE, None),))
    equal(value, net.update(lambda p: 9 * p))
    equal(one, net.update(lambda p: 6 * p))
    equal(two, net.update(lambda p: 2 * p))


ACTIVATIONS = [
    nn.CELU(), nn.ELU(), nn.GELU(), nn.GELU("tanh"), nn.Hardshrink(), nn.Hardsigmoid(),
    nn.Hardswish(), nn.Hardtanh(), nn.LeakyReLU(), nn.LogSigmoid(), nn.LogSoftmax(-1), nn.Mish(),
    nn.ReLU(), nn.ReLU6(), nn.SELU(), nn.SiLU(), nn.Sigmoid(), nn.Softmax(-1), nn.Softmin(-1),
    nn.Softplus(), nn.Softshrink(), nn.Softsign(), nn.Tanh(), nn.Tanhshrink(), nn.Threshold(0.1, 2),
    nn.PReLU(), torch.sin, torch.sigmoid,
]  # fmt: skip


def named(activation: Any) -> str:
    return repr(activation) if isinstance(activation, Module) else str(activation.__name__)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=named)
def test_every_activation(activation: Any, refused: list[str]) -> None:
    net = mlp(activation)
    torch.testing.assert_close(laplacians(net, POINTS), traces(net))
    equal(func.grad(residual)(net), func.grad(straight)(net))
    assert not refused or isinstance(activation, nn.Hardsigmoid)  # which asks for requires_grad


@pytest.mark.parametrize("layer", [
    nn.LayerNorm(5), nn.RMSNorm(5, eps=1e-3), nn.Dropout(0.5),
    nn.Unflatten(0, (5, 1)), nn.Identity(),
], ids=repr)  # fmt: skip
def test_layers(layer: Any) -> None:
    between = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), layer, nn.Linear(5, 1))
    if isinstance(layer, nn.Unflatten):
        between = nn.Sequential(nn.Linear(2, 5), layer, nn.Flatten(0), nn.Linear(5, 1), nn.Tanh())
    net = tree.to(between.initialize(0), dtype=torch.float64).eval()
    expected = [torch.func.hessian(net)(x).diagonal(dim1=-2, dim2=-1).sum(-1) for x in POINTS]
    if isinstance(layer, nn.LayerNorm):  # whose second forward derivative is wrong in torch
        expected = [func.hessian(net)(x).diagonal(dim1=-2, dim2=-1).sum(-1) for x in POINTS]
    found = func.vmap(func.laplacian(net))(POINTS)
    torch.testing.assert_close(found, torch.stack(expected), check_dtype=False)


def test_lifted_modules() -> None:
    theirs = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    net = bridge.lift(theirs.double())
    torch.testing.assert_close(laplacians(net, POINTS), traces(net))
    equal(func.grad(residual)(net), func.grad(straight)(net))


def test_dropout_draws_the_same_numbers() -> None:
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Dropout(), nn.Linear(5, 1))
    net = tree.to(net.initialize(0), dtype=torch.float64).train(random.key(3))
    found = func.laplacian(net)(POINTS[0])
    with random.reuse():
        expected = func.hessian(net)(POINTS[0])
    torch.testing.assert_close(found, expected.diagonal(dim1=-2, dim2=-1).sum(-1))


class Counting(Module):
    weight: Parameter
    last: Buffer

    def forward(self, x: Tensor) -> Tensor:
        self.emit(last=x * 2)
        return (self.weight * x).sin()


@pytest.mark.parametrize("known", [True, False])
def test_effects_come_out_plain(known: bool) -> None:
    net = Counting(X.cos(), X)

    def f(net: Counting, x: Tensor) -> Tensor:
        out: Tensor = net(x)
        return out.sum() if known else F.smooth_l1_loss(out, torch.zeros_like(out), beta=9.0)

    run = effects.collect(lambda net, x: func.laplacian(f, argnums=1)(net, x))
    found, after = run(net, X)
    assert type(after.last) is Tensor and after.last.equal(2 * X)
    inner = effects.collect(lambda net: func.hessian(f, argnums=1)(net, X).trace())
    torch.testing.assert_close(found, inner(net)[0])


# -- the other way ------------------------------------------------------------------------------


class Straight(torch.autograd.Function):
    """Has a derivative that is not that of its forward."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        found: Tensor = grads[0] * x * x
        return found


straightly: Any = Straight.apply


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[0] = 2.0
    y += x
    return y.pow(3).sum()


def into_another(x: Tensor) -> Tensor:
    y = torch.zeros(3, dtype=x.dtype)
    y[1:] = x[1:] ** 2
    return (y * x).sum()


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * x
    out: Tensor = (x.square() * y).sum()
    return out


OTHERS: dict[str, Any] = {
    "no rule": lambda x: torch.linalg.norm(x) ** 3,
    "huber": lambda x: F.huber_loss(x**3, torch.zeros_like(x)),
    "autograd function": lambda x: straightly(x * x).sum(),
    "in place": in_place,
    "in place, activation": lambda x: F.silu(x * x, inplace=True).sum(),
    "into another tensor": into_another,
    "without grad": without_grad,
    "detached": lambda x: (x.detach() * x**2).sum(),
    "torch.func inside": lambda x: torch.func.grad(lambda y: (y**3 * x).sum())(x * x).sum(),
    "grad inside": lambda x: func.grad(lambda y: (y**3 * x).sum())(x * x).sum(),
    "vmap inside": lambda x: func.vmap(lambda y: (y * x).sin())(torch.stack([x, x * x])).sum(),
    "prod": lambda x: x.prod() ** 2,
    "operators": lambda x: torch.ops.aten.sin(x).sum() * x.sum(),
    "caught": lambda x: caught(x),
}  # fmt: skip


def caught(x: Tensor) -> Tensor:
    try:
        return x.prod()
    except Exception:  # as somebody may write
        return x.sum()


@pytest.mark.parametrize("name", OTHERS)
def test_without_a_rule_the_numbers_are_the_same(name: str) -> None:
    function = OTHERS[name]
    expected = torch.func.jacrev(torch.func.jacrev(function))(X).trace()
    torch.testing.assert_close(func.laplacian(function)(X), expected)
    with torch.no_grad():
        torch.testing.assert_close(func.laplacian(function)(X), expected)
    if name not in ("detached", "without grad", "caught", "autograd function"):
        step = 1e-4
        rows = torch.eye(3, dtype=torch.float64) * step
        finite = sum(function(X + r) - 2 * function(X) + function(X - r) for r in rows) / step**2
        torch.testing.assert_close(expected, finite, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["no rule", "in place", "grad inside"])
def test_jets_and_traces_without_a_rule(name: str) -> None:
    function = OTHERS[name]

    def curve(t: Tensor) -> Tensor:
        out: Tensor = function(X + t * X.cos() + t**2 / 2 * X.sin())
        return out

    slopes = [curve]
    for _ in range(3):
        slopes.append(torch.func.grad(slopes[-1]))
    value, found = func.jet(function, (X,), ((X.cos(), X.sin(), None),))
    for ours, theirs in zip([value, *found], slopes, strict=True):
        torch.testing.assert_close(ours, theirs(0 * ONE))
    field = func.divergence(lambda x: function(x) * x)
    expected = torch.func.jacrev(lambda x: function(x) * x)(X).trace()
    torch.testing.assert_close(field(X), expected)


# -- nested, mapped, compiled -------------------------------------------------------------------


def test_derivatives_by_parameters_and_points() -> None:
    net = mlp()
    torch.testing.assert_close(residual(net), straight(net))
    equal(func.grad(residual)(net), func.grad(straight)(net))
    direction = tree.map(torch.cos, net)
    ours = func.hvp(residual, (net,), (direction,))[1]
    equal(ours, func.hvp(straight, (net,), (direction,))[1])
    slope = func.grad(lambda x: func.laplacian(u, argnums=1)(net, x))(POINTS[0])
    torch.testing.assert_close(slope, torch.func.grad(lambda x: hessian_trace(net, x))(POINTS[0]))
    along = func.jvp(residual, (net,), (direction,))[1]
    torch.testing.assert_close(along, tree.vdot(func.grad(straight)(net), direction))


def test_outer_backward_reaches_the_parameters() -> None:
    net = mlp().reset(0)
    residual(net).backward()
    theirs = tree.named_leaves(func.grad(straight)(mlp()))
    for path, value in tree.named_leaves(net.grad()).items():
        torch.testing.assert_close(value, theirs[path])
    with torch.no_grad():
        assert not residual(net).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(residual(net), straight(net))


def test_nothing_is_written() -> None:
    net, x = mlp(), POINTS[0].clone()
    func.laplacian(u, argnums=1)(net, x)
    assert x.equal(POINTS[0]) and not x.requires_grad and x._version == 0
    equal(net, mlp())


def step(net: Any, x: Tensor) -> Any:
    grads, value = func.grad_and_value(residual)(net)
    around = func.laplacian(u, argnums=1)(net, x)
    jets = func.jet(lambda x: (u(net, x), F.softplus(x)), (x,), ((x.cos(), None, None),))
    return grads, value, around, jets, func.divergence(lambda x: x * u(net, x))(x)


def test_compiled_equals_eager(fresh_dynamo: None) -> None:
    net, x = mlp(), POINTS[1]
    compiled = torch.compile(step, backend=eager_and_aot, fullgraph=True)
    equal(compiled(net, x), step(net, x))


NORM = tree.to(nn.LayerNorm(2).initialize(0), dtype=torch.float64)


def unknown(net: Any, x: Tensor) -> Any:
    def normed(x: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.norm(NORM(x * x + x[0])[0] + 2)
        return norm * x.sin().sum()

    def f(x: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.norm(net(x))
        return norm * x.prod()

    slope = func.grad(func.laplacian(normed))(x)  # a kernel's third derivative would be wrong
    return func.laplacian(f)(x), func.jet(f, (x,), ((x.cos(), None),)), slope


def test_compiled_without_a_rule(fresh_dynamo: None) -> None:
    net, x = mlp(), POINTS[1]
    compiled = make_compiled(unknown, backend="aot_eager")
    equal(compiled(net, x), unknown(net, x))


@pytest.mark.slow
def test_compiled_on_the_default_backend(fresh_dynamo: None) -> None:
    net = nn.Sequential(nn.Linear(2, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 1)).initialize(0)
    net = tree.to(net, dtype=torch.float64)
    grads, value = make_compiled(func.grad_and_value(residual))(net)
    torch.testing.assert_close(value, residual(net))
    equal(grads, func.grad(residual)(net))


def test_effects_and_writes_in_compiled_code(fresh_dynamo: None) -> None:
    def run(net: Counting, x: Tensor) -> Any:
        around = func.laplacian(lambda net, x: net(x).sum(), argnums=1)
        return effects.collect(around)(net, x)

    net = Counting(X.cos(), X)
    found, after = make_compiled(run, backend="aot_eager")(net, X)
    torch.testing.assert_close(found, run(net, X)[0])
    assert after.last.equal(2 * X)


# -- bad input ----------------------------------------------------------------------------------


def test_bad_input() -> None:
    f, t = torch.sin, ONE
    with pytest.raises(TypeError, match=r"func.jet\(sin\): primals must be a tuple"):
        func.jet(f, t, ((t,),))  # type: ignore[call-overload]  # what is tested
    with pytest.raises(TypeError, match=r"series must be a tuple with the derivatives of each of"):
        func.jet(f, (t,), t)  # type: ignore[call-overload]  # what is tested
    with pytest.raises(TypeError, match=r"the 1 primals, got 2. Write \(\(v, None\),\)"):
        func.jet(f, (t,), ((t,), (t,)))
    with pytest.raises(TypeError, match=r"series\[0\] must be a tuple of derivatives"):
        func.jet(f, (t,), (t,))  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match=r"one at least, got \[0\]. Fill up with None"):
        func.jet(f, (t,), ((),))
    with pytest.raises(ValueError, match=r"equally many derivatives, one at least, got \[1, 2\]"):
        func.jet(torch.add, (t, t), ((t,), (t, None)))
    with pytest.raises(
        ValueError, match=r"the series: the tensor has shape \(\) and was given \(3,"
    ):
        func.jet(f, (t,), ((X,),))
    with pytest.raises(ValueError, match=r"the series: the tensor has dtype torch.float64 and was"):
        func.jet(f, (t,), ((t.float(),),))
    with pytest.raises(TypeError, match=r"func.laplacian\(sin\), argument 0 is complex"):
        func.laplacian(f)(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"argument 0: a is complex, and only real tensors"):
        func.divergence(lambda x: x)({"a": torch.ones(2, dtype=torch.complex64)})
    with pytest.raises(ValueError, match=r"\(3,\), got \(\). For a scalar write func.laplacian"):
        func.divergence(torch.sum)(X)
    with pytest.raises(TypeError, match=r"returned nothing\. End it with: return"):
        func.laplacian(lambda x: None)(X)
    with pytest.raises(TypeError, match="argnums must be an int or a tuple"):
        func.laplacian(f, argnums="x")(X)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        func.laplacian(lambda x: F.linear(x, POINTS))(X)


def test_a_tensor_that_leaves_the_function() -> None:
    kept: list[Tensor] = []

    def f(x: Tensor) -> Tensor:
        kept.append(x * x)
        return kept[0].sum()

    func.laplacian(f)(X)
    with pytest.raises(RuntimeError, match=r"was used after the call\. Return it"):
        kept[0].sum()
    assert Expansion({}, 1).refused is None


@pytest.mark.parametrize("values", [torch.linalg.eigvalsh, lambda a: torch.linalg.eigh(a)[0]])
def test_a_jet_of_the_eigenvalues_of_complex_matrices(values: Any) -> None:
    """torch has no second derivative by the cotangent of their gradient."""
    x = torch.tensor([[0.5, -1.0, 0.3], [0.2, 2.0, -0.7], [1.1, 0.4, -1.5]], dtype=torch.float64)

    def found(x: Tensor) -> Tensor:
        a = torch.complex(x, x.mT.sin())
        return values(a + a.mH)  # type: ignore[no-any-return]  # a tensor

    _, (one, two) = func.jet(found, (x,), ((x.cos(), None),))
    h, at = 1e-3, [found(x + k * 1e-3 * x.cos()) for k in (-2, -1, 0, 1, 2)]
    torch.testing.assert_close(one, (at[0] - 8 * at[1] + 8 * at[3] - at[4]) / (12 * h))
    second = (-at[0] + 16 * at[1] - 30 * at[2] + 16 * at[3] - at[4]) / (12 * h**2)
    torch.testing.assert_close(two, second, rtol=1e-6, atol=1e-6)
