"""Every sample of torch's own module database, lifted, computes what torch does.

The ordinary run takes two samples of each class and mode; ``--slow`` takes all.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallax import bridge, effects, func, tree
from tests.bridge.checks import same, tensors_of, total
from tests.corpus.torch_data import MODULES

QUICK = 2
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's samples use what it warns of


class Sample:
    """One construction and one input of a class."""

    def __init__(self, info: Any, given: Any, training: bool) -> None:
        args, kwargs = given.constructor_input.args, given.constructor_input.kwargs
        self.cls = info.module_cls
        self.construct: Any = lambda: self.cls(*args, **kwargs).to(torch.float64).train(training)
        self.inputs = given.forward_input
        self.training = training

    def make(self) -> nn.Module:
        module: nn.Module = self.construct()
        if self.cls.__name__.startswith("Lazy"):
            self.call(module)  # it learns its shapes
        return module

    def call(self, module: Any) -> Any:
        args, kwargs = copy.deepcopy((self.inputs.args, self.inputs.kwargs))
        return module(*args, **kwargs)


def samples(info: Any, count: int | None) -> Iterator[Sample]:
    for training in (True, False):
        torch.manual_seed(0)
        given = info.module_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=False, training=training
        )
        for one in [g for g in given if g.forward_input is not None][:count]:
            yield Sample(info, one, training)


def seeded(function: Callable[[], Any]) -> Any:
    torch.manual_seed(1)
    return function()


def run(sample: Sample, module: Any) -> Any:
    """A call with its effects: the result, and the module after it."""
    return effects.collect(lambda module: sample.call(module))(module)


def check_forward(sample: Sample) -> None:
    source = seeded(sample.make)
    reference = copy.deepcopy(source)
    out, after = seeded(lambda: run(sample, bridge.lift(source)))
    want = seeded(lambda: sample.call(reference.requires_grad_(False)))
    same(out, want)
    same(list(bridge.state_dict(after).values()), list(reference.state_dict().values()))


def loss_of(sample: Sample, module: Any) -> Tensor:
    return total(sample.call(module))


def is_differentiable(sample: Sample) -> bool:
    module = seeded(sample.make)
    trained = [p for p in module.parameters() if p.requires_grad]
    outs = seeded(lambda: tensors_of(sample.call(module)))
    return bool(trained) and any(out.requires_grad and out.numel() for out in outs)


def gradients_of(sample: Sample, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """First gradients, and those of the sum of their squares, by the tape."""
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    weights = [p for p in module.parameters() if p.requires_grad]
    loss = seeded(lambda: loss_of(sample, module))
    first = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    squares = torch.stack([(g * g).sum() for g in first]).sum()
    if not squares.requires_grad:
        second: Any = [torch.zeros_like(w) for w in weights]
    else:
        second = torch.autograd.grad(squares, weights, materialize_grads=True)
    return dict(zip(names, first, strict=True)), dict(zip(names, second, strict=True))


def check_gradients(sample: Sample) -> None:
    if not is_differentiable(sample):
        return
    source = seeded(sample.make)
    lifted = bridge.lift(copy.deepcopy(source))

    def loss(module: Any) -> Tensor:
        return effects.collect(lambda module: loss_of(sample, module))(module)[0]

    def squares(module: Any) -> Tensor:
        grads = seeded(lambda: func.grad(loss)(module))
        found = [g for g in tree.leaves(grads) if isinstance(g, Tensor)]
        return torch.stack([(g * g).sum() for g in found]).sum()

    try:
        first, second = gradients_of(sample, source)
    except RuntimeError as error:  # what torch cannot differentiate twice
        with pytest.raises(RuntimeError, match=re.escape(str(error)[:20])):
            func.grad(squares)(lifted)
        return
    close(bridge.state_dict(seeded(lambda: func.grad(loss)(lifted))), first)
    close(bridge.state_dict(func.grad(squares)(lifted)), second)


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-9, atol=1e-9, equal_nan=True, msg=name
        )


def functional(sample: Sample, module: nn.Module, state: Any) -> Any:
    return sample.call(lambda *a, **k: torch.func.functional_call(module, state, a, k))


def check_vmap(sample: Sample) -> None:
    """An ensemble of two is its members, where torch maps the module at all."""
    sources = [seeded(sample.make), sample.make()]
    if not list(sources[0].parameters()) or sample.training:
        return
    members = [bridge.lift(source) for source in sources]
    try:
        with warnings.catch_warnings():
            state = torch.func.stack_module_state(sources)
            torch.vmap(lambda p, b: functional(sample, sources[0], (p, b)))(*state)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return
    out = func.vmap(sample.call)(tree.stack(members))
    wants = [sample.call(source) for source in sources]
    stacked = [torch.stack(pair) for pair in zip(*map(tensors_of, wants), strict=True)]
    torch.testing.assert_close(tensors_of(out), stacked, rtol=1e-9, atol=1e-9, equal_nan=True)


INFOS = pytest.mark.parametrize("info", MODULES, ids=lambda info: info.name)


def taken(request: Any) -> int | None:
    return None if request.config.getoption("--slow") else QUICK


@INFOS
def test_forward_and_buffers(info: Any, request: Any) -> None:
    for sample in samples(info, taken(request)):
        check_forward(sample)


@INFOS
def test_gradients_of_first_and_second_order(info: Any, request: Any) -> None:
    for sample in samples(info, taken(request)):
        check_gradients(sample)


@INFOS
def test_ensembles(info: Any, request: Any) -> None:
    for sample in samples(info, taken(request)):
        check_vmap(sample)
