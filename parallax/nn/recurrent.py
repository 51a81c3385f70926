"""What the recurrent networks share: torch's kernels, and a loop where they do not work."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from parallax import random
from parallax._compat.shards import any_distributed
from parallax._errors.arguments import check_flags
from parallax.core.fields import Parameter
from parallax.core.module import Module
from parallax.nn.arguments import between, positive, uniform_within
from parallax.nn.dropout import dropped
from parallax.nn.exactness import in_plain_eager_code
from parallax.nn.recurrence import State
from parallax.nn.refusal import refuse, where

__all__ = ["Recurrent"]


class Recurrent(Module):
    """Recurrent layers over whole sequences, in one or two directions.

    Args:
        input_size: of the last dimension of the input, I.
        hidden_size: of the state, H.
        num_layers: how many layers, L, each run over the outputs of the one before.
        bias: whether there are biases.
        batch_first: whether the batch comes before the steps.
        dropout: the dropout probability between two layers, in mode ``"train"``; drawn from
            ``self.rng``.
        bidirectional: whether each layer also runs backwards, with weights of its own: D is 2.

    Attributes:
        weights: a dict of the parameters by the names that ``torch.nn`` gives them, and in its
            order, such as ``weight_ih_l0`` and ``bias_hh_l1_reverse``.

    Shape:
        - input: ``(T, N, I)``, with ``batch_first`` ``(N, T, I)``, or ``(T, I)``
        - hx: ``(D * L, N, H)`` or ``(D * L, H)``; zeros by default
        - output: ``(T, N, D * H)``, ``(N, T, D * H)`` or ``(T, D * H)``, and the last state,
          like ``hx``

    Raises:
        RuntimeError: if there is dropout, and no rng was handed out.
        TypeError: if the input is packed; the message says what to do with it.
        ValueError: if a number is out of range, or the input or ``hx`` has another shape.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    output_size: int  # of the state that is put out, in one direction
    weights: dict[str, Parameter]

    # How many vectors of the hidden size a step computes from the input.
    gates: ClassVar[int]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        dtype: torch.dtype | None,
        proj_size: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        positive(name, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        between(name, 0, 1, dropout=dropout)
        check_flags(name, bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"{name}(dropout={dropout}): dropout comes between layers, and there is one layer",
                stacklevel=3,
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.output_size = output = proj_size or hidden_size
        rows, start = self.gates * hidden_size, uniform_within(hidden_size)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(num_layers):
            below = input_size if layer == 0 else output * (1 + bidirectional)
            for suffix in (f"_l{layer}", f"_l{layer}_reverse")[: 1 + bidirectional]:
                shapes[f"weight_ih{suffix}"] = (rows, below)
                shapes[f"weight_hh{suffix}"] = (rows, output)
                if bias:
                    shapes[f"bias_ih{suffix}"] = shapes[f"bias_hh{suffix}"] = (rows,)
                if proj_size:
                    shapes[f"weight_hr{suffix}"] = (proj_size, hidden_size)
        self.weights = {k: Parameter(shape, start, dtype=dtype) for k, shape in shapes.items()}

    @staticmethod
    def __state_name__(name: str, _: dict[str, Any]) -> str:
        return name.removeprefix("weights.")

    @abstractmethod
    def kernel(
        self, input: Tensor, states: State, weights: list[Tensor], layers: int
    ) -> tuple[Tensor, ...]:
        """The outputs and the last states, by torch's kernel."""

    @abstractmethod
    def step(
        self, drive: Tensor, state: State, weight: Tensor, bias: Any, projection: Any
    ) -> State:
        """The next state; see ``recurrence``."""

    def run(self, input: Tensor, **states: Tensor | None) -> tuple[Tensor, ...]:
        """Runs over whole sequences.

        Args:
            input: as the layer was given it.
            **states: before the first step, by name; ``None`` for zeros.

        Returns:
            The outputs and the last states.
        """
        self._check(input, states)
        alone, axis = input.dim() == 2, 0 if self.batch_first else 1
        x = input.unsqueeze(axis) if alone else input
        before = []
        zeros: dict[int, Tensor] = {}
        for name, state in states.items():
            if state is not None:
                before.append(state.unsqueeze(1) if alone else state)
                continue
            size = self._size(name)
            if size not in zeros:
                rows = self.num_layers * (1 + self.bidirectional)
                zeros[size] = x.new_zeros((rows, x.shape[axis], size))
            before.append(zeros[size])
        output, *last = self._layers(x, tuple(before))
        if alone:
            return output.squeeze(axis), *[state.squeeze(1) for state in last]
        return output, *last

    def _layers(self, x: Tensor, states: State) -> tuple[Tensor, ...]:
        """Runs over batches of sequences, with dropout between the layers in training."""
        weights: list[Tensor] = [*self.weights.values()]
        spread = any_distributed((x, *states, *weights))
        advance = self.kernel if in_plain_eager_code() and not spread else self._scan
        layers = self.num_layers
        if self.dropout == 0 or layers == 1 or self.mode != "train":
            return advance(x, states, weights, layers)
        keys = random.split(random.as_key(self.rng), layers - 1)
        rows, per_layer = 1 + self.bidirectional, len(weights) // layers
        ends = []
        for k in range(layers):
            if k > 0:
                x = dropped(x, self.dropout, keys[k - 1])
            before = tuple([state[k * rows : (k + 1) * rows] for state in states])
            own = weights[k * per_layer : (k + 1) * per_layer]
            x, *last = advance(x, before, own, 1)
            ends.append(last)
        return x, *[torch.cat(states) for states in zip(*ends, strict=True)]

    def _scan(
        self, input: Tensor, states: State, weights: list[Tensor], layers: int
    ) -> tuple[Tensor, ...]:
        """As ``kernel``, step by step.

        Torch's kernels support neither vmap nor jvp, and take no distributed tensors.
        """
        x = input.transpose(0, 1) if self.batch_first else input
        directions = 1 + self.bidirectional
        size = len(weights) // (layers * directions)
        ends = []
        for layer in range(layers):
            outputs = []
            for k in range(layer * directions, (layer + 1) * directions):
                weight_ih, weight_hh, *rest = weights[k * size : (k + 1) * size]
                projection = rest[-1] if len(rest) % 2 else None
                bias_ih, bias_hh = rest[:2] if self.bias else (None, None)
                state = tuple([before[k] for before in states])
                seen, backwards = [], k % directions == 1
                drives = F.linear(x, weight_ih, bias_ih).unbind()
                for drive in drives[::-1] if backwards else drives:
                    state = self.step(drive, state, weight_hh, bias_hh, projection)
                    seen.append(state[0])
                outputs.append(torch.stack(seen[::-1] if backwards else seen))
                ends.append(state)
            x = torch.cat(outputs, -1) if directions > 1 else outputs[0]
        last = [torch.stack(column) for column in zip(*ends, strict=True)]
        return x.transpose(0, 1) if self.batch_first else x, *last

    def _size(self, state: str) -> int:
        """Of the last dimension of a state."""
        return self.hidden_size if state == "c" else self.output_size

    def _check(self, input: Any, states: dict[str, Any]) -> None:
        """Raises if the input or a state does not fit."""
        if isinstance(input, PackedSequence):
            raise TypeError(
                f"{where(self)}: packed sequences are not taken. Unpack them first, and take the "
                f"outputs before each one's end: "
                f"padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed)"
            )
        shape = input.shape if isinstance(input, Tensor) else torch.Size()
        if len(shape) not in (2, 3) or shape[-1] != self.input_size:
            axes = "(N, T" if self.batch_first else "(T, N"
            refuse(self, f"{axes}, {self.input_size}) or (T, {self.input_size})", input)
        batch = () if len(shape) == 2 else (shape[0 if self.batch_first else 1],)
        rows = self.num_layers * (1 + self.bidirectional)
        if not shape[1 if self.batch_first and batch else 0]:
            raise ValueError(f"{where(self)}: expected at least one step, got {tuple(shape)}")
        for name, state in states.items():
            wanted = (rows, *batch, self._size(name))
            if state is not None and (not isinstance(state, Tensor) or state.shape != wanted):
                refuse(self, str(wanted), state, name)

    def extra_repr(self) -> str:
        """The arguments, as torch shows them."""
        shown = f"{self.input_size}, {self.hidden_size}"
        if self.output_size != self.hidden_size:
            shown += f", proj_size={self.output_size}"
        usual = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
        for name, default in (*usual.items(), ("bidirectional", False)):
            value = getattr(self, name)
            shown += "" if value == default else f", {name}={value}"
        return shown
