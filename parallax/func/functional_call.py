"""``functional_call``: a module called with other parameters than its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parallax._compat import dynamo
from parallax.core.nodes import is_module
from parallax.tree import core
from parallax.tree.places import Survey
from parallax.tree.rebuild import rebuild

__all__ = ["functional_call"]

_swapping = threading.RLock()


def functional_call(
    module: Any,
    parameter_and_buffer_dicts: Any,
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    *,
    tie_weights: bool = True,
    strict: bool | None = None,
) -> Any:
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
    args = () if args is None else args if isinstance(args, tuple) else (args,)
    named = _named(module, parameter_and_buffer_dicts)
    if is_module(module):
        return _replaced(module, named, tie_weights, strict)(*args, **(kwargs or {}))
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"functional_call: expected a parallax.Module or an nn.Module, "
            f"got {type(module).__name__}"
        )
    return _call_nn(module, named, args, kwargs, tie_weights, strict)


def _named(module: Any, given: Any) -> dict[str, Any]:
    """All the tensors by dotted name."""
    parts = given if isinstance(given, (tuple, list)) else (given,)
    named: dict[str, Any] = {}
    for part in parts:
        if is_module(part):
            if is_module(module):
                core.columns(module, (part,))  # raises where the skeletons differ
            part = _by_place(part)  # noqa: PLW2901  # in the form of the others
        if not isinstance(part, Mapping):
            raise TypeError(
                f"functional_call: expected a dict of tensors by dotted name, a module, or a tuple "
                f"of these, got {type(part).__name__}"
            )
        twice = named.keys() & part.keys()
        if twice:
            raise ValueError(f"functional_call: {sorted(twice)} came in two of the dicts")
        named.update(part)
    return named


def _by_place(module: Any) -> dict[str, Any]:
    """The leaves of a module by the path where each stands first, holes left out."""
    return {path: leaf for path, leaf in core.with_paths(module) if leaf is not None}


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
    present = {path for path, k in zip(paths, index, strict=True) if leaves[k] is not None}
    given_for = {index[place] for place, path in enumerate(paths) if path in named}
    placed = zip(paths, index, strict=True)
    needed = [p for p, k in placed if p in present and k not in given_for]
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
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    every = {**parameters, **buffers}
    covered = {id(every[name]) for name in named if name in every}
    needed = [name for name, tensor in every.items() if id(tensor) not in covered]
    _check_names(type(module).__name__, every, named, needed, strict)
    tensors = {name: tensor for name, tensor in named.items() if name in every}
    for name, buffer in buffers.items():
        # A tied buffer is given once: torch refuses different tensors for its places.
        if name in tensors:
            tensors[name] = tensors[name].clone()
        elif id(buffer) not in covered:
            covered.add(id(buffer))
            tensors[name] = buffer.clone()
    call = torch.func.functional_call
    if dynamo.is_compiling():
        return call(module, tensors, args, kwargs, tie_weights=tie_weights)
    with _swapping:  # torch exchanges the tensors of the very module while it runs
        return call(module, tensors, args, kwargs, tie_weights=tie_weights)
