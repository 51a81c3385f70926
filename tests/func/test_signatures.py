"""The spelling of ``torch.func``: names, order and defaults of parameters."""

from __future__ import annotations

import inspect

import pytest
import torch

from parallax import func

MIRRORED = ["functional_call", "grad", "grad_and_value", "hessian", "jacfwd", "jacrev", "jvp",
            "linearize", "stack_module_state", "vjp", "vmap"]  # fmt: skip


@pytest.mark.parametrize("name", MIRRORED)
def test_parameters_are_those_of_torch(name: str) -> None:
    ours = inspect.signature(getattr(func, name)).parameters
    theirs = inspect.signature(getattr(torch.func, name)).parameters
    public = [p for p in theirs.values() if not p.name.startswith("_")]
    assert [(p.name, p.kind) for p in ours.values()] == [(p.name, p.kind) for p in public]
    # functional_call refuses names that a module does not have unless it is told otherwise.
    chosen = {"strict"} if name == "functional_call" else set()
    for parameter in public:
        if parameter.name not in chosen:
            assert ours[parameter.name].default == parameter.default
