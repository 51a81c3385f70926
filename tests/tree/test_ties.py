"""tie: bringing values of untied places back onto the ties of a model."""

from __future__ import annotations

from typing import Any

import optree
import pytest
import torch

from parallax import tree
from tests.corpus import MLP, MODULES, Case, TiedModule, TiedParameter, example_input


@pytest.mark.parametrize("make", [TiedParameter, TiedModule])
def test_raw_gradients_summed_are_the_gradient_of_the_tie(make: Any) -> None:
    module, x = make().initialize(0), example_input()
    expected: Any = torch.func.grad(lambda m: m(x).sum())(module)
    # optree sees each place; a copy per place has a gradient of its own
    leaves, spec = optree.tree_flatten(module)
    copies = [leaf.clone().requires_grad_() for leaf in leaves]
    rebuilt: Any = optree.tree_unflatten(spec, copies)
    rebuilt(x).sum().backward()
    grads: Any = optree.tree_unflatten(spec, [copy.grad for copy in copies])
    with pytest.raises(ValueError, match=r"tree\.tie"):
        module.update(torch.sub, grads)
    tied = tree.tie(module, grads)
    assert tree.structure(tied) == tree.structure(module)
    for a, b in zip(tree.leaves(tied), tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b)
    module.update(torch.sub, tied)


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_a_tree_that_is_tied_alike_is_unchanged(case: Case) -> None:
    module, other = case.make(0), case.make(1)
    made = tree.tie(module, other)
    assert all(a is b for a, b in zip(tree.leaves(made), tree.leaves(other), strict=True))


def test_it_has_the_model_s_mode_and_marks() -> None:
    module = tree.select(TiedParameter().initialize(0).eval(), "encoder").freeze()
    made = tree.tie(module, TiedParameter().initialize(1))
    assert tree.structure(made) == tree.structure(module)


def test_holes_count_nothing_and_stay_where_all_are() -> None:
    module: Any = TiedParameter().initialize(0)
    grads: Any = optree.tree_map(torch.ones_like, module)
    decoder = grads.decoder.replace(weight=torch.full((4, 4), 5.0))
    part, _ = tree.partition(grads.replace(decoder=decoder), "decoder.weight")
    made = tree.tie(module, part)
    assert torch.equal(made.encoder.weight, torch.full((4, 4), 5.0))
    assert made.encoder.bias is None


def test_trees_around_modules_are_tied_module_by_module() -> None:
    module: Any = TiedParameter().initialize(0)
    grads: Any = optree.tree_map(torch.ones_like, module)
    made: Any = tree.tie({"m": module, "t": torch.ones(1)}, {"m": grads, "t": torch.zeros(1)})
    assert torch.equal(made["m"].decoder.weight, torch.full((4, 4), 2.0))
    assert torch.equal(made["t"], torch.zeros(1))


def test_another_structure_names_the_path() -> None:
    with pytest.raises(ValueError, match=r"at MLP.activation the first has"):
        tree.tie(MLP(torch.relu), MLP(torch.tanh))
