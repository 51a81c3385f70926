"""Plain and distributed leaves in one operation: the error names both, and what to write."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallax import distributed as dist
from parallax import func, nn, optim, tree
from tests.meshes import ranks


def models(mesh: Any) -> tuple[Any, Any]:
    """A model that is distributed, and the same as it was."""
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).initialize(0)
    return dist.Plan(mesh, dp=dist.fsdp("**")).apply(plain), plain


BOTH = (
    r"{}: layers.0.weight of {} is distributed \(Shard\(0\) on dp\) and layers.0.weight of {} is a "
    r"plain tensor.*plan.apply\(module\).*plan.gather"
)


@pytest.mark.parametrize(
    ("what", "call"),
    [
        ("tree.map", lambda one, two: tree.map(torch.add, one, two)),
        ("tree.map", lambda one, two: one.update(torch.sub, two)),
        ("tree", tree.add),
        ("tree", lambda one, two: tree.lerp(one, two, 0.5)),
    ],
)
def test_trees(what: str, call: Any) -> None:
    with ranks(2, names=("dp",)) as mesh:
        spread, plain = models(mesh)
        for pair, names in (
            ((spread, plain), ("the first tree", r"(tree 2|the second)")),
            ((plain, spread), (r"(tree 2|the second)", "the first tree")),
        ):
            with pytest.raises(ValueError, match=BOTH.format(what, *names)):
                call(*pair)


def test_a_step() -> None:
    with ranks(2, names=("dp",)) as mesh:
        spread, plain = models(mesh)
        adam = optim.AdamW(lr=0.1)
        said = BOTH.format("optim.AdamW.step", "the model", "the gradients")
        with pytest.raises(ValueError, match=said):
            adam.step(spread, plain, adam.init(spread))
        said = BOTH.format("optim.AdamW.step", "the model", "exp_avg")
        with pytest.raises(ValueError, match=said):
            adam.step(spread, spread, adam.init(plain))


def test_a_layer() -> None:
    with ranks(2, names=("dp",)) as mesh:
        spread = dist.Plan(mesh, dp={"**": 0}).apply(models(mesh)[1])
        for call in (spread, lambda x: func.grad(lambda model: model(x).sum())(spread)):
            with pytest.raises(RuntimeError, match="mixed") as caught:
                call(torch.ones(2, 4))
            place, advice = caught.value.__notes__[:2]
            assert "Sequential.layers.0" in place
            assert "weight: Shard(0) on dp, bias: Shard(0) on dp" in advice
            assert "plan.apply(model)" in advice and "plan.batches(loader)" in advice
