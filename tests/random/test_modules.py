"""Keys within modules: each has its own, by its path."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax import Module, Parameter, func, nn, random, tree
from parallax.random import KeyReusedError, sources
from tests.random.uses import USES


class Drop(Module):
    weight: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight * random.dropout_mask(random.as_key(self.rng), x.shape)


class Pair(Module):
    one: Drop
    two: Drop

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.one(x) + self.two(x)
        return out


def pair() -> Pair:
    return Pair(Drop(torch.ones(64)), Drop(torch.ones(64)))


X = torch.ones(64)


def test_each_module_has_a_key_of_its_own_by_its_path() -> None:
    key = random.key(0)
    module = pair().train(key)
    assert torch.equal(module.one.rng.data, random.fold_in(key, "one").data)
    assert torch.equal(module.two.rng.data, random.fold_in(key, "two").data)
    assert not torch.equal(module.one(X), module.two(X))


def test_a_second_forward_of_one_tree_is_a_second_use() -> None:
    module = pair().train(random.key(0))
    module(X)
    for again in (module, tree.map(lambda x: x + 1, module), copy.copy(module)):
        with pytest.raises(KeyReusedError):
            again(X)
    module.train(random.key(1))(X)


def test_func_grad_rebuilds_the_tree_and_still_detects() -> None:
    module = pair().train(random.key(0))

    def loss(module: Any) -> Any:
        return module(X).sum()

    func.grad(loss)(module)
    with pytest.raises(KeyReusedError):
        func.grad(loss)(module)
    with random.reuse():
        func.grad(loss)(module)


def test_the_same_key_handed_out_again_is_a_second_use() -> None:
    key = random.key(0)
    pair().train(key)(X)
    with pytest.raises(KeyReusedError):
        pair().train(key)(X)
    with random.reuse():
        pair().train(key)(X)


def test_split_copies_have_other_numbers() -> None:
    one, two = pair().train(random.key(0)).split(2)
    assert not torch.equal(one(X), two(X))


def test_split_before_train_gives_other_numbers_too() -> None:
    one, two = pair().split(2)
    assert not torch.equal(one.train(random.key(0))(X), two.train(random.key(0))(X))


def test_seeds_generators_and_states_come_as_they_were_given() -> None:
    state = torch.Generator().manual_seed(1).get_state()
    given: list[Any] = [random.key(0), 3, torch.Generator().manual_seed(1), state]
    for rng in given:
        module = pair().train(rng)
        assert isinstance(module.one.rng, type(rng))
        module(X)
    assert pair().train(state).one.rng.dtype is torch.uint8
    assert pair().train(state).one.rng.shape == state.shape


@pytest.mark.parametrize("verb", ["initialize", "reset", "train"])
@pytest.mark.parametrize("rng", [1.5, "0", None, torch.zeros(3), True, object()])
def test_verbs_name_what_rng_may_be(verb: str, rng: Any) -> None:
    rng = "none" if verb == "train" and rng is None else rng  # train() keeps the rng
    with pytest.raises(TypeError, match="rng must be a Key, an int seed"):
        getattr(pair(), verb)(rng)


def test_initialisation_and_reset_draw_from_separate_domains() -> None:
    class Declared(Module):
        weight: Parameter

        def __init__(self) -> None:
            super().__init__()
            self.weight = Parameter((64,), torch.nn.init.normal_)

    weight = Declared().initialize(random.key(0)).weight
    key = Declared().initialize(random.key(0)).train(random.key(0)).rng
    assert not torch.equal(weight, random.normal(key, (64,)))
    assert not torch.equal(weight, random.normal(random.key(0), (64,)))
    assert torch.equal(Declared().initialize(random.key(0)).weight, weight)


@pytest.mark.parametrize("rng", [lambda: 3, lambda: random.key(3)])
def test_reset_with_the_state_the_tree_has_warns(rng: Callable[[], Any]) -> None:
    module = pair().reset(rng())
    with pytest.warns(UserWarning, match="every random number repeats"):
        module.reset(rng())
    module.reset(17)


def test_a_stack_of_modules_holds_a_stack_of_keys() -> None:
    keys = random.split(random.key(0), 3)
    members = [pair().train(key) for key in keys]
    stacked = torch_pytree.tree_map(lambda *leaves: torch.stack(leaves), *members)
    outs = torch.vmap(lambda module: module(X))(stacked)
    assert torch.equal(outs, torch.stack([member(X) for member in members]))


@pytest.mark.parametrize("as_state", [False, True])
def test_a_generator_that_was_handed_out_is_known_again(as_state: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    rng: Any = generator.get_state() if as_state else generator
    one, two = nn.Dropout(0.5).train(rng), nn.Dropout(0.5).train(rng)
    one(X)
    with pytest.raises(KeyReusedError, match="the root module was given the key that it has drawn"):
        two(X)
    with random.reuse():
        two(X)
    if not as_state:
        torch.rand(1, generator=generator)  # it is another one now
        three = nn.Dropout(0.5).train(generator)
        three(X)


def test_stack_sources_makes_keys_of_every_form() -> None:
    members = [pair().train(seed) for seed in (1, 2)]
    stacked = sources.stack_sources([member._rng for member in members])
    assert stacked is not None and stacked.key.shape == (2,)
    assert sources.stack_sources([None, None]) is None
    with pytest.raises(ValueError, match="tree 1 does not"):
        sources.stack_sources([members[0]._rng, None])


def test_handing_out_a_key_leaves_it_usable_and_leaves_alone() -> None:
    key, module = random.key(0), pair()
    trained = module.train(key)
    assert all(a is b for a, b in zip(tree.leaves(module), tree.leaves(trained), strict=True))
    assert module._rng is None
    random.normal(key)


def test_the_global_rng_stays() -> None:
    before = torch.random.get_rng_state()
    for use in USES.values():
        use(random.key(0))
    pair().train(random.key(0))(X)
    pair().reset(3)(X)
    assert torch.equal(torch.random.get_rng_state(), before)
