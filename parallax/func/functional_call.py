"""``functional_call``: a module called with other parameters than its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from parallax._compat import dynamo
from parallax.core.nodes import is_module
from parallax.func.arguments import check_flags, short
from parallax.func.signatures import HasForward, R
from parallax.tree import core
from parallax.tree.places import Survey
from parallax.tree.rebuild import rebuild

__all__ = ["functional_call"]

_swapping = threading.RLock()


def functional_call(
    module: HasForward[R],
    parameter_and_buffer_dicts: Any,
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    *,
    tie_weights: bool = True,
    strict: bool | None = None,
) -> R:
    """Calls a module with other tensors in place of its own, as ``torch.func.functional_call``.

    Nothing that was passed is written to: an ``nn.Module`` that updates its buffers (BatchNorm)
    updates copies, which are dropped.

    Args:
        module: a Parallax module or any ``nn.Module``.
        parameter_and_buffer_dicts: the tensors: a dict by dotted name, for a Parallax module also
            a tree of its structure whose holes keep the module's own, or a tuple of several.
        args: the positional arguments; anything but a tuple is the only one.
        kwargs: the keyword arguments.
        tie_weights: whether a tensor that is given for one of several tied places goes to all.
        strict: what happens to names that do not fit. By default a name that the module does not
            have is refused and one that is not given keeps the module's tensor; ``True`` refuses
            that too; ``False`` ignores unknown names.

    Returns:
        What the module returned.

    Raises:
        KeyError: if a name does not fit.
        TypeError: if the tensors come in another form.
        ValueError: if one name comes twice, or tied places are given different tensors.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, func
        >>> class Scale(Module):
        ...     by: Parameter
        ...     def forward(self, x):
        ...         return self.by * x
        >>> func.functional_call(Scale(torch.ones(())), {"by": torch.tensor(3.0)}, torch.ones(()))
        tensor(3.)
    """
    check_flags("functional_call", tie_weights=tie_weights)
    if strict is not None:
        check_flags("functional_call", strict=strict)
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(
            f"functional_call: kwargs must be a dict of keyword arguments, got {short(kwargs)}. "
            f"Write kwargs={{'name': value}}"
        )
    args = () if args is None else args if isinstance(args, tuple) else (args,)
    named = _named(module, parameter_and_buffer_dicts)
    if is_module(module):
        replaced = _replaced(module, named, tie_weights, strict)
        return cast(R, replaced(*args, **(kwargs or {})))
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"functional_call: module must be a parallax.Module or an nn.Module, "
            f"got {short(module)}. Give the module itself, and its tensors after it"
        )
    return cast(R, _call_nn(module, named, args, kwargs, tie_weights, strict))


def _named(module: Any, given: Any) -> dict[str, Any]:
    """All the tensors by dotted name."""
    parts = given if isinstance(given, (tuple, list)) else (given,)
    named: dict[str, Any] = {}
    for part in parts:
        if is_module(part):
            if is_module(module):
                core.columns(module, (part,))  # raises where the skeletons differ
            part = core.named_leaves(part)  # noqa: PLW2901  # in the form of the others
        if not isinstance(part, Mapping):
            raise TypeError(
                f"functional_call: expected a dict of tensors by dotted name, a module, or a tuple "
                f"of these, got {short(part)}. Write {{'layer.weight': tensor}}"
            )
        twice = named.keys() & part.keys()
        if twice:
            raise ValueError(f"functional_call: {sorted(twice)} came in two of the dicts")
        named.update(part)
    return named


def _check_names(
    cls: str,
    known: Iterable[str],
    named: dict[str, Any],
    needed: Iterable[str],
    strict: bool | None,
) -> None:
    have = list(known)
    unknown = [name for name in named if name not in set(have)]
    if unknown and strict is not False:
        close = _closest(unknown[0], have)
        raise KeyError(
            f"functional_call: {cls} has no parameter or buffer {unknown[0]!r}. {close}"
            f"To ignore names it does not have: strict=False"
        )
    missing = [name for name in needed if name not in named]
    if missing and strict:
        raise KeyError(f"functional_call: strict=True, and nothing is given for {missing}")


def _closest(name: str, have: list[str]) -> str:
    import difflib

    found = difflib.get_close_matches(name, have, 1, 0.0)
    return f"Did you mean {found[0]!r}? " if found else ""


# -- Parallax modules ---------------------------------------------------------------------------


def _replaced(module: Any, named: dict[str, Any], tie_weights: bool, strict: bool | None) -> Any:
    leaves, spec = core.opened(module)
    part = spec.parts[0]
    paths = part.place_paths
    index = core.expand_of(part)
    placed = list(zip(paths, index, strict=True))
    present = {path for path, k in placed if leaves[k] is not None}
    given_for = {index[place] for place, path in enumerate(paths) if tie_weights and path in named}
    needed = [p for p, k in placed if p in present and p not in named and k not in given_for]
    _check_names(type(module).__name__, [p for p in paths if p in present], named, needed, strict)
    if tie_weights or len(leaves) == len(paths):
        values = list(leaves)
        source: dict[int, str] = {}
        for place, path in enumerate(paths):
            if path in named:
                k = index[place]
                if k in source and named[path] is not named[source[k]]:
                    raise ValueError(
                        f"functional_call: {source[k]} and {path} are one tied leaf of "
                        f"{type(module).__name__} and were given different tensors. Give one, or "
                        f"take them apart: tie_weights=False"
                    )
                source[k] = path
                values[k] = named[path]
        return spec.build(values)
    survey = Survey(module)
    everywhere = [entry for entry in survey.chart.entries if entry.cls is None]
    edits = [(entry, named[entry.path]) for entry in everywhere if entry.path in named]
    return rebuild(survey, edits)


# -- nn.Module ------------------------------------------------------------------------------------


def _call_nn(
    module: nn.Module,
    named: dict[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    tie_weights: bool,
    strict: bool | None,
) -> Any:
    every: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    every.update(buffers)
    covered = {id(every[name]) for name in named if tie_weights and name in every}
    needed = [name for name in every if name not in named and id(every[name]) not in covered]
    _check_names(type(module).__name__, every, named, needed, strict)
    for name, value in named.items():
        if name in every and not isinstance(value, Tensor):
            raise TypeError(
                f"functional_call: {name} must be a tensor, got {short(value)}. "
                f"Leave it out to keep the module's own"
            )
    tensors = _by_slot(module, every, buffers, named, tie_weights)
    copies: dict[int, Tensor] = {}
    for name in buffers:
        if name in tensors:
            source = tensors[name]
            if id(source) not in copies:
                copies[id(source)] = source.clone()
            tensors[name] = copies[id(source)]
    call = torch.func.functional_call
    if dynamo.is_compiling():
        return call(module, tensors, args, kwargs, tie_weights=False)
    with _swapping:  # torch exchanges the tensors of this module while it runs
        return call(module, tensors, args, kwargs, tie_weights=False)


def _by_slot(
    module: nn.Module,
    every: dict[str, Tensor],
    buffers: dict[str, Tensor],
    named: dict[str, Any],
    tie_weights: bool,
) -> dict[str, Tensor]:
    """What is given for each attribute of each module, under its first name, and every buffer.

    A module that stands in two places has two names for one attribute, which torch exchanges
    twice, and so does not put back.
    """
    slots = {
        f"{path}.{name}" if path else name: (id(owner), name)
        for path, owner in module.named_modules(remove_duplicate=False)
        for name in (*owner._parameters, *owner._buffers)
    }
    tied: dict[int, set[tuple[int, str]]] = {}
    if tie_weights:
        for name, tensor in every.items():
            tied.setdefault(id(tensor), set()).add(slots[name])
    source: dict[tuple[int, str], str] = {}
    for name in [name for name in named if name in every]:
        for slot in tied.get(id(every[name]), {slots[name]}):
            if named[source.setdefault(slot, name)] is not named[name]:
                raise ValueError(
                    f"functional_call: {source[slot]} and {name} are tied in "
                    f"{type(module).__name__} and were given different tensors. Give one; or, "
                    f"where two modules share a tensor, take them apart: tie_weights=False"
                )
    found: dict[str, Tensor] = {}
    met: set[tuple[int, str]] = set()
    for name, tensor in every.items():
        slot = slots[name]
        if slot not in met and (slot in source or name in buffers):
            found[name] = named[source[slot]] if slot in source else tensor
        met.add(slot)
    return found
