"""Digits as text, with what a network read in them, and which digits it confuses."""

from __future__ import annotations

from torch import Tensor

__all__ = ["confusion_table", "digit_pictures"]

_SHADES = " .:+#"  # from white to black; ASCII, so that every terminal and log can show them
_SIZE = 8


def digit_pictures(images: Tensor, labels: Tensor, read: Tensor, columns: int) -> str:
    """Draw images in a row, each with the digit that was read, and the right one where it differs.

    Args:
        images: Shape (n, 64), numbers from 0 for white to 1 for black.
        labels: The right digits, shape (n,).
        read: The digits that were read, shape (n,).
        columns: The width of the terminal in characters; images that do not fit are left out.

    Returns:
        Nine lines of text.

    Example:
        >>> import torch
        >>> image = torch.eye(8).reshape(1, 64)
        >>> print(digit_pictures(image, torch.tensor([1]), torch.tensor([7]), 80).splitlines()[-1])
        7, not 1
    """
    count = max(1, (columns + 2) // (_SIZE + 2))
    levels = (images[:count] * (len(_SHADES) - 1)).round().long().reshape(-1, _SIZE, _SIZE)
    lines = [
        "  ".join("".join(_SHADES[level] for level in image[row].tolist()) for image in levels)
        for row in range(_SIZE)
    ]
    pairs = zip(read[:count].tolist(), labels[:count].tolist(), strict=True)
    words = [str(guess) if guess == right else f"{guess}, not {right}" for guess, right in pairs]
    lines.append("  ".join(word.ljust(_SIZE) for word in words))
    return "\n".join(line.rstrip() for line in lines)


def confusion_table(labels: Tensor, read: Tensor) -> str:
    """Count how often each digit was read as which: a row for each digit, a column for each answer.

    Args:
        labels: The right digits, shape (n,).
        read: The digits that were read, shape (n,).

    Returns:
        Eleven lines of text; a dot stands for zero.

    Example:
        >>> import torch
        >>> print(confusion_table(torch.tensor([0, 1]), torch.tensor([0, 0])).splitlines()[2])
          1    1   .   .   .   .   .   .   .   .   .
    """
    counts = (labels * 10 + read).bincount(minlength=100).reshape(10, 10).tolist()
    head = "     " + "".join(f"{digit:4}" for digit in range(10))
    rows = [
        f"{digit:3}  " + "".join(f"{count or '.':>4}" for count in row)
        for digit, row in enumerate(counts)
    ]
    return "\n".join([head, *rows])
