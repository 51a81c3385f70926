"""``replace``: other fields, checked and converted as at construction."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch

from parallax import Buffer, Module, Parameter, tree
from parallax.core import sealing
from tests.corpus import MLP, SIZE, Dense, Norm, TiedParameter


def test_replace_changes_fields_and_nothing_else() -> None:
    module = Norm().initialize(0).eval()
    other = module.replace(eps=0.5, weight=torch.zeros(SIZE))
    assert (other.eps, other.mode) == (0.5, "eval")
    assert torch.equal(other.weight, torch.zeros(SIZE))
    assert other.running_mean is module.running_mean
    assert module.eps == 1e-5 and torch.equal(module.weight, torch.ones(SIZE))


def test_the_protocol_of_copy_replace() -> None:
    module: Any = Norm().initialize(0)
    assert module.__replace__(eps=0.5).eps == 0.5
    if sys.version_info >= (3, 13):
        assert copy.replace(module, eps=0.5).eps == 0.5
    with pytest.raises(AttributeError, match=r"no field 'epx'. Did you mean 'eps'"):
        module.__replace__(epx=0.5)


def test_replace_checks_as_construction_does() -> None:
    module = MLP().initialize(0)
    with pytest.raises(AttributeError, match=r"MLP declares no field 'third'.*'third: Dense'"):
        module.replace(third=Dense())
    with pytest.raises(TypeError, match=r"MLP\.first"):
        module.replace(first=torch.ones(1))
    with pytest.raises(TypeError, match=r"Dense\.weight.*None"):
        module.first.replace(weight=None)


def test_replace_runs_converters_on_new_values_only() -> None:
    from parallax import field

    seen: list[Any] = []

    def convert(value: Any) -> Any:
        seen.append(value)
        return value + 1

    class Counts(Module):
        a: int = field(converter=convert)
        b: int = field(converter=convert)

    module = Counts(1, 10)
    assert (module.a, module.b, seen) == (2, 11, [1, 10])
    other = module.replace(a=5)
    assert (other.a, other.b) == (6, 11)
    assert seen == [1, 10, 5]


def test_replace_makes_and_breaks_ties() -> None:
    tied = TiedParameter().initialize(0)
    assert len(tree.leaves(tied)) == 3
    apart = tied.replace(decoder=tied.decoder.replace(weight=torch.ones(SIZE, SIZE)))
    assert len(tree.leaves(apart)) == 4
    again = apart.replace(decoder=apart.decoder.replace(weight=apart.encoder.weight))
    assert tree.structure(again) == tree.structure(tied)


def test_replace_keeps_the_rng() -> None:
    module = Dense().initialize(0).train(3)
    assert module.replace(bias=None).rng == module.rng


def test_a_tree_with_holes_takes_replacements() -> None:
    """Gradients have holes where nothing is trained; one field of them can still be exchanged."""

    class Norm(Module):
        weight: Parameter
        mean: Buffer

    norm = Norm(torch.ones(2), torch.zeros(2)).reset(0)
    torch.autograd.backward(norm.weight.sum() + norm.mean.sum())
    grads = norm.grad()
    doubled = tree.named_leaves(grads.replace(weight=2 * grads.weight))
    assert list(doubled) == ["weight"]
    assert torch.equal(doubled["weight"], torch.full((2,), 2.0))


class Mixed(Module):
    """Leaves of both roles, a hole, a child and a constant."""

    weight: Parameter
    scale: Parameter | None
    mean: Buffer
    below: Module
    rate: float = 0.5


@pytest.mark.parametrize("scale", [None, torch.ones(1)])
def test_tensors_in_place_of_tensors_are_replaced_as_everything_is(
    scale: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way with less work gives what the general way gives: structure, leaves, rng, child."""
    module = Mixed(torch.ones(2), scale, torch.zeros(2), Dense().initialize(0)).train(0)
    frozen = tree.select(module, "weight").freeze()
    shared = torch.zeros(2)
    holes = tree.map(lambda leaf: leaf if leaf.ndim == 2 else None, module)
    for old in (module, module.eval(), frozen, holes):
        changes: tuple[dict[str, Any], ...] = (
            {"weight": shared},
            {"weight": shared, "mean": shared},  # a tie is made
            {"scale": shared},
            {"weight": shared, "scale": None},
            {"mean": torch.ones(2), "rate": 0.1},
            {"below": Dense().initialize(1)},
            {},
        )
        for fields in changes:
            found = old.replace(**fields)
            with monkeypatch.context() as patch:
                patch.setattr(sealing, "_exchanged", lambda *_: None)
                expected = old.replace(**fields)
            assert found._spec is expected._spec and found._rng is expected._rng
            mine, theirs = tree.leaves(found), tree.leaves(expected)
            assert [*map(id, mine)] == [*map(id, theirs)] and found.below is expected.below
