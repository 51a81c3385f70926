"""What dynamo traces, run in eager: the same meaning as the generated eager code.

``tests/interop/test_compile.py`` proves it under dynamo; here every module of the corpus, and what
is hard to reach from a compiled function, without waiting for a compiler.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from parallax import Module, Parameter, tree
from parallax.core import tracing
from parallax.core.layout import spec_of
from tests.corpus import (
    CONSTANTS,
    MLP,
    MODULES,
    TIED,
    Branches,
    Case,
    Constants,
    Dense,
    Norm,
    TiedModule,
    TiedParameter,
)


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_taking_apart_gives_the_leaves_of_eager(case: Case) -> None:
    module = case.make()
    leaves, outline = tracing.take_apart(module)
    expected, spec = tree.flatten(module)
    assert all(a is b for a, b in zip(leaves, expected, strict=True))
    assert outline.n_leaves == spec.num_leaves
    assert outline.paths() == list(spec_of(module).paths)
    assert outline.place_paths() == list(spec_of(module).place_paths)


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_rebuilding_is_the_inverse(case: Case) -> None:
    module = case.make()
    leaves, outline = tracing.take_apart(module)
    rebuilt = tracing.rebuild(outline, leaves)
    assert type(rebuilt) is type(module)
    assert tree.structure(rebuilt) == tree.structure(module)
    for one, other in zip(tree.leaves(rebuilt), tree.leaves(module), strict=True):
        assert one is other


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_torchs_flatten_leaves_holes_out_and_puts_them_back(case: Case) -> None:
    module = case.make()
    leaves, outline = tracing.flatten(module)
    assert all(a is b for a, b in zip(leaves, tree.leaves(module), strict=True))
    rebuilt = tracing.unflatten(outline, leaves)
    assert tree.structure(rebuilt) == tree.structure(module)
    assert len(tree.leaves(rebuilt)) == len(leaves)


@pytest.mark.parametrize("case", TIED, ids=str)
def test_ties_of_a_module_without_a_structure_are_found(case: Case) -> None:
    module = case.make()
    object.__setattr__(module, "_spec", False)  # as if it had been made while tracing
    leaves, outline = tracing.take_apart(module)
    assert outline.ties == spec_of(case.make()).ties
    assert outline.unique(outline.expanded(leaves)) == leaves


def outline_of(module: Any) -> tracing.Outline:
    return tracing.take_apart(module)[1]


def test_outlines_are_equal_where_skeletons_are() -> None:
    one = outline_of(MLP().initialize(0))
    assert one == outline_of(MLP().initialize(1)) and hash(one) == hash(outline_of(MLP()))
    assert one == outline_of(MLP().initialize(0).eval())
    assert one != outline_of(MLP(torch.relu))
    assert one != outline_of(Dense())
    assert outline_of(TiedParameter()) != outline_of(
        TiedParameter().replace(decoder=Dense(), encoder=Dense())
    )
    assert tracing.flatten(Dense(bias=False))[1] != tracing.flatten(Dense())[1]


@pytest.mark.parametrize(
    ("one", "two", "where"),
    [
        (lambda: Norm(), lambda: Norm(eps=1.0), "eps"),
        (lambda: MLP(), lambda: MLP(torch.relu), "activation"),
        (lambda: MLP(), lambda: MLP().replace(second=Norm()), "second"),
        (lambda: Branches("a", "b"), lambda: Branches("a", "c"), "branches"),
        (lambda: Dense(), lambda: Norm(), ""),
    ],
)
def test_the_first_difference_is_named(one: Any, two: Any, where: str) -> None:
    assert outline_of(one()).difference(outline_of(two())) == where
    assert outline_of(one()).difference(outline_of(one())) is None


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_compared_as_in_eager(name: str) -> None:
    mine = CONSTANTS[name]
    for other_name, other in CONSTANTS.items():
        one, two = (Constants((value,), torch.ones(1)) for value in (mine, other))
        object.__setattr__(two, "_spec", False)
        fits = outline_of(one).difference(outline_of(two)) is None
        assert fits is (spec_of(one) == spec_of(Constants((other,), torch.ones(1)))), other_name


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (math.nan, math.nan, True),
        (0.0, -0.0, False),
        (1, True, False),
        ((1, 2.0), (1, 2), False),
        (partial(print, sep="a"), partial(print, sep="a"), True),
        (partial(print, sep="a"), partial(print, sep="b"), False),
    ],
)
def test_constants_that_python_compares_otherwise(one: Any, two: Any, same: bool) -> None:
    class Constant(Module):
        value: Any
        weight: Parameter

    first, second = Constant(one, torch.ones(1)), Constant(two, torch.ones(1))
    object.__setattr__(second, "_spec", False)
    assert (outline_of(first).difference(outline_of(second)) is None) is same


def test_the_methods_are_of_each_class() -> None:
    class Wide(Dense):
        extra: Parameter | None = None

    module = Wide.__make__  # type: ignore[attr-defined]  # written at registration
    assert module is not Dense.__make__  # type: ignore[attr-defined]  # likewise
    assert len(tracing.take_apart(TiedModule().initialize(0))[0]) == 6
