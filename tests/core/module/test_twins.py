"""Modules compute what their twins in ``torch.nn`` do, and so do their gradients."""

from __future__ import annotations

import pytest
import torch

from parallax import tree
from tests.core.module.verbs import TRAINED, sum_of
from tests.corpus import TWINS, Case, example_input


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_it_computes_what_its_twin_in_torch_does(case: Case) -> None:
    module, x = case.make(), example_input()
    torch.testing.assert_close(module(x), case.twin(module)(x))


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_reset_backward_grad_are_the_twins_gradients(case: Case) -> None:
    module, x = case.make(), example_input()
    twin = case.twin(module)
    if not list(twin.parameters()):
        return
    module = module.reset(0)
    sum_of(module, x).backward()
    twin(x).sum().backward()
    grads = tree.named_leaves(module.grad())
    expected = {path: p.grad for path, p in twin.named_parameters() if p.grad is not None}
    assert set(grads) == set(expected)
    for path, grad in grads.items():
        torch.testing.assert_close(grad, expected[path])


@pytest.mark.parametrize("case", TRAINED, ids=str)
def test_float_trees_go_raw_through_torch_func(case: Case) -> None:
    module, x = case.make(), example_input()
    ready = module.reset(11)
    if not tree.leaves(module):
        return
    sum_of(ready, x).backward()
    grads = torch.func.grad(sum_of)(module, x)
    assert type(grads) is type(module)
    expected = tree.named_leaves(ready.grad())
    for path, grad in tree.named_leaves(grads).items():
        torch.testing.assert_close(grad, expected.get(path, torch.zeros_like(grad)))
