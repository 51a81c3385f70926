"""Changes of modules in a lowered one that code would ignore if it takes the tree apart.

A call of a child goes through its ``nn.Module``, with all that was put on it. Code that takes a
child apart, as ``split``, ``func.vmap`` over it or ``nn.Stack`` do, gets a tree of its tensors.
What is more than tensors would have no effect there, and is refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils import parametrize

from parallax._compat.opaque import real
from parallax.bridge.blueprint import Blueprint
from parallax.bridge.mirrors import changed_constant, layer_of
from parallax.bridge.places import modules_of, places_of, structure_in
from parallax.core.entries import Leaf
from parallax.core.structure import Structure

__all__ = ["require_as_made", "require_same_modules"]

_HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
}


def require_as_made(root: nn.Module, structure: Structure, path: str) -> None:
    """Raises if modules are not as they were made.

    Args:
        root: a lowered module.
        structure: what it stands for.
        path: where it stands in what is called; ``""`` is that itself, whose hooks have run.

    Raises:
        RuntimeError: if one was replaced, added or changed, or has another hook or forward.
    """
    for node, look in zip(modules_of(root, structure), _looks(structure), strict=True):
        what = _other_module(node, look)
        if what is None and (look.name or path):
            what = _added(node, look)
        if what is not None:
            raise RuntimeError(
                f"the lowered module {f'{path}.{look.name}'.strip('.')!r} {what}. The forward "
                f"above it takes it apart as a tree, with a transform or a method such as split, "
                f"and does not call it, so that this would be ignored. Have forward call it; or "
                f"change the tree before it is lowered"
            )


def require_same_modules(root: nn.Module, structure: Structure) -> None:
    """Raises if there is no tree any more that the modules are of.

    Raises:
        TypeError: if one was replaced, added or changed.
    """
    for node, look in zip(modules_of(root, structure), _looks(structure), strict=True):
        what = _other_module(node, look)
        if what is not None:
            raise TypeError(
                f"bridge.lift: the module {look.name!r} of a lowered {structure.cls.__name__} "
                f"{what}, for which the tree has no place. Lift the parts that stayed, and change "
                f"the tree itself: tree.select(model, path).set(new)"
            )


class Look(NamedTuple):
    """What a module of a lowered structure was when it was made."""

    name: str
    native: type | None  # the class of the nn.Module it was lifted from, if it was
    kind: Any  # the structure it stands for; None for those that only hold others
    hooks: tuple[int, ...]
    below: tuple[str, ...]  # the names of what it holds


@real
def _looks(structure: Structure) -> tuple[Look, ...]:
    """What the modules of a lowered structure were."""
    places, names = places_of(structure), [""]
    below: list[list[str]] = [[] for _ in places.kinds]
    for above, name in places.modules:
        names.append(f"{names[above]}.{name}" if names[above] else name)
        below[above].append(name)
    for (index, name), role in zip(places.slots, _roles(structure), strict=True):
        if role == "slot":
            below[index].append(name)
    return tuple(
        [
            _look(name, kind, tuple(held))
            for name, kind, held in zip(names, places.kinds, below, strict=True)
        ]
    )


def _roles(structure: Structure) -> list[str]:
    return [node.role for _, _, node in structure.walk() if type(node) is Leaf]


def _look(name: str, kind: Structure | None, below: tuple[str, ...]) -> Look:
    if kind is None:
        return Look(name, None, None, (0,) * len(_HOOKS), below)
    constants = kind.local.constants
    if constants and type(constants[0]) is Blueprint:
        hooks = tuple([len(constants[0].attributes.get(table, ())) for table in _HOOKS])
        return Look(name, constants[0].cls, kind, hooks, below)
    if layer_of(kind.cls) is nn.Sequential:
        below = tuple([str(key) for key in kind.children[0].keys()])  # noqa: SIM118  # no dict
    return Look(name, None, kind, (0,) * len(_HOOKS), below)


def _other_module(node: Any, look: Look) -> str | None:
    """Says so if a module is none that was made for this node of the tree."""
    if look.native is not None:
        same = look.native in (type(node), parametrize.type_before_parametrizations(node))
    elif look.kind is not None:
        found = structure_in(node)
        same = found is not None and found.cls is look.kind.cls
    else:
        same = True
    if not same:
        return f"is a {type(node).__name__} now"
    for name in node._modules:
        if name not in look.below and name != "parametrizations":
            return f"has a module {name!r} more"
    if look.kind is None or look.native is not None:
        return None
    changed = changed_constant(node, look.kind)
    return None if changed is None else f"has another {changed}"


def _added(node: Any, look: Look) -> str | None:
    """What was put on a module."""
    if look.kind is None and type(node) is not nn.Module:
        return None  # a list, which is not called in torch either
    if "forward" in node.__dict__:
        return "has a forward of its own"
    for (table, what), count in zip(_HOOKS.items(), look.hooks, strict=True):
        if len(getattr(node, table)) > count:
            return f"has {what}"
    return None
