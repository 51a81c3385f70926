"""Pickles that Parallax 0.1.0 wrote load, wherever their functions live now."""

import pathlib
import pickle
from typing import Any

import torch

from parallax import bridge, func, nn, optim, tree

FOLDER = pathlib.Path(__file__).parent / "pickles"


def load(name: str) -> Any:
    return pickle.loads((FOLDER / f"{name}.pkl").read_bytes())


def net() -> nn.Sequential:
    """As the pickled one was made."""
    return nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.1), nn.MLP((3, 3, 1), torch.tanh)
    ).initialize(0)


def test_a_model_has_the_values_that_it_is_initialized_with() -> None:
    assert tree.equal(load("net"), net())


def test_a_model_keeps_its_modes_and_marks() -> None:
    assert tree.equal(load("train").eval(), net().eval())
    assert load("train").mode == "train" and load("train").rng is not None
    grads = func.grad(lambda model: model(torch.ones(2, 2)).sum())(load("frozen").eval())
    assert grads[0].bias is None and grads[0].weight is not None


def test_declarations_are_initialized_as_ever() -> None:
    assert tree.equal(load("fresh").initialize(3), nn.Linear(2, 3).initialize(3))


def test_an_optimizer_goes_on_with_its_state() -> None:
    model, opt = net(), load("opt")
    grads = tree.map(torch.ones_like, model)
    assert repr(opt) == repr(optim.Adam(0.1, weight_decay=0.1))
    want = opt.step(model, grads, optim.Adam(0.1).init(model))[0]
    assert tree.equal(opt.step(model, grads, load("adam"))[0], want)


def test_a_lifted_model_computes_with_its_weights() -> None:
    model, x = load("lifted"), torch.ones(1, 2)
    assert torch.equal(model(x), torch.nn.functional.linear(x, *bridge.state_dict(model).values()))
