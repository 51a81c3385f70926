"""Learning rates as pure functions of the step: the curves of ``torch.optim.lr_scheduler``.

A schedule stands where a number would: ``optim.Adam(lr=StepLR(0.1, 30))``; any hyper-parameter may
be one, and so may any function of your own. ``step`` counts the steps already made. It is an int in
eager code and a tensor under ``torch.compile``, where the rate is part of the graph and changes
without compiling again. Schedules here take both. They are values: two equal ones are equal.

``ReduceLROnPlateau`` is a function of what was measured, and so has a state of its own.
"""

from parallax.optim.schedules.combined import ChainedScheduler, SequentialLR
from parallax.optim.schedules.curve import Schedule
from parallax.optim.schedules.cycle import (
    SWALR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    OneCycleLR,
    WarmupCosineLR,
)
from parallax.optim.schedules.decay import (
    ConstantLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from parallax.optim.schedules.plateau import Plateau, ReduceLROnPlateau

__all__ = [
    "SWALR", "ChainedScheduler", "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts",
    "CyclicLR", "ExponentialLR", "LambdaLR", "LinearLR", "MultiStepLR", "MultiplicativeLR",
    "OneCycleLR", "Plateau", "PolynomialLR", "ReduceLROnPlateau", "Schedule", "SequentialLR",
    "StepLR", "WarmupCosineLR",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted(__all__)
