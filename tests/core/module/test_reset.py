"""``reset``, ``train`` and ``eval``: what they do to leaves and to the mode."""

from __future__ import annotations

import pytest
import torch

from parallax import UninitializedError, tree
from tests.core.module.verbs import TRAINED, sum_of
from tests.corpus import MLP, Case, Dense, Holder, Norm, Sequential, example_input


@pytest.mark.parametrize("case", TRAINED, ids=str)
def test_reset_leaves_require_grad_without_graph_grad_or_copy(case: Case) -> None:
    module = case.make()
    ready = module.reset(1)
    for before, after in zip(tree.leaves(module), tree.leaves(ready), strict=True):
        assert after.requires_grad and after.is_leaf and after.grad is None
        assert after.data_ptr() == before.data_ptr() and not before.requires_grad
    assert [m.mode for m in ready.modules()] == ["train"] * len(list(module.modules()))


def test_reset_leaves_buffers_and_integers_alone() -> None:
    norm = Norm().initialize(0).reset(0)
    marks = {path: leaf.requires_grad for path, leaf in tree.named_leaves(norm).items()}
    assert marks == {
        "weight": True,
        "bias": True,
        "running_mean": False,
        "running_var": False,
        "num_batches_tracked": False,
    }


def test_leaves_of_a_registered_class_are_carried_and_not_trained() -> None:
    holder = Holder().initialize(0).reset(0)
    marks = {path: leaf.requires_grad for path, leaf in tree.named_leaves(holder).items()}
    assert marks == {"pair.0.weight": True, "pair.0.bias": True, "pair.1": False}


def test_reset_drops_stale_gradients_and_graphs() -> None:
    module = MLP().initialize(0).reset(0)
    sum_of(module, example_input()).backward()
    grown = tree.map(lambda leaf: leaf * 2, module)
    assert all(leaf.grad_fn is not None for leaf in tree.leaves(grown))
    for leaf in tree.leaves(grown.reset(1)) + tree.leaves(module.reset(1)):
        assert leaf.is_leaf and leaf.grad is None and leaf.requires_grad


def test_train_and_eval_change_the_mode_everywhere_and_no_leaf() -> None:
    module = Sequential(MLP(), torch.relu, Dense()).initialize(0)
    for other, mode in (
        (module.train(0), "train"),
        (module.eval(), "eval"),
        (module.train(), "train"),
    ):
        assert {m.mode for m in other.modules()} == {mode}
        for ours, theirs in zip(tree.leaves(module), tree.leaves(other), strict=True):
            assert ours is theirs
    assert module.mode == "train"


def test_modes_other_than_train_and_eval_are_refused() -> None:
    with pytest.raises(ValueError, match="'train' or 'eval', got 'test'"):
        Dense().initialize(0).reset(0, "test")


def test_reset_of_an_uninitialised_module_names_the_first_leaf() -> None:
    with pytest.raises(UninitializedError, match=r"MLP\.first\.weight.*module\.initialize\(rng\)"):
        MLP().reset(0)
    with pytest.raises(UninitializedError, match=r"MLP\.second\.weight"):
        MLP().replace(first=Dense().initialize(0)).reset(0)
