"""The structure, leaves and note of a module, however it was made."""

from __future__ import annotations

from typing import Any, cast

import optree
import pytest
import torch

from parallax import Module, Parameter, tree
from parallax.core.entries import PLAIN, Note
from parallax.core.module_structure import leaves_of, local_part, note_of, spec_of, spread
from tests.corpus import MODULES, Case, Dense, TiedModule


def rebuilt(module: Any) -> Any:
    """The module as raw optree makes it: with a note in the place of its structure."""
    leaves, treespec = optree.tree_flatten(module, none_is_leaf=True)
    return optree.tree_unflatten(treespec, leaves)


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_what_optree_made_is_described_as_what_was_constructed(case: Case) -> None:
    module = case.make()
    again = rebuilt(module)
    kept: Any = again._spec
    assert type(kept) is Note and local_part(again) == spec_of(module).local
    found = spec_of(again)
    assert found == spec_of(module) and again._spec is found
    assert list(map(id, leaves_of(again))) == list(map(id, leaves_of(module)))


def test_leaves_are_collected_once() -> None:
    module = Dense().initialize(0)
    leaves = leaves_of(module)
    assert leaves_of(module) is leaves and leaves[0] is module.weight
    again = rebuilt(module)
    first = leaves_of(again)
    assert leaves_of(again) is first


def test_the_note_is_known_before_the_structure_is() -> None:
    module = Dense().initialize(0).eval()
    again = rebuilt(module)
    assert type(again._spec) is Note
    assert note_of(again) == note_of(module) and note_of(again).mode == "eval"
    assert type(again._spec) is Note  # which did not describe it
    assert spec_of(again).note == note_of(module)
    assert note_of(Dense()) == PLAIN


def test_ties_are_found_in_what_optree_made() -> None:
    module = TiedModule().initialize(0)
    again = rebuilt(module)
    assert spec_of(module).expand is not None
    assert spec_of(again).expand == spec_of(module).expand
    leaves: list[Any]
    leaves, treespec = optree.tree_flatten(cast("Any", module), none_is_leaf=True)
    apart = optree.tree_unflatten(treespec, [leaf.clone() for leaf in leaves])
    assert spec_of(apart).expand is None and len(leaves_of(apart)) == len(leaves)


def test_leaves_come_once_for_each_place() -> None:
    module = TiedModule().initialize(0)
    structure, found = spread(module)
    assert structure is spec_of(module)
    assert len(found) == spec_of(module).n_places > len(leaves_of(module))
    assert [found[k] for k in spec_of(module).first] == list(leaves_of(module))


def test_a_module_under_construction_is_no_tree_yet() -> None:
    class Early(Module):
        weight: Parameter

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.ones(1)
            tree.leaves(self)

    with pytest.raises(RuntimeError, match=r"Early is still being constructed.*end of __init__"):
        Early()
