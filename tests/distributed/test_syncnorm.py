"""Batch normalisation over processes: in each, what one process computes of the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from parallax import bridge, effects, func, nn, tree
from tests.meshes import run

X = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PARTS = (slice(0, 2), slice(2, 5))  # of the two processes: not as many examples
WEIGHTS = torch.linspace(0.5, 1.5, X.numel(), dtype=torch.float64).view_as(X)


def layer(cls: Any, **options: Any) -> Any:
    made = tree.to(cls(3, **options).initialize(0), dtype=torch.float64)
    # Another weight than one, where there is one.
    return tree.map(lambda x: x + 0.5 if x.is_floating_point() else x, made).train()


def weighed(part: slice) -> Any:
    def loss(norm: Any, x: Tensor) -> tuple[Tensor, Any]:
        out, after = effects.collect(lambda norm: norm(x))(norm)
        return (out.sin() * WEIGHTS[part]).sum(), (out, after)

    return loss


def of(norm: Any, part: slice) -> Any:
    return lambda x: weighed(part)(norm, x)[0]


def twice(norm: Any, part: slice) -> Any:
    return lambda x: func.grad(of(norm, part))(x).square().sum()


def check(ours: Any, whole: Any, part: slice) -> None:
    everything = slice(None)
    if whole.affine:
        grads, (out, after) = func.grad(weighed(part), has_aux=True)(ours, X[part])
        wanted, (expected, next_) = func.grad(weighed(everything), has_aux=True)(whole, X)
        dist.all_reduce(grads.weight)
        torch.testing.assert_close(grads.weight, wanted.weight)
        torch.testing.assert_close(out, expected[part])
        torch.testing.assert_close(dict(bridge.state_dict(after)), dict(bridge.state_dict(next_)))
    for make in (of, twice):  # gradients of first and second order by the input
        found = func.grad(make(ours, part))(X[part])
        torch.testing.assert_close(found, func.grad(make(whole, everything))(X)[part])
    along = func.jvp(of(ours, part), (X[part],), (WEIGHTS[part],))[1]
    dist.all_reduce(along)
    torch.testing.assert_close(along, func.jvp(of(whole, everything), (X,), (WEIGHTS,))[1])
    stacked = torch.stack([X[part], X[part].cos()])
    looped = torch.stack([weighed(part)(ours, x)[0] for x in stacked])
    torch.testing.assert_close(func.vmap(of(ours, part))(stacked), looped)


def work(rank: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    part = PARTS[rank]
    settings: list[dict[str, Any]] = [
        {}, {"momentum": None}, {"track_running_stats": False}, {"affine": False},
    ]  # fmt: skip
    for options in settings:
        ours = layer(nn.SyncBatchNorm, **options, process_group=mesh["dp"])
        check(ours, layer(nn.BatchNorm1d, **options), part)
        converted = nn.SyncBatchNorm.convert_sync_batchnorm
        check(
            converted(layer(nn.BatchNorm1d, **options), mesh["dp"]),
            layer(nn.BatchNorm1d, **options),
            part,
        )
    plain = layer(nn.SyncBatchNorm)  # of all processes
    grad = func.grad(of(plain, part))
    compiled = torch.compile(grad, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X[part]), grad(X[part]))
    Path(folder, f"done{rank}").touch()


def test_two_processes_are_one(tmp_path: Path) -> None:
    run(work, tmp_path, 2)
    assert (tmp_path / "done0").exists() and (tmp_path / "done1").exists()


def test_alone_it_is_batch_norm() -> None:
    ours, theirs = layer(nn.SyncBatchNorm), torch.nn.SyncBatchNorm(3)
    assert bridge.state_dict(ours).keys() == theirs.state_dict().keys()
    assert repr(ours) == repr(theirs)
    out, after = effects.collect(lambda norm: norm(X))(ours)
    wanted, next_ = effects.collect(lambda norm: norm(X))(layer(nn.BatchNorm1d))
    assert torch.equal(out, wanted)
    assert bridge.state_dict(after).keys() == bridge.state_dict(next_).keys()


def net(own: Any) -> Any:
    """A model with batch norms of three kinds, in the library ``own`` or in torch."""
    return own.Sequential(
        own.Linear(2, 3), own.BatchNorm1d(3, momentum=None), own.Sequential(own.Linear(3, 3)),
        own.Sequential(own.BatchNorm2d(3, affine=False), own.BatchNorm3d(3, eps=1e-3, bias=False)),
    )  # fmt: skip


def test_a_model_is_converted_as_torch_does() -> None:
    model = net(nn).initialize(0)
    model = tree.select(model, "1").freeze()
    model = tree.select(model, "3").eval()
    ours = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    theirs = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net(torch.nn))
    kinds = [type(part).__name__ for part in theirs.modules()]
    assert [type(part).__name__ for part in ours.modules()] == kinds
    for mine, other in zip(ours.modules(), theirs.modules(), strict=True):
        assert mine.extra_repr() == other.extra_repr()
    assert bridge.state_dict(ours).keys() == theirs.state_dict().keys()
    for name, leaf in bridge.state_dict(model).items():
        assert torch.equal(bridge.state_dict(ours)[name], leaf)
    assert tree.select(ours, "frozen").paths == tree.select(model, "frozen").paths
    assert [part.mode for part in ours.train(0).modules()] == [
        part.mode for part in model.train(0).modules()
    ]
    norm = nn.BatchNorm2d(3)
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(norm), nn.SyncBatchNorm)
    linear = nn.Linear(2, 2)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(linear) is linear


class Own(nn.BatchNorm1d, init=False):
    """A norm of a user's own."""


def test_what_is_not_converted_is_named() -> None:
    lifted = bridge.lift(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.BatchNorm1d(3)))
    with pytest.raises(TypeError, match=r"1 is lifted\. Convert before: bridge\.lift\(torch\.nn"):
        nn.SyncBatchNorm.convert_sync_batchnorm(lifted)
    with pytest.raises(TypeError, match=r"layers\.0 is a Own, whose own .* 'layers\.0'\)\.set"):
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(Own(3)))
    with pytest.raises(TypeError, match=r"\(module\): expected a module, got 3"):
        nn.SyncBatchNorm.convert_sync_batchnorm(3)


def test_what_it_refuses() -> None:
    with pytest.raises(TypeError, match=r"\(process_group=\): expected a process group or a mesh"):
        nn.SyncBatchNorm(3, process_group="dp")
    with pytest.raises(ValueError, match=r"SyncBatchNorm: expected input of shape \(N, 3\) or"):
        layer(nn.SyncBatchNorm)(X[:, :2])
