"""mypy --strict and pyright accept what is right, infer its types, and refuse what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.guides import PAGES, program
from tests.typing import accepted

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).with_name("typing")
REFUSED = HERE / "refused.txt"  # as text, so that nobody runs it or checks it with the rest

CHECKERS = {
    "mypy": ["-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")],
    "pyright": ["-m", "pyright", "--pythonpath", sys.executable],
}
checkers = pytest.mark.parametrize("checker", CHECKERS)


def errors(checker: str, *files: Path, folder: Path = ROOT) -> dict[int, list[str]]:
    """What a checker says about files, by line."""
    command = [sys.executable, *CHECKERS[checker], *map(str, files)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[int, list[str]] = {}
    for line in done.stdout.splitlines():
        match = re.search(r"\.py:(\d+)(?::\d+)?(?: -|:) error: (.*)", line)
        if match:
            found.setdefault(int(match[1]), []).append(match[2])
    assert re.search(r"Success|Found \d+ error|^\d+ error", done.stdout, re.MULTILINE), done.stdout
    return found


@checkers
def test_right_code_is_accepted_and_its_types_inferred(checker: str) -> None:
    assert errors(checker, HERE / "accepted.py") == {}


@checkers
def test_wrong_code_is_refused_line_by_line(checker: str, tmp_path: Path) -> None:
    source = REFUSED.read_text()
    file = tmp_path / "refused.py"
    file.write_text(source)
    expected = [k for k, line in enumerate(source.splitlines(), 1) if line.endswith("# refused")]
    assert list(errors(checker, file)) == expected
    assert len(expected) > 20


@checkers
def test_the_programs_of_the_readme_and_the_guides_are_accepted(
    checker: str, tmp_path: Path
) -> None:
    files = [tmp_path / f"{page.stem}.py" for page in PAGES]
    for file, page in zip(files, PAGES, strict=True):
        file.write_text(program(page))
    assert errors(checker, *files) == {}


@checkers
def test_an_installed_package_is_seen_from_outside(checker: str, tmp_path: Path) -> None:
    file = tmp_path / "outside.py"
    file.write_text(
        "from typing import assert_type\n"
        "from torch import Tensor, ones\n"
        "from parallax import nn\n"
        "assert_type(nn.Linear(2, 3)(ones(2)), Tensor)\n"
    )
    assert errors(checker, file, folder=tmp_path) == {}


def test_the_code_that_is_accepted_runs() -> None:
    accepted.constructors_are_seen()
    dense = accepted.Dense(3, 2).initialize(0, dtype=torch.float64).reset(0)
    dense(torch.ones(3, dtype=torch.float64)).sum().backward()
    accepted.trees_keep_their_type(dense)
