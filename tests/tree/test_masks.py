"""Masks and trees of labels as conditions: of select, partition, freeze and optimizers."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from parallax import func, nn, optim, tree
from tests.compiling import make_compiled
from tests.corpus import MLP, Dense, Nested, Norm, TiedParameter


def matrices(model: Any) -> Any:
    return tree.map(lambda leaf: leaf.ndim == 2, model)


def by_label(model: Any) -> Any:
    def label(path: str, leaf: Tensor) -> str:
        return "first" if path.startswith("first") else f"{leaf.ndim}d"

    return tree.masks(tree.map_with_path(label, model))


# -- what a mask means ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [MLP, Nested, TiedParameter, lambda: Dense(bias=False)])
def test_a_mask_means_what_a_function_of_path_and_leaf_does(make: Any) -> None:
    model = make().initialize(0)
    for held in (model, {"a": [model], "b": torch.ones(2, 2)}):
        mask = matrices(held)
        expected = tree.select(held, lambda path, leaf: leaf.ndim == 2).paths
        assert tree.select(held, mask).paths == expected
        assert tree.select(held, tree.map(np.bool_, mask)).paths == expected
        assert tree.select(held, tree.map(torch.tensor, mask)).paths == expected
        ours, theirs = tree.partition(held, mask), tree.partition(held, lambda p, x: x.ndim == 2)
        assert all(tree.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_modes_marks_and_ties_of_the_mask_do_not_matter() -> None:
    model = TiedParameter().initialize(0)
    mask = matrices(tree.select(model.eval(), "encoder").freeze())
    assert tree.select(model, mask).count() == 1
    loose = model.replace(decoder=model.decoder.replace(weight=model.decoder.weight.clone()))
    assert tree.select(model, matrices(loose)).paths == tree.select(model, mask).paths
    torn = tree.map_with_path(lambda path, _: path == "encoder.weight", loose)
    with pytest.raises(ValueError, match=r"encoder.weight and decoder.weight are one tied leaf"):
        tree.select(model, torn)


def test_a_bool_in_the_place_of_a_module_is_for_all_of_it() -> None:
    held = {"model": MLP().initialize(0), "scale": torch.ones(2)}
    assert tree.select(held, {"model": True, "scale": False}).count() == 4
    assert tree.select(held, {"model": matrices(held["model"]), "scale": True}).count() == 3
    chosen, rest = tree.partition(held, {"model": False, "scale": True})
    assert tree.leaves(chosen["model"]) == [] and rest["scale"] is None


def test_freezing_by_a_mask() -> None:
    model = MLP().initialize(0)
    frozen = tree.select(model, matrices(model)).freeze()
    grads: Any = func.grad(lambda m: m(torch.ones(2, 4)).sum())(frozen)
    assert grads.first.weight is None and grads.second.bias is not None


def test_in_compiled_code() -> None:
    model = MLP().initialize(0)
    mask = matrices(model)

    def both(model: Any, x: Tensor) -> Any:
        inside = tree.map(lambda leaf: leaf.ndim == 1, model)
        parts = tree.partition(model, inside)
        return tree.select(model, mask).apply(lambda w: 2 * w), parts[0], parts[1]

    made = torch.compile(both, backend="eager", fullgraph=True)(model, torch.ones(1))
    expected = both(model, torch.ones(1))
    assert all(tree.equal(one, two) for one, two in zip(made, expected, strict=True))


# -- labels ---------------------------------------------------------------------------------------


def test_labels_are_masks_in_the_order_in_which_they_are_met() -> None:
    model = MLP().initialize(0)
    masks = by_label(model)
    assert list(masks) == ["first", "2d", "1d"]
    found = {label: tree.select(model, mask).paths for label, mask in masks.items()}
    assert found == {
        "first": ("first.weight", "first.bias"), "2d": ("second.weight",), "1d": ("second.bias",)
    }  # fmt: skip
    parts = tree.partition(model, *masks.values())
    assert tree.leaves(parts[-1]) == [] and tree.equal(tree.combine(*parts), model)
    assert list(tree.masks({"a": 1, "b": None, "c": 2, "d": 1})) == [1, 2]


# -- optimizers -----------------------------------------------------------------------------------


def torch_steps(
    model: Any, groups: list[dict[str, Any]], cls: Any, **options: Any
) -> dict[str, Tensor]:
    """Two steps of torch's optimizer with gradients of ones, per group the leaves by path."""
    copies = {k: v.clone().requires_grad_() for k, v in tree.named_leaves(model).items()}
    opt = cls([{**g, "params": [copies[p] for p in g["params"]]} for g in groups], **options)
    for leaf in copies.values():
        leaf.grad = torch.ones_like(leaf)
    for _ in range(2):
        opt.step()
    return {path: leaf.detach() for path, leaf in copies.items()}


