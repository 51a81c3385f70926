"""Clipping against ``torch.nn.utils``."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from parallax import func, optim, tree
from tests.corpus import MLP, example_input
from tests.optim.cases import Net, gradients


def grads_with_a_hole() -> Any:
    return tree.partition(next(gradients(Net().initialize(0), 1)), "bias")[1]


def params_of(grads: Any) -> list[Any]:
    params = [torch.nn.Parameter(torch.zeros_like(leaf)) for leaf in tree.leaves(grads)]
    for param, leaf in zip(params, tree.leaves(grads), strict=True):
        param.grad = leaf.clone()
    return params


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e3])
def test_by_norm_has_the_very_bits_of_torch(max_norm: float, norm_type: float) -> None:
    grads = grads_with_a_hole()
    params = params_of(grads)
    theirs = torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type)
    clipped, norm = optim.clip_grad_norm(grads, max_norm, norm_type)
    assert torch.equal(norm, theirs) and clipped.bias is None
    for mine, param in zip(tree.leaves(clipped), params, strict=True):
        assert torch.equal(mine, param.grad)


def test_by_value_has_the_very_bits_of_torch() -> None:
    grads = grads_with_a_hole()
    params = params_of(grads)
    torch.nn.utils.clip_grad_value_(params, 0.5)
    for mine, param in zip(tree.leaves(optim.clip_grad_value(grads, 0.5)), params, strict=True):
        assert torch.equal(mine, param.grad)


def test_per_sample_is_a_loop_over_the_samples() -> None:
    model, x = MLP().initialize(0), example_input()
    per_sample = torch.vmap(func.grad(lambda net, row: net(row).square().sum()), in_dims=(None, 0))(
        model, x
    )
    clipped = optim.clip_per_sample(per_sample, 0.5)
    for k in range(len(x)):
        alone, _ = optim.clip_grad_norm(tree.map(lambda g, k=k: g[k], per_sample), 0.5)
        for mine, theirs in zip(tree.leaves(clipped), tree.leaves(alone), strict=True):
            assert torch.allclose(mine[k], theirs, rtol=1e-6)
    with pytest.raises(ValueError, match=r"of shape \(batch, ...\) with one size of batch"):
        optim.clip_per_sample({"a": torch.zeros(2), "b": torch.zeros(3)}, 0.5)
    with pytest.raises(ValueError, match="with one size of batch"):
        optim.clip_per_sample({"a": torch.zeros(())}, 0.5)
    scalars = {"a": torch.tensor([3.0, 0.1]), "b": torch.tensor([[4.0], [0.1]])}
    made = optim.clip_per_sample(scalars, 1.0)
    assert torch.allclose(made["a"], torch.tensor([0.6, 0.1]))


@pytest.mark.parametrize(("value", "word"), [(math.nan, "nan"), (math.inf, "infinite")])
def test_gradients_that_are_not_finite_are_refused_when_asked(value: float, word: str) -> None:
    grads = tree.select(grads_with_a_hole(), "second").apply(
        lambda g: g.index_fill(0, torch.tensor([1]), value)
    )
    with pytest.raises(FloatingPointError, match=f"the gradient of second has {word} entries"):
        optim.clip_grad_norm(grads, 1.0, error_if_nonfinite=True)
    assert not optim.clip_grad_norm(grads, 1.0)[1].isfinite()
    opt, model = optim.chain(optim.ClipNorm(1.0, error_if_nonfinite=True), optim.SGD()), Net()
    model = model.initialize(0)
    state = opt.init(model)
    with pytest.raises(FloatingPointError, match="Lower the learning rate or scale the loss"):
        opt.step(model, grads, state)
    assert not any(leaf.isnan().any() for leaf in tree.leaves(model))


def test_under_vmap_and_compile() -> None:
    members = list(gradients(Net().initialize(0), 3))
    grads, first = tree.stack(members), members[0]

    def clip(g: Any) -> Any:
        return optim.clip_grad_norm(g, 0.5)[0]

    stacked = torch.vmap(clip)(grads)
    for k, member in enumerate(tree.unstack(grads)):
        for mine, theirs in zip(
            tree.leaves(tree.unstack(stacked)[k]), tree.leaves(clip(member)), strict=True
        ):
            assert torch.allclose(mine, theirs, rtol=1e-6)
    compiled = torch.compile(clip, fullgraph=True, backend="eager")(first)
    assert all(
        torch.allclose(a, b)
        for a, b in zip(tree.leaves(compiled), tree.leaves(clip(first)), strict=True)
    )
    torch._dynamo.reset()


def test_numbers_keep_their_dtype_beside_wider_leaves_and_bounds() -> None:
    half = torch.tensor(3.0, dtype=torch.bfloat16)
    grads = {"a": half, "b": torch.tensor([4.0])}
    clipped, norm = optim.clip_grad_norm(grads, 1.0)
    assert norm.item() == 5 and clipped["a"].item() == half.mul(0.2).item()
    wide: Any = torch.tensor(1.0, dtype=torch.float64)
    scaler = optim.LossScaler(2.0)
    made = [
        clipped, optim.clip_grad_norm(grads, wide)[0], optim.clip_grad_value(grads, wide),
        scaler.unscale(grads, scaler.init())[0],
    ]  # fmt: skip
    for one in made:
        assert [leaf.dtype for leaf in one.values()] == [torch.bfloat16, torch.float32]
