"""Every sample of torch's own module database, lifted, computes what torch does.

The ordinary run takes two samples of each class and mode; ``--slow`` takes all.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from parallax import Module, bridge
from tests.bridge.checks import same
from tests.corpus.torch_data import Sample, modules, samples
from tests.torch_modules import check_forward, check_gradients, check_vmap

QUICK = 2
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's samples use what it warns of
every_class = pytest.mark.parametrize("info", modules(), ids=lambda info: info.name)


def lifted(_: Sample, source: nn.Module) -> Module:
    module: Module = bridge.lift(source)
    return module


def taken(request: Any) -> int | None:
    return None if request.config.getoption("--slow") else QUICK


@every_class
def test_forward_and_buffers(info: Any, request: Any) -> None:
    for sample in samples(info, taken(request)):
        check_forward(sample, lifted, same)


@every_class
def test_gradients_of_first_and_second_order(info: Any, request: Any) -> None:
    with sdpa_kernel(SDPBackend.MATH):  # of which alone torch has second derivatives
        for sample in samples(info, taken(request)):
            check_gradients(sample, lifted)


@every_class
def test_ensembles(info: Any, request: Any) -> None:
    for sample in samples(info, taken(request)):
        check_vmap(sample, lifted)
