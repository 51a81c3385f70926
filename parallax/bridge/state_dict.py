"""State dicts: a module's leaves by name, the names that ``torch.nn`` gives them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax._compat import shards
from parallax._errors.arguments import check_flags, check_module, shown
from parallax.core.fields import Lazy, UninitializedError
from parallax.core.registry import flatten_module, unflatten_module
from parallax.tree.state_names import names_of

__all__ = ["load_state_dict", "loaded", "misfit", "state_dict"]

M = TypeVar("M")
_MOST_LISTED = 20


def state_dict(module: Any) -> dict[str, Tensor]:
    """The leaves of a module by dotted name, as ``nn.Module.state_dict`` names them.

    Args:
        module: the module.

    Returns:
        A new dict. Its tensors share storage with the leaves and carry no graph. A tied leaf stands
        under each of its names; holes and, of a lifted module, the buffers that are not
        persistent are left out.

    Raises:
        TypeError: if it is no module.
        UninitializedError: if a leaf has no value yet.
        ValueError: if two leaves have the same name.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from parallax import bridge
        >>> list(bridge.state_dict(bridge.lift(nn.Linear(2, 1))))
        ['weight', 'bias']
    """
    check_module("bridge.state_dict", module)
    leaves, structure = flatten_module(module)
    found = {}
    for name, index in names_of(structure):
        leaf = leaves[index]
        if isinstance(leaf, Lazy):
            raise UninitializedError(
                f"{type(module).__name__}.{name} is not initialized, so there is nothing to save. "
                f"Initialize first: module = module.initialize(rng)"
            )
        if leaf is not None:
            found[name] = leaf.detach()
    return found


def load_state_dict(
    module: M,
    mapping: Mapping[str, Any],
    *,
    strict: bool = True,
    assign: bool = False,
    cast: bool = False,
) -> M:
    """A module with the leaves that a state dict names; the module that is given stays as it is.

    Args:
        module: the module; declarations and leaves on the meta device get their values, too.
        mapping: tensors by name. A tied leaf needs one of its names; if several are given, their
            values must be equal.
        strict: whether every name of the module must be given, and no other. Otherwise leaves
            without a value stay, and other names are ignored.
        assign: the tensors of ``mapping`` themselves become leaves, whatever their dtype and
            device. By default they are copied to the device of the leaf (of a leaf on the meta
            device: they stay where they are), and must have its dtype. Of a distributed leaf
            (``DTensor``) each process takes its part; all processes of its mesh load together.
        cast: with ``assign=False``, convert values to the dtype of the leaf.

    Returns:
        The new module.

    Raises:
        RuntimeError: if names are missing or unexpected, or a shape or dtype is another: all
            of them are listed, as ``nn.Module.load_state_dict`` does.
        TypeError: if a value is no tensor, or ``mapping`` is no mapping.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from parallax import bridge
        >>> linear = bridge.lift(nn.Linear(1, 1))
        >>> new = {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}
        >>> bridge.load_state_dict(linear, new)(torch.tensor([2.0]))
        tensor([2.])
    """
    check_module("bridge.load_state_dict", module)
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"load_state_dict(module, mapping): expected tensors by name, got {shown(mapping)}. "
            f"Give a dict such as {{'weight': torch.zeros(2)}}, or what torch.load returns"
        )
    check_flags("bridge.load_state_dict", strict=strict, assign=assign, cast=cast)
    for name in mapping:
        if not isinstance(name, str):
            raise TypeError(f"load_state_dict: the names are strings, got {name!r}")

    def place(value: Tensor, leaf: Any) -> Tensor:
        return value.detach() if assign else _placed(value, leaf)

    return loaded(module, mapping, strict, cast or assign, place)


def loaded(
    module: M,
    mapping: Mapping[str, Any],
    strict: bool,
    any_dtype: bool,
    place: Callable[[Tensor, Any], Tensor],
) -> M:
    """As ``load_state_dict``; ``place`` makes a leaf of a value and the leaf it replaces."""
    leaves, structure = flatten_module(module)
    names = [(name, k) for name, k in names_of(structure) if leaves[k] is not None]
    problems = _unmatched(names, mapping) if strict else []
    fresh: dict[int, Any] = {}
    for name, k in names:
        if name in mapping:
            value = mapping[name]
            problem = misfit(name, value, leaves[k], any_dtype)
            if problem is None and k in fresh:
                problem = _contradiction(name, value, k, names, mapping)
            if problem is not None:
                problems.append(problem)
            elif k not in fresh:
                fresh[k] = place(value, leaves[k])
    if problems:
        text = "\n\t".join(problems)
        raise RuntimeError(f"Error(s) in loading state_dict for {type(module).__name__}:\n\t{text}")
    values = [fresh.get(k, leaf) for k, leaf in enumerate(leaves)]
    return unflatten_module(structure, values, module._rng)  # type: ignore[no-any-return, attr-defined]  # a module as given


def _unmatched(names: list[tuple[str, int]], mapping: Mapping[str, Any]) -> list[str]:
    """What torch says of names that are missing or too many."""
    given = {k for name, k in names if name in mapping}
    missing = [name for name, k in names if k not in given]
    expected = {name for name, _ in names}
    unexpected = [name for name in mapping if name not in expected]
    problems = []
    if missing:
        problems.append(f"Missing key(s) in state_dict: {_listed(missing)}. ")
    if unexpected:
        problems.append(f"Unexpected key(s) in state_dict: {_listed(unexpected)}. ")
    if missing and unexpected:
        problems += _hint(missing, unexpected)
    if any(name.rpartition(".")[2] == "_extra_state" for name in unexpected):
        problems.append(
            "What get_extra_state returned is no leaf. Load it into the nn.Module and lift that, "
            "or leave it out: strict=False."
        )
    return problems


def _listed(names: list[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:_MOST_LISTED])
    return shown + (f", and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else "")


def _hint(missing: list[str], unexpected: list[str]) -> list[str]:
    """What to write when the names differ by a prefix, or nearly agree."""
    for name in unexpected:
        for wanted in missing:
            if name.endswith("." + wanted):
                prefix = name.removesuffix(wanted)
                line = f"name.removeprefix({prefix!r}): value for name, value in mapping.items()"
                return [f"The names differ by the prefix {prefix!r}. Take it off: {{{line}}}"]
    near = difflib.get_close_matches(unexpected[0], missing, n=1)
    return [f'Did you mean "{near[0]}" by "{unexpected[0]}"?'] if near else []


def misfit(name: str, value: Any, leaf: Any, any_dtype: bool) -> str | None:
    """Why a value cannot take the place of a leaf; ``None`` if it can."""
    if not isinstance(value, Tensor):
        raise TypeError(f'load_state_dict: "{name}" is {type(value).__name__}, expected a tensor')
    layout = leaf.layout if isinstance(leaf, Tensor) else torch.strided
    if value.layout != layout:
        return f"layout mismatch for {name}: {value.layout} in checkpoint, {layout} in module."
    if value.shape != leaf.shape:
        return (
            f"size mismatch for {name}: copying a param with shape {value.shape} from checkpoint, "
            f"the shape in current model is {leaf.shape}."
        )
    if value.dtype != leaf.dtype and not any_dtype:
        return (
            f"dtype mismatch for {name}: {value.dtype} in checkpoint, {leaf.dtype} in current "
            f"model. Convert with cast=True."
        )
    return None


def _contradiction(
    name: str, value: Tensor, k: int, names: list[tuple[str, int]], mapping: Mapping[str, Any]
) -> str | None:
    """Says so if two names of a tied leaf have different values."""
    first = next(other for other, index in names if index == k and other in mapping)
    same = mapping[first]
    if same is value:
        return None
    value = shards.placed_as(value.to(same.device), same)
    if same.dtype == value.dtype and torch.equal(same, value):
        return None
    return f'"{first}" and "{name}" are one tied tensor in the model, and their values differ.'


def _placed(value: Tensor, leaf: Any) -> Tensor:
    """A copy of the value with the dtype, device and placement of the leaf it is for."""
    value = shards.placed_as(value.detach(), leaf)
    device = value.device
    if isinstance(leaf, Tensor) and not leaf.is_meta:
        device = leaf.device
    return value.to(device=device, dtype=leaf.dtype, copy=True)
