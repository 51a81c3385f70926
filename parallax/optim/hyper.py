"""Hyper-parameters (numbers, tensors, functions of the step), and what kernels get for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch

__all__ = [
    "Hyper", "Number", "beside", "by_name", "counts", "number_like", "plain", "refuse_several",
    "resolved", "sample",
]  # fmt: skip

Number = float | Tensor | Callable[[Any], float | Tensor]
"""A hyper-parameter: a number, a tensor of no dimension, or a function of the number of steps."""
Hyper = dict[str, Any]


_PAIRS = {
    "betas": ("beta1", "beta2"),
    "etas": ("etaminus", "etaplus"),
    "step_sizes": ("step_size_min", "step_size_max"),
}
_CHOICES = ("foreach", "fused", "capturable", "differentiable")  # of a kernel; see ``How``


def by_name(h: Hyper) -> Hyper:
    """The hyper-parameters as the arguments of a kernel, which takes pairs as two arguments."""
    arguments: Hyper = {}
    for name, value in h.items():
        if name in _PAIRS:
            first, second = _PAIRS[name]
            arguments[first], arguments[second] = value
        elif name not in _CHOICES:
            arguments[name] = value
    return arguments


def sample(name: str, value: Any) -> Any:
    """A hyper-parameter as torch's class can check it, outside of any transform."""
    if isinstance(value, Tensor):
        if functorch.is_wrapped(value) or value.numel() != 1 or value.is_meta:
            return 0.5  # how many numbers there are is known when it steps
        return value.item()
    if isinstance(value, tuple) and any([isinstance(item, Tensor) for item in value]):
        return tuple([sample(name, item) for item in value])
    if callable(value):
        return 0.5
    return False if name in ("differentiable", "fused", "capturable", "foreach") else value


def resolved(h: Hyper, step: Any) -> Hyper:
    """The hyper-parameters with every schedule evaluated at ``step``."""
    if not any([callable(value) for value in h.values()]):
        return h
    if isinstance(step, Tensor) and _readable(step):
        step = int(step)
    return {name: value(step) if callable(value) else value for name, value in h.items()}


def _readable(step: Tensor) -> bool:
    """Whether the number of steps can be read: not while tracing nor under vmap."""
    return not dynamo.is_compiling() and not functorch.transform_active()


def beside(h: Hyper, leaf: Tensor) -> Hyper:
    """The numbers, as they can be combined with a leaf.

    A tensor of no dimension on the CPU goes with leaves on all devices. Within ``vmap`` it is one
    number per member, a vector, which must be where the leaf is.
    """
    if not (dynamo.is_compiling() or functorch.transform_active()):
        return h
    return {name: _beside(value, leaf) for name, value in h.items()}


def _beside(value: Any, leaf: Tensor) -> Any:
    if type(value) is tuple:
        return tuple([_beside(item, leaf) for item in value])
    if not isinstance(value, Tensor) or value.device == leaf.device:
        return value
    single = leaf.device.type == "mps" and value.dtype is torch.float64  # which it has not
    return value.to(leaf.device, torch.float32 if single else value.dtype)


def counts(value: Any) -> bool:
    """Whether a hyper-parameter is not a number that is zero.

    A tensor counts at zero, too: there its derivative is not zero, and it may be one number for
    each member of an ensemble.
    """
    return isinstance(value, Tensor) or value != 0


def number_like(value: Any, like: Tensor) -> Tensor:
    """A number as a tensor of the dtype and on the device of another."""
    return value.to(like) if isinstance(value, Tensor) else torch.full_like(like, value)


def refuse_several(what: str, hypers: Iterable[Hyper]) -> None:
    """Raises for a tensor of several numbers: only ``vmap`` gives each member one of them.

    Raises:
        ValueError: naming the hyper-parameter.
    """
    for h in hypers:
        for name, value in h.items():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Tensor):
                    _require_one(f"{what}: {name}", item)


def _require_one(name: str, value: Tensor) -> None:
    if value.numel() != 1:
        raise ValueError(
            f"{name} holds {value.numel()} numbers, one per member of an ensemble. Call init and "
            f"step under vmap: torch.vmap(lambda opt, *rest: opt.step(*rest))(opt, model, grads, s)"
        )


def plain(h: Hyper) -> Hyper:
    """The hyper-parameters, with Python numbers instead of tensors on the CPU."""
    return {name: _number(name, value) for name, value in h.items()}


def _number(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        _require_one(name, value)
        return value.item() if value.device.type == "cpu" else value
    if isinstance(value, tuple):
        return tuple([_number(name, item) for item in value])
    return value
