"""How modules are shown: ``repr`` as torch's, a summary table, HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from parallax.fields import Lazy
from parallax.layout import leaves_of, spec_of
from parallax.nodes import is_module
from parallax.structure import Structure

__all__ = ["Row", "Summary", "html_of", "repr_of", "summary"]

_MAX_LINES = 400


def repr_of(module: Any) -> str:
    """The text of ``repr(module)``: nested like torch's, equal neighbours written once."""
    lines = _lines(module)
    if len(lines) > _MAX_LINES:
        left = len(lines) - _MAX_LINES
        lines = [*lines[: _MAX_LINES - 1], f"  ... {left} more lines", lines[-1]]
    return "\n".join(lines)


def _lines(module: Any) -> list[str]:
    head = module.extra_repr()
    mark = " (uninitialized)" if any(isinstance(v, Lazy) for v in _own_leaves(module)) else ""
    inner = [line for name, value in _children(module) for line in _entry(name, value)]
    name = type(module).__name__
    if not inner:
        return [*f"{name}({head}){mark}".split("\n")]
    body = [head] if head else []
    return [f"{name}(", *_indent([*body, *inner]), f"){mark}"]


def _entry(name: str, value: Any) -> list[str]:
    if is_module(value):
        return _label(name, _lines(value))
    if isinstance(value, (tuple, dict)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        items = [(str(key), item) for key, item in pairs if _shown(item)]
        if not items:
            return []
        return _label(name, [f"{type(value).__name__}(", *_indent(_collapse(items)), ")"])
    return []


def _collapse(items: list[tuple[str, Any]]) -> list[str]:
    """One entry for a run of equal neighbours, as ``torch.nn.ModuleList`` prints."""
    runs: list[tuple[str, str, list[str]]] = []
    for key, item in items:
        lines = _entry("", item)[:]
        lines[0] = lines[0].removeprefix("(): ")
        if runs and runs[-1][2] == lines:
            runs[-1] = (runs[-1][0], key, lines)
        else:
            runs.append((key, key, lines))
    out = []
    for first, last, lines in runs:
        if first == last:
            out += _label(first, lines)
        else:
            count = int(last) - int(first) + 1 if last.isdigit() else "several"
            out += _label(f"{first}-{last}", [f"{count} x {lines[0]}", *lines[1:]])
    return out


def _shown(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_shown(item) for item in value.values())
    if isinstance(value, tuple):
        return any(_shown(item) for item in value)
    return is_module(value)


def _label(name: str, lines: list[str]) -> list[str]:
    return [f"({name}): {lines[0]}", *lines[1:]]


def _indent(lines: list[str]) -> list[str]:
    return ["  " + line for line in lines]


def _children(module: Any) -> Iterator[tuple[str, Any]]:
    for name in type(module).__layout__.children:
        yield name, getattr(module, name)


def _own_leaves(module: Any) -> list[Any]:
    """The leaves of a module that belong to no module below it."""
    found, stack = [], [value for _, value in _children(module)]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, tuple):
            stack += value
        elif not is_module(value):
            found.append(value)
    return found


# -- summary ------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One leaf in a summary."""

    path: str
    owner: str
    shape: str
    dtype: str
    count: int
    nbytes: int
    trainable: bool


