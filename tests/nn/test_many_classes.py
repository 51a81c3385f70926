"""Losses of many classes and of sequences: numbers of torch, derivatives of their own."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn

from parallax import bridge, func, nn
from tests.nn.test_every_layer import floats

ROWS = floats(9, 16).double()
TARGET = torch.tensor([0, 4, 5, 11, 12, 29, 3, 7, 20])
SETTINGS: list[dict[str, Any]] = [
    {},
    {"bias": True, "weight": torch.linspace(0.5, 1.5, 6).double()},
    {"label_smoothing": 0.1},
    {"reduction": "none", "ignore_index": 2},
    {"reduction": "sum"},
    {"out_features": (2, 3)},
]


def adaptive() -> tuple[Any, Any]:
    arguments = (16, 30, [5, 12], 2.0, True)
    torch.manual_seed(0)
    theirs = torch_nn.AdaptiveLogSoftmaxWithLoss(*arguments, dtype=torch.float64)
    ours = nn.AdaptiveLogSoftmaxWithLoss(*arguments, dtype=torch.float64)
    assert bridge.state_dict(ours.initialize(0)).keys() == theirs.state_dict().keys()
    return bridge.load_state_dict(ours, theirs.state_dict()), theirs


def test_adaptive_softmax_is_torchs() -> None:
    ours, theirs = adaptive()
    assert repr(ours) == repr(theirs).replace("ModuleList", "tuple")
    for found, wanted in (
        (ours(ROWS, TARGET), theirs(ROWS, TARGET)),
        (ours(ROWS[0], TARGET[0]), theirs(ROWS[0], TARGET[0])),
        ((ours.log_prob(ROWS), ours.predict(ROWS)), (theirs.log_prob(ROWS), theirs.predict(ROWS))),
        (func.vmap(ours)(ROWS, TARGET)[0], theirs(ROWS, TARGET)[0]),
    ):
        torch.testing.assert_close(tuple(found), tuple(wanted))
    theirs(ROWS, TARGET).loss.backward()
    grads = bridge.state_dict(func.grad(lambda m: m(ROWS, TARGET).loss)(ours))
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)


def test_what_the_adaptive_softmax_refuses() -> None:
    ours = adaptive()[0]
    with pytest.raises(ValueError, match=r"targets from 0 to 29, got some from 0 to 39. Give n_cl"):
        ours(ROWS, TARGET + (TARGET == 29) * 10)
    assert func.vmap(ours)(ROWS, TARGET + (TARGET == 29) * 10)[0].isnan().sum() == 1
    with pytest.raises(ValueError, match=r"\(cutoffs=\): must increase, and be between 1 and n_c"):
        nn.AdaptiveLogSoftmaxWithLoss(16, 30, [5, 5])
    with pytest.raises(ValueError, match=r"\(div_value=\): nothing is left of in_features=16"):
        nn.AdaptiveLogSoftmaxWithLoss(16, 30, [5, 10, 15])


@pytest.mark.parametrize("shares", [False, True], ids=["classes", "shares"])
@pytest.mark.parametrize("kwargs", SETTINGS, ids=lambda kwargs: "-".join(kwargs) or "-")
def test_linear_cross_entropy_is_torchs(kwargs: dict[str, Any], shares: bool) -> None:
    kwargs = {name: x for name, x in kwargs.items() if not (shares and name == "ignore_index")}
    further = kwargs.get("out_features", ())
    target = torch.arange(9 * 6).reshape(9, 6)[:, : max(1, sum(further) + 1)] % 6
    target = target.reshape(9, *further) if further else target[:, 0] + torch.arange(9) % 6
    if shares:
        target = floats(9, 6, *further).double().softmax(1)
    torch.manual_seed(0)
    theirs = torch_nn.LinearCrossEntropyLoss(16, 6, dtype=torch.float64, **kwargs)
    out = theirs(ROWS, target)
    out.sum().backward()
    for size in (None, 4):
        ours = nn.LinearCrossEntropyLoss(16, 6, dtype=torch.float64, chunk_size=size, **kwargs)
        ours = bridge.load_state_dict(ours, theirs.state_dict())
        torch.testing.assert_close(ours(ROWS, target), out)
        grads = func.grad(lambda loss: loss(ROWS, target).sum())(ours)
        torch.testing.assert_close(grads.linear.weight, theirs.linear.weight.grad)
        assert size or repr(ours) == repr(theirs)


def test_what_the_linear_cross_entropy_refuses() -> None:
    loss = nn.LinearCrossEntropyLoss(16, 6, ignore_index=2).initialize(0)
    x = ROWS.float()
    for target, text in (
        (TARGET[:4], "expected a target of shape (9,) with input of shape (9, 16), got (4,)"),
        (x.softmax(-1), "expected a target of shares of shape (9, 6), got (9, 16)"),
        (x[:, :6].softmax(-1), "ignore_index=2 is a class, and the target holds shares. Leave"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            loss(x, target)
    with pytest.raises(ValueError, match=r"\(weight=\): expected a number for each of 6 classes"):
        nn.LinearCrossEntropyLoss(16, 6, weight=torch.ones(5))


LABELS = torch.tensor([[1, 2, 2], [3, 1, 0], [4, 4, 4]])
JOINED = torch.tensor([1, 2, 2, 3, 1, 4, 4, 4])
STEPS, LENGTHS = torch.tensor([7, 5, 7]), torch.tensor([3, 2, 3])
SCORES = floats(7, 3, 5).double()


@pytest.mark.parametrize("labels", [LABELS, JOINED], ids=["padded", "joined"])
@pytest.mark.parametrize("steps", [STEPS, STEPS - 3], ids=["enough", "too few"])
@pytest.mark.parametrize("zero", [False, True])
def test_ctc_is_torchs(labels: Tensor, steps: Tensor, zero: bool) -> None:
    scores = SCORES.clone().requires_grad_()
    given = scores.log_softmax(-1)
    for reduction in ("none", "mean", "sum"):
        ours = nn.CTCLoss(reduction=reduction, zero_infinity=zero)
        theirs = torch_nn.CTCLoss(reduction=reduction, zero_infinity=zero)
        for lengths in ((steps, LENGTHS), (tuple(steps.tolist()), tuple(LENGTHS.tolist()))):
            one, two = ours(given, labels, *lengths), theirs(given, labels, *lengths)
            torch.testing.assert_close(one, two)
            mapped = func.vmap(ours, in_dims=(0, None, None, None))(given[None], labels, *lengths)
            torch.testing.assert_close(mapped[0], two)
            grads = [torch.autograd.grad(x.sum(), scores, retain_graph=True)[0] for x in (one, two)]
            known = grads[1].isfinite()
            torch.testing.assert_close(grads[0][known], grads[1][known])


def test_ctc_of_one_sequence() -> None:
    given = SCORES[:, 0].log_softmax(-1)
    wanted = torch_nn.CTCLoss()(given, LABELS[0], STEPS[0], LENGTHS[0])
    for lengths in ((7, 3), (STEPS[0], LENGTHS[0]), ((7,), (3,))):
        torch.testing.assert_close(nn.CTCLoss()(given, LABELS[0], *lengths), wanted)


def test_ctc_has_the_gradient_of_what_it_is_given() -> None:
    """Torch's has that only of a normalised input."""
    free = SCORES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: nn.CTCLoss()(x, LABELS, STEPS, LENGTHS), (free,))
    assert torch.autograd.gradgradcheck(
        lambda x: nn.CTCLoss()(x, LABELS[:1], (4,), (2,)), (free[:4, :1],)
    )


