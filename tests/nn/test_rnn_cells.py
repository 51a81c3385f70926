"""Recurrent cells are torch's, in plain code and where torch's kernels do not work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn

from parallax import Module, func, nn, tree
from tests.nn.parity import assert_parity, assert_same, assert_same_start

CELLS: list[tuple[str, dict[str, Any]]] = [
    ("RNNCell", {}),
    ("RNNCell", {"nonlinearity": "relu", "bias": False}),
    ("GRUCell", {}),
    ("GRUCell", {"bias": False}),
    ("LSTMCell", {}),
    ("LSTMCell", {"bias": False}),
]
every_cell = pytest.mark.parametrize(("name", "arguments"), CELLS, ids=str)


def state(name: str, *shape: int, **keywords: Any) -> Any:
    h, c = torch.randn(*shape, **keywords), torch.randn(*shape, **keywords)
    return (h, c) if name == "LSTMCell" else h


@every_cell
@pytest.mark.parametrize("batch", [(5,), (), (1,)], ids=str)
@pytest.mark.parametrize("given", [True, False])
def test_numbers(name: str, arguments: Any, batch: tuple[int, ...], given: bool) -> None:
    ours, theirs = getattr(nn, name)(3, 2, **arguments), getattr(torch_nn, name)(3, 2, **arguments)
    hx = (state(name, *batch, 2),) if given else ()
    assert_parity(ours, theirs, torch.randn(*batch, 3), *hx)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str
)
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    ours = getattr(nn, name)(3, 2, dtype=dtype)
    theirs = getattr(torch_nn, name)(3, 2, dtype=dtype)
    assert_parity(ours, theirs, torch.randn(5, 3, dtype=dtype), state(name, 5, 2, dtype=dtype))


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_it_starts_where_torchs_does(name: str) -> None:
    assert_same_start(lambda: getattr(nn, name)(7, 5), lambda: getattr(torch_nn, name)(7, 5))


def loss(cell: Module, x: Tensor, hx: Any) -> Tensor:
    outputs = cell(x, hx)
    first = outputs if isinstance(outputs, Tensor) else sum(outputs)
    return (first * torch.arange(1.0, 3.0)).sum()


@every_cell
def test_vmap_is_a_loop(name: str, arguments: Any) -> None:
    cell = getattr(nn, name)(3, 2, **arguments).initialize(0)
    xs, hx = torch.randn(4, 5, 3), state(name, 5, 2)
    expected = torch.stack([loss(cell, x, hx) for x in xs])
    assert_same(torch.vmap(loss, (None, 0, None))(cell, xs, hx), expected, 1e-6)
    grads = [tree.leaves(func.grad(loss)(cell, x, hx)) for x in xs]
    mapped = torch.vmap(func.grad(loss), (None, 0, None))(cell, xs, hx)
    assert_same(tree.leaves(mapped), [torch.stack(g) for g in zip(*grads, strict=True)], 1e-5)


@every_cell
def test_forward_derivatives_and_graphs(name: str, arguments: Any) -> None:
    cell = getattr(nn, name)(3, 2, **arguments).initialize(0)
    x, hx = torch.randn(5, 3), state(name, 5, 2)
    along = torch.randn(5, 3)
    found = torch.func.jvp(lambda x: loss(cell, x, hx), (x,), (along,))[1]
    expected = (torch.func.grad(lambda x: loss(cell, x, hx))(x) * along).sum()
    assert_same(found, expected, 1e-5)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(compiled(cell, x, hx), loss(cell, x, hx), 1e-6)


class Net(Module):
    """Holds a cell, so that an error has a path to name."""

    cells: tuple[Module, ...]

    def forward(self, *args: Any) -> Any:
        return self.cells[0](*args)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_a_misfit_names_the_path_and_the_shape(name: str, traced: bool) -> None:
    net = Net((getattr(nn, name)(3, 2),)).initialize(0)
    run: Any = (lambda *a: torch.vmap(lambda _: net(*a))(torch.zeros(2))) if traced else net
    start = rf"^Net\.cells\.0 \({name}\): expected "
    with pytest.raises(ValueError, match=start + r"input of shape \(N, 3\) or \(3,\), got \(5, 4"):
        run(torch.ones(5, 4))
    with pytest.raises(ValueError, match=start + r"input .* got \(1, 5, 3\)"):
        run(torch.ones(1, 5, 3))
    for shape in [(5, 3), (4, 2), (2,)]:
        with pytest.raises(ValueError, match=start + r"(hx|h|c) of shape \(5, 2\), got \("):
            run(torch.ones(5, 3), state(name, *shape))
    with pytest.raises(ValueError, match=start + r"(hx|h|c) of shape \(2,\), got \(1, 2\)"):
        run(torch.ones(3), state(name, 1, 2))
    with pytest.raises(TypeError, match=r"input must be a tensor, got list"):
        run([1.0])


@pytest.mark.parametrize("hx", [torch.ones(5, 2), (torch.ones(5, 2),), 3])
def test_the_state_of_an_lstm_is_a_pair(hx: Any) -> None:
    with pytest.raises(TypeError, match=r"^LSTMCell: hx must be a pair of tensors \(h, c\)"):
        nn.LSTMCell(3, 2).initialize(0)(torch.ones(5, 3), hx)


def test_arguments_out_of_range_fail_at_construction() -> None:
    with pytest.raises(ValueError, match=r"GRUCell\(hidden_size=\): must be at least 1, got 0"):
        nn.GRUCell(3, 0)
    with pytest.raises(ValueError, match=r"RNNCell\(nonlinearity=\): expected one of 'tanh', 'r"):
        nn.RNNCell(3, 2, nonlinearity="gelu")
    with pytest.raises(TypeError, match=r"LSTMCell\(input_size=\): expected an int, got 3.0"):
        nn.LSTMCell(3.0, 2)  # type: ignore[arg-type]  # on purpose
