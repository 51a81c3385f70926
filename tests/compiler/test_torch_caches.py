"""Only the same Parallax finds on disk what it has compiled before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from parallax import optim
from parallax._compat import inductor
from tests.compiling import make_compiled
from tests.optim.cases import Point

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_a_graph_that_another_parallax_has_made_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opt, point = optim.Adam(lr=0.1), Point(torch.tensor([1.0, 2.0]))
    expected: Any = opt.step(point, point, opt.init(point))[0]
    with fresh_cache():
        for files, hits in (("one", 0), ("one", 1), ("other", 0)):
            monkeypatch.setattr(inductor, "sources", lambda files=files: files)
            torch.compiler.reset()  # as in a process of its own
            counters.clear()
            found: Any = make_compiled(opt.step)(point, point, opt.init(point))[0]
            torch.testing.assert_close(found.at, expected.at)
            assert counters["aot_autograd"]["autograd_cache_hit"] == hits
            assert not counters["aot_autograd"]["autograd_cache_bypass"]


def test_every_file_of_parallax_tells_it_from_another() -> None:
    assert len(inductor.sources()) == 64
    assert {"optim", "_compat", "compiler"} <= {p.parent.name for p in inductor._ROOT.rglob("*.py")}
