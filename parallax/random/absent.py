"""Names for randomness that are not here, and what to write instead."""

from __future__ import annotations

__all__ = ["INSTEAD"]

_KEY = "random.key(seed); nothing here reads or moves the global generator"
_ICDF = "distributions.{}.icdf(random.uniform(key, shape)), with torch.distributions"

INSTEAD = {
    "cauchy": _ICDF.format("Cauchy(0.0, 1.0)"),
    "default_rng": _KEY,
    "Generator": _KEY,
    "get_rng_state": "the key itself, a tree of one leaf that io.save takes",
    "initial_seed": _KEY,
    "laplace": _ICDF.format("Laplace(0.0, 1.0)"),
    "logistic": "torch.logit(random.uniform(key, shape))",
    "manual_seed": _KEY,
    "multinomial": "random.choice(key, len(p), shape, replace=False, p=p)",
    "multivariate_normal": "mean + random.normal(key, (n, d)) @ torch.linalg.cholesky(cov).T",
    "PRNGKey": _KEY,
    "rademacher": "2 * random.bernoulli(key, shape) - 1",
    "rand": "random.uniform(key, shape)",
    "rand_like": "random.uniform(key, x.shape)",
    "randn": "random.normal(key, shape)",
    "randn_like": "random.normal(key, x.shape)",
    "random_bits": "random.bits(key, shape)",
    "randperm": "random.permutation(key, n)",
    "seed": _KEY,
    "set_rng_state": "random.key(seed), or io.load of a key that was saved",
    "shuffle": "random.permutation(key, x)",
}
"""What to write instead of a name."""
