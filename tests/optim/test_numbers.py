"""Every optimizer and option against the stateful class of ``torch.optim``, over 100 steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallax import tree
from tests.optim.cases import (
    FIRST,
    HAS_FOREACH,
    HAS_FUSED,
    OPTIONS,
    Options,
    Twin,
    distance,
    gradients,
    label,
    make,
    model_for,
    twin_of,
)

STEPS = 100


def follow(opt: Any, model: Any, twin: Twin) -> tuple[Any, Any]:
    state = opt.init(model)
    for grads in gradients(model, STEPS):
        model, state = opt.step(model, grads, state)
        twin.step(grads)
    return model, state


def assert_same(model: Any, state: Any, twin: Twin) -> None:
    for path, leaf in tree.named_leaves(model).items():
        assert torch.equal(leaf, twin.params[path]), path
        theirs = twin.state(path)
        for name, moment in state.moments.items():
            mine = tree.named_leaves(moment).get(path)
            if mine is None:
                assert theirs.get(name) is None, (path, name)
            else:
                assert torch.equal(mine, theirs[name]), (path, name)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=label)
def test_the_plain_kernel_gives_the_very_bits_of_torch(name: str, options: Options) -> None:
    plain = {**options, "foreach": False} if name in HAS_FUSED else options
    model = model_for(name)
    twin = twin_of(name, plain, model)
    assert_same(*follow(make(name, plain), model, twin), twin)


@pytest.mark.parametrize(("name", "options"), [o for o in OPTIONS if o[0] in HAS_FUSED], ids=label)
def test_the_fused_kernel_gives_the_very_bits_of_torch(name: str, options: Options) -> None:
    # It is the default here; a single rate of learning and no momentum need no kernel at all.
    model = model_for(name)
    twin = twin_of(name, {**options, "fused": True}, model)
    model, state = follow(make(name, options), model, twin)
    if name == "SGD" and not options.get("momentum"):
        for path, leaf in tree.named_leaves(model).items():
            assert distance(leaf, twin.params[path]) <= 1e-6
    else:
        assert_same(model, state, twin)


@pytest.mark.parametrize(
    ("name", "options"), [o for o in OPTIONS if o[0] in HAS_FOREACH], ids=label
)
def test_the_kernel_over_lists_gives_the_very_bits_of_torch(name: str, options: Options) -> None:
    model = model_for(name)
    twin = twin_of(name, {**options, "foreach": True}, model)
    assert_same(*follow(make(name, {**options, "foreach": True}), model, twin), twin)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_default_agrees_with_the_default_of_torch(
    name: str, options: Options, dtype: torch.dtype
) -> None:
    model = model_for(name, dtype=dtype)
    twin = twin_of(name, options, model)
    model, state = follow(make(name, options), model, twin)
    assert state.step.item() == STEPS
    whole = torch.cat([leaf.reshape(-1) for leaf in tree.leaves(model)])
    assert distance(whole, torch.cat([p.reshape(-1) for p in twin.params.values()])) <= 1e-6
    if dtype is torch.float64:  # where no leaf comes so near to zero that rounding is all of it
        for path, leaf in tree.named_leaves(model).items():
            assert distance(leaf, twin.params[path]) <= 1e-6, path


CAPTURABLE = [(n, o) for n, o in FIRST if "capturable" in make(n, {}).hyper]


@pytest.mark.parametrize(("name", "options"), CAPTURABLE, ids=label)
def test_capturable_steps_have_the_same_numbers(name: str, options: Options) -> None:
    # On the CPU torch refuses to construct a capturable optimizer's step, except when compiling.
    model = model_for(name)
    twin = twin_of(name, {**options, "foreach": False}, model)
    end, state = follow(make(name, {**options, "capturable": True}), model, twin)
    for path, leaf in tree.named_leaves(end).items():
        assert distance(leaf, twin.params[path]) <= 1e-6
    assert state.step.device == tree.leaves(model)[0].device
