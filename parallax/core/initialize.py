"""Giving declared leaves their values, each from the seed and its own path."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import partial
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from parallax import random
from parallax._compat import functorch
from parallax.core.arguments import device_of
from parallax.core.fields import Lazy
from parallax.core.registry import flatten_module, unflatten_module
from parallax.random import seeds, sources
from parallax.random.seeds import Twister

__all__ = ["Following", "Several", "initialize"]


class Several:
    """The initializer of one tensor that holds a leaf of several equal modules.

    Each member gets the value that it would have in a tuple in the place of the module that holds
    them: ``stack.block.weight`` is filled as ``stack.0.weight``, ``stack.1.weight`` and so on.

    Attributes:
        member: the declaration of the leaf in one of the modules.
        below: the path of the leaf, as the holder sees it, in two parts: the name of the field
            that stands for all, and the rest.
        count: how many there are.
        members: the declaration of each.
    """

    __slots__ = ("below", "count", "member", "members")

    def __init__(self, member: Lazy, below: tuple[str, str], count: int) -> None:
        self.member = member
        self.below = below
        self.count = count
        self.members = [member] * count

    def __call__(self, tensor: Tensor) -> None:
        """Refuses: it is asked for one member after the other."""
        raise TypeError("a declaration of several leaves is initialized by its path")

    def paths(self, path: str) -> list[str]:
        """The paths of the members, from the path of the tensor that holds all."""
        field, rest = self.below
        above = path.removesuffix(f"{field}.{rest}")
        return [f"{above}{k}.{rest}" for k in range(self.count)]


class Following:
    """An initializer that goes by the values of other leaves, which are declared before.

    Attributes:
        fill: fills a tensor in place; it is given the values of the others after it.
        others: the paths of the others, as the module that holds the declaration sees them.
    """

    __slots__ = ("fill", "others")

    def __init__(self, fill: Callable[..., object], *others: str) -> None:
        self.fill = fill
        self.others = others

    def __call__(self, tensor: Tensor) -> None:
        """Refuses: by itself it has nothing to go by."""
        raise TypeError("a declaration that follows others is initialized after them")

    def declared(
        self, lazy: Lazy, path: str, values: dict[str, Any], member: tuple[int, ...]
    ) -> Lazy:
        """The declaration on its own, once the others have values: those of this member."""
        above = path[: path.rfind(".") + 1]
        found = [values[above + other] for other in self.others]
        given = [value[member].to("cpu") for value in found]

        def fill_(tensor: Tensor) -> None:
            self.fill(tensor, *[value.to(tensor.dtype) for value in given])

        return type(lazy)(lazy.shape, fill_, dtype=lazy.dtype)


def initialize(module: Any, rng: Any, *, device: Any = None, dtype: Any = None) -> Any:
    """What ``Module.initialize`` does; see there."""
    leaves, structure = flatten_module(module)
    if type(rng) is random.Key and functorch.is_mapped(rng.data):
        return _of_each_member(module, rng.data, device, dtype)
    target = None if device is None else device_of("initialize", device)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"initialize(dtype=): expected a torch.dtype, got {dtype!r}")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(
            f"initialize(dtype={dtype}): it replaces the dtype of floating leaves and must be "
            f"floating. Give other leaves theirs in place: Parameter(shape, init, dtype={dtype})"
        )
    seed = seeds.derive(sources.seed_of(rng), "initialize")
    present = [leaf for leaf in leaves if leaf is not None]
    if present and not any(isinstance(leaf, Lazy) for leaf in present):
        name = type(module).__name__
        raise RuntimeError(
            f"{name} is initialized already. Initialize the declaration again for other values: "
            f"{name.lower()} = {name}(...).initialize(rng)"
        )
    target = target or torch.get_default_device()
    values: list[Any] = []
    with torch.no_grad(), _on_the_cpu():
        for path, leaf in zip(structure.paths, leaves, strict=True):
            if isinstance(leaf, Lazy):
                where = f"{type(module).__name__}.{path}"
                if target.type != "meta":
                    leaf = _apart(leaf, path, structure, values)  # noqa: PLW2901  # likewise
                leaf = _drawn(leaf, seed, path, target, dtype, where)  # noqa: PLW2901  # the leaf's value
            values.append(leaf)
    return unflatten_module(structure, values, module._rng)


def _of_each_member(module: Any, keys: Tensor, device: Any, dtype: Any) -> Any:
    """As ``initialize`` under ``vmap`` over keys: the values that each member's key gives."""
    leaves, structure = flatten_module(module)
    declared = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Lazy)]

    def drawn(key: Tensor) -> list[Tensor]:
        one = initialize(module, random.Key(key), device=device, dtype=dtype)
        found = flatten_module(one)[0]
        return [found[k] for k in declared]

    values = list(leaves)
    for k, value in zip(declared, functorch.member_by_member(drawn, keys), strict=True):
        values[k] = value
    return unflatten_module(structure, values, module._rng)


def _apart(lazy: Lazy, path: str, structure: Any, values: list[Any]) -> Lazy:
    """A declaration that does not go by other leaves any more, which have their values now."""
    innermost: Any = lazy.init
    while type(innermost) is Several:
        innermost = innermost.member.init
    if type(innermost) is not Following:
        return lazy
    index = structure.expand or range(structure.n_places)
    places = zip(structure.place_paths, index, strict=True)
    placed = {place: values[k] for place, k in places if k < len(values)}
    return _each_apart(lazy, path, placed, ())


