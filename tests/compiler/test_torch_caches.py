"""Only the same Parallax finds on disk what it has compiled before."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

import parallax
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


class Holder:
    number = 0.0


def numbers(x: Tensor, number: float, several: list[float], holder: Holder) -> Any:
    most = max(several)
    return (
        x * number, number + 1, math.sqrt(number) * x, most * x, holder.number * x,
        holder.number - most,
    )  # fmt: skip


def test_numbers_that_became_constants_are_not_found_for_others() -> None:
    """torch keeps the graph, and not its guard on the number (2.13 and 2.14)."""
    x, holder = torch.arange(3.0), Holder()
    with fresh_cache():
        for order in ((3.0, 5.0, 4.0), (5.0, 7.0)):
            torch.compiler.reset()  # as in a process of its own
            compiled = parallax.compile(numbers)
            for number in order:
                holder.number = number + 0.5
                arguments = (x, number, [number, number + 2], holder)
                torch.testing.assert_close(compiled(*arguments), numbers(*arguments))


def written(a: Tensor, b: Tensor) -> Tensor:
    a.add_(1)
    return b * 2


PAIRS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "the same": lambda t: (t[:2], t[:2]),
    "overlapping": lambda t: (t[:2], t[1:3]),
    "apart": lambda t: (t[:2], t[2:4]),
    "further apart": lambda t: (t[:2], t[4:6]),
    "of its own": lambda t: (t[:2], t.clone()[1:3]),
    "interleaved": lambda t: (t[::3], t[1::3]),
}


def test_what_was_made_for_shared_memory_is_not_found_for_other_memory() -> None:
    """torch's key has the sizes of inputs, and not which of them share memory (2.13 and 2.14)."""
    with fresh_cache():
        for name, make in PAIRS.items():
            torch.compiler.reset()
            given, expected = make(torch.arange(6.0)), make(torch.arange(6.0))
            found = parallax.compile(written)(*given)
            torch.testing.assert_close(found, written(*expected), msg=name)
            torch.testing.assert_close(given, expected, msg=name)
