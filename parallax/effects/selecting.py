"""Which modules of a tree a capture or an intervention is about."""

from __future__ import annotations

import difflib
from typing import Any

from parallax._compat.opaque import real
from parallax._errors.arguments import shown
from parallax.core.module_structure import spec_of
from parallax.core.structure import Structure, derived

__all__ = ["lifted_among", "paths_of"]


def paths_of(module: Any, what: Any, by: str) -> tuple[str, ...]:
    """The paths of the modules that one condition means, in the order of the tree.

    Each place of a module that stands in several is meant for itself.

    Args:
        module: the tree.
        what: a dotted path, a glob over modules, or a class.
        by: what is called, for error messages.

    Raises:
        LookupError: if no module is meant.
        TypeError: if ``what`` is neither text nor a class.
    """
    if isinstance(what, str):
        return _by_text(spec_of(module), what, by)
    if isinstance(what, type):
        return _by_class(spec_of(module), what, by)
    raise TypeError(
        f"{by}: cannot select modules by {shown(what)}. Give a path 'encoder.layers.0', a glob "
        f"'encoder.layers.*.attention', or a class"
    )


@real
def lifted_among(structure: Structure, paths: tuple[str, ...]) -> str | None:
    """The first of these paths at which a lifted module stands, ``None`` for none."""
    modules = structure.modules()
    return next((path for path in paths if hasattr(modules[path].cls, "__tells__")), None)


@real
@derived
def _by_text(structure: Structure, text: str, by: str) -> tuple[str, ...]:
    paths = tuple(structure.modules())
    found = (text,) if text in paths else _by_glob(text, paths)
    found = found or _by_state_name(structure, text, paths)
    if not found:
        raise LookupError(f"{by}: {_nothing(structure, text, paths)}")
    return found


def _by_glob(text: str, paths: tuple[str, ...]) -> tuple[str, ...]:
    from parallax.tree.paths import matching  # which stands on modules, and they on this

    if not any([mark in text for mark in "*?["]):
        return ()
    # The root has no segment that a glob could match.
    return tuple([paths[k] for k in matching(text, paths) if paths[k]])


def _by_state_name(structure: Structure, text: str, paths: tuple[str, ...]) -> tuple[str, ...]:
    """The modules that a state dict calls so: ``"0"`` for ``"layers.0"`` of a ``Sequential``."""
    from parallax.tree.state_names import names_within

    nodes = [path for path, _, node in structure.walk() if type(node) is Structure]
    begins = names_within(structure)[1]
    named: dict[str, str] = {}
    for node, begin in zip(nodes, begins, strict=True):
        path, name = ".".join(map(str, node)), begin.removesuffix(".")
        if name and name != path and path in paths:
            named.setdefault(name, path)
    meant = (text,) if text in named else _by_glob(text, tuple(named))
    return tuple([named[name] for name in meant])


def _nothing(structure: Structure, text: str, paths: tuple[str, ...]) -> str:
    name = structure.cls.__name__
    held = {".".join(map(str, path)): node for path, _, node in structure.walk()}.get(text)
    if held is not None:
        what = held.cls.__name__ if type(held) is Structure else getattr(held, "role", "constant")
        inside = any(path.startswith(f"{text}.") for path in paths)
        instead = f"{text}.*" if inside else text.rpartition(".")[0]
        return f"{text!r} of {name} is a {what}, and modules are meant. Write {instead!r}"
    near = difflib.get_close_matches(text, paths, n=5, cutoff=0.4)
    last = text.rsplit(".", maxsplit=1)[-1]
    near += [path for path in paths if path.split(".")[-1] == last and path not in near][:3]
    listed = ", ".join([path for path in near or paths[:6] if path]) or "none but itself"
    word = "Near misses" if near else "It holds"
    return f"no module of {name} is at {text!r}. {word}: {listed}"


@real
def _by_class(structure: Structure, cls: Any, by: str) -> tuple[str, ...]:
    # The type of lifted modules of one class of nn.Module tells by what such a node holds.
    describes = getattr(cls, "describes", None)
    modules = structure.modules()
    found = [
        path
        for path, node in modules.items()
        if (issubclass(node.cls, cls) if describes is None else describes(node))
    ]
    if not found:
        held = ", ".join(sorted({node.cls.__name__ for node in modules.values()}))
        raise LookupError(
            f"{by}: {structure.cls.__name__} has no {cls.__name__}. It has modules of {held}"
        )
    return tuple(found)
