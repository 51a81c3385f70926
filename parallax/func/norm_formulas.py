"""Norms of layers, groups and batches by operators, as in ``formulas``.

Of torch's kernels the third derivatives are wrong, and forward mode leaves out what depends on the
running statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax.func.jet_composed import NORMS as RULES
from parallax.func.jets import NOTHING, Rule
from parallax.func.other import Other, in_single

__all__ = ["NORMS"]


def _layer_norm(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _in_single(RULES[F.layer_norm], function, x, args, kwargs)


def _group_norm(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _in_single(RULES[F.group_norm], function, x, args, kwargs)


def _with_statistics(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def by_operators(
        function: Any, x: Tensor, running_mean: Tensor | None = None,
        running_var: Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        given = [running_mean, running_var]
        copies = [in_single(stat) for stat in given]
        if any([copy is not stat for copy, stat in zip(copies, given, strict=True)]):
            # In a transform nothing but the kernel may write into what the function captures.
            norm(x.detach(), *given, *args[:5], **kwargs)
        return _in_single(RULES[norm], function, x, [*copies, *args], kwargs)

    return by_operators


def _in_other_order(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def positional(
        function: Any, x: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any,
        *options: Any,
    ) -> Tensor:  # fmt: skip
        return norm(function, x, running_mean, running_var, weight, bias, *options)

    return positional


def _in_single(
    rule: Rule, function: Any, x: Tensor, args: Sequence[Any], kwargs: dict[str, Any]
) -> Tensor:
    """By a rule, in single precision where a kernel computes half precision so."""
    options = {name: in_single(value) for name, value in kwargs.items()}
    found: Tensor = rule(NOTHING, function, in_single(x), *map(in_single, args), **options)
    return found.to(x.dtype)


def _table() -> dict[Any, Other]:
    options = frozenset({"weight", "bias", "running_mean", "running_var", "use_input_stats",
                         "training", "momentum", "eps", "cudnn_enable"})  # fmt: skip
    stats = ("input", "weight", "bias", "running_mean", "running_var")
    last = ("momentum", "eps", "cudnn_enabled")
    layer = Other(_layer_norm, ("input", "normalized_shape"), options, reverse=3)
    group = Other(_group_norm, ("input", "num_groups"), options, reverse=3)
    batch, instance = _with_statistics(F.batch_norm), _with_statistics(F.instance_norm)
    behind = ((3, "running_mean"), (4, "running_var"))
    seen = ((1, "running_mean"), (2, "running_var"))
    return {
        F.layer_norm: layer,
        F.group_norm: group,
        torch.group_norm: group,
        torch.layer_norm: layer,
        F.batch_norm: Other(
            batch, ("input", "running_mean", "running_var"), options,
            reverse=2,  # torch fails with a bias and no weight
            constants=seen,
        ),
        F.instance_norm: Other(instance, ("input",), options, reverse=3, constants=seen),
        torch.batch_norm: Other(
            _in_other_order(batch), (*stats, "training", *last), reverse=2, constants=behind
        ),
        torch.instance_norm: Other(
            _in_other_order(instance), (*stats, "use_input_stats", *last), reverse=3,
            constants=behind,
        ),
    }  # fmt: skip


NORMS = _table()
"""What is computed in place of which function."""
