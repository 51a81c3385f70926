"""Every optimizer of ``torch.optim`` as a pure function of model, gradients and state.

Example:
    >>> import torch
    >>> from parallax import func, nn, optim
    >>> model = nn.Linear(2, 1).initialize(0)
    >>> opt = optim.Adam(lr=1e-3)
    >>> state = opt.init(model)
    >>> grads = func.grad(lambda model: model(torch.ones(2)).sum())(model)
    >>> model, state = opt.step(model, grads, state)
"""

from typing import TYPE_CHECKING, Any

from parallax._errors.absent import answer_calls
from parallax._errors.arguments import answer_fields
from parallax.optim import schedules
from parallax.optim.accumulate import Accumulate, Accumulated
from parallax.optim.adadelta import Adadelta
from parallax.optim.adafactor import Adafactor
from parallax.optim.adagrad import Adagrad
from parallax.optim.adam import Adam, AdamW
from parallax.optim.adamax import Adamax
from parallax.optim.asgd import ASGD
from parallax.optim.average import EMA, SWA, Average
from parallax.optim.base import Optimizer
from parallax.optim.chain import Chained, chain
from parallax.optim.clip import (
    ClipNorm,
    ClipValue,
    clip_grad_norm,
    clip_grad_value,
    clip_per_sample,
)
from parallax.optim.depth import layerwise_lr
from parallax.optim.foreign import from_torch
from parallax.optim.lamb import LAMB
from parallax.optim.lbfgs import LBFGS
from parallax.optim.lion import Lion
from parallax.optim.lookahead import Lookahead
from parallax.optim.muon import Muon
from parallax.optim.nadam import NAdam
from parallax.optim.options import complete
from parallax.optim.prodigy import Prodigy
from parallax.optim.radam import RAdam
from parallax.optim.rmsprop import RMSprop
from parallax.optim.rprop import Rprop
from parallax.optim.sam import ASAM, SAM
from parallax.optim.scaler import LossScaler, Scale
from parallax.optim.schedulefree import AdamWScheduleFree, SGDScheduleFree
from parallax.optim.sgd import SGD
from parallax.optim.shaping import AddNoise, Centralize, ClipAdaptive
from parallax.optim.skip import SkipNonfinite, Skipped
from parallax.optim.sparse_adam import SparseAdam
from parallax.optim.split import Split, Splits
from parallax.optim.state import State
from parallax.tree.donated import DonatedError

__all__ = [
    "ASAM", "ASGD", "EMA", "LAMB", "LBFGS", "SAM", "SGD", "SWA", "Accumulate", "Accumulated",
    "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "AdamWScheduleFree", "Adamax", "AddNoise",
    "Average", "Centralize", "Chained", "ClipAdaptive", "ClipNorm", "ClipValue", "DonatedError",
    "Lion", "Lookahead", "LossScaler", "Muon", "NAdam", "Optimizer", "Prodigy", "RAdam", "RMSprop",
    "Rprop", "SGDScheduleFree", "Scale", "SkipNonfinite", "Skipped", "SparseAdam", "Split",
    "Splits", "State", "chain", "clip_grad_norm", "clip_grad_value", "clip_per_sample",
    "from_torch", "layerwise_lr", "schedules",
]  # fmt: skip

if not TYPE_CHECKING:  # checkers would accept every name otherwise

    def __getattr__(name: str) -> Any:
        from parallax._errors.absent import no_such_name

        raise no_such_name(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)


for _value in [globals()[name] for name in __all__]:
    if isinstance(_value, type) and issubclass(_value, Optimizer) and _value is not Optimizer:
        complete(_value)


answer_fields("optim", {name: globals()[name] for name in __all__})
answer_calls(__name__, globals())
