"""What bridge.lower makes takes the arguments of the tree's forward, by name."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, bridge, nn


class Columns(Module):
    """Takes arguments of every kind."""

    linear: nn.Linear

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, *rest: int, scale: float = 2.0, **more: Any
    ) -> Tensor:
        """What it computes."""
        return self.linear(ids) * scale * (1 if mask is None else mask) + sum(rest) + len(more)


class Plain(Module):
    linear: nn.Linear

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.linear(ids) * 2


def lowered(cls: Any) -> tuple[Any, Any]:
    module = cls(nn.Linear(3, 2)).initialize(0).eval()
    return module, bridge.lower(module)


X = torch.randn(4, 3)


def test_the_signature_is_that_of_forward() -> None:
    module, model = lowered(Columns)
    assert inspect.signature(model.forward) == inspect.signature(module.forward)
    assert inspect.getdoc(model.forward) == "What it computes."


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m(X),
        lambda m: m(ids=X),
        lambda m: m(X, torch.ones(2)),
        lambda m: m(X, None, 3, 4, scale=1.0),
        lambda m: m(mask=torch.zeros(2), ids=X, other=1),
    ],
)
def test_arguments_are_passed_on(call: Any) -> None:
    module, model = lowered(Columns)
    assert torch.equal(call(model), call(module))


def test_wrong_arguments_are_told_by_name() -> None:
    _, model = lowered(Plain)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'ids'"):
        model()
    with pytest.raises(TypeError, match="unexpected keyword argument 'bogus'"):
        model(X, bogus=1)


def test_dynamic_shapes_are_given_by_name() -> None:
    module, model = lowered(Plain)
    shapes = {"ids": {0: torch.export.Dim("batch", min=2)}}
    exported = torch.export.export(model, (X,), dynamic_shapes=shapes)
    x = torch.randn(9, 3)
    torch.testing.assert_close(exported.module()(x), module(x))


def test_fx_traces_it_with_arguments_and_layers_by_name() -> None:
    module, model = lowered(Plain)
    traced = torch.fx.symbolic_trace(model)
    nodes = [(node.op, node.target) for node in traced.graph.nodes]
    arguments = [("placeholder", "ids"), ("placeholder", "mask")]
    assert nodes[:3] == [*arguments, ("call_module", "linear")]
    torch.testing.assert_close(traced(X), module(X))


def test_copies_and_files_keep_it() -> None:
    module, model = lowered(Columns)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)),
              torch.load(file, weights_only=False)]  # fmt: skip
    for other in others:
        assert type(other) is type(model)
        assert torch.equal(other(X, scale=3.0), module(X, scale=3.0))


def test_a_forward_that_is_reassigned_gives_its_own() -> None:
    class Changed(Plain, init=False):
        pass

    cls: Any = Changed
    assert list(inspect.signature(lowered(cls)[1].forward).parameters) == ["ids", "mask"]
    cls.forward = lambda self, tokens: self.linear(tokens)
    assert list(inspect.signature(lowered(cls)[1].forward).parameters) == ["tokens"]
