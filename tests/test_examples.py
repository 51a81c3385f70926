"""The examples of derivatives run, do what they say, and agree with ``torch.func``."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from parallax.examples import ensemble, laplace, maml, ntk, per_sample_gradients

EXAMPLES = [per_sample_gradients, ensemble, maml, ntk, laplace]
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.__name__.rsplit(".", 1)[-1])
def test_both_ways_agree_and_ours_is_shorter(example: ModuleType) -> None:
    ours, *_, theirs = example.compare()
    torch.testing.assert_close(ours.result, theirs.result, rtol=1e-3, atol=1e-5)
    assert ours.lines < theirs.lines
    assert ours.seconds > 0 and "lines" in str(ours)


@pytest.mark.parametrize("example", [ntk, laplace], ids=["ntk", "laplace"])
def test_main_says_what_it_took(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    example.main()
    said = capsys.readouterr().out
    assert "parallax " in said and "torch.func with nn.Module" in said and " ms" in said


def test_private_training_learns_and_clips() -> None:
    net, accuracy = per_sample_gradients.train(30, 0)
    assert accuracy > 0.7
    x = torch.randn(8, 64) * 100
    grads = per_sample_gradients.clipped(net, x, torch.zeros(8, dtype=torch.long))
    norm = sum((g**2).sum() for g in (grads.first.weight, grads.first.bias, grads.second.weight))
    assert norm <= per_sample_gradients.CLIP**2


def test_an_ensemble_is_better_than_its_members() -> None:
    one, together = ensemble.train(40)
    assert together > one > 0.8


def test_learning_to_learn_helps() -> None:
    before, after = maml.train(60, 0)
    assert after < 0.8 * before


def test_kernel_without_jacobians_is_the_kernel() -> None:
    one, products, _ = ntk.compare()
    torch.testing.assert_close(one.result, products.result, rtol=1e-3, atol=1e-4)


def test_sharpness_is_the_largest_eigenvalue() -> None:
    from parallax import func

    net = per_sample_gradients.Net(2).initialize(0)
    # Power iteration wants a gap below the largest eigenvalue, which other numbers may not have.
    x, y = torch.randn(16, 64, generator=torch.Generator().manual_seed(3)), torch.arange(16) % 10
    found = laplace.sharpness(net, x, y)
    matrix = func.hessian_matrix(lambda net: laplace.loss(net, x, y))(net)
    largest = torch.linalg.eigvalsh(matrix).abs().max()
    torch.testing.assert_close(found.abs(), largest, rtol=1e-3, atol=0.0)
