"""The example trains under each plan as one process does."""

from __future__ import annotations

from pathlib import Path

import pytest

from parallax.examples.distributed import compare
from tests.meshes import run


def _compare(rank: int, folder: str) -> None:
    lines = compare(2, 0)
    if rank:
        assert lines == []
        return
    assert lines[0].endswith(" parameters, 2 process(es), 2 steps")
    rows = [line.split() for line in lines[4:]]
    assert [row[0] for row in rows] == ["replicated", "sharded", "tensor-parallel"]
    assert all(float(row[1]) < 1e-5 and float(row[2]) < 1e-4 for row in rows)
    held = [int(row[3].replace(",", "")) for row in rows]
    assert held[1] < held[2] < held[0]


@pytest.mark.slow
def test_all_plans_agree_with_one_process(tmp_path: Path) -> None:
    run(_compare, tmp_path, 2)
