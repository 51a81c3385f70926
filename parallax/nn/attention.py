"""Multi-head attention."""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from parallax import random
from parallax._compat import dynamo, functorch
from parallax._errors.arguments import check_dtype, check_flags, device_of
from parallax.core.fields import Parameter
from parallax.core.module import Module
from parallax.nn.arguments import positive
from parallax.nn.attention_checks import (
    check_arguments,
    check_batches,
    check_cache,
    check_inputs,
    check_room,
    refuse_cache,
    refuse_switches,
)
from parallax.nn.caching import KVCache
from parallax.nn.dropout import dropped
from parallax.nn.linear import Linear
from parallax.nn.masks import check_mask, merged, padded
from parallax.nn.mixing import mixed
from parallax.nn.rotary import RotaryEmbedding

__all__ = ["MultiheadAttention"]


class MultiheadAttention(Module):
    r"""Multi-head attention: for each query the mean of the values, weighted by how its keys fit.

    .. math:: \mathrm{head} = \mathrm{softmax}(Q K^T / \sqrt{d}) \, V

    for each of the heads, on projections of the inputs. The concatenated heads are projected once
    more.

    Args:
        embed_dim: the size of the queries and of the output.
        num_heads: how many heads; ``embed_dim`` is divided among them.
        dropout: the probability with which a weight is dropped in mode ``"train"``; draws from
            ``self.rng``.
        bias: whether the projections add a bias.
        add_bias_kv: whether there is one more key and value, both trained.
        add_zero_attn: whether there is one more key and value, both zero.
        kdim: the size of the keys; by default ``embed_dim``.
        vdim: the size of the values; by default ``embed_dim``.
        batch_first: whether the batch comes before the sequence.
        num_kv_heads: how many heads the keys and values have, each serving several heads of the
            queries (grouped queries); by default ``num_heads``.
        rotary: rotates queries and keys by their positions.

    Shape:
        - query: ``(L, N, embed_dim)``, key: ``(S, N, kdim)``, value: ``(S, N, vdim)``; with
          ``batch_first`` ``(N, L, embed_dim)`` and so on; or all three without ``N``
        - output: as the query; and the weights, ``(N, L, S)``, or ``None``

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive, ``embed_dim`` cannot be divided among the heads or
            ``num_heads`` among ``num_kv_heads``, or an input has another shape.

    Source: A. Vaswani et al., "Attention Is All You Need", 2017, section 3.2.2; J. Ainslie et al.,
    "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", 2023.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True).initialize(0)
        >>> x = torch.ones(5, 3, 8)
        >>> output, weights = attention(x, x, x)
        >>> weights.shape
        torch.Size([5, 3, 3])
        >>> cache = attention.empty_cache(5, max_len=10)
        >>> output, cache = attention.decode(x, cache)
        >>> cache.length
        tensor(3)
    """

    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dropout: float
    kdim: int
    vdim: int
    add_zero_attn: bool
    batch_first: bool
    in_proj_weight: Parameter | None
    q_proj_weight: Parameter | None
    k_proj_weight: Parameter | None
    v_proj_weight: Parameter | None
    in_proj_bias: Parameter | None
    bias_k: Parameter | None
    bias_v: Parameter | None
    out_proj: Linear
    rotary: RotaryEmbedding | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        *,
        num_kv_heads: int | None = None,
        rotary: RotaryEmbedding | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_flags("MultiheadAttention", bias=bias, add_bias_kv=add_bias_kv)
        check_flags("MultiheadAttention", add_zero_attn=add_zero_attn, batch_first=batch_first)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.dropout = dropout
        self.add_zero_attn = add_zero_attn
        self.batch_first = batch_first
        self.rotary = rotary
        check_arguments(self)
        self.head_dim = embed_dim // num_heads
        narrow = self.num_kv_heads * self.head_dim
        parameter = partial(Parameter, dtype=dtype)
        packed = self.kdim == self.vdim == embed_dim
        wide = embed_dim + 2 * narrow
        draw = init.xavier_uniform_
        self.in_proj_weight = parameter((wide, embed_dim), draw) if packed else None
        self.q_proj_weight = None if packed else parameter((embed_dim, embed_dim), draw)
        self.k_proj_weight = None if packed else parameter((narrow, self.kdim), draw)
        self.v_proj_weight = None if packed else parameter((narrow, self.vdim), draw)
        self.in_proj_bias = parameter((wide,), init.zeros_) if bias else None
        out = Linear(embed_dim, embed_dim, bias, dtype=dtype)
        self.out_proj = out.replace(bias=parameter((embed_dim,), init.zeros_)) if bias else out
        normal = init.xavier_normal_
        self.bias_k = parameter((1, 1, narrow), normal) if add_bias_kv else None
        self.bias_v = parameter((1, 1, narrow), normal) if add_bias_kv else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from the queries to the keys and values.

        Args:
            query: what asks.
            key: what is compared with it.
            value: what is taken.
            key_padding_mask: ``(N, S)``; ``True`` for a key that nobody sees, or floats that are
                added to its scores.
            need_weights: whether to return the weights; without them it is faster.
            attn_mask: ``(L, S)`` or ``(N * num_heads, L, S)``; likewise for pairs.
            average_attn_weights: whether to return their mean over the heads, instead of
                ``(N, num_heads, L, S)``.
            is_causal: no query sees a later key; ``attn_mask`` need not be given then.

        Returns:
            The output, and the weights or ``None``.
        """
        flags: Any = need_weights, average_attn_weights, is_causal
        if not (type(flags[0]) is type(flags[1]) is type(flags[2]) is bool):
            refuse_switches(self, *flags)
        try:
            if query.dim() == 2:
                return self._unbatched(
                    query, key, value, key_padding_mask, need_weights, attn_mask,
                    average_attn_weights, is_causal,
                )  # fmt: skip
            masked = attn_mask is not None or key_padding_mask is not None
            more = self.bias_k is not None or self.add_zero_attn
            drops = self.dropout > 0.0 and self.mode == "train"
            if query is not key or key is not value:
                if need_weights and not (masked or is_causal or more or drops) and self._lean:
                    return self._across(query, key, value, average_attn_weights)
                check_batches(self, query, key, value)
            q, k, v = self._heads(query, key, value)
            if self.rotary is not None:
                q, k = self.rotary(q), self.rotary(k)
            simple = not (need_weights or drops or more)
            if simple and (not masked or (is_causal and key_padding_mask is None)):
                return self._out(mixed(q, k, v, None, is_causal)), None
            mask = None
            if masked or is_causal:
                mask = merged(self, attn_mask, key_padding_mask, is_causal, q, k)
        except (AttributeError, IndexError, RuntimeError, TypeError):
            check_inputs(self, query, key, value)
            raise
        if more:
            k, v, mask = self._with_more(k, v, mask)
        if not (need_weights or drops):
            return self._out(mixed(q, k, v, mask)), None
        out, weights = self._weighed(q, k, v, mask, drops)
        if not need_weights:
            return self._out(out), None
        return self._out(out), weights.mean(1) if average_attn_weights else weights

    def empty_cache(
        self,
        batch_size: int,
        max_len: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> KVCache:
        """An empty cache with room for the keys and values of ``max_len`` tokens, for ``decode``.

        Args:
            batch_size: how many sequences.
            max_len: the largest number of tokens.
            dtype: by default that of the parameters.
            device: by default that of the parameters.

        Returns:
            A cache of length 0.
        """
        positive("empty_cache", batch_size=batch_size, max_len=max_len)
        check_dtype("empty_cache", dtype)
        shape = (batch_size, self.num_kv_heads, max_len, self.head_dim)
        like = self.out_proj.weight
        where = like.device if device is None else device_of("empty_cache", device)
        zeros = torch.zeros(shape, dtype=dtype or like.dtype, device=where)
        length = torch.zeros((), dtype=torch.int64, device=zeros.device)
        return KVCache(zeros, zeros.clone(), length)

    def decode(self, input: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Causal self-attention of the next tokens, without dropout.

        Args:
            input: the next ``L`` tokens, batched.
            cache: the keys and values of the tokens before.

        Returns:
            The output, in the shape of the input, and the cache with these tokens added.

        Raises:
            ValueError: if the cache is full, or the input has another shape.
        """
        try:
            q, k, v = self._heads(input, input, input)
            if q.shape[0] != cache.key.shape[0] or self.bias_k is not None or self.add_zero_attn:
                refuse_cache(self, q, cache)
            count = q.shape[2]
            if not dynamo.is_compiling() and not functorch.transform_active():
                check_room(self, count, cache)
            if self.rotary is not None:
                positions = cache.positions(count)
                q, k = self.rotary(q, positions), self.rotary(k, positions)
            cache = cache.extended(k, v)
        except (AttributeError, IndexError, RuntimeError, TypeError):
            check_inputs(self, input, input, input)
            check_cache(self, cache)
            raise
        out = mixed(q, cache.key, cache.value, cache.visible(count))
        return self._out(out), cache

    def extra_repr(self) -> str:
        """Empty as in torch, or the number of key and value heads where that is smaller."""
        grouped = self.num_kv_heads != self.num_heads
        return f"num_kv_heads={self.num_kv_heads}" if grouped else ""

    # -- steps of the computation -----------------------------------------------------------------

    @property
    def _lean(self) -> bool:
        """Whether heads are views of the projections, as ``_across`` needs them."""
        whole = self.num_kv_heads == self.num_heads and self.in_proj_weight is not None
        return whole and not self.batch_first and self.rotary is None

    def _across(
        self, query: Tensor, key: Tensor, value: Tensor, average: bool
    ) -> tuple[Tensor, Tensor]:
        """The default call of torch, in as few operators as possible.

        What ``_heads`` and ``_weighed`` do for every case costs a third more on a small input.
        """
        packed, bias = self.in_proj_weight, self.in_proj_bias
        wq, wk, wv = packed.chunk(3)  # type: ignore[union-attr]  # it is there if self._lean
        bq, bk, bv = (None, None, None) if bias is None else bias.chunk(3)
        (count, batch, _), heads, size = query.shape, self.num_heads, self.head_dim
        over = batch * heads
        q = F.linear(query, wq, bq).view(count, over, size).transpose(0, 1)
        k = F.linear(key, wk, bk).view(key.shape[0], over, size).permute(1, 2, 0)
        v = F.linear(value, wv, bv).view(key.shape[0], over, size).transpose(0, 1)
        shares = torch.bmm(q * sqrt(1.0 / size), k).softmax(-1)
        out = torch.bmm(shares, v).transpose(0, 1).reshape(query.shape)
        shares = shares.view(batch, heads, count, key.shape[0])
        return self.out_proj(out), shares.mean(1) if average else shares

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values as ``(N, heads, sequence, head_dim)``."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        heads, narrow, size = self.num_heads, self.num_kv_heads, self.head_dim
        if weight is not None and query is key and key is value:
            one = F.linear(query, weight, bias)
            if heads == narrow:
                first, second, _ = one.shape
                order = (2, 0, 3, 1, 4) if self.batch_first else (2, 1, 3, 0, 4)
                return one.reshape(first, second, 3, heads, size).permute(order).unbind(0)
            parts: Any = one.split([heads * size, narrow * size, narrow * size], -1)
        else:
            sizes = [heads * size, narrow * size, narrow * size]
            weights: Any = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if weight is not None:
                weights = weight.split(sizes)
            biases = (None, None, None) if bias is None else bias.split(sizes)
            triples = zip((query, key, value), weights, biases, strict=True)
            parts = [F.linear(x, w, b) for x, w, b in triples]
        dims = (0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3)
        pairs = zip(parts, (heads, narrow, narrow), strict=True)
        return tuple([x.reshape(*x.shape[:2], n, size).permute(dims) for x, n in pairs])

    def _with_more(
        self, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The keys, values and mask, extended by those that the layer adds."""
        one = (1, self.num_kv_heads, 1, self.head_dim)
        if self.bias_k is not None and self.bias_v is not None:
            shape = (k.shape[0], *one[1:])
            k = torch.cat([k, self.bias_k.reshape(one).expand(shape)], 2)
            v = torch.cat([v, self.bias_v.reshape(one).expand(shape)], 2)
            mask = padded(mask)
        if self.add_zero_attn:
            k, v, mask = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), padded(mask)
        return k, v, mask

    def _weighed(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drops: bool
    ) -> tuple[Tensor, Tensor]:
        """The weighted mean of the values, and the weights."""
        if self.num_kv_heads != self.num_heads:
            each = self.num_heads // self.num_kv_heads
            k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
        batch, heads, count, size = q.shape
        scaled, keys = (q * sqrt(1.0 / size)).flatten(0, 1), k.flatten(0, 1).transpose(1, 2)
        if mask is None:
            scores = torch.bmm(scaled, keys)
        else:
            whole = mask.expand(batch, heads, *mask.shape[-2:]).flatten(0, 1)
            scores = torch.baddbmm(whole, scaled, keys)
        weights = scores.softmax(-1)
        if drops:
            weights = dropped(weights, self.dropout, random.as_key(self.rng))
        out = torch.bmm(weights, v.flatten(0, 1)).reshape(batch, heads, count, size)
        return out, weights.reshape(batch, heads, count, k.shape[2])

    def _out(self, heads: Tensor) -> Tensor:
        """The projection of the concatenated heads."""
        order = (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)
        out: Tensor = self.out_proj(heads.permute(order).flatten(2))
        return out

    def _unbatched(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        need_weights: bool,
        *rest: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The call without a batch, as a batch of one."""
        check_inputs(self, query, key, value)
        dim = 0 if self.batch_first else 1
        one = query.unsqueeze(dim)
        two = one if key is query else key.unsqueeze(dim)
        three = two if value is key else value.unsqueeze(dim)
        if key_padding_mask is not None:
            check_mask(self, "key_padding_mask", key_padding_mask, (key.shape[0],))
            key_padding_mask = key_padding_mask.unsqueeze(0)
        out, weights = self.forward(one, two, three, key_padding_mask, need_weights, *rest)
        return out.squeeze(dim), None if weights is None else weights.squeeze(0)
