"""Effects in, out of and around compiled functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch.utils.checkpoint import checkpoint

from parallax import Module, Parameter, effects, random, tree
from tests.effects.models import (
    Twice,
    assert_stats,
    backward,
    forward,
    loss,
    net,
    norm,
    reference,
)


def test_collecting_inside_a_compiled_function(x: Tensor) -> None:
    module, expected = net(), reference()
    step = torch.compile(effects.collect(forward), backend="aot_eager", fullgraph=True)
    out, module = step(module, x)
    torch.testing.assert_close(out, expected(x))
    out, module = step(module, x)
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(out, expected(x))
        out, module = step(module, x + 1)
    torch.testing.assert_close(out, expected(x + 1))
    assert_stats(module, expected)


def test_a_compiled_function_inside_a_collection(x: Tensor) -> None:
    module, expected = net(), reference()
    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
    for k in range(3):
        out, module = effects.collect(compiled)(module, x + k)
        torch.testing.assert_close(out, expected(x + k))
    assert_stats(module, expected)


def test_train_split_and_rules_while_tracing(x: Tensor) -> None:
    def step(module: Any, key: random.Key, x: Tensor) -> Any:
        return effects.collect(forward)(module.train(key), x)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    module = Twice(norm(merge="mean"))
    out, after = compiled(module, random.key(0), x)
    expected, alone = step(module, random.key(0), x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(after.norm.running_mean, alone.norm.running_mean)
    assert after.mode == "train" and after.norm.count == 1


def test_capturing_inside_a_compiled_function(x: Tensor) -> None:
    run = effects.capture(effects.collect(forward))
    (out, after), found = torch.compile(run, backend="aot_eager", fullgraph=True)(net(), x)
    (expected, _), alone = run(net(), x)
    torch.testing.assert_close(out, expected)
    assert list(found) == list(alone) == ["layers.0.mean", "layers.1.layers.0.mean"]
    for path, value in alone.items():
        torch.testing.assert_close(found[path], value)
    assert after.layers[0].count == 1


@pytest.mark.parametrize("inside", [True, False])
def test_a_compiled_checkpoint_emits_once(inside: bool, x: Tensor) -> None:
    """Whether the collection begins inside of it or around it, and without any configuration."""

    def checkpointed(module: Any, x: Tensor) -> Any:
        return checkpoint(lambda x: loss(module, x), x, use_reentrant=False)

    def collected_inside(module: Any, x: Tensor) -> Any:
        return checkpoint(effects.collect(loss), module, x, use_reentrant=False)

    step = collected_inside if inside else effects.collect(checkpointed)
    module = net().reset(0)
    out, after = torch.compile(step, backend="aot_eager", fullgraph=True)(module, x)
    out.backward()
    expected = reference()
    backward(expected(x))
    assert_stats(after, expected)
    torch.testing.assert_close(module.grad().layers[0].weight, expected[0].weight.grad)


def test_a_compiled_checkpoint_lets_sown_tensors_out(x: Tensor) -> None:
    def checkpointed(module: Any, x: Tensor) -> Any:
        return checkpoint(lambda x: loss(module, x), x, use_reentrant=False)

    run = effects.capture(effects.collect(checkpointed))
    _, found = torch.compile(run, backend="aot_eager", fullgraph=True)(net().reset(0), x)
    assert list(found) == ["layers.0.mean", "layers.1.layers.0.mean"]
    torch.testing.assert_close(found["layers.0.mean"], x.mean(0))


def test_a_compiled_checkpoint_still_refuses_other_side_effects(x: Tensor) -> None:
    def step(module: Any, x: Tensor) -> Any:
        seen = []

        def block(x: Tensor) -> Any:
            value = loss(module, x)
            seen.append(value)
            return value

        return checkpoint(block, x, use_reentrant=False)

    with pytest.raises(Unsupported, match="side effect"):
        torch.compile(effects.collect(step), backend="eager", fullgraph=True)(net().reset(0), x)


class Doubled(Module):
    """Computes with another instance of its class."""

    weight: Parameter

    def forward(self, x: Tensor) -> Tensor:
        other = type(self)(self.weight * 2)
        return tree.map(torch.neg, other).weight * x


class Holder(Module):
    inner: Doubled

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_watched_module_makes_others_of_its_class_in_compiled_code(x: Tensor) -> None:
    def run(module: Holder, x: Tensor) -> Any:
        return effects.capture(Holder.forward, "inner")(module, x)

    module = Holder(Doubled(torch.full_like(x, 3.0)))
    out, found = torch.compile(run, backend="eager", fullgraph=True)(module, x)
    torch.testing.assert_close(out, -6 * x)
    torch.testing.assert_close(found["inner"], -6 * x)
