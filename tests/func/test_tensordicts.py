"""TensorDicts given to ``parallax.func`` and returned from it, as ``torch.func`` has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, Parameter, func, tree

tensordict = pytest.importorskip("tensordict")
TensorDict: Any = tensordict.TensorDict


class Scale(Module):
    by: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x.sin()


MODEL = Scale(torch.tensor([0.5, -1.0], dtype=torch.float64))


def batch(*size: int) -> Any:
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*size, *more, generator=rng, dtype=torch.float64) for more in ((2,), ()))
    return TensorDict({"x": x, "inner": {"y": y, "k": torch.ones(size, dtype=torch.int64)}}, size)


def same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs) and ours.batch_size == theirs.batch_size
    assert ours["inner"].batch_size == theirs["inner"].batch_size
    for name in ("x", ("inner", "y"), ("inner", "k")):
        torch.testing.assert_close(ours[name], theirs[name])


@pytest.mark.parametrize("size", [(5,), (5, 5), (2, 2, 2)])
@pytest.mark.parametrize("out", [0, 1])
@pytest.mark.parametrize("dim", [0, 1])
def test_mapped_as_torch_maps_it(size: tuple[int, ...], dim: int, out: int) -> None:
    if dim >= len(size) or out >= len(size):
        with pytest.raises(ValueError, match="dimension"):
            func.vmap(lambda td: td, dim, out + 1)(batch(*size))
        return
    seen: list[Any] = []

    def fn(td: Any) -> Any:
        seen.append((td.batch_size, td["inner"].batch_size))
        return td.apply(lambda leaf: 2 * leaf)

    ours = func.vmap(fn, dim, out)(batch(*size))
    same(ours, torch.vmap(fn, dim, out)(batch(*size)))
    assert seen[0] == seen[1]


def test_beside_other_arguments_and_in_containers() -> None:
    data = batch(5)

    def fn(m: Any, pack: Any, c: Tensor) -> Any:
        td = pack["td"]
        return {"out": (td.set("z", m(td["x"]) * c), td["x"].sum())}

    ours = func.vmap(fn, (None, {"td": 0}, None))(MODEL, {"td": data}, torch.tensor(2.0))
    found, total = ours["out"]
    assert found.batch_size == (5,) and "z" not in list(data.keys())
    torch.testing.assert_close(found["z"], 2 * MODEL(data["x"]))
    torch.testing.assert_close(total, data["x"].sum(1))


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_per_sample_gradients(chunk_size: int | None) -> None:
    loss = lambda m, td: (m(td["x"]).sum() - td["inner", "y"]).square()  # noqa: E731  # short
    ours = func.per_sample_grad(loss, chunk_size=chunk_size)(MODEL, batch(5))
    theirs = torch.vmap(torch.func.grad(loss), (None, 0))(MODEL, batch(5))
    torch.testing.assert_close(ours.by, theirs.by)


def test_a_tensordict_of_parameters_is_differentiated() -> None:
    point = TensorDict({"w": torch.ones(3), "inner": {"b": torch.arange(3.0)}}, [3])
    loss = lambda p: (p["w"] * p["inner", "b"]).square().sum()  # noqa: E731  # short
    ours, theirs = func.grad(loss)(point), torch.func.grad(loss)(point)
    assert type(ours) is type(point) and ours.batch_size == theirs.batch_size
    torch.testing.assert_close(ours["w"], theirs["w"])
    torch.testing.assert_close(ours["inner", "b"], theirs["inner", "b"])
    _, along = func.jvp(loss, (point,), (point,))
    torch.testing.assert_close(along, torch.func.jvp(loss, (point,), (point,))[1])
    _, aux = func.grad(lambda w: (w.sum(), point.set("w", w)), has_aux=True)(torch.ones(3))
    assert not aux["w"].requires_grad


def test_what_has_no_such_dimension_is_refused() -> None:
    lazy = tensordict.LazyStackedTensorDict.lazy_stack([batch(2), batch(2)])
    with pytest.raises(TypeError, match=r"Lazy.*batch.contiguous\(\)"):
        func.vmap(lambda td: td["x"])(lazy)
    with pytest.raises(ValueError, match=r"batch size \[5\].*from 0 to 0"):
        func.vmap(lambda td: td["x"], -1)(batch(5))
    mixed = tree.map(lambda leaf: leaf, batch(5))
    with pytest.raises(TypeError, match="cannot be built around NoneType, Tensor"):
        func.grad(lambda p: p["m"].by.sum() + p["td"]["x"].sum())({"m": MODEL, "td": mixed})