class Summary:
    """What ``tree.summary`` returns: rows and totals that print as a table.

    Attributes:
        rows: one per unique leaf.
        count: how many numbers they hold together.
        trainable: how many of those are trained.
        nbytes: how many bytes they take.
    """

    def __init__(self, rows: list[Row], max_rows: int) -> None:
        self.rows = rows
        self.max_rows = max_rows
        self.count = sum(row.count for row in rows)
        self.trainable = sum(row.count for row in rows if row.trainable)
        self.nbytes = sum(row.nbytes for row in rows)

    def _cells(self) -> list[tuple[str, ...]]:
        def cells(row: Row) -> tuple[str, ...]:
            trained = "yes" if row.trainable else "no"
            return (*row[:4], f"{row.count:,}", f"{row.nbytes:,}", trained)

        if len(self.rows) <= self.max_rows:
            return [cells(row) for row in self.rows]
        half = self.max_rows // 2
        left = f"... {len(self.rows) - 2 * half:,} more leaves"
        gap = (left, "", "", "", "", "", "")
        return [*map(cells, self.rows[:half]), gap, *map(cells, self.rows[-half:])]

    def __str__(self) -> str:
        header = ("path", "class", "shape", "dtype", "count", "bytes", "trainable")
        total = (
            f"total: {len(self.rows):,} leaves", "", "", "", f"{self.count:,}",
            f"{self.nbytes:,}", f"{self.trainable:,}",
        )  # fmt: skip
        table = [header, *self._cells(), total]
        widths = [max(len(line[column]) for line in table) for column in range(len(header))]
        lines = [
            "  ".join(
                cell.rjust(width) if column in (4, 5) else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    __repr__ = __str__


def summary(module: Any, *, max_rows: int = 200) -> Summary:
    """A table of every leaf of a module: path, class, shape, dtype, count, bytes, trainable.

    Args:
        module: the module.
        max_rows: how many rows are printed at most; ``.rows`` has them all.

    Returns:
        A value that prints as a table and ends with the totals.

    Raises:
        TypeError: if the argument is no module.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, tree
        >>> class Point(Module):
        ...     at: Parameter
        >>> tree.summary(Point(torch.zeros(2, 3))).count
        6
    """
    if not is_module(module):
        raise TypeError(f"summary() takes a module, got {type(module).__name__}")
    structure = spec_of(module)
    owners = _owners(structure)
    rows = []
    facts = zip(structure.paths, leaves_of(module), structure.trainable, strict=True)
    for path, leaf, trainable in facts:
        if leaf is None:
            continue
        if not isinstance(leaf, (Tensor, Lazy)):
            rows.append(Row(path, owners[path], "", type(leaf).__name__, 0, 0, False))
            continue
        shape = str(tuple(leaf.shape))
        dtype = str(leaf.dtype).removeprefix("torch.")
        nbytes = leaf.numel() * leaf.dtype.itemsize
        mark = dtype + (" (uninitialized)" if isinstance(leaf, Lazy) else "")
        rows.append(Row(path, owners[path], shape, mark, leaf.numel(), nbytes, trainable))
    return Summary(rows, max_rows)


def _owners(structure: Structure) -> dict[str, str]:
    """For each leaf's path the class of the module it belongs to."""
    owners: dict[str, str] = {}
    modules: dict[tuple[Any, ...], str] = {}
    for path, node in structure.walk():
        if type(node) is Structure:
            is_own = hasattr(node.cls, "__layout__")
            modules[path] = node.cls.__name__ if is_own else modules.get(path[:-1], "")
        else:
            owners[".".join(map(str, path))] = modules[path[:-1]]
    return owners


# -- HTML ---------------------------------------------------------------------------------------

_STYLE = "font-family:monospace;white-space:pre"
_MAX_HTML_NODES = 2000


def html_of(module: Any) -> str:
    """Foldable HTML of a module: nested ``<details>``, no scripts, styles or other assets."""
    budget = [_MAX_HTML_NODES]
    return f'<div style="{_STYLE}">{_html("", module, budget, is_open=True)}</div>'


def _html(name: str, value: Any, budget: list[int], *, is_open: bool = False) -> str:
    budget[0] -= 1
    if budget[0] < 0:
        return "" if budget[0] < -1 else "<div>...</div>"
    label = f"{html.escape(name)}: " if name else ""
    if is_module(value):
        leaves = [leaf for leaf in leaves_of(value) if isinstance(leaf, (Tensor, Lazy))]
        count = sum(leaf.numel() for leaf in leaves)
        title = f"{label}<b>{type(value).__name__}</b>({html.escape(value.extra_repr())})"
        inner = "".join(_html(key, item, budget) for key, item in _children(value))
        note = f' <span style="opacity:.6">{count:,} numbers</span>'
        return _fold(f"{title}{note}", inner, is_open)
    if isinstance(value, (tuple, dict)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        inner = "".join(_html(str(key), item, budget) for key, item in pairs)
        return _fold(f"{label}{type(value).__name__} of {len(value)}", inner, is_open=False)
    return f"<div>{label}{html.escape(_leaf_text(value))}</div>"


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
    return repr(value)
