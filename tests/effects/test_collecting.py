"""Emissions are collected by path, nothing is written, and nothing leaks."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, effects, random, tree
from parallax.effects import EffectError
from tests.effects.models import (
    Stack,
    assert_stats,
    forward,
    net,
    norms,
    reference,
)


def test_running_statistics_are_those_of_nn_over_several_steps(x: Tensor) -> None:
    module, expected = net(), reference()
    for _ in range(3):
        out, module = effects.collect(forward)(module, x)
        torch.testing.assert_close(out, expected(x))
    assert_stats(module, expected)


def test_nothing_is_written_and_the_structure_stays(x: Tensor) -> None:
    module = net().train(random.key(1))
    before = {path: leaf.clone() for path, leaf in tree.named_leaves(module).items()}
    _, after = effects.collect(forward)(module, x)
    for path, leaf in tree.named_leaves(module).items():
        assert torch.equal(leaf, before[path]), path
    assert tree.structure(after) == tree.structure(module)
    assert after._rng is module._rng
    assert after.layers[0].weight is module.layers[0].weight, "what nobody emits is shared"


def test_a_module_itself_is_a_function_of_it(x: Tensor) -> None:
    run: Any = effects.collect(Stack.forward)
    out, after = run(net(), x)
    torch.testing.assert_close(out, reference()(x))
    assert after.layers[0].count == 1


def test_without_effects_the_very_module_comes_back(x: Tensor) -> None:
    module = net().eval()
    _, after = effects.collect(forward)(module, x)
    assert after is module


def test_effects_carry_no_graph(x: Tensor) -> None:
    module = net().reset(0)
    out, after = effects.collect(forward)(module, x)
    assert out.requires_grad
    assert not any(m.running_mean.requires_grad for m in norms(after))


def test_returned_modules_are_out_of_the_collection(x: Tensor) -> None:
    module = net().train(random.key(0))
    (inner, doubled), _ = effects.collect(lambda m, x: (m, {"d": tree.map(lambda p: 2 * p, m)}))(
        module, x
    )
    for found in (inner, doubled["d"]):
        assert found._rng is module._rng
        with pytest.raises(EffectError, match="nobody collects"):
            found(x)


def test_an_instance_kept_from_inside_says_so(x: Tensor) -> None:
    kept = []
    effects.collect(lambda m, x: kept.append(m))(net(), x)
    with pytest.raises(EffectError, match="is over"):
        kept[0](x)


def test_what_is_pickled_inside_is_out_of_the_collection(x: Tensor) -> None:
    module = net().train(random.key(3))
    saved, after = effects.collect(lambda m: pickle.dumps(m))(module)
    loaded = pickle.loads(saved)
    assert after is module
    assert torch.equal(loaded.rng.data, module.rng.data)
    with pytest.raises(EffectError, match="nobody collects"):
        loaded(x)


def test_mode_and_rng_can_change_inside(x: Tensor) -> None:
    def inside(module: Any, x: Tensor) -> Tensor:
        module.layers[1].train(random.key(5))(x)
        return module.layers[0].train()(x)  # type: ignore[no-any-return]  # a Tensor

    _, after = effects.collect(inside)(net().eval(), x)
    assert [int(m.count) for m in norms(after)] == [1, 1]


def test_an_rng_goes_on_being_available_and_absent(x: Tensor) -> None:
    class Reads(Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + random.normal(self.rng, x.shape)

    module = Stack((Reads(),))
    expected = module.train(random.key(3))(x)
    out, _ = effects.collect(forward)(module.train(random.key(3)), x)
    assert torch.equal(out, expected)
    with pytest.raises(RuntimeError, match="no random state"):
        effects.collect(forward)(module, x)


def test_nested_collections_are_addressed_from_their_own_root(x: Tensor) -> None:
    def inside(module: Any, x: Tensor) -> Any:
        y, inner = effects.collect(forward)(module.layers[1], x)
        return module.layers[0](y), inner

    (_, inner), outer = effects.collect(inside)(net(), x)
    assert [int(m.count) for m in norms(outer)] == [1, 0]
    assert inner.layers[0].count == 1


def test_modules_are_addressed_in_the_tree_that_is_collected(x: Tensor) -> None:
    part = net().train(random.key(0)).layers[1]
    _, after = effects.collect(forward)(part, x)
    assert after.layers[0].count == 1


# -- nothing leaks ------------------------------------------------------------------------------


def test_an_exception_leaves_nothing_behind(x: Tensor) -> None:
    module = net()

    def fails(module: Any, x: Tensor) -> None:
        module(x)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        effects.collect(fails)(module, x)
    _, after = effects.collect(forward)(module, x)
    assert [int(m.count) for m in norms(after)] == [1, 1]


def test_two_threads_do_not_see_each_other(x: Tensor) -> None:
    module = net()
    barrier, found = threading.Barrier(4), {}

    def work(k: int) -> None:
        def inside(module: Any, x: Tensor) -> None:
            barrier.wait(10)
            module(x)
            barrier.wait(10)

        found[k] = effects.collect(inside)(module, x + k)[1]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        _, alone = effects.collect(forward)(module, x + k)
        assert torch.equal(found[k].layers[0].running_mean, alone.layers[0].running_mean)
        assert found[k].layers[0].count == 1


def test_suspended_generators_and_tasks_do_not_leak(x: Tensor) -> None:
    def steps(module: Any) -> Iterator[Any]:
        for _ in range(2):
            _, module = effects.collect(forward)(module, x)
            yield module

    suspended = steps(net())
    next(suspended)
    with pytest.raises(EffectError, match="nobody collects"):
        net()(x)

    async def task(k: int) -> Any:
        module: Any = net()
        for _ in range(2):
            _, module = effects.collect(forward)(module, x + k)
            await asyncio.sleep(0)
        return module

    async def both() -> list[Any]:
        return list(await asyncio.gather(task(0), task(1)))

    one, two = asyncio.run(both())
    assert one.layers[0].count == two.layers[0].count == 2
    assert not torch.equal(one.layers[0].running_mean, two.layers[0].running_mean)
