"""Checks at run time: is a function pure, does it repeat itself, where do non-finite numbers begin?

Each takes a function and returns one of the same arguments and results that checks as it runs. They
cost copies and comparisons of every leaf, so they are for looking into something, not for training.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import optree
import torch
from torch import Tensor

from parallax import _compat, notes, random, tracing
from parallax.nodes import is_module
from parallax.registry import NAMESPACE, flatten_module, unflatten_module
from parallax.tree import core

__all__ = ["ImpureError", "NonFiniteError", "deterministic", "nans", "pure"]

P = ParamSpec("P")
R = TypeVar("R")


class ImpureError(RuntimeError):
    """A function changed what it was given, or the global random state."""


class NonFiniteError(ArithmeticError):
    """A number is infinite or not a number."""


# -- pure -----------------------------------------------------------------------------------


class Before(NamedTuple):
    """What one tensor was before the call."""

    tensor: Tensor
    version: int | None
    copy: Tensor


def pure(fn: Callable[P, R]) -> Callable[P, R]:
    """Checks that a function writes into nothing it is given and leaves the global RNG alone.

    Args:
        fn: any function; its arguments may be modules, tensors and pytrees of them.

    Returns:
        A function that does the same, and raises when ``fn`` was impure.

    Raises:
        ImpureError: after the call, if a leaf was written in place, a module was changed through
            its ``__dict__``, or the global random state of the CPU or a CUDA device moved. The
            message names the leaf's path.

    Example:
        >>> import torch
        >>> from parallax import debug
        >>> debug.pure(lambda x: x.add_(1))(torch.zeros(2))
        Traceback (most recent call last):
        parallax.debug.ImpureError: <lambda>() is not pure: it wrote into args[0] in place...
    """

    @wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = {f"args[{k}]": value for k, value in enumerate(args)} | dict(kwargs)
        tensors = {path: _before(leaf) for path, leaf in _tensors(given)}
        modules = {path: (module, dict(vars(module))) for path, module in _modules(given)}
        rng = _rng_states()
        result = fn(*args, **kwargs)
        name = _name(fn)
        for path, before in tensors.items():
            if _written(before):
                raise ImpureError(
                    f"{name}() is not pure: it wrote into {path} in place. Compute a new tensor "
                    f"(x + 1, not x.add_(1)), or work on a copy: x.clone()"
                )
        for path, (module, attributes) in modules.items():
            _refuse_mutation(name, path, module, attributes)
        for device, state in _rng_states().items():
            if device in rng and not torch.equal(state, rng[device]):
                raise ImpureError(
                    f"{name}() is not pure: it moved the global random state of {device}. Draw "
                    f"from a key: random.normal(key, shape); or pass generator="
                )
        return result

    return checked


def _tensors(value: Any) -> list[tuple[str, Tensor]]:
    return [(p, leaf) for p, leaf in core.named_leaves(value).items() if isinstance(leaf, Tensor)]


def _before(tensor: Tensor) -> Before:
    version = None if tensor.is_inference() else tensor._version
    # A write through .data or a NumPy view moves no counter, so the values are compared too.
    return Before(tensor, version, tensor.detach().clone())


def _written(before: Before) -> bool:
    tensor, version, copy = before
    if version is not None and tensor._version != version:
        return True
    return not _same_bits(tensor.detach(), copy)


def _same_bits(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype or one.device != two.device:
        return False
    if one.device.type == "meta" or one.numel() == 0:
        return True
    if one.layout is not torch.strided:
        one, two = one.to_dense(), two.to_dense()
    if one.is_quantized:
        one, two = one.int_repr(), two.int_repr()
    return torch.equal(_bytes(one), _bytes(two))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _modules(value: Any) -> list[tuple[str, Any]]:
    """Every module in a pytree, with its dotted path."""
    paths, found, _ = optree.tree_flatten_with_path(
        value, is_leaf=is_module, none_is_leaf=True, namespace=NAMESPACE
    )
    modules = []
    for path, item in zip(paths, found, strict=True):
        if is_module(item):
            modules += [(notes.joined(*path, below), m) for below, m in tracing.modules(item)]
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


def _name(fn: Callable[..., Any]) -> str:
    return str(getattr(fn, "__name__", type(fn).__name__))


# -- deterministic --------------------------------------------------------------------------


def deterministic(fn: Callable[P, R]) -> Callable[P, R]:
    """Checks that a function returns the same bits when it is run twice.

    Args:
        fn: any function of modules, tensors and pytrees of them. Keys may be used by both runs.

    Returns:
        A function that runs ``fn`` twice and returns the first result.

    Raises:
        ImpureError: if the results differ; the message names the first leaf that does.

    Example:
        >>> import torch
        >>> from parallax import debug
        >>> debug.deterministic(torch.sin)(torch.zeros(2))
        tensor([0., 0.])
    """

    @wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        with random.reuse():
            one, two = fn(*args, **kwargs), fn(*args, **kwargs)
        first, second = dict(_leaves(one)), dict(_leaves(two))
        for path in {**first, **second}:
            if path not in first or path not in second or not _equal(first[path], second[path]):
                where = f" at {path}" if path else ""
                raise ImpureError(
                    f"{_name(fn)}() is not deterministic: two runs on the same arguments differ"
                    f"{where}. Look for draws without a key, and for operators that "
                    f"torch.use_deterministic_algorithms(True) names"
                )
        return one

    return checked


def _leaves(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Tensor):
        return [("", value)]
    return list(core.named_leaves(value).items())


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return _same_bits(one.detach(), two.detach())
    return type(one) is type(two) and bool(one == two or one != one)  # noqa: PLR0124  # nan


# -- nans -----------------------------------------------------------------------------------


def nans(fn: Callable[P, R]) -> Callable[P, R]:
    """Finds the first module whose output is not finite.

    The function is run under ``sys.setprofile``, which sees every ``forward`` return: no module is
    touched, and it works within transforms. It does not look into compiled functions.

    Args:
        fn: a function whose arguments hold modules.

    Returns:
        A function that does the same, and raises when a number is not finite.

    Raises:
        NonFiniteError: as soon as a module returns infinities or nans, naming its path; if an
            argument holds some, before the call; if only the result does, after it.

    Example:
        >>> import torch
        >>> from parallax import Module, debug
        >>> class Log(Module):
        ...     def forward(self, x):
        ...         return x.log()
        >>> class Net(Module):
        ...     log: Log
        ...     def forward(self, x):
        ...         return self.log(x) + 1
        >>> debug.nans(Net.forward)(Net(Log()), torch.zeros(1))
        Traceback (most recent call last):
        parallax.debug.NonFiniteError: log (Log) returned 1 of 1 numbers that are not...
    """

    @wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = {f"args[{k}]": value for k, value in enumerate(args)} | dict(kwargs)
        for path, leaf in _tensors(given):
            _refuse_non_finite(leaf, f"{path}, an argument,")
        inner: Any = _addressed(args)
        options: Any = _addressed(kwargs)
        run: Callable[..., R] = fn
        with _Watch():
            result = run(*inner, **options)
        for path, leaf in _leaves(result):
            if isinstance(leaf, Tensor):
                _refuse_non_finite(leaf, f"{_name(fn)}(){'.' if path else ''}{path}")
        return result

    return checked


def _addressed(value: Any) -> Any:
    """A pytree whose modules know their paths; those that do already keep them, and their rng."""
    items, spec = optree.tree_flatten(
        value, is_leaf=is_module, none_is_leaf=True, namespace=NAMESPACE
    )
    for index, item in enumerate(items):
        if is_module(item) and notes.note_of(item).path is None:
            leaves, structure = flatten_module(item)
            items[index] = unflatten_module(notes.addressed(structure), leaves, item._rng)
    return optree.tree_unflatten(spec, items)


class _Watch:
    """Looks at what every ``forward`` of a module returns, on this thread."""

    def __enter__(self) -> None:
        self.before = sys.getprofile()
        sys.setprofile(_on_return)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self.before)


def _on_return(frame: Any, event: str, result: Any) -> None:
    code = frame.f_code
    if event != "return" or code.co_name != "forward" or code.co_argcount == 0:
        return
    module = frame.f_locals.get(code.co_varnames[0])
    if is_module(module) and result is not None:
        path = notes.note_of(module).path or type(module).__name__
        for _, leaf in _leaves(result):
            if isinstance(leaf, Tensor):
                _refuse_non_finite(leaf, f"{path} ({type(module).__name__})", returned=True)


def _refuse_non_finite(tensor: Tensor, who: str, *, returned: bool = False) -> None:
    value = torch.func.debug_unwrap(tensor, recurse=True)
    if not (value.is_floating_point() or value.is_complex()) or value.device.type == "meta":
        return
    with _compat.outside_transforms(), torch.no_grad():
        bad = int((~torch.isfinite(value)).sum())
    if bad:
        verb = "returned" if returned else "holds"
        raise NonFiniteError(f"{who} {verb} {bad} of {value.numel()} numbers that are not finite")
