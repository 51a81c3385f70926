"""How modules are shown: a ``repr`` like torch's, HTML for notebooks."""

from __future__ import annotations

import html
from typing import Any, NamedTuple

from torch import Tensor

from parallax._compat import shards
from parallax.core.containers import keys_of, opened
from parallax.core.fields import Lazy
from parallax.core.frozendict import FrozenDict
from parallax.core.module_structure import leaves_of
from parallax.core.nodes import is_module
from parallax.core.structure import Structure

__all__ = ["html_of", "repr_of", "shape_text"]

_MAX_LINES = 400


def repr_of(module: Any, *, shapes: bool = False) -> str:
    """The text of ``repr(module)``: nested like torch's, equal neighbours written once."""
    lines = _lines(module, Look(shapes))
    if len(lines) > _MAX_LINES:
        left = len(lines) - _MAX_LINES + 2
        lines = [*lines[: _MAX_LINES - 2], f"  ... {left:,} more lines", lines[-1]]
    return "\n".join(lines)


class Look(NamedTuple):
    """How the lines of a module look."""

    shapes: bool  # whether leaves have lines, with dtype and shape
    stays: bool = False  # whether a module around it is marked to stay in eval
    frozen: bool = False  # whether a module around it is marked as frozen


def _lines(module: Any, look: Look) -> list[str]:
    head = module.extra_repr()
    told = "" if look.stays else _mode_mark(module)
    frozen = not look.frozen and _is_frozen(module)
    mark = ("" if look.shapes else _mark(module)) + " (frozen)" * frozen + told
    below = look._replace(stays=look.stays or told == _STAYS, frozen=look.frozen or frozen)
    inner = _collapse(_parts(module) or [], below, numbered=False)
    name = type(module).__name__
    if not inner:
        return [*f"{name}({head}){mark}".split("\n")]
    body = head.split("\n") if head else []
    return [f"{name}(", *_indent([*body, *inner]), f"){mark}"]


_STAYS = " (stays in eval)"


def _mode_mark(module: Any) -> str:
    structure = module._spec
    if type(structure) is not Structure or not structure.note.stays_eval:
        return ""
    whole = all([node.note.stays_eval for node in structure.modules().values()])
    return _STAYS if whole else " (stays in eval, not all below)"


def _is_frozen(module: Any) -> bool:
    """Whether it has parameters, and all are frozen."""
    held = module._spec
    return type(held) is Structure and "parameter" in held.roles and not held.trained


def _mark(module: Any) -> str:
    """What is to be said of the leaves of a module."""
    found = _own_leaves(module)
    if any(isinstance(leaf, Lazy) for leaf in found):
        return " (uninitialized)"
    if not shards.any_distributed(found):
        return ""
    told = [shards.shown(leaf) for leaf in found if leaf is not None]
    return f" ({'; '.join(dict.fromkeys(told))})"


def _entry(value: Any, look: Look) -> list[str]:
    """The lines of a child; without shapes none for leaves and for containers of them alone."""
    if is_module(value):
        return _lines(value, look)
    parts = _parts(value)
    if parts is None:
        if value is None or isinstance(value, (Tensor, Lazy)):
            return [shape_text(value)] if look.shapes and value is not None else []
        return [_constant_text(value)]
    inner = _collapse(parts, look, numbered=type(value) is tuple)
    if not (look.shapes or any(is_module(p) or _parts(p) is not None for _, p in parts)):
        return []
    return [f"{_class_name(value)}(", *_indent(inner), ")"] if inner else []


def _collapse(parts: list[tuple[str, Any]], look: Look, *, numbered: bool) -> list[str]:
    """The labelled lines of all children; a run of equal items once, as in a ``ModuleList``."""
    runs: list[tuple[str, str, int, list[str]]] = []
    for key, value in parts:
        lines = _entry(value, look)
        if numbered and runs and runs[-1][3] == lines:
            runs[-1] = (runs[-1][0], key, runs[-1][2] + 1, lines)
        else:
            runs.append((key, key, 1, lines))
    out: list[str] = []
    for first, last, count, lines in runs:
        if lines and count == 1:
            out += [f"({first}): {lines[0]}", *lines[1:]]
        elif lines:
            out += [f"({first}-{last}): {count} x {lines[0]}", *lines[1:]]
    return out


