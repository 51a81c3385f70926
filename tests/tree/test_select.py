"""select: what each kind of condition means, and get, set, apply."""

from __future__ import annotations

import fnmatch
import weakref
from typing import Any, Protocol, runtime_checkable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parallax import Buffer, Module, Parameter, tree
from parallax.core.fields import UninitializedError
from parallax.tree.paths import matching
from tests.corpus import (
    MLP,
    MODULES,
    SIZE,
    TIED,
    Branches,
    Case,
    Dense,
    Foreign,
    Gated,
    Holder,
    Many,
    Nested,
    Norm,
    Residual,
    Scale,
    Sequential,
    TiedModule,
    TiedParameter,
    Twig,
    example_input,
)
from tests.tree.strategies import assert_same, modules, trees


class LoRA(Module):
    """A low-rank correction around a layer, which it holds."""

    inner: Module
    down: Parameter
    up: Parameter

    def forward(self, x: Tensor) -> Any:
        return self.inner(x) + x @ self.down @ self.up


def lora(inner: Module) -> LoRA:
    return LoRA(inner, torch.ones(SIZE, 1), torch.zeros(1, SIZE))


class Pair(Module):
    """Two children of any class."""

    one: Module
    two: Module

    def forward(self, x: Tensor) -> Any:
        return self.two(self.one(x))


# -- what is meant ------------------------------------------------------------------------------


class Thin:
    """A condition that is no plain function, and a method that is one."""

    def __call__(self, path: str, leaf: Tensor) -> bool:
        return leaf.ndim == 1

    def second(self, model: Any) -> Any:
        return model.second.bias


@pytest.mark.parametrize(
    ("make", "what", "paths"),
    [
        (MLP, "first", ("first",)),
        (MLP, "first.weight", ("first.weight",)),
        (MLP, "", ("",)),
        (Many, "layers", ("layers",)),
        (MLP, "**.bias", ("first.bias", "second.bias")),
        (MLP, "*.bias", ("first.bias", "second.bias")),
        (MLP, "f*.w?ight", ("first.weight",)),
        (MLP, "*", ("first", "second")),
        (Dense, "*", ("weight", "bias")),
        (MLP, "first.**", ("first.weight", "first.bias")),
        (Dense, "**", ("weight", "bias")),
        (lambda: Many(3), "layers.*", ("layers.0", "layers.1", "layers.2")),
        (lambda: Many(3), "layers.?.bias", ("layers.0.bias", "layers.1.bias", "layers.2.bias")),
        (lambda: Many(3), "**.1.**", ("layers.1.weight", "layers.1.bias", "shifts.1")),
        (Nested, "maybe.*", ("maybe.there",)),
        (Nested, "maybe.not", ("maybe.not",)),
        (lambda: Branches("z", "a"), "branches.z.bias", ("branches.z.bias",)),
        (Gated, "gates.inner", ("gates.inner",)),
        (Holder, "pair.0.weight", ("pair.0.weight",)),
        (Norm, "buffer", ("running_mean", "running_var", "num_batches_tracked")),
        (Norm, "parameter", ("weight", "bias")),
        (Norm, "trainable", ("weight", "bias")),
        (Norm, Buffer, ("running_mean", "running_var", "num_batches_tracked")),
        (Norm, Parameter, ("weight", "bias")),
        (MLP, Dense, ("first", "second")),
        (MLP, MLP, ("",)),
        (MLP, Module, ("", "first", "second")),
        (Holder, Foreign, ("pair",)),
        (MLP, lambda m: m.second.bias, ("second.bias",)),
        (MLP, lambda m: (m.second.bias, m.first), ("second.bias", "first")),
        (lambda: Many(3), lambda m: [layer.bias for layer in m.layers[1:]],
         ("layers.1.bias", "layers.2.bias")),
        (lambda: Many(3), lambda m: m.layers[-1], ("layers.2",)),
        (lambda: Many(3), lambda m: m.layers, ("layers",)),
        (lambda: Dense(bias=False), lambda m: m.bias, ("bias",)),
        (MLP, lambda path, leaf: leaf.ndim == 1, ("first.bias", "second.bias")),
        (MLP, lambda path, leaf: path.startswith("first"), ("first.weight", "first.bias")),
        (MLP, Thin(), ("first.bias", "second.bias")),
        (MLP, Thin().second, ("second.bias",)),
    ],
)  # fmt: skip
def test_a_condition_means_these_paths(make: Any, what: Any, paths: tuple[str, ...]) -> None:
    module = make().initialize(0)
    selection = tree.select(module, what)
    assert selection.paths == paths
    assert selection.count() == len(paths)


