"""What the reference has to know of Parallax's classes and docstrings, told to griffe."""

# pyright: reportMissingImports=false
# (griffe comes with the extra docs; nothing imports this file where it is absent)
from __future__ import annotations

import inspect
import re
from contextlib import suppress
from typing import Any

import griffe

from parallax import nn, optim

# Their metaclass, or __init_subclass__, makes dataclasses of the classes below them.
ROOTS = {"parallax.core.module.Module", "parallax.optim.value.Value"}


class Parallax(griffe.Extension):
    """Fields become arguments of the constructor; docstrings become Markdown."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite what Markdown spells in another way."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Mark the dataclasses, of which griffe writes the constructors; find hidden functions."""
        mark_dataclasses(pkg)
        resolve(pkg)
        for room in pkg.modules.values():
            uncover(room)
        for completed in (nn, optim):
            complete(completed, pkg)


def as_markdown(text: str) -> str:
    """A docstring as griffe and Markdown understand it."""
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return re.sub(r":math:`([^`]*)`", r"\\(\1\\)", text)


def mark_dataclasses(parent: griffe.Module | griffe.Class) -> None:
    """Give a class that has fields and no ``__init__`` the decorator of a dataclass."""
    decorator = griffe.ExprName("dataclass", parent=griffe.ExprName("dataclasses"))
    for member in parent.members.values():
        if isinstance(member, griffe.Class) and generated(member):
            member.decorators.append(griffe.Decorator(decorator, lineno=None, endlineno=None))
        if isinstance(member, griffe.Module | griffe.Class):
            mark_dataclasses(member)


def generated(cls: griffe.Class) -> bool:
    """Whether the class gets a constructor made of its fields."""
    written = "__init__" in cls.members or str(cls.keywords.get("init")) == "False"
    return not written and any(base.path in ROOTS for base in cls.mro())


def resolve(parent: griffe.Module) -> None:
    """Look up what the modules import, as long as each stands under its own name."""
    for member in parent.members.values():
        if isinstance(member, griffe.Alias):
            with suppress(griffe.AliasResolutionError, griffe.CyclicAliasError):
                member.resolve_target()
        elif isinstance(member, griffe.Module):
            resolve(member)


def complete(room: Any, pkg: griffe.Module) -> None:
    """Take the docstrings of layers and optimizers, which the package completes."""
    for name in room.__all__:
        if docstring := pkg.modules[room.__name__.rpartition(".")[2]][name].docstring:
            docstring.value = as_markdown(inspect.getdoc(getattr(room, name)) or "")


def uncover(room: griffe.Module) -> None:
    """Put the function ``func.grad`` in the place of the file ``func/grad.py``."""
    for name in map(str, room.exports or ()):
        file, imported = room.members[name], room.imports.get(name)
        if isinstance(file, griffe.Module) and imported not in (None, file.path):
            hidden = room.modules_collection[imported]
            room.members[name] = griffe.Alias(name, target=hidden, parent=room)
