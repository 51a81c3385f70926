"""The modules and trees that every test may use: each kind of field, container and tie once.

``MODULES`` parametrises a test over all of them, ``FLOAT`` over those whose leaves are all real
floats (what raw ``torch.func`` differentiates), ``TWINS`` over those with a ``torch.nn`` twin:

    @pytest.mark.parametrize("case", MODULES, ids=str)
    def test_something(case: Case) -> None:
        module = case.make()
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import init

from parallax import Module, Parameter
from tests.corpus.cases import Case, example_input
from tests.corpus.classes import Residual, ScaledDense, Square
from tests.corpus.constants import CONSTANTS, Config, Constants, Padding, double
from tests.corpus.containers import (
    MLP,
    Branches,
    Gated,
    Gates,
    Many,
    Nested,
    Sequential,
    Twig,
    chain,
)
from tests.corpus.foreign import Foreign, Holder
from tests.corpus.leaves import SIZE, Dense, Empty, Norm, Precisions, Scalars, Scale, leaf
from tests.corpus.ties import TiedModule, TiedParameter
from tests.corpus.twins import (
    TorchBranches,
    TorchMany,
    TorchMLP,
    TorchSequential,
    TorchTiedModule,
    TorchTiedParameter,
)

__all__ = [
    "CONSTANTS",
    "FLOAT",
    "MLP",
    "MODULES",
    "SIZE",
    "TIED",
    "TWINS",
    "Branches",
    "Case",
    "Config",
    "Constants",
    "Dense",
    "Foreign",
    "Gated",
    "Gates",
    "Holder",
    "Many",
    "Nested",
    "Norm",
    "Padding",
    "Precisions",
    "Residual",
    "Scale",
    "Sequential",
    "TiedModule",
    "TiedParameter",
    "Twig",
    "chain",
    "double",
    "example_input",
    "leaf",
]


def _constants() -> Module:
    return Constants(tuple(CONSTANTS.values()), Parameter((SIZE,), init.ones_))


MODULES: list[Case] = [
    Case("dense", Dense, lambda: nn.Linear(SIZE, SIZE)),
    Case("no_bias", partial(Dense, bias=False), lambda: nn.Linear(SIZE, SIZE, bias=False)),
    Case("scale", lambda: Scale(Parameter((SIZE,), init.ones_))),
    Case("scalars", Scalars),
    Case("norm", Norm, lambda: nn.BatchNorm1d(SIZE), real=False),
    Case("precisions", Precisions, real=False),
    Case("empty", Empty, nn.Identity),
    Case("mlp", MLP, TorchMLP),
    Case("mlp_of_modules", lambda: MLP(Scale(Parameter((SIZE,), init.ones_)))),
    Case("no_biases", partial(MLP, bias=False), partial(TorchMLP, bias=False)),
    Case("sequential", lambda: Sequential(Dense(), torch.relu, Dense()), TorchSequential),
    Case("branches", lambda: Branches("z", "a", "m"), lambda: TorchBranches("z", "a", "m")),
    Case("gated", Gated),
    Case("nested", Nested),
    Case("many", Many, TorchMany),
    Case("twig", lambda: Twig(Twig(right=Twig()), Twig())),
    Case("chain", lambda: chain(20)),
    Case("constants", _constants),
    Case("generic", lambda: Residual(Residual(Dense()))),
    Case("square", Square),
    Case("scaled_dense", ScaledDense),
    Case("tied_parameter", TiedParameter, TorchTiedParameter, tied=True),
    Case("tied_module", TiedModule, TorchTiedModule, tied=True),
    Case("foreign", Holder),
    Case("in_eval", MLP, TorchMLP, change=lambda module: module.eval()),
    Case(
        "with_rng", lambda: Sequential(Dense(), torch.relu), change=lambda module: module.train(3)
    ),
]

FLOAT = [case for case in MODULES if case.real]
TWINS = [case for case in MODULES if case.make_twin is not None]
TIED = [case for case in MODULES if case.tied]
