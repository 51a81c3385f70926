"""One step of each recurrent network, in operators that all transforms support.

A step computes the next state from the contribution of the input, the state, and the weights of the
state. A state is a tuple of tensors; the first is the output of the layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["State", "gru_step", "lstm_step", "relu_step", "tanh_step"]

State = tuple[Tensor, ...]


def tanh_step(
    drive: Tensor, state: State, weight: Tensor, bias: Tensor | None, _: Tensor | None
) -> State:
    r""":math:`h' = \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})`."""
    return (torch.tanh(drive + F.linear(state[0], weight, bias)),)


def relu_step(
    drive: Tensor, state: State, weight: Tensor, bias: Tensor | None, _: Tensor | None
) -> State:
    r""":math:`h' = \max(0, W_{ih} x + b_{ih} + W_{hh} h + b_{hh})`."""
    return (torch.relu(drive + F.linear(state[0], weight, bias)),)


def gru_step(
    drive: Tensor, state: State, weight: Tensor, bias: Tensor | None, _: Tensor | None
) -> State:
    r""":math:`h' = (1 - z) n + z h`, with gates r and z, and :math:`n = \tanh(i_n + r h_n)`."""
    (h,) = state
    reset, update, new = drive.chunk(3, -1)
    held_reset, held_update, held = F.linear(h, weight, bias).chunk(3, -1)
    reset = torch.sigmoid(reset + held_reset)
    update = torch.sigmoid(update + held_update)
    new = torch.tanh(new + reset * held)
    return ((h - new) * update + new,)


def lstm_step(
    drive: Tensor, state: State, weight: Tensor, bias: Tensor | None, projection: Tensor | None
) -> State:
    r""":math:`c' = f c + i g` and :math:`h' = o \tanh c'`, with gates i, f, o, and input g."""
    h, c = state
    enter, forget, cell, out = (drive + F.linear(h, weight, bias)).chunk(4, -1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(cell)
    h = torch.sigmoid(out) * torch.tanh(c)
    return h if projection is None else F.linear(h, projection), c
