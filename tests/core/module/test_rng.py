"""The random state that verbs hand out, and ``split``, which gives each copy its own."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from parallax import tree
from tests.corpus import MLP, SIZE, Dense, example_input


def test_reset_with_the_very_state_warns_and_another_does_not() -> None:
    state = torch.random.get_rng_state()
    module = Dense().initialize(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once = module.reset(state)
        once.reset(1).reset(2)
    for same_state in (state, state.clone()):
        with pytest.warns(UserWarning, match="every random number repeats") as caught:
            once.reset(same_state)
        assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "make",
    [
        lambda: 7,
        lambda: torch.Generator().manual_seed(7),
        lambda: torch.Generator().manual_seed(7).get_state(),
    ],
    ids=["seed", "generator", "state"],
)
def test_children_get_rngs_of_the_same_kind_and_what_is_given_is_only_read(
    make: Callable[[], Any],
) -> None:
    def state_of(rng: Any) -> Any:
        return rng.get_state() if isinstance(rng, torch.Generator) else torch.as_tensor(rng)

    given = make()
    before = state_of(given).clone()
    module = MLP().initialize(0).reset(given)
    assert all(isinstance(m.rng, type(given)) for m in module.modules())
    assert torch.equal(state_of(given), before)
    states = [state_of(m.rng) for m in module.modules()]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(states))
    again = MLP().initialize(0).reset(make())
    assert torch.equal(state_of(again.first.rng), state_of(module.first.rng))
    assert torch.equal(state_of(module.first.rng), state_of(module.first.rng))


def test_an_rng_that_was_never_handed_out_says_how_to() -> None:
    for module in (Dense().initialize(0), Dense().initialize(0).train(0).eval()):
        with pytest.raises(RuntimeError, match=r"Dense\.rng.*module\.reset\(rng\)"):
            module.rng


def test_split_copies_share_leaves_and_differ_in_random_numbers() -> None:
    module = MLP().initialize(0).reset(5)
    copies = module.split(3)
    assert len(copies) == 3
    for other in copies:
        for ours, theirs in zip(tree.leaves(module), tree.leaves(other), strict=True):
            assert ours is theirs
    seeds = [m.rng for whole in (module, *copies) for m in whole.modules()]
    assert len(set(seeds)) == len(seeds)
    nested = [other.rng for whole in copies for other in whole.split(2)]
    assert len(set(nested) | set(seeds)) == len(nested) + len(seeds)
    assert [c.rng for c in module.split(3)] == [c.rng for c in copies]


def test_gradients_of_every_copy_reach_the_one_set_of_leaves() -> None:
    x = example_input()
    dense = Dense().initialize(0).reset(0)
    first, second = dense.split(2)
    second(torch.tanh(first(x))).sum().backward()
    twin = nn.Linear(SIZE, SIZE)
    twin.load_state_dict(tree.named_leaves(dense))
    twin(torch.tanh(twin(x))).sum().backward()
    torch.testing.assert_close(dense.grad().weight, twin.weight.grad)
    torch.testing.assert_close(first.grad().bias, twin.bias.grad)


def test_split_works_without_rng_and_uninitialised() -> None:
    first, second = Dense().split(2)
    assert first.weight is second.weight
    assert len(Dense().initialize(0).split(1)) == 1


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", None])
def test_split_into_less_than_one_is_refused(n: Any) -> None:
    with pytest.raises(ValueError, match=r"split\(n\): n must be a positive int"):
        Dense().initialize(0).split(n)
