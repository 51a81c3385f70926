"""Explicit randomness: keys that are used once or split, and draws from them.

The names are those of ``torch``; every function takes a key first and touches no global state.
"""

from typing import TYPE_CHECKING, Any

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
from parallax.random.reuse_blocks import reuse
from parallax.random.sources import Rng, as_key
from parallax.random.uses import KeyReusedError

__all__ = [
    "Key",
    "KeyReusedError",
    "Rng",
    "as_key",
    "bernoulli",
    "bits",
    "categorical",
    "choice",
    "clone",
    "dropout_mask",
    "exponential",
    "fold_in",
    "from_state",
    "gumbel",
    "key",
    "normal",
    "permutation",
    "randint",
    "reuse",
    "split",
    "truncated_normal",
    "uniform",
]


if not TYPE_CHECKING:  # checkers would accept every name otherwise

    def __getattr__(name: str) -> Any:
        from parallax._errors.absent import no_such_name

        raise no_such_name(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)
