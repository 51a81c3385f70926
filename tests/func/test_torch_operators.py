"""Every operator of torch's own database: derivatives to the third order in any nesting.

What they must be is told by values alone. A derivative may be missing, if an error says so, and
must not be wrong.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax import func
from tests.corpus.torch_data import operators
from tests.func.operators import FORMS, Operator
from tests.nn.derivatives import words

PARTS = 20
SAMPLES = 5
LARGEST = 1500
SECONDS = 60

WORDS = [*words(3, mapped=False), "VR", "RV", "VF", "FV", "VRR", "RVR", "RRV", "VFR", "FVR", "VFF",
         "RVF"]  # fmt: skip

EXPECTED = {
    "normal": "what is drawn is constant to torch",
    "nn.functional.max_unpool1d": "several numbers go to one place",
    "nn.functional.max_unpool2d": "several numbers go to one place",
    "nn.functional.max_unpool3d": "several numbers go to one place",
    "native_layer_norm": "the mean and the deviation are constant to torch",
    "native_batch_norm": "the mean and the deviation are constant to torch",
    "_native_batch_norm_legit": "the mean and the deviation are constant to torch",
    "_batch_norm_with_update": "the mean and the deviation are constant to torch",
    "torch.ops.aten._safe_softmax.default": "not public",
    "nn.functional.linear_cross_entropy.chunked": "torch computes no gradient within a vmap",
}
"""What is wrong, and why it stays."""

KINKS = frozenset(
    {"addcdiv", "lu_solve", "nextafter", "nn.functional.margin_ranking_loss", "to_sparse"}
)
"""What has no derivative where entries are zero, though values along one line may have."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_derivative_is_wrong(part: int, form: str) -> None:
    infos = [info for info in operators() if torch.float64 in info.dtypes]
    wrong = [line for info in infos[part::PARTS] for line in _wrong_of(info, form)]
    assert not wrong, "\n" + "\n".join(wrong)


def _wrong_of(info: Any, form: str) -> list[str]:
    name = ".".join([x for x in (info.name, info.variant_test_name) if x])
    if name in EXPECTED or info.name in EXPECTED or (form == "zeros" and name in KINKS):
        return []
    found = []
    for number, sample in _samples(info):
        for asked in (False, True):
            try:
                with _limited(SECONDS):
                    operator = Operator.of(info, sample, number, form, asked)
                    found += [] if operator is None else _compared(operator)
            except TimeoutError:
                break
            except (RuntimeError, ValueError, IndexError, NotImplementedError):
                continue  # not defined where it is moved to
    return [f"{name} {line}" for line in found]


def _compared(operator: Operator) -> list[str]:
    lines = []
    for word in WORDS:
        expected = operator.expected(word)
        if expected is None:
            continue
        try:
            found = operator.found(word, func)
        except TimeoutError:
            raise
        except Exception:  # torch has no such derivative, or it is refused
            continue
        if not operator.is_close(word, found, expected):
            lines.append(f"[{operator.number}] {word}: {found} for {expected}")
    return lines


def _samples(info: Any) -> list[tuple[int, Any]]:
    """A few samples of an operator that are not large."""
    torch.manual_seed(0)
    try:
        every = list(info.sample_inputs("cpu", torch.float64, requires_grad=info.supports_autograd))
    except Exception:  # it has none of this kind
        return []
    small = [pair for pair in enumerate(every) if _size(pair[1]) <= LARGEST]
    chosen = sorted(Random(0).sample(range(len(small)), min(SAMPLES, len(small))))
    return [small[k] for k in chosen]


def _size(sample: Any) -> int:
    leaves = torch_pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    return sum([x.numel() for x in leaves if isinstance(x, Tensor)])


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
