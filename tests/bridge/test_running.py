"""Calls of lifted modules: hooks, norms, effects, randomness, errors, threads."""

from __future__ import annotations

import copy
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from parallax import bridge, effects, func, random, tree
from tests.bridge.models import Model, snapshot, unchanged


def test_call_of_model_and_of_parts_equals_the_original() -> None:
    model = Model().requires_grad_(False)
    lifted = bridge.lift(model)
    x = torch.randn(3, 4)
    before = snapshot(model)
    assert torch.equal(lifted(x), model(x))
    assert torch.equal(lifted(x, head="a-b"), model(x, head="a-b"))
    assert torch.equal(lifted.blocks[0](x), model.blocks[0](x))
    assert torch.equal(lifted.heads["one"](x), model.heads["one"](x))
    unchanged(model, before)


def test_hooks_are_honoured() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    seen: list[str] = []
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))

    def plus_one(module: nn.Module, args: Any, out: Any) -> Any:
        return out + 1

    model[0].register_forward_hook(plus_one)
    handle = model.register_forward_hook(
        lambda module, args, out: seen.append(type(module).__name__)
    )
    lifted = bridge.lift(model)
    x = torch.randn(2)
    assert torch.equal(lifted(x), model.requires_grad_(False)(x))
    assert seen == ["Sequential", "Sequential"]
    handle.remove()
    lifted(x)
    assert len(seen) == 3  # what was lifted stays as it was


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrizations(norm: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(getattr(parametrizations, norm)(nn.Linear(4, 4)))
    lifted = bridge.lift(model)
    x = torch.randn(3, 4)
    before = snapshot(model)
    out, after = effects.collect(type(lifted).__call__)(lifted, x)
    unchanged(model, before)
    reference = copy.deepcopy(model)
    torch.testing.assert_close(out, reference(x))
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(bridge.state_dict(after)[key], value)
    assert list(bridge.state_dict(lifted)) == list(model.state_dict())
    twin = nn.Sequential(getattr(parametrizations, norm)(nn.Linear(4, 4)))
    if norm != "orthogonal":  # which keeps a random base as a plain attribute
        tree.map(torch.add, bridge.lift(twin), lifted)
    assert parametrize.is_parametrized(bridge.lower(lifted)[0])  # type: ignore[index]  # a Sequential


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_norms_by_hooks(norm: str) -> None:
    model = getattr(nn.utils, norm)(nn.Linear(4, 3)).eval()
    lifted = bridge.lift(model)
    x = torch.randn(2, 4)
    torch.testing.assert_close(lifted(x), model(x))
    grads = func.grad(lambda m: m(x).sum())(lifted)
    model(x).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(dict(tree.named_leaves(grads))[name], parameter.grad)


def test_batch_norm_effects_compose_over_steps() -> None:
    reference = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module = bridge.lift(copy.deepcopy(reference))
    for _ in range(3):
        x = torch.randn(5, 3)
        reference(x)
        _, module = effects.collect(type(module).__call__)(module, x)
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(bridge.state_dict(module)[key], value)


def test_an_effect_nobody_collects_is_an_error() -> None:
    lifted = bridge.lift(nn.BatchNorm1d(2))
    with pytest.raises(effects.EffectError, match="nobody collects"):
        lifted(torch.randn(4, 2))
    assert lifted.eval()(torch.randn(4, 2)).shape == (4, 2)


def test_effects_under_the_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    lifted = bridge.lift(copy.deepcopy(model))
    x = torch.randn(5, 3)

    def loss(module: Any) -> tuple[Tensor, Any]:
        out, after = effects.collect(type(module).__call__)(module, x)
        return (out**3).sum(), after

    grads, after = func.grad(loss, has_aux=True)(lifted)
    raw, raw_after = torch.func.grad(lambda w: loss(_with(lifted, w)), has_aux=True)(
        lifted[0].weight
    )
    (model(x) ** 3).sum().backward()
    torch.testing.assert_close(grads[0].weight, model[0].weight.grad)
    torch.testing.assert_close(raw, model[0].weight.grad)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(bridge.state_dict(after)[key], value)
        if "running" in key:
            torch.testing.assert_close(bridge.state_dict(raw_after)[key], value)


def _with(module: Any, weight: Tensor) -> Any:
    return tree.select(module, "0.weight").set(weight)


def test_nothing_is_written_when_forward_raises() -> None:
    class Failing(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor, fail: bool) -> Tensor:
            self.count.add_(1)
            x = self.norm(x)
            if fail:
                raise RuntimeError("on purpose")
            return x

    model = Failing()
    lifted = bridge.lift(model)
    before = snapshot(model)
    x = torch.randn(4, 2)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="on purpose"):
            effects.collect(type(lifted).__call__)(lifted, x, True)
    unchanged(model, before)
    _, after = effects.collect(type(lifted).__call__)(lifted, x, False)
    assert after.count == 1 and lifted.count == 0


