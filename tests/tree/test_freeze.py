"""Freezing: which leaves a selection marks, and what the marks survive."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallax import tree
from tests.corpus import MLP, MODULES, Case, Norm, Residual, TiedModule, example_input


def frozen_paths(module: Any) -> tuple[str, ...]:
    _, structure = tree.flatten(module)
    part = structure.parts[0]
    return tuple(p for p, mark in zip(part.paths, part.frozen, strict=True) if mark)


def test_freeze_marks_parameters_below_and_unfreeze_takes_marks_back() -> None:
    module = MLP().initialize(0)
    frozen: Any = tree.select(module, "first").freeze()
    assert frozen_paths(frozen) == ("first.weight", "first.bias")
    partly = tree.select(frozen, "first.bias").unfreeze()
    assert frozen_paths(partly) == ("first.weight",)
    assert tree.structure(tree.select(partly, "frozen").unfreeze()) == tree.structure(module)
    assert tree.select(frozen, "trainable").paths == ("second.weight", "second.bias")


def test_buffers_are_never_marked() -> None:
    frozen = tree.select(Norm().initialize(0), "**").freeze()
    assert frozen_paths(frozen) == ("weight", "bias")


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_every_parameter_can_be_frozen_and_nothing_but_marks_changes(case: Case) -> None:
    module = case.make()
    for path in tree.named_leaves(module):
        selection = tree.select(module, path)
        marked = selection.freeze()
        assert all(a is b for a, b in zip(tree.leaves(marked), tree.leaves(module), strict=True))
        assert marked.mode == module.mode
        assert tree.structure(tree.select(marked, path).unfreeze()) == tree.structure(module)
        is_parameter = path in tree.named_leaves(tree.partition(module, "parameter")[0])
        assert frozen_paths(marked) == ((path,) if is_parameter else ())


def test_a_module_taken_out_of_a_frozen_tree_stays_frozen() -> None:
    module = tree.select(Residual(MLP()).initialize(0), "inner.first.weight").freeze()
    assert frozen_paths(module.inner) == ("first.weight",)
    assert frozen_paths(module.inner.first) == ("weight",)
    tied = tree.select(TiedModule().initialize(0), "one.bias").freeze()
    for layer in (tied.one, tied.other, tied.several[0]):
        assert frozen_paths(layer) == ("bias",)
    assert frozen_paths(tied.apart) == ()


def test_reset_and_gradients_leave_frozen_parameters_out() -> None:
    module: Any = tree.select(MLP().initialize(0), "first").freeze().reset(0)
    assert not module.first.weight.requires_grad
    module(example_input()).sum().backward()
    grads = module.grad()
    assert grads.first.weight is None
    assert grads.second.weight is not None
    updated = module.update(torch.sub, grads)
    assert torch.equal(updated.first.weight, module.first.weight)
    assert frozen_paths(updated) == ("first.weight", "first.bias")


def test_freezing_survives_modes_maps_and_replacing_other_fields() -> None:
    module = tree.select(MLP().initialize(0), "second").freeze()
    wanted = ("second.weight", "second.bias")
    assert frozen_paths(module.eval()) == wanted
    assert frozen_paths(tree.map(torch.neg, module)) == wanted
    assert frozen_paths(module.replace(first=Residual(module.first))) == wanted


def test_a_tensor_outside_of_modules_cannot_be_frozen() -> None:
    with pytest.raises(TypeError, match="t belongs to no module"):
        tree.select({"t": torch.ones(1)}, "t").freeze()
