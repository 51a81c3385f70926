"""What optimizers refuse: rates, gradients, states and models that do not fit."""

from __future__ import annotations

import pytest
import torch

from parallax import Module, UninitializedError, optim, tree
from tests.comparing import same_leaves
from tests.corpus import MLP, Dense
from tests.optim.cases import FIRST, Net, Point, make, ones


def test_a_negative_learning_rate_is_refused() -> None:
    for name, _ in FIRST:
        with pytest.raises(ValueError, match=rf"optim.{name}: .*-0.1"):
            make(name, {"lr": -0.1})
    with pytest.raises(ValueError, match=r"optim.LBFGS: Invalid learning rate: -1"):
        optim.LBFGS(lr=-1)
    with pytest.raises(ValueError, match=r"optim.Adam: Invalid learning rate"):
        optim.Adam(lr=torch.tensor(-0.1))
    with pytest.raises(ValueError, match=r"Invalid beta parameter at index 0: 1.5"):
        optim.Adam(betas=(1.5, 0.9))


@pytest.mark.parametrize("donate", [False, True])
def test_gradients_of_another_structure_name_the_first_differing_path(donate: bool) -> None:
    model, opt = MLP().initialize(0), optim.Adam()
    state = opt.init(model)
    before = [leaf.clone() for leaf in tree.leaves((model, state))]
    other = MLP(bias=False).initialize(0)
    wrong = [
        (MLP(torch.relu).initialize(0), ValueError, "optim.Adam.step: the gradients: .*activation"),
        ({"first": 1}, ValueError, "the first has a MLP, the other has a dict"),
        (None, ValueError, "pass the whole tree, with None where there is no value"),
        (
            tree.map(lambda g: g.sum(), ones(model)),
            ValueError,
            r"MLP.first.weight has shape \(4, 4\) and its gradient has \(\)",
        ),
        (
            tree.map(lambda g: g.double(), ones(model)),
            ValueError,
            r"MLP.first.weight is torch.float32 and its gradient is torch.float64. Cast them",
        ),
    ]
    for grads, error, message in wrong:
        with pytest.raises(error, match=message):
            opt.step(model, grads, state, donate=donate)
    assert same_leaves((model, state), before)
    stepped, _ = opt.step(model, tree.map(torch.ones_like, other), state)
    assert stepped.first.bias is model.first.bias


def test_a_state_of_another_model_or_optimizer_is_refused() -> None:
    model, opt = MLP().initialize(0), optim.Adam()
    for other in (Net().initialize(0), MLP(torch.relu).initialize(0)):
        with pytest.raises(
            ValueError, match=r"made for another model: .*state = opt.init\(model\)"
        ):
            opt.step(model, ones(model), opt.init(other))
    narrow, wide = Dense(3, 2).initialize(0), Dense(3, 4).initialize(0)
    for name, _ in FIRST:
        if name != "Muon":
            other = make(name, {})
            with pytest.raises(
                ValueError, match=r"there Dense.weight has shape \(2, 3\), here \(4, 3\)"
            ):
                other.step(wide, wide, other.init(narrow))
    tampered = tree.map(lambda leaf: leaf.new_zeros(1) if leaf.ndim else leaf, opt.init(model))
    with pytest.raises(ValueError, match="the state's exp_avg has leaves of other shapes"):
        opt.step(model, ones(model), tampered)
    sgd = optim.SGD()
    with pytest.raises(ValueError, match="made for another model, of 4 leaves"):
        sgd.step(Point(torch.ones(1)), Point(torch.ones(1)), sgd.init(model))
    with pytest.raises(ValueError, match=r"the state was made by optim.SGD"):
        opt.step(model, ones(model), sgd.init(model))
    with pytest.raises(ValueError, match="the state has no 'max_exp_avg_sq'"):
        optim.Adam(amsgrad=True).step(model, ones(model), opt.init(model))
    with pytest.raises(TypeError, match="the state must be what init returned, got None"):
        opt.step(model, ones(model), None)  # type: ignore[arg-type]  # that is what is tested


def test_a_model_without_anything_to_train_is_refused() -> None:
    class Empty(Module):
        pass

    for name, _ in FIRST:
        with pytest.raises(ValueError, match=rf"optim.{name}.init: Empty has nothing to train"):
            make(name, {}).init(Empty())
    frozen = tree.select(Net().initialize(0), "trainable").freeze()
    with pytest.raises(ValueError, match=r"Unfreeze some: tree.select\(model, 'frozen'\)"):
        optim.SGD().init(frozen)
    with pytest.raises(UninitializedError, match=r"Net.first is not initialized"):
        optim.SGD().init(Net())
    with pytest.raises(TypeError, match=r"takes a module, got a dict. Hold what is trained in one"):
        optim.SGD().init({"w": torch.ones(1)})


def test_leaves_an_optimizer_cannot_step_are_named() -> None:
    with pytest.raises(TypeError, match=r"Net.bias is torch.float32 of shape \(4,\).*optim.Split"):
        optim.Muon().init(Net().initialize(0))
    with pytest.raises(TypeError, match=r"Point.at is complex, which Adafactor does not support"):
        optim.Adafactor().init(Point(torch.ones(2, dtype=torch.complex64)))


def test_a_rate_per_member_outside_of_vmap_is_refused() -> None:
    opt = optim.SGD(lr=torch.tensor([0.1, 0.2]))
    point = Point(torch.ones(2))
    with pytest.raises(ValueError, match="lr holds 2 numbers, one per member of an ensemble"):
        opt.step(point, point, optim.SGD(lr=0.1).init(point))
    with pytest.raises(ValueError, match=r"SGD.init: momentum holds 2 numbers.*torch\.vmap"):
        optim.SGD(momentum=torch.tensor([0.5, 0.9])).init(point)
