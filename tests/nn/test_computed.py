"""Parameters computed by any function, orthogonal matrices and masks are torch's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.nn.utils import parametrizations, parametrize, prune

from parallax import Module, Parameter, bridge, func, nn, optim, tree
from tests.nn.test_every_layer import floats

X = floats(5, 3).double()


def symmetric(w: Tensor) -> Tensor:
    return w.triu() + w.triu(1).mT


class Symmetric(torch_nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return symmetric(w)


class Scaled(Module):
    factor: Parameter

    def __init__(self) -> None:
        super().__init__()
        self.factor = Parameter((1,), torch_nn.init.ones_)

    def forward(self, w: Tensor) -> Tensor:
        return w * self.factor


def assert_as_torchs(ours: Module, theirs: torch_nn.Module, x: Tensor) -> Any:
    """Names, outputs and gradients, from the values of torch's."""
    assert bridge.state_dict(ours).keys() == theirs.state_dict().keys()
    layer: Any = bridge.load_state_dict(ours, theirs.state_dict())
    torch.testing.assert_close(layer(x), theirs(x))
    theirs(x).sin().sum().backward()
    grads = bridge.state_dict(func.grad(lambda layer: layer(x).sin().sum())(layer))
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)
    return layer


def test_any_function() -> None:
    theirs = torch_nn.Linear(3, 3, dtype=torch.float64)
    parametrize.register_parametrization(theirs, "weight", Symmetric())
    ours = nn.Parametrized(nn.Linear(3, 3, dtype=torch.float64), symmetric).initialize(0)
    layer = assert_as_torchs(ours, theirs, X)
    parametrize.remove_parametrizations(theirs, "weight")
    assert torch.equal(layer.merged().weight, theirs.weight)
    assert type(layer.merged()) is nn.Linear
    trained = nn.Parametrized(nn.Linear(3, 3), Scaled()).initialize(0)
    assert "parametrizations.weight.0.factor" in bridge.state_dict(trained)
    grads: Any = func.grad(lambda layer: layer(X.float()).sum())(trained)
    assert grads.function.factor.shape == (1,)


def test_surgery_around_any_layer_of_a_model() -> None:
    model = nn.MLP([3, 3, 3, 3]).initialize(0)
    made = tree.select(model, "layers.1").apply(lambda layer: nn.Parametrized(layer, symmetric))
    made = tree.select(made, "layers.2").apply(lambda layer: nn.Orthogonal(layer))
    wrapped: Any = made.layers[1]
    assert torch.equal(wrapped.weight, wrapped.weight.mT)
    back = tree.select(made, nn.Parametrized).apply(lambda layer: layer.merged())
    assert torch.equal(back.layers[1].weight, wrapped.weight)
    torch.testing.assert_close(made(X.float()), back(X.float()))
    opt = optim.SGD(lr=0.1)
    grads = func.grad(lambda model: model(X.float()).sum())(made)
    stepped: Any = opt.step(made, grads, opt.init(made))[0]
    assert torch.equal(stepped.layers[1].weight, stepped.layers[1].weight.mT)
    # A parameter deep in a layer, by its name there.
    deep = nn.Parametrized(nn.MLP([3, 3, 2]), symmetric, "layers.0.weight").initialize(0)
    assert torch.equal(deep.weight, deep.weight.mT) and deep(X.float()).shape == (5, 2)


MAPS = ["matrix_exp", "cayley", "householder"]


@pytest.mark.parametrize("trivial", [True, False])
@pytest.mark.parametrize("how", MAPS)
@pytest.mark.parametrize(("one", "two"), [(3, 3), (3, 5), (3, 2)], ids=["square", "tall", "wide"])
def test_orthogonal(one: int, two: int, how: str, trivial: bool) -> None:
    torch.manual_seed(0)
    plain = torch_nn.Linear(one, two, dtype=torch.float64)
    theirs = torch_nn.Linear(one, two, dtype=torch.float64)
    theirs.load_state_dict(plain.state_dict())
    parametrizations.orthogonal(theirs, orthogonal_map=how, use_trivialization=trivial)
    declared = nn.Orthogonal(
        nn.Linear(one, two, dtype=torch.float64), "weight", how, use_trivialization=trivial
    )
    # From values: the very start of torch's. From a declaration: drawn, and orthogonal.
    given = bridge.load_state_dict(nn.Linear(one, two, dtype=torch.float64), plain.state_dict())
    made: Any = nn.Orthogonal(given, "weight", how, use_trivialization=trivial)
    if trivial or how == "householder":
        torch.testing.assert_close(made.weight, theirs.weight)
    for layer in (made, declared.initialize(0)):
        w = layer.weight if two >= one else layer.weight.mT
        torch.testing.assert_close(w.mT @ w, torch.eye(min(one, two), dtype=torch.float64))
    moved = dict(theirs.named_parameters())["parametrizations.weight.original"]
    with torch.no_grad():
        moved.add_(floats(two, one).double().tril(-1) * 0.3)
    assert_as_torchs(declared.initialize(0), theirs, X)


