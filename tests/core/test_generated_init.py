"""The ``__init__`` that is made from the fields: its arguments, their order and their defaults.

In this folder annotations are objects; ``test_kinds`` has them as text.
"""

import inspect
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any, Optional

import pytest
import torch
from torch import Tensor

from parallax import Module, Parameter, field, tree
from tests.corpus import Dense, leaf


def test_fields_are_arguments_in_order_with_defaults_and_keywords() -> None:
    class Conv(Module):
        weight: Parameter
        stride: int = 1
        _: KW_ONLY
        padding: int
        name: str = field(default="conv", kw_only=True)
        hidden: int = field(default=7, init=False)

    signature = inspect.signature(Conv.__init__)
    kinds = {name: str(p.kind.description) for name, p in signature.parameters.items()}
    assert kinds == {
        "self": "positional or keyword",
        "weight": "positional or keyword",
        "stride": "positional or keyword",
        "padding": "keyword-only",
        "name": "keyword-only",
    }
    assert signature.parameters["stride"].default == 1
    module = Conv(leaf(), 2, padding=3)
    assert (module.stride, module.padding, module.name, module.hidden) == (2, 3, "conv", 7)


def test_a_class_can_be_kw_only_as_a_whole() -> None:
    class Pool(Module, kw_only=True):
        size: int
        stride: int = 1
        first: int = field(kw_only=False)

    assert Pool(9, size=3).first == 9
    with pytest.raises(TypeError, match="positional"):
        Pool(9, 3)  # type: ignore[call-arg]  # wrong on purpose


def test_a_field_without_default_after_one_with_names_both_and_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"Bad\.b has no default but follows a.*kw_only=True"):

        class Bad(Module):
            a: int = 1
            b: int  # type: ignore[misc]  # what is tested


def test_missing_and_surplus_arguments_are_pythons_own_errors() -> None:
    class Two(Module):
        a: int
        b: int

    with pytest.raises(TypeError, match=r"__init__.*missing 1 required positional argument: 'b'"):
        Two(1)  # type: ignore[call-arg]  # wrong on purpose
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'c'"):
        Two(1, 2, c=3)  # type: ignore[call-arg]  # likewise


def test_no_field_needs_no_argument() -> None:
    class Nothing(Module):
        pass

    assert tree.leaves(Nothing()) == []
    assert tree.structure(Nothing()) == tree.structure(Nothing())


def test_a_default_that_is_none_or_false_is_still_a_default() -> None:
    class Maybe(Module):
        weight: Optional[Parameter] = None  # noqa: UP045  # the spelling is what is tested
        flag: bool = False
        size: int = 0

    assert (Maybe().weight, Maybe().flag, Maybe().size) == (None, False, 0)


def test_a_function_default_stays_the_function() -> None:
    class Layer(Module):
        activation: Callable[[Tensor], Tensor] = torch.relu
        norm: Callable[[Tensor], Tensor] = lambda x: x / x.norm()  # a default
        inner: type = dict

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.activation(x))

    out = Layer()(torch.tensor([3.0, -1.0, 4.0]))
    torch.testing.assert_close(out, torch.tensor([0.6, 0.0, 0.8]))


def test_a_mutable_default_for_children_is_frozen_and_shared_by_nobody() -> None:
    class Stack(Module):
        layers: list[Dense] = field(default_factory=lambda: [Dense()])

    one: Any = Stack()
    other: Any = Stack()
    assert type(one.layers) is tuple
    assert one.layers[0] is not other.layers[0]


def test_a_module_default_is_tied_to_nothing() -> None:
    shared = Dense().initialize(0)

    class Uses(Module):
        first: Dense = shared
        second: Dense = field(default=shared)

    module = Uses()
    assert len(tree.leaves(module)) == 4
    assert module.first.weight is not module.second.weight
    assert torch.equal(module.first.weight, shared.weight)


def test_generated_inits_extend_base_first_and_an_override_keeps_its_place() -> None:
    class Base(Module):
        a: int
        b: int = 2

    class Child(Base):
        c: int = 3
        a: int = 1

    assert list(inspect.signature(Child).parameters) == ["a", "b", "c"]
    assert (Child().a, Child(9).a) == (1, 9)
