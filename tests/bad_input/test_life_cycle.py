"""Mistakes with a module: changed, uninitialised, unfinished, in a cycle."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import init

from parallax import Module, Parameter, UninitializedError, tree
from tests.bad_input.errors import says, unchanged, values
from tests.corpus import MLP, SIZE, Branches, Dense, Sequential

# -- changing --------------------------------------------------------------------------------------


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


# -- life cycle ------------------------------------------------------------------------------------


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
