"""Gradients through a step that was itself made of a gradient, however the tree was prepared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Buffer, Module, Parameter, func, optim, tree

X = torch.linspace(-1, 1, 8, dtype=torch.float64)
Y = torch.linspace(0, 2, 8, dtype=torch.float64)
RATE = 0.5


class Net(Module):
    weight: Parameter | None
    shift: Buffer | None


def net(weight: Any) -> Any:
    shift: Any = torch.tensor(0.1, dtype=torch.float64)
    return Net(weight, shift)


def of_sample(model: Any, x: Tensor, y: Tensor) -> Any:
    return (torch.tanh(model.weight * x) + model.shift - y) ** 2


def loss(model: Any) -> Any:
    return of_sample(model, X, Y).mean()


def gradient(model: Any) -> Any:
    return func.grad(loss)(model)


def down(p: Tensor, g: Tensor) -> Tensor:
    return p - RATE * g


def by_vjp(model: Any) -> Any:
    out, pull = func.vjp(loss, model)
    return pull(torch.ones_like(out))[0]


def by_jvp(model: Any) -> Any:
    tangent = model.replace(weight=torch.ones_like(model.weight), shift=None)
    return model.replace(weight=func.jvp(loss, (model,), (tangent,))[1], shift=None)


Step = Callable[[Any], Any]
GRADIENTS: dict[str, Step] = {
    "grad": gradient,
    "grad_and_value": lambda m: func.grad_and_value(loss)(m)[0],
    "vjp": by_vjp,
    "jvp": by_jvp,
    "jacrev": func.jacrev(loss),
    "jacfwd": func.jacfwd(loss),
    "per_sample_grad": lambda m: tree.map(
        lambda g: g.mean(0), func.per_sample_grad(of_sample)(m, X, Y)
    ),
    "ensemble_grad": lambda m: tree.unstack(func.ensemble_grad(loss)(tree.stack([m, m])))[1],
    "tie": lambda m: tree.tie(m, gradient(m)),
    "clip_grad_value": lambda m: optim.clip_grad_value(gradient(m), 10.0),
    "clip_grad_norm": lambda m: optim.clip_grad_norm(gradient(m), 0.01)[0],
}


def updating(found: Step) -> Step:
    return lambda m: m.update(down, found(m))


SGD = optim.SGD(RATE, differentiable=True)
STEPS: dict[str, Step] = {
    "update": lambda m: m.update(down, gradient(m)),
    "tree.update": lambda m: tree.update(down, m, gradient(m)),
    "twice": lambda m: STEPS["update"](STEPS["update"](m)),
    "by a constant": lambda m: STEPS["update"](m).update(down, tree.map(torch.ones_like, m)),
    "no later tree": lambda m: STEPS["update"](m).update(lambda p: p + 1),
    "hole": lambda m: STEPS["update"](m).update(down, gradient(m).replace(weight=None)),
    "map": lambda m: tree.map(down, m, gradient(m)),
    "add": lambda m: tree.add(m, gradient(m), alpha=-RATE),
    "add by a tensor": lambda m: tree.add(m, gradient(m), alpha=torch.tensor(-RATE)),
    "sub": lambda m: tree.sub(m, gradient(m), alpha=RATE),
    "scale": lambda m: tree.add(m, tree.scale(gradient(m), -RATE)),
    "lerp": lambda m: tree.lerp(m, tree.sub(m, gradient(m)), RATE),
    "ravel": lambda m: tree.ravel(m)[1](tree.ravel(m)[0] - RATE * grown(gradient(m), m)),
    "replace": lambda m: m.replace(weight=down(m.weight, gradient(m).weight)),
    "set": lambda m: tree.select(m, "weight").set(down(m.weight, gradient(m).weight)),
    "apply": lambda m: tree.select(m, "weight").apply(lambda w: down(w, gradient(m).weight)),
    "combine": lambda m: tree.combine(STEPS["replace"](m).replace(shift=None), m),
    "stack": lambda m: tree.unstack(tree.stack([STEPS["update"](m), m]))[0],
    "mode": lambda m: STEPS["update"](m).train(1).eval(),
    "step": lambda m: SGD.step(m, gradient(m), SGD.init(m))[0],
    "average": lambda m: average_of(STEPS["update"](m), STEPS["twice"](m)),
    **{name: updating(found) for name, found in GRADIENTS.items()},
}


def grown(grads: Any, model: Any) -> Tensor:
    return tree.ravel(tree.combine(grads, tree.zeros_like(model)))[0]


def average_of(*models: Any) -> Any:
    ema = optim.EMA(0.5)
    average = ema.init(models[0])
    for model in models:
        average = ema.update(average, model)
    return average.model


def outer(step: Step, model: Any) -> Any:
    """The loss after a step; the penalty keeps it connected though the step were not."""
    return loss(step(model)) + 0.01 * (model.weight**2).sum()


def numeric(step: Step, at: float, epsilon: float = 1e-6) -> Any:
    def value(weight: float) -> Any:
        return outer(step, net(torch.tensor(weight, dtype=torch.float64))).detach()

    return (value(at + epsilon) - value(at - epsilon)) / (2 * epsilon)


def backward_of_reset(function: Any, weight: Tensor) -> Any:
    model = net(weight).reset(0)
    function(model).backward()
    return model.grad().weight


def backward_of_a_leaf(function: Any, weight: Tensor) -> Any:
    leaf = weight.clone().requires_grad_()
    function(net(leaf)).backward()
    return leaf.grad


PREPARED: dict[str, Callable[[Any, Tensor], Any]] = {
    "reset": backward_of_reset,
    "leaf": backward_of_a_leaf,
    "func.grad": lambda function, weight: func.grad(function)(net(weight)).weight,
    "func.grad of reset": lambda f, weight: func.grad(f)(net(weight).reset(0)).weight.detach(),
    "torch.func.grad": lambda f, weight: torch.func.grad(lambda w: f(net(w)))(weight),
}


@pytest.mark.parametrize("prepared", PREPARED)
@pytest.mark.parametrize("name", STEPS)
def test_it_is_the_derivative_of_the_whole_computation(name: str, prepared: str) -> None:
    step, weight = STEPS[name], torch.tensor(0.7, dtype=torch.float64)
    found = PREPARED[prepared](lambda m: outer(step, m), weight)
    torch.testing.assert_close(found, numeric(step, 0.7), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("prepared", ["reset", "func.grad"])
@pytest.mark.parametrize("where", ["outer", "step"])
def test_it_is_when_compiled(where: str, prepared: str) -> None:
    def several(model: Any) -> Any:
        return STEPS["twice"](STEPS["add"](STEPS["lerp"](model)))

    weight = torch.tensor(0.7, dtype=torch.float64)
    function: Any
    if where == "outer":
        function = parallax.compile(lambda m: outer(several, m), backend="aot_eager")
    else:
        compiled = parallax.compile(several, backend="aot_eager")
        function = lambda m: outer(compiled, m)  # noqa: E731

    found = PREPARED[prepared](function, weight)
    torch.testing.assert_close(found, numeric(several, 0.7), rtol=1e-6, atol=1e-8)


def test_a_step_that_records_nothing_says_so() -> None:
    model, opt = net(torch.tensor(0.7, dtype=torch.float64)), optim.SGD(RATE)
    prepared = model.reset(0)
    with pytest.warns(UserWarning, match=r"optim\.SGD\.step: the gradients carry a graph") as said:
        opt.step(prepared, gradient(prepared), opt.init(model))
    assert said[0].filename == __file__
    opt.step(model, gradient(model.train(0)), opt.init(model))  # which carry none: no word


def test_an_average_of_prepared_models_grows_no_graph() -> None:
    model = net(torch.tensor(0.7, dtype=torch.float64))
    for leaf in tree.leaves(average_of(*[model.reset(k) for k in range(3)])):
        assert not leaf.requires_grad
