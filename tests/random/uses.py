"""Every way to use a key up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from parallax import random
from parallax.random import Key

USES: dict[str, Callable[[Key], Any]] = {
    "bernoulli": random.bernoulli,
    "bits": random.bits,
    "categorical": lambda key: random.categorical(key, torch.zeros(3)),
    "choice": lambda key: random.choice(key, 3),
    "dropout_mask": lambda key: random.dropout_mask(key, (3,)),
    "exponential": random.exponential,
    "gumbel": random.gumbel,
    "normal": random.normal,
    "permutation": lambda key: random.permutation(key, 3),
    "randint": lambda key: random.randint(key, (3,), 0, 2),
    "split": random.split,
    "truncated_normal": random.truncated_normal,
    "uniform": random.uniform,
}
