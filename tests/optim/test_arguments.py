"""Arguments of optimizers, schedules and transformations are refused when they are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallax import optim
from parallax.optim import schedules
from tests.corpus import MLP
from tests.optim.cases import FIRST, make, ones

WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda: optim.ClipNorm("x"), TypeError, "ClipNorm: max_norm must be a number, got 'x'. Write"),  # type: ignore[arg-type]  # tested
    (lambda: optim.ClipNorm(-1.0), ValueError, "ClipNorm: max_norm must be above 0, got -1.0"),
    (lambda: optim.ClipNorm(float("nan")), ValueError, "max_norm must be a number, got nan"),
    (lambda: optim.ClipNorm(0.0), ValueError, "ClipNorm: max_norm must be above 0, got 0.0"),
    (lambda: optim.ClipValue(-1.0), ValueError, "ClipValue: clip_value must be above 0"),
    (lambda: optim.clip_grad_norm(None, 1.0), TypeError, "takes a tree of gradients, got None"),
    (lambda: optim.LossScaler(-1.0), ValueError, "init_scale must be above 0, got -1.0"),
    (lambda: optim.LossScaler(growth_interval=0), ValueError, "growth_interval must be 1 or more"),
    (lambda: optim.Accumulate(None, 2), TypeError, "opt must be an optimizer, got None"),
    (lambda: optim.Accumulate(optim.SGD, 2), TypeError, "must be an optimizer, got the class SGD"),
    (lambda: optim.Split({"a": 3}), TypeError, r"optimizers\['a'\] must be an optimizer, got 3"),
    (lambda: optim.EMA("x"), TypeError, "EMA: decay must be a number, got 'x'. Write EMA"),  # type: ignore[arg-type]  # tested
    (lambda: optim.Adam(lr=None), TypeError, "optim.Adam: lr must be a number, a tensor of no"),  # type: ignore[arg-type]  # tested
    (lambda: optim.Adam(lr=torch.nn.Linear(1, 1)), TypeError, "lr must be .*got a Linear"),
    (lambda: optim.Adam(betas=(0.9,)), TypeError, "betas must be a tuple of 2 values, got"),  # type: ignore[arg-type]  # tested
    (lambda: optim.Adam(amsgrad=1), TypeError, "optim.Adam: amsgrad must be True or False, got 1"),  # type: ignore[arg-type]  # tested
    (lambda: optim.Adam(fused="yes"), TypeError, "fused must be True or False, or None, got 'yes'"),  # type: ignore[arg-type]  # tested
    (lambda: optim.Adam(lr=True), TypeError, "lr must be a number, .*got True"),
    (lambda: optim.Adam(groups={"x": {"lr": "y"}}), TypeError, r"groups\['x'\]: lr must be a"),
    (lambda: optim.LBFGS(history_size=2.5), TypeError, "history_size must be an int, got 2.5"),  # type: ignore[arg-type]  # tested
    (
        lambda: optim.LBFGS(line_search_fn="x"),
        ValueError,
        "must be 'strong_wolfe' or None, got 'x'",
    ),
    (
        lambda: optim.from_torch(torch.optim.SGD, lr=0.1, momentun=0.9),
        TypeError,
        "from_torch: SGD has no hyper-parameter 'momentun'. Did you mean 'momentum'",
    ),
    (lambda: schedules.StepLR(0.1, 0), ValueError, "StepLR: step_size must be above 0, got 0"),
    (lambda: schedules.StepLR(0.1, 2.5), TypeError, "step_size must be an int, got 2.5"),  # type: ignore[arg-type]  # tested
    (lambda: schedules.LinearLR(0.1, total_iters=0), ValueError, "total_iters must be 1 or more"),
    (lambda: schedules.ExponentialLR("x", 0.9), TypeError, "lr must be a number, got 'x'"),  # type: ignore[arg-type]  # tested
    (lambda: schedules.SequentialLR(3, (1,)), TypeError, "schedules must be a list of"),  # type: ignore[arg-type]  # tested
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[m[:40] for _, _, m in WRONG])
def test_a_wrong_argument_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_what_is_right_is_taken() -> None:
    bound: Any = torch.tensor(1.0)
    optim.ClipNorm(float("inf"))
    optim.clip_grad_norm(ones(MLP().initialize(0)), bound)
    optim.SGD(lr=torch.tensor(0.1), momentum=lambda step: 0.9)
    optim.Adam(betas=(torch.tensor(0.9), 0.99), lr=schedules.ConstantLR(0.1, total_iters=0))
    optim.from_torch(torch.optim.LBFGS, closure=True, max_iter=3)
    assert schedules.MultiStepLR(0.1, [3, 5]).milestones == (3, 5)  # type: ignore[arg-type]  # a list


@pytest.mark.parametrize("name", [name for name, _ in FIRST])
def test_an_unknown_hyper_parameter_is_named_with_those_there_are(name: str) -> None:
    cls: Any = getattr(optim, name)
    with pytest.raises(TypeError, match=rf"optim\.{name} has no .* 'learning_rate'; it has lr, "):
        cls(learning_rate=0.1)
    with pytest.raises(TypeError, match=r"'weight_deca'; it has .*Write \w+=\.\.\."):
        cls(weight_deca=0.1)


@pytest.mark.parametrize("name", [name for name, _ in FIRST])
def test_numbers_that_are_none_are_refused_by_every_optimizer(name: str) -> None:
    for wrong in ("x", None, float("nan"), object(), MLP().initialize(0)):
        with pytest.raises((TypeError, ValueError), match=rf"optim\.{name}: .*lr|[Ll]earning"):
            make(name, {"lr": wrong})


def test_a_rate_that_is_constant_at_once_is_the_rate_afterwards() -> None:
    # torch's stepwise form keeps the first rate for ever where total_iters is 0; its closed form,
    # lr * (factor + (step >= total_iters) * (1 - factor)), does not.
    schedule = schedules.ConstantLR(0.3, factor=0.5, total_iters=0)
    assert [schedule(step) for step in range(3)] == [0.3, 0.3, 0.3]
