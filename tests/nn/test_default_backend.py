"""Layers and losses compute the same on inductor as in eager code: values and gradients.

Packed into few graphs, for a graph costs more than what is in it. With ``--slow`` every layer and
loss, one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax import Module, effects, func, nn, tree
from tests.compiling import make_compiled
from tests.corpus.losses import FUNCTIONS, rows
from tests.nn.test_every_layer import CASES, Case, prepared
from tests.tree.test_compile import same

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

# Of each family one; others run the same code in one or three dimensions, or kernels of torch.
TOGETHER = {
    "activations": [
        "CELU", "ELU", "GELU", "GLU", "Hardsigmoid", "Hardswish", "LeakyReLU", "LogSigmoid", "Mish",
        "PReLU", "SELU", "SiLU", "Softplus", "Softshrink", "Softsign", "Tanhshrink",
    ],
    "norms": [
        "BatchNorm2d", "GroupNorm", "InstanceNorm2d", "LayerNorm", "LocalResponseNorm", "RMSNorm",
        "LogSoftmax", "Softmax", "WeightNorm",
    ],
    "images": [
        "AdaptiveAvgPool2d", "AvgPool2d", "ConstantPad2d", "Conv2d", "MaxPool2d", "ReflectionPad2d",
        "UpsamplingBilinear2d",
    ],
    "products": ["Embedding", "Linear", "MultiheadAttention"],
}  # fmt: skip
LOSSES = ("mse_loss", "smooth_l1_loss", "huber_loss", "cross_entropy weighed",
          "cross_entropy smoothed", "kl_div", "binary_cross_entropy_with_logits",
          "poisson_nll_loss", "cosine_embedding_loss", "triplet_margin_loss")  # fmt: skip


Entry = tuple[Module, tuple[Any, ...]]


def layer(case: Case) -> Entry:
    return prepared(case), tuple(case.inputs)


def function(name: str) -> Entry:
    return nn.Lambda(FUNCTIONS[name]), (rows().float(),)


def total(modules: Sequence[Module], inputs: Sequence[Any]) -> tuple[Tensor, Any]:
    """A sum of sines, so that each output has a gradient of its own; and outputs with effects."""
    ends = []
    for module, given in zip(modules, inputs, strict=True):
        call: Any = lambda module, given=given: module(*given)  # noqa: E731  # short
        ends.append(effects.collect(call)(module))
    outs = torch_pytree.tree_leaves([out for out, _ in ends])
    return torch.stack([x.sin().sum() for x in outs if x.is_floating_point()]).sum(), ends


def check(entries: Sequence[Entry]) -> None:
    """The gradients by parameters and inputs, the outputs and what was emitted."""
    modules, inputs = [module for module, _ in entries], [given for _, given in entries]
    floating = [[x.is_floating_point() for x in tree.leaves(part)] for part in (modules, inputs)]
    places = tuple([place for place, found in enumerate(floating) if any(found)])
    if not places:  # a layer of numbers that have no derivative
        same(make_compiled(total)(modules, inputs), total(modules, inputs))
        return
    fn = func.grad_and_value(total, argnums=places, has_aux=True)
    same(make_compiled(fn)(modules, inputs), fn(modules, inputs))


@pytest.mark.parametrize("names", TOGETHER.values(), ids=TOGETHER)
def test_layers_together(names: Sequence[str]) -> None:
    check([layer(case) for case in CASES if case.name in names])


def test_losses_together() -> None:
    check([function(name) for name in LOSSES])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_layer(case: Case) -> None:
    check([layer(case)])


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_loss(name: str) -> None:
    check([function(name)])
