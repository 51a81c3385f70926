"""``pure``: does a function change what it was given, or the global random state?"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import optree
import torch
from torch import Tensor

from parallax._errors.arguments import answered, check_function
from parallax.core import notes
from parallax.core.nodes import is_module
from parallax.core.registry import NAMESPACE
from parallax.debug.bits import same_bits
from parallax.debug.calls import arguments, name_of, tensors_in
from parallax.effects.running import refuse_deferred
from parallax.tree import core
from parallax.tree.outside import is_item
from parallax.tree.places import Survey, follow

__all__ = ["ImpureError", "pure"]

P = ParamSpec("P")
R = TypeVar("R")


class ImpureError(RuntimeError):
    """A function changed what it was given, or the global random state.

    Example:
        >>> import torch
        >>> from parallax import debug
        >>> def standardize(x):
        ...     x -= x.mean()  # writes into the argument
        ...     return x
        >>> try:
        ...     debug.pure(standardize)(torch.ones(3))
        ... except debug.ImpureError as error:
        ...     print(error)
        standardize() is not pure: it wrote into args[0] in place. Compute a new tensor...
    """


class Before(NamedTuple):
    """What one tensor was before the call."""

    tensor: Tensor
    version: int | None
    copy: Tensor
    requires_grad: bool
    grad: tuple[Tensor, int] | None


@answered("debug.pure", "debug.pure(fn)(model, x)")
def pure(fn: Callable[P, R]) -> Callable[P, R]:
    """Checks that a function writes into none of its arguments and leaves the global RNG alone.

    Args:
        fn: any function; its arguments may be modules, tensors and pytrees of them.

    Returns:
        A function that does the same, and raises when ``fn`` was impure.

    Raises:
        ImpureError: after the call, if a leaf or its ``.grad`` was written in place, a list or dict
            was changed, a module was changed through its ``__dict__``, or the global random state
            of the CPU or a CUDA device moved. The message names the leaf's path.
        TypeError: if ``fn`` returns a coroutine or a generator, which would run after the check.

    Example:
        >>> import torch
        >>> from parallax import debug
        >>> debug.pure(lambda x: x.add_(1))(torch.zeros(2))
        Traceback (most recent call last):
        parallax.debug.pure.ImpureError: <lambda>() is not pure: it wrote into args[0] in place...
    """
    check_function("debug.pure", fn, "debug.pure(step)(model, x)")

    @wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = arguments(fn, args, kwargs)
        leaves = core.named_leaves(given)
        tensors = {path: _before(leaf) for path, leaf in tensors_in(given)}
        modules = {path: (module, dict(vars(module))) for path, module in _modules(given)}
        rng = _rng_states()
        result = fn(*args, **kwargs)
        refuse_deferred(result, "debug.pure")
        name = name_of(fn)
        for path, before in tensors.items():
            _refuse_write(name, path, before)
        for path, (module, attributes) in modules.items():
            _refuse_mutation(name, path, module, attributes)
        now = core.named_leaves(given)
        for path in {**leaves, **now}:
            if path not in leaves or path not in now or leaves[path] is not now[path]:
                raise ImpureError(
                    f"{name}() is not pure: it put something else in the place {path}. Make a new "
                    f"list or dict: [*items, item], {{**items, key: value}}"
                )
        for device, state in _rng_states().items():
            if device in rng and not torch.equal(state, rng[device]):
                raise ImpureError(
                    f"{name}() is not pure: it moved the global random state of {device}. Draw "
                    f"from a key: random.normal(key, shape); or pass generator="
                )
        return result

    return checked


def _before(tensor: Tensor) -> Before:
    version = None if tensor.is_inference() else tensor._version
    grad = tensor.grad if tensor.is_leaf else None
    # A write through .data or a NumPy view moves no counter, so the values are compared too.
    return Before(
        tensor,
        version,
        tensor.detach().clone(),
        tensor.requires_grad,
        None if grad is None else (grad, grad._version),
    )


def _refuse_write(name: str, path: str, before: Before) -> None:
    now = _before(before.tensor)
    if now.version != before.version or not same_bits(now.copy, before.copy):
        raise ImpureError(
            f"{name}() is not pure: it wrote into {path} in place. Compute a new tensor "
            f"(x + 1, not x.add_(1)), or work on a copy: x.clone()"
        )
    if now.requires_grad != before.requires_grad:
        raise ImpureError(
            f"{name}() is not pure: it changed {path}.requires_grad. Work on a tensor of its own: "
            f"x.detach().requires_grad_()"
        )
    one, two = now.grad, before.grad
    if (one is None) != (two is None) or (
        one and two and (one[0] is not two[0] or one[1] != two[1])
    ):
        raise ImpureError(
            f"{name}() is not pure: it wrote into {path}.grad. Ask for gradients as values: "
            f"func.grad(loss)(module, x), or prepare leaves inside: module = module.reset(rng)"
        )


def _modules(value: Any) -> list[tuple[str, Any]]:
    """Every module in a pytree, with its dotted path."""
    paths, found, _ = optree.tree_flatten_with_path(
        value, is_leaf=is_item, none_is_leaf=True, namespace=NAMESPACE
    )
    modules = []
    for path, item in zip(paths, found, strict=True):
        if is_module(item):
            survey = Survey(item)
            for entry in survey.chart.entries:
                if entry.is_module:
                    module = follow(item, entry.keys)
                    modules.append((notes.joined(*path, entry.path), module))
    return modules


def _refuse_mutation(name: str, path: str, module: Any, before: dict[str, Any]) -> None:
    now = vars(module)
    for field in {**before, **now}:
        # What a module keeps about itself may be found and kept during the call.
        if field.startswith("_") and field not in type(module).__layout__.fields:
            continue
        if field not in now or field not in before or now[field] is not before[field]:
            raise ImpureError(
                f"{name}() is not pure: it changed {path}.{field} through the module's __dict__. "
                f"Make a changed copy: module.replace({field}=...)"
            )


def _rng_states() -> dict[str, Tensor]:
    states = {"the CPU": torch.random.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            states[f"cuda:{index}"] = torch.cuda.get_rng_state(index)
    return states
