"""What importing the package loads, and what it leaves for later."""

from __future__ import annotations

import subprocess
import sys

import pytest

LATER = ("torch._dynamo", "torch._inductor", "rich", "safetensors", "tqdm", "matplotlib")


@pytest.mark.parametrize("room", ["", ".nn", ".func", ".optim", ".bridge", ".io", ".debug"])
def test_an_import_loads_nothing_that_takes_long(room: str) -> None:
    code = (
        f"import sys, torch\n"
        f"before = set(sys.modules)\n"
        f"import parallax{room}\n"
        f"print(*[name for name in {LATER} if name in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_rooms_are_loaded_when_they_are_first_asked_for() -> None:
    code = (
        "import sys, parallax\n"
        "assert 'parallax.nn' not in sys.modules\n"
        "assert parallax.nn.Linear and 'parallax.nn' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