def _each_apart(lazy: Lazy, path: str, placed: dict[str, Any], at: tuple[int, ...]) -> Lazy:
    """As above for the member ``at`` of several of several, where the values are placed."""
    init: Any = lazy.init
    if type(init) is Following:
        return init.declared(lazy, path, placed, at)
    several = Several(init.member, init.below, init.count)
    several.members = [_each_apart(init.member, path, placed, (*at, k)) for k in range(init.count)]
    return type(lazy)(lazy.shape, several, dtype=lazy.dtype)


def _on_the_cpu() -> AbstractContextManager[Any]:
    """Where draws are made; torch's device context costs more than a small draw, if not needed."""
    cpu = torch.device("cpu")
    return contextlib.nullcontext() if torch.get_default_device() == cpu else cpu


def _drawn(
    lazy: Lazy, seed: int, path: str, target: torch.device, dtype: torch.dtype | None, where: str
) -> Tensor:
    """The tensor of one declaration, whose numbers depend on its path."""
    init: Any = lazy.init
    if type(init) is Several:
        members = zip(init.members, init.paths(path), strict=True)
        return torch.stack([_drawn(one, seed, p, target, dtype, where) for one, p in members])
    return _value(lazy, seeds.derive(seed, path), target, dtype, where)


def _value(
    lazy: Lazy, seed: int, target: torch.device, dtype: torch.dtype | None, where: str
) -> Tensor:
    """The tensor of one declaration.

    Drawn on the CPU, in at least single precision, so that the numbers depend on neither the
    device nor (up to rounding) a lower precision.
    """
    final = dtype if dtype is not None and lazy.is_floating_point() else lazy.dtype
    if target.type == "meta":
        return torch.empty(lazy.shape, dtype=final, device=target)
    drawn = torch.float32 if final in (torch.float16, torch.bfloat16) else final
    try:
        value = _run(lazy.init, lazy.shape, drawn, seed, where)
    except Exception as error:
        error.add_note(f"This came from {_name(lazy.init)}, the initializer of {where}.")
        raise
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
    failures: list[Exception] = []
    for form in _forms(init):
        try:
            value = _seeded(partial(form, init, shape, dtype), init, seed)
        except Exception as error:  # not this form, or a mistake of its own
            failures.append(error)
            continue
        if isinstance(value, Tensor):
            return value
        failures.append(TypeError(f"it returned {type(value).__name__}"))
    if not isinstance(failures[0], TypeError):
        raise failures[0]
    raise TypeError(
        f"{where}: the initializer {_name(init)} is neither an in-place function of a tensor "
        f"(torch.nn.init.zeros_) nor a function of a shape (torch.zeros): {failures[0]}"
    ) from failures[0]


def _forms(init: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The forms that an initializer may have, the likeliest first."""
    name, parameters = _name(init), _parameters(init)
    if name.endswith("_") and not name.endswith("__"):
        return [_in_place]
    if parameters is None or next(iter(parameters), "") in ("shape", "size"):
        return [_from_shape, _in_place]
    return [_in_place, _from_shape]


def _in_place(init: Callable[..., Any], shape: torch.Size, dtype: torch.dtype, **kw: Any) -> Any:
    tensor = torch.empty(shape, dtype=dtype)
    result = init(tensor, **kw)
    return tensor if result is None or result is tensor else _own(result, dtype)


def _from_shape(init: Callable[..., Any], shape: torch.Size, dtype: torch.dtype, **kw: Any) -> Any:
    parameters = _parameters(init)
    if parameters is None:  # torch's factories take a dtype and do not say so
        with contextlib.suppress(TypeError):
            return _own(init(tuple(shape), dtype=dtype, **kw), dtype)
    elif "dtype" in parameters:
        kw["dtype"] = dtype
    return _own(init(tuple(shape), **kw), dtype)


def _own(result: Any, dtype: torch.dtype) -> Any:
    """A copy: an initializer may give the same tensor twice, or a view that repeats one element."""
    if not isinstance(result, Tensor):
        return result
    return result.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def _seeded(form: Callable[..., Any], init: Callable[..., Any], seed: int) -> Any:
    if _innermost(init) in _DRAWLESS:
        return form()
    try:
        twister = _idle.pop()
    except IndexError:  # all are in use: an initializer may initialize a module of its own
        twister = Twister()
    try:
        generator = twister.seeded(seed)
        if "generator" in (_parameters(init) or ()):
            return form(generator=generator)
        before = torch.random.get_rng_state()
        try:
            torch.random.set_rng_state(twister.state)
            return form()
        finally:
            torch.random.set_rng_state(before)
    finally:
        _idle.append(twister)


_DRAWLESS = (torch.nn.init.zeros_, torch.nn.init.ones_, torch.nn.init.constant_)
"""Initializers that need no numbers: to seed a generator takes as long as they do."""

_idle: list[Twister] = []


def _parameters(init: Callable[..., Any]) -> Collection[str] | None:
    """The names of an initializer's parameters; ``None`` for a builtin that does not tell.

    What a function takes is asked once: `inspect` needs longer than the draws of a small layer.
    """
    if isinstance(init, partial) and not init.args:
        return _parameters(init.func)
    if type(init) is not FunctionType:
        return _inspected(init)
    found = _known.get(init)
    if found is None:
        found = _known[init] = _inspected(init)
    return found


_known: WeakKeyDictionary[FunctionType, Collection[str] | None] = WeakKeyDictionary()


def _inspected(init: Callable[..., Any]) -> Collection[str] | None:
    try:
        return tuple(inspect.signature(init).parameters)
    except (TypeError, ValueError):
        return None


def _innermost(init: Callable[..., Any]) -> Any:
    inner: Any = init
    while isinstance(inner, partial):
        inner = inner.func
    return inner


def _name(init: Callable[..., Any]) -> str:
    inner = _innermost(init)
    return str(getattr(inner, "__name__", type(inner).__name__))
