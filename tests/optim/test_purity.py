"""A step writes into nothing, builds no graph, and fits every kind of module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import func, optim, tree
from tests.comparing import same_leaves
from tests.corpus import MLP, MODULES, Case, example_input
from tests.optim.cases import (
    FIRST,
    Matrices,
    Options,
    Point,
    gradients,
    label,
    make,
    model_for,
    ones,
)


@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_a_step_writes_into_nothing_it_was_given(name: str, options: Options) -> None:
    model, opt = model_for(name), make(name, options)
    first, second = gradients(model, 2)
    model, state = opt.step(model, first, opt.init(model))
    given = (model, second, state)
    leaves = tree.leaves(given)
    before, versions = [leaf.clone() for leaf in leaves], [leaf._version for leaf in leaves]
    rng = torch.get_rng_state()
    after, next_state = opt.step(*given)
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))
    assert [leaf._version for leaf in leaves] == versions
    assert torch.equal(rng, torch.get_rng_state())
    memory = {leaf.data_ptr() for leaf in leaves}
    assert memory.isdisjoint(leaf.data_ptr() for leaf in tree.leaves((after, next_state)))
    assert same_leaves(opt.step(*given), (after, next_state))


@pytest.mark.parametrize("case", [c for c in MODULES if c.name != "empty"], ids=str)
def test_every_kind_of_module_is_stepped_as_its_flat_leaves_are(case: Case) -> None:
    model = case.make()
    opt = optim.Adam(lr=0.1, weight_decay=0.1)
    state = opt.init(model)
    grads = tree.map(torch.ones_like, tree.partition(model, "trainable")[0])
    params = [leaf.clone().requires_grad_() for leaf in tree.leaves(grads)]
    values = tree.leaves(tree.partition(model, "trainable")[0])
    for param, value in zip(params, values, strict=True):
        param.data = value.clone()
        param.grad = torch.ones_like(value)
    twin = torch.optim.Adam(params, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        model, state = opt.step(model, grads, state)
        twin.step()
    stepped = tree.leaves(tree.partition(model, "trainable")[0])
    for mine, theirs in zip(stepped, params, strict=True):
        tolerance = 1e-6 if mine.dtype.itemsize >= 4 else 1e-2
        assert torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance)


def test_no_graph_is_built_though_everything_carries_one() -> None:
    point = Point(torch.ones(2, requires_grad=True) * 2)
    grads = Point(torch.ones(2, requires_grad=True) * 3)
    for opt in (optim.SGD(), optim.SGD(momentum=0.9), optim.Adam(), optim.RMSprop()):
        with pytest.warns(UserWarning, match="records none.*differentiable=True"):
            model, state = opt.step(point, grads, opt.init(point))
        assert not any(leaf.requires_grad for leaf in tree.leaves((model, state)))


def test_the_model_keeps_its_class_mode_and_random_state() -> None:
    model = MLP().initialize(0).train(7)
    opt = optim.SGD()
    stepped, _ = opt.step(model, ones(model), opt.init(model))
    assert type(stepped) is MLP and stepped.mode == "train" and stepped.rng is not None
    assert tree.structure(stepped) == tree.structure(model)


def test_gradients_laid_out_otherwise_in_memory_are_read_rightly() -> None:
    model, opt = Matrices().initialize(0), optim.Adam(lr=0.1)
    grads = next(gradients(model, 1))
    turned = tree.map(lambda g: g.T.contiguous().T, grads)
    assert not tree.leaves(turned)[0].is_contiguous()
    for other in (model, tree.map(lambda p: p.T.contiguous().T, model)):
        expected = opt.step(model, grads, opt.init(model))
        assert same_leaves(opt.step(other, turned, opt.init(other)), expected)
        assert same_leaves(opt.step(other, grads, opt.init(model)), expected)


def test_training_follows_torch_from_gradient_to_step() -> None:
    model = MLP().initialize(0)
    twin = next(case for case in MODULES if case.name == "mlp").twin(model)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.05, foreach=False)
    opt = optim.AdamW(lr=0.05, foreach=False)
    state, x = opt.init(model), example_input()

    def loss(net: Any, x: Tensor) -> Any:
        return net(x).square().mean()

    for _ in range(20):
        grads = func.grad(loss)(model, x)
        model, state = opt.step(model, grads, state)
        theirs.zero_grad()
        loss(twin, x).backward()
        theirs.step()
    assert torch.allclose(model(x), twin(x), rtol=1e-5)
