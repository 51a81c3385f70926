"""``functional_call`` and ``stack_module_state``: torch's meaning without torch's surprises."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallax import Module, func, tree
from tests.func.nets import Twice, X, net

X32 = X.float()


def mlp(seed: int = 0, activation: nn.Module | None = None, rate: float = 0.5) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, 4), activation or nn.ReLU(), nn.Dropout(rate), nn.Linear(4, 2)
    ).eval()


def test_a_dict_a_tree_or_several_of_them() -> None:
    one, two = Twice(net(0), net(1)), Twice(net(2), net(3))
    names = tree.named_leaves(two)
    expected = two(X)
    torch.testing.assert_close(func.functional_call(one, names, X), expected)
    torch.testing.assert_close(func.functional_call(one, two, (X,)), expected)
    torch.testing.assert_close(func.functional_call(one, names, (), {"x": X}), expected)
    first = {k: v for k, v in names.items() if k.startswith("first")}
    second = {k: v for k, v in names.items() if k.startswith("second")}
    torch.testing.assert_close(func.functional_call(one, (first, second), X), expected)
    holes = func.grad(lambda m: m(X).sum())(two)  # buffers are holes: the module's own are used
    partly = func.functional_call(one, tree.map(lambda g: torch.zeros_like(g), holes), X)
    torch.testing.assert_close(partly, torch.zeros_like(partly))
    torch.testing.assert_close(one(X), Twice(net(0), net(1))(X))


def test_an_nn_module_by_name() -> None:
    one, two = mlp(0), mlp(1)
    torch.testing.assert_close(
        func.functional_call(one, dict(two.named_parameters()), (X32,)), two(X32)
    )
    some = {"0.bias": torch.zeros(4)}
    expected = torch.func.functional_call(one, some, (X32,))
    torch.testing.assert_close(func.functional_call(one, some, X32), expected)


def test_misspelled_names_are_refused_by_default() -> None:
    for module, good in ((mlp(), "0.weight"), (Twice(net(), net(1)), "first.weight")):
        x = X32 if isinstance(module, nn.Module) else X
        bad = {good.replace("weight", "wieght"): torch.zeros(1)}
        with pytest.raises(
            KeyError, match=f"has no parameter or buffer .*wieght.*Did you mean '{good}'"
        ):
            func.functional_call(module, bad, x)
        torch.testing.assert_close(func.functional_call(module, bad, x, strict=False), module(x))
        with pytest.raises(KeyError, match="strict=True, and nothing is given for"):
            func.functional_call(module, {}, x, strict=True)
        named = (
            dict(module.named_parameters())
            if isinstance(module, nn.Module)
            else tree.named_leaves(module)
        )
        torch.testing.assert_close(func.functional_call(module, named, x, strict=True), module(x))


def test_ties() -> None:
    shared = net()
    model, other = Twice(shared, shared), net(7)
    both = func.functional_call(model, {"second.weight": other.weight}, X)
    torch.testing.assert_close(both, Twice(*[shared.replace(weight=other.weight)] * 2)(X))
    apart = func.functional_call(model, {"second.weight": other.weight}, X, tie_weights=False)
    torch.testing.assert_close(apart, Twice(shared, shared.replace(weight=other.weight))(X))
    with pytest.raises(ValueError, match=r"first.weight and second.weight are one tied leaf"):
        func.functional_call(
            model, {"first.weight": shared.weight, "second.weight": other.weight}, X
        )
    linear = nn.Linear(3, 3)
    twin = nn.Sequential(linear, linear)
    for tie in (True, False):
        args: Any = (twin, {"1.weight": torch.zeros(3, 3)}, (X32,))
        torch.testing.assert_close(
            func.functional_call(*args, tie_weights=tie),
            torch.func.functional_call(*args, tie_weights=tie),
        )


def test_places_that_are_taken_apart_are_each_asked_for() -> None:
    shared = net()
    model = Twice(shared, shared)
    first = {f"first.{name}": leaf for name, leaf in tree.named_leaves(net(7)).items()}
    second = {f"second.{name}": leaf for name, leaf in tree.named_leaves(net(8)).items()}
    apart = func.functional_call(model, {**first, **second}, X, tie_weights=False, strict=True)
    torch.testing.assert_close(apart, Twice(net(7), net(8))(X))
    with pytest.raises(KeyError, match=r"nothing is given for \['second.weight', "):
        func.functional_call(model, first, X, tie_weights=False, strict=True)
    both = func.functional_call(model, first, X, strict=True)
    torch.testing.assert_close(both, Twice(net(7), net(7))(X))
    linear = nn.Linear(3, 3)
    given = {"0.weight": torch.ones(3, 3), "0.bias": torch.ones(3)}
    twin = nn.Sequential(linear, linear)
    with pytest.raises(KeyError, match=r"nothing is given for \['1.weight', '1.bias'\]"):
        func.functional_call(twin, given, X32, tie_weights=False, strict=True)
    for options in ({"strict": True}, {"tie_weights": False}):
        torch.testing.assert_close(
            func.functional_call(twin, given, (X32,), **options),  # type: ignore[arg-type]  # flags
            torch.func.functional_call(twin, given, (X32,), **options),  # type: ignore[arg-type]  # as above
        )


def test_a_tied_buffer_under_both_names() -> None:
    norm = nn.BatchNorm1d(3, affine=False)
    twin = nn.Sequential(norm, norm)
    before = copy.deepcopy(twin.state_dict())
    torch.manual_seed(0)
    buffers = {name: value + 1 for name, value in norm.named_buffers()}
    both = {f"{k}.{name}": value for k in (0, 1) for name, value in buffers.items()}
    one = {f"0.{name}": value for name, value in buffers.items()}
    reference = copy.deepcopy(twin)
    reference[0].load_state_dict(buffers)
    for given in (both, one):
        kept = copy.deepcopy(given)
        for tie in (True, False):
            twin.eval()
            ours = func.functional_call(twin, given, (X32,), tie_weights=tie)
            theirs = torch.func.functional_call(
                copy.deepcopy(twin), copy.deepcopy(given), (X32,), tie_weights=tie
            ) if given is one else reference.eval()(X32)  # fmt: skip
            torch.testing.assert_close(ours, theirs)
            twin.train()
            func.functional_call(twin, given, (X32,), tie_weights=tie)
        torch.testing.assert_close(given, kept)
    torch.testing.assert_close(dict(twin.state_dict()), dict(before))
    other = {**both, "1.running_mean": torch.zeros(3)}
    with pytest.raises(ValueError, match="tied"):
        func.functional_call(twin, other, (X32,))


def test_gradients_through_it_are_torchs() -> None:
    model = mlp()
    weights = {k: v.detach() for k, v in model.named_parameters()}
    ours = func.grad(lambda w: func.functional_call(model, w, X32).sum())(weights)
    theirs = torch.func.grad(lambda w: torch.func.functional_call(model, w, X32).sum())(weights)
    torch.testing.assert_close(ours, theirs)


def test_batch_norm_writes_into_nothing_that_was_given() -> None:
    norm = nn.BatchNorm1d(3)
    before = copy.deepcopy(norm.state_dict())
    buffers = {k: v.clone() for k, v in norm.named_buffers()}
    func.functional_call(norm, buffers, X32)
    func.functional_call(norm, {}, X32)
    torch.testing.assert_close(buffers, dict(nn.BatchNorm1d(3).named_buffers()))
    torch.testing.assert_close(norm.state_dict(), before)


def test_three_threads_with_one_nn_module() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self) -> Tensor:
            first = self.w + 0
            time.sleep(0.001)
            return first + self.w

    module, wrong = Slow(), []

    def work(k: int) -> None:
        for _ in range(10):
            if func.functional_call(module, {"w": torch.tensor(float(k))}).item() != 2 * k:
                wrong.extend([k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and module.w.item() == 0.0


def test_what_is_no_module_or_no_dict() -> None:
    with pytest.raises(
        TypeError, match=r"module must be a parallax.Module or an nn.Module, got a function"
    ):
        func.functional_call(lambda x: x, {}, X)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(TypeError, match=r"expected a dict of tensors by dotted name.*got a tensor"):
        func.functional_call(net(), X, X)
    with pytest.raises(ValueError, match="came in two of the dicts"):
        func.functional_call(net(), ({"bias": X[0]}, {"bias": X[1]}), X)
    with pytest.raises(ValueError, match="the trees do not fit"):
        func.functional_call(Twice(net(), net()), net(), X)


# -- stacking -------------------------------------------------------------------------------------


def test_stacked_state_calls_each_member() -> None:
    models = [mlp(k) for k in range(3)]
    parameters, buffers = func.stack_module_state(models)
    assert buffers == {}
    out = func.vmap(lambda p: func.functional_call(models[0], p, X32))(parameters)
    torch.testing.assert_close(out, torch.stack([m(X32) for m in models]))
    modules = [Twice(net(k), net(k + 5)) for k in range(3)]
    parameters, buffers = func.stack_module_state(modules)
    assert set(buffers) == {"first.scale", "first.steps", "second.scale", "second.steps"}
    out = func.vmap(lambda p, b: func.functional_call(modules[0], (p, b), X))(parameters, buffers)
    torch.testing.assert_close(out, torch.stack([m(X) for m in modules]))


class Rated(Module):
    rate: float
    activation: Module | Callable[[Tensor], Tensor]


def test_modules_that_differ_in_anything_but_tensors_are_refused() -> None:
    cases: list[tuple[list[Any], str]] = [
        ([mlp(0), mlp(1, nn.Sigmoid())], "at 1: Sigmoid instead of ReLU"),
        ([mlp(0), mlp(1, rate=0.1)], r"at 2.p: 0.1 instead of 0.5"),
        ([mlp(0), mlp(1).train()], "at training: True instead of False"),
        ([nn.Linear(2, 2), nn.Linear(2, 2, bias=False)], "at bias: None instead of"),
        ([nn.Linear(2, 2), nn.Linear(2, 3)], "at out_features: 3 instead of 2"),
        ([Rated(0.5, torch.relu), Rated(0.5, torch.sigmoid)], "activation"),
        ([Rated(0.5, torch.relu), Rated(0.1, torch.relu)], r"rate.*0.5.*0.1"),
        ([net(), net().eval()], "mode 'train'.*mode 'eval'"),
    ]
    for models, message in cases:
        with pytest.raises(ValueError, match=message):
            func.stack_module_state(models)
    with pytest.raises(TypeError, match="Give at least one"):
        func.stack_module_state([])
    with pytest.raises(TypeError, match="modules of one kind"):
        func.stack_module_state([mlp(), net()])
