"""Several effects for one buffer become one by their rule; what does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Buffer, Module, effects, tree
from parallax.effects import EffectError
from tests.effects.models import (
    Stack,
    Twice,
    forward,
    net,
    norm,
)


def test_two_effects_without_a_rule_are_an_error_that_names_the_buffer(x: Tensor) -> None:
    with pytest.raises(EffectError, match=r"two effects for 'norm\.running_mean'.*merge='mean'"):
        effects.collect(forward)(Twice(norm()), x)


@pytest.mark.parametrize(
    ("merge", "one"),
    [("last", lambda a, b: b), ("mean", lambda a, b: (a + b) / 2), ("sum", lambda a, b: a + b)],
)
def test_split_copies_merge_by_their_rule(
    merge: str, one: Callable[[Tensor, Tensor], Tensor], x: Tensor
) -> None:
    _, after = effects.collect(forward)(Twice(norm(merge=merge)), x)
    first = torch.nn.BatchNorm1d(3)
    second = torch.nn.BatchNorm1d(3)
    second(first(x) * 3 + 1)
    assert first.running_mean is not None and second.running_mean is not None
    expected = one(first.running_mean, second.running_mean)
    torch.testing.assert_close(after.norm.running_mean, expected)
    assert after.norm.count == 1


def test_rules_must_agree(x: Tensor) -> None:
    class Emits(Module):
        value: Buffer

        def forward(self, x: Tensor) -> None:
            self.emit(value=x, merge="last")
            self.emit(value=x, merge="sum")

    with pytest.raises(EffectError, match=r"merge='last' and merge='sum'"):
        effects.collect(Emits.forward)(Emits(torch.tensor(0.0)), torch.tensor(1.0))


def test_the_mean_of_integers_is_refused() -> None:
    class Emits(Module):
        value: Buffer

        def forward(self) -> None:
            self.emit(value=self.value + 1, merge="mean")
            self.emit(value=self.value + 2, merge="mean")

    with pytest.raises(EffectError, match="mean"):
        effects.collect(Emits.forward)(Emits(torch.tensor(0)))


def test_a_tied_buffer_is_one_buffer(x: Tensor) -> None:
    shared = norm(merge="last")
    module = Stack((shared, shared))
    _, after = effects.collect(forward)(module, x)
    assert after.layers[0].running_mean is after.layers[1].running_mean
    assert len(tree.leaves(after)) == len(tree.leaves(module)) == 4
    unruled = norm()
    with pytest.raises(EffectError, match="two effects"):
        effects.collect(forward)(Stack((unruled, unruled)), x)


def test_an_effect_must_fit_the_module_that_is_collected(x: Tensor) -> None:
    def first_of(module: Any, x: Tensor) -> Tensor:
        return forward(tree.map(lambda leaf: leaf[0], module), x)

    stacked = tree.stack([net(), net()])
    with pytest.raises(ValueError, match=r"running_mean=\) at 'layers\.0'.*\(2, 3\).*\(3,\)"):
        effects.collect(first_of)(stacked, x)


def test_what_is_refused_leaves_the_module_as_it_was(x: Tensor) -> None:
    module = Twice(norm())
    before = [leaf.clone() for leaf in tree.leaves(module)]
    with pytest.raises(EffectError):
        effects.collect(forward)(module, x)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(module), before, strict=True))
    assert module._rng is None
