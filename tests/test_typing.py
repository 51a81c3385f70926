"""mypy --strict and pyright accept what is right, infer its types, and refuse what is wrong."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.guides import PAGES, program
from tests.public import DOCUMENTED, MADE_BY_FUNCTIONS, is_exception
from tests.test_public_names import RESULTS_OF_ANY_TYPE
from tests.typing import accepted, examples

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).with_name("typing")
REFUSED = HERE / "refused.txt"  # as text, so that nobody runs it or checks it with the rest

CHECKERS = {
    "mypy": ["-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"),
             "--cache-dir", str(ROOT / ".mypy_cache")],
    "pyright": ["-m", "pyright", "--pythonpath", sys.executable],
}  # fmt: skip
checkers = pytest.mark.parametrize("checker", CHECKERS)


def errors(checker: str, *files: Path, folder: Path = ROOT) -> dict[tuple[str, int], str]:
    """What a checker says about files, by the file's name and line."""
    return _errors(_output(checker, *files, folder=folder))


def _output(checker: str, *files: Path, folder: Path = ROOT) -> str:
    command = [sys.executable, *CHECKERS[checker], *map(str, files)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert re.search(r"Success|Found \d+ error|^\d+ error", done.stdout, re.MULTILINE), done.stdout
    return done.stdout


def _errors(output: str) -> dict[tuple[str, int], str]:
    pattern = r"([^/\s]+\.py):(\d+)(?::\d+)?(?: -|:) error: (.*)"
    return {(file, int(line)): text for file, line, text in re.findall(pattern, output)}


@checkers
def test_what_is_right_is_accepted_and_the_rest_refused_line_by_line(
    checker: str, tmp_path: Path
) -> None:
    """All of it in one run, for a checker reads torch for a minute: programs with their types,
    those of the README and the guides, and one whose wrong lines say so."""
    wrong = tmp_path / REFUSED.with_suffix(".py").name
    wrong.write_text(REFUSED.read_text())
    lines = REFUSED.read_text().splitlines()
    refused = [(wrong.name, k) for k, line in enumerate(lines, 1) if line.endswith("# refused")]
    assert len(refused) > 20
    guides = [tmp_path / f"{page.stem}.py" for page in PAGES]
    for file, page in zip(guides, PAGES, strict=True):
        file.write_text(program(page))
    found = errors(checker, HERE / "accepted.py", *guides, wrong)
    assert {place: text for place, text in found.items() if place not in refused} == {}
    assert sorted(found) == refused

    outside = tmp_path / "outside.py"
    outside.write_text(
        "from typing import assert_type\n"
        "from torch import Tensor, ones\n"
        "from parallax import nn\n"
        "assert_type(nn.Linear(2, 3)(ones(2)), Tensor)\n"
    )
    # Where nothing but the installation tells where the package is.
    assert errors(checker, outside, folder=tmp_path) == {}


def test_the_code_that_is_accepted_runs() -> None:
    accepted.constructors_are_seen()
    dense = accepted.Dense(3, 2).initialize(0, dtype=torch.float64).reset(0)
    dense(torch.ones(3, dtype=torch.float64)).sum().backward()
    accepted.trees_keep_their_type(dense)


# Names of whose calls no type says all, beside those of RESULTS_OF_ANY_TYPE, and why.
OF_ANY_TYPE = {
    "parallax.effects.Call": "effects.capture returns one for each call, alone or in a tuple",
    "parallax.nn.AdaptiveMaxPool1d": "a tensor, or with return_indices a pair",
    "parallax.nn.AdaptiveMaxPool2d": "a tensor, or with return_indices a pair",
    "parallax.nn.AdaptiveMaxPool3d": "a tensor, or with return_indices a pair",
    "parallax.nn.Identity": "what it is given; the checkers lose a type variable of forward",
    "parallax.nn.Lambda": "what its function returns",
    "parallax.nn.MaxPool1d": "a tensor, or with return_indices a pair",
    "parallax.nn.MaxPool2d": "a tensor, or with return_indices a pair",
    "parallax.nn.MaxPool3d": "a tensor, or with return_indices a pair",
    "parallax.optim.layerwise_lr": "a schedule takes an int, or in compiled code a tensor",
}


def test_the_type_of_every_public_name_survives_a_call(tmp_path: Path) -> None:
    """In its own example, or in ``accepted.py``, which both checkers accept."""
    text, revealed = examples.program()
    file = tmp_path / "all_examples.py"
    file.write_text(text)
    known = asserted(HERE / "accepted.py")
    for line, shown in re.findall(r":(\d+):\d+ - information: (.*)", _output("pyright", file)):
        if not UNKNOWN.search(shown):
            known.add(revealed[int(line)])
    called = {
        name
        for name, value in DOCUMENTED.items()
        if not is_exception(value) and name not in MADE_BY_FUNCTIONS
    }
    assert sorted(called - known) == sorted({*RESULTS_OF_ANY_TYPE, *OF_ANY_TYPE})


UNKNOWN = re.compile(r"\b(Any|Unknown)\b")


def asserted(file: Path) -> set[str]:
    """The public names that ``assert_type`` tells of: of a call, or the class in a type."""
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "assert_type":
            called, type_ = node.args
            while isinstance(called, ast.Call):
                called = called.func
            if not UNKNOWN.search(ast.unparse(type_)):
                found += [called, *(n for n in ast.walk(type_) if isinstance(n, ast.Attribute))]
    names = [ast.unparse(name).replace("layers.", "nn.") for name in found]
    return {f"parallax.{name.removeprefix('parallax.')}" for name in names}
