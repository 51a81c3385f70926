"""Compiled steps of ensembles: the numbers of each member alone, and no operator without a rule."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import parallax
from parallax import func, optim, tree
from tests.optim.cases import Net

# Each kernel once, and the options that call other operators; but Muon's, which is in bfloat16: its
# own rounding is a hundredth of a step.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.1, "amsgrad": True}),
    ("AdamW", {"lr": 0.1}),
    ("NAdam", {"lr": 0.1}),
    ("RAdam", {"lr": 0.1}),
    ("Adamax", {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1}),
    ("Adadelta", {"lr": 0.1}),
    ("RMSprop", {"lr": 0.1, "centered": True, "momentum": 0.9}),
    ("Rprop", {"lr": 0.1}),
    ("ASGD", {"lr": 0.1}),
    ("Adafactor", {"lr": 0.1}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[name for name, _ in CASES])
def test_each_member_steps_as_it_does_alone(name: str, options: dict[str, Any]) -> None:
    opt = getattr(optim, name)(**options)
    net = Net()
    members = [net.initialize(seed) for seed in range(2)]
    grads = [net.initialize(seed) for seed in (7, 8)]

    def twice(model: Any, grads: Any, state: Any) -> Any:
        model, state = opt.step(model, grads, state)
        return opt.step(model, tree.scale(grads, -0.5), state)

    alone = [twice(m, g, opt.init(m))[0] for m, g in zip(members, grads, strict=True)]
    step = parallax.compile(func.vmap(twice), backend="eager")
    ensemble = tree.stack(members)
    states = func.vmap(opt.init)(ensemble)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tree.unstack(step(ensemble, tree.stack(grads), states)[0])
    for one, other in zip(found, alone, strict=True):
        assert tree.allclose(one, other, rtol=1e-5, atol=1e-6), tree.diff(one, other)
    assert not torch.equal(found[0].first, members[0].first)
