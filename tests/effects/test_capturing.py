"""Intermediates are captured by path, as part of the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, effects, nn
from tests.effects.models import (
    Twice,
    forward,
    net,
    norm,
)


def test_intermediates_are_captured_by_path_as_part_of_the_graph(x: Tensor) -> None:
    module = net().reset(0)
    (_, after), found = effects.capture(effects.collect(forward))(module, x)
    assert list(found) == ["layers.0.mean", "layers.1.layers.0.mean"]
    sown: Any = found["layers.1.layers.0.mean"]
    assert sown.requires_grad
    torch.testing.assert_close(found["layers.0.mean"], x.mean(0))
    assert after.layers[0].count == 1
    _, (found_again, _) = effects.collect(effects.capture(forward))(module, x)[::-1], (found, 0)
    assert list(found_again) == list(found)


def test_what_is_sown_several_times_is_a_tuple(x: Tensor) -> None:
    (_, _), found = effects.capture(effects.collect(forward))(Twice(norm(merge="last")), x)
    assert isinstance(found["norm.mean"], tuple) and len(found["norm.mean"]) == 2


def test_sow_does_nothing_unless_somebody_captures(x: Tensor) -> None:
    class Sows(Module):
        def forward(self, x: Any) -> Any:
            self.sow(x=x)
            return x

    assert Sows()("anything") == "anything"
    with pytest.raises(TypeError, match=r"Sows\.sow\(x=\).*'anything'"):
        effects.capture(Sows.forward)(Sows(), "anything")


def test_a_name_of_the_state_dict_is_a_path_where_there_is_no_such_path() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    net = nn.Sequential(inner, nn.Linear(2, 1)).initialize(0)
    x = torch.ones(1, 2)
    for what, paths in (
        ("0.1", ["layers.0.layers.1"]),
        ("?", ["layers.0", "layers.1"]),
        ("0.*", ["layers.0.layers.0", "layers.0.layers.1"]),
        ("layers.1", ["layers.1"]),
    ):
        out, found = effects.capture(nn.Sequential.forward, what)(net, x)
        assert sorted(found) == paths and torch.equal(out, net(x))
    ablated = effects.intervene(nn.Sequential.forward, {"0": torch.zeros_like})
    assert torch.equal(ablated(net, x), net[1](torch.zeros(1, 2)))
    with pytest.raises(LookupError, match=r"no module of Sequential is at '2'\. "):
        effects.capture(nn.Sequential.forward, "2")(net, x)
