"""Learning rates that depend on the depth of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parallax.optim.arguments import check_at_least, check_kind
from parallax.optim.checks import open_model
from parallax.optim.hyper import Number
from parallax.tree.match import find
from parallax.tree.places import Survey

__all__ = ["layerwise_lr"]


def layerwise_lr(
    model: Any, *layers: Any, lr: Number, decay: float = 0.75
) -> dict[str, dict[str, Number]]:
    """Groups for an optimizer, whose rates fall by a factor per layer from the last to the first.

    Layer-wise learning-rate decay, for fine-tuning. Leaves in none of the layers keep the
    optimizer's own rate.

    Args:
        model: a module.
        *layers: conditions of ``tree.select`` from the input to the output; what a glob such as
            ``"blocks.*"`` matches are that many layers, in order. An ``nn.Stack`` is one layer.
        lr: the rate of the last layer: a number, a tensor or a schedule.
        decay: the rate of a layer is this multiple of that of the next one.

    Returns:
        Per path of a layer its rate, to be the ``groups`` of an optimizer.

    Raises:
        LookupError: if a condition matches nothing in the model.
        ValueError: if a layer is named twice.

    Example:
        >>> from parallax import nn, optim
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)).initialize(0)
        >>> groups = optim.layerwise_lr(model, "layers.*", lr=0.1, decay=0.5)
        >>> groups
        {'layers.0': {'lr': 0.025}, 'layers.1': {'lr': 0.05}, 'layers.2': {'lr': 0.1}}
        >>> opt = optim.AdamW(lr=0.1, groups=groups)
    """
    what = "layerwise_lr"
    open_model(what, model)
    check_kind(what, "lr", lr, "Number", 1e-3)
    check_kind(what, "decay", decay, "float", 0.75)
    check_at_least(what, "decay", decay, 0, strictly=True)
    if not layers:
        raise ValueError(f"{what}: name the layers: {what}(model, 'embed', 'blocks.*', 'head')")
    survey = Survey(model)
    paths: list[str] = []
    for condition in layers:
        try:
            entries = find(survey, condition)[0]
        except LookupError as error:
            raise LookupError(f"{what}: {condition!r}: {error}") from None
        paths += [entry.path for entry in entries]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"{what}: {path!r} is in two layers. Give each part to one of them")
    depth = range(len(paths) - 1, -1, -1)
    return {p: {"lr": _times(decay**k, lr)} for p, k in zip(paths, depth, strict=True)}


@dataclass(frozen=True)
class _Multiple:
    """A multiple of a schedule."""

    factor: float
    schedule: Any

    def __call__(self, step: Any) -> Any:
        return self.factor * self.schedule(step)


def _times(factor: float, lr: Any) -> Any:
    return _Multiple(factor, lr) if callable(lr) else factor * lr