def test_conditions_add_up_in_their_order_and_each_thing_counts_once() -> None:
    selection = tree.select(MLP().initialize(0), "second.bias", "**.bias", lambda m: m.first.bias)
    assert selection.paths == ("second.bias", "first.bias")


@given(
    st.lists(
        st.sampled_from(
            ["a", "b", "*", "a*", "?b", "**", "*a*b", "[ab]", "[!a]*", "[b]?", "[", "[]"]
        ),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.sampled_from(["a", "b", "ab", "bab"]), min_size=1, max_size=4),
)
def test_globs_match_as_fnmatch_does_segment_by_segment(pattern: Any, names: Any) -> None:
    def expected(p: list[str], n: list[str]) -> bool:
        if not p:
            return not n
        if p[0] == "**":
            return expected(p[1:], n) or (bool(n) and expected(p, n[1:]))
        return bool(n) and fnmatch.fnmatchcase(n[0], p[0]) and expected(p[1:], n[1:])

    meant = matching(".".join(pattern), ("", ".".join(names)))
    assert (0 in meant, 1 in meant) == (expected(pattern, []), expected(pattern, names))


def test_a_tied_leaf_is_one_thing_by_whichever_of_its_paths() -> None:
    module = TiedParameter().initialize(0)
    for path in ("encoder.weight", "decoder.weight"):
        assert tree.select(module, path).get() is module.encoder.weight
        made = tree.select(module, path).set(torch.zeros(SIZE, SIZE))
        assert made.encoder.weight is made.decoder.weight
        assert not made.decoder.weight.any()
    assert tree.select(module, "**.weight").count() == 1
    assert tree.select(module, "encoder.weight", "decoder.weight").count() == 1


def test_a_module_in_several_fields_is_one_thing() -> None:
    module = TiedModule().initialize(0)
    assert tree.select(module, Dense).count() == 3
    made = tree.select(module, Dense).apply(lambda dense: tree.map(torch.neg, dense))
    assert tree.structure(made) == tree.structure(module)
    replaced = tree.select(module, "other").set(Dense().initialize(1))
    assert replaced.one is replaced.other is replaced.several[0]
    assert replaced.several[1] is module.several[1]


def test_trees_around_modules_are_selected_from_too() -> None:
    subject = {"net": [MLP().initialize(0)], "step": torch.zeros(())}
    assert tree.select(subject, "net.0.first.bias").count() == 1
    assert tree.select(subject, "step").get() is subject["step"]
    assert tree.select(subject, lambda t: t["net"][0].second).paths == ("net.0.second",)
    made: Any = tree.select(subject, "net.0.second").set(lora(Dense().initialize(0)))
    assert type(made["net"][0].second) is LoRA
    assert made["step"] is subject["step"]


def test_declarations_can_be_selected_before_they_have_a_value() -> None:
    selection = tree.select(MLP(), "first.weight")
    assert "uninitialized" in repr(selection)
    made = selection.set(torch.zeros(SIZE, SIZE)).initialize(0)
    assert not made.first.weight.any()
    with pytest.raises(UninitializedError):
        selection.apply(torch.neg)


