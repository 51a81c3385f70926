"""Encoders and decoders, stacks of the layers of transformers, and both together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.init import xavier_uniform_

from parallax._errors.arguments import check_flags, check_module
from parallax.core.fields import Lazy
from parallax.core.module import Module
from parallax.core.registry import flatten_module, unflatten_module
from parallax.nn.arguments import positive
from parallax.nn.families import shown_as
from parallax.nn.normalization import LayerNorm
from parallax.nn.refusal import refuse, where
from parallax.nn.transformer_layers import (
    Activation,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    check_arguments,
)

__all__ = ["Transformer", "TransformerDecoder", "TransformerEncoder"]


class _Stacked(Module):
    """What encoders and decoders share.

    Args:
        num_layers: how many.
        norm: applied last, such as ``LayerNorm(d_model)``.

    Raises:
        TypeError: if the layer is not a module, or ``num_layers`` is not an int.
        ValueError: if ``num_layers`` is not positive.
    """

    layers: tuple[Module, ...]
    norm: Module | None

    def __init__(self, argument: str, layer: Any, num_layers: int, norm: Module | None) -> None:
        super().__init__()
        name = type(self).__name__
        check_module(name, layer, argument)
        positive(name, num_layers=num_layers)
        # Copies that share nothing, so that each gets initial values of its own.
        self.layers = tuple([copy.deepcopy(layer) for _ in range(num_layers)])
        self.norm = norm


class TransformerEncoder(_Stacked):
    """Encoder layers, one after the other.

    Args:
        encoder_layer: a layer that is not initialized: each of the layers gets values of its own.

    Shape:
        - src: as of the layer
        - output: as the input

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> encoder = nn.TransformerEncoder(layer, num_layers=2).initialize(0).eval()
        >>> encoder(torch.ones(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(self, encoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__("encoder_layer", encoder_layer, num_layers, norm)

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """What the last layer returns; ``mask`` is passed to each as ``src_mask``."""
        for layer in self.layers:
            src = layer(src, mask, src_key_padding_mask, is_causal)
        return src if self.norm is None else self.norm(src)


class TransformerDecoder(_Stacked):
    """Decoder layers, one after the other, all attending to one memory.

    Args:
        decoder_layer: a layer that is not initialized: each of the layers gets values of its own.

    Shape:
        - tgt, memory: as of the layer
        - output: as ``tgt``

    Example:
        >>> layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        >>> decoder = nn.TransformerDecoder(layer, num_layers=2).initialize(0).eval()
        >>> decoder(torch.ones(5, 3, 8), torch.ones(5, 4, 8)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__("decoder_layer", decoder_layer, num_layers, norm)

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
        """What the last layer returns; each is given these arguments."""
        rest = (
            tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
            tgt_is_causal, memory_is_causal,
        )  # fmt: skip
        for layer in self.layers:
            tgt = layer(tgt, memory, *rest)
        return tgt if self.norm is None else self.norm(tgt)


class Transformer(Module):
    """An encoder, and a decoder that attends to what it returns.

    Matrices start as ``xavier_uniform_``, as in torch.

    Args:
        d_model: the size of both sequences.
        nhead: the number of attention heads.
        num_encoder_layers: how many layers the encoder has.
        num_decoder_layers: how many the decoder has.
        dim_feedforward: the size between the affine maps.
        dropout: the probability with which a number is dropped in mode ``"train"``.
        activation: between the affine maps: ``"relu"``, ``"gelu"``, a function or a module.
        custom_encoder: takes the place of the encoder; called as ``TransformerEncoder`` is.
        custom_decoder: likewise, as ``TransformerDecoder``.
        layer_norm_eps: is added to the variance in the norms.
        batch_first: whether the batch comes before the sequence.
        norm_first: whether the norms come before attention and maps, or after the addition.
        bias: whether maps and norms add a bias.

    Shape:
        - src: ``(S, N, d_model)``, tgt: ``(T, N, d_model)``; with ``batch_first``
          ``(N, S, d_model)`` and so on; or both without ``N``
        - output: as ``tgt``

    Raises:
        TypeError: if an argument is of another type, or an input is not a tensor.
        ValueError: if a size is not positive, ``d_model`` cannot be divided among the heads, or an
            input is of another shape.

    Source: A. Vaswani et al., "Attention Is All You Need", 2017.

    Example:
        >>> model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True).initialize(0).eval()
        >>> model(torch.ones(5, 3, 8), torch.ones(5, 4, 8), tgt_is_causal=True).shape
        torch.Size([5, 4, 8])
    """

    encoder: Module
    decoder: Module
    d_model: int
    nhead: int
    batch_first: bool

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        custom_encoder: Module | None = None,
        custom_decoder: Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        counts = {
            "num_encoder_layers": num_encoder_layers,
            "num_decoder_layers": num_decoder_layers,
        }
        positive("Transformer", **counts)
        check_arguments("Transformer", d_model, nhead, dim_feedforward, dropout)
        check_flags("Transformer", batch_first=batch_first, norm_first=norm_first, bias=bias)
        arguments = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps,
                     batch_first, norm_first, bias)  # fmt: skip
        norm = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)
        if custom_encoder is None:
            layer: Module = TransformerEncoderLayer(*arguments, dtype=dtype)
            encoder: Module = TransformerEncoder(layer, num_encoder_layers, norm)
            custom_encoder = _matrices_from(xavier_uniform_, encoder)
        if custom_decoder is None:
            layer = TransformerDecoderLayer(*arguments, dtype=dtype)
            decoder: Module = TransformerDecoder(layer, num_decoder_layers, copy.deepcopy(norm))
            custom_decoder = _matrices_from(xavier_uniform_, decoder)
        check_module("Transformer", custom_encoder, "custom_encoder")
        check_module("Transformer", custom_decoder, "custom_decoder")
        self.encoder = custom_encoder
        self.decoder = custom_decoder
        self.d_model = d_model
        self.nhead = nhead
        self.batch_first = batch_first

    @staticmethod
    def generate_square_subsequent_mask(
        sz: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """A causal mask: zeros, and ``-inf`` where a position would see a later one.

        As in torch. ``is_causal=True`` of a layer does the same without a mask.

        Args:
            sz: the length of the sequence.
            device: of the mask; by default torch's default device.
            dtype: of the mask; by default torch's default dtype.

        Returns:
            The mask ``(sz, sz)``.

        Example:
            >>> from parallax import nn
            >>> nn.Transformer.generate_square_subsequent_mask(2).isinf()
            tensor([[False,  True],
                    [False, False]])
        """
        return torch.full((sz, sz), float("-inf"), dtype=dtype, device=device).triu(1)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool = False,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """What the decoder makes of ``tgt`` and of what the encoder makes of ``src``.

        Args:
            src: the sequence for the encoder.
            tgt: the sequence for the decoder.
            src_mask: see ``attn_mask`` of ``MultiheadAttention``.
            tgt_mask: likewise, of the decoder.
            memory_mask: likewise, of the attention to what the encoder returns.
            src_key_padding_mask: see ``key_padding_mask`` there.
            tgt_key_padding_mask: likewise, of the decoder.
            memory_key_padding_mask: likewise, of what the encoder returns.
            src_is_causal: nobody sees what comes later; no mask need be given then.
            tgt_is_causal: likewise, in the decoder.
            memory_is_causal: likewise, of what the encoder returns.
        """
        for name, value in (("src", src), ("tgt", tgt)):
            given: Any = value
            if not isinstance(given, Tensor) or given.dim() not in (2, 3):
                refuse(self, f"(L, N, {self.d_model}) or (L, {self.d_model})", given, name)
        batch = 0 if self.batch_first else 1
        if src.dim() != tgt.dim() or (src.dim() == 3 and src.shape[batch] != tgt.shape[batch]):
            raise ValueError(
                f"{where(self)}: expected src and tgt of one batch size, got shapes "
                f"{tuple(src.shape)} and {tuple(tgt.shape)}, where batch_first={self.batch_first}. "
                f"Give as many sequences in both"
            )
        memory = self.encoder(src, src_mask, src_key_padding_mask, src_is_causal)
        out: Tensor = self.decoder(
            tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
            tgt_is_causal, memory_is_causal,
        )  # fmt: skip
        return out

    extra_repr = shown_as(torch.nn.Transformer)


def _matrices_from(init: Callable[..., Any], module: Module) -> Module:
    """A module whose declared matrices start from another initializer."""
    leaves, structure = flatten_module(module)
    declared = []
    for leaf in leaves:
        if isinstance(leaf, Lazy) and leaf.dim() > 1:
            owner, leaf = leaf.owner, leaf.copy()  # noqa: PLW2901  # what it declares stays
            leaf.init, leaf.owner = init, owner
        declared.append(leaf)
    made: Module = unflatten_module(structure, declared)
    return made
