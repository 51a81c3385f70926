"""Checks at run time: is a function pure, does it repeat itself, where do non-finite numbers begin?

Each takes a function and returns one of the same arguments and results that checks as it runs. They
cost copies and comparisons of every leaf, so they are for looking into something, not for training.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any, NamedTuple, ParamSpec, TypeVar

import optree
import torch
from torch import Tensor

from parallax import random
from parallax._compat import functorch
from parallax.core import notes
from parallax.core.arguments import check_function
from parallax.core.nodes import is_module
from parallax.core.registry import NAMESPACE, flatten_module, unflatten_module
from parallax.effects.running import refuse_deferred
from parallax.tree import core
from parallax.tree.places import Survey, follow

__all__ = ["ImpureError", "NonFiniteError", "deterministic", "nans", "pure"]

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


class NonFiniteError(ArithmeticError):
    """A number is infinite or NaN.

    Example:
        >>> import torch
        >>> from parallax import debug
        >>> try:
        ...     debug.nans(torch.log)(torch.zeros(2))
        ... except debug.NonFiniteError as error:
        ...     print(error)
        log() holds 2 of 2 numbers that are not finite
    """


# -- pure -----------------------------------------------------------------------------------


class Before(NamedTuple):
    """What one tensor was before the call."""

    tensor: Tensor
    version: int | None
    copy: Tensor
    requires_grad: bool
    grad: tuple[Tensor, int] | None


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
        parallax.debug.ImpureError: <lambda>() is not pure: it wrote into args[0] in place...
    """
    check_function("debug.pure", fn, "debug.pure(step)(model, x)")

    @wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = _given(fn, args, kwargs)
        leaves = core.named_leaves(given)
        tensors = {path: _before(leaf) for path, leaf in _tensors(given)}
        modules = {path: (module, dict(vars(module))) for path, module in _modules(given)}
        rng = _rng_states()
        result = fn(*args, **kwargs)
        refuse_deferred(result, "debug.pure")
        name = _name(fn)
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


def _tensors(value: Any) -> list[tuple[str, Tensor]]:
    return [(p, leaf) for p, leaf in core.named_leaves(value).items() if isinstance(leaf, Tensor)]


def _given(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All that a call is given by name; a module that is called, or whose method is, as well."""
    owner = fn if is_module(fn) else getattr(fn, "__self__", None)
    given = {"self": owner} if is_module(owner) else {}
    return given | {f"args[{k}]": value for k, value in enumerate(args)} | kwargs


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
    if now.version != before.version or not _same_bits(now.copy, before.copy):
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


def _same_bits(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype or one.device != two.device:
        return False
    one, two = (torch.func.debug_unwrap(tensor, recurse=True).detach() for tensor in (one, two))
    with functorch.outside_transforms():
        return one.shape == two.shape and _equal_bits(one, two)


def _equal_bits(one: Tensor, two: Tensor) -> bool:
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
        TypeError: if ``fn`` returns a coroutine or a generator, which would run after the check.

    Example:
        >>> import torch
        >>> from parallax import debug
        >>> debug.deterministic(torch.sin)(torch.zeros(2))
        tensor([0., 0.])
    """
    check_function("debug.deterministic", fn, "debug.deterministic(loss)(model, x)")

    @wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        with random.reuse():
            one = fn(*args, **kwargs)
            refuse_deferred(one, "debug.deterministic")
            two = fn(*args, **kwargs)
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
        TypeError: if ``fn`` returns a coroutine or a generator, which would run after the check.

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
    check_function("debug.nans", fn, "debug.nans(loss)(model, x)")

    @wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for path, leaf in _tensors(_given(fn, args, kwargs)):
            _refuse_non_finite(leaf, f"{path}, an argument,")
        inner: Any = _addressed(args)
        options: Any = _addressed(kwargs)
        run: Any = fn
        owner = getattr(run, "__self__", None)
        if is_module(run):
            run = _addressed(run)
        elif is_module(owner):
            run = MethodType(run.__func__, _addressed(owner))
        with _Watch():
            result: R = run(*inner, **options)
        refuse_deferred(result, "debug.nans")
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
    with functorch.outside_transforms(), torch.no_grad():
        bad = int((~torch.isfinite(value)).sum())
    if bad:
        verb = "returned" if returned else "holds"
        raise NonFiniteError(f"{who} {verb} {bad} of {value.numel()} numbers that are not finite")
