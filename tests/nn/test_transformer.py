"""Transformers are torch's: names, outputs, gradients."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn as torch_nn

from parallax import Module, bridge, nn, random, tree
from tests.nn.parity import assert_parity, assert_same, assert_same_start

E, H, WIDE = 8, 2, 12
SETTINGS: list[dict[str, Any]] = [
    {},
    {"norm_first": True, "activation": "gelu"},
    {"batch_first": True, "bias": False},
    {"batch_first": True, "norm_first": True, "activation": F.silu, "layer_norm_eps": 1e-3},
]
settings = pytest.mark.parametrize("kwargs", SETTINGS, ids=lambda kwargs: "-".join(kwargs) or "-")
modes = pytest.mark.parametrize("mode", ["train", "eval"])
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}


def encoder(kwargs: dict[str, Any], *, dropout: float = 0.0, dtype: Any = None) -> Any:
    rest = {"dropout": dropout, "dtype": dtype, **kwargs}
    ours = nn.TransformerEncoderLayer(E, H, WIDE, **rest)
    return ours, torch_nn.TransformerEncoderLayer(E, H, WIDE, **rest)


def decoder(kwargs: dict[str, Any], *, dropout: float = 0.0, dtype: Any = None) -> Any:
    rest = {"dropout": dropout, "dtype": dtype, **kwargs}
    ours = nn.TransformerDecoderLayer(E, H, WIDE, **rest)
    return ours, torch_nn.TransformerDecoderLayer(E, H, WIDE, **rest)


def several(theirs: type, layer: Any, count: int) -> Any:
    with warnings.catch_warnings():  # torch says that it cannot use nested tensors
        warnings.simplefilter("ignore")
        return theirs(layer, count, torch_nn.LayerNorm(E, dtype=torch.float64))


def causal(size: int) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).triu(1)


def sequence(length: int, kwargs: dict[str, Any], dtype: Any = torch.float64) -> Tensor:
    return torch.randn((3, length, E) if kwargs.get("batch_first") else (length, 3, E), dtype=dtype)


@settings
@modes
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_encoder_layer(kwargs: dict[str, Any], mode: str, dtype: torch.dtype) -> None:
    ours, theirs = encoder(kwargs, dtype=dtype)
    src = sequence(5, kwargs, dtype)
    assert_parity(ours, theirs, src, mode=mode, show=False, tolerance=TOLERANCE[dtype])


@settings
def test_encoder_layer_gives_the_same_bits(kwargs: dict[str, Any]) -> None:
    ours, theirs = encoder(kwargs)
    src = sequence(5, kwargs, torch.float32)
    layer = bridge.load_state_dict(ours, theirs.state_dict())
    assert_same(layer(src), theirs(src).detach())


@settings
@pytest.mark.parametrize("given", ["mask", "causal", "keys", "both", "batch"])
def test_encoder_layer_masks(kwargs: dict[str, Any], given: str) -> None:
    ours, theirs = encoder(kwargs, dtype=torch.float64)
    keys = torch.arange(5).expand(3, 5) > torch.tensor([[4], [2], [3]])
    calls: dict[str, dict[str, Any]] = {
        "mask": {"src_mask": torch.randn(5, 5, dtype=torch.float64)},
        "causal": {"src_mask": causal(5), "is_causal": True},
        "keys": {"src_key_padding_mask": keys},
        "both": {"src_mask": causal(5), "src_key_padding_mask": keys, "is_causal": True},
        "batch": {},
    }
    call = calls[given]
    src = torch.randn(5, E, dtype=torch.float64) if given == "batch" else sequence(5, kwargs)
    assert_parity(ours, theirs, src, mode="train", show=False, tolerance=1e-12, **call)


@settings
@modes
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_decoder_layer(kwargs: dict[str, Any], mode: str, dtype: torch.dtype) -> None:
    ours, theirs = decoder(kwargs, dtype=dtype)
    inputs = sequence(5, kwargs, dtype), sequence(7, kwargs, dtype)
    assert_parity(ours, theirs, *inputs, mode=mode, show=False, tolerance=TOLERANCE[dtype])


@settings
def test_decoder_layer_masks(kwargs: dict[str, Any]) -> None:
    ours, theirs = decoder(kwargs, dtype=torch.float64)
    inputs = sequence(5, kwargs), sequence(7, kwargs)
    keys = torch.arange(7).expand(3, 7) > torch.tensor([[4], [6], [3]])
    assert_parity(
        ours, theirs, *inputs, mode="train", show=False, tolerance=1e-12, tgt_mask=causal(5),
        tgt_is_causal=True, memory_key_padding_mask=keys, tgt_key_padding_mask=keys[:, :5],
        memory_mask=torch.arange(7).expand(5, 7) == 1,
    )  # fmt: skip


@settings
@modes
def test_encoder(kwargs: dict[str, Any], mode: str) -> None:
    one, two = encoder(kwargs, dtype=torch.float64)
    ours = nn.TransformerEncoder(one, 3, nn.LayerNorm(E, dtype=torch.float64))
    theirs = several(torch_nn.TransformerEncoder, two, 3)
    src = sequence(5, kwargs)
    call = {"mask": causal(5), "is_causal": True}
    assert_parity(ours, theirs, src, mode=mode, show=False, tolerance=1e-12, **call)


@settings
@modes
def test_decoder(kwargs: dict[str, Any], mode: str) -> None:
    one, two = decoder(kwargs, dtype=torch.float64)
    ours = nn.TransformerDecoder(one, 2, nn.LayerNorm(E, dtype=torch.float64))
    theirs = several(torch_nn.TransformerDecoder, two, 2)
    inputs = sequence(5, kwargs), sequence(7, kwargs)
    call = {"tgt_mask": causal(5), "tgt_is_causal": True}
    assert_parity(ours, theirs, *inputs, mode=mode, show=False, tolerance=1e-12, **call)


def test_they_start_where_torchs_do() -> None:
    assert_same_start(lambda: encoder({})[0], lambda: encoder({})[1])
    assert_same_start(lambda: decoder({})[0], lambda: decoder({})[1])


def test_every_layer_of_a_stack_starts_for_itself() -> None:
    # torch.nn copies the values of the one layer it is given.
    model = nn.TransformerEncoder(encoder({})[0], 2).initialize(0)
    one, two = model.layers
    assert not torch.equal(one.linear1.weight, two.linear1.weight)  # type: ignore[attr-defined]  # an encoder layer


def test_they_are_shown_as_torchs() -> None:
    one, two = encoder({})
    ours = nn.TransformerEncoder(one, 3, nn.LayerNorm(E)).initialize(0)
    theirs = several(torch_nn.TransformerEncoder, two, 3)
    shown = repr(theirs).replace("NonDynamicallyQuantizableLinear", "Linear")
    assert repr(ours) == shown.replace("ModuleList", "tuple")
    shown = repr(decoder({})[1]).replace("NonDynamicallyQuantizableLinear", "Linear")
    assert repr(decoder({})[0].initialize(0)) == shown


def test_an_activation_may_be_trained() -> None:
    ours = nn.TransformerEncoderLayer(E, H, WIDE, dropout=0.0, activation=nn.PReLU())
    theirs = torch_nn.TransformerEncoderLayer(E, H, WIDE, dropout=0.0, activation=torch_nn.PReLU())
    layer = assert_parity(ours, theirs, sequence(5, {}, torch.float32), show=False, tolerance=1e-5)
    assert "activation.weight" in bridge.state_dict(layer)


def test_dropout_follows_the_key_everywhere() -> None:
    model = nn.TransformerEncoder(encoder({}, dropout=0.5)[0], 2).initialize(0)
    src = sequence(5, {}, torch.float32)
    one, again = model.train(random.key(0))(src), model.train(random.key(0))(src)
    assert_same(one, again)
    assert not torch.equal(one, model.train(random.key(1))(src))
    assert not torch.equal(one, model.eval()(src))
    first, second = model.train(random.key(0)).layers
    assert not torch.equal(
        first.dropout1(torch.ones(50)),  # type: ignore[attr-defined]  # an encoder layer
        second.dropout1(torch.ones(50)),  # type: ignore[attr-defined]  # as above
    )


def test_causality_without_a_mask() -> None:
    layer = encoder({"batch_first": True})[0].initialize(0).eval()
    src = sequence(5, {"batch_first": True}, torch.float32)
    changed = torch.cat([src[:, :3], torch.randn(3, 2, E)], 1)
    assert_same(layer(src, is_causal=True)[:, :3], layer(changed, is_causal=True)[:, :3], 1e-6)
    torch.testing.assert_close(layer(src, is_causal=True), layer(src, causal(5)))


def test_the_causal_mask_is_torchs() -> None:
    for sz, dtype in [(1, None), (4, None), (3, torch.float64)]:
        mine = nn.Transformer.generate_square_subsequent_mask(sz, dtype=dtype)
        theirs = torch.nn.Transformer.generate_square_subsequent_mask(sz, dtype=dtype)
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def test_arguments_that_make_no_sense() -> None:
    for cls in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer):
        name = cls.__name__
        with pytest.raises(ValueError, match=f"{name}: d_model=8 cannot be divided among nhead=3"):
            cls(8, 3)
        with pytest.raises(ValueError, match=rf"{name}\(dim_feedforward=\): must be at least 1"):
            cls(8, 2, 0)
        with pytest.raises(ValueError, match=rf"{name}\(dropout=\): must be at least 0 and"):
            cls(8, 2, 8, 2.0)
        with pytest.raises(ValueError, match=rf"{name}\(activation=\): .* got 'tanh'"):
            cls(8, 2, 8, activation="tanh")
        with pytest.raises(TypeError, match=rf"{name}\(activation=\): .* got a ReLU"):
            cls(8, 2, 8, activation=torch_nn.ReLU())
    layer = encoder({})[0]
    with pytest.raises(ValueError, match=r"TransformerEncoder\(num_layers=\): must be at least 1"):
        nn.TransformerEncoder(layer, 0)
    wrong: Any = torch_nn.Linear(1, 1)
    with pytest.raises(
        TypeError, match=r"TransformerDecoder\(decoder_layer=\): expected a paralla"
    ):
        nn.TransformerDecoder(wrong, 2)


def test_inputs_that_do_not_fit_name_the_layer() -> None:
    class Net(Module):
        encoder: nn.TransformerEncoder
        decoder: nn.TransformerDecoder

        def forward(self, src: Tensor, tgt: Tensor) -> Any:
            return self.decoder(tgt, self.encoder(src))

    net = Net(
        nn.TransformerEncoder(encoder({})[0], 2),
        nn.TransformerDecoder(decoder({"batch_first": True})[0], 2),
    ).initialize(0)
    where = r"^Net.encoder.layers.0 \(TransformerEncoderLayer\): "
    with pytest.raises(ValueError, match=where + r"expected src of shape \(S, N, 8\) or \(S, 8\)"):
        net(torch.ones(5, 3, 9), torch.ones(3, 5, 8))
    where = r"^Net.decoder.layers.0 \(TransformerDecoderLayer\): "
    with pytest.raises(ValueError, match=where + r"expected tgt of shape \(N, T, 8\) or \(T, 8\)"):
        net(torch.ones(5, 3, 8), torch.ones(1, 2, 3, 8))
    where = r"^Net.decoder.layers.0.multihead_attn \(MultiheadAttention\): "
    with pytest.raises(ValueError, match=where + r"expected key of shape \(3, S, 8\), got \(5, 3"):
        net(torch.ones(5, 3, 8), torch.ones(3, 5, 8))


def test_a_transformer_is_an_encoder_and_a_decoder() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():  # torch says that it cannot use nested tensors
        warnings.simplefilter("ignore")
        theirs = torch_nn.Transformer(8, 2, 2, 1, 12, dtype=torch.float64).eval()
    ours = nn.Transformer(8, 2, 2, 1, 12, dtype=torch.float64)
    shown = repr(theirs).replace("NonDynamicallyQuantizableLinear", "Linear")
    assert repr(ours.initialize(0)) == shown.replace("ModuleList", "tuple")
    ours = bridge.load_state_dict(ours, theirs.state_dict()).eval()
    src, tgt = sequence(5, {}), sequence(4, {})
    mask = torch_nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
    torch.testing.assert_close(ours(src, tgt), theirs(src, tgt))
    torch.testing.assert_close(
        ours(src, tgt, tgt_is_causal=True), theirs(src, tgt, tgt_mask=mask, tgt_is_causal=True)
    )
    bound = (6 / 16) ** 0.5  # of xavier_uniform_, for a matrix of eight rows and columns
    encoder: Any = nn.Transformer(8, 2, 1, 1, 8).initialize(0).encoder
    weight = encoder.layers[0].linear1.weight
    assert 0.9 * bound < weight.abs().max() <= bound
    assert tree.allclose(ours, nn.Transformer(
        8, 2, custom_encoder=ours.encoder, custom_decoder=ours.decoder
    ))  # fmt: skip


def test_what_a_transformer_refuses() -> None:
    model = nn.Transformer(8, 2, 1, 1, 12).initialize(0).eval()
    with pytest.raises(ValueError, match=r"expected src and tgt of one batch size, got shapes \(5"):
        model(sequence(5, {}, torch.float32), sequence(4, {}, torch.float32)[:, :2])
    with pytest.raises(ValueError, match=r"Transformer.* expected src of shape"):
        model(sequence(5, {}, torch.float32)[..., :7], sequence(4, {}, torch.float32))
