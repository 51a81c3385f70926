"""``grad`` after ``backward``, and ``update``, which takes a step."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallax import tree
from tests.core.module.verbs import every_module, sum_of
from tests.corpus import MLP, SIZE, TIED, Case, Scale, TiedModule, example_input

# -- grad ------------------------------------------------------------------------------------------


@every_module
def test_grad_without_backward_says_what_to_do(case: Case) -> None:
    module = case.make()
    message = rf"{type(module).__name__} has no gradients.*module\.reset\(rng\).*backward\(\)"
    for prepared in (module, module.reset(9)):
        with pytest.raises(RuntimeError, match=message):
            prepared.grad()


def test_grad_has_holes_where_nothing_flowed_and_update_leaves_those() -> None:
    module: Any = MLP().initialize(0).reset(0)
    module.first(example_input()).sum().backward()
    grads = module.grad()
    assert grads.second.weight is None and grads.second.bias is None
    torch.testing.assert_close(grads.first.bias, torch.full((SIZE,), 3.0))
    stepped = module.update(lambda p, g: p - g, grads)
    assert stepped.second.weight is module.second.weight
    torch.testing.assert_close(stepped.first.bias, module.first.bias - 3)


def test_grad_is_a_module_and_carries_a_graph_only_on_request() -> None:
    module = Scale(torch.tensor(3.0)).reset(0)
    with warnings.catch_warnings():  # torch's, of the cycle between a leaf and its gradient
        warnings.simplefilter("ignore")
        (module(torch.tensor(2.0)) ** 2).backward(create_graph=True)
    second = torch.autograd.grad(module.grad().by, module.by)[0]
    torch.testing.assert_close(second, torch.tensor(8.0))
    module = module.reset(1)
    (module(torch.tensor(2.0)) ** 2).backward()
    assert type(module.grad()) is Scale
    assert not module.grad().by.requires_grad


# -- update ----------------------------------------------------------------------------------------


def test_update_is_a_step_of_gradient_descent() -> None:
    module, x = MLP().initialize(0), example_input()
    twin = nn.ModuleDict({"first": nn.Linear(SIZE, SIZE), "second": nn.Linear(SIZE, SIZE)})
    twin.load_state_dict(tree.named_leaves(module))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for step in range(5):
        module = module.reset(step)
        sum_of(module, x).backward()
        module = module.update(lambda p, g: p - 0.1 * g, module.grad())
        optimizer.zero_grad()
        twin["second"](torch.tanh(twin["first"](x))).sum().backward()
        optimizer.step()
    for path, parameter in twin.named_parameters():
        torch.testing.assert_close(tree.named_leaves(module)[path], parameter.detach())


@pytest.mark.usefixtures("small_heap")
def test_an_ordinary_loop_never_grows_a_graph() -> None:
    module, x = MLP().initialize(0), example_input()
    velocity = tree.map(torch.zeros_like, module)
    counts = []
    for step in range(100):
        module = module.reset(step)
        sum_of(module, x).backward()
        velocity = velocity.update(lambda v, g: 0.9 * v + g, module.grad())
        module = module.update(lambda p, v: p - 0.01 * v, velocity)
        assert all(leaf.grad_fn is None for leaf in tree.leaves(module) + tree.leaves(velocity))
        if step % 33 == 0:
            gc.collect()
            counts.append(sum(type(o) is Tensor for o in gc.get_objects()))
    assert len(set(counts[1:])) == 1


def test_update_without_reset_between_steps_grows_no_graph_either() -> None:
    module, x = MLP().initialize(0).reset(0), example_input()
    sum_of(module, x).backward()
    stepped = module.update(lambda p, g: p - g, module.grad()).update(lambda p: p * 2)
    assert all(leaf.grad_fn is None for leaf in tree.leaves(stepped))


def test_meta_learning_through_update_is_exact() -> None:
    # https://github.com/pytorch/pytorch/issues/88851: the functional step users write by hand.
    x, y = example_input(1).double(), example_input(2).double()
    model = MLP().initialize(0, dtype=torch.float64)

    def loss_of(apply: Callable[[Tensor], Tensor]) -> Tensor:
        return ((apply(x) - y) ** 2).mean()

    outer = model.reset(0)
    inner = outer
    for _ in range(3):
        grads = torch.autograd.grad(loss_of(inner), tree.leaves(inner), create_graph=True)
        spec = tree.structure(inner)
        inner = inner.update(lambda p, g: p - 0.1 * g, tree.unflatten(spec, grads))
    assert all(leaf.requires_grad for leaf in tree.leaves(inner))
    outer_loss: Any = loss_of(inner)
    outer_loss.backward()

    def reference(weights: dict[str, Tensor]) -> Tensor:
        def run(w: dict[str, Tensor], inputs: Tensor) -> Tensor:
            hidden = torch.tanh(inputs @ w["first.weight"].T + w["first.bias"])
            return hidden @ w["second.weight"].T + w["second.bias"]

        for _ in range(3):
            grads = torch.func.grad(lambda w: ((run(w, x) - y) ** 2).mean())(weights)
            weights = {k: w - 0.1 * grads[k] for k, w in weights.items()}
        return ((run(weights, x) - y) ** 2).mean()

    expected = torch.func.grad(reference)(tree.named_leaves(model))
    for path, grad in tree.named_leaves(outer.grad()).items():
        torch.testing.assert_close(grad, expected[path])


def test_update_fits_trees_made_before_reset_train_and_eval() -> None:
    module = MLP().initialize(0)
    state = tree.map(torch.zeros_like, module)
    for changed in (module.reset(0), module.eval(), module.train(1), module.split(2)[1]):
        changed.update(lambda p, s: p + s, state)
        state.update(lambda s, p: p + s, changed)
        assert changed.update(lambda p, s: p + s, state).mode == changed.mode


def test_updates_of_tied_trees_keep_the_tie() -> None:
    for case in TIED:
        module = case.make().reset(0)
        sum_of(module, example_input()).backward()
        stepped = module.update(lambda p, g: p - g, module.grad())
        assert tree.structure(stepped) == tree.structure(module)
        assert len(tree.leaves(stepped)) == len(tree.leaves(module))
    stepped = TiedModule().initialize(0).update(lambda p: p + 1)
    assert stepped.one.weight is stepped.other.weight is stepped.several[0].weight
