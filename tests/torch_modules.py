"""Checks that a module of Parallax computes what a sample of torch's module database does."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from parallax import Module, bridge, effects, func, tree
from tests.bridge.checks import tensors_of, total
from tests.corpus.torch_data import Sample, seeded

Make = Callable[[Sample, nn.Module], Module]
"""Parallax's module for a sample, with the leaves of torch's."""


def check_forward(sample: Sample, make: Make, same: Callable[[Any, Any], None]) -> None:
    """The result of a call, and all that it leaves in the state dict."""
    source = seeded(sample.make)
    reference = copy.deepcopy(source)
    module = make(sample, source)
    out, after = seeded(lambda: effects.collect(lambda module: sample.call(module))(module))
    same(out, seeded(lambda: sample.call(reference.requires_grad_(False))))
    same(dict(bridge.state_dict(after)), dict(reference.state_dict()))


def check_gradients(sample: Sample, make: Make) -> None:
    """First gradients of parameters and inputs, and those of the sum of their squares."""
    source = seeded(sample.make)
    module = make(sample, copy.deepcopy(source))
    if not is_differentiable(sample, source):
        return

    def loss(module: Any, inputs: Any) -> Tensor:
        return effects.collect(lambda module: total(sample.call(module, inputs)))(module)[0]

    given = list(source.parameters()), sample.inputs
    places = tuple([place for place, found in enumerate(given) if found])

    def first_of(module: Any, inputs: Any) -> Any:
        return seeded(lambda: func.grad(loss, argnums=places)(module, inputs))

    def squares(module: Any, inputs: Any) -> Tensor:
        grads = tree.leaves(first_of(module, inputs))
        return torch.stack([(g * g).sum() for g in grads if isinstance(g, Tensor)]).sum()

    second_of = func.grad(squares, argnums=places)
    try:
        first, second = gradients_of(sample, source)
    except RuntimeError as error:  # what torch cannot differentiate twice
        with pytest.raises(RuntimeError, match=re.escape(str(error)[:20])):
            second_of(module, sample.inputs)
        return
    close(by_name(first_of(module, sample.inputs)), first)
    close(by_name(second_of(module, sample.inputs)), second)


def check_vmap(sample: Sample, make: Make) -> None:
    """An ensemble of two is its members, where torch maps the module at all."""
    sources = [seeded(sample.make), sample.make()]
    if not list(sources[0].parameters()) or sample.training:
        return
    members = [make(sample, source) for source in sources]

    def call(state: Any) -> Any:
        return sample.call(lambda *a, **k: torch.func.functional_call(sources[0], state, a, k))

    try:
        with warnings.catch_warnings():
            torch.vmap(call)(torch.func.stack_module_state(sources))
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return
    out = func.vmap(sample.call)(tree.stack(members))
    wants = [tensors_of(sample.call(source)) for source in sources]
    close(tensors_of(out), [torch.stack(pair) for pair in zip(*wants, strict=True)])


def close(found: Any, wanted: Any) -> None:
    """Both hold the same tensors, up to rounding."""
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9, equal_nan=True)


def is_differentiable(sample: Sample, module: nn.Module) -> bool:
    inputs = tuple([x.clone().requires_grad_() for x in sample.inputs])
    outs = tensors_of(seeded(lambda: sample.call(copy.deepcopy(module), inputs)))
    return any(out.requires_grad and out.numel() for out in outs)


def gradients_of(sample: Sample, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients by the tape; through attention by the kernel that has a second one."""
    inputs = tuple([x.clone().requires_grad_() for x in sample.inputs])
    weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
    places: dict[str, Tensor] = {**weights, **named(inputs)}
    with sdpa_kernel(SDPBackend.MATH):
        loss = seeded(lambda: total(sample.call(module, inputs)))
    first = torch.autograd.grad(loss, places, create_graph=True, materialize_grads=True)
    squares = torch.stack([(g * g).sum() for g in first.values()]).sum()
    if squares.requires_grad:
        return first, torch.autograd.grad(squares, places, materialize_grads=True)
    return first, {name: torch.zeros_like(x) for name, x in places.items()}


def by_name(grads: tuple[Any, ...]) -> dict[str, Tensor]:
    """Gradients of a module, of inputs, or of both; holes are left out."""
    found: dict[str, Tensor] = {}
    for part in grads:
        found |= named(part) if isinstance(part, tuple) else bridge.state_dict(part)
    return found


def named(inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {f"input {k}": x for k, x in enumerate(inputs)}
