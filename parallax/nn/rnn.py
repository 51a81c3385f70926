"""Recurrent networks over whole sequences."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from parallax.nn.arguments import integer, is_int, one_of
from parallax.nn.recurrence import State, gru_step, lstm_step, relu_step, tanh_step
from parallax.nn.recurrent import Recurrent
from parallax.nn.refusal import where

__all__ = ["GRU", "LSTM", "RNN"]


class RNN(Recurrent):
    r"""An Elman network: :math:`h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})`.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Source: J. Elman, "Finding Structure in Time", Cognitive Science, 1990.

    Example:
        >>> outputs, last = nn.RNN(3, 2, num_layers=2).initialize(0)(torch.ones(7, 5, 3))
        >>> outputs.shape, last.shape
        (torch.Size([7, 5, 2]), torch.Size([2, 5, 2]))
    """

    nonlinearity: str
    gates: ClassVar[int] = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype
        )
        self.nonlinearity = one_of("RNN", "nonlinearity", nonlinearity, "tanh", "relu")

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The last layer's states at all steps, and all layers' states after the last step."""
        output, last = self.run(input, hx=hx)
        return output, last

    def kernel(
        self, input: Tensor, states: State, weights: list[Tensor], layers: int
    ) -> tuple[Tensor, ...]:
        """The outputs and the last states, by torch's kernel."""
        run = torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu
        return run(
            input, states[0], weights, self.bias, layers, 0.0, False, self.bidirectional,
            self.batch_first,
        )  # fmt: skip

    def step(
        self, drive: Tensor, state: State, weight: Tensor, bias: Any, projection: Any
    ) -> State:
        """The next state."""
        step = tanh_step if self.nonlinearity == "tanh" else relu_step
        return step(drive, state, weight, bias, projection)


class GRU(Recurrent):
    """Gated recurrent units; a step is computed as by ``GRUCell``.

    Source: K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014.

    Example:
        >>> gru = nn.GRU(3, 2, bidirectional=True, batch_first=True).initialize(0)
        >>> outputs, last = gru(torch.ones(5, 7, 3))
        >>> outputs.shape, last.shape
        (torch.Size([5, 7, 4]), torch.Size([2, 5, 2]))
    """

    gates: ClassVar[int] = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype
        )

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The last layer's states at all steps, and all layers' states after the last step."""
        output, last = self.run(input, hx=hx)
        return output, last

    def kernel(
        self, input: Tensor, states: State, weights: list[Tensor], layers: int
    ) -> tuple[Tensor, ...]:
        """The outputs and the last states, by torch's kernel."""
        return torch.gru(
            input, states[0], weights, self.bias, layers, 0.0, False, self.bidirectional,
            self.batch_first,
        )  # fmt: skip

    def step(
        self, drive: Tensor, state: State, weight: Tensor, bias: Any, projection: Any
    ) -> State:
        """The next state."""
        return gru_step(drive, state, weight, bias, projection)


class LSTM(Recurrent):
    """Long short-term memory; a step is computed as by ``LSTMCell``.

    Args:
        hidden_size: the size of the cell state, C.
        proj_size: the size of the hidden state after a projection, H; 0 for no projection, H = C.

    Shape:
        - hx: a pair of ``(D * L, N, H)`` and ``(D * L, N, C)``, or without ``N``; zeros by default
        - output: ``(T, N, D * H)``, ``(N, T, D * H)`` or ``(T, D * H)``, and the last states,
          a pair like ``hx``

    Raises:
        TypeError: if the input is packed (the message says what to do with it), or ``hx`` is no
            pair.
        ValueError: if a number is out of range, or the input or a part of ``hx`` has another
            shape.

    Source: S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation, 1997; the
    projection: H. Sak et al., "Long Short-Term Memory Based Recurrent Neural Network Architectures
    for Large Vocabulary Speech Recognition", 2014.

    Example:
        >>> outputs, (h, c) = nn.LSTM(3, 4, num_layers=2).initialize(0)(torch.ones(7, 5, 3))
        >>> outputs.shape, h.shape, c.shape
        (torch.Size([7, 5, 4]), torch.Size([2, 5, 4]), torch.Size([2, 5, 4]))
    """

    proj_size: int
    gates: ClassVar[int] = 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        integer("LSTM", proj_size=proj_size)
        if is_int(hidden_size) and not 0 <= proj_size < max(hidden_size, 1):
            raise ValueError(
                f"LSTM(proj_size=): must be at least 0 and less than hidden_size, {hidden_size}, "
                f"got {proj_size}"
            )
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype,
            proj_size,
        )  # fmt: skip
        self.proj_size = proj_size

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The last layer's states at all steps, and all layers' states after the last step."""
        given: Any = (None, None) if hx is None else hx
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise TypeError(f"{where(self)}: hx must be a pair of tensors (h, c)")
        output, h, c = self.run(input, h=given[0], c=given[1])
        return output, (h, c)

    def kernel(
        self, input: Tensor, states: State, weights: list[Tensor], layers: int
    ) -> tuple[Tensor, ...]:
        """The outputs and the last states, by torch's kernel."""
        return torch.lstm(
            input, states, weights, self.bias, layers, 0.0, False, self.bidirectional,
            self.batch_first,
        )  # fmt: skip

    def step(
        self, drive: Tensor, state: State, weight: Tensor, bias: Any, projection: Any
    ) -> State:
        """The next state."""
        return lstm_step(drive, state, weight, bias, projection)
