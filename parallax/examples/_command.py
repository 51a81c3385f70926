"""What the command lines of the examples share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["command_line", "run_quietly"]


def command_line(file: str, doc: str | None, picture: str = "") -> argparse.ArgumentParser:
    """The parser of an example, with ``--quick``, ``--seed``, and ``--picture`` where it draws.

    Args:
        file: the example's ``__file__``.
        doc: its docstring, which ``--help`` shows.
        picture: what it can draw, in a few words.

    Example:
        >>> command_line("ppo.py", "Reinforcement learning.").parse_args(["--quick"])
        Namespace(quick=True, seed=0)
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m parallax.examples.{Path(file).stem}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    if picture:
        parser.add_argument(
            "--picture", type=Path, metavar="PNG", help=f"draw {picture} (needs matplotlib)"
        )
    return parser


def run_quietly(program: Callable[[], None]) -> int:
    """Runs a program; an interruption and a closed pipe end it without a traceback.

    Args:
        program: what to run.

    Returns:
        The exit code: 0, or what a shell expects after Ctrl-C (130) or a closed pipe (141).
    """
    try:
        program()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes standard output once more when it ends; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0
