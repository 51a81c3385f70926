"""README and the guides: every block runs, in one namespace for each page."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from tests.guides import PAGES, ROOT, blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_python_block_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks(page)
    assert found
    # A module of its own, so that annotations and dynamo find names as in a script.
    script = types.ModuleType(f"guide_{page.stem}")
    monkeypatch.setitem(sys.modules, script.__name__, script)
    for block in found:
        exec(compile(block, str(page), "exec"), vars(script))


def test_readme_links_to_every_guide_and_no_link_is_dead() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in PAGES[1:]:
        assert f"(parallax/docs/{page.name})" in readme
    for page in PAGES:
        for target in re.findall(r"\]\(([\w/.]+\.\w+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_claim_of_speed_names_the_command_that_shows_it() -> None:
    text = (ROOT / "README.md").read_text()
    claims = text.split("## What it costs")[1]
    assert "python -m benchmarks call" in claims
    assert "python -m benchmarks tree" in claims
