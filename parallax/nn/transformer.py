"""Encoders and decoders: stacks of the layers of transformers."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from parallax.core.arguments import check_module
from parallax.core.module import Module
from parallax.nn.arguments import positive

__all__ = ["TransformerDecoder", "TransformerEncoder"]


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