def test_calls_within_calls() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor, inner: Any = None) -> Tensor:
            y = self.linear(x)
            return y + inner(x) + self.linear(x) if inner is not None else y  # type: ignore[no-any-return]  # a tensor

    model = Outer()
    lifted = bridge.lift(model)
    other = tree.map(lambda t: t + 1, lifted)
    x = torch.randn(2)
    expected = 2 * model.linear(x) + other(x)
    torch.testing.assert_close(lifted(x, inner=other), expected)


def test_many_threads_at_once() -> None:
    model = Model().requires_grad_(False)
    lifted = bridge.lift(model)
    trees = [tree.map(lambda t, k=k: t * (1 + 0.1 * k), lifted) for k in range(4)]
    x = torch.randn(3, 4)
    expected = [module(x) for module in trees]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(30):
            wrong.extend([] if torch.equal(trees[k](x), expected[k]) else [k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_parameters_method_within_forward_sees_the_leaves() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.to(next(self.parameters()).dtype)) + len(self.state_dict())  # type: ignore[no-any-return]  # a tensor

    lifted = tree.to(bridge.lift(Asking()), dtype=torch.float64)
    assert lifted(torch.randn(2)).dtype is torch.float64


def test_with_an_rng_dropout_is_a_function_of_it() -> None:
    lifted = bridge.lift(nn.Sequential(nn.Linear(20, 20), nn.Dropout(0.5)))
    x = torch.randn(20)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, two, three = lifted.train(1), lifted.train(1), lifted.train(2)
    drawn = one(x)
    assert torch.equal(drawn, two(x)) and not torch.equal(drawn, three(x))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one[1](x), three[1](x))


def test_the_global_generator_is_restored_when_forward_raises() -> None:
    lifted = bridge.lift(nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))).train(0)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shapes"):
        lifted(torch.randn(3))
    torch.manual_seed(0)
    del state


def test_without_an_rng_torch_decides() -> None:
    model = nn.Dropout(0.5)
    lifted = bridge.lift(model)
    x = torch.randn(20)
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    assert torch.equal(lifted(x), expected)


def test_a_key_per_example_is_refused() -> None:

    lifted = bridge.lift(nn.Dropout(0.5))
    keys = random.split(random.key(0), 3)
    x = torch.randn(4)
    with pytest.raises(RuntimeError, match="cannot be seeded with a key per example"):
        func.vmap(lambda key: lifted.train(key)(x), randomness="different")(keys)


def test_threads_some_of_whose_calls_fail() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).requires_grad_(False)
    lifted, x = bridge.lift(model), torch.randn(3)
    trees = [tree.map(lambda t, k=k: t * k, lifted) for k in range(1, 5)]
    expected = [module(x) for module in trees]
    wrong: list[int] = []

    def work(k: int) -> None:
        for step in range(60):
            if step % 5 == 0:
                with pytest.raises(RuntimeError, match="shapes"):
                    trees[k](torch.randn(7))
            if not torch.equal(trees[k](x), expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k % 4,)) for k in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