def test_lengths_are_mapped() -> None:
    stacked = (STEPS.expand(2, 3), torch.stack([LENGTHS, LENGTHS - 1]))
    found = func.vmap(lambda s, n: nn.CTCLoss()(SCORES, LABELS, s, n))(*stacked)
    wanted = [torch_nn.CTCLoss()(SCORES, LABELS, STEPS, n) for n in stacked[1]]
    torch.testing.assert_close(found, torch.stack(wanted))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"log_probs": SCORES[0, 0]},
            ValueError,
            "shape (T, N, C) or (T, C), got (5,)",
        ),
        (
            {"targets": LABELS.float()},
            TypeError,
            "targets must hold labels, of shape (N, S)",
        ),
        ({"input_lengths": (7, 5)}, TypeError, "input_lengths must be 3 ints, one for each"),
        ({"target_lengths": LENGTHS.float()}, TypeError, "target_lengths must be 3 ints, one for"),
    ],
)
def test_what_ctc_refuses(change: dict[str, Any], error: type[Exception], text: str) -> None:
    given = {"log_probs": SCORES, "targets": LABELS, "input_lengths": STEPS}
    with pytest.raises(error, match=f"^CTCLoss: .*{re.escape(text)}"):
        nn.CTCLoss()(**{**given, "target_lengths": LENGTHS, **change})
    with pytest.raises(ValueError, match="of which none is blank=9"):
        nn.CTCLoss(blank=9)(**given, target_lengths=LENGTHS)
