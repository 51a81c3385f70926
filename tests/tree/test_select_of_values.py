"""select: functions that look at values, and containers of plain trees."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from parallax import nn, tree

# -- functions that look at values ----------------------------------------------------------------


def biases(module: Any) -> list[Any]:
    return [m.bias for m in module.modules() if isinstance(m, nn.Linear) and m.bias is not None]


def wide(module: Any) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, nn.Linear) and m.weight.shape[0] > 2]


def large(module: Any) -> list[Any]:
    return [leaf for leaf in tree.leaves(module) if bool((leaf > 5).any())]


def holed() -> Any:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3, bias=False), nn.Linear(3, 2)).initialize(0)
    return tree.select(net, "layers.2.weight").apply(lambda w: w + 10)


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        (biases, ("layers.0.bias", "layers.2.bias")),
        (wide, ("layers.1",)),
        (large, ("layers.2.weight",)),
        (lambda m: m.layers[1].bias, ("layers.1.bias",)),  # a hole
        (lambda m: [m.layers[0].bias, m.layers[1].bias], ("layers.0.bias", "layers.1.bias")),
        (lambda m: m.layers, ("layers",)),
        (lambda m: m, ("",)),
    ],
    ids=["holes", "shapes", "values", "a hole", "a hole among leaves", "a container", "the root"],
)
def test_a_function_gets_the_tree_itself(where: Any, paths: tuple[str, ...]) -> None:
    assert tree.select(holed(), where).paths == paths
    assert tree.select({"net": [holed()]}, lambda t: where(t["net"][0])).paths == tuple(
        f"net.0.{path}".removesuffix(".") for path in paths
    )


def test_a_hole_that_a_function_finds_by_values_must_be_named() -> None:
    def where(module: Any) -> Any:
        return next(m.bias for m in module.modules() if getattr(m, "bias", 0) is None)

    assert tree.select(holed(), where).paths == ("layers.1.bias",)  # the only one
    two = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).initialize(0)
    with pytest.raises(LookupError, match=r"which hole of Sequential .* by its path"):
        tree.select(two, where)


def test_equal_leaves_of_plain_trees_are_told_apart() -> None:
    shared = torch.ones(2)
    subject = {"a": shared, "b": shared, "c": 1, "d": 1}
    assert tree.select(subject, lambda t: t["b"]).paths == ("b",)
    assert tree.select(subject, lambda t: (t["d"], t["a"])).paths == ("d", "a")


def test_a_function_that_looks_for_holes_does_in_compiled_code() -> None:
    def halved(module: Any) -> Any:
        return tree.select(module, biases).apply(lambda b: b / 2)

    net = holed()
    assert tree.equal(torch.compile(halved, backend="eager", fullgraph=True)(net), halved(net))


# -- containers of plain trees --------------------------------------------------------------------


class Point(NamedTuple):
    x: Any
    y: Any


def plain() -> Any:
    return {
        "encoder": [torch.tensor(1.0), {"w": torch.tensor(2.0)}],
        "decoder": (torch.tensor(3.0),),
        "point": Point(torch.tensor(4.0), holed()),
        "none": [],
    }


@pytest.mark.parametrize(
    ("what", "paths"),
    [
        ("encoder", ("encoder",)),
        ("encoder.1", ("encoder.1",)),
        ("none", ("none",)),
        ("*", ("encoder", "decoder", "point", "none")),
        ("encoder.*", ("encoder.0", "encoder.1")),
        (lambda t: t["encoder"], ("encoder",)),
        (lambda t: t["decoder"], ("decoder",)),
        (lambda t: t["point"], ("point",)),
        (lambda t: [t["decoder"], t["point"].x], ("decoder", "point.0")),
        (lambda t: t["point"].y.layers, ("point.1.layers",)),
        (Point, ("point",)),
        (list, ("encoder", "none")),
    ],
)
def test_containers_of_plain_trees_are_nodes(what: Any, paths: tuple[str, ...]) -> None:
    selection = tree.select(plain(), what)
    assert sorted(selection.paths) == sorted(paths)
    assert repr(selection).startswith(f"Selection of {len(paths)}")


def test_a_container_is_read_replaced_and_changed_as_a_whole() -> None:
    subject = plain()
    assert tree.select(subject, "encoder").get() is subject["encoder"]
    made = tree.select(subject, "encoder").set([torch.tensor(9.0)])
    assert [leaf.item() for leaf in made["encoder"]] == [9.0]
    assert made["point"].y is subject["point"].y and len(subject["encoder"]) == 2
    made = tree.select(subject, "point", "decoder").apply(lambda node: node[0])
    assert made["point"].item() == 4.0 and made["decoder"].item() == 3.0
    assert tree.select(subject, lambda t: t).set(3) == 3
    made = tree.select(subject, "encoder", "point.1.layers.0.bias").set(["e", torch.zeros(2)])
    assert made["encoder"] == "e" and not made["point"].y.layers[0].bias.any()
    with pytest.raises(ValueError, match=r"encoder\.0 lies inside encoder"):
        tree.select(subject, "encoder", "encoder.0").apply(lambda node: node)
    with pytest.raises(LookupError, match="Near misses: encoder"):
        tree.select(subject, "encodr")


def test_a_container_is_a_part() -> None:
    chosen, rest = tree.partition(plain(), "encoder")
    assert len(tree.leaves(chosen)) == 2
    assert tree.equal(tree.combine(chosen, rest), plain())
    chosen, _ = tree.partition(plain(), lambda t: t["point"])
    assert len(tree.leaves(chosen)) == 1 + len(tree.leaves(holed()))
    nets = {"nets": [holed(), holed()], "x": torch.ones(2)}
    frozen = tree.select(nets, "nets").freeze()
    assert tree.select(frozen, "frozen").count() == 2 * 5
