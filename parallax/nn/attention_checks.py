"""Checks of attention: of its arguments, and of inputs that do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from parallax._errors.arguments import shown
from parallax.nn.arguments import between, positive
from parallax.nn.caching import KVCache
from parallax.nn.refusal import refuse, where
from parallax.nn.rotary import RotaryEmbedding

if TYPE_CHECKING:
    from parallax.nn.attention import MultiheadAttention

__all__ = ["check_arguments", "check_batches", "check_cache", "check_inputs", "check_room",
           "refuse_cache", "refuse_switches"]  # fmt: skip

_SWITCHES = ("need_weights", "average_attn_weights", "is_causal")


def check_arguments(layer: MultiheadAttention) -> None:
    """Raises if the sizes of a layer that is being constructed do not fit together."""
    name = "MultiheadAttention"
    width, heads, groups = layer.embed_dim, layer.num_heads, layer.num_kv_heads
    positive(name, embed_dim=width, num_heads=heads, num_kv_heads=groups)
    positive(name, kdim=layer.kdim, vdim=layer.vdim)
    between(name, 0, 1, dropout=layer.dropout)
    if width % heads:
        raise ValueError(f"{name}: embed_dim={width} cannot be divided among num_heads={heads}")
    if heads % groups:
        raise ValueError(f"{name}: num_heads={heads} cannot be divided among num_kv_heads={groups}")
    given: Any = layer.rotary
    if given is not None and not isinstance(given, RotaryEmbedding):
        raise TypeError(
            f"{name}(rotary=): expected a RotaryEmbedding, got {shown(given)}. "
            f"Write RotaryEmbedding({width // heads})"
        )
    if layer.rotary is not None and layer.rotary.dim != width // heads:
        raise ValueError(
            f"{name}(rotary=): turns {layer.rotary.dim} features, and a head has "
            f"{width // heads}. Write: RotaryEmbedding({width // heads})"
        )


def check_batches(layer: MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raises if the batch sizes differ, as they would broadcast."""
    batch = 0 if layer.batch_first else 1
    count = query.shape[batch]
    if key.shape[batch] != count or value.shape[:2] != key.shape[:2]:
        check_inputs(layer, query, key, value)


def check_inputs(layer: MultiheadAttention, query: Any, key: Any, value: Any) -> None:
    """Raises if the inputs do not fit the layer or each other."""
    batched = not isinstance(query, Tensor) or query.dim() != 2
    names = ("N, L", "N, S") if layer.batch_first else ("L, N", "S, N")
    letters = names if batched else ("L", "S")
    rank = 3 if batched else 2
    for name, x, size, letter in (
        ("query", query, layer.embed_dim, letters[0]),
        ("key", key, layer.kdim, letters[1]),
        ("value", value, layer.vdim, letters[1]),
    ):
        if not isinstance(x, Tensor) or x.dim() != rank or x.shape[-1] != size:
            refuse(layer, f"({letter}, {size})", x, name)
    if value.shape[:-1] != key.shape[:-1]:
        refuse(layer, f"({', '.join(map(str, key.shape[:-1]))}, {layer.vdim})", value, "value")
    batch = 0 if layer.batch_first else 1
    if batched and key.shape[batch] != query.shape[batch]:
        count = query.shape[batch]
        refuse(layer, f"({letters[1].replace('N', str(count))}, {layer.kdim})", key, "key")


def check_cache(layer: MultiheadAttention, given: Any) -> None:
    """Raises unless the cache given to ``decode`` is one."""
    if not isinstance(given, KVCache):
        raise TypeError(
            f"{where(layer)}: cache must be a KVCache, got {shown(given)}. "
            f"Make one: layer.empty_cache(batch_size, max_len)"
        )


def refuse_switches(layer: MultiheadAttention, *flags: Any) -> None:
    """Raises for the first flag of a call that is not a bool."""
    for name, value in zip(_SWITCHES, flags, strict=True):
        if type(value) is not bool:
            raise TypeError(
                f"{where(layer)}: {name} must be a bool, got {shown(value)}. Write {name}=True or "
                f"{name}=False"
            )


def check_room(layer: MultiheadAttention, count: int, cache: KVCache) -> None:
    """Raises if a cache has no room for ``count`` more tokens."""
    held, room = int(cache.length), cache.key.shape[2]
    if held + count > room:
        raise ValueError(
            f"{where(layer)}: the cache holds {held} of {room} tokens, and {count} more do not "
            f"fit. Make it larger: empty_cache(batch_size, max_len={held + count})"
        )


def refuse_cache(layer: MultiheadAttention, q: Tensor, cache: KVCache) -> None:
    """Raises the error of a layer or a batch that does not fit a cache."""
    if q.shape[0] != cache.key.shape[0]:
        raise ValueError(
            f"{where(layer)}: the cache is for a batch of {cache.key.shape[0]}, got "
            f"{q.shape[0]}. Write: empty_cache({q.shape[0]}, max_len)"
        )
    raise ValueError(
        f"{where(layer)}: decode() knows the tokens' own keys only, and this layer adds others "
        f"(add_bias_kv or add_zero_attn)"
    )
