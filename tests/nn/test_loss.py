"""Losses: what ``test_every_layer`` and ``test_module_db`` do not compare, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn as torch_nn

from parallax import Module, bridge, func, nn, tree
from tests.nn.refusals import Net
from tests.nn.test_every_layer import CLASSES, IMAGE, LABELS, SCORES, floats

X, Y = floats(5, 4).double(), floats(5, 4, 1).squeeze(-1).double()


def test_class_weights_are_buffers_of_torchs_names() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for name in ("CrossEntropyLoss", "NLLLoss", "BCELoss", "MultiLabelSoftMarginLoss"):
        ours, theirs = getattr(nn, name)(weight), getattr(torch_nn, name)(weight)
        assert bridge.state_dict(ours).keys() == theirs.state_dict().keys() == {"weight"}
        assert tree.to(ours, dtype=torch.float64).weight.dtype == torch.float64
    ours = nn.BCEWithLogitsLoss(pos_weight=weight)
    theirs = torch_nn.BCEWithLogitsLoss(pos_weight=weight)
    assert bridge.state_dict(ours).keys() == theirs.state_dict().keys()
    assert torch.equal(ours(SCORES, SCORES.sigmoid()), theirs(SCORES, SCORES.sigmoid()))


def test_a_loss_is_a_part_of_a_model() -> None:
    class Net(Module):
        layer: nn.Linear
        loss: nn.CrossEntropyLoss

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.loss(self.layer(x), y)

    net = Net(nn.Linear(4, 4), nn.CrossEntropyLoss(torch.ones(4))).initialize(0)
    grads = func.grad(lambda net: net(SCORES, CLASSES))(net)
    assert grads.loss.weight is None and grads.layer.weight.shape == (4, 4)


def test_what_torch_warns_of_is_refused() -> None:
    """Predictions of shape (N, 1) and targets of shape (N,) would be compared each with each."""
    for loss in (nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), nn.KLDivLoss(), nn.PoissonNLLLoss()):
        with pytest.raises(ValueError, match=r"of one shape, got \(5, 1\) and \(5,\). Give target"):
            loss(X[:, :1], Y[:, 0])
    with pytest.raises(ValueError, match=r"Give a target of shape \(5, 4\)"):
        nn.MSELoss()(X, Y[:1])


def test_derivatives_by_targets_that_torch_has_not() -> None:
    labels = Y.sigmoid()
    for weight in (None, torch.linspace(0.5, 1.5, 4, dtype=torch.float64)):
        weighed = 1.0 if weight is None else weight
        found = func.grad(lambda y, w=weight: nn.BCELoss(w)(X.sigmoid(), y))(labels)
        torch.testing.assert_close(found, -(X * weighed) / 20)
    found = func.grad(lambda y: nn.SoftMarginLoss()(X, y))(Y)
    torch.testing.assert_close(found, -X * torch.sigmoid(-X * Y) / 20)
    ends = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    targets = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    by_input, by_target = func.grad(nn.BCELoss(reduction="sum"), argnums=(0, 1))(ends, targets)
    assert by_target.tolist() == [100.0, -100.0, 100.0, -100.0]
    given = ends.clone().requires_grad_()
    F.binary_cross_entropy(given, targets, reduction="sum").backward()
    assert given.grad is not None and torch.equal(by_input, given.grad)


def test_scores_that_overflow_in_torch() -> None:
    scores, signs = torch.tensor([-200.0]), torch.tensor([1.0])
    assert torch_nn.SoftMarginLoss()(scores, signs).isinf()
    assert nn.SoftMarginLoss()(scores, signs) == 200


def test_variances() -> None:
    ours, theirs = (
        nn.GaussianNLLLoss(eps=0.1, full=True),
        torch_nn.GaussianNLLLoss(full=True, eps=0.1),
    )
    for var in (0.5, Y.exp(), Y[:, :1].exp(), Y[:, 0].exp(), torch.zeros(5, 4).double()):
        torch.testing.assert_close(ours(X, Y, var), theirs(X, Y, var))
    small = torch.full_like(X, 0.01).requires_grad_()
    one, two = [torch.autograd.grad(loss(X, Y, small), small)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(one, two)


def test_a_distance_is_trained() -> None:
    class Weighed(Module):
        scale: nn.Linear

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.scale(a - b).square().sum(-1)

    loss = nn.TripletMarginWithDistanceLoss(
        distance_function=Weighed(nn.Linear(4, 2, bias=False)), margin=3.0, swap=True
    ).initialize(0)
    triplet = (SCORES, SCORES.cos(), SCORES.sin())

    def by_hand(module: Any) -> Tensor:
        near, far, other = [
            F.linear(a - b, module.distance_function.scale.weight).square().sum(-1)
            for a, b in ((triplet[0], triplet[1]), (triplet[0], triplet[2]), triplet[1:])
        ]
        return (3 + near - torch.minimum(far, other)).clamp(min=0).mean()

    found, wanted = func.grad(lambda m: m(*triplet))(loss), func.grad(by_hand)(loss)
    assert tree.allclose(found, wanted)


def test_neighbouring_channels_by_the_formula() -> None:
    layer = nn.CrossMapLRN2d(3, 0.5, 0.6, 2.0)
    x = IMAGE.double()
    squares = F.pad(x**2, (0, 0, 0, 0, 1, 1))
    means = (squares[:, :-2] + squares[:, 1:-1] + squares[:, 2:]) / 3
    torch.testing.assert_close(layer(x), x * (2 + 0.5 * means) ** -0.6)
    theirs = torch_nn.CrossMapLRN2d(3, 0.5, 0.6, 2.0)
    torch.testing.assert_close(layer(x)[:, :2], theirs(x)[:, :2])
    assert repr(layer) == repr(theirs)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        (
            "MSELoss",
            {"reduction": "avg"},
            ValueError,
            "(reduction=): expected one of 'mean'",
        ),
        ("KLDivLoss", {"log_target": 1}, TypeError, "(log_target=): expected a bool, got 1. Write"),
        ("HuberLoss", {"delta": 0}, ValueError, "(delta=): must be positive, got 0. Write delta"),
        (
            "CrossEntropyLoss",
            {"weight": [1, 2]},
            TypeError,
            "(weight=): expected a floating",
        ),
        ("NLLLoss", {"weight": torch.ones(2, 2)}, ValueError, "(weight=): expected one number for"),
        ("MultiMarginLoss", {"p": 3}, ValueError, "(p=): must be 1 or 2, got 3. Write p=1"),
        ("TripletMarginLoss", {"margin": 0}, ValueError, "(margin=): must be positive, got 0"),
        ("CrossMapLRN2d", {"size": 4}, ValueError, "(size=): must be odd, got 4. Write size=5"),
        ("Fold", {"output_size": 1, "kernel_size": 2}, ValueError, "(output_size=): a block is"),
    ],
)
def test_bad_arguments_fail_at_construction(
    name: str, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^{name}{re.escape(text)}"):
        getattr(nn, name)(**arguments)


@pytest.mark.parametrize(
    ("loss", "inputs", "error", "text"),
    [
        (
            nn.CrossEntropyLoss(),
            (SCORES, CLASSES[:3]),
            ValueError,
            "a target of shape (5,)",
        ),
        (nn.CrossEntropyLoss(), (SCORES, CLASSES.int()), TypeError, "Write target.long()"),
        (nn.CrossEntropyLoss(), (SCORES, CLASSES.float()), ValueError, "of one shape, got (5, 4)"),
        (
            nn.CrossEntropyLoss(torch.ones(3)),
            (SCORES, CLASSES),
            ValueError,
            "(N, 3, *) or (3)",
        ),
        (nn.NLLLoss(), (SCORES, CLASSES.float()), TypeError, "target must hold class indices of"),
        (nn.MultiMarginLoss(), (IMAGE, CLASSES), ValueError, "input of shape (N, C) or (C), got"),
        (nn.MultiLabelMarginLoss(), (SCORES, LABELS[:2]), ValueError, "expected a target of shape"),
        (nn.MarginRankingLoss(), (X[:, 0], Y[:, 0], X), ValueError, "with as many dimensions, got"),
        (nn.CosineEmbeddingLoss(), (X, Y, X), ValueError, "input1 and input2 of shape (N, D)"),
        (nn.TripletMarginLoss(), (X, Y, X[:, :3]), ValueError, "of shapes that fit, got (5, 4), "),
        (nn.GaussianNLLLoss(), (X, Y, -X.abs()), ValueError, "var must not be negative, and 20 of"),
        (nn.GaussianNLLLoss(), (X, Y, X[:2].abs()), ValueError, "var must have the shape (5, 4)"),
        (nn.PairwiseDistance(), (X, Y[:, :3]), ValueError, "x1 and x2 of shapes that fit, got"),
        (nn.CosineSimilarity(2), (X, Y), IndexError, "with a dimension 2, got shape (5, 4)"),
        (nn.Unfold(8), (IMAGE,), ValueError, "(N, C, H, W) with H >= 8, W >= 8, got (2, 4, 6, 5)"),
        (nn.Fold(4, 2), (X,), ValueError, "(N, C * 4, 9) or (C * 4, 9), got (5, 4)"),
        (nn.CrossMapLRN2d(3), (X,), ValueError, "input of shape (N, C, H, W), got (5, 4)"),
    ],
)
def test_inputs_that_do_not_fit_name_the_path(
    loss: Module, inputs: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=rf"^Net.layer \(\w+\): .*{re.escape(text)}"):
        Net(loss)(*inputs)


def test_torchs_own_errors_name_the_path() -> None:
    for loss, x, y in (
        (nn.BCELoss(), X + 10, Y.sigmoid()),
        (nn.CrossEntropyLoss(), X, CLASSES + 9),
    ):
        with pytest.raises((RuntimeError, IndexError)) as raised:
            Net(loss)(x, y)
        assert raised.value.__notes__ == [f"This came from Net.layer ({type(loss).__name__})."]


@pytest.mark.parametrize("engine", [func, torch.func], ids=["parallax", "torch"])
def test_third_derivatives_of_cosine_embeddings_that_mix_modes(engine: Any) -> None:
    """Torch's kernel has other ones for a jvp of a gradient of a jvp, and none for some."""
    x, target = X[:3], torch.tensor([1, -1, 1])

    def layer(x: Tensor) -> Tensor:
        out: Tensor = nn.CosineEmbeddingLoss(-0.9)(x, Y[:3], target)
        return out

    def written_out(x: Tensor) -> Tensor:
        cosine = (x * Y[:3]).sum(-1) / (x.square().sum(-1) * Y[:3].square().sum(-1)).sqrt()
        return torch.where(target > 0, 1 - cosine, (cosine + 0.9).clamp(min=0)).mean()

    taken: Any = {
        "R": lambda f: lambda x: (engine.grad(f)(x) * Y[2:]).sum(),
        "F": lambda f: lambda x: engine.jvp(f, (x,), (Y[2:],))[1],
    }
    torch.testing.assert_close(layer(x), written_out(x))
    for word in ("FRF", "RFF", "RFR", "FFR", "FRR"):
        found: Any = layer
        expected: Any = written_out
        for letter in reversed(word):
            found, expected = taken[letter](found), taken[letter](expected)
        torch.testing.assert_close(found(x), expected(x), rtol=1e-7, atol=1e-9)