def steps(opt: Any, model: Any, compiled: bool = False) -> Any:
    state, grads = opt.init(model), tree.map(torch.ones_like, model)
    step = make_compiled(opt.step, backend="eager") if compiled else opt.step
    for _ in range(2):
        model, state = step(model, grads, state)
    return model


@pytest.mark.parametrize("compiled", [False, True])
def test_groups_by_masks_are_torchs_groups(compiled: bool) -> None:
    model = MLP().initialize(0)
    masks = by_label(model)
    opt = optim.AdamW(
        lr=0.1, groups={masks["first"]: {"lr": 0.01}, masks["1d"]: {"weight_decay": 0.0}}
    )
    expected = torch_steps(
        model,
        [
            {"params": ["first.weight", "first.bias"], "lr": 0.01},
            {"params": ["second.bias"], "weight_decay": 0.0},
            {"params": ["second.weight"]},
        ],
        torch.optim.AdamW, lr=0.1,
    )  # fmt: skip
    for path, leaf in tree.named_leaves(steps(opt, model, compiled)).items():
        torch.testing.assert_close(leaf, expected[path])


def test_split_by_labels() -> None:
    model = MLP().initialize(0)
    masks = by_label(model)
    made = steps(optim.Split({masks["first"]: optim.SGD(0.1), masks["2d"]: optim.Adam(0.2)}), model)
    sgd = torch_steps(model, [{"params": ["first.weight", "first.bias"]}], torch.optim.SGD, lr=0.1)
    adam = torch_steps(model, [{"params": ["second.weight"]}], torch.optim.Adam, lr=0.2)
    found = tree.named_leaves(made)
    for path, expected in {**sgd, "second.weight": adam["second.weight"]}.items():
        torch.testing.assert_close(found[path], expected)
    assert found["second.bias"] is model.second.bias


def test_an_optimizer_with_a_mask_is_a_value() -> None:
    model = MLP().initialize(0)
    one, two = (optim.SGD(0.1, groups={matrices(model): {"lr": 0.2}}) for _ in range(2))
    assert tree.structure(one) == tree.structure(two)
    assert "groups={<mask of 2 of 4 leaves>: {'lr': 0.2}}" in repr(one)
    again = pickle.loads(pickle.dumps(one))
    assert tree.structure(again) == tree.structure(one)
    assert tree.equal(steps(again, model), steps(one.replace(groups=two.groups), model))


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "error", "says"),
    [
        (["first", "second"], TypeError, r"'a', 'b'.*masks\(labels\)\['first'\]"),
        ({"first": 1}, TypeError, "a bool for each leaf, and first is 1"),
        (
            lambda: MLP().initialize(0),
            TypeError,
            r"a bool for each leaf, and first.weight is a tensor",
        ),
        (
            lambda: tree.map(lambda leaf: "a", MLP()),
            TypeError,
            r"take one: tree.masks\(labels\)\['a'\]",
        ),
        (
            {"a": True},
            ValueError,
            "the mask does not fit the tree: at the root the first has a leaf or",
        ),
        (
            lambda: matrices(Norm()),
            ValueError,
            "at the root the first has a MLP, the other has a Norm",
        ),
        (
            lambda: matrices(MLP(torch.sin)),
            ValueError,
            "at activation the first has .*tree.map",
        ),
    ],
)
def test_what_is_no_mask_of_the_tree(mask: Any, error: Any, says: str) -> None:
    model = MLP().initialize(0)
    given = mask() if callable(mask) else mask
    with pytest.raises(error, match=says):
        tree.select(model, given)
    with pytest.raises(error, match=says):
        tree.partition(model, given)


def test_a_mask_of_nothing_selects_nothing() -> None:
    model = MLP().initialize(0)
    with pytest.raises(LookupError, match="matches <mask of 0 of 4 leaves>"):
        tree.select(model, tree.map(lambda leaf: False, model))
    assert tree.leaves(tree.partition(model, tree.map(lambda leaf: False, model))[0]) == []


def test_labels_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"labels=\): weight is a tensor .* 'matrix' if leaf.ndim"):
        tree.masks(nn.Linear(1, 1).initialize(0))
    with pytest.raises(TypeError, match="a is a set"):
        tree.masks({"a": set()})


def test_a_label_that_equals_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"labels=\): b is nan, which equals no label"):
        tree.masks({"a": "x", "b": float("nan")})
