"""Selections: counted, refined, with new items beside them; and names of state dicts as paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from parallax import Module, Parameter, bridge, func, nn, tree
from tests.corpus import MLP, Branches, Dense, Many, Nested, TiedModule, TiedParameter


def net() -> Any:
    block = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    other = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    return nn.Sequential(block, nn.Linear(3, 3), other).initialize(0)


# -- count ----------------------------------------------------------------------------------------


def test_a_count_is_checked() -> None:
    selection = tree.select(net(), "**.bias")
    assert selection.count() == 4 and selection.count(4) is selection
    with pytest.raises(ValueError, match=r"count\(3\): 4 are selected: layers.0.layers.0.bias, "):
        selection.count(3)
    with pytest.raises(ValueError, match=r"layers.7.weight, and 42 more"):
        tree.select(Many(50).initialize(0), "layers.*.weight").count(1)
    wrong: Any
    for wrong in ("2", True, 2.0):
        with pytest.raises(TypeError, match=r"count\(n=\): expected an int"):
            selection.count(wrong)


# -- refine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "then", "paths"),
    [
        (nn.Linear, "bias", ("layers.0.layers.0.bias", "layers.1.bias", "layers.2.layers.0.bias")),
        ("layers.?", "layers.0.bias", ("layers.0.layers.0.bias", "layers.2.layers.0.bias")),
        ("layers.2", "**.bias", ("layers.2.layers.0.bias",)),
        ("layers.2", "", ("layers.2",)),
        ("", "layers.1.weight", ("layers.1.weight",)),
        ("layers.0", nn.Linear, ("layers.0.layers.0",)),
        ("**.weight", nn.LayerNorm, None),
        ("**.weight", lambda path, leaf: leaf.ndim == 1, ("layers.0.layers.1.weight",)),
        ("layers.1", lambda path, leaf: path.startswith("layers.1"),
         ("layers.1.weight", "layers.1.bias")),
        ("layers.?", lambda node: node.weight if isinstance(node, nn.Linear) else [],
         ("layers.1.weight",)),
        (nn.Linear, lambda linear: [linear.bias, linear],
         ("layers.0.layers.0.bias", "layers.0.layers.0", "layers.1.bias", "layers.1",
          "layers.2.layers.0.bias", "layers.2.layers.0")),
        ("**.weight", lambda leaf: leaf, ("layers.0.layers.0.weight", "layers.0.layers.1.weight",
                                          "layers.1.weight", "layers.2.layers.0.weight")),
        ("layers.1", "trainable", ("layers.1.weight", "layers.1.bias")),
        ("layers.1", Tensor, ("layers.1.weight", "layers.1.bias")),
        ("layers.1", "wieght", None),
        ("layers.1.weight", "weight", None),
    ],
)  # fmt: skip
def test_refining_selects_within(first: Any, then: Any, paths: tuple[str, ...] | None) -> None:
    model = net()
    selection = tree.select(model, first)
    if paths is None:
        with pytest.raises(LookupError, match=r"refine: nothing matches .* within layers"):
            selection.refine(then)
        return
    assert selection.refine(then).paths == paths


def test_refining_in_trees_around_modules() -> None:
    held = {"a": net(), "b": torch.ones(2)}
    assert tree.select(held, "a").refine("layers.1.bias").paths == ("a.layers.1.bias",)
    assert tree.select(held, "a.layers.*").refine("bias").paths == ("a.layers.1.bias",)
    assert tree.select(held, "b").refine(Tensor).paths == ("b",)


def test_a_mask_holds_for_the_whole_tree() -> None:
    model = net()
    mask = tree.map(lambda leaf: leaf.ndim == 1, model)
    assert tree.select(model, "layers.1").refine(mask).paths == ("layers.1.bias",)


def test_several_conditions_and_several_times() -> None:
    model = net()
    chosen = tree.select(model, nn.Sequential).refine("layers.0.bias", "layers.1.weight")
    assert chosen.paths == ("layers.0.layers.0.bias", "layers.2.layers.0.bias",
                            "layers.1.weight", "layers.0.layers.1.weight")  # fmt: skip
    again = chosen.refine(lambda path, leaf: leaf.ndim == 2)
    assert again.paths == ("layers.1.weight",)
    assert torch.equal(again.apply(torch.neg)[1].weight, -model[1].weight)


def test_one_is_named_where_each_step_names_one() -> None:
    model = net()
    assert tree.select(model, "layers.0").refine("layers.1.weight").get() is model[0][1].weight
    assert tree.select(model, "layers.0").refine("layers.1.*").get()[0] is model[0][1].weight
    assert tree.select(model, nn.LayerNorm).refine("weight").get() == (model[0][1].weight,)


def test_ties_containers_and_odd_keys() -> None:
    tied = TiedParameter().initialize(0)
    assert tree.select(tied, "decoder").refine("parameter").get()[0] is tied.encoder.weight
    held = {"n*": [net(), {"x": torch.ones(2)}], "no": net()}
    assert tree.select(held, "n*").refine("*.x").paths == ("n*.1.x",)
    assert tree.select(held, lambda t: t["n*"]).refine("1").paths == ("n*.1",)
    assert tree.select(held, lambda t: t["n*"]).refine(lambda items: items[1]["x"]).count() == 1
    nested = Nested().initialize(0)
    assert tree.select(nested, "maybe").refine("not").paths == ("maybe.not",)


def test_refining_in_compiled_code() -> None:
    def halved(model: Any) -> Any:
        return tree.select(model, nn.Linear).refine("bias").count(3).apply(lambda b: b / 2)

    made = torch.compile(halved, backend="eager", fullgraph=True)(net())
    assert tree.equal(made, halved(net()))


def test_bad_refinements() -> None:
    selection = tree.select(net(), nn.Linear)
    with pytest.raises(TypeError, match="say what to select"):
        selection.refine()
    with pytest.raises(TypeError, match="cannot select by 3"):
        selection.refine(3)


class Bag(Module):
    """Parameters in a tuple, and a layer."""

    weights: tuple[Parameter, ...]
    layer: nn.Linear


bag_of: Any = Bag


class Twice(Module):
    """One module in two fields."""

    one: nn.Sequential
    other: nn.Sequential


# -- insert ---------------------------------------------------------------------------------------


def test_an_item_is_inserted_before_or_after() -> None:
    model, new = net(), nn.ReLU()
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    made = tree.select(model, "layers.1").insert_before(new)
    assert [type(layer) for layer in made.layers] == [
        nn.Sequential,
        nn.ReLU,
        nn.Linear,
        nn.Sequential,
    ]
    assert made.layers[2] is model.layers[1]
    assert torch.equal(made(x), model[2](model[1](model[0](x).relu())))
    made = tree.select(model, "layers.2.layers.1").insert_after(new, nn.Sigmoid())
    assert torch.equal(made(x), model(x).relu().sigmoid())
    grads = func.grad(lambda m: m(x).sum())(made)
    assert tree.structure(grads) == tree.structure(made)


def test_beside_each_of_several_a_copy() -> None:
    model = net()
    made = tree.select(model, nn.Linear).insert_after(nn.LayerNorm(3).initialize(0))
    added = [made[0][1], made[2], made[3][1]]
    assert [type(layer) for layer in added] == [nn.LayerNorm] * 3
    assert len({id(layer.weight) for layer in added}) == 3
    assert len(tree.leaves(made)) == len(tree.leaves(model)) + 6


def test_an_item_within_an_item_and_a_module_in_two_fields() -> None:
    made = tree.select(net(), "layers.0", "layers.0.layers.1").insert_after(nn.ReLU())
    names = [[type(one).__name__ for one in held] for held in (made.layers, made[0].layers)]
    assert names == [
        ["Sequential", "ReLU", "Linear", "Sequential"], ["Linear", "LayerNorm", "ReLU"]
    ]  # fmt: skip
    shared = nn.Sequential(nn.Linear(1, 1))
    twice = Twice(shared, shared).initialize(0)
    made = tree.select(twice, "other.layers.0").insert_before(nn.ReLU())
    assert len(made.one.layers) == len(made.other.layers) == 2
    assert len(tree.leaves(made)) == 2


def test_in_compiled_code() -> None:
    def longer(model: Any) -> Any:
        return tree.select(model, nn.Linear).insert_after(nn.Tanh())

    made = torch.compile(longer, backend="eager", fullgraph=True)(net())
    assert tree.equal(made, longer(net()))


def test_lists_of_plain_trees_named_tuples_of_parameters_and_notes() -> None:
    subject = {"layers": [torch.ones(1), torch.ones(2)]}
    made: Any = tree.select(subject, "layers.1").insert_before(torch.ones(3))
    assert [leaf.numel() for leaf in made["layers"]] == [1, 3, 2] and len(subject["layers"]) == 2
    models = [net(), net()]
    assert len(tree.select(models, "0").insert_after(net())) == 3
    bag: Any = bag_of((torch.ones(1), torch.ones(2)), nn.Linear(1, 1).initialize(0))
    frozen = tree.select(bag, "weights.1", "layer").freeze().eval()
    made = tree.select(frozen, "weights.0").insert_before(torch.ones(3))
    assert made.mode == "eval" and [w.numel() for w in made.weights] == [3, 1, 2]
    assert tree.select(made, "frozen").paths == ("weights.2", "layer.weight", "layer.bias")


@pytest.mark.parametrize(
    ("make", "path", "says"),
    [
        (net, "", "the root stands in no tuple or list. Select an item of one"),
        (
            net,
            "layers.1.weight",
            r"layers.1.weight stands in a Linear, whose fields are.*wrap it",
        ),
        (
            lambda: Branches("a", "b"),
            "branches.a",
            r"in a dict, .*'branches'\).apply\(la",
        ),
        (
            lambda: {"a": torch.ones(1)},
            "a",
            r"select\(model, ''\).apply\(lambda held: \{\*\*held",
        ),
    ],
)
def test_what_stands_in_no_tuple(make: Any, path: str, says: str) -> None:
    with pytest.raises(TypeError, match=f"insert_before: .*{says}"):
        tree.select(make(), path).insert_before(nn.ReLU())


def test_other_bad_insertions() -> None:
    with pytest.raises(TypeError, match=r"insert_after\(\*values\): say what to insert"):
        tree.select(net(), "layers.0").insert_after()
    bag: Any = bag_of((torch.ones(1), torch.ones(2)), nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"Bag.weights"):
        tree.select(bag, "weights.0").insert_after(nn.ReLU())


# -- names of state dicts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        net,
        lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True).initialize(0),
        lambda: nn.Sequential(nn.GRU(2, 2), nn.MultiheadAttention(4, 2)).initialize(0),
        lambda: MLP().initialize(0),
    ],
)
def test_the_names_of_a_state_dict_select_the_same_leaves(make: Any) -> None:
    model = make()
    for held, prefix in ((model, ""), ({"net": model}, "net.")):
        for name, value in bridge.state_dict(model).items():
            got = tree.select(held, prefix + name).get()
            assert got.data_ptr() == value.data_ptr() and got.shape == value.shape
    if make is net:
        assert tree.select(model, "0.1").paths == ("layers.0.layers.1",)
        assert tree.select(model, "0.1").get() is model[0][1]
        assert tree.select(model, "2").freeze()[2].layers[0] is not None
        assert tree.leaves(tree.partition(model, "0.0.weight")[0]) == [model[0][0].weight]


def test_a_path_goes_before_a_name() -> None:
    assert tree.select(net(), "layers.0").paths == ("layers.0",)
    assert tree.select(net(), "layers.*.layers.0").paths == (
        "layers.0.layers.0",
        "layers.2.layers.0",
    )


def test_a_glob_that_matches_no_path_is_for_names_of_the_state_dict() -> None:
    model = net()
    assert tree.select(model, "?.0.bias").paths == (
        "layers.0.layers.0.bias",
        "layers.2.layers.0.bias",
    )
    below = [f"layers.0.layers.{k}.{name}" for k in (0, 1) for name in ("weight", "bias")]
    assert tree.select(model, "0.**").paths == tuple(below)
    assert tree.select(model, "0.?").paths == ("layers.0.layers.0", "layers.0.layers.1")
    halved = tree.select({"net": model}, "net.0.*.weight").apply(lambda w: w / 2)
    assert torch.equal(halved["net"][0][1].weight, model[0][1].weight / 2)
    weights, _ = tree.partition(model, "*.0.weight")
    assert len([w for w in tree.leaves(weights) if w is not None]) == 2
    with pytest.raises(LookupError, match=r"at '0\.wieght'. Near misses: .*layers\.0\.weight"):
        tree.select(nn.Sequential(nn.Linear(1, 1)).initialize(0), "0.wieght")


def test_the_original_names_of_a_lifted_module_are_its_paths() -> None:
    lifted: Any = bridge.lift(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))
    assert tree.select(lifted, "0.weight").paths == ("0.weight",)


def test_names_in_compiled_code() -> None:
    def halved(model: Any) -> Any:
        return tree.select(model, "0.0.weight").apply(lambda w: w / 2)

    made = torch.compile(halved, backend="eager", fullgraph=True)(net())
    assert tree.equal(made, halved(net()))


def test_a_module_in_several_fields_is_refined_to_one() -> None:
    module = TiedModule().initialize(0)
    assert tree.select(module, Dense).refine("weight").count() == 3


class Affine(Module):
    """A layer that may have no bias, as a hole."""

    weight: Parameter
    bias: Parameter | None


class Pair(Module):
    one: Affine
    two: Affine


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_module_in_two_places_is_one_thing_with_holes_too(compiled: bool) -> None:
    def run(fn: Any, *args: Any) -> Any:
        call: Any = torch.compile(fn, backend="eager", fullgraph=True) if compiled else fn
        return call(*args)

    shared = Affine(torch.ones(2), None)
    pair, bias = Pair(shared, shared), cast("Any", torch.full((2,), 3.0))
    assert run(lambda p: tree.select(p, Affine).paths, pair) == ("one",)
    assert run(lambda p: tree.select(p, "*").paths, pair) == ("one",)
    changes: tuple[Callable[[Any, Any], Any], ...] = (
        lambda p, n: tree.select(p, "one").set(n),
        lambda p, n: tree.select(p, "two").apply(lambda _: n),
        lambda p, n: tree.select(p, "two.bias").set(n.bias),
        lambda p, n: tree.select(p, "one").refine("bias").set(n.bias),
    )
    for change in changes:
        made = run(change, pair, Affine(torch.zeros(2), bias))
        assert made.one.bias is made.two.bias and torch.equal(made.one.bias, bias)
        assert made.one.weight is made.two.weight
    stays = tree.select(pair, "two").eval().train(0)
    assert (stays.one.mode, stays.two.mode) == ("eval", "eval")
    others = Affine(torch.zeros(2), bias), Affine(shared.weight, bias), Affine(torch.ones(2), None)
    for other in others:
        assert run(lambda p: tree.select(p, Affine).paths, Pair(shared, other)) == ("one", "two")
