"""Notes: what travels with a tree, and is carried over when fields change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from parallax import Module, Parameter, tree
from parallax.core.module_structure import note_of, spec_of
from parallax.core.notes import addressed, joined, split_copy
from parallax.tree.modes import with_mode
from tests.corpus import MODULES, Case


class Holder(Module):
    before: tuple[Parameter, ...]
    middle: Parameter
    after: Parameter


def holder(n: int) -> Any:
    make: Any = Holder
    return make(tuple(torch.ones(1) for _ in range(n)), torch.ones(1), torch.ones(1))


def frozen_paths(module: Any) -> list[str]:
    spec = spec_of(module)
    return [path for path, mark in zip(spec.paths, spec.frozen, strict=True) if mark]


@pytest.mark.parametrize(("n", "m"), [(1, 3), (3, 1), (2, 0), (0, 2), (2, 2)])
def test_a_frozen_mark_stays_on_its_leaf_when_a_field_before_it_changes(n: int, m: int) -> None:
    module = tree.select(holder(n), "middle").freeze()
    replaced = module.replace(before=tuple(torch.zeros(1) for _ in range(m)))
    assert frozen_paths(replaced) == ["middle"]
    assert frozen_paths(replaced.replace(after=torch.zeros(1))) == ["middle"]


def test_the_marks_of_a_changed_field_are_dropped() -> None:
    module = tree.select(holder(2), "before.1", "middle").freeze()
    assert frozen_paths(module) == ["before.1", "middle"]
    assert frozen_paths(module.replace(middle=torch.zeros(1))) == ["before.1"]
    assert frozen_paths(module.replace(before=(torch.zeros(1),))) == ["middle"]


def test_a_constant_in_a_child_s_place_keeps_no_mark_of_the_leaf_after_it() -> None:
    class Activated(Module):
        activation: Module | Callable[..., Any]
        weight: Parameter

    frozen = tree.select(Activated(torch.relu, torch.ones(1)), "weight").freeze()
    assert frozen_paths(frozen.replace(activation=torch.tanh)) == ["weight"]
    assert frozen_paths(frozen.replace(weight=torch.zeros(1))) == []


def test_marks_stay_on_their_leaves_in_compiled_code() -> None:
    module = tree.select(holder(1), "middle").freeze()
    grown = (torch.zeros(1), torch.zeros(1))
    run = torch.compile(
        lambda m, parts: tree.map(torch.neg, m.replace(before=parts)),
        backend="eager",
        fullgraph=True,
    )
    assert frozen_paths(run(module, grown)) == ["middle"]


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_every_module_gets_its_mode_and_path(case: Case) -> None:
    spec = spec_of(case.make())
    told = with_mode(spec, "root", "eval")
    paths = {path: node for path, _, node in told.walk() if hasattr(node, "note")}
    for path, node in paths.items():
        if hasattr(node.cls, "__layout__"):
            assert node.note.mode == "eval" and node.note.path == joined("root", *path)
    assert told.skeleton == spec.skeleton
    assert with_mode(spec, "root", "eval") is told
    assert addressed(spec).note.path == ""


def test_copies_have_names_of_their_own() -> None:
    spec = spec_of(holder(1))
    one, two = split_copy(spec, 0), split_copy(spec, 1)
    assert one.note.copy == "#0" and two.note.copy == "#1"
    assert split_copy(one, 1).note.copy == "#0#1"
    assert note_of(holder(1)).copy == ""
