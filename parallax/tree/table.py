"""Tables of text: columns in even width, a rule below the names and above the totals."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

__all__ = ["Table", "table"]

Cells = tuple[str, ...]


class Table:
    """A table that fits a width, and is one of ``rich``, too.

    Args:
        header: the names of the columns; the first one holds paths.
        lines: the cells of each line.
        total: the last line.
        columns: which columns are shown.
        numbers: those that are written to the right.
        left_out: those that a narrow table omits, in this order.
        max_rows: how many lines are printed at most.
        noun: what a line is about, several of them.
    """

    def __init__(
        self,
        header: Cells,
        lines: Sequence[Cells],
        total: Cells,
        *,
        columns: Sequence[int],
        numbers: Sequence[int],
        left_out: Sequence[int],
        max_rows: int,
        noun: str,
    ) -> None:
        self._header = header
        self._total = total
        self._columns = columns
        self._numbers = numbers
        self._left_out = left_out
        self._lines = list(lines)
        if len(lines) > max_rows:
            half = max_rows // 2
            left = f"... {len(lines) - 2 * half:,} more {noun}"
            gap = (left, *[""] * (len(header) - 1))
            self._lines = [*lines[:half], gap, *lines[-half:]]

    def __str__(self) -> str:
        return self._text(self._columns)

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
        columns, left_out = list(self._columns), iter(self._left_out)
        text = self._text(columns)
        while width and _width(text) > int(width):
            column = next(left_out, None)
            if column is None:
                return self._text(columns, int(width))
            columns.remove(column)
            text = self._text(columns)
        return text

    def _text(self, columns: Sequence[int], width: int | None = None) -> str:
        whole = [self._header, *self._lines, self._total]
        lines = [[line[column] for column in columns] for line in whole]
        right = [k for k, column in enumerate(columns) if column in self._numbers]
        if width is None:
            return table(lines, right)
        others = sum([max(map(len, cells)) + 2 for cells in list(zip(*lines, strict=True))[1:]])
        return table(lines, right, max(4, width - others))

    def __rich__(self) -> Any:
        """The same table for ``rich.print``, which the extra ``display`` installs."""
        from rich.table import Table as RichTable
        from rich.text import Text

        made = RichTable(show_footer=True)
        for k in self._columns:
            side: Any = "right" if k in self._numbers else "left"
            made.add_column(self._header[k], self._total[k], justify=side)
        for line in self._lines:
            # Plain text, as a path may look like markup.
            made.add_row(*[Text(line[k]) for k in self._columns])
        return made

    __repr__ = __str__


def _width(text: str) -> int:
    return max(map(len, text.split("\n")))


def table(
    lines: Sequence[Sequence[str]], right: Collection[int], first_width: int | None = None
) -> str:
    """The text of a table.

    Args:
        lines: the names of the columns, the rows, and the totals, all of one length.
        right: the columns that are written to the right.
        first_width: how many characters the first column may have; beginnings are left out.
    """
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    if first_width is not None:
        widths[0] = min(widths[0], first_width)
    rows = [
        "  ".join([_aligned(cell, widths[k], k in right) for k, cell in enumerate(line)]).rstrip()
        for line in lines
    ]
    rule = "-" * max(map(len, rows))
    return "\n".join([rows[0], rule, *rows[1:-1], rule, rows[-1]])


def _aligned(cell: str, width: int, right: bool) -> str:
    if len(cell) > width:
        cell = "..." + cell[len(cell) + 3 - width :]
    return cell.rjust(width) if right else cell.ljust(width)
