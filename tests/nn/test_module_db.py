"""Every sample of torch's own module database, of the layers that ``nn`` has.

The ordinary run takes two samples of each class and mode; ``--slow`` takes all.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn as torch_nn

from parallax import Module, bridge, nn, tree
from tests.corpus.torch_data import Sample, modules, samples, seeded
from tests.torch_modules import check_forward, check_gradients, check_vmap, close

QUICK = 2
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's samples use what it warns of
# Samples hand these the numbers that ours draw with a key: test_unpooling compares them.
DRAWN = ("FractionalMaxPool2d", "FractionalMaxPool3d")
# Torch has the first derivative only, and of CTC another: test_derivatives has these.
FEWER_IN_TORCH = ("CTCLoss", "MultiLabelMarginLoss", "MultiMarginLoss")
LEFT_OUT = ("device", "options")  # of the samples' arguments
LAYERS = [
    info
    for info in modules()
    if hasattr(nn, info.module_cls.__name__) and info.module_cls.__name__ not in DRAWN
]
every_layer = pytest.mark.parametrize("info", LAYERS, ids=lambda info: info.name)


def layer(sample: Sample) -> Module:
    """As constructed by the arguments of the sample, and initialized."""
    args = [encoder_layer(x) if isinstance(x, torch_nn.Module) else x for x in sample.args]
    kwargs = {name: x for name, x in sample.kwargs.items() if name not in LEFT_OUT}
    made: Module = getattr(nn, sample.cls.__name__)(*args, **kwargs)
    if tree.leaves(made):
        made = tree.to(made.initialize(0), dtype=torch.float64)
    return made.train() if sample.training else made.eval()


def encoder_layer(theirs: Any) -> Module:
    """What the constructor of torch's layer was given, given to ours."""
    attention = theirs.self_attn
    return nn.TransformerEncoderLayer(
        attention.embed_dim,
        attention.num_heads,
        theirs.linear1.out_features,
        theirs.dropout.p,
        theirs.activation,
        theirs.norm1.eps,
        attention.batch_first,
        theirs.norm_first,
        theirs.linear1.bias is not None,
    )


def loaded(sample: Sample, source: torch_nn.Module) -> Module:
    return bridge.load_state_dict(layer(sample), source.state_dict())


def taken(request: Any) -> int | None:
    return None if request.config.getoption("--slow") else QUICK


@every_layer
def test_forward_and_buffers(info: Any, request: Any) -> None:
    for sample in samples(info, taken(request)):
        check_forward(sample, loaded, close)


@every_layer
def test_gradients_of_first_and_second_order(info: Any, request: Any) -> None:
    if info.module_cls.__name__ in FEWER_IN_TORCH:
        return
    for sample in samples(info, taken(request)):
        check_gradients(sample, loaded)


@every_layer
def test_ensembles(info: Any, request: Any) -> None:
    for sample in samples(info, taken(request)):
        check_vmap(sample, loaded)


@every_layer
def test_it_is_shown_as_torchs(info: Any, request: Any) -> None:
    for sample in samples(info, taken(request)):
        # A name that torch gives a Linear which its quantization shall pass by, and its tuple.
        theirs = repr(sample.make()).replace("NonDynamicallyQuantizableLinear", "Linear")
        assert repr(layer(sample)) == theirs.replace("ModuleList", "tuple")


# What torch has no arguments for, or takes by others than ours.
NOT_OF_ITS_CLASS = (
    "EmbeddingBag", "GRU", "LSTM", "MultiheadAttention", "RNN", "Transformer",
    "TransformerDecoderLayer", "TransformerEncoder", "TransformerEncoderLayer",
)  # fmt: skip


@every_layer
def test_lowered_it_is_torchs(info: Any, request: Any) -> None:
    for sample in samples(info, taken(request)):
        check_lowered(sample)


def check_lowered(sample: Sample) -> None:
    source = seeded(sample.make)
    lowered = bridge.lower(loaded(sample, source))
    name = sample.cls.__name__
    if name not in NOT_OF_ITS_CLASS and not name.endswith("Loss"):
        assert isinstance(lowered, sample.cls) and repr(lowered) == repr(source)
        assert plain_attributes(lowered) == plain_attributes(source)
    wanted = seeded(lambda: sample.call(source.requires_grad_(False)))
    close(seeded(lambda: sample.call(lowered.requires_grad_(False))), wanted)
    close(lowered.state_dict(), source.state_dict())


def plain_attributes(module: torch_nn.Module) -> dict[str, Any]:
    """What is neither a tensor nor a module, nor the note of what a module was lowered from."""
    apart = ("_parameters", "_buffers", "_modules", "_parallax_structure")
    return {name: value for name, value in vars(module).items() if name not in apart}
