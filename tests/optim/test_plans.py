"""What is kept from step to step is believed of the same trees only."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import optim, tree
from parallax.optim import plan
from parallax.optim.checks import gather
from tests.comparing import same_leaves
from tests.corpus import MLP, MODULES, Case, example_input
from tests.optim.cases import Matrices, gradients, make, ones


def other_memory(value: Tensor) -> Tensor:
    return value.T.contiguous().T


CHANGES: dict[str, Any] = {
    "transposed gradients": lambda m, g: (m, tree.map(other_memory, g)),
    "a transposed model": lambda m, g: (tree.map(other_memory, m), g),
    "gradients that require grad": lambda m, g: (m, tree.map(Tensor.requires_grad_, g)),
    "a model that requires grad": lambda m, g: (tree.map(Tensor.requires_grad_, m), g),
    "a hole": lambda m, g: (m, tree.partition(g, "first")[1]),
    "a frozen leaf": lambda m, g: (tree.select(m, "first").freeze(), g),
    "another mode": lambda m, g: (m.train(3), g),
    "parameters of torch": lambda m, g: (m, tree.map(torch.nn.Parameter, g)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_what_is_kept_from_step_to_step_is_not_believed_of_other_trees(
    name: str, change: Any
) -> None:
    opt: Any = make(name, {"lr": 0.1})
    model: Any = Matrices().initialize(0)
    kept, forgotten, state, other = model, model, opt.init(model), opt.init(model)
    for k, grads in enumerate(gradients(model, 6)):
        here, there = (kept, grads), (forgotten, grads)
        if k in (2, 3, 5):
            here, there = change(*here), change(*there)
        kept, state = opt.step(*here, state)
        # A state that was copied knows nothing but its leaves.
        forgotten, other = opt.step(*there, pickle.loads(pickle.dumps(other)))
        assert same_leaves((kept, state), (forgotten, other))
        kept = kept if k in (2, 3, 5) else tree.map(torch.clone, kept)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows whenever a step looks at its trees leaf by leaf."""
    found: list[Any] = []

    def counting(*arguments: Any) -> Any:
        found.append(arguments[0])
        return gather(*arguments)

    monkeypatch.setattr(plan, "gather", counting)
    return found


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("case", [c for c in MODULES if c.name != "empty"], ids=str)
def test_a_run_looks_at_its_trees_once(case: Case, donate: bool, looked: list[Any]) -> None:
    model, opt = case.make(), optim.Adam()
    state = opt.init(model)
    for _ in range(4):
        grads = tree.map(torch.ones_like, tree.partition(model, "trainable")[0])
        model, state = opt.step(model, grads, state, donate=donate)
    assert len(looked) == 1


def test_a_run_of_prepared_models_looks_at_its_trees_once(looked: list[Any]) -> None:
    model, opt, x = MLP().initialize(0), optim.SGD(lr=0.01), example_input()
    state = opt.init(model)
    for seed in range(5):
        model = model.reset(seed)
        model(x).square().sum().backward()
        model, state = opt.step(model, model.grad(), state)
    assert len(looked) == 1


def test_a_run_to_and_fro_looks_at_each_kind_of_tree_once(looked: list[Any]) -> None:
    model, opt = Matrices().initialize(0), optim.Adam()
    state = opt.init(model)
    for k, grads in enumerate(gradients(model, 9)):
        kinds = grads, tree.partition(grads, "first")[1], tree.map(other_memory, grads)
        model, state = opt.step(model, kinds[k % 3], state)
    assert len(looked) == 3


def test_a_step_after_others_refuses_what_the_first_would_refuse() -> None:
    model, opt = MLP().initialize(0), optim.Adam()
    state = opt.init(model)
    for _ in range(3):
        model, state = opt.step(model, ones(model), state)
    before = [leaf.clone() for leaf in tree.leaves((model, state))]
    wrong: list[tuple[Any, Any]] = [
        (tree.map(lambda g: g.sum(), ones(model)), r"and its gradient has \(\)"),
        (tree.map(lambda g: g.double(), ones(model)), "its gradient is torch.float64"),
        (MLP(torch.relu).initialize(0), "the gradients: .*activation"),
        (None, "pass the whole tree"),
    ]
    for grads, message in wrong:
        with pytest.raises(ValueError, match=message):
            opt.step(model, grads, state)
    wide: Any = tree.map(lambda p: torch.cat([p, p]), model)
    with pytest.raises(ValueError, match=r"made for another model: there MLP.first.weight has"):
        opt.step(wide, wide, state)
    grouped = optim.Adam(groups={"**.bias": {"lr": 1.0}, "**.weight": {"lr": 0.0}})
    state_of_groups = grouped.init(model)
    fewer = grouped.replace(groups={"**.bias": {"lr": 1.0}})
    with pytest.raises(ValueError, match=r"made for 2 groups or more, and the optimizer has 1"):
        fewer.step(model, ones(model), state_of_groups)
    assert same_leaves((model, state), before)
