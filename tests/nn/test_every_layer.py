"""Every layer, in one table: it is torch's, it vmaps, its gradients are per sample, it compiles."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.utils import _pytree as torch_pytree

from parallax import Module, effects, func, nn
from tests.nn.parity import assert_parity, assert_same


class Case(NamedTuple):
    """A layer as constructed, torch's with the same arguments, and inputs of one call."""

    name: str
    ours: Callable[[], Module]
    theirs: Callable[[], torch_nn.Module] | None
    inputs: Sequence[Any]
    mode: str = "eval"
    tolerance: float = 0.0
    # Of a layer that runs other kernels in a graph.
    in_graph: float = 0.0


def like_torch(name: str, inputs: Sequence[Any], *arguments: Any, **keywords: Any) -> Case:
    """A case of a layer that both have under one name, with the same arguments."""
    return Case(
        name,
        lambda: getattr(nn, name)(*arguments, **keywords),
        lambda: getattr(torch_nn, name)(*arguments, **keywords),
        inputs,
    )


def floats(*shape: int) -> Tensor:
    """Numbers that are the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def indices(pooled: Tensor) -> Tensor:
    """Where a max pool with a window of one number and steps of two finds its numbers."""
    spatial = pooled.shape[2:]
    sizes = [2 * size - 1 for size in spatial]
    flat = torch.arange(math.prod(sizes)).reshape(sizes)
    places = flat[tuple(slice(None, None, 2) for _ in spatial)]
    return places.expand(pooled.shape).contiguous()


SIGNAL, IMAGE, VOLUME = floats(2, 4, 6), floats(2, 4, 6, 5), floats(2, 4, 6, 5, 4)

SQUASHING = [
    "GELU",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LogSigmoid",
    "Mish",
    "SiLU",
    "Sigmoid",
]
SQUASHING += ["Softplus", "Softsign", "Tanh", "Hardshrink", "Softshrink", "Tanhshrink"]
RECTIFYING = ["CELU", "ELU", "LeakyReLU", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU"]

CASES = [
    like_torch("Linear", [floats(5, 3)], 3, 2),
    like_torch("Bilinear", [floats(5, 3), floats(5, 4)], 3, 4, 2),
    like_torch("Identity", [floats(5, 3)]),
    like_torch("Embedding", [torch.tensor([[1, 2], [0, 1]])], 5, 3, padding_idx=1),
    like_torch("EmbeddingBag", [torch.tensor([[1, 2], [0, 1]])], 5, 3),
    *[
        case
        for dims, signal in ((1, SIGNAL), (2, IMAGE), (3, VOLUME))
        for case in (
            like_torch(f"Conv{dims}d", [signal], 4, 2, 3, padding=1),
            like_torch(f"Conv{dims}d", [signal], 4, 2, 3, padding="same", padding_mode="circular"),
            like_torch(f"ConvTranspose{dims}d", [signal], 4, 2, 3, stride=2),
            like_torch(f"MaxPool{dims}d", [signal], 3, 2),
            like_torch(f"AvgPool{dims}d", [signal], 3, 2),
            like_torch(f"AdaptiveMaxPool{dims}d", [signal], 2),
            like_torch(f"AdaptiveAvgPool{dims}d", [signal], 2),
            like_torch(f"LPPool{dims}d", [signal], 2, 3),
            like_torch(f"MaxUnpool{dims}d", [signal, indices(signal)], 1, 2),
            like_torch(f"ConstantPad{dims}d", [signal], 1, 0.5),
            like_torch(f"ZeroPad{dims}d", [signal], 1),
            like_torch(f"ReflectionPad{dims}d", [signal], 1),
            like_torch(f"ReplicationPad{dims}d", [signal], 1),
            like_torch(f"CircularPad{dims}d", [signal], 1),
        )
    ],
    like_torch("Flatten", [IMAGE]),
    like_torch("Unflatten", [IMAGE], 1, (2, 2)),
    like_torch("Upsample", [VOLUME], scale_factor=2, mode="trilinear"),
    like_torch("UpsamplingNearest2d", [IMAGE], 7),
    like_torch("UpsamplingBilinear2d", [IMAGE], scale_factor=2),
    like_torch("PixelShuffle", [IMAGE], 2),
    like_torch("PixelUnshuffle", [IMAGE[..., :4, :4]], 2),
    like_torch("ChannelShuffle", [IMAGE], 2),
    *[like_torch(name, [floats(5, 4)]) for name in SQUASHING + RECTIFYING],
    like_torch("Threshold", [floats(5, 4)], 0.1, -1.0),
    like_torch("Softmax2d", [IMAGE]),
    *[like_torch(name, [floats(5, 4)], -1) for name in ("Softmax", "Softmin", "LogSoftmax", "GLU")],
    *[
        like_torch(name, [floats(*shape)], 3)._replace(mode=mode)
        for name, shape in [
            ("BatchNorm1d", (5, 3)),
            ("BatchNorm2d", (2, 3, 5, 4)),
            ("BatchNorm3d", (2, 3, 1, 5, 2)),
        ]
        for mode in ("train", "eval")
    ],
    *[
        like_torch(name, [floats(*shape)], 3, affine=True, track_running_stats=track)._replace(
            mode="train"
        )
        for name, shape in [
            ("InstanceNorm1d", (5, 3, 4)),
            ("InstanceNorm2d", (2, 3, 5, 4)),
            ("InstanceNorm3d", (2, 3, 1, 5, 2)),
        ]
        for track in (True, False)
    ],
    like_torch("LayerNorm", [floats(2, 5, 3)], (5, 3)),
    like_torch("RMSNorm", [floats(2, 5, 3)], 3),
    Case("LoRA", lambda: nn.LoRA(nn.Linear(3, 2), rank=2), None, [floats(5, 3)], in_graph=1e-6),
    Case("SpectralNorm", lambda: nn.SpectralNorm(nn.Linear(3, 2)), None, [floats(5, 3)]),
    Case("WeightNorm", lambda: nn.WeightNorm(nn.Linear(3, 2)), None, [floats(5, 3)], in_graph=1e-6),
    Case("SyncBatchNorm", lambda: nn.SyncBatchNorm(3), None, [floats(5, 3, 4)]),
    Case("Parametrized", lambda: nn.Parametrized(nn.Linear(3, 2), torch.sin), None, [floats(5, 3)]),
    Case("Orthogonal", lambda: nn.Orthogonal(nn.Linear(3, 2)), None, [floats(5, 3)]),
    Case("Masked", lambda: nn.Masked(nn.Linear(3, 2), torch.eye(2, 3)), None, [floats(5, 3)]),
    like_torch("GroupNorm", [floats(2, 6, 5)], 3, 6),
    like_torch("LocalResponseNorm", [floats(2, 6, 5, 4)], 2),
    like_torch("Dropout", [floats(5, 3)]),
    like_torch("Dropout1d", [floats(5, 3, 2)]),
    like_torch("Dropout2d", [floats(5, 3, 2, 2)]),
    like_torch("Dropout3d", [floats(5, 3, 2, 2, 2)]),
    like_torch("AlphaDropout", [floats(5, 3)]),
    like_torch("FeatureAlphaDropout", [floats(5, 3, 2)]),
    # Compared with torch's, where it has them, in files of their own.
    Case("Sequential", lambda: nn.Sequential(nn.Linear(3, 4), torch.tanh), None, [floats(5, 3)]),
    Case("Lambda", lambda: nn.Lambda(torch.tanh), None, [floats(5, 3)]),
    Case("Residual", lambda: nn.Residual(nn.Linear(3, 3)), None, [floats(5, 3)]),
    Case("MLP", lambda: nn.MLP((3, 4, 2)), None, [floats(5, 3)]),
    Case("Stack", lambda: nn.Stack(nn.Residual(nn.Linear(3, 3)), 2), None, [floats(5, 3)]),
    Case("RotaryEmbedding", lambda: nn.RotaryEmbedding(4), None, [floats(2, 5, 4)]),
    Case(
        "MultiheadAttention",
        lambda: nn.MultiheadAttention(4, 2),
        None,
        [floats(5, 3, 4), floats(6, 3, 4), floats(6, 3, 4)],
    ),
    Case(
        "TransformerEncoderLayer",
        lambda: nn.TransformerEncoderLayer(4, 2, 8),
        None,
        [floats(5, 3, 4)],
    ),
    Case(
        "TransformerDecoderLayer",
        lambda: nn.TransformerDecoderLayer(4, 2, 8),
        None,
        [floats(5, 3, 4), floats(6, 3, 4)],
    ),
    Case(
        "TransformerEncoder",
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2),
        None,
        [floats(5, 3, 4)],
    ),
    Case(
        "TransformerDecoder",
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8), 2),
        None,
        [floats(5, 3, 4), floats(6, 3, 4)],
    ),
    *[
        case._replace(in_graph=1e-6)
        for case in (
            like_torch("RNNCell", [floats(5, 3), floats(5, 2)], 3, 2),
            like_torch("GRUCell", [floats(5, 3), floats(5, 2)], 3, 2),
            like_torch("LSTMCell", [floats(5, 3), (floats(5, 2), floats(5, 2))], 3, 2),
            like_torch("RNN", [floats(4, 5, 3)], 3, 2, bidirectional=True),
            like_torch("GRU", [floats(5, 4, 3)], 3, 2, batch_first=True),
            like_torch("LSTM", [floats(4, 5, 3)], 3, 2, num_layers=2),
        )
    ],
]


CLASSES = torch.tensor([0, 3, 1, 2, 2])
LABELS = torch.tensor([[0, 2, -1, 1], [3, -1, 0, 0], [1, 2, 3, -1], [2, -1, 0, 0], [0, 1, -1, 2]])
LETTERS = torch.tensor([[1, 2, 2], [3, 1, 0]])
SIGNS = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
SCORES, SHARES = floats(5, 4), floats(5, 4, 1).squeeze(-1).sigmoid()
OF_NUMBERS = ["L1Loss", "MSELoss", "SmoothL1Loss", "HuberLoss", "BCEWithLogitsLoss"]
OF_NUMBERS += ["MultiLabelSoftMarginLoss", "PoissonNLLLoss", "CosineSimilarity", "PairwiseDistance"]

CASES += [
    *[like_torch(name, [SCORES, SHARES]) for name in OF_NUMBERS],
    # Torch has no derivative by their targets: test_module_db compares them.
    Case("SoftMarginLoss", nn.SoftMarginLoss, None, [SCORES, SIGNS[:, None].expand(5, 4)]),
    Case("BCELoss", nn.BCELoss, None, [SCORES.sigmoid(), SHARES]),
    like_torch("KLDivLoss", [SCORES.log_softmax(-1), SHARES], reduction="batchmean"),
    like_torch("HingeEmbeddingLoss", [SCORES, SIGNS[:, None].expand(5, 4).int()]),
    like_torch("GaussianNLLLoss", [SCORES, SHARES, SHARES + 0.5]),
    *[
        like_torch(name, [SCORES, CLASSES])
        for name in ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss")
    ],
    like_torch("MultiLabelMarginLoss", [SCORES, LABELS]),
    like_torch("MarginRankingLoss", [SCORES[:, 0], SCORES[:, 1], SIGNS], 0.5),
    like_torch("CosineEmbeddingLoss", [SCORES, SHARES, SIGNS], 0.2),
    like_torch("TripletMarginLoss", [SCORES, SHARES, SCORES.sin()]),
    like_torch("TripletMarginWithDistanceLoss", [SCORES, SHARES, SCORES.sin()]),
    like_torch(
        "CTCLoss", [floats(6, 2, 4), LETTERS, torch.tensor([6, 5]), torch.tensor([2, 1])]
    )._replace(theirs=None, in_graph=1e-6),  # whose gradient is another: test_ctc
    Case(
        "AdaptiveLogSoftmaxWithLoss",
        lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 12, [3, 6], 2.0),
        None,
        [floats(3, 8), torch.tensor([2, 3, 11])],
        in_graph=1e-6,
    ),
    like_torch("LinearCrossEntropyLoss", [SCORES, CLASSES], 4, 6),
    Case(
        "Transformer",
        lambda: nn.Transformer(4, 2, 1, 1, 8),
        None,
        [floats(5, 3, 4), floats(6, 3, 4)],
    ),
    Case("CrossMapLRN2d", lambda: nn.CrossMapLRN2d(3), None, [IMAGE]),
    like_torch("Unfold", [IMAGE], 2, dilation=2, padding=1, stride=(2, 1)),
    like_torch("Fold", [floats(2, 12, 12)], (4, 5), 2),
]

# Right, but a loop inside torch for the kernels that it has no batching rule of.
slowly = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def prepared(case: Case) -> Module:
    layer = case.ours()
    if any(leaf is not None for leaf in torch_pytree.tree_leaves(layer)):
        layer = layer.initialize(0)
    return layer.train() if case.mode == "train" else layer.eval()


def _call(layer: Module, *inputs: Any) -> Any:
    """The output, with what it emits beside it where it emits anything."""

    def call(module: Module) -> Any:
        return module(*inputs)

    return effects.collect(call)(layer)[0]


def test_the_table_has_every_layer() -> None:
    layers = {
        name
        for name in nn.__all__
        if inspect.isclass(getattr(nn, name)) and issubclass(getattr(nn, name), Module)
    }
    drawn = {"FractionalMaxPool2d", "FractionalMaxPool3d"}  # in every mode: test_unpooling has them
    assert layers - {case.name for case in CASES} - drawn == set()


@every_case
def test_it_is_torchs(case: Case) -> None:
    if case.theirs is not None:
        assert_parity(
            case.ours(), case.theirs(), *case.inputs, mode=case.mode, tolerance=case.tolerance
        )


@slowly
@every_case
def test_vmap_is_a_loop(case: Case) -> None:
    layer = prepared(case)
    batches = [torch_pytree.tree_map(_varied(k), tuple(case.inputs)) for k in range(3)]
    stacked = torch_pytree.tree_map(lambda *xs: torch.stack(xs), *batches)
    looped = [_call(layer, *inputs) for inputs in batches]
    expected = torch_pytree.tree_map(lambda *xs: torch.stack(xs), *looped)
    assert_same(torch.vmap(lambda *xs: _call(layer, *xs))(*stacked), expected, 1e-5)


@slowly
@every_case
def test_gradients_per_sample_are_a_loops(case: Case) -> None:
    layer = prepared(case)
    if not list(_parameters(layer)):
        return
    batches = [torch_pytree.tree_map(_varied(k), tuple(case.inputs)) for k in range(3)]
    stacked = torch_pytree.tree_map(lambda *xs: torch.stack(xs), *batches)

    def loss(module: Module, *inputs: Any) -> Tensor:
        outputs = torch_pytree.tree_leaves(_call(module, *inputs))
        return torch.stack([out.sin().sum() for out in outputs if out.is_floating_point()]).sum()

    looped = [torch_pytree.tree_leaves(func.grad(loss)(layer, *inputs)) for inputs in batches]
    expected = [torch.stack(leaves) for leaves in zip(*looped, strict=True)]
    found = func.per_sample_grad(loss)(layer, *stacked)
    assert_same(torch_pytree.tree_leaves(found), expected, 1e-5)


@every_case
def test_it_compiles_to_one_graph(case: Case) -> None:
    layer = prepared(case)
    torch._dynamo.reset()  # there are more layers than it compiles one function for
    compiled = torch.compile(_call, fullgraph=True, backend="eager")
    assert_same(compiled(layer, *case.inputs), _call(layer, *case.inputs), case.in_graph)


@every_case
def test_nothing_is_written(case: Case) -> None:
    layer = prepared(case)
    tensors = [x for x in torch_pytree.tree_leaves((layer, case.inputs)) if isinstance(x, Tensor)]
    before = [(x._version, x.clone()) for x in tensors]
    state = torch.random.get_rng_state()
    _call(layer, *case.inputs)
    for x, (version, value) in zip(tensors, before, strict=True):
        assert x._version == version and torch.equal(x, value)
    assert torch.equal(torch.random.get_rng_state(), state)


def _varied(k: int) -> Callable[[Any], Any]:
    """Another input of the same kind: of floats other numbers, the rest as it is."""
    return lambda x: x * (1 - k / 4) if isinstance(x, Tensor) and x.is_floating_point() else x


def _parameters(layer: Module) -> Any:
    return [leaf for leaf in torch_pytree.tree_leaves(layer) if isinstance(leaf, Tensor)]