def _indent(lines: list[str]) -> list[str]:
    return ["  " + line for line in lines]


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """The named children of a module or container; ``None`` for anything else."""
    cls = type(value)
    if is_module(value):
        if hasattr(cls, "__shown__"):  # a container whose items stand for it, as in torch
            return cls.__shown__(value)  # type: ignore[no-any-return]  # a list of pairs
        return [(name, getattr(value, name)) for name in cls.__layout__.children]
    found = opened(value)
    if found is None:
        return None
    constants, children = found
    keys = keys_of(cls, constants, len(children))
    return [(str(key), child) for key, child in zip(keys, children, strict=True)]


_SHORT = {"float": "f", "bfloat": "bf", "complex": "c", "int": "i", "uint": "u"}


def shape_text(leaf: Any) -> str:
    """The dtype and shape of a tensor or declaration in short, ``f32[16,2]``, and how it is cut."""
    name = str(leaf.dtype).removeprefix("torch.")
    kind = name.rstrip("0123456789") if "_" not in name else ""
    short = _SHORT.get(kind, kind) + name.removeprefix(kind) if kind else name
    text = f"{short}[{','.join([str(size) for size in leaf.shape])}]"
    if isinstance(leaf, Lazy):
        return f"{text} uninitialized"
    return f"{text} {shards.shown(leaf)}" if shards.is_distributed(leaf) else text


def _constant_text(value: Any) -> str:
    """A constant in the place of a child: a function by its name."""
    return str(getattr(value, "__name__", None) or repr(value))


def _class_name(value: Any) -> str:
    return "dict" if isinstance(value, FrozenDict) else type(value).__name__


def _own_leaves(module: Any) -> list[Any]:
    """The leaves of a module that belong to no module below it."""
    found: list[Any] = []
    stack = [value for _, value in _parts(module) or []]
    while stack:
        value = stack.pop()
        if is_module(value):
            continue
        parts = _parts(value)
        if parts is None:
            found.append(value)
        else:
            stack += [part for _, part in parts]
    return found


# -- HTML ---------------------------------------------------------------------------------------

_STYLE = "font-family:monospace;white-space:pre;overflow-x:auto"
_MAX_HTML_NODES = 2000


def html_of(module: Any) -> str:
    """Foldable HTML of a module: nested ``<details>``, no scripts, styles or other assets."""
    budget = [_MAX_HTML_NODES]
    return f'<div style="{_STYLE}">{_html("", module, budget, is_open=True)}</div>'


def _html(
    name: str, value: Any, budget: list[int], *, is_open: bool = False, frozen: bool = False
) -> str:
    budget[0] -= 1
    if budget[0] < 0:
        return "" if budget[0] < -1 else "<div>...</div>"
    label = f"{html.escape(name)}: " if name else ""
    parts = _parts(value)
    if parts is None:
        return f"<div>{label}{html.escape(_leaf_text(value))}</div>"
    title = f"{_class_name(value)} of {len(parts)}"
    if is_module(value):
        leaves = [leaf for leaf in leaves_of(value) if isinstance(leaf, (Tensor, Lazy))]
        count = f"{sum(leaf.numel() for leaf in leaves):,} numbers" if leaves else ""
        told = " (frozen)" if _is_frozen(value) and not frozen else ""
        frozen = frozen or bool(told)
        marks = f"{count}{told}{_mode_mark(value)}".lstrip()
        name, shown = html.escape(type(value).__name__), html.escape(value.extra_repr())
        title = f"<b>{name}</b>({shown})" + f' <span style="opacity:.6">{marks}</span>' * bool(
            marks
        )
    inner = "".join(_html(k, item, budget, frozen=frozen) for k, item in parts)
    return _fold(label + title, inner, is_open)


def _fold(title: str, inner: str, is_open: bool) -> str:
    if not inner:
        return f"<div>{title}</div>"
    opened = " open" if is_open else ""
    body = f'<div style="margin-left:1.5em">{inner}</div>'
    return f"<details{opened}><summary>{title}</summary>{body}</details>"


def _leaf_text(value: Any) -> str:
    if isinstance(value, (Tensor, Lazy)):
        dtype = str(value.dtype).removeprefix("torch.")
        mark = ", uninitialized" if isinstance(value, Lazy) else ""
        return f"{dtype}{list(value.shape)}{mark}"
    return "None" if value is None else _constant_text(value)
