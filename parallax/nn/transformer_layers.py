"""The layers of transformers, as in "Attention Is All You Need"."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._errors.arguments import check_flags, shown
from parallax.core.module import Module
from parallax.nn.arguments import between, positive
from parallax.nn.attention import MultiheadAttention
from parallax.nn.dropout import Dropout
from parallax.nn.families import shown_as
from parallax.nn.linear import Linear
from parallax.nn.normalization import LayerNorm
from parallax.nn.refusal import refuse

__all__ = ["Activation", "TransformerDecoderLayer", "TransformerEncoderLayer", "check_arguments"]

Activation = str | Callable[[Tensor], Tensor]
_BY_NAME: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class _Layer(Module):
    """What the layers of encoders and decoders share.

    Args:
        d_model: the size of the input, and of the memory of a decoder.
        nhead: the number of attention heads.
        dim_feedforward: the size between the affine maps.
        dropout: the probability with which a number is dropped in mode ``"train"``.
        activation: between the affine maps: ``"relu"``, ``"gelu"``, a function or a module.
        layer_norm_eps: is added to the variance in the norms.
        batch_first: whether the batch comes before the sequence.
        norm_first: whether the norms come before attention and maps, or after the addition.
        bias: whether maps and norms add a bias.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive, ``d_model`` cannot be divided among the heads, the
            activation has another name, or an input another shape.

    Source: A. Vaswani et al., "Attention Is All You Need", 2017, section 3.1; for ``norm_first``
    R. Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020.
    """

    extra_repr = shown_as(torch.nn.TransformerEncoderLayer)

    def __shown__(self) -> list[tuple[str, Any]]:
        # As torch, which shows no function between the maps.
        values = [(name, getattr(self, name)) for name in type(self).__layout__.children]
        return [(name, value) for name, value in values if isinstance(value, Module)]


class TransformerEncoderLayer(_Layer):
    """Self-attention and a feedforward network, each with a residual connection and a norm.

    Shape:
        - src: ``(S, N, d_model)``; with ``batch_first`` ``(N, S, d_model)``; or without ``N``
        - output: as the input

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).initialize(0).eval()
        >>> layer(torch.ones(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    self_attn: MultiheadAttention
    linear1: Linear
    dropout: Dropout
    linear2: Linear
    norm1: LayerNorm
    norm2: LayerNorm
    dropout1: Dropout
    dropout2: Dropout
    activation: Module | Callable[..., Any]
    norm_first: bool

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_arguments(name, d_model, nhead, dim_feedforward, dropout)
        check_flags(name, batch_first=batch_first, norm_first=norm_first, bias=bias)
        attention = partial(
            MultiheadAttention, d_model, nhead, dropout, bias, batch_first=batch_first, dtype=dtype
        )
        norm = partial(LayerNorm, d_model, layer_norm_eps, bias=bias, dtype=dtype)
        self.self_attn = attention()
        self.linear1 = Linear(d_model, dim_feedforward, bias, dtype=dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, dtype=dtype)
        self.norm1, self.norm2 = norm(), norm()
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)
        self.activation = _activation(name, activation)
        self.norm_first = norm_first

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Applies self-attention and the feedforward network.

        Args:
            src: the sequence.
            src_mask: see ``attn_mask`` of ``MultiheadAttention``.
            src_key_padding_mask: see ``key_padding_mask`` there.
            is_causal: nobody sees what comes later; ``src_mask`` need not be given then.
        """
        _check_sequence(self, src, "src")
        if self.norm_first:
            x = self.norm1(src)
            out = self.self_attn(x, x, x, src_key_padding_mask, False, src_mask, False, is_causal)
            src = src + self.dropout1(out[0])
            x = self.dropout(self.activation(self.linear1(self.norm2(src))))
            mapped: Tensor = src + self.dropout2(self.linear2(x))
            return mapped
        out = self.self_attn(src, src, src, src_key_padding_mask, False, src_mask, False, is_causal)
        src = self.norm1(src + self.dropout1(out[0]))
        x = self.linear2(self.dropout(self.activation(self.linear1(src))))
        output: Tensor = self.norm2(src + self.dropout2(x))
        return output


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to a memory and a feedforward network, each with residual and norm.

    Shape:
        - tgt: ``(T, N, d_model)``, memory: ``(S, N, d_model)``; with ``batch_first``
          ``(N, T, d_model)`` and so on; or both without ``N``
        - output: as ``tgt``

    Example:
        >>> layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True).initialize(0).eval()
        >>> layer(torch.ones(5, 3, 8), torch.ones(5, 4, 8)).shape
        torch.Size([5, 3, 8])
    """

    self_attn: MultiheadAttention
    multihead_attn: MultiheadAttention
    linear1: Linear
    dropout: Dropout
    linear2: Linear
    norm1: LayerNorm
    norm2: LayerNorm
    norm3: LayerNorm
    dropout1: Dropout
    dropout2: Dropout
    dropout3: Dropout
    activation: Module | Callable[..., Any]
    norm_first: bool

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_arguments(name, d_model, nhead, dim_feedforward, dropout)
        check_flags(name, batch_first=batch_first, norm_first=norm_first, bias=bias)
        attention = partial(
            MultiheadAttention, d_model, nhead, dropout, bias, batch_first=batch_first, dtype=dtype
        )
        norm = partial(LayerNorm, d_model, layer_norm_eps, bias=bias, dtype=dtype)
        self.self_attn, self.multihead_attn = attention(), attention()
        self.linear1 = Linear(d_model, dim_feedforward, bias, dtype=dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, dtype=dtype)
        self.norm1, self.norm2, self.norm3 = norm(), norm(), norm()
        self.dropout1, self.dropout2, self.dropout3 = [Dropout(dropout) for _ in range(3)]
        self.activation = _activation(name, activation)
        self.norm_first = norm_first

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Applies self-attention, attention to the memory, and the feedforward network.

        Args:
            tgt: the sequence.
            memory: what an encoder made of another.
            tgt_mask: see ``attn_mask`` of ``MultiheadAttention``.
            memory_mask: likewise, of the attention to the memory.
            tgt_key_padding_mask: see ``key_padding_mask`` there.
            memory_key_padding_mask: likewise, of the memory.
            tgt_is_causal: nobody sees what comes later; ``tgt_mask`` need not be given then.
            memory_is_causal: likewise, of the memory.
        """
        _check_sequence(self, tgt, "tgt")
        _check_sequence(self, memory, "memory")
        own = tgt_key_padding_mask, False, tgt_mask, False, tgt_is_causal
        other = memory_key_padding_mask, False, memory_mask, False, memory_is_causal
        if self.norm_first:
            x = self.norm1(tgt)
            tgt = tgt + self.dropout1(self.self_attn(x, x, x, *own)[0])
            x = self.norm2(tgt)
            tgt = tgt + self.dropout2(self.multihead_attn(x, memory, memory, *other)[0])
            x = self.dropout(self.activation(self.linear1(self.norm3(tgt))))
            mapped: Tensor = tgt + self.dropout3(self.linear2(x))
            return mapped
        tgt = self.norm1(tgt + self.dropout1(self.self_attn(tgt, tgt, tgt, *own)[0]))
        x = self.multihead_attn(tgt, memory, memory, *other)[0]
        tgt = self.norm2(tgt + self.dropout2(x))
        x = self.linear2(self.dropout(self.activation(self.linear1(tgt))))
        output: Tensor = self.norm3(tgt + self.dropout3(x))
        return output


def check_arguments(
    name: str, d_model: int, nhead: int, dim_feedforward: int, dropout: float
) -> None:
    """Raises unless sizes are positive, the heads share ``d_model``, and dropout is a share."""
    positive(name, d_model=d_model, nhead=nhead, dim_feedforward=dim_feedforward)
    between(name, 0, 1, dropout=dropout)
    if d_model % nhead:
        raise ValueError(f"{name}: d_model={d_model} cannot be divided among nhead={nhead}")


def _check_sequence(layer: Any, value: Any, name: str) -> None:
    """Raises unless a value is a sequence that the layer takes."""
    attention: MultiheadAttention = layer.self_attn
    size = attention.embed_dim
    if not isinstance(value, Tensor) or value.dim() not in (2, 3) or value.shape[-1] != size:
        letter = "T" if name == "tgt" else "S"
        order = f"N, {letter}" if attention.batch_first else f"{letter}, N"
        refuse(layer, f"({order}, {size}) or ({letter}, {size})", value, name)


def _activation(name: str, given: Any) -> Any:
    if isinstance(given, str):
        if given not in _BY_NAME:
            raise ValueError(
                f"{name}(activation=): expected 'relu', 'gelu', a function or a module, "
                f"got {shown(given)}. Write activation='gelu'"
            )
        return _BY_NAME[given]
    if not callable(given) or isinstance(given, (type, torch.nn.Module)):
        raise TypeError(
            f"{name}(activation=): expected 'relu', 'gelu', a function or a parallax.Module, "
            f"got {shown(given)}. Write activation='gelu'"
        )
    return given
