"""The example with learned initial states: it is torch's LSTM, it learns, its states move."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn as torch_nn

from parallax import func, tree
from parallax.examples import learned_states
from parallax.examples.learned_states import Reader, loss, read


def started(reader: Reader) -> Reader:
    """With initial states that differ."""
    states = [torch.randn(leaf.shape) for leaf in (*reader.h, *reader.c)]
    half = len(states) // 2
    return reader.replace(h=tuple(states[:half]), c=tuple(states[half:]))


@pytest.mark.parametrize("layers", [1, 3])
def test_scores_and_gradients_are_those_of_torch(layers: int) -> None:
    reader = started(Reader(4, 5, 3, layers).initialize(0))
    x, y = torch.randn(6, 7, 4), torch.tensor([0, 1, 2, 2, 1, 0])

    lstm = torch_nn.LSTM(4, 5, layers, batch_first=True)
    with torch.no_grad():
        for k, cell in enumerate(reader.cells):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(lstm, f"{name}_l{k}").copy_(getattr(cell, name))
    starts = [torch.stack(part).requires_grad_() for part in (reader.h, reader.c)]
    hx = tuple(start[:, None].expand(-1, 6, -1).contiguous() for start in starts)
    last = lstm(x, hx)[1][0][-1]
    expected = F.cross_entropy(F.linear(last, reader.scores.weight, reader.scores.bias), y)
    expected.backward()

    grads, value = func.grad_and_value(loss)(reader, x, y)
    torch.testing.assert_close(value, expected.detach())
    for found, start in ((grads.h, starts[0]), (grads.c, starts[1])):
        torch.testing.assert_close(torch.stack(found), start.grad)
    for k, cell in enumerate(grads.cells):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            torch.testing.assert_close(getattr(cell, name), getattr(lstm, f"{name}_l{k}").grad)


def test_a_batch_is_read_as_its_members_are() -> None:
    reader, x = started(Reader(4, 5, 3, 2).initialize(0)), torch.randn(6, 7, 4)
    expected = torch.stack([reader(one) for one in x])
    torch.testing.assert_close(read(reader, x), expected)


def test_gradients_per_sequence() -> None:
    reader, x = started(Reader(4, 5, 3, 2).initialize(0)), torch.randn(3, 2, 4)

    def one(reader: Reader, sequence: Tensor) -> Tensor:
        return F.softplus(reader(sequence)).sum()

    found = tree.leaves(func.per_sample_grad(one)(reader, x))
    looped = [tree.leaves(func.grad(one)(reader, sequence)) for sequence in x]
    for leaf, parts in zip(found, zip(*looped, strict=True), strict=True):
        torch.testing.assert_close(leaf, torch.stack(parts))


def test_it_learns_and_its_initial_states_move() -> None:
    *_, (reader, value) = learned_states.train(60, 0)
    assert value < 1.0 and learned_states.accuracy(reader) > 0.7
    assert all(state.norm() > 0.05 for state in (*reader.h, *reader.c))
