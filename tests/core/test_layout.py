"""The layout of a class: which fields are children, which are constants, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from parallax import Buffer, Module, Parameter, field
from parallax.core.entries import Note
from parallax.core.layout import Layout
from tests.corpus import Dense


class Base(Module):
    """The fields that come first."""

    rate: float
    weight: Parameter


class Mixed(Base):
    """Each kind of field, after inherited ones."""

    mean: Buffer | None = None
    dense: Dense = field(default_factory=Dense)
    many: tuple[Parameter, ...] = ()
    named: dict[str, Dense] = field(default_factory=dict)
    act: Module | Callable[..., Any] = torch.relu
    doubled: Parameter = field(default=torch.ones(2), converter=lambda x: 2 * x)
    size: tuple[int, ...] = (1, 2)
    fixed: tuple[Module, ...] = field(default=(), static=True)


def layout(cls: Any = Mixed) -> Layout:
    found: Layout = cls.__layout__
    return found


def test_fields_are_children_or_constants_inherited_ones_first() -> None:
    found = layout()
    assert list(found.fields)[:2] == ["rate", "weight"]
    assert found.children == ("weight", "mean", "dense", "many", "named", "act", "doubled")
    assert found.constants == ("rate", "size", "fixed")  # "fixed" is static, whatever it allows
    assert list(found.kinds) == list(found.children)
    assert layout(Base).children == ("weight",) and layout(Base).constants == ("rate",)


def test_modules_may_be_below_these() -> None:
    assert set(layout().nested) >= {"dense", "named", "act"}
    assert not {"weight", "mean", "doubled"} & set(layout().nested)


def test_lone_leaves_are_taken_as_they_are_given() -> None:
    assert layout().lone_leaves == {"weight", "mean"}  # "doubled" has a converter


def test_a_local_part_is_made_of_constants_by_type_and_value() -> None:
    found = layout(Base)
    one = found.local((1.0,), Note())
    assert one is found.local((1.0,), Note()) and one.constants == (1.0,)
    assert not one.fits(found.local((1,), Note()))
    assert found.local((1.0,), Note(mode="eval")).fits(one)


def test_the_latest_structures_are_kept_until_they_are_forgotten() -> None:
    class Sized(Module):
        n: int

    found, kept = layout(Sized), [Sized(n)._spec for n in range(20)]
    assert list(found.latest) == kept[-16:]
    assert Sized(19)._spec is kept[-1]
    found.forget()
    assert not found.latest and not found.sealed
    assert Sized(19)._spec == kept[-1]
