"""What a function holds and names: the tensors in it are found wherever they are."""

from __future__ import annotations

import functools
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import func
from parallax.func.held import held_by, names_of

KEPT = torch.zeros(3)


class Holder:
    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def write(self, x: Tensor) -> Tensor:
        self.kept.add_(x)
        return x.sum()


def closing(kept: Tensor) -> Any:
    def write(x: Tensor) -> Tensor:
        kept.add_(x)
        return x.sum()

    return write


def by_keyword(kept: Tensor) -> Any:
    def write(x: Tensor, *, into: Tensor = kept) -> Tensor:
        into.add_(x)
        return x.sum()

    return write


def by_partial(kept: Tensor) -> Any:
    return functools.partial(lambda into, x: (into.add_(x), x.sum())[1], kept)


def by_a_function_inside(kept: Tensor) -> Any:
    del kept

    def write(x: Tensor) -> Tensor:
        def inside() -> Tensor:
            return KEPT.add_(x)

        inside()
        return x.sum()

    return write


@pytest.mark.parametrize(
    "make",
    [closing, by_keyword, by_partial, by_a_function_inside, lambda kept: Holder(kept).write],
    ids=["closure", "keyword", "partial", "function inside", "method"],
)
def test_what_is_written_into_a_captured_tensor_leaves_no_graph(make: Any) -> None:
    KEPT.zero_()
    kept = KEPT if make is by_a_function_inside else torch.zeros(3)
    write, x = make(kept), torch.arange(3.0)
    for _ in range(2):
        torch.testing.assert_close(func.grad(write)(x), torch.ones(3))
    assert not kept.requires_grad
    torch.testing.assert_close(kept, 2 * x)


def test_a_function_holds_its_cells_defaults_and_attributes() -> None:
    a, b, c, d = (torch.full((), float(k)) for k in range(4))

    def function(x: Tensor, y: Tensor = b, *, z: Tensor = c) -> Tensor:
        return x + y + z + a

    vars(function)["kept"] = d
    cell, *others = held_by(function)
    assert isinstance(cell, types.CellType)
    assert held_by(cell)[0] is a
    assert [id(x) for x in others] == [id(b), id(d), id(c)]


def test_names_are_those_that_the_module_has() -> None:
    def function() -> Any:
        return lambda: (KEPT, torch.zeros, missing)  # type: ignore[name-defined]  # noqa: F821

    assert isinstance(function, types.FunctionType)
    found = [name for space, name in names_of(function) if space is globals()]
    assert found == ["KEPT", "torch"]
