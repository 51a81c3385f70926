"""Plain and distributed leaves in one operation: the error names both, and what to write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard

from parallax import distributed as dist
from parallax import func, nn, optim, tree
from tests.meshes import ranks, spread, whole


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
        ("tree.map", lambda one, two: tree.map(torch.add, {"a": one}, {"a": two})["a"]),
        (
            "tree.map_with_path",
            lambda one, two: tree.map_with_path(lambda _, a, b: a + b, one, two),
        ),
        ("tree.add", tree.add),
        ("tree.sub", tree.sub),
        ("tree.lerp", lambda one, two: tree.lerp(one, two, 0.5)),
        ("tree.vdot", tree.vdot),
        ("tree.equal", tree.equal),
        ("tree.allclose", tree.allclose),
    ],
)
def test_two_trees(what: str, call: Any) -> None:
    with ranks(2, names=("dp",)) as mesh:
        spread, plain = models(mesh)
        for pair, names in (
            ((spread, plain), ("the first tree", "tree 2")),
            ((plain, spread), ("tree 2", "the first tree")),
        ):
            told = BOTH.format(what, *names).replace("layers", r"(a\.)?layers")
            with pytest.raises(ValueError, match=told):
                call(*pair)


def test_members_of_a_stack() -> None:
    with ranks(2, names=("dp",)) as mesh:
        spread, plain = models(mesh)
        with pytest.raises(ValueError, match=BOTH.format("tree.stack", "tree 2", "tree 1")):
            tree.stack([plain, spread])
        assert tree.stack([spread, spread])[0].weight.shape == (2, 4, 4)


@pytest.mark.parametrize("call", [tree.norm, lambda one: tree.norm(one, 1), tree.ravel])
def test_one_tree_that_is_distributed_in_part(call: Any) -> None:
    with ranks(2, names=("dp",)) as mesh:
        spread, plain = models(mesh)
        part = tree.select(plain, "layers.1.weight").set(spread[1].weight)
        with pytest.raises(ValueError, match=r"tree\.(norm|ravel): ") as caught:
            call({"net": part})
        told = str(caught.value)
        assert "net.layers.1.weight of the tree is distributed (Shard(0) on dp)" in told
        assert "net.layers.0.weight of the tree is a plain tensor" in told
        assert "plan.apply(module)" in told


def test_a_function_that_is_mapped_may_mix_by_itself() -> None:
    with ranks(2, names=("dp",)) as mesh:
        spread, _ = models(mesh)
        with pytest.raises(RuntimeError, match="got mixed"):
            tree.map(lambda leaf: leaf + torch.ones(4), spread)


def test_a_factor_may_be_a_plain_number_or_tensor() -> None:
    with ranks(2, names=("dp",)) as mesh:
        spread, plain = models(mesh)
        for factor in (0.5, torch.tensor(0.5)):
            made, expected = tree.scale(spread, factor), tree.scale(plain, factor)
            for one, two in zip(tree.leaves(made), tree.leaves(expected), strict=True):
                assert torch.equal(whole(one), two)


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


def test_a_function_that_is_differentiated() -> None:
    def loss(model: Any, x: Any, y: Any) -> Any:
        return (model(x) - y).square().sum()

    with ranks(2, names=("dp",)) as mesh:
        model = dist.Plan(mesh, dp={"**": 0}).apply(models(mesh)[1])
        x, y = spread(torch.ones(2, 4), mesh, Replicate()), torch.ones(2, 4)
        for call in (func.grad(loss), lambda *args: func.vjp(loss, *args)):
            with pytest.raises(RuntimeError, match="mixed") as caught:
                call(model, x, y)
            (note,) = caught.value.__notes__
            assert "layers.0.weight of argument 0 is distributed, and argument 2 is a" in note
            assert "plan.batches(loader)" in note


def test_adapters() -> None:
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    with ranks(2, names=("dp",)) as mesh:
        plain = models(mesh)[1]
        plan = dist.Plan(mesh, dp={"**": 0})
        late = nn.lora(plan.apply(plain), nn.Linear, rank=2).initialize(1)
        given = spread(x, mesh, Replicate())
        with pytest.raises(RuntimeError, match="mixed") as caught:
            late(given)
        place, advice = caught.value.__notes__[:2]
        assert "layers.0 (LoRA)" in place
        assert "layer.weight: Shard(0) on dp" in advice and "plan.apply(model)" in advice
        adapted = nn.lora(plain, nn.Linear, rank=2).initialize(1)
        adapted = tree.select(adapted, "**.lora_B").apply(lambda leaf: leaf + 0.5)
        assert torch.allclose(whole(plan.apply(adapted)(given)), adapted(x))


def test_an_operator_that_torch_has_no_rule_for() -> None:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return nn.MultiMarginLoss()(x, y)

    x, y = torch.arange(12.0).view(4, 3).sin(), torch.tensor([0, 2, 1, 1])
    with ranks(2, names=("dp",)) as mesh:
        cut, target = spread(x, mesh, Shard(0)), spread(y, mesh, Shard(0))
        with pytest.raises(NotImplementedError) as caught:
            func.grad(loss)(cut, target)
        name, remedy = caught.value.__notes__
        assert "MultiMarginLoss" in name
        assert "x = x.full_tensor()" in remedy
        with pytest.raises(NotImplementedError) as caught:
            func.grad(lambda x, y: torch.nn.functional.multi_margin_loss(x, y))(cut, target)
        assert "x = x.full_tensor()" in caught.value.__notes__[0]
        found = func.grad(lambda x, y: loss(x.full_tensor(), y.full_tensor()))(cut, target)
        torch.testing.assert_close(whole(found), func.grad(loss)(x, y))
