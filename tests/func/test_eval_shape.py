"""The shapes of results, against those of results that were computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import bridge, effects, func, nn, random, tree


def same(found: Any, computed: Any) -> None:
    """Asserts that a tree of shapes is that of a tree of values."""
    one, two = tree.flatten(found), tree.flatten(computed)
    assert one[1] == two[1]
    for mine, theirs in zip(one[0], two[0], strict=True):
        if isinstance(theirs, Tensor):
            assert type(mine) is Tensor and mine.device.type == "meta" and not mine.requires_grad
            expected = theirs.shape, theirs.dtype, theirs.stride()
            assert (mine.shape, mine.dtype, mine.stride()) == expected
        else:
            assert mine == theirs


def net() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


def call(net: Any, x: Tensor) -> Any:
    return net(x)


def loss(net: Any, x: Tensor) -> Any:
    return net(x).square().mean()


@pytest.mark.parametrize(
    "fn",
    [
        call,
        func.grad(loss),
        func.grad_and_value(loss),
        func.per_sample_grad(lambda net, x: loss(net, x[None]), in_dims=(None, 0)),
        func.vmap(lambda net, x: net(x[None])[0], in_dims=(None, 0)),
        func.hessian(lambda net, x: loss(net, x), argnums=1),
        effects.capture(call, "layers.*", inputs=True),
        lambda net, x: {"mean": x.mean(0).to(torch.float64), "more": (x.T, 3, None, x > 0)},
    ],
)
def test_shapes_are_those_of_the_results(fn: Any) -> None:
    model, x = net().initialize(0).eval(), torch.randn(3, 4)
    before = tree.map(torch.clone, model)
    same(func.eval_shape(fn, model, x), fn(model, x))
    assert tree.equal(model, before)


def test_lifted_and_lazy_modules_and_inputs_on_the_meta_device() -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    lifted, image = bridge.lift(layers), torch.randn(2, 3, 8, 8)
    found = func.eval_shape(effects.collect(call), lifted, image.to("meta"))
    same(found, effects.collect(call)(lifted, image))
    drops = bridge.lift(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout()))
    x = torch.randn(3, 4)
    same(func.eval_shape(drops.train(random.key(0)), x), torch.empty(3, 2))
    same(func.eval_shape(net().eval(), x), net().initialize(0).eval()(x))
    same(
        func.eval_shape(func.eval_shape, call, net().eval(), x), call(net().initialize(0).eval(), x)
    )


@pytest.mark.parametrize("rng", [random.key(1), 0, torch.Generator().manual_seed(0)])
def test_no_draw_is_made_and_no_key_is_used_up(rng: Any) -> None:
    model, x = net().train(rng), torch.randn(3, 4)
    state = torch.get_rng_state()
    found = func.eval_shape(effects.collect(call), model, x)
    same(found[0], torch.empty(3, 2))
    assert torch.equal(torch.get_rng_state(), state)
    same(found[0], effects.collect(call)(model.initialize(0), x)[0])  # not used up: it runs
    key = random.key(0)
    same(func.eval_shape(random.normal, key, (2, 3)), random.normal(key, (2, 3)))


def test_within_vmap_and_of_what_is_closed_over() -> None:
    model, x = net().initialize(0).eval(), torch.randn(3, 4)
    same(func.eval_shape(lambda x: model(x), x), model(x))
    shapes: list[torch.Size] = []

    def row(x: Tensor) -> Tensor:
        shapes.append(func.eval_shape(lambda x: torch.outer(x, x), x).shape)
        return x

    func.vmap(row)(x)
    assert shapes == [(4, 4)]
    one, two = func.eval_shape(lambda x: (x, x), x)
    assert one is two


@pytest.mark.parametrize(
    "fn", [lambda x: x * float(x.sum()), lambda x: x if x.sum() > 0 else -x, torch.nonzero]
)
def test_what_looks_at_numbers_is_told(fn: Any) -> None:
    with pytest.raises(RuntimeError, match=r"func\.eval_shape: the function looks at numbers"):
        func.eval_shape(fn, torch.randn(3))


def test_what_is_no_function_and_an_error_of_the_function() -> None:
    with pytest.raises(TypeError, match=r"func\.eval_shape\(func=\): expected a function, got 3"):
        func.eval_shape(3, torch.ones(2))  # type: ignore[arg-type]  # the error under test
    with pytest.raises(ValueError, match=r"layers\.0 \(Linear\)"):
        func.eval_shape(net(), torch.ones(2, 5))
