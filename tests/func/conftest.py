"""What tests of Taylor expansions share."""

from __future__ import annotations

from typing import Any

import pytest

from parallax.func.jets import Expansion


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions for which an expansion had no rule."""
    found: list[str] = []
    refuse = Expansion.refuse

    def noted(self: Expansion, function: Any) -> Any:
        found.append(getattr(function, "__name__", repr(function)))
        return refuse(self, function)

    monkeypatch.setattr(Expansion, "refuse", noted)
    return found
