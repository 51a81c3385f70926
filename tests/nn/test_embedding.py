"""Embeddings are torch's, and their tables are never written to."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn

from parallax import Module, bridge, func, nn, tree
from tests.nn.parity import assert_parity, assert_starts_alike, both
from tests.nn.refusals import Net

INDICES = torch.tensor([[1, 2, 4], [0, 1, 1]])
FLOATS = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "keywords",
    [{}, {"padding_idx": 1}, {"padding_idx": -1}, {"scale_grad_by_freq": True}],
    ids=str,
)
def test_embedding(keywords: dict[str, Any], dtype: torch.dtype) -> None:
    pair = both("Embedding", 5, 3, **keywords, dtype=dtype)
    for given in (INDICES, INDICES[0], INDICES[0, 0], INDICES[:0], INDICES.T, INDICES.int()):
        assert_parity(*pair, given)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.5, torch.inf])
@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
def test_longer_rows_come_out_shorter_and_the_table_stays(
    norm_type: float, dtype: torch.dtype
) -> None:
    pair = both("Embedding", 5, 3, None, 0.9, norm_type, dtype=dtype)
    assert_parity(*pair, INDICES[:0])
    layer: Any = assert_parity(*pair, INDICES, tolerance=1e-6)
    before = layer.weight.clone()
    layer(INDICES)
    assert torch.equal(layer.weight, before) and layer.weight._version == 0
    bag = both("EmbeddingBag", 5, 3, 0.9, norm_type, dtype=dtype)
    bagged: Any = assert_parity(*bag, INDICES, tolerance=1e-6)
    assert bagged.weight._version == 0


def test_sparse_gradients() -> None:
    ours, theirs = both("Embedding", 5, 3, 1, sparse=True)
    layer = bridge.load_state_dict(ours, theirs.state_dict())
    grads: Any = func.grad(lambda m: m(INDICES).sum())(layer)
    theirs(INDICES).sum().backward()
    expected = theirs.weight.grad
    assert isinstance(expected, Tensor)
    assert grads.weight.is_sparse and torch.equal(grads.weight.to_dense(), expected.to_dense())
    assert repr(layer) == repr(theirs)


def test_starts() -> None:
    assert_starts_alike("Embedding", 50, 30, 3)
    assert_starts_alike("EmbeddingBag", 50, 30, padding_idx=-2)
    row = nn.Embedding(5, 3, padding_idx=-1).initialize(0).weight
    assert row[-1].eq(0).all() and row[:-1].ne(0).all()


def test_each_sample_leaves_the_padding_out() -> None:
    """torch zeroes the padding's gradient in the first of many batched tables only."""
    layer = nn.Embedding(5, 3, padding_idx=1).initialize(0)

    def loss(layer: nn.Embedding, indices: Tensor) -> Tensor:
        return layer(indices).sin().sum()

    expected = torch.stack([func.grad(loss)(layer, row).weight for row in INDICES])
    assert torch.equal(func.per_sample_grad(loss)(layer, INDICES).weight, expected)
    compiled = torch.compile(func.per_sample_grad(loss), fullgraph=True, backend="eager")
    assert torch.equal(compiled(layer, INDICES).weight, expected)
    models = tree.stack([layer, layer])
    grads = func.ensemble_grad(loss)(models, INDICES[0])
    assert torch.equal(grads.weight[0], grads.weight[1])


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("name", ["Embedding", "EmbeddingBag"])
def test_given_vectors_are_shared_and_frozen_if_asked(name: str, freeze: bool) -> None:
    vectors = torch.randn(5, 3)
    layer = getattr(nn, name).from_pretrained(vectors, freeze, padding_idx=0)
    theirs = getattr(torch_nn, name).from_pretrained(vectors, freeze, padding_idx=0)
    assert layer.weight.data_ptr() == vectors.data_ptr()
    assert torch.equal(layer(INDICES), theirs(INDICES))
    assert repr(layer) == repr(theirs) + " (frozen)" * freeze
    assert layer.reset(0).weight.requires_grad != freeze
    with pytest.raises(ValueError, match=rf"^{name}.from_pretrained\(embeddings\): expected a ten"):
        getattr(nn, name).from_pretrained(vectors[0])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 1])
