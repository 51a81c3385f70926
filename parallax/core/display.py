"""How modules are shown: a ``repr`` like torch's, a summary table, HTML for notebooks."""

from __future__ import annotations

import html
from typing import Any, NamedTuple

from torch import Tensor

from parallax._compat import shards
from parallax.core.containers import keys_of, opened
from parallax.core.description import leaves_of, spec_of
from parallax.core.fields import Lazy
from parallax.core.frozendict import FrozenDict
from parallax.core.nodes import is_module
from parallax.core.structure import Structure
from parallax.core.tables import table

__all__ = ["Row", "Summary", "html_of", "repr_of", "summary"]

_MAX_LINES = 400


def repr_of(module: Any) -> str:
    """The text of ``repr(module)``: nested like torch's, equal neighbours written once."""
    lines = _lines(module)
    if len(lines) > _MAX_LINES:
        left = len(lines) - _MAX_LINES + 2
        lines = [*lines[: _MAX_LINES - 2], f"  ... {left:,} more lines", lines[-1]]
    return "\n".join(lines)


def _lines(module: Any) -> list[str]:
    head = module.extra_repr()
    mark = _mark(module)
    inner = _collapse(_parts(module) or [], numbered=False)
    name = type(module).__name__
    if not inner:
        return [*f"{name}({head}){mark}".split("\n")]
    body = head.split("\n") if head else []
    return [f"{name}(", *_indent([*body, *inner]), f"){mark}"]


def _mark(module: Any) -> str:
    """What is to be said of the leaves of a module."""
    found = _own_leaves(module)
    if any(isinstance(leaf, Lazy) for leaf in found):
        return " (uninitialized)"
    if not shards.any_distributed(found):
        return ""
    told = [shards.shown(leaf) for leaf in found if leaf is not None]
    return f" ({'; '.join(dict.fromkeys(told))})"


def _entry(value: Any) -> list[str]:
    """The lines of a child; none for leaves and for containers of leaves alone."""
    if is_module(value):
        return _lines(value)
    parts = _parts(value)
    if parts is None:
        return [] if _is_leaf(value) else [_constant_text(value)]
    inner = _collapse(parts, numbered=type(value) is tuple)
    if not any(is_module(part) or _parts(part) is not None for _, part in parts):
        return []
    return [f"{_class_name(value)}(", *_indent(inner), ")"] if inner else []


def _collapse(parts: list[tuple[str, Any]], *, numbered: bool) -> list[str]:
    """The labelled lines of all children; a run of equal items once, as in a ``ModuleList``."""
    runs: list[tuple[str, str, int, list[str]]] = []
    for key, value in parts:
        lines = _entry(value)
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


def _is_leaf(value: Any) -> bool:
    return value is None or isinstance(value, (Tensor, Lazy))


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


# -- summary ------------------------------------------------------------------------------------


_HEADER = ("path", "class", "shape", "dtype", "count", "bytes", "trainable", "placement", "here")
_NUMBERS = (4, 5, 8)  # right-aligned columns
_SPREAD = (7, 8)  # columns for distributed leaves only
_LEFT_OUT = (5, 1, 3, 6, 2)  # columns that a narrow table omits, in this order


class Row(NamedTuple):
    """One leaf in a summary."""

    path: str
    owner: str
    shape: str
    dtype: str
    numel: int
    nbytes: int
    trainable: bool
    placement: str  # of a distributed leaf; else empty
    here: int  # the bytes that this process holds


