"""Every input of torch's own database of optimizers, against the classes of ``torch.optim``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Module, Parameter, optim, tree
from tests.corpus.torch_data import optimizers

STEPS = 6


class Pair(Module):
    """Two matrices, which every optimizer steps, one of them transposed in memory."""

    first: Parameter
    second: Parameter


class Input:
    """One set of options of one optimizer."""

    def __init__(self, info: Any, given: Any) -> None:
        self.name = info.optim_cls.__name__
        self.options = {k: v for k, v in given.kwargs.items() if k != "foreach"}
        self.ways: list[dict[str, Any]] = [{}]
        self.ways += [{way: True} for way in info.supported_impls if way != "differentiable"]
        self.differentiable = "differentiable" in info.supported_impls
        self.complex = info.supports_complex
        self.id = f"{self.name}-{given.desc}"


def inputs(first: bool = False) -> list[Input]:
    found = []
    for info in optimizers():
        if info.optim_cls.__name__ not in ("LBFGS", "SparseAdam"):  # which have tests of their own
            given = info.optim_inputs_func(device="cpu")
            found += [Input(info, one) for one in (given[1:2] if first else given)]
    return found


ALL, SOME = inputs(), inputs(first=True)


def start(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(4, 3, generator=generator, dtype=torch.float64).to(dtype)
    two = torch.randn(3, 8, generator=generator, dtype=torch.float64).to(dtype).T
    return [one * (1 + 0.5j), two * (1 - 1j)] if dtype.is_complex else [one, two]


def slopes(leaves: list[Tensor], steps: int = STEPS) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in leaves]


def theirs(case: Input, way: dict[str, Any], leaves: list[Tensor]) -> list[Tensor]:
    params = [torch.nn.Parameter(leaf.clone()) for leaf in leaves]
    optimizer = getattr(torch.optim, case.name)(params, **case.options, **way)
    for grads in slopes(leaves):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
    return [param.detach() for param in params]


def mine(case: Input, way: dict[str, Any], leaves: list[Tensor], donate: bool) -> list[Tensor]:
    opt, model = getattr(optim, case.name)(**case.options, **way), Pair(*leaves)
    state = opt.init(model)
    for grads in slopes(leaves):
        model, state = opt.step(model, Pair(*grads), state, donate=donate)
    return [model.first, model.second]


def check(case: Input, dtype: torch.dtype) -> None:
    if dtype.is_complex and not case.complex:
        return
    rough = 1e-12 if dtype in (torch.float64, torch.complex128) else 3e-6
    for way in case.ways:
        fused = "fused" in way
        if dtype.is_complex and fused:  # which torch has not
            continue
        # torch's fused kernels read gradients of another layout in the wrong order.
        right = theirs(case, {} if fused else way, start(dtype))
        near = max(rough, 1e-6) if "foreach" in way or case.name == "Muon" else rough
        for donate in (False, True):
            found = mine(case, way, start(dtype), donate)
            for one, two in zip(found, right, strict=True):
                assert torch.allclose(one, two, rtol=near, atol=near), (way, donate)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_every_input_gives_the_numbers_of_torch(case: Input) -> None:
    check(case, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_every_input_gives_the_numbers_of_torch_in_other_dtypes(
    case: Input, dtype: torch.dtype
) -> None:
    check(case, dtype)


# -- derivatives through a step -------------------------------------------------------------------


def check_derivatives(case: Input) -> None:
    """First and second derivatives of two steps against finite differences.

    Those of ``torch.optim`` are no measure: it counts steps in single precision there, and writes
    into moments that the second derivative needs.
    """
    opt = getattr(optim, case.name)(**case.options, differentiable=True)

    def stepped(one: Tensor, two: Tensor, *grads: Tensor) -> tuple[Tensor, Tensor]:
        model = Pair(one, two)
        state = opt.init(model)
        for k in range(0, len(grads), 2):
            model, state = opt.step(model, Pair(*grads[k : k + 2]), state)
        return model.first, model.second

    leaves = start(torch.float64)
    given = [*leaves, *[grad for row in slopes(leaves, 2) for grad in row]]
    inputs = tuple([tensor.requires_grad_() for tensor in given])
    assert torch.autograd.gradcheck(stepped, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(stepped, inputs, fast_mode=True)


DIFFERENTIABLE = [case for case in ALL if case.differentiable]


@pytest.mark.parametrize(
    "case", [case for case in SOME if case.differentiable], ids=lambda case: case.id
)
def test_derivatives_through_steps_are_those_of_torch(case: Input) -> None:
    check_derivatives(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.id)
def test_derivatives_through_steps_of_every_input_are_those_of_torch(case: Input) -> None:
    check_derivatives(case)


# -- on the default backend -----------------------------------------------------------------------


def check_compiled(cases: list[Input]) -> None:
    """Steps of several optimizers in one graph, on the default backend, against eager ones."""
    opts = [getattr(optim, case.name)(**case.options) for case in cases]
    models = [Pair(*start(torch.float32)) for _ in cases]
    states = [opt.init(model) for opt, model in zip(opts, models, strict=True)]

    def step(models: Any, grads: Any, states: Any) -> Any:
        rows = zip(opts, models, grads, states)  # noqa: B905  # dynamo traces no strict=
        done = [opt.step(model, g, s) for opt, model, g, s in rows]
        return [model for model, _ in done], [state for _, state in done]

    compiled = parallax.compile(step)
    ours, held, eager, kept = models, states, models, states
    for row in slopes(start(torch.float32), 3):
        grads = [Pair(*row) for _ in cases]
        ours, held = compiled(ours, grads, held)
        eager, kept = step(eager, grads, kept)
    for case, model, other in zip(cases, ours, eager, strict=True):
        for one, two in zip(tree.leaves(model), tree.leaves(other), strict=True):
            assert torch.allclose(one, two, rtol=1e-4, atol=1e-5), (
                case.id,
                (one - two).abs().max(),
            )


@pytest.mark.usefixtures("fresh_dynamo")
def test_steps_on_the_default_backend_are_those_of_eager_code() -> None:
    check_compiled([case for case in SOME if case.name in ("SGD", "AdamW", "RMSprop")])


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", sorted({case.name for case in ALL}))
def test_every_input_on_the_default_backend_is_as_in_eager_code(name: str) -> None:
    check_compiled([case for case in ALL if case.name == name])
