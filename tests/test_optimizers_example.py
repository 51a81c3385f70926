"""The example that draws the training curves of five optimizers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from parallax.examples._digits import load
from parallax.examples.optimizers import contestants, curve, draw, main, smooth

PNG = b"\x89PNG\r\n\x1a\n"


def test_every_contestant_learns_and_repeats_itself() -> None:
    digits = load()
    runners = contestants(steps=120)
    assert len(runners) == 5
    for name, opt in runners.items():
        losses = curve(opt, digits, steps=120, seed=0)
        assert losses[0] > 2, name
        assert smooth(losses)[-1] < 0.7, name
        assert curve(opt, digits, steps=3, seed=0) == losses[:3]


def test_the_curves_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "curves.png"
    main(["--steps", "5", "--picture", str(path)])
    assert path.read_bytes().startswith(PNG) and path.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert all(name in printed for name in contestants(5)) and str(path) in printed


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'parallax-torch\[bench\]'"):
        draw({}, tmp_path / "curves.png")
