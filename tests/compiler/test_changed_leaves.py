"""No graph is used where it is wrong: a leaf of another kind, after the graph was made.

The functions tell all that they can see of their arguments, so that a graph made for anything else
gives another answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported

from tests.compiling import eager_and_aot, graphs, make_compiled
from tests.corpus import Scale

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def facts(x: Tensor) -> list[Any]:
    """What the trace of a function may have turned into constants."""
    return [
        tuple(x.shape),
        x.stride() if x.layout is torch.strided else None,
        x.dtype,
        x.device.type,
        x.requires_grad,
        x.layout,
        x.is_contiguous() if x.layout is torch.strided else None,
    ]


def tell(x: Tensor) -> tuple[Tensor, list[Any]]:
    return x + x, facts(x)


BASE = torch.arange(24.0).reshape(4, 6)

LEAVES: dict[str, Callable[[], Tensor]] = {
    "values": lambda: BASE + 1,
    "size": lambda: torch.randn(5, 6),
    "size one": lambda: torch.randn(1, 6),
    "size zero": lambda: torch.randn(0, 6),
    "rank": lambda: torch.randn(4, 6, 1),
    "strides": lambda: torch.randn(6, 4).t(),
    "gaps": lambda: torch.randn(4, 12)[:, ::2],
    "expanded": lambda: torch.randn(1, 6).expand(4, 6),
    "offset": lambda: torch.randn(25)[1:].view(4, 6),
    "float64": lambda: BASE.double(),
    "bfloat16": lambda: BASE.bfloat16(),
    "int64": lambda: BASE.long(),
    "complex": lambda: BASE.to(torch.complex64),
    "conjugate": lambda: BASE.to(torch.complex64).conj(),
    "negative": lambda: BASE.to(torch.complex64).conj().imag,
    "meta": lambda: BASE.to("meta"),
    "requires_grad": lambda: BASE.clone().requires_grad_(),
    "non-leaf": lambda: BASE.clone().requires_grad_() * 1,
    "parameter": lambda: nn.Parameter(BASE.clone()),
    "inference": lambda: _in_inference_mode(BASE.clone),
}


def _in_inference_mode(make: Callable[[], Tensor]) -> Tensor:
    with torch.inference_mode():
        return make()


# torch says this of every non-leaf that goes into a compiled function, where warnings are errors.
ask_for_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@ask_for_grad
@pytest.mark.parametrize("name", LEAVES)
def test_a_changed_leaf(name: str) -> None:
    compiled = make_compiled(tell, backend=eager_and_aot, dynamic=False)
    for make in (BASE.clone, LEAVES[name], BASE.clone, LEAVES[name]):
        x = make()
        (y, told), (expected, true) = compiled(x), tell(x)
        assert told == true
        assert facts(y) == facts(expected)
        if y.device.type != "meta":
            torch.testing.assert_close(y, expected)
    assert graphs() <= 2


@ask_for_grad
@pytest.mark.parametrize("name", LEAVES)
def test_a_changed_leaf_of_a_module(name: str) -> None:
    compiled = make_compiled(lambda scale: tell(scale.by), backend="eager")
    compiled(Scale(BASE.clone()))
    x = LEAVES[name]()
    assert compiled(Scale(x))[1] == facts(x)


def test_what_dynamo_cannot_take_is_refused_not_mistaken() -> None:
    compiled = make_compiled(tell, backend="eager")
    compiled(BASE)
    with pytest.raises(Unsupported, match="sparse"):
        compiled(BASE.to_sparse())


class Wrapped(Tensor):
    """A plain subclass."""


def test_subclasses_are_guarded_by_dynamo() -> None:
    compiled = make_compiled(lambda x: (x * 2, type(x).__name__), backend="eager")
    plain = torch.ones(2)
    for x in (plain, plain.as_subclass(Wrapped), plain):
        y, name = compiled(x)
        assert (type(y), name) == (type(x), type(x).__name__)


def test_attributes_of_tensors() -> None:
    def fn(x: Tensor) -> Any:
        grad = x.grad
        return x + 1 if grad is None else grad * 2

    compiled = make_compiled(fn, backend="eager")
    x = torch.ones(2, requires_grad=True)
    for grad in (None, torch.ones(2), torch.full((2,), 3.0), None):
        x.grad = grad
        torch.testing.assert_close(compiled(x), fn(x))


@pytest.mark.parametrize("first", [0.0, -0.0, 1.0])
def test_zeros_of_either_sign(first: float) -> None:
    def run(x: Tensor, number: float, several: list[float]) -> Any:
        return torch.copysign(x, torch.tensor(number)), [math.copysign(1, n) for n in several]

    compiled = make_compiled(run, backend="eager")
    x = torch.ones(2)
    for number in (first, 0.0, -0.0, 1.0, 0.0):
        for other in (number, 0.0, -0.0):
            torch.testing.assert_close(
                compiled(x, number, [other]), run(x, number, [other]), rtol=0, atol=0
            )
            assert str(compiled(x, number, [other])[1]) == str(run(x, number, [other])[1])
