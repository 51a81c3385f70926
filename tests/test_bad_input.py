"""Each mistake of the issue's list: an error that names class, field or path and the remedy.

And nothing is half-done: what was given, and what is registered, is as before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import nn
from torch.nn import init
from torch.utils import _pytree

from parallax import Buffer, Module, Parameter, UninitializedError, registry, tree
from tests.corpus import MLP, SIZE, Branches, Dense, Norm, Sequential, TiedModule, Twig

META: Any = type(Module)


def says(error: type[Exception], *parts: str) -> Any:
    """``pytest.raises`` of an error whose message has all these parts."""

    def check(caught: BaseException) -> bool:
        message = str(caught)
        missing = [part for part in parts if part not in message]
        assert not missing, f"{missing} not in: {message}"
        return True

    return pytest.raises(error, check=check)


def registered() -> tuple[int, int]:
    """How many classes optree's global registry and torch's know."""
    entries: Any = optree.register_pytree_node
    return len(entries.get(namespace="")), len(_pytree.SUPPORTED_NODES)


def values(module: Any) -> list[Any]:
    """The leaves' identities and numbers, to see later that nothing was written to."""
    return [(id(leaf), leaf.clone(), leaf._version) for leaf in tree.leaves(module)]


def unchanged(module: Any, before: list[Any]) -> bool:
    now = values(module)
    return all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(before, now, strict=True)
    )


# -- declaring ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.ones(1), "Parameter"),
        (Parameter((1,), init.ones_), "Parameter"),
        (Buffer((1,)), "Buffer"),
        (Dense(), "Dense"),
        (0.5, "float"),
        ("text", "str"),
    ],
)
def test_an_undeclared_attribute(value: Any, kind: str) -> None:
    class Layer(Module):
        weight: Parameter

        def __init__(self) -> None:
            super().__init__()
            self.extra = value

    with says(AttributeError, "Layer", "'extra'", "class body", f"'extra: {kind}'"):
        Layer()


def test_a_misspelled_attribute_names_the_one_that_is_near() -> None:
    class Layer(Module):
        weight: Parameter

        def __init__(self) -> None:
            super().__init__()
            self.wieght = Parameter((1,), init.ones_)

    with says(AttributeError, "Layer", "'wieght'", "weight"):
        Layer()
    with says(AttributeError, "Dense", "'wieght'", "weight"):
        Dense().replace(wieght=torch.ones(1))


def test_an_unset_field() -> None:
    class Layer(Module):
        weight: Parameter
        bias: Parameter | None
        rate: float
        size: int = 3

        def __init__(self) -> None:
            super().__init__()
            self.rate = 0.5

    with says(TypeError, "Layer.weight", "Layer.__init__", "self.weight = ...; self.bias = ...",
              "field(default=...)") as caught:  # fmt: skip
        Layer()
    assert "self.rate" not in str(caught.value) and "self.size" not in str(caught.value)


