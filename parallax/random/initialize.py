"""``initialize``: declared leaves get values, each drawn from the seed and its own path."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from parallax import random
from parallax._compat import dynamo, functorch, shards
from parallax._errors.arguments import shown
from parallax.core.fields import Lazy
from parallax.core.registry import flatten_module, unflatten_module
from parallax.random import seeds, sources
from parallax.random.seeds import Twister
from parallax.random.shares import PIECE, Share, Spreading, drawn_in_pieces, share_of
from parallax.random.targets import target_of

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
        """Raises: the initializer is called for each member instead."""
        raise TypeError("a declaration of several leaves is initialized by its path")

    def paths(self, path: str) -> list[str]:
        """The paths of the members, from the path of the tensor that holds all."""
        field, rest = self.below
        above = path.removesuffix(f"{field}.{rest}")
        return [f"{above}{k}.{rest}" for k in range(self.count)]


class Following:
    """An initializer that depends on the values of other leaves, which are declared before it.

    Attributes:
        fill: fills a tensor in place; it is given the values of the others after it.
        others: the paths of the others, as the module that holds the declaration sees them.
    """

    __slots__ = ("fill", "others")

    def __init__(self, fill: Callable[..., object], *others: str) -> None:
        self.fill = fill
        self.others = others

    def __call__(self, tensor: Tensor) -> None:
        """Raises: without the values of the others there is nothing to compute from."""
        raise TypeError("a declaration that follows others is initialized after them")

    def declared(
        self, lazy: Lazy, path: str, values: dict[str, Any], member: tuple[int, ...]
    ) -> Lazy:
        """The declaration on its own, once the others have values: those of this member."""
        above = path[: path.rfind(".") + 1]
        found = [shards.whole(values[above + other]) for other in self.others]
        given = [value[member].to("cpu") for value in found]

        def fill_(tensor: Tensor) -> None:
            self.fill(tensor, *[value.to(tensor.dtype) for value in given])

        return type(lazy)(lazy.shape, fill_, dtype=lazy.dtype)


def initialize(module: Any, rng: Any, device: Any, dtype: Any, plan: Spreading | None) -> Any:
    """The implementation of ``Module.initialize``."""
    if dynamo.is_compiling():
        dynamo.end_graph(
            "initialize: values are drawn outside of compiled code. Write model = "
            "model.initialize(rng) before, and give the model to the compiled function"
        )
    return _initialized(module, rng, device, dtype, plan)


def _initialized(
    module: Any, rng: Any, device: Any, dtype: Any, plan: Spreading | None = None
) -> Any:
    leaves, structure = flatten_module(module)
    if type(rng) is random.Key and functorch.is_mapped(rng.data):
        if plan is not None:
            raise TypeError(
                "initialize(plan=): not under vmap over keys. Write plan.apply(model) outside of it"
            )
        return _of_each_member(module, rng.data, device, dtype)
    try:
        seed = seeds.derive(sources.seed_of(rng), "initialize")
        target = target_of(module, leaves, device, dtype)
    except (RuntimeError, TypeError, ValueError) as error:
        if plan is not None and hasattr(plan, "raise_in_all"):
            plan.raise_in_all("initialize(plan=)", error)
        raise
    shares: list[Share | None] = [None] * len(leaves)
    if plan is not None:
        shares, target = _shares(plan, module, seed, target, dtype)
    target = target or torch.get_default_device()
    values: list[Any] = []
    with torch.no_grad(), _on_the_cpu():
        for path, leaf, share in zip(structure.paths, leaves, shares, strict=True):
            if isinstance(leaf, Lazy):
                where = f"{type(module).__name__}.{path}"
                if target.type != "meta":
                    leaf = _apart(leaf, path, structure, values)  # noqa: PLW2901  # likewise
                drawn = _drawn(leaf, path, _Leaf(seed, target, dtype, where), share)
                leaf = drawn if share is None else share.place(drawn)  # noqa: PLW2901  # its value
            elif share is not None:
                leaf = share.spread(leaf)  # noqa: PLW2901  # likewise
            values.append(leaf)
    made = unflatten_module(structure, values, module._rng)
    return made if plan is None else plan.marked(made)


dynamo.run_as_it_is(_initialized)


def _shares(
    plan: Any, module: Any, seed: int, target: torch.device | None, dtype: torch.dtype | None
) -> tuple[list[Share | None], torch.device | None]:
    """Of each leaf what this process holds, and where; the same call in all processes."""
    if not hasattr(plan, "shares_of"):
        raise TypeError(
            f"initialize(plan=): expected a distributed.Plan, got {shown(plan)}. Write "
            f"plan = distributed.Plan(distributed.mesh(dp=2), dp=distributed.replicate())"
        )
    facts = (f"the seed is {seed}", f"dtype is {dtype}", f"device is {target and target.type}")
    shares, on = plan.shares_of(module, *facts)
    if on is None:
        return shares, target
    if target is not None and target.type not in (on, "meta"):
        raise ValueError(
            f"initialize(device={str(target)!r}): the plan's mesh is of {on!r} devices. Leave "
            f"device= out, or write distributed.mesh(..., device_type={target.type!r})"
        )
    return shares, target or torch.device(on)


def _of_each_member(module: Any, keys: Tensor, device: Any, dtype: Any) -> Any:
    """As ``initialize`` under ``vmap`` over keys: the values that each member's key gives."""
    leaves, structure = flatten_module(module)
    declared = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Lazy)]

    def drawn(key: Tensor) -> list[Tensor]:
        one = initialize(module, random.Key(key), device, dtype, None)
        found = flatten_module(one)[0]
        return [found[k] for k in declared]

    values = list(leaves)
    for k, value in zip(declared, functorch.member_by_member(drawn, keys), strict=True):
        values[k] = value
    return unflatten_module(structure, values, module._rng)


