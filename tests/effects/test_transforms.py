"""Effects come out of every transform once, and wrappers never."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parallax import Buffer, Module, Parameter, effects, func, tree
from parallax.effects import EffectError, relaying
from tests.effects.models import (
    MOMENTUM,
    assert_stats,
    backward,
    forward,
    loss,
    net,
    reference,
)


def test_collecting_within_grad_with_aux(x: Tensor) -> None:
    grads, after = torch.func.grad(effects.collect(loss), has_aux=True)(floats(net()), x)
    assert type(grads) is type(net())
    expected = reference()
    backward(expected(x))
    torch.testing.assert_close(grads.layers[0].weight, expected[0].weight.grad)
    torch.testing.assert_close(after.layers[0].running_mean, expected[0].running_mean)


def floats(module: Any) -> Any:
    """With a float for a counter: raw ``torch.func`` differentiates no integers."""
    return tree.map(lambda leaf: leaf.float(), module)


def test_grad_inside_a_collection_rebuilds_the_instance(x: Tensor) -> None:
    def inside(module: Any, x: Tensor) -> Any:
        prepared = module.reset(0)
        loss(prepared, x).backward()
        return prepared.grad()

    grads, after = effects.collect(inside)(net(), x)
    expected = reference()
    backward(expected(x))
    torch.testing.assert_close(grads.layers[0].weight, expected[0].weight.grad)
    assert_stats(after, expected)


def test_a_raw_transform_would_let_its_wrappers_escape(x: Tensor) -> None:
    batch = torch.stack([x, x + 1])
    with pytest.raises(EffectError, match=r"parallax\.func"):
        effects.collect(lambda m, xs: torch.vmap(lambda x: forward(m, x))(xs))(net(), batch)
    with pytest.raises(EffectError, match=r"parallax\.func"):
        effects.collect(lambda m, x: torch.func.grad(lambda x: loss(m, x))(x))(net(), x)
    with pytest.raises(EffectError, match=r"parallax\.func"):
        effects.capture(
            effects.collect(lambda m, x: torch.func.jvp(lambda x: loss(m, x), (x,), (x,)))
        )(net(), x)


def test_collecting_within_vmap_equals_a_loop(x: Tensor) -> None:
    batch = torch.stack([x, x + 1, 3 * x])
    mapped = torch.vmap(effects.collect(forward), in_dims=(None, 0))
    out, after = mapped(net(), batch)
    for k, row in enumerate(batch):
        one, alone = effects.collect(forward)(net(), row)
        torch.testing.assert_close(out[k], one)
        torch.testing.assert_close(
            after.layers[1].layers[0].running_var[k], alone.layers[1].layers[0].running_var
        )


def test_collecting_within_jvp(x: Tensor) -> None:
    run = effects.collect(loss)
    jvp: Any = torch.func.jvp
    (value, after), (tangent, _) = jvp(lambda x: run(floats(net()), x), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(value, loss_of_reference(x))
    _, expected = jvp(loss_of_reference, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, expected)
    torch.testing.assert_close(
        after.layers[0].running_mean, torch.lerp(torch.zeros(3), x.mean(0), MOMENTUM)
    )


def loss_of_reference(x: Tensor) -> Any:
    for _ in range(2):
        x = F.batch_norm(x, None, None, torch.ones(3), training=True)
    return x.sin().sum()


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_emits_nothing(reentrant: bool, x: Tensor) -> None:
    calls: list[None] = []

    def checkpointed(module: Any, x: Tensor) -> Any:
        def block(x: Tensor) -> Tensor:
            calls.append(None)
            return forward(module, x)

        return checkpoint(block, x, use_reentrant=reentrant).sin().sum()

    def inside(module: Any, x: Tensor) -> None:
        checkpointed(module, x).backward()

    module = net().reset(0)
    _, after = effects.collect(inside)(module, x.clone().requires_grad_())
    assert len(calls) == 2, "the forward ran again in backward"
    expected = reference()
    backward(expected(x))
    assert_stats(after, expected)
    torch.testing.assert_close(module.grad().layers[0].weight, expected[0].weight.grad)

    out, after = effects.collect(checkpointed)(net().reset(0), x.clone().requires_grad_())
    out.backward()  # the collection is over by now
    assert_stats(after, expected)


class Watched(Module):
    """Emits and sows what a hook of autograd sees."""

    weight: Parameter
    seen: Buffer
    calls: Buffer

    def forward(self, x: Tensor) -> Tensor:
        self.emit(calls=self.calls + 1)
        y: Tensor = self.weight * x
        if y.requires_grad:  # not so in the forward of a reentrant checkpoint
            y.register_hook(self.watch)
        return y

    def watch(self, grad: Tensor) -> None:
        self.emit(seen=grad.detach())
        self.sow(grad=grad.detach())


def watched() -> Any:
    cls: Any = Watched
    return cls(torch.ones(3), torch.zeros(3), torch.tensor(0)).reset(0)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_what_a_hook_of_autograd_says_is_no_recomputation(reentrant: bool | None) -> None:
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)

    def inside(module: Any) -> None:
        y = module(x) if reentrant is None else checkpoint(module, x, use_reentrant=reentrant)
        y.square().sum().backward()

    result: Any = effects.collect(effects.capture(inside))(watched())
    (_, sown), after = result
    assert torch.equal(after.seen, 2 * x.detach()) and after.calls == 1
    assert torch.equal(sown["grad"], 2 * x.detach())


def test_a_hook_speaks_where_gradients_have_a_graph() -> None:
    def inside(module: Any, x: Tensor) -> Any:
        return torch.autograd.grad(module(x).square().sum(), x, create_graph=True)[0]

    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    grad, after = effects.collect(inside)(watched(), x)
    assert grad.requires_grad and torch.equal(after.seen, 2 * x.detach()) and after.calls == 1


def test_a_hook_that_speaks_when_the_collection_is_over_or_for_the_second_time_says_so() -> None:
    def call(module: Any) -> Tensor:
        out: Tensor = module(torch.ones(3))
        return out

    out, _ = effects.collect(call)(watched())
    with pytest.raises(EffectError, match=r"Watched.emit\(seen\): the call that collected is over"):
        out.sum().backward()

    def twice(module: Any) -> None:
        y = call(module)
        y.sum().backward(retain_graph=True)
        y.sum().backward()

    with pytest.raises(EffectError, match="two effects for 'seen'"):
        effects.collect(twice)(watched())


def gradient(module: Any, x: Tensor) -> Any:
    return func.grad(loss)(module, x)


def test_func_grad_hands_effects_on_whatever_its_engine(x: Tensor) -> None:
    expected = reference()
    backward(expected(x))
    on_tape = effects.collect(gradient)(net(), x)
    mapped = torch.vmap(lambda x: effects.collect(gradient)(net(), x))(x[None])
    compiled = torch.compile(effects.collect(gradient), backend="aot_eager", fullgraph=True)
    for grads, after in (on_tape, compiled(net(), x)):
        torch.testing.assert_close(grads.layers[0].weight, expected[0].weight.grad)
        assert_stats(after, expected)
    torch.testing.assert_close(mapped[0].layers[0].weight[0], expected[0].weight.grad)
    torch.testing.assert_close(mapped[1].layers[0].running_var[0], expected[0].running_var)


def test_func_vmap_hands_effects_on(x: Tensor) -> None:
    def over_batches(module: Any, xs: Tensor) -> Any:
        return func.vmap(forward, in_dims=(None, 0))(module, xs)

    def over_members(module: Any, x: Tensor) -> Any:
        return func.vmap(forward, in_dims=(0, None))(module, x)

    _, after = effects.collect(over_batches)(net(merge="mean"), torch.stack([x, x + 2]))
    torch.testing.assert_close(after.layers[0].running_mean, MOMENTUM * (x.mean(0) + 1))
    members = tree.stack([net(), tree.map(lambda leaf: leaf + 1, net())])
    _, after = effects.collect(over_members)(members, x)
    assert after.layers[0].count.tolist() == [1, 2]
    for k in range(2):
        _, alone = effects.collect(forward)(tree.unstack(members)[k], x)
        torch.testing.assert_close(after.layers[0].running_mean[k], alone.layers[0].running_mean)


def test_effects_of_a_module_mapped_aside_are_refused_rather_than_put_in_crosswise(
    x: Tensor,
) -> None:
    members = tree.stack([net(), tree.map(lambda leaf: leaf + 1, net())] * 2)
    sideways = tree.map(lambda leaf: leaf.movedim(0, -1), members)

    def over_members(module: Any, x: Tensor) -> Any:
        return func.vmap(forward, in_dims=(sideways_dims(module), None))(module, x)

    def sideways_dims(module: Any) -> Any:
        return tree.map(lambda leaf: leaf.ndim - 1, module)

    with pytest.raises(EffectError, match=r"layers\.0\.running_mean.*in_dims=\(0"):
        effects.collect(over_members)(sideways, x)

    def without_effects(module: Any, x: Tensor) -> Any:
        return over_members(module.eval(), x)

    _, found = effects.capture(without_effects)(sideways, x)
    assert found == {}


def test_func_jvp_and_vjp_hand_effects_on(x: Tensor) -> None:
    def forwards(module: Any, x: Tensor) -> Any:
        return func.jvp(lambda x: loss(module, x), (x,), (torch.ones_like(x),))

    def backwards(module: Any, x: Tensor) -> Any:
        return func.vjp(lambda module: loss(module, x), module)[0]

    expected = reference()
    expected(x)
    _, after = effects.collect(backwards)(net(), x)
    assert_stats(after, expected)
    with pytest.raises(EffectError, match="wrapper"):
        effects.collect(forwards)(net(), x)  # the module is no argument of the transform


# -- what transforms are made of --------------------------------------------------------------


def hand_on(module: Any, xs: Tensor) -> Any:
    """As a module-aware vmap does: collect inside, hand on outside."""
    outer, inners = module._rng, []

    def inside(x: Tensor) -> Any:
        inner = relaying.nest(outer)
        inners.append(inner)
        rebuilt = tree.unflatten(tree.structure(module), tree.flatten(module)[0])
        for node in rebuilt.modules():
            object.__setattr__(node, "_rng", inner)
        return rebuilt(x), relaying.emitted(inner)

    out, values = torch.vmap(inside)(xs)
    relaying.relay(outer, inners[0], values)
    return out


def test_a_transform_hands_effects_on(x: Tensor) -> None:
    batch = torch.stack([x, x + 1])
    out, after = effects.collect(hand_on)(net(merge="mean"), batch)
    alone = [effects.collect(forward)(net(), row) for row in batch]
    torch.testing.assert_close(out, torch.stack([one for one, _ in alone]))
    mean = torch.stack([m.layers[0].running_mean for _, m in alone]).mean(0)
    torch.testing.assert_close(after.layers[0].running_mean, mean)
    assert after.layers[0].count == 1
    with pytest.raises(EffectError, match="came out of vmap"):
        effects.collect(hand_on)(net(), batch)


def test_nothing_is_nested_when_nothing_is_collected() -> None:
    assert relaying.nest(None) is None and relaying.emitted(None) == []
    relaying.relay(None, None, [])
