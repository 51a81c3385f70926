"""Recurrent cells: one step of a recurrence."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._errors.arguments import check_flags
from parallax.core.fields import Parameter
from parallax.core.module import Module
from parallax.nn.arguments import one_of, positive, uniform_within
from parallax.nn.exactness import in_plain_eager_code
from parallax.nn.families import shown_as
from parallax.nn.recurrence import gru_step, lstm_step, relu_step, tanh_step
from parallax.nn.refusal import refuse, where

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]

# What a kernel or an operator raises of an input that does not fit.
_MISFIT = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)


class _Cell(Module):
    """What the cells share.

    Args:
        input_size: of the last dimension of the input, I.
        hidden_size: of the state, H.
        bias: whether there are biases.

    Shape:
        - input: ``(N, I)`` or ``(I,)``
        - hx: ``(N, H)`` or ``(H,)``; zeros by default
        - output: as ``hx``

    Raises:
        ValueError: if a size is less than one, or the input or ``hx`` has another shape.
    """

    input_size: int
    hidden_size: int
    bias: bool
    weight_ih: Parameter
    weight_hh: Parameter
    bias_ih: Parameter | None
    bias_hh: Parameter | None

    # How many vectors of the hidden size a step computes from the input.
    gates: ClassVar[int]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(type(self).__name__, input_size=input_size, hidden_size=hidden_size)
        check_flags(type(self).__name__, bias=bias)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        rows, start = self.gates * hidden_size, uniform_within(hidden_size)
        self.weight_ih = Parameter((rows, input_size), start, dtype=dtype)
        self.weight_hh = Parameter((rows, hidden_size), start, dtype=dtype)
        self.bias_ih = Parameter((rows,), start, dtype=dtype) if bias else None
        self.bias_hh = Parameter((rows,), start, dtype=dtype) if bias else None

    def _zeros(self, input: Tensor) -> Tensor:
        """The state before the first step."""
        return input.new_zeros((*input.shape[:-1], self.hidden_size))

    def _drive(self, input: Tensor) -> Tensor:
        """The contribution of the input to a step."""
        return F.linear(input, self.weight_ih, self.bias_ih)

    def _check(self, input: Any, **states: Any) -> None:
        """Raises if the input or a state does not fit."""
        shape = input.shape if isinstance(input, Tensor) else torch.Size()
        if len(shape) not in (1, 2) or shape[-1] != self.input_size:
            refuse(self, f"(N, {self.input_size}) or ({self.input_size},)", input)
        for name, state in states.items():
            wanted = (*shape[:-1], self.hidden_size)
            if not isinstance(state, Tensor) or state.shape != wanted:
                refuse(self, str(wanted), state, name)

    extra_repr = shown_as(torch.nn.RNNCell)


class RNNCell(_Cell):
    r"""One step of an Elman network: :math:`h' = \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})`.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Source: J. Elman, "Finding Structure in Time", Cognitive Science, 1990.

    Example:
        >>> cell = nn.RNNCell(3, 2).initialize(0)
        >>> cell(torch.ones(5, 3), torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    nonlinearity: str
    gates: ClassVar[int] = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, dtype=dtype)
        self.nonlinearity = one_of("RNNCell", "nonlinearity", nonlinearity, "tanh", "relu")

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next hidden state."""
        saturates = self.nonlinearity == "tanh"
        try:
            h = self._zeros(input) if hx is None else hx
            if not in_plain_eager_code():
                self._check(input, hx=h)
                step = tanh_step if saturates else relu_step
                return step(self._drive(input), (h,), self.weight_hh, self.bias_hh, None)[0]
            run = torch.rnn_tanh_cell if saturates else torch.rnn_relu_cell
            weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
            if input.dim() == 2 == h.dim():
                return run(input, h, *weights)
            self._check(input, hx=h)
            return run(input[None], h[None], *weights)[0]
        except _MISFIT:
            self._check(input, **{} if hx is None else {"hx": hx})
            raise


class GRUCell(_Cell, init=False):
    r"""One step of a gated recurrent unit.

    .. math::
        r &= \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \\
        z &= \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
        n &= \tanh(W_{in} x + b_{in} + r (W_{hn} h + b_{hn})) \\
        h' &= (1 - z) n + z h

    Source: K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014.

    Example:
        >>> cell = nn.GRUCell(3, 2).initialize(0)
        >>> cell(torch.ones(5, 3), torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    gates: ClassVar[int] = 3

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next hidden state."""
        try:
            h = self._zeros(input) if hx is None else hx
            if not in_plain_eager_code():
                self._check(input, hx=h)
                return gru_step(self._drive(input), (h,), self.weight_hh, self.bias_hh, None)[0]
            weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
            if input.dim() == 2 == h.dim():
                return torch.gru_cell(input, h, *weights)
            self._check(input, hx=h)
            return torch.gru_cell(input[None], h[None], *weights)[0]
        except _MISFIT:
            self._check(input, **{} if hx is None else {"hx": hx})
            raise


class LSTMCell(_Cell, init=False):
    r"""One step of a long short-term memory.

    .. math::
        i &= \sigma(W_{ii} x + b_{ii} + W_{hi} h + b_{hi}) \\
        f &= \sigma(W_{if} x + b_{if} + W_{hf} h + b_{hf}) \\
        g &= \tanh(W_{ig} x + b_{ig} + W_{hg} h + b_{hg}) \\
        o &= \sigma(W_{io} x + b_{io} + W_{ho} h + b_{ho}) \\
        c' &= f c + i g \qquad h' = o \tanh(c')

    Shape:
        - hx: a pair h, c of ``(N, H)`` or ``(H,)``; zeros by default
        - output: a pair like ``hx``

    Raises:
        TypeError: if ``hx`` is no pair.
        ValueError: if a size is less than one, or the input or a part of ``hx`` has another shape.

    Source: S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation, 1997.

    Example:
        >>> cell = nn.LSTMCell(3, 2).initialize(0)
        >>> h, c = cell(torch.ones(5, 3), (torch.zeros(5, 2), torch.zeros(5, 2)))
        >>> h.shape, c.shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    gates: ClassVar[int] = 4

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next hidden state and cell state."""
        try:
            if hx is None:
                h = c = self._zeros(input)
            else:
                h, c = hx
            if not in_plain_eager_code():
                self._check(input, h=h, c=c)
                h, c = lstm_step(self._drive(input), (h, c), self.weight_hh, self.bias_hh, None)
                return h, c
            weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
            if input.dim() == 2 == h.dim() == c.dim():
                return torch.lstm_cell(input, (h, c), *weights)
            self._check(input, h=h, c=c)
            h, c = torch.lstm_cell(input[None], (h[None], c[None]), *weights)
            return h[0], c[0]
        except _MISFIT:
            self._check(input, **self._named(hx))
            raise

    def _named(self, hx: Any) -> dict[str, Any]:
        """The two parts of a state by their names."""
        if hx is not None and (not isinstance(hx, (tuple, list)) or len(hx) != 2):
            raise TypeError(f"{where(self)}: hx must be a pair of tensors (h, c)")
        return {} if hx is None else {"h": hx[0], "c": hx[1]}
