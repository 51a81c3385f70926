"""Instance normalisation is torch's, and its running statistics are effects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn

from parallax import bridge, effects, func, nn, tree
from tests.nn.parity import assert_parity, assert_same

SHAPES = [
    ("InstanceNorm1d", (2, 3, 7)),
    ("InstanceNorm1d", (3, 2)),
    ("InstanceNorm2d", (2, 3, 5, 4)),
    ("InstanceNorm2d", (3, 1, 2)),
    ("InstanceNorm3d", (2, 3, 1, 5, 2)),
    ("InstanceNorm3d", (3, 1, 5, 2)),
]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"eps": 1e-2, "affine": True},
        {"affine": True, "bias": False},
        {"track_running_stats": True, "momentum": 0.3},
        {"track_running_stats": True, "momentum": None, "affine": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(("name", "shape"), SHAPES, ids=str)
def test_numbers(name: str, shape: tuple[int, ...], arguments: dict[str, Any], mode: str) -> None:
    ours, theirs = getattr(nn, name)(3, **arguments), getattr(torch_nn, name)(3, **arguments)
    for _ in range(2):  # with statistics of batches before
        theirs.train()(torch.randn(shape) * 3 + 1)
    assert_parity(ours, theirs, torch.randn(shape), mode=mode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    keywords: Any = {"affine": True, "track_running_stats": True, "dtype": dtype}
    ours, theirs = nn.InstanceNorm2d(3, **keywords), torch_nn.InstanceNorm2d(3, **keywords)
    assert_parity(ours, theirs, torch.randn(2, 3, 5, 4, dtype=dtype), mode="train")


def collected(norm: Any, x: Tensor) -> Any:
    """The output, and the layer with its new statistics."""
    return effects.collect(called)(norm, x)


def called(norm: Any, x: Tensor) -> Any:
    return norm(x)


def test_a_sequence_of_batches_leaves_torchs_statistics() -> None:
    theirs = torch_nn.InstanceNorm1d(3, track_running_stats=True)
    ours = nn.InstanceNorm1d(3, track_running_stats=True).initialize(0)
    for _ in range(3):
        x = torch.randn(5, 3, 4)
        expected = theirs(x)
        out, ours = collected(ours, x)
        assert torch.equal(out, expected)
    assert_same(bridge.state_dict(ours), dict(theirs.state_dict()))


def test_nothing_that_is_given_is_written_to() -> None:
    norm = nn.InstanceNorm1d(3, track_running_stats=True).initialize(0)
    before = [leaf.clone() for leaf in tree.leaves(norm)]
    collected(norm, torch.randn(5, 3, 4))
    assert_same(tree.leaves(norm), before)


def test_a_map_over_batches_makes_one_step_by_their_mean() -> None:
    norm, xs = nn.InstanceNorm1d(3, track_running_stats=True).initialize(0), torch.randn(4, 5, 3, 2)
    run = func.vmap(lambda norm, x: norm(x), in_dims=(None, 0))
    after = effects.collect(run)(norm, xs)[1]
    each = [collected(norm, x)[1] for x in xs]
    for name in ("running_mean", "running_var"):
        expected = torch.stack([getattr(one, name) for one in each]).mean(0)
        assert_same(getattr(after, name), expected, 1e-6)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("InstanceNorm1d", (2, 4, 5), r"\(N, 3, L\) or \(3, L\), got \(2, 4, 5\)"),
        ("InstanceNorm1d", (3,), r"\(N, 3, L\) or \(3, L\), got \(3,\)"),
        ("InstanceNorm2d", (3, 4), r"\(N, 3, H, W\) or \(3, H, W\), got \(3, 4\)"),
        ("InstanceNorm3d", (1, 3, 4), r"\(N, 3, D, H, W\) or \(3, D, H, W\), got \(1, 3, 4\)"),
    ],
)
def test_a_misfit_names_the_shape(
    name: str, shape: tuple[int, ...], expected: str, affine: bool
) -> None:
    norm = getattr(nn, name)(3, affine=affine)
    norm = norm.initialize(0) if affine else norm
    with pytest.raises(ValueError, match=rf"^{name}: expected input of shape {expected}$"):
        norm(torch.ones(shape))


def test_what_is_no_tensor_is_refused() -> None:
    norm: Any = nn.InstanceNorm1d(3)  # checkers refuse the call, too
    with pytest.raises(TypeError, match=r"^InstanceNorm1d: input must be a tensor, got list"):
        norm([1.0])


def test_one_value_per_channel_has_no_statistics() -> None:
    with pytest.raises(ValueError, match=r"^InstanceNorm2d: expected more than one value per"):
        nn.InstanceNorm2d(3)(torch.ones(2, 3, 1, 1))


def test_arguments_out_of_range_fail_at_construction() -> None:
    with pytest.raises(ValueError, match=r"InstanceNorm1d\(num_features=\): must be at least 1"):
        nn.InstanceNorm1d(0)
    with pytest.raises(ValueError, match=r"InstanceNorm1d\(momentum=\): must be at least 0 and"):
        nn.InstanceNorm1d(3, momentum=-0.1)