class Summary:
    """What ``tree.summary`` returns: rows and totals that print as a table.

    Attributes:
        rows: one per unique leaf.
        count: the number of elements in all of them.
        trainable: how many of those are trained.
        nbytes: their size in bytes.
        here: how many of those this process holds; all, if no leaf is distributed.
    """

    def __init__(self, rows: list[Row], max_rows: int) -> None:
        self.rows = rows
        self.max_rows = max_rows
        self.count = sum(row.numel for row in rows)
        self.trainable = sum(row.numel for row in rows if row.trainable)
        self.nbytes = sum(row.nbytes for row in rows)
        self.here = sum(row.here for row in rows)

    def _cells(self) -> list[tuple[str, ...]]:
        def cells(row: Row) -> tuple[str, ...]:
            trained = "yes" if row.trainable else "no"
            numbers = f"{row.numel:,}", f"{row.nbytes:,}"
            return (*row[:4], *numbers, trained, row.placement, f"{row.here:,}")

        if len(self.rows) <= self.max_rows:
            return [cells(row) for row in self.rows]
        half = self.max_rows // 2
        left = f"... {len(self.rows) - 2 * half:,} more leaves"
        gap = (left, *[""] * (len(_HEADER) - 1))
        return [*map(cells, self.rows[:half]), gap, *map(cells, self.rows[-half:])]

    def _total(self) -> tuple[str, ...]:
        label = f"total: {len(self.rows):,} leaves"
        numbers = f"{self.count:,}", f"{self.nbytes:,}", f"{self.trainable:,}"
        return (label, "", "", "", *numbers, "", f"{self.here:,}")

    def _columns(self) -> list[int]:
        spread = any(row.placement for row in self.rows)
        return [k for k in range(len(_HEADER)) if spread or k not in _SPREAD]

    def __str__(self) -> str:
        return self._text(self._columns())

    def __format__(self, width: str) -> str:
        """The table with lines of at most so many characters, as in ``f"{summary:60}"``.

        Columns are left out where it is wider, and then the beginnings of paths.

        Raises:
            ValueError: if the text after the colon is not a width.
        """
        if width and not width.isdecimal():
            raise ValueError(
                f"a summary is formatted by its width in characters, got {width!r}. "
                f"Write f'{{summary:60}}'"
            )
        columns, left_out = self._columns(), iter(_LEFT_OUT)
        text = self._text(columns)
        while width and _width(text) > int(width):
            column = next(left_out, None)
            if column is None:
                return self._text(columns, int(width))
            columns.remove(column)
            text = self._text(columns)
        return text

    def _text(self, columns: list[int], width: int | None = None) -> str:
        whole = [_HEADER, *self._cells(), self._total()]
        lines = [[line[column] for column in columns] for line in whole]
        right = [k for k, column in enumerate(columns) if column in _NUMBERS]
        if width is None:
            return table(lines, right)
        others = sum([max(map(len, cells)) + 2 for cells in list(zip(*lines, strict=True))[1:]])
        return table(lines, right, max(4, width - others))

    def __rich__(self) -> Any:
        """The same table for ``rich.print``, which the extra ``display`` installs."""
        from rich.table import Table
        from rich.text import Text

        made = Table(show_footer=True)
        total = self._total()
        for k in self._columns():
            made.add_column(_HEADER[k], total[k], justify="right" if k in _NUMBERS else "left")
        for line in self._cells():
            cells = [line[k] for k in self._columns()]
            made.add_row(*map(Text, cells))  # plain text: a path may look like markup
        return made

    __repr__ = __str__


def _width(text: str) -> int:
    return max(map(len, text.split("\n")))


def summary(module: Any, *, max_rows: int = 200) -> Summary:
    """A table of every leaf of a module: path, class, shape, dtype, count, bytes, trainable.

    Where leaves are distributed (``DTensor``), also how, and the bytes that this process holds.

    Args:
        module: the module.
        max_rows: how many rows are printed at most; ``.rows`` has them all.

    Returns:
        A value that prints as a table and ends with the totals; ``f"{summary:60}"`` has no line of
        more than 60 characters.

    Raises:
        TypeError: if the argument is not a module.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, tree
        >>> class Point(Module):
        ...     at: Parameter
        >>> tree.summary(Point(torch.zeros(2, 3))).count
        6
    """
    if not is_module(module):
        raise TypeError(
            f"tree.summary(module=): expected a module, got {type(module).__name__}. Give a "
            f"parallax.Module; to make one of an nn.Module: bridge.lift(module)"
        )
    if type(max_rows) is not int:
        raise TypeError(
            f"tree.summary(max_rows=): expected an int, got {max_rows!r}. Write, for example, "
            f"max_rows=50"
        )
    structure = spec_of(module)
    owners = _owners(structure)
    rows = []
    facts = zip(structure.paths, leaves_of(module), structure.trainable, strict=True)
    for path, leaf, trainable in facts:
        if leaf is None:
            continue
        if not isinstance(leaf, (Tensor, Lazy)):
            rows.append(Row(path, owners[path], "", type(leaf).__name__, 0, 0, False, "", 0))
            continue
        shape = str(tuple(leaf.shape))
        dtype = str(leaf.dtype).removeprefix("torch.")
        nbytes = leaf.numel() * leaf.dtype.itemsize
        mark = dtype + (" (uninitialized)" if isinstance(leaf, Lazy) else "")
        spread = shards.is_distributed(leaf)
        placement = shards.shown(leaf) if spread else ""
        here = shards.local_of(leaf).nbytes if spread else nbytes
        numbers = leaf.numel(), nbytes, trainable
        rows.append(Row(path, owners[path], shape, mark, *numbers, placement, here))
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
        title = (
            f"{label}<b>{html.escape(type(value).__name__)}</b>({html.escape(value.extra_repr())})"
        )
        inner = "".join(_html(key, item, budget) for key, item in _parts(value) or [])
        note = f' <span style="opacity:.6">{count:,} numbers</span>'
        return _fold(f"{title}{note}", inner, is_open)
    parts = _parts(value)
    if parts is not None:
        inner = "".join(_html(key, item, budget) for key, item in parts)
        return _fold(f"{label}{_class_name(value)} of {len(parts)}", inner, is_open=False)
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
    return "None" if value is None else _constant_text(value)