def test_orthogonal_matrices_stay_so_under_weight_decay() -> None:
    """Torch reads the signs of reflections as ints, which makes zeros of 0.999."""
    layer = nn.Orthogonal(nn.Linear(3, 5)).initialize(0)
    opt = optim.SGD(lr=0.1, weight_decay=0.1)
    grads = func.grad(lambda layer: layer(X.float()).sum())(layer)
    stepped = opt.step(layer, grads, opt.init(layer))[0]
    torch.testing.assert_close(stepped.weight.mT @ stepped.weight, torch.eye(3))


def test_batches_of_orthogonal_matrices_and_random_state() -> None:
    state = torch.random.get_rng_state()
    layer = nn.Orthogonal(nn.Conv1d(3, 4, 3)).initialize(0)
    w = layer.weight
    torch.testing.assert_close(w.mT @ w, torch.eye(3).expand(4, 3, 3))
    again = nn.Orthogonal(nn.Conv1d(3, 4, 3).initialize(0))
    assert tree.equal(again, nn.Orthogonal(nn.Conv1d(3, 4, 3).initialize(0)))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_pruning_by_a_mask() -> None:
    theirs = torch_nn.Linear(3, 4, dtype=torch.float64)
    weight = theirs.weight.detach().clone()
    prune.l1_unstructured(theirs, "weight", amount=5)
    keep = weight.abs() > weight.abs().flatten().kthvalue(5).values
    ours = nn.Masked(nn.Linear(3, 4, dtype=torch.float64), keep).initialize(0)
    layer = assert_as_torchs(ours, theirs, X)
    assert torch.equal(layer.mask.bool(), keep)
    prune.remove(theirs, "weight")
    assert torch.equal(layer.merged().weight, theirs.weight)
    grads: Any = func.grad(lambda layer: layer(X).sum())(layer)
    assert (grads.layer.weight[~keep] == 0).all() and grads.mask is None


CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: nn.Parametrized(nn.Linear(3, 3), 3), TypeError, "Parametrized(function=): expected a"),  # type: ignore[arg-type]  # wrong
    (lambda: nn.Parametrized(nn.Linear(3, 3), "weight"), TypeError, "(layer, torch.exp)"),  # type: ignore[arg-type]  # a name
    (lambda: nn.Parametrized(nn.Linear(3, 3), Symmetric()), TypeError, "or bridge.lift(module)"),
    (lambda: nn.Parametrized(nn.Linear(3, 3), symmetric, "w"), ValueError, "Linear has no param"),
    (lambda: nn.Masked(nn.Linear(3, 3), torch.ones(3)), ValueError, "expected shape (3, 3), as"),
    (lambda: nn.Masked(nn.Linear(3, 3), None), TypeError, "Masked(mask=): expected a tensor of"),  # type: ignore[arg-type]  # wrong
    (lambda: nn.Orthogonal(nn.LayerNorm(3)), ValueError, "'weight' has shape (3,). Give the name"),
    (lambda: nn.Orthogonal(nn.Linear(3, 3), "weight", "qr"), ValueError, "expected one of 'matrix"),
]


@pytest.mark.parametrize(("call", "error", "text"), CASES, ids=[text for _, _, text in CASES])
def test_bad_arguments(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()


def test_a_function_that_changes_the_shape() -> None:
    layer = nn.Parametrized(nn.Linear(3, 3), lambda w: w.sum()).initialize(0)
    with pytest.raises(ValueError, match=r"must return a tensor of shape \(3, 3\), as 'weight'"):
        layer(X.float())