def test_bags(mode: str, padding_idx: int | None, dtype: torch.dtype) -> None:
    pair = both("EmbeddingBag", 5, 3, mode=mode, padding_idx=padding_idx, dtype=dtype)
    for given in (INDICES, INDICES[:1], INDICES[:0], INDICES.T, INDICES.int()):
        assert_parity(*pair, given)
    flat, offsets = INDICES.flatten(), torch.tensor([0, 2, 2, 5])
    assert_parity(*pair, flat, offsets)
    keywords = {"mode": mode, "padding_idx": padding_idx, "dtype": dtype}
    last = both("EmbeddingBag", 5, 3, include_last_offset=True, **keywords)
    assert_parity(*last, flat, torch.tensor([0, 2, 6]))


def test_weighted_bags() -> None:
    pair = both("EmbeddingBag", 5, 3, mode="sum", scale_grad_by_freq=True)
    assert_parity(*pair, INDICES, per_sample_weights=torch.linspace(-1, 1, 6).reshape(2, 3))
    weights = torch.linspace(-1, 1, 6)
    assert_parity(*pair, INDICES.flatten(), torch.tensor([0, 4]), per_sample_weights=weights)


@pytest.mark.parametrize(
    ("name", "keywords", "error", "text"),
    [
        ("Embedding", {"num_embeddings": -1}, ValueError, "(num_embeddings=): must be at least 0"),
        ("Embedding", {"embedding_dim": 2.0}, TypeError, "(embedding_dim=): expected an int"),
        ("Embedding", {"padding_idx": 5}, ValueError, "(padding_idx=): must be within num_embedd"),
        ("Embedding", {"padding_idx": -6}, ValueError, "(padding_idx=): must be within num_embed"),
        ("Embedding", {"padding_idx": 0.5}, TypeError, "(padding_idx=): expected an int or None"),
        ("Embedding", {"max_norm": -1.0}, ValueError, "(max_norm=): must be at least 0, got -1.0"),
        ("Embedding", {"norm_type": "2"}, TypeError, "(norm_type=): expected a number, got '2'"),
        ("EmbeddingBag", {"mode": "min"}, ValueError, "(mode=): expected one of 'sum', 'mean', 'm"),
        ("EmbeddingBag", {"mode": "max", "sparse": True}, ValueError, "(sparse=): must be False"),
    ],
)
def test_bad_arguments_fail_at_construction(
    name: str, keywords: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^{name}{re.escape(text)}"):
        getattr(nn, name)(**{"num_embeddings": 5, "embedding_dim": 3} | keywords)


LONGS, WEIGHTS = torch.tensor([0, 1]), torch.ones(2)


@pytest.mark.parametrize(
    ("layer", "inputs", "error", "text"),
    [
        (nn.Embedding(5, 3), (torch.tensor([5]),), IndexError, "indices must be at least 0 and"),
        (nn.Embedding(5, 3), (torch.tensor([-1]),), IndexError, "indices must be at least 0 and"),
        (nn.Embedding(5, 3), (WEIGHTS,), TypeError, "input must be a tensor of int64 or int32 ind"),
        (nn.Embedding(5, 3), ([1],), TypeError, "input must be a tensor of int64 or int32 indices"),
        (nn.EmbeddingBag(5, 3), (LONGS[None] + 5,), IndexError, "indices must be at least 0 and l"),
        (nn.EmbeddingBag(5, 3), (WEIGHTS[None],), TypeError, "input must be a tensor of int64 or"),
        (nn.EmbeddingBag(5, 3), (LONGS,), TypeError, "offsets must be a tensor, got NoneType"),
        (nn.EmbeddingBag(5, 3), (LONGS[None], LONGS), ValueError, "an input of shape (B, N) takes"),
        (nn.EmbeddingBag(5, 3), (LONGS[0],), ValueError, "expected input of shape (B, N), or (N,)"),
        (nn.EmbeddingBag(5, 3), (LONGS[None, :0],), ValueError, "expected input of shape (B, N), "),
        (
            nn.EmbeddingBag(5, 3),
            (LONGS[None], None, WEIGHTS),
            ValueError,
            "per_sample_weights need",
        ),
        (
            nn.EmbeddingBag(5, 3, mode="sum"),
            (LONGS[None], None, WEIGHTS),
            ValueError,
            "expected per_sample_weights of shape (1, 2), got (2,)",
        ),
    ],
)
def test_an_input_that_does_not_fit_names_the_path(
    layer: Module, inputs: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(f"Net.layer ({type(layer).__name__}): {text}")):
        Net(layer).initialize(0)(*inputs)
