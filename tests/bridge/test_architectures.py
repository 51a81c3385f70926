"""Whole models of transformers, lifted, do what they did."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="the extra 'test' installs transformers")

from parallax import bridge, effects, func, tree
from tests.bridge.architectures import ARCHITECTURES, build
from tests.bridge.checks import check_gradients, check_step, same

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def loss(out: Any) -> Tensor:
    first = out[0]
    assert isinstance(first, Tensor)
    return (first * first).mean()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_is_lifted_exactly(name: str) -> None:
    original = build(name)
    lifted = bridge.lift(original)
    inputs = ARCHITECTURES[name].inputs()
    before = {k: v.clone() for k, v in original.state_dict().items()}

    reference = copy.deepcopy(original)
    loss(reference(**inputs)).backward()
    grads, value = func.grad_and_value(lambda m: loss(m(**inputs)))(lifted)
    assert torch.equal(value, loss(original(**inputs)))
    check_gradients(grads, reference)
    check_step(lifted, grads, reference)

    assert list(bridge.state_dict(lifted)) == list(before)
    lowered = bridge.lower(lifted)
    assert type(lowered) is type(original)
    with torch.no_grad():
        expected = original.requires_grad_(False)(**inputs).to_tuple()
        same(lifted(**inputs).to_tuple(), expected)
        same(lowered.requires_grad_(False)(**inputs).to_tuple(), expected)
    for key, value in lowered.state_dict().items():
        same(value, before[key])
    same(list(original.state_dict().values()), list(before.values()))


@pytest.mark.parametrize("name", ["gpt2", "llama", "mamba", "t5"])
def test_generate_with_a_cache_is_callable_on_the_lifted_model(name: str) -> None:
    original = build(name)
    lifted = bridge.lift(original)
    ids = torch.randint(3, 32, (2, 4))
    options = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}
    expected = original.requires_grad_(False).generate(ids, **options)  # type: ignore[operator]  # a method
    assert torch.equal(lifted.generate(ids, **options), expected)
    assert isinstance(lifted.get_input_embeddings(), bridge.Lifted)
    assert lifted.config.vocab_size == 32 and lifted.dtype is torch.float32


def test_a_cache_is_an_argument_like_any_other() -> None:
    lifted = bridge.lift(build("gpt2"))
    ids = torch.randint(3, 32, (1, 6))
    with torch.no_grad():
        whole = lifted(ids).logits
        first = lifted(ids[:, :4], use_cache=True)
        rest = lifted(ids[:, 4:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(rest, whole[:, 4:])


def test_batch_norm_of_a_vision_model_comes_back_as_effects() -> None:
    original = build("resnet").train()
    lifted = bridge.lift(original)
    inputs = ARCHITECTURES["resnet"].inputs()
    reference = copy.deepcopy(original)
    reference(**inputs)
    _, after = effects.collect(type(lifted).__call__)(lifted, **inputs)
    same(list(bridge.state_dict(after).values()), list(reference.state_dict().values()))


def test_gradient_checkpointing_recomputes_with_the_right_weights() -> None:
    original = build("llama").train()
    original.gradient_checkpointing_enable()  # type: ignore[operator]  # a method of transformers
    lifted = bridge.lift(original)
    ids = torch.randint(3, 32, (2, 6))
    reference = copy.deepcopy(original)
    loss(reference(ids)).backward()
    grads = dict(tree.named_leaves(func.grad(lambda m: loss(m(ids)))(lifted)))
    for n, p in reference.named_parameters():
        torch.testing.assert_close(grads[n], p.grad)


def test_tied_embeddings_stay_tied() -> None:
    lifted = bridge.lift(build("qwen2"))
    assert lifted.lm_head.weight is lifted.model.embed_tokens.weight
    doubled = tree.map(lambda x: x * 2 if x.is_floating_point() else x, lifted)
    assert doubled.lm_head.weight is doubled.model.embed_tokens.weight
    lowered: Any = bridge.lower(doubled)
    assert lowered.lm_head.weight is lowered.model.embed_tokens.weight


def test_per_example_gradients_by_vmap() -> None:
    # the fused attention of the CPU has no batching rule
    lifted = bridge.lift(build("gpt2", attn_implementation="eager"))
    ids = torch.randint(3, 32, (3, 6))

    def single(module: Any, row: Tensor) -> Tensor:
        return loss(module(row[None], use_cache=False))

    stacked = func.vmap(func.grad(single), in_dims=(None, 0))(lifted, ids)
    one = func.grad(single)(lifted, ids[1])
    torch.testing.assert_close(
        stacked.transformer.h[0].attn.c_attn.weight[1], one.transformer.h[0].attn.c_attn.weight
    )
