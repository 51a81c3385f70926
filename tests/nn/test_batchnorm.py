"""Batch normalisation is torch's, and its running statistics are effects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.utils import checkpoint as torch_checkpoint

from parallax import Module, bridge, effects, func, nn, tree
from tests.nn.parity import assert_parity, assert_same

SHAPES = [
    ("BatchNorm1d", (5, 3)),
    ("BatchNorm1d", (2, 3, 7)),
    ("BatchNorm2d", (2, 3, 5, 4)),
    ("BatchNorm2d", (1, 3, 1, 2)),
    ("BatchNorm3d", (2, 3, 1, 5, 2)),
]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"eps": 1e-2, "momentum": 0.3},
        {"momentum": None},
        {"affine": False},
        {"bias": False},
        {"track_running_stats": False},
        {"affine": False, "track_running_stats": False},
    ],
    ids=str,
)
@pytest.mark.parametrize(("name", "shape"), SHAPES, ids=str)
def test_numbers(name: str, shape: tuple[int, ...], arguments: dict[str, Any], mode: str) -> None:
    ours, theirs = getattr(nn, name)(3, **arguments), getattr(torch_nn, name)(3, **arguments)
    for _ in range(3):  # with statistics of batches before
        theirs.train()(torch.randn(shape) * 3 + 1)
    assert_parity(ours, theirs, torch.randn(shape), mode=mode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_dtypes(dtype: torch.dtype, mode: str) -> None:
    ours, theirs = nn.BatchNorm2d(3, dtype=dtype), torch_nn.BatchNorm2d(3, dtype=dtype)
    assert_parity(ours, theirs, torch.randn(2, 3, 5, 4, dtype=dtype), mode=mode)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_sequence_of_batches_leaves_torchs_statistics(momentum: float | None) -> None:
    theirs = torch_nn.BatchNorm1d(3, momentum=momentum)
    ours = nn.BatchNorm1d(3, momentum=momentum).initialize(0)
    for _ in range(4):
        x = torch.randn(5, 3)
        expected = theirs(x)
        out, ours = collected(ours, x)
        assert torch.equal(out, expected)
    assert_same(bridge.state_dict(ours), dict(theirs.state_dict()))


def test_nothing_that_is_given_is_written_to() -> None:
    norm = nn.BatchNorm2d(3).initialize(0)
    x = torch.randn(2, 3, 4, 4)
    before = [leaf.clone() for leaf in tree.leaves(norm)]
    versions = [leaf._version for leaf in (*tree.leaves(norm), x)]
    collected(norm, x)
    assert_same(tree.leaves(norm), before)
    assert [leaf._version for leaf in (*tree.leaves(norm), x)] == versions


def test_the_statistics_have_no_graph() -> None:
    norm = nn.BatchNorm1d(3).initialize(0)
    after = collected(norm, torch.randn(5, 3, requires_grad=True))[1]
    assert after.running_mean is not None and not after.running_mean.requires_grad


class Net(Module):
    """A batch norm between two things that hide what it is given."""

    norm: nn.BatchNorm1d

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x * 2)
        return (out**3).sum()


def step(net: Net, x: Tensor) -> tuple[Net, tuple[Tensor, Net]]:
    """A gradient, and beside it the loss and the statistics."""

    def loss(net: Net, x: Tensor) -> tuple[Tensor, tuple[Tensor, Net]]:
        out, after = effects.collect(Net.forward)(net, x)
        return out, (out.detach(), after)

    grads, aux = func.grad(loss, has_aux=True)(net, x)
    return grads, aux


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_map_over_batches_is_a_loop_when_collected_inside(momentum: float | None) -> None:
    net, xs = Net(momentum).initialize(0), torch.randn(4, 5, 3)
    net = step(net, torch.randn(7, 3))[1][1]
    grads, (out, after) = torch.vmap(step, (None, 0))(net, xs)
    for k in range(4):
        expected_grads, (expected, expected_after) = step(net, xs[k])
        mapped: Any = grads.norm.weight
        assert_same(mapped[k], expected_grads.norm.weight, 1e-6)
        assert_same(out[k], expected, 1e-6)
        for name in ("running_mean", "running_var"):
            one, two = getattr(after.norm, name)[k], getattr(expected_after.norm, name)
            assert_same(one, two, 1e-6)
    count: Any = after.norm.num_batches_tracked
    assert count.flatten()[0] == 2


def test_a_map_over_batches_makes_one_step_by_their_mean() -> None:
    net, xs = Net().initialize(0), torch.randn(4, 5, 3)

    def mapped(net: Net, xs: Tensor) -> Tensor:
        out: Tensor = func.vmap(Net.forward, in_dims=(None, 0))(net, xs)
        return out

    norm = effects.collect(mapped)(net, xs)[1].norm
    each = [effects.collect(Net.forward)(net, x)[1].norm for x in xs]
    for name in ("running_mean", "running_var"):
        expected = torch.stack([getattr(one, name) for one in each]).mean(0)
        assert_same(getattr(norm, name), expected, 1e-6)
    assert norm.num_batches_tracked == 1


def test_a_layer_used_twice_makes_one_step_by_the_mean() -> None:
    norm, x = nn.BatchNorm1d(3).initialize(0), torch.randn(5, 3)

    def twice(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
        one, two = norm.split(2)
        out: Tensor = one(x) + two(x * 2)
        return out

    after = effects.collect(twice)(norm, x)[1]
    each = [collected(norm, x)[1], collected(norm, x * 2)[1]]
    expected: Any = torch.stack([one.running_var for one in each]).mean(0)
    assert_same(after.running_var, expected)
    assert after.num_batches_tracked == 1


@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_ensemble_keeps_statistics_of_its_own(momentum: float | None) -> None:
    nets = [Net(momentum).initialize(seed) for seed in range(3)]
    xs = torch.randn(3, 5, 3)
    after = torch.vmap(step)(tree.stack(nets), xs)[1][1]
    each = [step(net, x)[1][1] for net, x in zip(nets, xs, strict=True)]
    assert_same(tree.leaves(after), tree.leaves(tree.stack(each)), 1e-6)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_step_compiles_to_one_graph(momentum: float | None) -> None:
    net, x = Net(momentum).initialize(0), torch.randn(5, 3)
    expected = step(net, x)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(net, x)
    assert_same(tree.leaves(found), tree.leaves(expected), 1e-6)


def test_a_mapped_step_compiles_to_one_graph() -> None:
    net, xs = Net().initialize(0), torch.randn(4, 5, 3)
    mapped = torch.vmap(step, (None, 0))
    expected = mapped(net, xs)
    found = torch.compile(mapped, fullgraph=True, backend="aot_eager")(net, xs)
    assert_same(tree.leaves(found), tree.leaves(expected), 1e-6)


def test_the_engine_of_torch_func_gives_the_same_step() -> None:
    net = tree.to(Net().initialize(0), dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = step(net, x)
    found: Any = torch.vmap(step, (None, 0))(net, x[None])
    assert_same(found[0].norm.weight[0], expected[0].norm.weight, 1e-13)


def test_a_derivative_forward_is_torchs() -> None:
    theirs = torch_nn.BatchNorm1d(3, track_running_stats=False)
    x, along = torch.randn(2, 5, 3)
    expected = torch.func.jvp(theirs, (x,), (along,))
    norm = nn.BatchNorm1d(3).initialize(0)
    found = func.jvp(lambda x: collected(norm, x)[0], (x,), (along,))
    assert_same(found, expected)


def test_recomputation_in_a_checkpoint_counts_one_batch() -> None:
    net, x = Net().initialize(0), torch.randn(5, 3)

    def loss(net: Net, x: Tensor) -> tuple[Tensor, Net]:
        def run(net: Net, x: Tensor) -> Any:
            return torch_checkpoint.checkpoint(net, x, use_reentrant=False)

        return effects.collect(run)(net, x)

    grads, after = func.grad(loss, has_aux=True)(net, x)
    expected, (_, expected_after) = step(net, x)
    assert_same(tree.leaves(grads), tree.leaves(expected))
    assert_same(tree.leaves(after), tree.leaves(expected_after))


def test_training_where_nobody_collects_says_what_to_write() -> None:
    with pytest.raises(effects.EffectError, match=r"effects\.collect.*module\.eval\(\)"):
        Net().initialize(0)(torch.randn(5, 3))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("BatchNorm1d", (2, 4), r"\(N, 3\) or \(N, 3, L\), got \(2, 4\)"),
        ("BatchNorm1d", (2, 3, 4, 4), r"\(N, 3\) or \(N, 3, L\), got \(2, 3, 4, 4\)"),
        ("BatchNorm1d", (3,), r"\(N, 3\) or \(N, 3, L\), got \(3,\)"),
        ("BatchNorm2d", (3, 4, 4), r"\(N, 3, H, W\), got \(3, 4, 4\)"),
        ("BatchNorm2d", (1, 2, 4, 4), r"\(N, 3, H, W\), got \(1, 2, 4, 4\)"),
        ("BatchNorm3d", (2, 3, 4, 4), r"\(N, 3, D, H, W\), got \(2, 3, 4, 4\)"),
    ],
)
def test_a_misfit_names_the_shape(
    name: str, shape: tuple[int, ...], expected: str, mode: str
) -> None:
    norm = getattr(nn, name)(3).initialize(0)
    norm = norm.train() if mode == "train" else norm.eval()
    with pytest.raises(ValueError, match=rf"^{name}: expected input of shape {expected}$"):
        norm(torch.ones(shape))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_what_is_no_tensor_is_refused(mode: str) -> None:
    norm = nn.BatchNorm1d(3).initialize(0)
    given: Any = norm.train() if mode == "train" else norm.eval()
    with pytest.raises(TypeError, match=r"^BatchNorm1d: input must be a tensor, got list"):
        given([1.0])


@pytest.mark.parametrize("track", [True, False])
def test_one_value_per_channel_has_no_statistics(track: bool) -> None:
    net = Net().initialize(0)
    net = net.replace(norm=nn.BatchNorm1d(3, track_running_stats=track).initialize(0))
    with pytest.raises(ValueError, match=r"^Net\.norm \(BatchNorm1d\): .* more than one value"):
        net(torch.ones(1, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_features": 0}, r"BatchNorm2d\(num_features=\): must be at least 1, got 0"),
        ({"eps": -1.0}, r"BatchNorm2d\(eps=\): must be at least 0, got -1.0"),
        ({"momentum": 1.5}, r"BatchNorm2d\(momentum=\): must be at least 0 and at most 1"),
    ],
)
def test_arguments_out_of_range_fail_at_construction(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        nn.BatchNorm2d(**{"num_features": 3, **arguments})


def test_an_argument_of_another_kind_fails_at_construction() -> None:
    with pytest.raises(TypeError, match=r"BatchNorm2d\(affine=\): expected a bool, got 2"):
        nn.BatchNorm2d(3, affine=2)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match=r"BatchNorm2d\(momentum=\): expected a number, got '0'"):
        nn.BatchNorm2d(3, momentum="0")  # type: ignore[arg-type]  # on purpose


def collected(norm: Any, x: Tensor) -> Any:
    """The output, and the layer with its new statistics."""
    return effects.collect(called)(norm, x)


def called(norm: Any, x: Tensor) -> Any:
    return norm(x)
