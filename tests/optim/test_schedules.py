"""The curves against ``torch.optim.lr_scheduler``, as numbers and as tensors."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch.optim import lr_scheduler as theirs
from torch.optim.swa_utils import SWALR

from parallax import Module, Parameter, optim
from parallax.optim import schedules as mine

STEPS = 60
LR = 0.4

MODES: tuple[Any, ...] = ("triangular", "triangular2", "exp_range")
CURVES: dict[str, Any] = {
    "constant": (mine.ConstantLR(LR, 0.25, 7), lambda o: theirs.ConstantLR(o, 0.25, 7)),
    "linear": (mine.LinearLR(LR, 0.1, 0.9, 8), lambda o: theirs.LinearLR(o, 0.1, 0.9, 8)),
    "step": (mine.StepLR(LR, 7, 0.5), lambda o: theirs.StepLR(o, 7, 0.5)),
    "multi_step": (
        mine.MultiStepLR(LR, (5, 20, 21), 0.5),
        lambda o: theirs.MultiStepLR(o, [5, 20, 21], 0.5),
    ),
    "exponential": (mine.ExponentialLR(LR, 0.95), lambda o: theirs.ExponentialLR(o, 0.95)),
    "polynomial": (mine.PolynomialLR(LR, 30, 2.0), lambda o: theirs.PolynomialLR(o, 30, 2.0)),
    "cosine": (
        mine.CosineAnnealingLR(LR, 20, 0.01),
        lambda o: theirs.CosineAnnealingLR(o, 20, 0.01),
    ),
    "restarts": (
        mine.CosineAnnealingWarmRestarts(LR, 7, 1, 0.01),
        lambda o: theirs.CosineAnnealingWarmRestarts(o, 7, 1, 0.01),
    ),
    "longer_restarts": (
        mine.CosineAnnealingWarmRestarts(LR, 3, 2),
        lambda o: theirs.CosineAnnealingWarmRestarts(o, 3, 2),
    ),
    "lambda": (
        mine.LambdaLR(LR, lambda t: 0.9**t),
        lambda o: theirs.LambdaLR(o, lambda t: 0.9**t),
    ),
    "multiplicative": (
        mine.MultiplicativeLR(LR, lambda t: 1 - 0.5 / t, total_iters=STEPS),
        lambda o: theirs.MultiplicativeLR(o, lambda t: 1 - 0.5 / t),
    ),
    "chained": (
        mine.ChainedScheduler(
            (
                mine.ConstantLR(LR, 0.1, 20),
                mine.ChainedScheduler((mine.ExponentialLR(LR, 0.95), mine.StepLR(LR, 9, 0.5))),
                mine.CosineAnnealingLR(LR, STEPS),
                mine.LinearLR(LR, 0.5, 0.9, 30),
            )
        ),
        lambda o: theirs.ChainedScheduler(
            [
                theirs.ConstantLR(o, 0.1, 20),
                theirs.ExponentialLR(o, 0.95),
                theirs.StepLR(o, 9, 0.5),
                theirs.CosineAnnealingLR(o, STEPS),
                theirs.LinearLR(o, 0.5, 0.9, 30),
            ]
        ),
    ),
    "cyclic_by_cycle": (
        mine.CyclicLR(0.1, LR, 6, 9, scale_fn=lambda x: 1 / (5**x)),
        lambda o: theirs.CyclicLR(
            o, 0.1, LR, 6, 9, scale_fn=lambda x: 1 / (5**x), cycle_momentum=False
        ),
    ),
    "cyclic_by_step": (
        mine.CyclicLR(0.1, LR, 6, scale_fn=lambda x: 0.9**x, scale_mode="iterations"),
        lambda o: theirs.CyclicLR(
            o, 0.1, LR, 6, scale_fn=lambda x: 0.9**x, scale_mode="iterations", cycle_momentum=False
        ),
    ),
    "one_cycle": (mine.OneCycleLR(LR, STEPS), lambda o: theirs.OneCycleLR(o, LR, STEPS)),
    "one_cycle_linear": (
        mine.OneCycleLR(LR, STEPS, 0.4, "linear", three_phase=True),
        lambda o: theirs.OneCycleLR(
            o, LR, STEPS, pct_start=0.4, anneal_strategy="linear", three_phase=True
        ),
    ),
    "swa": (mine.SWALR(LR, 0.05, 9), lambda o: SWALR(o, 0.05, 9)),
    "swa_linear": (
        mine.SWALR(LR, 0.05, 9, "linear"),
        lambda o: SWALR(o, 0.05, 9, "linear"),
    ),
    "sequential": (
        mine.SequentialLR((mine.ConstantLR(LR, 0.1, 4), mine.ExponentialLR(LR, 0.9)), (6,)),
        lambda o: theirs.SequentialLR(
            o, [theirs.ConstantLR(o, 0.1, 4), theirs.ExponentialLR(o, 0.9)], [6]
        ),
    ),
} | {
    f"cyclic_{mode}": (
        mine.CyclicLR(0.1, LR, 6, 9, mode, 0.98),
        partial(
            theirs.CyclicLR,
            base_lr=0.1,
            max_lr=LR,
            step_size_up=6,
            step_size_down=9,
            mode=mode,
            gamma=0.98,
            cycle_momentum=False,
        ),
    )
    for mode in MODES
}


def curve_of_torch(make: Callable[[Any], Any]) -> list[float]:
    param = torch.nn.Parameter(torch.zeros(1))
    param.grad = torch.zeros(1)
    optimizer = torch.optim.SGD([param], lr=LR, momentum=0.9)
    scheduler = make(optimizer)
    rates = []
    for k in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if k < STEPS - 1:
            scheduler.step()
    return rates


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")
@pytest.mark.parametrize(("schedule", "make"), CURVES.values(), ids=list(CURVES))
def test_curves_are_those_of_torch(schedule: Any, make: Callable[[Any], Any]) -> None:
    rates = curve_of_torch(make)
    for step, rate in enumerate(rates):
        assert schedule(step) == pytest.approx(rate, rel=1e-6, abs=1e-12), step
        by_tensor = schedule(torch.tensor(float(step)))
        assert float(by_tensor) == pytest.approx(rate, rel=1e-6, abs=1e-12), step


def test_warmup_and_cosine() -> None:
    schedule = mine.WarmupCosineLR(0.5, 4, 12, 0.1)
    expected = [0.5 * t / 4 for t in range(4)]
    expected += [0.1 + 0.4 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(9)]
    expected += [0.1] * 5
    for step, rate in enumerate(expected):
        assert schedule(step) == pytest.approx(rate)
        assert float(schedule(torch.tensor(step))) == pytest.approx(rate)


@pytest.mark.parametrize(
    "schedule", [s for s, _ in CURVES.values() if "<lambda>" not in repr(s)], ids=repr
)
def test_schedules_are_values_and_batch(schedule: Any) -> None:
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule and hash(again) == hash(schedule)
    steps = torch.arange(10)
    batched = torch.vmap(schedule)(steps)
    for step in range(10):
        assert float(batched[step]) == pytest.approx(float(schedule(step)), rel=1e-6)


def test_a_step_takes_the_rate_of_the_steps_already_made() -> None:
    class Point(Module):
        at: Parameter

    seen = []

    def rate(step: Any) -> Any:
        seen.append(step)
        return 0.5**step

    point, opt = Point(torch.zeros(())), optim.SGD(lr=rate)
    state = opt.init(point)
    for _ in range(3):
        point, state = opt.step(point, Point(torch.ones(())), state)
    assert point.at.item() == -(1 + 0.5 + 0.25)
    assert seen[-3:] == [0, 1, 2] and all(type(step) is int for step in seen)


def test_any_hyper_parameter_may_follow_a_schedule() -> None:
    class Point(Module):
        at: Parameter

    opt = optim.AdamW(weight_decay=mine.StepLR(0.5, 1, 0.0), lr=0.1)
    point, grads = Point(torch.ones(1)), Point(torch.zeros(1))
    point, state = opt.step(point, grads, opt.init(point))
    assert point.at.item() == pytest.approx(1 - 0.1 * 0.5)
    point, state = opt.step(point, grads, state)
    assert point.at.item() == pytest.approx(1 - 0.1 * 0.5)


# -- a rate that follows a measured number --------------------------------------------------------

WATCHES: list[dict[str, Any]] = [
    {"patience": 2},
    {"mode": "max", "factor": 0.5, "patience": 1, "cooldown": 2},
    {"threshold": 0.2, "threshold_mode": "abs", "patience": 0, "min_lr": 0.01},
    {"mode": "max", "threshold": 0.1, "threshold_mode": "abs", "patience": 1, "eps": 0.01},
]


def numbers(count: int) -> list[float]:
    generator = torch.Generator().manual_seed(3)
    falling = torch.linspace(2, 1, count) + 0.3 * torch.randn(count, generator=generator)
    return [float(number) for number in falling] + [1.0] * 10 + [float("nan"), 0.5]


@pytest.mark.parametrize("settings", WATCHES, ids=str)
def test_the_rate_on_a_plateau_is_torchs(settings: dict[str, Any]) -> None:
    counter = torch._dynamo.testing.CompileCounter()
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=LR)
    scheduler = theirs.ReduceLROnPlateau(optimizer, **settings)
    watch = mine.ReduceLROnPlateau(**settings)
    compiled = torch.compile(watch.step, fullgraph=True, backend=counter)
    plateau = traced = watch.init(LR)
    for number in numbers(40):
        scheduler.step(number)
        plateau = watch.step(plateau, number)
        traced = compiled(traced, torch.tensor(number))
        assert plateau.lr.item() == traced.lr.item() == optimizer.param_groups[0]["lr"]
        assert plateau.best.item() == scheduler.best
    assert plateau.lr < LR and counter.frame_count == 1
    torch._dynamo.reset()


def test_a_rate_on_a_plateau_is_the_rate_of_an_optimizer() -> None:
    class Point(Module):
        at: Parameter

    watch, point = mine.ReduceLROnPlateau(factor=0.5, patience=0), Point(torch.zeros(()))
    opt, plateau = optim.SGD(), watch.init(1.0)
    state = opt.init(point)
    for loss in (1.0, 1.0, 1.0):
        plateau = watch.step(plateau, loss)
        opt = opt.replace(lr=plateau.lr)
        point, state = opt.step(point, Point(torch.ones(())), state)
    assert point.at.item() == -(1 + 0.5 + 0.25)
    with pytest.raises(ValueError, match=r"factor must be less than 1, got 1.5"):
        mine.ReduceLROnPlateau(factor=1.5)
    with pytest.raises(ValueError, match="mode must be 'min' or 'max', got 'least'"):
        mine.ReduceLROnPlateau("least")


# -- bad input -------------------------------------------------------------------------------------


def test_schedules_are_made_of_a_base_that_cannot_stand_alone() -> None:
    with pytest.raises(TypeError, match="abstract"):
        mine.Schedule()  # type: ignore[abstract]  # that is what is tested
    with pytest.raises(TypeError, match="abstract"):
        optim.Optimizer()  # type: ignore[abstract]  # that is what is tested


def test_bad_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown.*Say after how many .* total_iters=\.\.\."):
        mine.MultiplicativeLR(LR, lambda t: 0.9)(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"scale_mode must be 'cycle' or .*, got 'epochs'"):
        mine.CyclicLR(0.1, 0.2, scale_mode="epochs")
    with pytest.raises(TypeError, match=r"LambdaLR.* does not multiply the rate of the others"):
        mine.ChainedScheduler((mine.ConstantLR(LR), mine.LambdaLR(LR, abs)))
    with pytest.raises(TypeError, match=r"CosineAnnealingLR.* does not multiply"):
        mine.ChainedScheduler((mine.CosineAnnealingLR(LR, 10, 0.1),))
    with pytest.raises(ValueError, match=r"all schedules must have the same lr, got \[0.1, 0.2\]"):
        mine.ChainedScheduler((mine.ConstantLR(0.1), mine.ConstantLR(0.2)))
    with pytest.raises(ValueError, match="give at least one schedule"):
        mine.ChainedScheduler(())
    with pytest.raises(ValueError, match="mode must be 'triangular', 'triangular2' or 'exp_range'"):
        mine.CyclicLR(0.1, 0.2, mode="square")
    with pytest.raises(ValueError, match="anneal_strategy must be 'cos' or 'linear', got 'sine'"):
        mine.OneCycleLR(0.1, 10, anneal_strategy="sine")
    with pytest.raises(ValueError, match="2 schedules need 1 milestones, got 2"):
        mine.SequentialLR((abs, abs), (1, 2))
