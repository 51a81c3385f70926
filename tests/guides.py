"""The pages that people read, and the programs in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "parallax/docs").glob("*.md"))]


def program(page: Path) -> str:
    """The Python blocks of a page, one after the other."""
    return "\n".join(blocks(page))


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
