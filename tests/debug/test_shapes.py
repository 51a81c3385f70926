"""Annotations of jaxtyping: on fields they declare the kind, and ``debug.shapes`` checks them."""

# pyright: reportMissingImports=false
from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import debug, func, tree
from parallax.debug import ShapeError
from tests.compiling import make_compiled

pytest.importorskip("jaxtyping")

# Its annotations are for those who have it, so that checkers see them as text here.
HEAD = """
from jaxtyping import Float, Int
from torch import Tensor
from parallax import Buffer, Module, Parameter
"""
MODELS = """
class Dense(Module):
    weight: Float[Parameter, "out in"]
    bias: Float[Parameter, "out"] | None = None

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias

class Net(Module):
    layers: tuple[Dense, ...]

    def forward(self, x: Float[Tensor, "b d"], *more: Float[Tensor, "b d"],
                **named: Float[Tensor, "b"]) -> Float[Tensor, "b e"]:
        for layer in self.layers:
            x = layer(x)
        return x

class Wrong(Module):
    def forward(self, x: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b"], dict[str, Int[Tensor, "d"]]]:
        return x.sum(1), {"size": x.sum(0)}

class Absent(Module):
    def forward(self, x: Float[Tensor, "b d"], y: Float[Tensor, "d"] = None) -> Float[Tensor, "b"]:
        return None

class Perhaps(Module):
    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b"] | None:
        return None

class Maybe(Module):
    def forward(self, x: Float[Tensor, "b d"] | Int[Tensor, "b"] | None, y: "int" = 3) -> "Tensor":
        return torch.ones(2)
"""  # noqa: E501  # one annotation


@pytest.fixture(params=["objects", "text"])
def models(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The models, with annotations that are evaluated at once, or later."""
    module = types.ModuleType("shaped_models")
    monkeypatch.setitem(sys.modules, "shaped_models", module)
    vars(module)["torch"] = torch
    future = "from __future__ import annotations\n" if request.param == "text" else ""
    exec(compile(future + HEAD + MODELS, "shaped_models", "exec", dont_inherit=True), vars(module))
    return module


def net(models: Any, inner: int = 3) -> Any:
    first = models.Dense(torch.ones(3, 2), torch.ones(3))
    return models.Net((first, models.Dense(torch.ones(4, inner))))


X = torch.ones(5, 2)


def call(model: Any, *args: Any, **kwargs: Any) -> Any:
    return model(*args, **kwargs)


def test_a_field_is_of_the_kind_inside(models: Any) -> None:
    model = net(models)
    assert list(tree.named_leaves(model)) == ["layers.0.weight", "layers.0.bias", "layers.1.weight"]
    grads = func.grad(lambda model: model(X).sum())(model)
    assert grads.layers[0].weight.shape == (3, 2)


def test_what_fits_is_left_alone(models: Any) -> None:
    model = net(models)
    assert torch.equal(debug.shapes(call)(model, X), model(X))
    assert debug.shapes(model)(X, X, size=X[:, 0]).shape == (5, 4)
    assert debug.shapes(func.vmap(model))(X[None]).shape == (1, 5, 4)
    assert debug.shapes(call)(models.Perhaps(), X) is None
    assert debug.shapes(models.Maybe.forward)(models.Maybe(), None).shape == (2,)
    assert debug.shapes(call)(models.Maybe(), torch.ones(4, dtype=torch.int64), y=2).shape == (2,)


MISFIT = (
    r"^layers.1 \(Dense\): x is float32\[5, 3\], and Float\[Tensor, '\*batch in'\] is its anno"
    r"tation. Before it in this call: weight float32\[4, 5\] \(Float\[Parameter, 'out in'\]\)"
)
WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a layer": (
        lambda models: debug.shapes(call)(net(models, inner=5), X), MISFIT
    ),
    "a method": (lambda models: debug.shapes(net(models, inner=5).forward)(X), r"^layers.1 "),
    "a field": (
        lambda models: debug.shapes(call)(models.Dense(torch.ones(3, 2), torch.ones(4)), X),
        r"^Dense: bias is float32\[4\]",
    ),
    "a dtype": (lambda models: debug.shapes(call)(net(models), X.int()), r"^Net: x is int32\[5, 2"),
    "one of several": (
        lambda models: debug.shapes(call)(net(models), X, torch.ones(5, 3)), r"^Net: more is"
    ),
    "a name": (
        lambda models: debug.shapes(call)(net(models), X, s=torch.ones(4)), r"^Net: named is"
    ),
    "a result": (lambda models: debug.shapes(call)(models.Wrong(), X), r"^Wrong: the result is \("),
    "a sample": (
        lambda models: debug.shapes(lambda m, x: func.vmap(m)(x))(net(models), X),
        r"^Net: x is float32\[2\]",
    ),
    "no member of a union": (lambda models: debug.shapes(call)(models.Maybe(), X[0]), r"^Maybe: x"),
    "nothing": (
        lambda models: debug.shapes(call)(models.Absent(), X, X[0]),
        r"^Absent: the result is None, and Float\[Tensor, 'b'\] is its annotation",
    ),
    "a default": (lambda models: debug.shapes(call)(models.Absent(), X), r"^Absent: y is None"),
    "no tensor": (lambda models: debug.shapes(call)(models.Wrong(), 3), r"^Wrong: x is a int"),
    "in a gradient": (
        lambda models: debug.shapes(func.grad(lambda m: m(X).sum()))(net(models, inner=5)),
        r"^layers.1 \(Dense\): x is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(name: str, models: Any) -> None:
    wrong, message = WRONG[name]
    with pytest.raises(ShapeError, match=message):
        wrong(models)


def test_an_error_of_forward_itself_stays(models: Any) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        debug.shapes(call)(models.Wrong())


@pytest.mark.usefixtures("fresh_dynamo")
def test_in_compiled_code(models: Any) -> None:
    def grads(model: Any, x: Tensor) -> Any:
        return func.grad(lambda model: model(x).sum())(model).layers[0].weight

    compiled = make_compiled(debug.shapes(grads), backend="eager")
    for size in (5, 7):  # from the second on dynamo takes sizes for symbols
        x = torch.ones(size, 2)
        torch.testing.assert_close(compiled(net(models), x), grads(net(models), x))
    with pytest.raises(Exception, match=r"ShapeError: Absent: y is None"):
        make_compiled(debug.shapes(call), backend="eager")(models.Absent(), X)
    with pytest.raises(Exception, match=r"ShapeError: layers.1 \(Dense\): x is float32\[5, 3\]"):
        compiled(net(models, inner=5), X)


def test_a_plain_tensor_does_not_say_whether_it_is_trained() -> None:
    space: dict[str, Any] = {"__name__": "shaped"}
    exec(HEAD, space)
    with pytest.raises(TypeError, match=r"Bad.w is annotated Float\[Tensor, 'a'\].*'w: Flo"):
        exec('class Bad(Module):\n    w: Float[Tensor, "a"]\nBad(1)', space)


def test_an_annotation_of_forward_that_names_nothing() -> None:
    space: dict[str, Any] = {"__name__": "shaped"}
    exec(HEAD, space)
    text = """
class Bad(Module):
    def forward(self, x: 'Unknown[Tensor, "b"]', y: "Missing") -> "Tensor":
        return x
"""
    exec(text, space)
    with pytest.raises(NameError, match=r"Bad.forward is annotated.*Import the name at the top"):
        debug.shapes(call)(space["Bad"](), X, X)


def test_without_jaxtyping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jaxtyping", None)
    with pytest.raises(ImportError, match=r"pip install 'parallax-torch\[jaxtyping\]'"):
        debug.shapes(call)