def test_a_forgotten_super_init_is_no_mistake() -> None:
    class Layer(Module):
        size: int

        def __init__(self) -> None:
            self.size = 1

    assert Layer().size == 1


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (torch.ones(2), ["a tensor", "'rate: Parameter'", "'rate: Buffer'"]),
        (Parameter((2,), init.ones_), ["Parameter declaration", "'rate: Parameter'"]),
        (Buffer((2,)), ["Buffer declaration", "'rate: Buffer'"]),
        (Dense(), ["the module Dense", "'rate: Module'", "'rate: Dense'"]),
        (nn.Linear(2, 2), ["Linear", "torch.nn.Module", "'rate: Module'"]),
        ((Dense(),), ["the module Dense", "tuple[Module, ...]"]),
        ([1], ["hashable", "list", "'rate: tuple = field(converter=tuple)'"]),
        ({1}, ["hashable", "set", "'rate: frozenset = field(converter=frozenset)'"]),
        ({"a": 1}, ["hashable", "dict"]),
    ],
)
def test_what_cannot_be_a_constant(value: Any, parts: list[str]) -> None:
    class Layer(Module):
        rate: float

    with says(TypeError, "Layer.rate", *parts):
        Layer(value)
    with says(TypeError, "Layer.rate", *parts):
        Layer(0.5).replace(rate=value)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (3, ["Layer.weight", "Parameter", "int", "self.weight = Parameter(shape, init)"]),
        (None, ["Layer.weight", "None", "'weight: ... | None'"]),
        (Dense(), ["Layer.weight", "Parameter", "Dense"]),
        (nn.Linear(1, 1), ["Layer.weight", "Parameter", "Linear"]),
        ([torch.ones(1)], ["Layer.weight", "Parameter", "list"]),
        (Buffer((1,)), ["Layer.weight", "Buffer declaration", "'weight: Buffer'"]),
    ],
)
def test_what_cannot_be_a_parameter(value: Any, parts: list[str]) -> None:
    class Layer(Module):
        weight: Parameter

    with says(TypeError, *parts):
        Layer(value)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (torch.ones(1), ["Layer.child", "Tensor", "child"]),
        (torch.relu, ["Layer.child", "'child: Module |"]),
        (nn.ReLU(), ["Layer.child", "torch.nn.Module"]),
        (None, ["Layer.child", "None", "'child: ... | None'"]),
        ([Dense()], ["Layer.child", "list", "'child: tuple[Module, ...]'"]),
        ({"a": Dense()}, ["Layer.child", "dict", "'child: dict[str, Module]'"]),
    ],
)
def test_what_cannot_be_a_child(value: Any, parts: list[str]) -> None:
    class Layer(Module):
        child: Module

    with says(TypeError, *parts):
        Layer(value)


@pytest.mark.parametrize(
    ("annotation", "value", "parts"),
    [
        ("tuple[Dense, ...]", Dense(), ["Layer.x", "Dense"]),
        ("tuple[Dense, ...]", (Dense(), 3), ["Layer.x[1]", "int"]),
        ("tuple[Dense, ...]", (Dense(), None), ["Layer.x[1]", "None"]),
        ("tuple[Dense, int]", (Dense(),), ["Layer.x", "2 items", "got 1"]),
        ("dict[str, Dense]", {"a": 1}, ["Layer.x['a']", "int"]),
        ("dict[str, tuple[Parameter, ...]]", {"a": (1,)}, ["Layer.x['a'][0]", "Parameter", "int"]),
        ("dict[str, Dense]", [Dense()], ["Layer.x", "list"]),
        ("list[Dense]", (Dense() for _ in range(2)), ["Layer.x", "generator"]),
        ("tuple[Dense | int, ...]", (torch.ones(1),), ["Layer.x[0]", "tensor"]),
        ("tuple[Dense | int, ...]", (nn.Linear(1, 1),), ["Layer.x[0]", "Linear"]),
    ],
)
def test_what_cannot_be_in_a_container(annotation: str, value: Any, parts: list[str]) -> None:
    space: dict[str, Any] = {"__annotations__": {"x": annotation}, "__module__": __name__}
    cls: Any = META("Layer", (Module,), space)
    with says(TypeError, *parts):
        cls(value)


