"""The state is a tree of the model's shape; saved and loaded, a run goes on bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import parallax
from parallax import optim, tree
from tests.comparing import same_leaves
from tests.corpus import MLP
from tests.optim.cases import FIRST, Options, gradients, label, make, model_for
from tests.saving import pickled, saved


def test_moments_are_modules_of_the_models_shape() -> None:
    model = MLP().initialize(0)
    state = optim.Adam(amsgrad=True).init(model)
    assert list(state.moments) == ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    assert type(state.moments["exp_avg"]) is MLP
    assert state.moments["exp_avg_sq"].first.weight.shape == model.first.weight.shape
    assert state.step.shape == () and "moments.exp_avg.second.bias" in tree.named_leaves(state)
    doubled = tree.map(lambda leaf: 2 * leaf, state)
    assert type(doubled) is optim.State


@pytest.mark.parametrize("resume", [pickled, saved])
@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_a_resumed_run_has_the_very_bits_of_one_that_was_not_interrupted(
    name: str, options: Options, resume: Any
) -> None:
    model, opt = model_for(name), make(name, options)
    state = opt.init(model)
    other, other_opt, other_state = model, opt, state
    for k, grads in enumerate(gradients(model, 6)):
        model, state = opt.step(model, grads, state)
        other, other_state = other_opt.step(other, grads, other_state)
        if k == 2:
            other, other_opt, other_state = resume((other, other_opt, other_state))
    assert same_leaves((model, state), (other, other_state))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_a_run_resumed_from_files_has_the_very_bits_of_one_that_was_not_interrupted(
    name: str, options: Options, suffix: str, tmp_path: Path
) -> None:
    model, opt = model_for(name), make(name, options)
    state = opt.init(model)
    first, second, third, fourth = gradients(model, 4)
    for grads in (first, second):
        model, state = opt.step(model, grads, state)
    files = tmp_path / f"model.{suffix}", tmp_path / f"state.{suffix}"
    parallax.io.save(model, files[0])
    parallax.io.save(state, files[1])
    fresh = model_for(name, seed=5)
    other = parallax.io.load(files[0], like=fresh)
    other_state = parallax.io.load(files[1], like=opt.init(fresh))
    for grads in (third, fourth):
        model, state = opt.step(model, grads, state)
        other, other_state = opt.step(other, grads, other_state)
    assert same_leaves((model, state), (other, other_state))