# -- nothing is meant -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ("first.wieght", LookupError, "Near misses: first.weight"),
        ("weight", LookupError, "Near misses: .*first.weight"),
        ("**.nope", LookupError, "nothing in MLP is at '..*nope'"),
        (torch.nn.Linear, LookupError, "matches Linear; it has 4 leaves and modules of Dense, MLP"),
        ("frozen", LookupError, "matches 'frozen'"),
        (lambda path, leaf: False, LookupError, "matches <lambda>"),
        (lambda m: m.activation, LookupError, r"neither a leaf, .*module.replace\(name=...\)"),
        (lambda m: m.frist, TypeError, "no attribute 'frist'"),
        (lambda x: x.ndim == 2, TypeError, "lambda path, leaf"),
        (3, TypeError, "cannot select by 3"),
        (Dense(), TypeError, "cannot select by a Dense"),
        (torch.nn.ReLU(), TypeError, "cannot select by a ReLU, which is a torch.nn.Module"),
    ],
)
def test_what_matches_nothing_is_an_error_that_helps(what: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        tree.select(MLP().initialize(0), what)


def test_no_condition_at_all_is_an_error() -> None:
    with pytest.raises(TypeError, match="say what to select"):
        tree.select(MLP())


# -- get, set, apply ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_set_is_the_inverse_of_get(case: Case) -> None:
    module = case.make()
    for path in tree.named_leaves(module):
        selection = tree.select(module, path)
        assert_same(selection.set(selection.get()), module)
    if tree.leaves(module):
        everything = tree.select(module, "**")
        assert_same(everything.set(everything.get()), module)


@given(modules())
def test_get_after_set_gives_what_was_set(module: Any) -> None:
    leaves = [leaf for leaf in tree.leaves(module) if isinstance(leaf, Tensor)]
    if leaves:
        selection = tree.select(module, "**")
        values = [torch.ones(1) * k for k in range(selection.count())]
        got = tree.select(selection.set(values), "**").get()
        assert [id(value) for value in got] == [id(value) for value in values]


@given(trees())
def test_setting_twice_is_setting_once(subject: Any) -> None:
    if tree.leaves(subject):
        selection = tree.select(subject, "**")
        zeros = [torch.zeros(k) for k in range(selection.count())]
        assert_same(tree.select(selection.set(selection.get()), "**").set(zeros),
                    selection.set(zeros))  # fmt: skip


def test_get_gives_the_thing_when_one_is_named_and_a_tuple_otherwise() -> None:
    module = MLP().initialize(0)
    assert tree.select(module, "first.bias").get() is module.first.bias
    assert tree.select(module, lambda m: m.first).get() is module.first
    assert tree.select(module, "fir*.bias").get() == (module.first.bias,)
    assert tree.select(module, lambda m: [m.first]).get() == (module.first,)
    assert tree.select(module, MLP).get() == (module,)


def test_one_value_for_several_is_copied_so_that_nothing_is_tied() -> None:
    module = MLP().initialize(0)
    zeros = torch.zeros(SIZE)
    made = tree.select(module, "**.bias").set(zeros)
    assert made.first.bias is not made.second.bias
    assert tree.structure(made) == tree.structure(module)
    both = tree.select(module, Dense).set(Dense().initialize(3))
    assert both.first.weight is not both.second.weight


def test_the_same_tensor_in_two_places_is_a_tie() -> None:
    module = MLP().initialize(0)
    made = tree.select(module, "second.weight").set(module.first.weight)
    assert len(tree.leaves(made)) == 3
    assert tree.map(torch.neg, made).second.weight is not module.first.weight
    again = tree.select(module, "**.bias").set([module.first.bias] * 2)
    assert len(tree.leaves(again)) == 3


def test_a_hole_is_filled_and_a_leaf_taken_out() -> None:
    module = Dense(bias=False).initialize(0)
    filled = tree.select(module, "bias").set(torch.ones(SIZE))
    assert torch.equal(filled(example_input()), module(example_input()) + 1)
    assert tree.select(filled, "bias").set(None).bias is None
    with pytest.raises(TypeError, match=r"Dense.weight got None"):
        tree.select(module, "weight").set(None)


def test_apply_calls_the_function_once_per_thing_and_not_on_holes() -> None:
    module = TiedParameter().initialize(0)
    calls: list[Tensor] = []

    def record(leaf: Tensor) -> Tensor:
        calls.append(leaf)
        return leaf

    tree.select(module, "**").apply(record)
    assert len(calls) == 3
    bare = Dense(bias=False).initialize(0)
    assert tree.select(bare, "bias").apply(torch.neg).bias is None


def test_a_layer_is_wrapped() -> None:
    module = Sequential(Dense(), torch.relu, Residual(Dense())).initialize(0)
    made: Any = tree.select(module, Dense).apply(lora)
    x = example_input()
    assert torch.equal(made(x), module(x))
    assert tree.select(made, LoRA).paths == ("layers.0", "layers.2.inner")
    assert made.layers[0].inner is module.layers[0]
    assert len(tree.leaves(made)) == len(tree.leaves(module)) + 4


def test_replaced_nodes_keep_the_modes_marks_and_rng_of_all_others() -> None:
    module = tree.select(Pair(MLP().initialize(0), Dense().initialize(1)), "one.first").freeze()
    module = module.train(3)
    made = tree.select(module, "two").set(Dense().initialize(2))
    assert made.one is module.one
    assert made.rng == module.rng
    assert tree.select(made, "frozen").paths == ("one.first.weight", "one.first.bias")
    evaluated: Any = tree.select(module.eval(), "two").apply(lora)
    assert evaluated.mode == "eval"
    assert evaluated.two.inner.mode == "eval"


def test_a_replaced_node_is_checked_against_its_annotation() -> None:
    module: Any = MLP().initialize(0)
    with pytest.raises(TypeError, match=r"Dense.weight"):
        tree.select(module, "first.weight").set(3)
    with pytest.raises(TypeError, match=r"MLP.first"):
        tree.select(module, "first").set(torch.ones(2))
    assert type(tree.select(module, "").set(Dense())) is Dense


def test_things_inside_one_another_cannot_be_set_together() -> None:
    module = MLP().initialize(0)
    with pytest.raises(ValueError, match=r"first.weight lies inside first"):
        tree.select(module, "first", "first.weight").apply(lambda x: x)
    with pytest.raises(ValueError, match="first lies inside the root"):
        tree.select(module, Module).apply(lambda x: x)


def test_a_wrong_number_of_values_says_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"got 3 values for 2 selected things: first.bias, second"):
        tree.select(MLP().initialize(0), "**.bias").set([1, 2, 3])


