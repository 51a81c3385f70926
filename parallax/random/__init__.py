"""Explicit randomness: keys that are used once or split, and draws from them.

The names are those of ``torch``; every function takes a key first and touches no global state.
"""

from parallax.random.discrete import bits, categorical, choice, permutation, randint
from parallax.random.draws import (
    bernoulli,
    dropout_mask,
    exponential,
    gumbel,
    normal,
    truncated_normal,
    uniform,
)
from parallax.random.keys import Key, clone, fold_in, from_state, key, split
from parallax.random.reusing import reuse
from parallax.random.seeds import derive, generator_of
from parallax.random.sources import (
    KeySource,
    Rng,
    Source,
    as_key,
    seed_of,
    source_of,
    stack_sources,
    warn_if_same,
)
from parallax.random.uses import KeyReusedError

__all__ = [
    "Key",
    "KeyReusedError",
    "KeySource",
    "Rng",
    "Source",
    "as_key",
    "bernoulli",
    "bits",
    "categorical",
    "choice",
    "clone",
    "derive",
    "dropout_mask",
    "exponential",
    "fold_in",
    "from_state",
    "generator_of",
    "gumbel",
    "key",
    "normal",
    "permutation",
    "randint",
    "reuse",
    "seed_of",
    "source_of",
    "split",
    "stack_sources",
    "truncated_normal",
    "uniform",
    "warn_if_same",
]


def __dir__() -> list[str]:
    return sorted(__all__)
