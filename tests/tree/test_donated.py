"""Arguments that were given away: all that an argument holds becomes unusable."""

from __future__ import annotations

import pytest
import torch

from parallax import nn
from parallax.tree.donated import DonatedError, mark_all
from tests.corpus.foreign import Foreign


def test_what_is_in_a_registered_class_and_in_containers_is_unusable() -> None:
    tensors = {name: torch.ones(2) for name in ("pair", "list", "dict")}
    module = nn.Linear(2, 2).initialize(0)
    given = (
        Foreign(tensors["pair"], module, "tag"),
        [tensors["list"]],
        {"a": tensors["dict"]},
        3,
        None,
    )
    mark_all(given, "a step")
    for tensor in tensors.values():
        with pytest.raises(DonatedError, match="given away"):
            _ = tensor + 1
    with pytest.raises(DonatedError, match="a step"):
        _ = module.weight