def test_containers_and_registered_nodes_are_rebuilt_around_a_change() -> None:
    nested = Nested().initialize(0)
    made = tree.select(nested, "blocks.1.z.0", "weights.0.0").apply(
        lambda x: tree.map(torch.neg, x)
    )
    assert torch.equal(made.blocks[1]["z"][0].weight, -nested.blocks[1]["z"][0].weight)
    assert torch.equal(made.weights[0][0], -nested.weights[0][0])
    assert made.blocks[0]["a"] is nested.blocks[0]["a"]
    held: Any = tree.select(Holder().initialize(0), "pair.0").apply(lora)
    assert type(held.pair) is Foreign
    assert type(held.pair.left) is LoRA
    gated: Any = tree.select(Gated().initialize(0), "gates.inner").apply(lora)
    assert type(gated.gates).__name__ == "Gates"
    assert type(gated.gates.inner) is LoRA
    grown = tree.select(Many(2).initialize(0), "layers").apply(lambda layers: layers + layers[:1])
    assert len(grown.layers) == 3


# -- what is remembered ---------------------------------------------------------------------------


def test_holes_are_those_of_the_tree_though_its_structure_was_selected_from_before() -> None:
    module = MLP().initialize(0)
    assert tree.select(module, "**.bias").count() == 2
    part, rest = tree.partition(module, "first.bias")
    assert tree.select(part, "**.bias").paths == ("first.bias",)
    assert tree.select(rest, "parameter").paths == ("first.weight", "second.weight", "second.bias")


