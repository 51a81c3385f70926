"""An optimizer is a value: its hyper-parameters, and groups of leaves with their own."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch.utils import _pytree as torch_pytree

from parallax import optim, tree
from tests.comparing import same_leaves
from tests.corpus import MLP, Dense
from tests.optim.cases import FIRST, Net, Options, gradients, label, make, model_for, ones

# -- an optimizer is a value -----------------------------------------------------------------------


def test_an_optimizer_is_immutable_and_says_how_to_change_it() -> None:
    opt = optim.Adam(lr=0.1)
    with pytest.raises(FrozenInstanceError, match=r"opt = opt.replace\(lr=...\)"):
        opt.lr = 0.2
    with pytest.raises(FrozenInstanceError):
        del opt.lr
    assert opt.replace(lr=0.2).lr == 0.2 and opt.lr == 0.1
    with pytest.raises(TypeError, match="no hyper-parameter 'rate'; it has lr, betas"):
        opt.replace(rate=1)
    assert repr(optim.SGD(0.1, groups={"**.bias": {"lr": 0.2}})).endswith(
        "groups={'**.bias': {'lr': 0.2}})"
    )


@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_names_and_defaults_are_those_of_torch(name: str, options: Options) -> None:
    del options
    theirs = getattr(torch.optim, name)([torch.zeros(1, 1)]).defaults
    mine = make(name, {}).hyper
    if name == "AdamW":
        theirs = {key: value for key, value in theirs.items() if key != "decoupled_weight_decay"}
    assert mine == theirs


def test_a_tensor_is_a_leaf_of_the_optimizer_and_a_number_is_not() -> None:
    opt = optim.Adam(lr=torch.tensor(0.5), groups={"bias": {"lr": torch.tensor(0.25)}})
    leaves, spec = torch_pytree.tree_flatten(opt)
    assert [leaf.item() for leaf in leaves] == [0.5, 0.25]
    again = torch_pytree.tree_unflatten([torch.tensor(1.0), torch.tensor(2.0)], spec)
    assert again.lr.item() == 1 and again.groups["bias"]["lr"].item() == 2
    assert tree.leaves(optim.Adam(lr=0.5)) == []


def test_a_tensor_rate_gives_the_numbers_of_a_number() -> None:
    for name, options in FIRST:
        model = model_for(name)
        grads = list(gradients(model, 3))
        one, two = (make(name, {**options, "lr": lr}) for lr in (0.125, torch.tensor(0.125)))
        state, other, other_state = one.init(model), model, two.init(model)
        for grad in grads:
            model, state = one.step(model, grad, state)
            other, other_state = two.step(other, grad, other_state)
        assert same_leaves(model, other), name


# -- groups ----------------------------------------------------------------------------------------


def test_groups_by_glob_class_and_predicate_are_torchs_parameter_groups() -> None:
    model = MLP().initialize(0)
    opt = optim.AdamW(
        lr=0.1,
        groups={
            "second.bias": {"lr": 0.5},
            "**.bias": {"weight_decay": 0.0},
            lambda path, leaf: path == "second.weight": {"betas": (0.5, 0.5)},
        },
        foreach=False,
    )
    names = tree.named_leaves(model)
    params = {path: leaf.clone().requires_grad_() for path, leaf in names.items()}
    parts: list[dict[str, Any]] = [
        {"params": [params["first.weight"]]},
        {"params": [params["second.bias"]], "lr": 0.5},
        {"params": [params["first.bias"]], "weight_decay": 0.0},
        {"params": [params["second.weight"]], "betas": (0.5, 0.5)},
    ]
    twin = torch.optim.AdamW(parts, lr=0.1)
    state = opt.init(model)
    assert state.labels == (0, 2, 3, 1)
    for grads in gradients(model, 10):
        for path, grad in tree.named_leaves(grads).items():
            params[path].grad = grad
        model, state = opt.step(model, grads, state)
        twin.step()
    for path, leaf in tree.named_leaves(model).items():
        assert torch.equal(leaf, params[path])
    by_class = optim.SGD(lr=1.0, groups={Dense: {"lr": 0.0}})
    stepped, _ = by_class.step(model, ones(model), by_class.init(model))
    assert same_leaves(stepped, model)


def test_groups_may_differ_in_the_moments_they_need() -> None:
    model = Net().initialize(0)
    opt = optim.SGD(lr=0.1, groups={"first": {"momentum": 0.9}})
    state = opt.init(model)
    assert list(tree.named_leaves(state.moments["momentum_buffer"])) == ["first"]
    for grads in gradients(model, 2):
        model, state = opt.step(model, grads, state)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ([1], TypeError, r"groups must be a dict, got a list. Write groups=\{'\*\*.bias'"),
        ({"bias": 3}, TypeError, r"groups\['bias'\] must be a dict of hyper-parameters, got 3"),
        ({"bias": {"rate": 3}}, TypeError, "has no hyper-parameter 'rate'; it has lr, betas"),
        ({"bias": {"fused": True}}, TypeError, "fused holds for the whole step"),
        ({"bias": {"lr": -1.0}}, ValueError, r"in groups\['bias'\]: Invalid learning rate: -1.0"),
    ],
)
def test_bad_groups_are_refused(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optim.Adam(groups=groups)


def test_a_group_that_means_nothing_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"groups\['\*\*.gain'\].*nothing in MLP"):
        optim.Adam(groups={"**.gain": {"lr": 0.1}}).init(MLP().initialize(0))