def _apart(lazy: Lazy, path: str, structure: Any, values: list[Any]) -> Lazy:
    """A declaration that no longer depends on other leaves, as they have their values now."""
    innermost: Any = lazy.init
    while type(innermost) is Several:
        innermost = innermost.member.init
    if type(innermost) is not Following:
        return lazy
    index = structure.leaf_at
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


class _Leaf(NamedTuple):
    """What the value of a leaf depends on besides its declaration and its path."""

    seed: int
    target: torch.device
    dtype: torch.dtype | None
    where: str  # for errors

    def dtype_of(self, lazy: Lazy) -> torch.dtype:
        """What the leaf is at last."""
        return self.dtype if self.dtype and lazy.is_floating_point() else lazy.dtype


def _drawn(lazy: Lazy, path: str, of: _Leaf, share: Share | None) -> Tensor:
    """The tensor of one declaration, or a share of it; its numbers depend on its path."""
    init: Any = lazy.init
    shape = lazy.shape if share is None else torch.Size(share.shape)
    if of.target.type == "meta":
        return torch.empty(shape, dtype=of.dtype_of(lazy), device=of.target)
    if type(init) is not Several:
        value = _value(lazy, seeds.derive(of.seed, path), of.dtype_of(lazy), of.where, share)
        return value.to(of.target)
    inner = None if share is None else share.of_one()
    members = zip(init.members, init.paths(path), strict=True)
    values = (_drawn(one, name, of, inner) for one, name in members)
    if share is None or shape.numel() <= PIECE:
        return torch.stack(list(values))
    value = torch.empty(shape, dtype=of.dtype_of(lazy), device=of.target)
    for row, member in zip(value, values, strict=True):
        row.copy_(member)
    return value


def _value(lazy: Lazy, seed: int, final: torch.dtype, where: str, share: Share | None) -> Tensor:
    """The tensor of one declaration, or a share of it, on the CPU.

    Drawn there, in at least single precision, so that the numbers depend on neither the device nor
    (up to rounding) a lower precision.
    """
    drawn = torch.float32 if final in (torch.float16, torch.bfloat16) else final
    try:
        if share is not None and lazy.numel() > PIECE and _forms(lazy.init)[0] is _in_place:
            fill = partial(_in_pieces, shape=lazy.shape, dtype=drawn, final=final, share=share)
            part: Tensor | None = _seeded(partial(fill, lazy.init), lazy.init, seed)
            if part is not None:
                return part
        value = _run(lazy.init, lazy.shape, drawn, seed, where)
    except Exception as error:
        error.add_note(f"This came from {_name(lazy.init)}, the initializer of {where}.")
        raise
    if value.shape != lazy.shape:
        raise TypeError(
            f"{where}: the initializer {_name(lazy.init)} returned shape {tuple(value.shape)}, "
            f"but {tuple(lazy.shape)} is declared"
        )
    value = value.detach()
    return (value if share is None else share_of(value, share)).to(final)


def _in_pieces(init: Callable[..., Any], *, share: Share, **how: Any) -> Tensor | None:
    """As ``drawn_in_pieces``, with whatever else the initializer takes."""
    where = {name: how.pop(name) for name in ("shape", "dtype", "final")}
    return drawn_in_pieces(partial(init, **how), share=share, **where)


def _run(
    init: Callable[..., Any], shape: torch.Size, dtype: torch.dtype, seed: int, where: str
) -> Tensor:
    """Calls an initializer in the form it has: in place on a tensor, or from a shape."""
    failures: list[Exception] = []
    for form in _forms(init):
        try:
            value = _seeded(partial(form, init, shape, dtype), init, seed)
        except Exception as error:  # not this form, or an error in the initializer
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
    """The forms that an initializer may have, the most likely first."""
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
    if parameters is None:  # torch's factories take a dtype, without a signature that shows it
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
    """The names of an initializer's parameters; ``None`` for a builtin without a signature.

    The result is kept: ``inspect`` takes longer than the draws of a small layer.
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
