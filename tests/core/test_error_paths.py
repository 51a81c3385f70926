"""What holds a module is found among the variables of the callers."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

from parallax import tree
from parallax.core.error_paths import held_as
from tests.corpus import MLP, Dense


def write(layer: Any) -> None:
    layer.weight = torch.ones(3)


def test_an_error_names_the_model_and_the_path() -> None:
    network: Any = MLP().initialize(0)
    line = r"network = tree\.select\(network, 'first\.weight'\)\.set\(\.\.\.\)"
    with pytest.raises(FrozenInstanceError, match=line):
        network.first.weight = torch.ones(3)
    with pytest.raises(FrozenInstanceError, match=line):
        write(network.first)
    with pytest.raises(FrozenInstanceError, match=rf"cannot delete Dense\.weight.*{line}"):
        del network.first.weight
    value = torch.zeros_like(network.first.weight)
    assert tree.select(network, "first.weight").set(value).first.weight is value


def test_a_module_that_nothing_holds() -> None:
    alone: Any = Dense().initialize(0)
    assert held_as(alone) is None
    with pytest.raises(FrozenInstanceError) as error:
        alone.weight = torch.ones(3)
    assert str(error.value).endswith("module = module.replace(weight=...)")
