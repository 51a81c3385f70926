"""Optimizers, trees, transforms and random programs compute the same on inductor as in eager.

Packed into few graphs, for a graph costs more than what is in it; with ``--slow`` one by one, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import init

from parallax import Module, Parameter, func
from tests.compiler.random_graphs import mismatch, packed, random_program
from tests.compiling import make_compiled
from tests.optim.cases import OPTIONS, make
from tests.tree.test_compile import CALLS, same
from tests.tree.test_compile import make as make_tree

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    # Random programs call losses in ways that torch warns of.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def assert_equal_to_eager(fn: Callable[..., Any], *args: Any) -> None:
    same(make_compiled(fn)(*args), fn(*args))


# -- optimizers -------------------------------------------------------------------------------


class Matrix(Module):
    """What a linear layer has: gradients that are products of matrices."""

    weight: Parameter

    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter((4, 3), init.normal_)

    def forward(self, x: Tensor) -> Any:
        return x @ self.weight.T


def steps(optimizers: Sequence[Any]) -> Callable[..., Any]:
    """Two steps of each."""

    def run(model: Any, x: Tensor) -> Any:
        def loss(model: Any) -> Any:
            return model(x).square().sum()

        ends = []
        for optimizer in optimizers:
            end, state = model, optimizer.init(model)
            for _ in range(2):
                end, state = optimizer.step(end, func.grad(loss)(end), state)
            ends.append((end, state))
        return ends

    return run


def check_optimizers(table: Sequence[tuple[str, Any]]) -> None:
    fn = steps([make(name, options) for name, options in table])
    model = Matrix().initialize(0)
    x = torch.randn((5, 3), generator=torch.Generator().manual_seed(0))
    same(make_compiled(fn)(model, x), fn(model, x))


def orthogonal(grad: Tensor, factors: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The Newton-Schulz iteration of ``torch.optim.Muon``, which computes it in bfloat16."""
    a, b, c = factors
    x = grad.double().T if grad.size(0) > grad.size(1) else grad.double()
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = x.T if grad.size(0) > grad.size(1) else x
    return found.to(grad.dtype)


@pytest.fixture
def precise_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 a graph rounds in other places than eager code, which would hide a fault."""
    kernels: Any = torch.optim
    monkeypatch.setattr(kernels._muon, "_zeropower_via_newtonschulz", orthogonal)


@pytest.mark.usefixtures("precise_muon")
def test_every_optimizer() -> None:
    check_optimizers(OPTIONS)


@pytest.mark.slow
@pytest.mark.usefixtures("precise_muon")
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_one_optimizer(name: str, options: Any) -> None:
    check_optimizers([(name, options)])


# -- trees ------------------------------------------------------------------------------------


# A structure that is made in the trace does not leave it yet.
ON_TREES = {name: call for name, call in CALLS.items() if not name.endswith("freeze")}


def test_every_operation_on_trees() -> None:
    def run(m: Any, o: Any) -> Any:
        return [call(m, o) for call in ON_TREES.values()]

    assert_equal_to_eager(run, make_tree(0), make_tree(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_TREES)
def test_one_operation_on_trees(name: str) -> None:
    assert_equal_to_eager(ON_TREES[name], make_tree(0), make_tree(1))


# -- transforms -------------------------------------------------------------------------------


def _loss(model: Any, x: Tensor) -> Any:
    return model(x).square().sum()


TRANSFORMS: dict[str, Callable[[Any, Tensor], Any]] = {
    "grad": lambda m, x: func.grad(_loss)(m, x),
    "grad_and_value": lambda m, x: func.grad_and_value(_loss)(m, x),
    "vjp": lambda m, x: func.vjp(lambda m: m(x), m)[1](torch.ones(5, 4)),
    "jvp": lambda m, x: func.jvp(lambda m: m(x), (m,), (m,)),
    "jacrev": lambda m, x: func.jacrev(lambda x: m(x).sum(0))(x),
    "jacfwd": lambda m, x: func.jacfwd(lambda x: m(x).sum(0))(x),
    "hessian": lambda m, x: func.hessian(lambda x: m(x).pow(3).sum())(x[0]),
    "hvp": lambda m, x: func.hvp(lambda m: m(x).pow(3).sum(), (m,), (m,)),
    "linearize": lambda m, x: func.linearize(lambda x: m(x).pow(3).sum(), x)[1](x),
    "vmap": lambda m, x: func.vmap(lambda x: m(x).square())(x),
    "per_sample_grad": lambda m, x: func.per_sample_grad(_loss)(m, x),
    "per_sample_norms": lambda m, x: func.per_sample_norms(_loss)(m, x),
    "clipped_grad": lambda m, x: func.clipped_grad(_loss, 1.0)(m, x),
    "jvp of grad": lambda m, x: func.jvp(
        lambda x: func.grad(lambda x: m(x).pow(3).sum())(x), (x,), (x,)
    ),
    "jvp of jvp": lambda m, x: func.jvp(
        lambda x: func.jvp(lambda x: m(x).pow(3).sum(), (x,), (x,))[1], (x,), (x,)
    ),
    "grad of grad": lambda m, x: func.grad(lambda m: func.grad(_loss)(m, x).weight.pow(2).sum())(m),
}


def test_every_transform() -> None:
    def run(model: Any, x: Tensor) -> Any:
        return [transform(model, x) for transform in TRANSFORMS.values()]

    assert_equal_to_eager(run, Matrix().initialize(0), torch.randn(5, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMS)
def test_one_transform(name: str) -> None:
    assert_equal_to_eager(TRANSFORMS[name], Matrix().initialize(0), torch.randn(5, 3))


# -- random programs --------------------------------------------------------------------------


def check_programs(seeds: Sequence[int]) -> None:
    programs = [random_program(seed) for seed in seeds]
    run, inputs = packed(programs)
    with torch.no_grad():
        results = make_compiled(run)(inputs)
    found = [mismatch(*pair) for pair in zip(programs, results, strict=True)]
    assert not [one for one in found if one]


def test_random_programs() -> None:
    check_programs(range(12))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 10_100, 50))
def test_many_random_programs(first: int) -> None:
    check_programs(range(first, first + 50))
