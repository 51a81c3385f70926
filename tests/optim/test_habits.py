"""What people write for optimizers of torch and optax is refused with the line to write here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import func, nn, optim, tree
from parallax.optim.habits import HABITS
from tests.optim.cases import OPTIONS

model = nn.Linear(2, 1).initialize(0)
grads = func.grad(lambda model: model(torch.ones(2)).sum())(model)


@pytest.mark.parametrize("name", sorted({name for name, _ in OPTIONS}))
def test_no_optimizer_takes_a_model(name: str) -> None:
    cls: Any = getattr(optim, name)
    line = rf"optim\.{cls.__name__}\(lr=0\.25\); state = opt\.init\(model\)"
    for given in (model, tree.leaves(model), iter(tree.leaves(model)), torch.nn.Linear(2, 1)):
        calls: tuple[Callable[[Any], object], ...] = (
            lambda g: cls(g, lr=0.25),
            lambda g: cls(g, 0.25),
            lambda g: cls(params=g, lr=0.25),
        )
        for call in calls:
            with pytest.raises(TypeError, match=rf"optim\.{cls.__name__} takes no model.*{line}"):
                call(given)
    with pytest.raises(TypeError, match="takes no model and no parameters"):
        cls([{"params": tree.leaves(model), "lr": 0.25}])
    with pytest.raises(TypeError, match="takes no model and no parameters"):
        cls(list(tree.named_leaves(model).items()))


def test_subclasses_are_hinted_at_and_keep_their_own_constructor() -> None:
    class Mine(optim.SGD):
        pass

    class Own(optim.SGD):
        def __init__(self, table: list[Tensor]) -> None:
            super().__init__(lr=float(table[0]))

    with pytest.raises(TypeError, match=r"optim\.Mine takes no model"):
        Mine(model)
    assert Own([torch.tensor(0.5)]).lr == 0.5
    assert str(inspect.signature(Mine)) == str(inspect.signature(optim.SGD))


SGD = optim.SGD(lr=0.1)
STEPS: dict[str, Any] = {
    "SGD": SGD,
    "SparseAdam": optim.SparseAdam(),
    "chain": optim.chain(optim.ClipNorm(1.0), SGD),
    "Accumulate": optim.Accumulate(SGD, 2),
    "Split": optim.Split({"weight": SGD}, rest=SGD),
    "SkipNonfinite": optim.SkipNonfinite(SGD),
    "SAM": optim.SAM(SGD),
    "LBFGS": optim.LBFGS(),
    "from_torch": optim.from_torch(torch.optim.SGD, lr=0.1),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_lacks_arguments_says_what_to_write(name: str) -> None:
    opt, third = STEPS[name], "closure" if name in ("SAM", "LBFGS") else "grads"
    line = re.escape(f"Write: model, state = opt.step(model, {third}, state)")
    for given in ((), (model,)):
        with pytest.raises(TypeError, match=line):
            opt.step(*given)
    with pytest.raises(TypeError, match=line):
        opt.step(model, (lambda model: grads) if third == "closure" else grads)
    parameters = list(inspect.signature(opt.step).parameters.values())[:3]
    assert [p.default for p in parameters] == [inspect.Parameter.empty] * 3


@pytest.mark.parametrize("name", HABITS)
def test_an_absent_name_says_what_to_write(name: str) -> None:
    for opt in STEPS.values():
        assert not hasattr(opt, name)
        with pytest.raises(
            AttributeError, match=rf"no attribute '{name}': optimizers are immutable"
        ):
            getattr(opt, name)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: optim.schedules.StepLR(SGD, 30), "optim.SGD(lr=optim.schedules.StepLR(...))"),  # type: ignore[arg-type]
        (lambda: model.train(False), "module.eval()"),
        (lambda: nn.Sequential(torch.nn.ReLU()), "Write bridge.lift(ReLU(...))"),
        (lambda: nn.Sequential(nn.ReLU), "Write ReLU(...)"),
    ],
)
def test_other_calls(call: Callable[[], Any], line: str) -> None:
    with pytest.raises(TypeError, match=re.escape(line)):
        call()


@pytest.mark.parametrize("name", ["step", "get_last_lr", "state_dict"])
def test_a_schedule_has_no_state(name: str) -> None:
    schedule: Any = optim.schedules.StepLR(0.1, 30)
    assert not hasattr(schedule, name)
    with pytest.raises(AttributeError, match=rf"no attribute '{name}': a schedule is a function"):
        getattr(schedule, name)


@pytest.mark.parametrize("name", ["SGD", "chain"])
def test_donate_may_stand_without_its_name(name: str) -> None:
    opt, given = STEPS[name], tree.map(torch.clone, model)
    expected = opt.step(model, grads, opt.init(model))
    stepped, _ = opt.step(given, grads, opt.init(given), True)
    assert tree.equal(stepped, expected[0])
    with pytest.raises(optim.DonatedError):
        tree.leaves(given)
    line = r"donate must be True or False, got .*Linear.*donate=True\)"
    with pytest.raises(TypeError, match=line):
        opt.step(model, grads, opt.init(model), model)


@pytest.mark.parametrize("around", [lambda opt: opt, lambda opt: optim.Split({"weight": opt}, SGD)])
def test_sums_of_sparse_gradients_are_refused(around: Any) -> None:
    with pytest.raises(TypeError, match=r"sums of gradients are dense, and optim\.Sparse"):
        optim.Accumulate(around(optim.SparseAdam()), 2)