VERBS = [
    "initialize", "reset", "split", "grad", "update", "modules", "extra_repr", "train", "eval",
    "mode", "rng", "replace", "forward",
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_a_field_named_like_a_verb(verb: str) -> None:
    before = registered()
    with says(TypeError, f"Layer.{verb}", "verb", f"'{verb}_'"):
        META("Layer", (Module,), {"__annotations__": {verb: int}, "__module__": __name__})
    after = registered()
    assert after == before


def test_a_field_with_two_underscores() -> None:
    with says(TypeError, "Layer.__secret", "underscores"):
        META("Layer", (Module,), {"__annotations__": {"__secret": int}})


# -- changing -------------------------------------------------------------------------------------


def test_mutation_and_deletion() -> None:
    module: Any = MLP().initialize(0)
    before = values(module)
    with says(dataclasses.FrozenInstanceError, "MLP.first", "module.replace(first=...)"):
        module.first = Dense()
    with says(dataclasses.FrozenInstanceError, "Dense.weight", "module.replace(weight=...)"):
        module.first.weight = torch.ones(1)
    with says(dataclasses.FrozenInstanceError, "MLP.new", "immutable"):
        module.new = 1
    with says(dataclasses.FrozenInstanceError, "MLP.activation", "cannot delete"):
        del module.activation
    with pytest.raises(AttributeError):  # FrozenInstanceError is one, as dataclasses' is
        module.activation = torch.relu
    assert unchanged(module, before) and module.activation is torch.tanh


def test_in_place_changes_of_containers() -> None:
    module = Branches("a", "b").initialize(0)
    with says(TypeError, "frozen", "module.replace"):
        module.branches["c"] = Dense()
    with says(TypeError, "frozen"):
        del module.branches["a"]
    assert list(module.branches) == ["a", "b"]
    with pytest.raises(TypeError, match="does not support item assignment"):
        Sequential(Dense()).layers[0] = Dense()  # type: ignore[index]  # wrong on purpose


# -- trees that do not fit ------------------------------------------------------------------------


def wider() -> Any:
    module = MLP().initialize(1)
    return module.replace(first=module.first.replace(bias=torch.zeros(SIZE)))


class Other(Module):
    first: Dense


MISFITS: dict[str, tuple[Callable[[], Any], Callable[[], Any], list[str]]] = {
    "constant": (
        lambda: Norm().initialize(0),
        lambda: Norm(eps=0.5).initialize(0),
        ["Norm.eps", "1e-05", "0.5"],
    ),
    "constant below": (
        lambda: Sequential(Dense(), Norm(eps=0.1)).initialize(0),
        lambda: Sequential(Dense(), Norm(eps=0.2)).initialize(0),
        ["Sequential.layers.1.eps", "0.1", "0.2"],
    ),
    "function": (
        lambda: MLP(torch.tanh).initialize(0),
        lambda: MLP(torch.relu).initialize(0),
        ["MLP.activation", "tanh", "relu"],
    ),
    "class": (
        lambda: Sequential(Dense()).initialize(0),
        lambda: Sequential(Norm()).initialize(0),
        ["Sequential.layers.0", "Dense", "Norm"],
    ),
    "length": (
        lambda: Sequential(Dense()).initialize(0),
        lambda: Sequential(Dense(), Dense()).initialize(0),
        ["Sequential.layers"],
    ),
    "keys": (
        lambda: Branches("a", "b").initialize(0),
        lambda: Branches("a", "c").initialize(0),
        ["Branches.branches", "'b'", "'c'"],
    ),
    "order of keys": (
        lambda: Branches("a", "b").initialize(0),
        lambda: Branches("b", "a").initialize(0),
        ["Branches.branches"],
    ),
    "module for none": (
        lambda: Twig(Twig()).initialize(0),
        lambda: Twig().initialize(0),
        ["Twig.left", "Twig"],
    ),
    "whole": (
        lambda: MLP().initialize(0),
        lambda: Other(Dense()).initialize(0),
        ["MLP", "Other"],
    ),
    "no module": (lambda: MLP().initialize(0), lambda: {"first": 1}, ["MLP", "dict"]),
    "none": (lambda: MLP().initialize(0), lambda: None, ["MLP", "None"]),
}


@pytest.mark.parametrize("name", MISFITS)
def test_trees_that_do_not_fit_name_the_first_path_that_differs(name: str) -> None:
    one, other, parts = MISFITS[name][0](), MISFITS[name][1](), MISFITS[name][2]
    before, calls = values(one), []

    def call(a: Any, b: Any) -> Any:
        calls.append(a)
        return a + b

    combines: list[Callable[[], Any]] = [
        lambda: tree.map(call, one, other),
        lambda: one.update(call, other),
        lambda: tree.update(call, one, other),
        lambda: tree.map(lambda a, b, c: call(a, b), one, one, other),
    ]
    for combine in combines:
        with says(ValueError, "do not fit", *parts):
            combine()
    assert calls == [] and unchanged(one, before)


def test_a_misfit_inside_a_plain_container_is_found_too() -> None:
    one = {"model": MLP().initialize(0), "step": torch.ones(())}
    other = {"model": MLP(torch.relu).initialize(0), "step": torch.ones(())}
    with says(ValueError, "do not fit", "activation"):
        tree.map(torch.add, one, other)
    with says(ValueError, "do not fit"):
        tree.map(torch.add, one, {"model": one["model"]})


def test_two_values_for_one_tied_leaf_name_both_paths() -> None:
    tied: Any = TiedModule().initialize(0)
    loose = optree.tree_map(lambda leaf: leaf.clone(), tied)
    with says(ValueError, "one.weight", "other.weight", "tree.tie("):
        tied.update(torch.add, loose)


def test_combine_and_unstack_name_the_path_or_the_sizes() -> None:
    one, other = MLP().initialize(0), MLP(torch.relu).initialize(0)
    with says(ValueError, "MLP.activation"):
        tree.combine(one, other)
    with says(ValueError, "MLP.activation"):
        tree.stack([one, other])
    stacked = tree.stack([one, MLP().initialize(1)])
    uneven = stacked.replace(first=tree.map(lambda x: x[:1], stacked.first))
    with says(ValueError, "weight", "1", "2"):
        tree.unstack(uneven)


# -- life cycle -----------------------------------------------------------------------------------


def test_an_uninitialised_module_in_a_call() -> None:
    with says(UninitializedError, "Dense.weight", "module = module.initialize("):
        MLP()(torch.ones(SIZE))


def test_initialising_twice() -> None:
    module = MLP().initialize(0)
    before = values(module)
    with says(RuntimeError, "MLP is initialized already", "MLP(...).initialize(rng)"):
        module.initialize(1)
    assert unchanged(module, before)


def test_a_cycle() -> None:
    class Node(Module):
        child: Module | None
        others: tuple[Module, ...]

        def __init__(self, where: str) -> None:
            super().__init__()
            self.child = self if where == "child" else None
            self.others = (Dense(), self) if where == "others" else ()

    with says(ValueError, "Node.child", "Node", "cannot contain itself"):
        Node("child")
    with says(ValueError, "Node.others[1]", "Node", "cannot contain itself"):
        Node("others")


def test_a_cycle_through_a_child_that_is_given_its_parent() -> None:
    class Child(Module):
        parent: Module

    class Parent(Module):
        child: Child

        def __init__(self) -> None:
            super().__init__()
            self.child = Child(self)

    with says(ValueError, "Child.parent", "Parent", "still being constructed"):
        Parent()


def test_using_a_module_as_a_tree_before_it_is_finished() -> None:
    class Early(Module):
        weight: Parameter

        def __init__(self) -> None:
            super().__init__()
            self.weight = Parameter((1,), init.ones_)
            tree.leaves(self)

    with says(RuntimeError, "Early", "still being constructed"):
        Early()


@pytest.mark.parametrize("verb", ["update", "map"])
def test_an_error_of_the_users_function_comes_through_as_it_is(verb: str) -> None:
    module = MLP().initialize(0)
    before = values(module)

    def broken(leaf: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        module.update(broken) if verb == "update" else tree.map(broken, module)
    assert unchanged(module, before)


def test_a_constructor_that_fails_leaves_nothing_behind() -> None:
    class Fails(Module):
        weight: Parameter

        def __init__(self, fail: bool) -> None:
            super().__init__()
            self.weight = Parameter((1,), init.ones_)
            if fail:
                raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        Fails(True)
    assert torch.equal(Fails(False).initialize(0).weight, torch.ones(1))


# -- registering ----------------------------------------------------------------------------------


def test_registering_twice_or_nonsense_changes_nothing() -> None:
    class Thing:
        pass

    def flatten(thing: Any) -> Any:
        return (), None

    registry.register(Thing, flatten, lambda *_: Thing())
    with says(ValueError, "Thing", "registered already", "nothing was changed"):
        registry.register(Thing, flatten, lambda *_: Thing())
    with says(ValueError, "Dense", "registered already"):
        registry.register(Dense, flatten, lambda *_: Dense())
    with says(TypeError, "takes a class"):
        registry.register(Thing(), flatten, lambda *_: Thing())  # type: ignore[arg-type]  # wrong on purpose