def test_what_stands_in_leaves_places_is_a_leaf_whatever_it_is() -> None:
    module = MLP().initialize(0)
    of_modules: Any = tree.map(lambda leaf: Dense(), module)
    paths = tuple(tree.named_leaves(module))
    assert tree.select(of_modules, "**").paths == paths
    assert tree.select(module, "**").paths == paths
    assert type(tree.select(of_modules, "first.bias").get()) is Dense


def test_a_lambda_gets_lists_that_no_other_call_sees() -> None:
    subject = {"nets": [MLP().initialize(0), MLP().initialize(1)]}
    for _ in range(2):
        assert tree.select(subject, lambda t: t["nets"].pop().first).paths == ("nets.1.first",)


def test_what_is_remembered_keeps_no_leaf_alive() -> None:
    module: Any = MLP().initialize(0)
    for what in ("**.weight", "trainable", lambda m: m.first, Dense, "first"):
        tree.select(module, what).freeze()
    last = weakref.ref(module.first.weight)
    del module
    assert last() is None


def test_a_protocol_is_asked_about_each_module() -> None:
    @runtime_checkable
    class Weighted(Protocol):
        weight: Any

    module = Sequential(Dense(), MLP()).initialize(0)
    assert tree.select(module, Weighted).paths == ("layers.0", "layers.1.first", "layers.1.second")


@pytest.mark.parametrize("path", ["net", "nets.0.", "nets.0..first", ".nets.0", "nets.0.rate"])
def test_a_path_that_is_only_nearly_one_means_nothing(path: str) -> None:
    with pytest.raises(LookupError, match=f"nothing in dict is at '{path}'"):
        tree.select({"nets": [MLP().initialize(0)]}, path)


# -- text -----------------------------------------------------------------------------------------


def test_a_selection_prints_what_it_matched() -> None:
    selection = tree.select(Sequential(Dense(), Scale(torch.ones(2))), "**.weight", Scale)
    assert repr(selection) == (
        "Selection of 2 in Sequential:\n"
        "  layers.0.weight  parameter float32[4, 4], uninitialized\n"
        "  layers.1  Scale"
    )
    many = repr(tree.select(Many(50).initialize(0), "**.weight"))
    assert len(many.split("\n")) == 21
    assert many.endswith("  ... 31 more")
    assert "bias  a hole" in repr(tree.select(Dense(bias=False), "bias"))
    assert "(the root)  Twig" in repr(tree.select(Twig(), Twig))


@pytest.mark.parametrize("case", TIED, ids=str)
def test_selecting_writes_to_nothing(case: Case) -> None:
    module = case.make()
    before = tree.leaves(module)
    tree.select(module, "**").apply(torch.neg)
    tree.select(module, "**").freeze()
    assert all(a is b for a, b in zip(before, tree.leaves(module), strict=True))
    assert tree.leaves(tree.partition(module, "frozen")[0]) == []


class TwoRows(Module):
    one: tuple[Parameter | None, ...]
    two: tuple[Parameter | None, ...]


def test_one_tuple_in_two_fields_is_told_apart() -> None:
    row: Any = (None, torch.ones(1), None)
    module = TwoRows(row, row)
    assert module.one is module.two
    assert tree.select(module, lambda m: m.two).paths == ("two",)
    assert tree.select(module, lambda m: [m.two, m.one]).paths == ("two", "one")
    assert tree.select(module, lambda m: m.two[2]).paths == ("two.2",)
