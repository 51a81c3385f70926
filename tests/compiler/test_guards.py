"""What of a library stands under a guard of its own is not guarded once more; the user's own is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallax import func, nn, optim
from tests.compiling import make_compiled

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Halved(optim.SGD):
    """A user's own, which reads an attribute of its class."""

    factor = 0.5

    def step(self, model: Any, grads: Any, state: Any, **options: Any) -> Any:  # type: ignore[override]  # fewer types
        grads = grads.update(lambda leaf: leaf * self.factor)
        return super().step(model, grads, state, **options)


LIBRARY: Any = F
TRANSFORMS: Any = func
ACTIVATION: Callable[[Tensor], Tensor] = F.relu
OPTIMIZER: Any = optim.SGD(0.5)


def _step(model: Any, x: Tensor) -> Any:
    def loss(model: Any) -> Tensor:
        return ACTIVATION(LIBRARY.softplus(model(x))).sum()

    grads = TRANSFORMS.grad(loss)(model)
    return OPTIMIZER.step(model, grads, OPTIMIZER.init(model))[0]


def _model() -> nn.Linear:
    return nn.Linear(3, 2).initialize(0)


def _exchanged(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Exchanges one global after the other."""
    here = globals()
    other: Any = ModuleType("torch.nn.functional")  # the name says nothing of what it holds
    other.softplus = torch.exp
    patch.setitem(here, "LIBRARY", other)
    yield "a module by another module"
    patch.setitem(here, "LIBRARY", SimpleNamespace(softplus=torch.sin))
    yield "a module by a namespace"
    patch.setattr(LIBRARY, "softplus", torch.cos)
    yield "what the namespace holds"
    patch.setitem(here, "TRANSFORMS", SimpleNamespace(grad=lambda f: func.grad(lambda m: 3 * f(m))))
    yield "the module of transforms"
    patch.setitem(here, "ACTIVATION", F.silu)
    yield "a function of torch by another one"
    patch.setitem(here, "ACTIVATION", lambda x, by=2.0: by * x)
    yield "a function of torch by one of the user"
    patch.setattr(ACTIVATION, "__defaults__", (5.0,))
    yield "defaults of a function of the user"
    patch.setitem(here, "OPTIMIZER", optim.SGD(0.25))
    yield "an optimizer by one with another number"
    patch.setitem(here, "OPTIMIZER", Halved(0.25))
    yield "an optimizer by one of a user's class"
    patch.setattr(Halved, "factor", 4.0)
    yield "an attribute of that class"
    patch.setattr(Halved, "step", optim.SGD.step)
    yield "a method of that class"


def test_what_a_user_exchanges_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _model(), torch.ones(1, 3)
    compiled = make_compiled(_step, backend="eager", recompile_limit=99)
    before = compiled(model, x).weight
    for change in _exchanged(monkeypatch):
        expected = _step(model, x).weight
        assert not torch.allclose(expected, before), change
        torch.testing.assert_close(compiled(model, x).weight, expected, msg=change)
        before = expected
