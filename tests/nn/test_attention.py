"""Attention is torch's: outputs, weights, gradients, names and starting values."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn as torch_nn

import parallax
from parallax import Module, bridge, func, nn, random, tree
from tests.nn.parity import assert_parity, assert_same, assert_same_start

L, S, N, E, H = 5, 7, 3, 8, 2
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def pair(*args: Any, **kwargs: Any) -> tuple[nn.MultiheadAttention, torch_nn.MultiheadAttention]:
    return nn.MultiheadAttention(*args, **kwargs), torch_nn.MultiheadAttention(*args, **kwargs)


def same(args: tuple[Any, ...], kwargs: dict[str, Any], *inputs: Any, **call: Any) -> None:
    ours, theirs = pair(*args, dtype=torch.float64, **kwargs)
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases start at zero, which hides mistakes
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    assert_parity(ours, theirs, *inputs, show=False, tolerance=1e-12, **call)


def causal(size: int) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_self_attention(
    batch_first: bool, need_weights: bool, dtype: torch.dtype, bias: bool
) -> None:
    x = torch.randn(L, N, E, dtype=dtype)
    ours, theirs = pair(E, H, bias=bias, batch_first=batch_first, dtype=dtype)
    layer = bridge.load_state_dict(ours, theirs.state_dict())
    # Two batches of the same sequence: query, key and value are one tensor on both sides.
    expected, weights = theirs(x, x, x, need_weights=need_weights)
    found, ours_weights = layer(x, x, x, need_weights=need_weights)
    exact = 1e-15 if dtype == torch.float64 else 0.0  # sums in another order
    assert_same(found, expected.detach(), exact)
    if need_weights:
        assert_same(ours_weights, weights.detach(), exact)
    else:
        assert ours_weights is None

    grads = func.grad(lambda m: m(x, x, x, need_weights=need_weights)[0].float().sin().sum())(layer)
    theirs(x, x, x, need_weights=need_weights)[0].float().sin().sum().backward()
    tolerance = {torch.bfloat16: 0.05, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for name, parameter in theirs.named_parameters():
        assert_same(bridge.state_dict(grads)[name], parameter.grad, tolerance)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("dims", [{}, {"kdim": 6}, {"kdim": 4, "vdim": 3}], ids=str)
@pytest.mark.parametrize("bias_kv", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_cross_attention(
    need_weights: bool, batch_first: bool, dims: dict[str, int], bias_kv: bool, zero: bool
) -> None:
    def shaped(length: int, size: int) -> Tensor:
        shape = (N, length, size) if batch_first else (length, N, size)
        return torch.randn(shape, dtype=torch.float64)

    q, k = shaped(L, E), shaped(S, dims.get("kdim", E))
    v = shaped(S, dims.get("vdim", E))
    more = {"add_bias_kv": bias_kv, "add_zero_attn": zero}
    same(
        (E, H), {"batch_first": batch_first, **dims, **more}, q, k, v,
        need_weights=need_weights,
    )  # fmt: skip


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("rank", [None, 2, 3])
@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("more", [True, False])
def test_masks(
    need_weights: bool, average: bool, kind: str, rank: int | None, keys: bool, more: bool
) -> None:
    generator = torch.Generator().manual_seed(0)

    def mask(*shape: int) -> Tensor:
        hidden = torch.rand(shape, generator=generator) < 0.3
        hidden[..., 0] = False
        return (
            hidden if kind == "bool" else torch.randn(shape, generator=generator).double() * hidden
        )

    masks: dict[str, Any] = {}
    if rank is not None:
        masks["attn_mask"] = mask(L, S) if rank == 2 else mask(N * H, L, S)
    if keys:
        masks["key_padding_mask"] = mask(N, S)
    q, k, v = (torch.randn(N, n, E, dtype=torch.float64) for n in (L, S, S))
    same(
        (E, H), {"batch_first": True, "add_bias_kv": more, "add_zero_attn": more}, q, k, v,
        need_weights=need_weights, average_attn_weights=average, **masks,
    )  # fmt: skip


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_causal(need_weights: bool, keys: bool, given: bool) -> None:
    x = torch.randn(N, L, E)
    padding = torch.zeros(N, L, dtype=torch.bool)
    padding[1, -2:] = True
    ours, theirs = pair(E, H, batch_first=True)
    layer = bridge.load_state_dict(ours, theirs.state_dict())
    common: Any = {
        "need_weights": need_weights, "is_causal": True,
        "key_padding_mask": padding if keys else None,
    }  # fmt: skip
    wanted = theirs(x, x, x, attn_mask=causal(L), **common)
    found = layer(x, x, x, attn_mask=causal(L) if given else None, **common)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_without_a_batch(need_weights: bool, batch_first: bool) -> None:
    q, k, v = (torch.randn(n, E, dtype=torch.float64) for n in (L, S, S))
    masks = {"key_padding_mask": torch.arange(S) > 4, "attn_mask": torch.rand(H, L, S) < 0.2}
    masks["attn_mask"][..., 0] = False
    same(
        (E, H), {"batch_first": batch_first}, q, k, v, need_weights=need_weights,
        **masks,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1), (0, 2), (2, 1)])
def test_odd_sizes(shape: tuple[int, int]) -> None:
    x = torch.randn(*shape, E, dtype=torch.float64)
    same((E, 8), {"batch_first": True}, x, x.clone(), x.clone())


@pytest.mark.parametrize("kwargs", [{}, {"kdim": 4, "vdim": 6, "add_bias_kv": True}], ids=str)
def test_it_starts_where_torchs_does(kwargs: dict[str, Any]) -> None:
    assert_same_start(
        lambda: nn.MultiheadAttention(E, H, **kwargs),
        lambda: torch_nn.MultiheadAttention(E, H, **kwargs),
    )


def test_it_is_shown_as_torchs() -> None:
    ours, theirs = pair(E, H)
    shown = repr(theirs).replace("NonDynamicallyQuantizableLinear", "Linear")
    assert repr(ours.initialize(0)) == shown
    assert "num_kv_heads=1" in repr(nn.MultiheadAttention(E, H, num_kv_heads=1))


# -- dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_drops_weights_by_the_key(need_weights: bool) -> None:
    x = torch.randn(N, L, E)
    layer = nn.MultiheadAttention(E, H, dropout=0.5, batch_first=True).initialize(0)
    full, weights = layer.eval()(x, x, x, average_attn_weights=False)
    one, first = layer.train(random.key(0))(
        x, x, x, average_attn_weights=False, need_weights=need_weights
    )
    again, _ = layer.train(random.key(0))(x, x, x, need_weights=need_weights)
    other, _ = layer.train(random.key(1))(x, x, x, need_weights=need_weights)
    assert_same(one, again)
    assert not torch.equal(one, other) and not torch.equal(one, full)
    if need_weights:
        assert first is not None and weights is not None
        mask = random.dropout_mask(layer.train(random.key(0)).rng, (N * H, L, L), 0.5)
        assert_same(first, weights * mask.reshape(N, H, L, L))
        assert 0.3 < first.eq(0).double().mean() < 0.7


def test_dropout_needs_a_key_only_where_it_drops() -> None:
    x = torch.randn(N, L, E)
    layer = nn.MultiheadAttention(E, H, dropout=0.5, batch_first=True).initialize(0)
    with pytest.raises(RuntimeError, match="no random state was handed"):
        layer(x, x, x)
    layer.eval()(x, x, x)
    nn.MultiheadAttention(E, H).initialize(0)(x, x, x)


# -- groups and rotary ----------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kdim", [None, 6])
def test_grouped_queries_are_heads_with_repeated_keys(
    groups: int, need_weights: bool, masked: bool, kdim: int | None
) -> None:
    grouped = nn.MultiheadAttention(
        16, 4, num_kv_heads=groups, kdim=kdim, batch_first=True
    ).initialize(0)
    whole = torch_nn.MultiheadAttention(16, 4, kdim=kdim, batch_first=True)

    def repeated(rows: Tensor) -> Any:
        return rows.unflatten(0, (groups, 4)).repeat_interleave(4 // groups, 0).flatten(0, 1)

    state = dict(bridge.state_dict(grouped))
    sizes = [16, 4 * groups, 4 * groups]
    for name in ("in_proj_weight", "in_proj_bias"):
        if name in state:
            q, k, v = state[name].split(sizes)
            state[name] = torch.cat([q, repeated(k), repeated(v)])
    for name in ("k_proj_weight", "v_proj_weight"):
        if name in state:
            state[name] = repeated(state[name])
    whole.load_state_dict(state)
    q, k, v = torch.randn(N, L, 16), torch.randn(N, S, kdim or 16), torch.randn(N, S, 16)
    mask = torch.rand(L, S).round().bool() & (torch.arange(S) > 0) if masked else None
    wanted = whole(q, k, v, attn_mask=mask, need_weights=need_weights)
    found = grouped(q, k, v, attn_mask=mask, need_weights=need_weights)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_rotary_turns_queries_and_keys() -> None:
    rotary = nn.RotaryEmbedding(4)
    layer = nn.MultiheadAttention(8, 2, batch_first=True, rotary=rotary).initialize(0)
    x = torch.randn(N, L, 8)
    assert layer.in_proj_weight is not None
    q, k, v = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(rotary(q), rotary(k), v)
    expected = layer.out_proj(out.transpose(1, 2).flatten(2))
    assert_same(layer(x, x, x, need_weights=False)[0], expected, 1e-6)


# -- cache ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("pieces", [[6], [1] * 6, [3, 1, 2]], ids=str)
def test_decoding_piece_by_piece_is_causal_attention(
    batch_first: bool, groups: int, rotary: bool, pieces: list[int]
) -> None:
    layer = nn.MultiheadAttention(
        16, 4, num_kv_heads=groups, batch_first=batch_first,
        rotary=nn.RotaryEmbedding(4) if rotary else None,
    ).initialize(0)  # fmt: skip
    x = torch.randn((N, 6, 16) if batch_first else (6, N, 16))
    dim = 1 if batch_first else 0
    expected, _ = layer(x, x, x, need_weights=False, is_causal=True)
    cache, outs = layer.empty_cache(N, max_len=9), []
    for piece in x.split(pieces, dim):
        before = [t.clone() for t in cache]
        out, after = layer.decode(piece, cache)
        assert_same(list(cache), before)  # nothing that is passed in is written to
        cache = after
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, dim), expected, rtol=1e-5, atol=1e-5)
    assert cache.length == 6 and cache.key.shape == (N, groups, 9, 4)


def test_a_decoding_step_is_compiled_once() -> None:
    layer = nn.MultiheadAttention(16, 4, batch_first=True).initialize(0)
    graphs = 0

    def count(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph

    step: Any = parallax.compile(lambda m, x, cache: m.decode(x, cache), backend=count)
    cache = other = layer.empty_cache(2, max_len=4)
    for x in torch.randn(4, 2, 1, 16):
        out, cache = step(layer, x, cache)
        expected, other = layer.decode(x, other)
        assert_same(out, expected)
    assert graphs == 1 and cache.length == 4


def test_caches_vmap() -> None:
    layer = nn.MultiheadAttention(16, 4, batch_first=True).initialize(0)
    x = torch.randn(5, 2, 1, 16)
    cache = layer.empty_cache(2, max_len=4)
    out, caches = func.vmap(lambda x: layer.decode(x, cache))(x)
    looped = [layer.decode(one, cache) for one in x]
    torch.testing.assert_close(out, torch.stack([out for out, _ in looped]))
    assert caches.key.shape == (5, *cache.key.shape)


def test_compiled_vmap_has_no_loop_over_the_members() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True).initialize(0, dtype=torch.float64)
    x = torch.randn(3, 2, 4, 8, dtype=torch.float64)

    def loss(layer: nn.MultiheadAttention, x: Tensor) -> Tensor:
        return layer(x, x, x, need_weights=False)[0].square().sum()

    step = parallax.compile(func.vmap(func.grad(loss), in_dims=(None, 0)), backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of such loops
        found = step(layer, x)
    looped = tree.stack([func.grad(loss)(layer, one) for one in x])
    assert tree.allclose(found, looped, rtol=1e-9, atol=1e-12)


def test_a_full_cache_and_another_batch_are_refused() -> None:
    class Net(Module):
        attention: nn.MultiheadAttention

    net = Net(nn.MultiheadAttention(8, 2, batch_first=True)).initialize(0)
    cache = net.attention.empty_cache(2, max_len=3)
    _, cache = net.attention.decode(torch.ones(2, 2, 8), cache)
    with pytest.raises(ValueError, match=r"holds 2 of 3 tokens, and 2 more.*max_len=4\)"):
        net.attention.decode(torch.ones(2, 2, 8), cache)
    with pytest.raises(ValueError, match=r"for a batch of 2, got 1. Write: empty_cache\(1,"):
        net.attention.decode(torch.ones(1, 1, 8), cache)
    with pytest.raises(ValueError, match=r"expected query of shape \(N, L, 8\), got \(2, 1, 9\)"):
        net.attention.decode(torch.ones(2, 1, 9), cache)
    more = nn.MultiheadAttention(8, 2, add_zero_attn=True).initialize(0)
    with pytest.raises(ValueError, match="knows the tokens' own keys only"):
        more.decode(torch.ones(1, 2, 8), more.empty_cache(2, 3))
    with pytest.raises(ValueError, match=r"empty_cache\(max_len=\): must be at least 1"):
        more.empty_cache(2, 0)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"embed_dim": 8, "num_heads": 3}, "embed_dim=8 cannot be divided among num_heads=3"),
        ({"embed_dim": 0, "num_heads": 1}, r"\(embed_dim=\): must be at least 1, got 0"),
        ({"embed_dim": 8, "num_heads": -2}, r"\(num_heads=\): must be at least 1, got -2"),
        ({"embed_dim": 8, "num_heads": 2, "kdim": 0}, r"\(kdim=\): must be at least 1"),
        ({"embed_dim": 8, "num_heads": 2, "dropout": 1.5}, r"\(dropout=\): must be at least 0 and"),
        ({"embed_dim": 8, "num_heads": 4, "num_kv_heads": 3}, "among num_kv_heads=3"),
        (
            {"embed_dim": 8, "num_heads": 4, "rotary": nn.RotaryEmbedding(4)},
            r"turns 4 features, and a head has 2. Write: RotaryEmbedding\(2\)",
        ),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^MultiheadAttention.*{text}"):
        nn.MultiheadAttention(**kwargs)
    with pytest.raises(TypeError, match=r"MultiheadAttention\(embed_dim=\): expected an int"):
        nn.MultiheadAttention(8.0, 2)  # type: ignore[arg-type]  # that is the point


def test_inputs_that_do_not_fit_name_the_layer_and_the_shape() -> None:
    class Net(Module):
        attention: nn.MultiheadAttention

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.attention(*args, **kwargs)

    net = Net(nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)).initialize(0)
    where = r"^Net.attention \(MultiheadAttention\): expected "
    q, k = torch.ones(3, 5, 8), torch.ones(3, 7, 6)
    wrong: Any
    for wrong in (
        (torch.ones(3, 5, 9), k, k, r"query of shape \(N, L, 8\), got \(3, 5, 9\)"),
        (torch.ones(2, 3, 5, 8), k, k, r"query of shape \(N, L, 8\), got \(2, 3, 5, 8\)"),
        (q, torch.ones(3, 7, 8), k, r"key of shape \(N, S, 6\), got \(3, 7, 8\)"),
        (q, k, torch.ones(3, 6, 6), r"value of shape \(3, 7, 6\), got \(3, 6, 6\)"),
        (q, torch.ones(1, 7, 6), torch.ones(1, 7, 6), r"key of shape \(3, S, 6\), got \(1, 7, 6\)"),
        (torch.ones(5, 8), k, k, r"key of shape \(S, 6\), got \(3, 7, 6\)"),
    ):
        with pytest.raises(ValueError, match=where + wrong[3]):
            net(*wrong[:3])
    with pytest.raises(TypeError, match=r"Net.attention \(Multi.*: key must be a tensor, got list"):
        net(q, [k], k)
    with pytest.raises(ValueError, match=where + r"attn_mask of shape \(5, 7\) or \(6, 5, 7\)"):
        net(q, k, k, attn_mask=torch.ones(5, 5) > 0)
    with pytest.raises(ValueError, match=where + r"key_padding_mask of shape \(3, 7\), got \(3, 5"):
        net(q, k, k, key_padding_mask=torch.ones(3, 5) > 0)
    with pytest.raises(ValueError, match=r"attn_mask must be of bools or floats, got torch.int64"):
        net(q, k, k, attn_mask=torch.ones(5, 7, dtype=torch.int64))
