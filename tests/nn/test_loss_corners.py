"""Losses at their corners: lengths, half precision, labels, inputs of integers or no dimension."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import func, nn

SCORES = torch.linspace(-1, 1, 40).reshape(5, 2, 4).sin().log_softmax(-1)
TARGETS = torch.tensor([[1, 2, 3], [1, 1, 2]])
ROWS, LABELS = SCORES[:2, 0], torch.tensor([[3, 0, -1, 1], [1, -1, 0, 0]])


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_gradients_of_impossible_sequences_under_vmap(zero_infinity: bool) -> None:
    loss = nn.CTCLoss(reduction="sum", zero_infinity=zero_infinity)

    def slope(scores: Tensor) -> Tensor:
        found: Tensor = func.grad(lambda s: loss(s, TARGETS, (2, 5), (3, 2)))(scores)
        return found

    torch.testing.assert_close(func.vmap(slope)(SCORES[None])[0], slope(SCORES), equal_nan=True)


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        (((-1, 5), (2, 2)), "input_lengths must be from 0 to 5"),
        (((5, 6), (2, 2)), "input_lengths must be from 0 to 5"),
        (((5, 5), (4, 2)), "target_lengths must be from 0 to 3"),
    ],
)
def test_lengths_out_of_range(lengths: Any, text: str) -> None:
    for run in (nn.CTCLoss(), func.vmap(nn.CTCLoss(), (0, None, None, None))):
        scores = SCORES if isinstance(run, nn.CTCLoss) else SCORES[None]
        with pytest.raises(ValueError, match=text):
            run(scores, TARGETS, *lengths)
    with pytest.raises(TypeError, match="must be 2 ints"):
        nn.CTCLoss()(SCORES, TARGETS, torch.tensor([True, True]), (1, 1))


def test_lengths_of_two_kinds_and_half_precision() -> None:
    theirs = torch.nn.CTCLoss(reduction="none")(SCORES, TARGETS, (5, 4), (2, 2))
    ours = nn.CTCLoss(reduction="none")
    torch.testing.assert_close(ours(SCORES, TARGETS, (5, 4), torch.tensor([2, 2])), theirs)
    half = ours(SCORES.bfloat16(), TARGETS, (5, 4), (2, 2))
    torch.testing.assert_close(half, theirs.bfloat16(), rtol=0.02, atol=0.02)


def test_margins_in_half_precision_and_ends_of_labels() -> None:
    for ours, theirs, target in (
        (nn.MultiMarginLoss(), torch.nn.MultiMarginLoss(), torch.tensor([1, 2])),
        (nn.MultiLabelMarginLoss(), torch.nn.MultiLabelMarginLoss(), LABELS),
    ):
        expected = theirs(ROWS.half().float(), target).half()
        torch.testing.assert_close(ours(ROWS.half(), target), expected)
    with pytest.raises(ValueError, match=r"expected labels from 0 to 3, and -1 after the last"):
        nn.MultiLabelMarginLoss()(ROWS, LABELS - 1)


def test_variances_of_integers_and_of_numbers() -> None:
    given = torch.tensor([1, 2]), torch.tensor([1.0, 4.0]), 0.5
    expected = torch.nn.GaussianNLLLoss()(*given)
    torch.testing.assert_close(nn.GaussianNLLLoss()(*given), expected)
    one = nn.GaussianNLLLoss(reduction="none")(torch.tensor(1.0), torch.tensor(2.0), 0.5)
    assert one.shape == ()
