"""Constants compare by type and value; the structure they are part of does as they do."""

from __future__ import annotations

import copy
import enum
import functools
import itertools
import math
import pickle
import struct
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from parallax import Module, Parameter, tree
from tests.corpus import CONSTANTS, Config, Constants, Dense, Foreign, Padding, double

call: Any = double  # with any arguments, for partials that nobody calls


class Holds(Module):
    value: Any


def spec(value: Any) -> Any:
    return tree.structure(Holds(value))


Point = namedtuple("Point", ["x", "y"])  # a plain one is what is tested


class Flag(enum.IntFlag):
    A = 1


@dataclass(frozen=True)
class Pair:
    a: Any
    b: Any


class Meters(float):
    pass


NEGATIVE_NAN = struct.unpack("d", struct.pack("Q", 0xFFF8000000000000))[0]
QUIET = math.nan

# No two of these are the same constant, though many are equal to each other.
DIFFERENT: list[Any] = [
    0, False, 0.0, -0.0, 0j, complex(0.0, -0.0), complex(-0.0, 0.0), "", b"", (), frozenset(),
    None,
    1, True, 1.0, 1 + 0j, Flag.A, Meters(1.0), "1", b"1", (1,), (True,), (1.0,), ((1,),),
    [1].__len__,
    frozenset({1}), frozenset({True}), frozenset({1.0}), range(0), range(1), Point(1, 2), (1, 2),
    Pair(1, 2), Pair(1.0, 2), Pair(True, 2), Pair(0.0, 2), Pair(-0.0, 2), Pair((0.0,), 2),
    Pair((-0.0,), 2), math.inf, -math.inf, math.nan, ..., int, float, torch.float32,
    np.float64(1), np.float32(1), np.float32(0), np.float32(-0.0), np.int64(1), np.bool_(True),
    np.float64(-0.0), torch.float64, torch.device("cpu"), torch.device("meta"),
    torch.Size([1]), torch.Size([1, 2]),
    torch.relu, torch.tanh, nn.functional.relu, double, lambda x: x, Padding.ZEROS, Padding.REFLECT,
    functools.partial(call), functools.partial(call, 1), functools.partial(call, True),
    functools.partial(call, x=1), functools.partial(call, x=1.0), functools.partial(torch.relu),
    functools.partial(call, y=1), functools.partial(call, 0.0), functools.partial(call, -0.0),
    functools.partial(functools.partial(call, 1), 2, z=3),
]  # fmt: skip


def test_different_constants_make_different_structures() -> None:
    for one, other in itertools.combinations(DIFFERENT, 2):
        assert spec(one) != spec(other), (one, other)


@pytest.mark.parametrize("index", range(len(DIFFERENT)))
def test_every_constant_equals_itself_and_hashes_so(index: int) -> None:
    value = DIFFERENT[index]
    assert spec(value) == spec(value)
    assert hash(spec(value)) == hash(spec(value))
    tree.map(torch.add, Holds(value), Holds(value))


@pytest.mark.parametrize(
    "make",
    [
        lambda: float("nan"), lambda: 1e300 * 10, lambda: "ab" * 3, lambda: (1, (2.0, "x")),
        lambda: frozenset({"a", "b"}), lambda: Config(heads=3), lambda: torch.Size([2]),
        lambda: functools.partial(call, 1, y=(2,)), lambda: torch.device("cpu", 0),
        lambda: 2**100,
        lambda: functools.partial(call, a=1, b=2), lambda: Point(1, math.nan), lambda: range(3),
        lambda: slice, lambda: Pair(math.nan, 1),
        lambda: np.float32("nan"), lambda: np.float64("nan"), lambda: np.int64(3),
    ],
)  # fmt: skip
def test_equal_constants_made_apart_are_one_constant(make: Any) -> None:
    assert spec(make()) == spec(make())
    assert hash(spec(make())) == hash(spec(make()))
    first, second = Holds(make()), Holds(make())
    tree.map(torch.add, first, second)


def test_the_order_of_a_partials_keywords_is_no_difference() -> None:
    assert spec(functools.partial(call, a=1, b=2)) == spec(functools.partial(call, b=2, a=1))


def test_functions_compare_by_identity() -> None:
    def make() -> Any:
        return lambda x: x

    assert spec(make()) != spec(make())


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_survive_copies_and_pickles_as_they_are(name: str) -> None:
    module = Constants((CONSTANTS[name],), torch.ones(1))
    for other in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other.values[0]) is type(CONSTANTS[name])
        assert repr(other.values[0]) == repr(CONSTANTS[name])
        assert tree.structure(other) == tree.structure(module)
        assert hash(tree.structure(other)) == hash(tree.structure(module))


