"""Pictures of the examples, drawn by matplotlib where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure", "save_figure", "show_images"]


def new_figure(width: float = 8, height: float = 5) -> Figure:
    """An empty figure, which needs no display.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "--picture needs matplotlib. Install it: pip install 'parallax-torch[bench]'"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def show_images(figure: Figure, images: Tensor, columns: int) -> None:
    """Draws images in rows.

    Args:
        figure: where to.
        images: square ones, of shape (n, pixels), from 0 for white to 1 for black.
        columns: how many in a row.
    """
    rows, side = -(-len(images) // columns), int(images.shape[1] ** 0.5)
    tiles = images.new_zeros(rows * columns, side + 2, side + 2)
    tiles[: len(images), 1:-1, 1:-1] = images.reshape(-1, side, side)
    sheet = (
        tiles.reshape(rows, columns, side + 2, side + 2).transpose(1, 2).flatten(2).flatten(0, 1)
    )
    axes = figure.add_subplot()
    axes.imshow(sheet.numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set_axis_off()


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG, and says so."""
    figure.savefig(path, dpi=120)
    print(f"drawn to {path}")
