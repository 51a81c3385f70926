"""One graph for each structure: constants, modes, marks, keys, holes and ties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, Parameter, UninitializedError, tree
from tests.compiling import graphs, make_compiled
from tests.corpus import SIZE, Dense, TiedParameter

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_constants_modes_and_marks_make_one_graph_each() -> None:
    class Drop(Module):
        by: Parameter
        rate: float

        def forward(self, x: Tensor) -> Tensor:
            return x * self.rate * self.by if self.mode == "train" else x + 0

    compiled = make_compiled(lambda drop, x: (drop(x), drop), backend="eager")
    drop, x = Drop(torch.ones(2), 0.5), torch.ones(2)
    variants = [drop, drop.eval(), drop.replace(rate=0.25), drop.replace(rate=1), drop.train()]
    variants.append(tree.select(drop, "by").freeze())
    for variant in variants * 3:
        y, back = compiled(variant, x)
        torch.testing.assert_close(y, variant(x))
        assert tree.structure(back) == tree.structure(variant)
    assert graphs() == len({tree.structure(variant) for variant in variants})


@pytest.mark.parametrize(
    "constants", [(1, True), (1, 1.0), (0.0, -0.0), ((1, 2), (1, True))], ids=str
)
def test_equal_constants_of_other_types_differ(constants: tuple[Any, Any]) -> None:
    class Held(Module):
        value: Any

        def forward(self) -> str:
            return repr(self.value)

    compiled = make_compiled(lambda held, x: (x + 1, held()), backend="eager")
    for constant in constants * 2:
        assert compiled(Held(constant), torch.ones(1))[1] == repr(constant)


def test_keys_of_dicts_and_holes() -> None:
    def fn(d: Any) -> Any:
        return [(key, type(key), None if x is None else x + 1) for key, x in d.items()]

    compiled, x = make_compiled(fn, backend="eager"), torch.ones(2)
    for d in ({1: x, "a": x}, {True: x, "a": x}, {1: x}, {1: None, "a": x}, {1: x, "a": None}):
        for _ in range(2):
            assert str(compiled(d)) == str(fn(d))


def test_a_hole_in_a_module() -> None:
    compiled = make_compiled(lambda dense, x: dense(x), backend="eager")
    x = torch.randn(SIZE)
    for bias in (True, False, True):
        dense = Dense(bias=bias).initialize(0)
        torch.testing.assert_close(compiled(dense, x), dense(x))
    assert graphs() == 2


def test_ties_are_part_of_the_structure() -> None:
    tied = TiedParameter().initialize(0)

    def fn(module: Any) -> int:
        return len(tree.leaves(module))

    compiled = make_compiled(lambda m: (fn(m), tree.map(torch.neg, m)), backend="eager")
    assert compiled(tied)[0] == 3
    untied = tied.replace(decoder=tied.decoder.replace(weight=tied.encoder.weight.clone()))
    assert (compiled(untied)[0], compiled(tied)[0]) == (4, 3)
    assert graphs() == 2


def test_an_uninitialized_module_is_refused_by_path() -> None:
    compiled = make_compiled(lambda dense: dense, backend="eager")
    with pytest.raises(UninitializedError, match=r"dense\.weight is not initialized"):
        compiled(Dense())