def test_a_constant_is_given_back_as_the_very_object() -> None:
    value = (1, Config(), "text" * 100)
    module = Holds(value)
    assert module.value is value
    assert module.replace(value=value).value is value


def test_equal_constants_of_different_value_never_leak_from_one_module_to_another() -> None:
    # An interned structure must not hand -0.0 to a module that was given 0.0, nor True for 1.
    for one, other in [(0.0, -0.0), (1, True), ((1,), (1.0,)), (Pair(0.0, 1), Pair(-0.0, 1))]:
        for value in (one, other, one):
            for module in (
                Holds(value),
                tree.map(torch.relu, Holds(value)),
                copy.copy(Holds(value)),
            ):
                assert repr(module.value) == repr(value)


# -- what cannot be a constant --------------------------------------------------------------------


class Plain:
    """An object that holds a tensor where nobody looks: it hashes by identity, as it may."""


@dataclass(frozen=True)
class Carries:
    inside: Any


@dataclass
class Mutable:
    a: int = 0


@dataclass(frozen=True)
class Unhashable:
    items: list[int] = field(default_factory=list)


def wrapped(inner: Any) -> Any:
    @functools.wraps(inner)
    def call(*args: Any) -> Any:
        return inner(*args)

    return call


HIDDEN: dict[str, Any] = {
    "tensor": lambda: torch.ones(2),
    "parameter": lambda: nn.Parameter(torch.ones(2)),
    "declaration": lambda: Parameter((2,), nn.init.ones_),
    "module": lambda: Dense(),
    "torch module": lambda: nn.Linear(2, 2),
    "array": lambda: np.ones(2),
    "in a tuple": lambda: (1, (torch.ones(2),)),
    "in a named tuple": lambda: Point(1, Dense()),
    "in a frozenset": lambda: frozenset({nn.Linear(1, 1)}),
    "in a partial's arguments": lambda: functools.partial(torch.add, torch.ones(2)),
    "in a partial's keywords": lambda: functools.partial(torch.add, other=torch.ones(2)),
    "as a partial's function": lambda: functools.partial(nn.Linear(2, 2)),
    "in a frozen dataclass": lambda: Carries(torch.ones(2)),
    "deep in a frozen dataclass": lambda: Carries((Carries(Dense()),)),
    "a method of a torch module": lambda: nn.Linear(2, 2).forward,
    "a method of a module": lambda: Dense().forward,
    "wrapped": lambda: wrapped(nn.Linear(2, 2)),
    "a tensor's method": lambda: torch.ones(2).add,
    "an array of no dimension": lambda: np.array(1.0),
    "registered": lambda: Foreign(torch.ones(2), None, "tag"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_hides_tensors_from_the_tree_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"Holds\.value\b.*[Ww]rite '") as caught:
        Holds(HIDDEN[name]())
    assert "value" in str(caught.value).split("'", 1)[1]  # the line to write names the field


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ([1, 2], "'value: tuple = field(converter=tuple)'"),
        ({1, 2}, "'value: frozenset = field(converter=frozenset)'"),
        ({"a": 1}, "a tuple, a frozen dataclass"),
        ((1, [2]), "tuple"),
        (bytearray(b"a"), "field(converter=bytes)"),
        (Mutable(), "frozen dataclass"),
        (Unhashable(), "tuple"),
        (functools.partial(call, [1]), "tuple"),
        (slice(1, 2), "tuple"),
    ],
)
def test_an_unhashable_constant_is_refused_with_the_line_to_write(value: Any, remedy: str) -> None:
    if isinstance(value, slice) and hash_works(value):
        return
    with pytest.raises(TypeError, match=r"Holds\.value\b.*must be hashable") as caught:
        Holds(value)
    assert remedy in str(caught.value)


def test_a_mutable_dataclass_that_hashes_by_identity_is_compared_so() -> None:
    @dataclass(eq=False)
    class Registry:
        items: list[int] = field(default_factory=list)

    registry = Registry()
    assert spec(registry) == spec(registry) != spec(Registry())


def hash_works(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def test_an_object_of_a_users_class_is_compared_by_its_own_equality() -> None:
    class Version:
        def __init__(self, n: int) -> None:
            self.n = n

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Version) and self.n == other.n

        def __hash__(self) -> int:
            return hash(self.n)

    assert spec(Version(1)) == spec(Version(1))
    assert spec(Version(1)) != spec(Version(2))
    assert spec(Plain()) != spec(Plain())
