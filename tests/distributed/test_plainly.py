"""Modules that compute each row by itself are called with plain tensors; others are not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from parallax import Module, Parameter, effects, func, nn, tree
from parallax import distributed as dist
from parallax._compat import plain_parts
from tests.distributed.transformer import Transformer, batch, loss
from tests.meshes import alone, run, spread, whole

SEEN: list[Any] = []
BY_MEAN = False
FACTOR = 2.0


class Layer(Module):
    weight: Parameter
    gate: Parameter


class Rows(Layer):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = F.gelu(x @ self.weight).unflatten(-1, (2, -1)).flatten(-2)
        return x * FACTOR


class InPlace(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        y += x
        return y


class Named(Layer):
    def forward(self, x: Tensor, *, twice: bool = False) -> dict[str, Tensor]:
        y = x @ self.weight
        return {"y": y + y if twice else y, "z": y.sum(-1)}


class Centred(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return x + self.gate * (y - y.mean(0))


class Counted(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate * (x @ self.weight) / x.shape[0]


class Branching(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y - y.mean(0) if BY_MEAN else y


class Leaking(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        SEEN.append(y)
        return y


class Penalty(Layer):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self.weight, self.weight.square().mean()


class Drawing(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x @ self.weight, 0.5)


class View(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def layer(cls: Any) -> Any:
    return cls(torch.arange(16.0).view(4, 4).sin(), torch.zeros(4))


def kinds_in(function: Callable[..., Any]) -> tuple[Any, list[type]]:
    """What a function returns, and the classes of the matrices that it multiplied by."""
    kinds: list[type] = []
    product = Tensor.__matmul__

    def noting(self: Tensor, other: Any) -> Any:
        if not isinstance(other, torch._subclasses.FakeTensor):
            fake = isinstance(getattr(other, "_local_tensor", None), torch._subclasses.FakeTensor)
            kinds.extend([] if fake else [type(other)])
        return product(self, other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "__matmul__", noting)
        return function(), kinds


def size(model: Any, x: Tensor) -> Tensor:
    out = model(x)
    values: Any = out.values() if isinstance(out, dict) else [out]
    return sum([value.square().mean() for value in values])  # type: ignore[no-any-return]  # a Tensor


@pytest.mark.parametrize("cls", [Rows, InPlace, Named])
def test_rows_are_computed_with_plain_tensors(cls: Any) -> None:
    model, x = layer(cls), torch.arange(32.0).view(8, 4).cos()
    with alone(2, names=("dp",)) as mesh:
        spread_ = dist.Plan(mesh, dp=dist.replicate()).apply(model)
        rows = spread(x, mesh, Shard(0))
        found, kinds = kinds_in(lambda: func.grad(size)(spread_, rows))
        assert set(kinds) == {Tensor}
        assert found.weight.placements == (Replicate(),)
        out = spread_(rows)
        out = out["y"] if cls is Named else out
        assert out.placements == (Shard(0),)
        assert out.shape == (8, 4)
        # Of a fake group nothing comes from the others: what is here is the part of this process.
        expected = model(x[:4])
        torch.testing.assert_close(
            out.to_local(), expected["y"] if cls is Named else expected, rtol=0, atol=0
        )


@pytest.mark.filterwarnings("ignore:DTensor random operators")
@pytest.mark.parametrize("cls", [Leaking, Drawing, View, Penalty])
def test_others_get_distributed_tensors(cls: Any) -> None:
    model, x = layer(cls), torch.arange(32.0).view(8, 4).cos()
    with alone(2, names=("dp",)) as mesh:
        spread_ = dist.Plan(mesh, dp=dist.replicate()).apply(model)
        SEEN.clear()
        _, kinds = kinds_in(lambda: spread_(spread(x, mesh, Shard(0))))
        assert set(kinds) <= {DTensor}
        assert all(isinstance(one, DTensor) for one in SEEN)


def test_a_module_is_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    rehearsed = plain_parts.rehearsed

    def counting(*args: Any) -> Any:
        asked.append(1)
        return rehearsed(*args)

    monkeypatch.setattr(plain_parts, "rehearsed", counting)
    with alone(2, names=("dp",)) as mesh:
        model = dist.Plan(mesh, dp=dist.replicate()).apply(
            nn.Linear(4, 4, bias=False).initialize(0)
        )
        for number in range(3):
            assert type(model(spread(torch.full((8, 4), float(number)), mesh, Shard(0)))) is DTensor
    assert len(asked) == 1


def test_who_watches_a_module_gets_distributed_tensors() -> None:
    with alone(2, names=("dp",)) as mesh:
        model = dist.Plan(mesh, dp=dist.replicate()).apply(Transformer().initialize(0))
        codes = spread(batch()[0], mesh, Shard(0))
        model(codes)
        capture = effects.capture(lambda model, codes: model(codes), "blocks.*.attn")
        _, found = capture(model, codes)
        assert {type(one) for one in found.values()} == {DTensor}


def _numbers(rank: int, _: str, rule: Any) -> None:
    global BY_MEAN, FACTOR
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    plan, x = dist.Plan(mesh, dp=rule), torch.arange(32.0).view(8, 4).cos()
    (rows,) = plan.batches([x])
    for cls in (Rows, InPlace, Named, Centred, Counted, Branching, Leaking):
        for flag in (False, True):
            # First with a gate at zero, where other modules would agree by their numbers.
            BY_MEAN, FACTOR = flag, 3.0 + flag
            given = layer(cls).replace(gate=torch.full((4,), float(flag)))
            expected, value = func.grad_and_value(size)(given, x)
            found, got = func.grad_and_value(size)(plan.apply(given), rows)
            torch.testing.assert_close(whole(got), value)
            pairs = zip(tree.leaves(found), tree.leaves(expected), strict=True)
            for one, other in pairs:
                torch.testing.assert_close(whole(one), other, rtol=1e-5, atol=1e-6)
    _second_order(plan, x, rows)
    _transformer(plan)


def _transformer(plan: Any) -> None:
    model: Any = tree.select(Transformer().initialize(0), "**.norm").freeze()
    given = batch()
    (cut,) = plan.batches([given])
    expected: Any = func.grad(loss)(model, *given)
    found: Any = func.grad(loss)(plan.apply(model), *cut)
    for one, other in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        torch.testing.assert_close(whole(one), other, rtol=0, atol=1e-6)
    trained = plan.apply(model).reset(0)
    loss(trained, *cut).backward()
    torch.testing.assert_close(whole(trained.grad().head.weight), expected.head.weight)


def _second_order(plan: Any, x: Tensor, rows: Any) -> None:
    def slope(model: Any, x: Tensor) -> Tensor:
        grads: Any = func.grad(size, argnums=(0, 1))(model, x)
        total: Tensor = grads[0].weight.square().sum() + grads[1].square().sum()
        return total

    model = layer(Rows)
    expected: Any = func.grad(slope, argnums=(0, 1))(model, x)
    found: Any = func.grad(slope, argnums=(0, 1))(plan.apply(model), rows)
    torch.testing.assert_close(whole(found[0].weight), expected[0].weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole(found[1]), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", [dist.replicate(), dist.fsdp("**")], ids=str)
def test_numbers_are_those_of_one_process(rule: Any, tmp_path: Path) -> None:
    run(partial(_numbers, rule=rule), tmp_path, 2)
