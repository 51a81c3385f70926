"""What does reading a field cost, depending on how the module came to be?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import Candidate, Question
from parallax import Module, Parameter, tree

READS = 100


class Plain:
    def __init__(self, weight: Tensor, bias: Tensor, rate: float) -> None:
        self.weight = weight
        self.bias = bias
        self.rate = rate


class Generated(Module):
    weight: Parameter
    bias: Parameter
    rate: float


class Written(Module):
    weight: Parameter
    bias: Parameter
    rate: float

    def __init__(self, weight: Tensor, bias: Tensor, rate: float) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.rate = rate


def questions(quick: bool) -> Iterator[Question]:
    del quick
    weight, bias = torch.randn(8, 8), torch.randn(8)
    flattened = Written(weight, bias, 0.5)
    tree.flatten(flattened)
    mapped = tree.map(lambda leaf: leaf, Written(weight, bias, 0.5))
    absent: dict[str, str] = {}
    reference = _reader("plain object", Plain(weight, bias, 0.5))
    yield Question(
        "reading a parameter",
        reference,
        [
            _reader("constructed, __init__ generated", Generated(weight, bias, 0.5), limit=1.2),
            _reader("constructed, __init__ written", Written(weight, bias, 0.5), limit=1.2),
            _reader("flattened", flattened, limit=1.2),
            _reader("mapped", mapped, limit=5.0),
        ],
        peers=[
            _reader("nn.Module", nn.Linear(8, 8)),
            *[replace(peer, per=READS) for peer in peers.equinox("read", "equinox", absent)],
        ],
        floor=reference,
        absent=absent,
    )


def _reader(name: str, owner: object, limit: float | None = None) -> Candidate:
    """Read the attribute many times in a row, in a function that no other owner shares.

    CPython specialises each place in the code for the class it meets there: owners that took
    turns in one function would slow each other down.
    """
    code = "def read():\n" + "    owner.weight\n" * READS
    scope: dict[str, object] = {"owner": owner}
    exec(code, scope)
    return Candidate(name, _function(scope["read"]), per=READS, limit=limit)


def _function(value: object) -> Callable[[], object]:
    assert callable(value)
    return value
