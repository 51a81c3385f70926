"""The parts of a structure: what makes two of them the same."""

from __future__ import annotations

import math
from typing import Any

import pytest

from parallax import Module, tree
from parallax.core.constants import constant_key
from parallax.core.entries import (
    BUFFER,
    PARAMETER,
    PLAIN,
    SLOT,
    Local,
    Note,
    Static,
    class_of_instances,
    leaf_of,
    local_of,
)
from tests.corpus import MLP
from tests.saving import pickled


@pytest.mark.parametrize("leaf", [PARAMETER, BUFFER, SLOT])
def test_a_role_is_one_object_also_after_pickling(leaf: Any) -> None:
    assert leaf_of(leaf.role) is leaf and pickled(leaf) is leaf
    assert (leaf.n_places, leaf.depth) == (1, 0)


def test_roles_differ() -> None:
    assert len({PARAMETER.role, BUFFER.role, SLOT.role}) == 3
    assert repr(BUFFER) == "<buffer>"


SAME = [(1, 1), (math.nan, float("nan")), ((1, "a"), (1, "a")), (len, len)]
OTHER = [(1, True), (1, 1.0), (0.0, -0.0), ((1,), (True,)), (len, sum), (None, 0)]


@pytest.mark.parametrize(("one", "two"), SAME)
def test_equal_constants_are_one_entry(one: Any, two: Any) -> None:
    first, second = Static(one, "Net.act"), Static(two, "Other.act")
    assert first == second and hash(first) == hash(second)
    assert (first.n_places, first.depth) == (0, 0)


@pytest.mark.parametrize(("one", "two"), OTHER)
def test_constants_of_another_type_or_value_are_others(one: Any, two: Any) -> None:
    assert Static(one, "Net.act") != Static(two, "Net.act")
    assert local(one) is not local(two) and not local(one).fits(local(two))


def test_a_constant_is_not_its_value() -> None:
    assert Static(1, "Net.act") != 1


class Constant(Module):
    """One constant."""

    value: Any


def local(value: Any, note: Note = PLAIN) -> Local:
    return local_of(Constant, (value,), (constant_key(value, "Constant.value"),), note)


def test_a_node_without_children_is_made_once() -> None:
    kept = local((3, "a"))
    assert local((3, "a")) is kept
    assert local((3, "a"), Note(mode="eval")) is not kept


def test_nodes_fit_by_class_and_constants_and_equal_with_their_notes() -> None:
    one, two = local(3), local(3, Note(mode="eval"))
    assert one.fits(two) and one != two
    twin = Local(Constant, (3,), one.key, PLAIN)  # not interned
    assert twin is not one and twin == one and hash(twin) == hash(one)
    other = local_of(MLP, (3,), one.key)
    assert not other.fits(one) and other != one
    assert one != "Constant(3,)" and repr(one) == "Constant(3,)"


def test_the_class_of_a_watched_module_is_below_its_own() -> None:
    model: Any = MLP().initialize(0)
    structure = tree.structure(model).parts[0]
    assert class_of_instances(structure.local) is MLP
    watched = structure.local
    unseen = Local(MLP, watched.constants, watched.key, Note(watched=True))
    assert issubclass(class_of_instances(unseen), MLP)
