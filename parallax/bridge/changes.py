"""Changes of the modules in a lowered one that code which takes the tree apart would pass by.

A call of a child goes through its ``nn.Module``, with all that was put on it. Code that takes a
child apart, as ``split``, ``func.vmap`` over it or ``nn.Stack`` do, gets a tree of its tensors.
What is more than tensors would have no effect there, and is refused.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from parallax._compat.opaque import real
from parallax.bridge.blueprint import Blueprint
from parallax.bridge.places import modules_of, places_of, structure_in
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
        RuntimeError: if one was replaced, or has another hook or forward.
    """
    for node, look in zip(modules_of(root, structure), _looks(structure), strict=True):
        if look is not None and (look[0] or path):
            what = _replaced(node, look) or _added(node, look)
            if what is not None:
                where = f"{path}.{look[0]}".strip(".")
                raise RuntimeError(
                    f"the lowered module {where!r} {what}. The forward above it takes it apart as "
                    f"a tree, with a transform or a method such as split, and does not call it, so "
                    f"that this would be ignored. Have forward call it; or change the tree before "
                    f"it is lowered"
                )


def require_same_modules(root: nn.Module, structure: Structure) -> None:
    """Raises if modules were replaced, so that there is no tree they are of.

    Raises:
        TypeError: if one was.
    """
    for node, look in zip(modules_of(root, structure), _looks(structure), strict=True):
        what = None if look is None else _replaced(node, look)
        if look is not None and what is not None:
            raise TypeError(
                f"bridge.lift: the module {look[0]!r} of a lowered {structure.cls.__name__} "
                f"{what}, for which the tree has no place. Lift the new module itself, and put it "
                f"into the tree: tree.select(model, path).set(bridge.lift(module))"
            )


# The name of a module, the class of the ``nn.Module`` it was lifted from, if it was, the class of
# the tree, and how many hooks it was made with.
Look = tuple[str, type | None, type, tuple[int, ...]]


@real
def _looks(structure: Structure) -> tuple[Look | None, ...]:
    """What the modules of a lowered structure were; ``None`` for those that only hold others."""
    places, names = places_of(structure), [""]
    for above, name in places.modules:
        names.append(f"{names[above]}.{name}" if names[above] else name)
    pairs = zip(names, places.kinds, strict=True)
    return tuple([None if kind is None else _look(name, kind) for name, kind in pairs])


def _look(name: str, kind: Structure) -> Look:
    constants = kind.local.constants
    if constants and type(constants[0]) is Blueprint:
        blueprint = constants[0]
        hooks = tuple([len(blueprint.attributes.get(table, ())) for table in _HOOKS])
        return name, blueprint.cls, kind.cls, hooks
    return name, None, kind.cls, (0,) * len(_HOOKS)


def _replaced(node: Any, look: Look) -> str | None:
    """Says so if a module is none that was made for this node of the tree."""
    _, native, cls, _ = look
    if native is None:
        found = structure_in(node)
        same = found is not None and found.cls is cls
    else:
        same = native in (type(node), parametrize.type_before_parametrizations(node))
    return None if same else f"is a {type(node).__name__} now"


def _added(node: Any, look: Look) -> str | None:
    """What was put on a module."""
    if "forward" in node.__dict__:
        return "has a forward of its own"
    for (table, what), count in zip(_HOOKS.items(), look[3], strict=True):
        if len(getattr(node, table)) > count:
            return f"has {what}"
    return None
