"""Optimizers as their papers and programs write them: loops over lists of Python's numbers.

Each takes parameters, a list of lists, and the gradients of each step, and returns what the
parameters are in the end. Rates are given for each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Leaves = list[list[float]]
Steps = Sequence[Leaves]
Rate = Callable[[int], float]


def lion(params: Leaves, steps: Steps, lr: Rate, **options: Any) -> Leaves:
    """Chen et al. 2023, algorithm 2."""
    (b1, b2), decay = options.get("betas", (0.9, 0.99)), options.get("weight_decay", 0.0)
    m = zeros(params)
    for t, grads in enumerate(steps):
        for p, g, mean in zip(params, grads, m, strict=True):
            for i in range(len(p)):
                c = b1 * mean[i] + (1 - b1) * g[i]
                sign = (c > 0) - (c < 0)
                p[i] -= lr(t) * (sign + decay * p[i])
                mean[i] = b2 * mean[i] + (1 - b2) * g[i]
    return params


def lamb(params: Leaves, steps: Steps, lr: Rate, **options: Any) -> Leaves:
    """You et al. 2020, algorithm 2, with the identity as phi."""
    (b1, b2), decay = options.get("betas", (0.9, 0.999)), options.get("weight_decay", 0.01)
    eps, m, v = options.get("eps", 1e-6), zeros(params), zeros(params)
    for t, grads in enumerate(steps):
        for p, g, mean, square in zip(params, grads, m, v, strict=True):
            update = []
            for i in range(len(p)):
                mean[i] = b1 * mean[i] + (1 - b1) * g[i]
                square[i] = b2 * square[i] + (1 - b2) * g[i] ** 2
                first, second = mean[i] / (1 - b1 ** (t + 1)), square[i] / (1 - b2 ** (t + 1))
                update.append(first / (math.sqrt(second) + eps) + decay * p[i])
            size, length = math.hypot(*p), math.hypot(*update)
            ratio = size / length if size > 0 and length > 0 else 1.0
            for i in range(len(p)):
                p[i] -= lr(t) * ratio * update[i]
    return params


def schedule_free(
    params: Leaves, steps: Steps, lr: Rate, adam: bool, **options: Any
) -> tuple[Leaves, Leaves]:
    """Defazio et al. 2024: explicit x, y and z; returns y and x."""
    beta = options["betas"][0] if adam else options.get("momentum", 0.9)
    b2, eps = options["betas"][1] if adam else 0.0, options.get("eps", 1e-8)
    decay, r = options.get("weight_decay", 0.0), options.get("r", 0.0)
    power = options.get("weight_lr_power", 2.0)
    z, x, v = [list(p) for p in params], [list(p) for p in params], zeros(params)
    total = largest = 0.0
    for t, grads in enumerate(steps):
        largest = max(largest, lr(t))
        weight = (t + 1) ** r * largest**power
        total += weight
        c = weight / total if total else 0.0
        for k, g in enumerate(grads):
            for i in range(len(g)):
                y = (1 - beta) * z[k][i] + beta * x[k][i]
                update = g[i]
                if adam:
                    v[k][i] = b2 * v[k][i] + (1 - b2) * g[i] ** 2
                    update /= math.sqrt(v[k][i] / (1 - b2 ** (t + 1))) + eps
                z[k][i] -= lr(t) * (update + decay * y)
                x[k][i] = (1 - c) * x[k][i] + c * z[k][i]
    pairs = zip(z, x, strict=True)
    return [[(1 - beta) * a + beta * b for a, b in zip(*p, strict=True)] for p in pairs], x


def prodigy(params: Leaves, steps: Steps, lr: Rate, **options: Any) -> tuple[Leaves, float]:
    """Mishchenko and Defazio 2024, algorithm 4, with the options of their program; and d."""
    (b1, b2), eps = options.get("betas", (0.9, 0.999)), options.get("eps", 1e-8)
    b3 = options.get("beta3") or math.sqrt(b2)
    decay, decoupled = options.get("weight_decay", 0.0), options.get("decoupled_weight_decay", True)
    d0, most = options.get("d0", 1e-6), options.get("growth_rate", math.inf)
    d = d_max = d0
    start, m, v, s = [list(p) for p in params], zeros(params), zeros(params), zeros(params)
    numerator = 0.0
    for t, grads in enumerate(steps):
        rate = d * lr(t)
        if options.get("use_bias_correction"):
            rate *= math.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1))
        if rate == 0:
            continue
        numerator *= b3
        for k, g in enumerate(grads):
            for i in range(len(g)):
                slope = g[i] + (0.0 if decoupled else decay * params[k][i])
                numerator += d / d0 * rate * slope * (start[k][i] - params[k][i])
                m[k][i] = b1 * m[k][i] + (1 - b1) * d * slope
                v[k][i] = b2 * v[k][i] + (1 - b2) * (d * slope) ** 2
                weight = d / d0 * (d if options.get("safeguard_warmup") else rate)
                s[k][i] = b3 * s[k][i] + weight * slope
        estimate = options.get("d_coef", 1.0) * numerator / sum(abs(n) for leaf in s for n in leaf)
        d = max(d, estimate) if d == d0 else d
        d_max = max(d_max, estimate)
        d = min(d_max, d * most)
        for k, p in enumerate(params):
            for i in range(len(p)):
                if decoupled:
                    p[i] -= rate * decay * p[i]
                p[i] -= rate * m[k][i] / (math.sqrt(v[k][i]) + d * eps)
    return params, d


def zeros(params: Leaves) -> Leaves:
    return [[0.0] * len(p) for p in params]
