"""One leaf or one module in several places."""

from __future__ import annotations

import torch
from torch import Tensor

from parallax import Module
from tests.corpus.leaves import Dense


class TiedParameter(Module):
    """One tensor in two modules, as an embedding and its decoder share theirs."""

    encoder: Dense
    decoder: Dense

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Dense()
        decoder = Dense()
        self.decoder = decoder.replace(weight=self.encoder.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


class TiedModule(Module):
    """One module in two fields, in a tuple, and apart."""

    one: Dense
    other: Dense
    several: tuple[Dense, ...]
    apart: Dense

    def __init__(self) -> None:
        super().__init__()
        self.one = Dense()
        self.other = self.one
        self.several = (self.one, Dense())
        self.apart = Dense()

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.one, self.other, *self.several, self.apart):
            x = torch.tanh(layer(x))
        return x
