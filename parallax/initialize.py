"""Giving declared leaves their values, each from the seed and its own path."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from parallax import random
from parallax.fields import Lazy
from parallax.registry import flatten_module, unflatten_module

__all__ = ["initialize"]


def initialize(module: Any, rng: Any, *, device: Any = None, dtype: Any = None) -> Any:
    """What ``Module.initialize`` does; see there."""
    leaves, structure = flatten_module(module)
    target = None if device is None else _device(device)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"initialize(dtype=): expected a torch.dtype, got {dtype!r}")
    seed = random.derive(random.seed_of(rng), "initialize")
    if leaves and not any(isinstance(leaf, Lazy) for leaf in leaves):
        name = type(module).__name__
        raise RuntimeError(
            f"{name} is initialized already. Initialize the declaration again for other values: "
            f"{name.lower()} = {name}(...).initialize(rng)"
        )
    values = []
    for path, leaf in zip(structure.paths, leaves, strict=True):
        if isinstance(leaf, Lazy):
            where = f"{type(module).__name__}.{path}"
            leaf = _value(leaf, random.derive(seed, path), target, dtype, where)  # noqa: PLW2901  # the leaf's value
        values.append(leaf)
    return unflatten_module(structure, values, module._rng)


def _device(device: Any) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"initialize(device={device!r}): no such device here: {reason}") from None
    return found


def _value(
    lazy: Lazy, seed: int, device: torch.device | None, dtype: torch.dtype | None, where: str
) -> Tensor:
    """The tensor of one declaration.

    Drawn on the CPU, in at least single precision, so that the numbers depend on neither the
    device nor (up to rounding) a lower precision.
    """
    final = dtype if dtype is not None and lazy.is_floating_point() else lazy.dtype
    target = device or torch.get_default_device()
    if target.type == "meta":
        return torch.empty(lazy.shape, dtype=final, device=target)
    drawn = torch.float32 if final in (torch.float16, torch.bfloat16) else final
    with torch.no_grad(), torch.device("cpu"):
        value = _run(lazy.init, lazy.shape, drawn, seed, where)
    if value.shape != lazy.shape:
        raise TypeError(
            f"{where}: the initializer {_name(lazy.init)} returned shape {tuple(value.shape)}, "
            f"but {tuple(lazy.shape)} is declared"
        )
    return value.detach().to(device=target, dtype=final)


def _run(
    init: Callable[..., Any], shape: torch.Size, dtype: torch.dtype, seed: int, where: str
) -> Tensor:
    """Calls an initializer in the form it has: in place on a tensor, or from a shape."""
    forms: list[Callable[..., Any]] = [
        partial(_in_place, init, shape, dtype),
        partial(_from_shape, init, shape, dtype),
    ]
    if _takes_shape(init):
        forms.reverse()
    elif _name(init).endswith("_"):
        forms.pop()
    failure: Exception | None = None
    for form in forms:
        try:
            value = _seeded(form, init, seed)
        except TypeError as error:  # not this form, or a mistake of its own
            failure = failure or error
            continue
        if isinstance(value, Tensor):
            return value
        failure = failure or TypeError(f"it returned {type(value).__name__}")
    raise TypeError(
        f"{where}: the initializer {_name(init)} is neither an in-place function of a tensor "
        f"(torch.nn.init.zeros_) nor a function of a shape (torch.zeros): {failure}"
    ) from failure


def _in_place(init: Callable[..., Any], shape: torch.Size, dtype: torch.dtype, **kw: Any) -> Any:
    tensor = torch.empty(shape, dtype=dtype)
    result = init(tensor, **kw)
    return tensor if result is None else result


def _from_shape(init: Callable[..., Any], shape: torch.Size, dtype: torch.dtype, **kw: Any) -> Any:
    if _accepts(init, "dtype"):
        kw["dtype"] = dtype
    result = init(tuple(shape), **kw)
    return result.to(dtype) if isinstance(result, Tensor) else result


def _seeded(form: Callable[..., Any], init: Callable[..., Any], seed: int) -> Any:
    generator = random.generator_of(seed)
    if _accepts(init, "generator"):
        return form(generator=generator)
    before = torch.random.get_rng_state()
    try:
        torch.random.set_rng_state(generator.get_state())
        return form()
    finally:
        torch.random.set_rng_state(before)


def _parameters(init: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(init).parameters)
    except (TypeError, ValueError):  # a builtin, such as torch.randn
        return {}


def _accepts(init: Callable[..., Any], name: str) -> bool:
    return name in _parameters(init)


def _takes_shape(init: Callable[..., Any]) -> bool:
    names = list(_parameters(init))
    if names:
        return names[0] in ("shape", "size")
    return not _name(init).endswith("_")  # builtins: torch.zeros, torch.randn


def _name(init: Callable[..., Any]) -> str:
    inner: Any = init
    while isinstance(inner, partial):
        inner = inner.func
    return str(getattr(inner, "__name__", type(inner).__name__))
