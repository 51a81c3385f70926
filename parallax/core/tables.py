"""Tables as text: columns in even width, a rule below the names and above the totals."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["table"]


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
