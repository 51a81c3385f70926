"""What mkdocs does beside rendering pages: links to public names, formulas, a final check."""

# pyright: reportMissingImports=false
# (what it imports comes with the extra docs; nothing imports this file where that is absent)
from __future__ import annotations

import ast
import logging
import re
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

# Warnings here end a strict build.
log = logging.getLogger("mkdocs.hooks.parallax")
PACKAGE = Path(__file__).parents[2]
# Room by room: the page's name for it, and the file that lists its public names.
ROOMS = {
    "parallax": "__init__.py",
    "parallax.bridge": "bridge/__init__.py",
    "parallax.core.registry": "core/registry.py",
    "parallax.debug": "debug/__init__.py",
    "parallax.distributed": "distributed/__init__.py",
    "parallax.effects": "effects/__init__.py",
    "parallax.func": "func/__init__.py",
    "parallax.io": "io/__init__.py",
    "parallax.nn": "nn/__init__.py",
    "parallax.optim": "optim/__init__.py",
    "parallax.optim.schedules": "optim/schedules/__init__.py",
    "parallax.random": "random/__init__.py",
    "parallax.tree": "tree/__init__.py",
}
# What stays as it is: links, headings, programs; and what may become a link.
CODE = re.compile(r"<(a|h\d|pre)\b.*?</\1>|<code>([\w.]+)(\(\))?</code>", re.DOTALL)
FORMULA = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Make links of public names that stand as code in the text, and MathML of formulas."""

    def linked(match: re.Match[str]) -> str:
        name = match[2] or ""
        # On the page of a room its classes stand alone; small letters there may be an argument's.
        local = f"{page.title}.{name}" if name[:1].isupper() else ""
        target = public().get(name) or public().get(local)
        return f'<autoref identifier="{target}">{match[0]}</autoref>' if target else match[0]

    html = FORMULA.sub(
        lambda match: f'<span class="formula">{convert(unescape(match[1]))}</span>', html
    )
    return CODE.sub(linked, html)


def on_post_build(config: Any, **_: Any) -> None:
    """Warn of public names that are on no page."""
    for target in sorted(set(public().values())):
        try:
            config.plugins["autorefs"].get_item_url(target)
        except KeyError:
            log.warning("%s is public, and on no page of the reference", target)


@cache
def public() -> dict[str, str]:
    """The full name of each public object, by the names that text gives it."""
    found: dict[str, str] = {}
    for room, file in ROOMS.items():
        for name in _names_in(PACKAGE / file):
            full = f"{room}.{name}"
            if full in ROOMS or full == "parallax.registry":
                continue
            short = full.removeprefix("parallax.").removeprefix("core.")
            found |= {full: full, f"parallax.{short}": full}
            if "." in short or short[0].isupper():
                found[short] = full
            if room == "parallax.optim.schedules":
                found[short.removeprefix("optim.")] = full
    return found


def _names_in(file: Path) -> list[str]:
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    raise LookupError(f"{file} has no __all__")
