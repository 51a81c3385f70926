"""Whether the numbers look random, over many keys.

Seeds are fixed, so a test here never fails by chance; thresholds are five standard deviations or
more, so that another generator would pass as well.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import random

N = 4000


def draws(keys: random.Key) -> Tensor:
    """One row of uniform numbers per key."""
    return torch.vmap(lambda key: random.uniform(key, (8,), dtype=torch.float64))(keys)


def distinct(values: Any) -> int:
    return len(values.unique())


def assert_uniform(values: Tensor) -> None:
    """The Kolmogorov-Smirnov distance to the uniform distribution is small."""
    ordered = values.flatten().sort().values
    n = len(ordered)
    grid = torch.arange(1, n + 1, dtype=torch.float64) / n
    distance = torch.maximum((grid - ordered).abs(), (ordered - grid + 1 / n).abs()).max()
    assert distance.item() * math.sqrt(n) < 2.0  # exceeded with probability 7e-4


def assert_uncorrelated(one: Tensor, two: Tensor) -> None:
    one, two = one.flatten() - 0.5, two.flatten() - 0.5
    correlation = (one * two).mean() / (one.std() * two.std())
    assert abs(correlation.item()) * math.sqrt(len(one)) < 5


def test_a_million_children_are_all_different() -> None:
    children = random.split(random.key(0), 1_000_000).data
    assert distinct(children) == 1_000_000


def test_a_million_descendants_of_neighbouring_seeds_are_all_different() -> None:
    roots = random.key(torch.arange(1000))
    children = torch.vmap(lambda key: random.split(key, 1000).data)(roots)
    folded = torch.vmap(lambda key: random.fold_in(key, "x").data)(roots)
    assert distinct(torch.cat([children.flatten(), folded, roots.data])) == 1_002_000


def test_every_bit_of_a_child_is_a_fair_coin_and_independent_of_the_others() -> None:
    children = random.split(random.key(1), 2**14).data
    bits = (children[:, None] >> torch.arange(64) & 1).double() - 0.5
    scale = math.sqrt(len(bits))
    assert float(bits.mean(0).abs().max()) / 0.5 * scale < 5
    correlations = (bits.T @ bits / len(bits) / 0.25).fill_diagonal_(0)
    assert float(correlations.abs().max()) * scale < 6


def test_one_bit_of_the_seed_changes_half_the_bits_of_the_children() -> None:
    seeds = torch.cat([torch.zeros(1, dtype=torch.int64), 1 << torch.arange(63)])
    children = torch.vmap(lambda key: random.split(key, 4).data)(random.key(seeds))
    changed = (children[1:] ^ children[:1]).flatten()
    share = (changed[:, None] >> torch.arange(64) & 1).double().mean(1)
    assert float(share.min()) > 0.2 and float(share.max()) < 0.8
    assert abs(float(share.mean()) - 0.5) < 0.02


@pytest.mark.parametrize("make", ["siblings", "folded", "seeds"])
def test_numbers_across_keys_are_uniform_and_neighbours_independent(make: str) -> None:
    if make == "siblings":
        keys = random.split(random.key(2), N)
    elif make == "seeds":
        keys = random.key(torch.arange(N))
    else:
        key = random.key(2)
        keys = random.Key(torch.stack([random.fold_in(key, i).data for i in range(N)]))
    values = draws(keys)
    assert_uniform(values[:, 0])
    assert_uniform(values)
    assert_uncorrelated(values[1:], values[:-1])
    assert_uncorrelated(values[:, 1:], values[:, :-1])


def test_a_parents_numbers_tell_nothing_about_its_childrens() -> None:
    parents = random.split(random.key(3), N)
    own = draws(random.clone(parents))
    children = torch.vmap(lambda key: random.split(key, 2).data)(parents)
    for k in range(2):
        theirs = draws(random.Key(children[:, k].contiguous()))
        assert_uncorrelated(own, theirs)
        assert not bool((own == theirs).any())
    assert_uncorrelated(
        draws(random.Key(children[:, 0].contiguous())),
        draws(random.Key(children[:, 1].contiguous())),
    )
    folded = torch.vmap(lambda key: random.fold_in(key, 0).data)(parents)
    assert_uncorrelated(own, draws(random.Key(folded)))


def test_moments() -> None:
    def moments(x: Tensor) -> list[float]:
        x = x.double()
        return [x.mean().item(), x.var().item(), ((x - x.mean()) ** 4).mean().item()]

    shape = (400_000,)
    close: Any = {"abs": 0.05}
    assert moments(random.normal(random.key(0), shape)) == pytest.approx([0, 1, 3], **close)
    assert moments(random.uniform(random.key(0), shape)) == pytest.approx(
        [1 / 2, 1 / 12, 1 / 80], **close
    )
    assert moments(random.exponential(random.key(0), shape))[:2] == pytest.approx([1, 1], **close)
    assert moments(random.gumbel(random.key(0), shape))[:2] == pytest.approx(
        [0.5772, math.pi**2 / 6], **close
    )
    assert moments(random.truncated_normal(random.key(0), shape)) == pytest.approx(
        [0, 0.7737, 1.4188], **close
    )
    assert random.bernoulli(random.key(0), shape, 0.3).double().mean() == pytest.approx(
        0.3, **close
    )


def test_categories_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    share = random.categorical(random.key(0), logits, (200_000,)).bincount() / 200_000
    torch.testing.assert_close(share, logits.softmax(0), atol=0.006, rtol=0)


def test_integers_and_permutations_are_even() -> None:
    counts = random.randint(random.key(0), (60_000,), 0, 6).bincount().double()
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 30  # chi squared, 5 degrees
    orders = torch.vmap(lambda key: random.permutation(key, 3))(random.split(random.key(0), 6000))
    kinds = (orders * torch.tensor([9, 3, 1])).sum(1).bincount().double()
    kinds = kinds[kinds > 0]
    assert len(kinds) == 6 and float(((kinds - 1000) ** 2 / 1000).sum()) < 30
