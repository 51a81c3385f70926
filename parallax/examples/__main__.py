"""List the examples: `python -m parallax.examples`."""

from __future__ import annotations

import ast
import shutil
import sys
import textwrap
from importlib import resources

from parallax.examples._command import run_quietly

__all__ = ["examples", "main"]


def examples() -> dict[str, str]:
    """What each example shows, in a sentence, by name.

    Example:
        >>> examples()["maml"]
        'MAML on sinusoids (Finn, Abbeel, Levine, 2017), with second-order gradients.'
    """
    files = sorted(resources.files("parallax.examples").iterdir(), key=lambda file: file.name)
    found = {}
    for file in files:
        name = file.name.removesuffix(".py")
        if file.name.endswith(".py") and not name.startswith("_"):
            doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            found[name] = " ".join(doc.split("\n\n", maxsplit=1)[0].split())
    return found


def main() -> None:
    """Print how to run each, and what it shows."""
    print("Run one: python -m parallax.examples.NAME (--help, --quick)\n")
    width = max(40, shutil.get_terminal_size().columns - 1)
    for name, sentence in examples().items():
        indent = " " * 25
        print(
            textwrap.fill(
                sentence, width, initial_indent=f"  {name:<22} ", subsequent_indent=indent
            )
        )


if __name__ == "__main__":
    sys.exit(run_quietly(main))
