"""Learning-rate schedules as pure functions of the step: those of ``torch.optim.lr_scheduler``.

A schedule is given instead of a number: ``optim.Adam(lr=StepLR(0.1, 30))``; any hyper-parameter may
be one, and so may any function of your own. ``step`` counts the steps already made. It is an int in
eager code and a tensor under ``torch.compile``, where the rate is part of the graph and changes
without compiling again. Schedules here take both. Two schedules with equal arguments are equal.

``ReduceLROnPlateau`` depends on a measured number, so it has a state of its own.
"""

from typing import TYPE_CHECKING, Any

from parallax._errors.arguments import answer_fields
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

if not TYPE_CHECKING:  # checkers would accept every name otherwise

    def __getattr__(name: str) -> Any:
        from parallax._errors.absent import no_such_name

        raise no_such_name(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)


answer_fields("optim.schedules", {name: globals()[name] for name in __all__})
