"""On the default backend the numbers are those of eager, also where inductor alone has others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._dynamo.utils import counters
from torch._inductor import config

from parallax import func, nn, optim, tree
from parallax._compat import inductor, inductor_faults
from tests.compiling import make_compiled

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def sums(p: Tensor, a: Tensor, b: Tensor, n: Tensor) -> list[Tensor]:
    tripled, third = 3 * p, p / 3
    return [
        torch.add(p, a @ b, alpha=0.1),
        torch.add(a @ b, p, alpha=-2),
        torch.add(a @ p, b @ p, alpha=0.5),
        torch.sub(p, a @ b, alpha=0.3),
        torch.rsub(p, a @ b, alpha=0.3),
        p.clone().add_(a.t() @ b, alpha=0.1),
        torch.add(n, n, alpha=3),
        torch.add(n > 3, n > 7, alpha=3),
        torch.add(n > 3, n > 7, alpha=0),
        torch.add(p.double(), n, alpha=0.1),
        torch.add(a @ b, 2.0, alpha=3.0),
        torch.sub(tripled, tripled.amax(-1, keepdim=True), alpha=2).exp(),
        torch.sub(third, third.amax(-1, keepdim=True), alpha=2).exp(),
    ]


def sequences() -> list[Tensor]:
    return [
        torch.ones(5).cumsum(0, dtype=torch.float64),
        torch.full((5,), 0.5).cumsum(0, dtype=torch.int64),
        torch.full((2, 3), 257).cumsum(1, dtype=torch.uint8),
        torch.full((4,), 2.7).cumsum(0),
    ]


def test_keyword_arguments_that_patterns_do_not_name() -> None:
    def fn(*args: Tensor) -> Any:
        return sums(*args), sequences()

    args = [*torch.randn(3, 4, 4), torch.arange(16).reshape(4, 4)]
    seen: list[int] = []

    def theirs(graph: Any) -> None:
        seen.append(len(graph.nodes))

    compiled = make_compiled(fn, options={"post_grad_custom_pre_pass": theirs})
    torch.testing.assert_close(compiled(*args), fn(*args))
    assert len(seen) == 1  # a pass of the user's own is run as well


def test_the_first_program_anybody_compiles() -> None:
    x, y = torch.randn(64, 16), torch.randn(64, 4)

    def losses(step: Any, rounds: int = 5) -> list[Tensor]:
        model: Any = nn.Linear(16, 4).initialize(0)
        state, found = optim.SGD(0.1, weight_decay=0.1).init(model), []
        for _ in range(rounds):
            model, state, loss = step(model, state)
            found.append(loss)
        return found

    def step(model: Any, state: Any) -> Any:
        grads, loss = func.grad_and_value(lambda model: F.mse_loss(model(x), y))(model)
        return *optim.SGD(0.1, weight_decay=0.1).step(model, grads, state), loss

    counters.clear()
    torch.testing.assert_close(losses(make_compiled(step)), losses(step))
    assert counters["inductor"]["fxgraph_cache_bypass"] == 0


def test_steps_of_optimizers_under_torch_compile() -> None:
    """It runs without the passes of parallax.compile: each gradient is one product of matrices."""
    optimizers: list[Any] = [
        optim.SGD(0.1),
        optim.SGD(0.1, momentum=0.9, dampening=0.3),
        optim.SGD(0.1, momentum=0.9, nesterov=True),
        optim.Adam(0.05, weight_decay=0.3),
        optim.ASGD(0.05),
    ]
    layers: list[Any] = [nn.Linear(4, 4, bias=False).initialize(0) for _ in optimizers]
    states = [opt.init(layer) for opt, layer in zip(optimizers, layers, strict=True)]
    x = torch.randn(8, 4)

    def step(layers: Any, states: Any) -> Any:
        done = []
        for opt, layer, state in zip(optimizers, layers, states, strict=True):
            grads = func.grad(lambda layer: layer(x).square().mean())(layer)
            done.append(opt.step(layer, grads, state)[0].weight)
        return done

    torch.testing.assert_close(torch.compile(step)(layers, states), step(layers, states))


def test_derivatives_of_derivatives() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).initialize(0)
    points = torch.rand(8, 2)

    def loss(net: Any, points: Tensor) -> Any:
        def value(point: Tensor) -> Any:
            return net(point)[0]

        def laplacian(point: Tensor) -> Any:
            along = [func.jvp(func.grad(value), (point,), (e,))[1] @ e for e in torch.eye(2)]
            return along[0] + along[1]

        return (func.vmap(laplacian)(points) - 1).square().mean()

    def fn(net: Any, points: Tensor) -> Any:
        point = points[0]

        def value(point: Tensor) -> Any:
            return net(point).square().sum()

        def slope(point: Tensor) -> Any:
            return func.jvp(value, (point,), (point,))[1]

        return (
            tree.leaves(func.grad(loss)(net, points)),
            func.hessian(value)(point),
            func.jacrev(func.jacrev(value))(point),
            func.jvp(slope, (point,), (point,)),
        )

    torch.testing.assert_close(make_compiled(fn)(net, points), fn(net, points))


def test_a_graph_whose_loop_calls_operators_by_number_is_refused_in_cpp() -> None:
    """As torch's C++ takes the numbers of another graph for them."""
    loop, graph = fx.Graph(), fx.Graph()
    x = loop.placeholder("x")
    loop.output(loop.call_function(torch.ops.aten._linalg_solve_ex.default, (x, x)))
    graph.get_attr("loop")
    graph.output(None)
    held = torch.nn.Module()
    held.loop = fx.GraphModule(torch.nn.Module(), loop)
    module = fx.GraphModule(held, graph)
    inductor_faults.mend(module.graph)  # in Python
    with config.patch(cpp_wrapper=True), pytest.raises(inductor.NotInCppError):
        inductor_faults.mend(module.graph)
