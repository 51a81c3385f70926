"""Nothing can be set, deleted or written to, in a module or in what it was made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

from parallax import Buffer, Module, nn, tree
from tests.core.module.verbs import every_module, sum_of
from tests.corpus import MLP, Case, Dense, Scale
from tests.saving import pickled


@every_module
def test_nothing_can_be_set_or_deleted(case: Case) -> None:
    module = case.make()
    names = [name for name in vars(module) if not name.startswith("_")]
    before = list(map(id, tree.leaves(module)))
    for name in [*names, "new", "mode", "forward", "__class__"]:
        with pytest.raises(FrozenInstanceError, match=rf"{type(module).__name__}\.{name}"):
            setattr(module, name, None)
        with pytest.raises(FrozenInstanceError, match=rf"{type(module).__name__}\.{name}"):
            delattr(module, name)
    assert list(map(id, tree.leaves(module))) == before


@pytest.mark.parametrize("make", [
    lambda m: m, copy.copy, copy.deepcopy, pickled, lambda m: tree.map(torch.relu, m),
    lambda m: m.replace(), lambda m: m.reset(0), lambda m: m.eval(), lambda m: m.split(1)[0],
])  # fmt: skip
def test_what_verbs_return_is_immutable_too(make: Callable[[Any], Any]) -> None:
    module = make(MLP().initialize(0))
    with pytest.raises(FrozenInstanceError, match=r"MLP\.activation.*module\.replace\(activation"):
        module.activation = torch.relu
    with pytest.raises(FrozenInstanceError, match=r"Dense\.weight.*module\.replace\(weight"):
        module.first.weight = torch.ones(1)
    with pytest.raises(FrozenInstanceError, match=r"Dense\.weight"):
        del module.first.weight


def test_a_module_made_by_new_alone_cannot_be_used_as_a_tree() -> None:
    half = Dense.__new__(Dense)
    with pytest.raises(RuntimeError, match="still being constructed"):
        tree.leaves(half)


def test_given_containers_are_neither_kept_nor_written_to() -> None:
    class Holds(Module):
        layers: list[Dense]
        named: dict[str, list[Dense]]

    layers, named = [Dense()], {"a": [Dense()]}
    module = Holds(layers, named)
    layers.append(Dense())
    named["a"].append(Dense())
    named["b"] = []
    assert type(layers) is list and type(named) is dict and type(named["a"]) is list
    assert len(module.layers) == 1 and list(module.named) == ["a"] and len(module.named["a"]) == 1
    changes: list[Callable[[Any], Any]] = [
        lambda d: d.update(b=()),
        lambda d: d.pop("a"),
        lambda d: d.clear(),
        lambda d: d.setdefault("b", ()),
        lambda d: d.popitem(),
        lambda d: d.__ior__({}),
    ]
    for change in changes:
        with pytest.raises(TypeError, match="frozen"):
            change(module.named)


def test_a_given_tensor_is_the_leaf_itself_and_is_not_written_to() -> None:
    weight = torch.ones(2, requires_grad=True)
    module = Scale(weight)
    assert module.by is weight
    stepped = module.reset(0)
    sum_of(stepped, torch.ones(2)).backward()
    assert weight.grad is None and weight.requires_grad
    assert stepped.by is not weight and stepped.by.data_ptr() == weight.data_ptr()


class Indexed(Module):
    """Items that are its field, and one that is not."""

    layers: tuple[Module, ...]

    def __getitem__(self, key: str) -> Module:
        return self.layers[int(key)]


def test_an_item_cannot_be_set_or_deleted() -> None:
    net: Any = nn.Sequential(Indexed((MLP(), MLP())), MLP()).initialize(0)
    line = r"module = tree\.select\(module, 'layers\.1'\)\.set\(\.\.\.\)"
    with pytest.raises(FrozenInstanceError, match=rf"change Sequential\[1\].*{line}"):
        net[1] = MLP()
    with pytest.raises(FrozenInstanceError, match=line):
        del net[1]
    line = r"net = tree\.select\(net, 'layers\.0\.layers\.1'\)\.set"
    with pytest.raises(FrozenInstanceError, match=rf"change Indexed\['1'\].*{line}"):
        net[0]["1"] = MLP()
    for wrong, key in ((net, 9), (net[0], "9"), (net[1], 0)):
        with pytest.raises(FrozenInstanceError, match=r"'path'|'layers\.\d\.path'|'layers\.\d'"):
            wrong[key] = MLP()


class Count(Module):
    """A buffer that forward assigns, as a module of torch would."""

    seen: Buffer

    def forward(self) -> None:
        self.seen = self.seen + 1


def test_assigning_a_buffer_in_forward_says_to_emit_it() -> None:
    with pytest.raises(FrozenInstanceError, match=r"in forward: self\.emit\(seen=\.\.\.\)$"):
        Count(torch.zeros(()))()
    net: Any = MLP().initialize(0)
    with pytest.raises(FrozenInstanceError, match=r"first\.weight'\)\.set\(\.\.\.\)$"):
        net.first.weight = torch.zeros(())
