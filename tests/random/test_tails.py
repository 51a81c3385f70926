"""Draws far out, in narrow intervals, in wide ranges and of rare events, against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import random
from parallax.random import seeds

N = 50_000


def distance(shares: Tensor) -> float:
    """The Kolmogorov-Smirnov distance of numbers to the uniform distribution, scaled.

    By chance it exceeds 2 with probability 7e-4; the seeds are fixed.
    """
    ordered, n = shares.double().sort().values, len(shares)
    grid = torch.arange(1, n + 1, dtype=torch.float64) / n
    return max(float((grid - ordered).max()), float((ordered - grid + 1 / n).max())) * math.sqrt(n)


def tail_shares(beyond: Tensor, start: float, width: float) -> Tensor:
    """The distribution function of a normal number ``start + t``, ``t`` within ``width``, at ``t``.

    By quadrature of ``exp(-start * t - t * t / 2)``, which neither cancels nor underflows.
    """
    end = min(width, 60.0 if start < 1 else 50.0 / start)
    grid = torch.linspace(0, end, 200_001, dtype=torch.float64)
    density = torch.exp(-start * grid - grid * grid / 2 - (start * start / 2 if start < 0 else 0))
    mass = torch.cumulative_trapezoid(density, grid)
    mass = torch.cat([mass.new_zeros(1), mass]) / mass[-1]
    place = (beyond / (end / 200_000)).clamp(0, 199_999.999)
    index = place.long()
    return torch.lerp(mass[index], mass[index + 1], place - index)


INTERVALS = [
    (-40.0, -39.0), (39.0, 40.0), (-math.inf, -40.0), (50.0, math.inf), (100.0, 101.0), (1e4, 1e5),
    (-2.0, 2.0), (8.0, 9.0), (36.0, 45.0), (35.9, 36.2), (36.9, 36.9002), (36.9, 36.90009),
    (-5.0, 40.0), (1.0, 1.0 + 1e-9), (-1e-9, 1e-9), (-38.0, -37.9999999), (-1.0, 0.0),
]  # fmt: skip


@pytest.mark.parametrize("bounds", INTERVALS, ids=str)
def test_truncated_normals_follow_their_density(bounds: tuple[float, float]) -> None:
    lower, upper = bounds
    drawn = random.truncated_normal(random.key(1), (N,), lower, upper, dtype=torch.float64)
    assert bool(((drawn >= lower) & (drawn <= upper)).all())
    mirrored = abs(upper) < abs(lower)
    start, beyond = (-upper, upper - drawn) if mirrored else (lower, drawn - lower)
    assert distance(tail_shares(beyond, start, upper - lower)) < 2
    for dtype in (torch.float16, torch.float32):
        if abs(lower) < 1e4:
            low = random.truncated_normal(random.key(1), (1000,), lower, upper, dtype=dtype)
            if upper - lower > 0.1:
                assert bool(((low.double() >= lower) & (low.double() <= upper)).all())
            torch.testing.assert_close(low, drawn[:1000].to(dtype), rtol=2e-3, atol=1e-6)


RANGES = [
    (0, 3 * 2**61), (0, 3 * 2**26), (0, 3 * 2**15), (-5, 2**62 + 12345), (-(2**62), 2**62 + 3),
    (-(2**63), 2**63 - 1), (-(2**63), 2**63), (0, 2**16 + 1), (0, 2**20), (-7, 5),
]  # fmt: skip


@pytest.mark.parametrize("bounds", RANGES, ids=str)
def test_integers_of_every_range_are_equally_likely(bounds: tuple[int, int]) -> None:
    low, high = bounds
    drawn = random.randint(random.key(3), (200_000,), low, high)
    assert int(drawn.min()) >= low and int(drawn.max()) < high
    if high - low > 1000:
        assert distance((drawn.double() - float(low)) / float(high - low)) < 2
    for parts in (3, 7):
        if (high - low) % parts == 0 and high - low < 2**63:
            counts = ((drawn - low) // ((high - low) // parts)).bincount(minlength=parts).double()
            expected = len(drawn) / parts
            chi_square = float(((counts - expected) ** 2 / expected).sum())
            assert chi_square < parts + 8 * (2 * parts) ** 0.5


def test_integers_of_narrow_ranges_and_powers_of_two_are_torchs() -> None:
    for low, high in ((0, 10), (-3, 1000), (0, 2**40), (-(2**40), 2**40)):
        generator = seeds.generator_of(5)
        expected = torch.empty(100, dtype=torch.int64).random_(low, high, generator=generator)
        assert torch.equal(random.randint(random.key(5), (100,), low, high), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uniform_numbers_never_reach_the_upper_end(dtype: torch.dtype) -> None:
    ends: Any
    for ends in ((0.1, 0.3), (1000.0, 1000.0001), (-1.0, 1.0), (-3e-5, 0.0), (-1e4, 2e4)):
        for low, high in (ends, tuple(map(torch.tensor, ends))):
            drawn = random.uniform(random.key(0), (50_000,), low, high, dtype=dtype)
            top = torch.as_tensor(high).to(drawn.dtype)
            bottom = torch.as_tensor(low).to(drawn.dtype)
            assert bool((drawn >= bottom).all())
            assert bool((drawn < top).all()) or bool(bottom >= top)
    same = random.uniform(random.key(0), (3,), 2.0, 2.0, dtype=dtype)
    assert same.tolist() == [2.0] * 3


def test_uniform_numbers_of_a_range_that_overflows() -> None:
    drawn = random.uniform(random.key(0), (N,), -3e38, 3e38)
    assert distance(drawn.double() / 6e38 + 0.5) < 2


def test_waiting_times_and_extreme_values_have_tails() -> None:
    keys = [random.fold_in(random.key(0), i) for i in range(8)]
    waits = torch.cat([random.exponential(key, (1_000_000,)) for key in keys]).double()
    assert float(waits.min()) > 0
    # Of 8 million, 8e6 * exp(-12) = 49 are above 12, and as many below its mirror image.
    for bound in (8.0, 10.0, 12.0):
        expected = len(waits) * math.exp(-bound)
        assert abs(int((waits > bound).sum()) - expected) < 5 * expected**0.5
        small = -math.log1p(-math.exp(-bound))
        assert abs(int((waits < small).sum()) - expected) < 5 * expected**0.5
    # One step of single precision holds what would be a single number without more bits.
    assert len(waits[waits > 9].float().unique()) > 0.99 * int((waits > 9).sum())
    extremes = torch.cat([random.gumbel(random.clone(key), (1_000_000,)) for key in keys[:3]])
    for values, shares in (
        (waits[:N], -torch.expm1(-waits[:N])),
        (extremes[:N], torch.exp(-torch.exp(-extremes[:N].double()))),
    ):
        assert bool(values.isfinite().all()) and distance(shares) < 2
    for bound in (8.0, 10.0):
        expected = len(extremes) * -math.expm1(-math.exp(-bound))
        assert abs(int((extremes > bound).sum()) - expected) < 5 * expected**0.5


@pytest.mark.slow
def test_many_rare_categories_get_their_share() -> None:
    logits = torch.full((50_001,), -18.4)
    logits[0] = 0
    rare = 50_000 * math.exp(-18.4)
    keys = [random.fold_in(random.key(0), i) for i in range(40)]
    found = sum([int((random.categorical(key, logits, (400,)) != 0).sum()) for key in keys])
    expected = 16_000 * rare / (1 + rare)
    assert abs(found - expected) < 4 * expected**0.5
    shifted = random.categorical(random.key(0), torch.tensor([0.0, 1.0, 2.0]) + 1e7, (1000,))
    plain = random.categorical(random.key(0), torch.tensor([0.0, 1.0, 2.0]), (1000,))
    assert torch.equal(shifted, plain)


@pytest.mark.parametrize("p", [1e-6, 1e-4, 1 - 1e-6])
def test_rare_events_are_as_rare_as_said(p: float) -> None:
    rare, n = min(p, 1 - p), 1_000_000
    keys = [random.fold_in(random.key(1), i) for i in range(10)]
    ones = sum([int(random.bernoulli(key, (n,), p).sum()) for key in keys])
    found = ones if p < 0.5 else 10 * n - ones
    assert abs(found - 10 * n * rare) < 5 * (10 * n * rare) ** 0.5
    keys = [random.clone(key) for key in keys]
    kept = sum([int((random.dropout_mask(key, (n,), p) != 0).sum()) for key in keys])
    assert kept == 10 * n - ones
    tensor = sum(
        [int(random.bernoulli(random.clone(k), (n,), torch.tensor(p)).sum()) for k in keys]
    )
    assert abs(tensor - ones) <= 5  # p is rounded there


def test_probabilities_at_the_ends_are_exact() -> None:
    for p, expected in ((0.0, 0), (1.0, 1000)):
        assert int(random.bernoulli(random.key(0), (1000,), p).sum()) == expected
        assert int(random.bernoulli(random.key(0), (1000,), torch.tensor(p)).sum()) == expected
        assert int((random.dropout_mask(random.key(0), (1000,), p) == 0).sum()) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_all_of_it_compiles_to_the_same_numbers() -> None:
    def draws(key: random.Key, high: Tensor) -> list[Tensor]:
        keys = iter(random.split(key, 40))
        out = [random.truncated_normal(next(keys), (50,), *bounds) for bounds in INTERVALS]
        out += [random.randint(next(keys), (50,), *bounds) for bounds in RANGES]
        out += [random.exponential(next(keys), (5000,)), random.gumbel(next(keys), (5000,))]
        out += [
            random.bernoulli(next(keys), (5000,), 1e-5),
            random.dropout_mask(next(keys), 9, 1e-5),
        ]
        out += [
            random.uniform(next(keys), (50,), 0.1, 0.3),
            random.uniform(next(keys), 50, 0, high),
        ]
        out += [random.categorical(next(keys), torch.tensor([0.0, 1.0]), (50,))]
        return out

    expected = draws(random.key(0), torch.tensor(0.3))
    found = parallax.compile(draws)(random.key(0), torch.tensor(0.3))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
