"""Second derivatives of torch's operators, by every nesting of forward and reverse mode.

Of many operators torch's forward derivative has wrong derivatives. The ordinary run has those;
``--slow`` takes all of torch's own database.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax import func
from tests.corpus.torch_data import operators

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's samples use what it warns of

WRONG_IN_TORCH = (
    "linalg.eigh", "linalg.householder_product", "linalg.solve", "linalg.tensorsolve",
    "logcumsumexp", "nn.functional.batch_norm", "nn.functional.glu", "nn.functional.instance_norm",
    "nn.functional.layer_norm",
)  # fmt: skip
FORWARD = ("FF", "RF", "TF", "JJ", "JF", "FJ")
"""The outer derivative first: forward, reverse, the tape, and the columns of a Jacobian."""


class Line:
    """An operator with one sample of its arguments, as a function of all that is differentiated.

    A sum of sines of the results, so that no second derivative is zero.
    """

    def __init__(self, info: Any, sample: Any) -> None:
        given = (sample.input, sample.args, sample.kwargs)
        self._info, self._process = info, sample.output_process_fn_grad
        self._leaves, self._spec = torch_pytree.tree_flatten(given)
        self._places = [k for k, x in enumerate(self._leaves) if _differentiated(x)]
        self.start = [self._leaves[k].detach().clone() for k in self._places]
        generator = torch.Generator().manual_seed(0)
        self.along = [
            torch.randn(x.shape, generator=generator, dtype=x.dtype) / 2 for x in self.start
        ]

    def __call__(self, *values: Tensor) -> Tensor:
        leaves = [x.detach() if isinstance(x, Tensor) else x for x in self._leaves]
        for place, value in zip(self._places, values, strict=True):
            leaves[place] = value
        first, args, kwargs = torch_pytree.tree_unflatten(leaves, self._spec)
        torch.manual_seed(0)
        out = self._info.gradcheck_wrapper(self._info.op, first, *args, **kwargs)
        if self._process is not None:
            out = self._process(out)
        found = [x for x in torch_pytree.tree_leaves(out) if _is_double(x)]
        sines = [(torch.arange(1, x.numel() + 1) * (x.reshape(-1) + 1).sin()).sum() for x in found]
        return torch.stack(sines).sum()

    def known(self) -> float | None:
        """The second derivative by the tape, where differences of first ones tell the same."""
        slope, step = tape(self, self.along), 1e-5

        def at(t: float) -> float:
            return float(slope(*[x + t * v for x, v in zip(self.start, self.along, strict=True)]))

        found = float(tape(slope, self.along)(*self.start))
        around = (at(step) - at(-step)) / (2 * step)
        near = math.isfinite(found) and abs(found - around) < 1e-4 * (1 + abs(found))
        return found if near else None


def _is_double(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.float64


def _differentiated(value: Any) -> bool:
    return _is_double(value) and value.requires_grad


Function = Callable[..., Tensor]


def tape(function: Function, along: list[Tensor]) -> Function:
    def derived(*values: Tensor) -> Tensor:
        leaves = [x if x.requires_grad else x.detach().requires_grad_() for x in values]
        views = [x.view_as(x) for x in leaves]
        out = function(*views)
        if not out.requires_grad:  # it does not depend on them
            return torch.zeros_like(out)
        grads = torch.autograd.grad(out, views, create_graph=True, materialize_grads=True)
        return product(grads, along)

    return derived


def product(grads: Any, along: list[Tensor]) -> Tensor:
    return torch.stack([(g * v).sum() for g, v in zip(grads, along, strict=True)]).sum()


def nested(word: str, line: Line) -> float:
    along = line.along
    every = tuple(range(len(along)))
    ways: dict[str, Callable[[Any], Any]] = {
        "F": lambda f: lambda *xs: func.jvp(f, xs, tuple(along))[1],
        "J": lambda f: lambda *xs: product(func.jacfwd(f, every)(*xs), along),
        "R": lambda f: lambda *xs: product(func.grad(f, every)(*xs), along),
        "T": lambda f: tape(f, along),
    }
    function: Any = line
    for letter in reversed(word):
        function = ways[letter](function)
    return float(function(*line.start).detach())


def lines(info: Any, count: int) -> Iterator[Line]:
    """Samples that are small, smooth at their place, and where two evaluations agree."""
    if not (info.supports_autograd and info.supports_forward_ad and info.supports_gradgrad):
        return
    given = info.sample_inputs("cpu", torch.float64, requires_grad=True)
    for sample in itertools.islice(given, count):
        line = Line(info, sample)
        sizes = [x.numel() for x in line.start]
        if sizes and min(sizes) > 0 and sum(sizes) < 2000:
            yield line


def check(info: Any, count: int, words: Sequence[str] = FORWARD) -> int:
    checked = 0
    for line in lines(info, count):
        try:
            expected = line.known()
            nested("F", line)
        except (IndexError, RuntimeError):  # torch has no second derivative, or no forward one
            continue
        if expected is None:
            continue
        checked += 1
        for word in words:
            found = nested(word, line)
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), f"{info.name} {word}"
    return checked


@pytest.mark.parametrize("name", WRONG_IN_TORCH)
def test_what_torch_has_wrong(name: str) -> None:
    assert sum(check(info, 1, ("FF", "RF", "JJ")) for info in operators() if info.name == name)


KERNELS = ("_batch_norm_with_update", "_native_batch_norm_legit", "native_batch_norm")
"""What only torch's own functions call. Their third derivatives are wrong in torch."""


@pytest.mark.slow
def test_every_operator() -> None:
    wrong: list[str] = []
    checked = 0
    for info in operators():
        if info.name in KERNELS:
            continue
        try:
            checked += check(info, 8)
        except Exception as error:  # whatever it is, it is reported
            wrong.append(f"{info.full_name}: {type(error).__name__}: {error}")
    assert not wrong
    assert checked > 1000
