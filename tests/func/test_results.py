"""What functions return: containers of every kind come back whole, what cannot is refused."""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax import Module, Parameter, func, tree
from parallax._compat import functorch


class Scale(Module):
    by: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x.sin()


@dataclasses.dataclass
class Output:
    logits: Tensor
    more: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    logits: Tensor
    parts: dict[str, Output]


@dataclasses.dataclass
class Computing:
    logits: Tensor
    scale: dataclasses.InitVar[float] = 1.0

    def __post_init__(self, scale: float) -> None:
        self.twice = 2 * scale * self.logits


class Point(NamedTuple):
    first: Tensor
    second: Tensor


class Registered:
    """Known to torch's pytree only."""

    def __init__(self, logits: Any) -> None:
        self.logits = logits


torch_pytree.register_pytree_node(
    Registered, lambda r: ([r.logits], None), lambda children, _: Registered(*children)
)


def counted(y: Tensor) -> Any:
    found = collections.defaultdict(list)
    found["y"].append(y)
    return found


CONTAINERS: dict[str, Any] = {
    "dataclass": lambda y: Output(y, (y, 2 * y)),
    "frozen dataclass with slots": lambda y: Frozen(y, {"a": Output(2 * y)}),
    "dataclass that computes": lambda y: Computing(y, 3.0),
    "dataclass in containers": lambda y: {"a": [Output(y), Output(2 * y)]},
    "module in a dataclass": lambda y: Output(y, Scale(y)),
    "namedtuple": lambda y: Point(y, 2 * y),
    "defaultdict": counted,
    "OrderedDict": lambda y: collections.OrderedDict(b=y, a=2 * y),
    "deque": lambda y: collections.deque([y, y]),
    "torch's own": lambda y: torch.max(torch.stack([y, 2 * y]), 0).values,
    "registered with torch": lambda y: Registered(y),
}


def tensors(value: Any) -> list[Tensor]:
    """All tensors that an object holds, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Module):
        return [leaf for leaf in tree.leaves(value) if isinstance(leaf, Tensor)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in tensors(item)]
    if isinstance(value, (list, tuple, collections.deque)):
        return [t for item in value for t in tensors(item)]
    if dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value)]
        names += [name for name in getattr(value, "__dict__", {}) if name not in names]
        return [t for name in names for t in tensors(getattr(value, name))]
    if isinstance(value, Registered):
        return tensors(value.logits)
    return []


MODEL = Scale(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
X = torch.tensor([0.3, 0.7, -0.2], dtype=torch.float64)
BATCH = torch.stack([X, 2 * X])


def same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    ours, theirs = tensors(found), tensors(expected)
    assert not any(functorch.is_wrapped(t) or t.requires_grad for t in ours)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", CONTAINERS)
def test_results_come_back_whole(name: str) -> None:
    make = CONTAINERS[name]
    run: Any = lambda m, x: make(m(x))  # noqa: E731  # short
    loss: Any = lambda m, x: (m(x).pow(2).sum(), make(m(x)))  # noqa: E731  # short
    expected = make(MODEL(X))
    same(func.grad(loss, has_aux=True)(MODEL, X)[1], expected)
    same(func.grad_and_value(loss, has_aux=True)(MODEL, X)[1][1], expected)
    same(func.vjp(lambda m: loss(m, X), MODEL, has_aux=True)[2], expected)
    same(func.jvp(lambda m: loss(m, X), (MODEL,), (MODEL,), has_aux=True)[2], expected)
    same(func.jacrev(loss, has_aux=True)(MODEL, X)[1], expected)
    same(func.jacfwd(loss, has_aux=True)(MODEL, X)[1], expected)
    same(torch.func.vmap(lambda s: tensors(func.grad(loss, has_aux=True)(MODEL, X)[1])[0] * s)(
        torch.ones(2, dtype=torch.float64))[0], tensors(expected)[0])  # fmt: skip
    rows = [tensors(run(MODEL, x)) for x in BATCH]
    stacked = [torch.stack(column) for column in zip(*rows, strict=True)]
    for found in (
        func.vmap(run, (None, 0))(MODEL, BATCH),
        func.vmap(run, (None, 0), chunk_size=1)(MODEL, BATCH),
        func.per_sample_grad(loss, has_aux=True)(MODEL, BATCH)[1],
    ):
        assert type(found) is type(expected)
        torch.testing.assert_close(tensors(found), stacked)
    out, pull = func.vjp(lambda m: run(m, X), MODEL)
    same(out, expected)
    by_torch = torch.func.vjp(lambda by: tensors(run(Scale(by), X)), MODEL.by)[1]
    torch.testing.assert_close(pull(out)[0].by, by_torch(tensors(expected))[0])
    value, along = func.jvp(lambda m: run(m, X), (MODEL,), (MODEL,))
    same(value, expected)
    slopes = torch.func.jvp(
        lambda by: tensors(run(Scale(by), X)), (MODEL.by,), (MODEL.by,)
    )[1]  # fmt: skip
    torch.testing.assert_close(tensors(along), slopes)


class Label(enum.Enum):
    A = 1


class Plain:
    def __init__(self, held: Any) -> None:
        self.held = held


class Asking(dict[str, Any]):
    """Whose attributes are its items, and no others."""

    __getattr__ = dict.__getitem__


class Dict(dict[str, Any]):
    """A class that no registry knows."""


PASSED: list[Any] = [
    "text", (3, 2), torch.Size([3, 2]), collections.Counter(seen=3), {"s": torch.Size([4])},
    Label.A, {1, 2}, Plain(3), Plain(torch.ones(2)), Dict(a=1),
    [torch.float32, torch.device("cpu")], range(3), len, int,
]  # fmt: skip


@pytest.mark.parametrize("aux", PASSED, ids=lambda aux: type(aux).__name__)
def test_what_holds_no_tensor_of_the_transform_passes(aux: Any) -> None:
    _, back = func.grad(lambda m: (m(X).sum(), aux), has_aux=True)(MODEL)
    assert type(back) is type(aux) and (back is aux or back == aux)
    back = func.vmap(lambda x: (x, aux))(BATCH)[1]
    assert type(back) is type(aux) and (back is aux or back == aux)


def later(y: Tensor) -> Iterator[Tensor]:
    yield y


def in_array(y: Tensor) -> Any:
    """An array of objects, which the garbage collector does not see into."""
    array = np.empty(1, dtype=object)
    array[0] = y
    return array


HIDDEN: dict[str, Any] = {
    "Plain": lambda y: Plain([{"deep": y}]),
    "set": lambda y: {y},
    "Counter": lambda y: collections.Counter(y=y),
    "Dict": lambda y: Dict(y=y),
    "Asking": lambda y: Asking(y=y),
    "generator": later,
    "map": lambda y: map(abs, [y]),
    "function": lambda y: lambda: y,
    "Normal": lambda y: torch.distributions.Normal(y, 1.0),
    "ndarray": in_array,
}


@pytest.mark.parametrize("name", HIDDEN)
def test_tensors_that_cannot_be_taken_out_are_refused(name: str) -> None:
    make = HIDDEN[name]
    loss: Any = lambda m, x: (m(x).sum(), make(m(x)))  # noqa: E731  # short
    calls: list[Any] = [
        lambda: func.grad(loss, has_aux=True)(MODEL, X),
        lambda: func.vmap(lambda m, x: make(m(x)), (None, 0))(MODEL, BATCH),
        lambda: func.vmap(lambda m, x: [x, make(m(x))], (None, 0))(MODEL, BATCH),
        lambda: func.per_sample_grad(loss, has_aux=True)(MODEL, BATCH),
        lambda: func.vjp(lambda m: loss(m, X), MODEL, has_aux=True),
        lambda: func.jvp(lambda m: loss(m, X), (MODEL,), (MODEL,), has_aux=True),
        lambda: func.jacrev(loss, has_aux=True)(MODEL, X),
        lambda: func.vmap(lambda x: func.grad(loss, has_aux=True)(MODEL, x)[0].by)(BATCH),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=rf"func\.\w+\(.*returned a {name}.*which holds a"):
            call()
    for call in (
        lambda: func.vjp(lambda m: make(m(X)), MODEL),
        lambda: func.jacfwd(lambda m: make(m(X)))(MODEL),
    ):
        with pytest.raises(TypeError, match=rf"returned a {name}"):
            call()


def test_a_partial_is_taken_apart() -> None:
    def run(m: Any, x: Tensor) -> Any:
        return partial(torch.add, m(x), alpha=2)

    expected = run(MODEL, X)(X)
    _, aux = func.grad(lambda m, x: (m(x).sum(), run(m, x)), has_aux=True)(MODEL, X)
    assert not aux.args[0].requires_grad
    torch.testing.assert_close(aux(X), expected)
    stacked = func.vmap(run, (None, 0))(MODEL, BATCH)
    assert not functorch.is_wrapped(stacked.args[0])
    torch.testing.assert_close(stacked.args[0], MODEL(BATCH))


def test_a_result_of_transformers() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs").SequenceClassifierOutput

    def run(m: Any, x: Tensor) -> Any:
        y = m(x)
        return outputs(loss=y.pow(2).sum(), logits=y, hidden_states=(y, 2 * y))

    def loss(m: Any, x: Tensor) -> tuple[Tensor, Any]:
        out = run(m, x)
        return out.loss, out

    expected = run(MODEL, X)
    grads, out = func.grad(loss, has_aux=True)(MODEL, X)
    same(out, expected)
    torch.testing.assert_close(grads.by, torch.func.grad(lambda b: (b * X.sin()).pow(2).sum())(
        MODEL.by))  # fmt: skip
    stacked = func.vmap(run, (None, 0))(MODEL, BATCH)
    assert type(stacked) is outputs and stacked.hidden_states[1].shape == (2, 3)
    torch.testing.assert_close(stacked.logits[1], MODEL(BATCH[1]))
    with pytest.raises(TypeError, match=r"returned a SequenceClassifierOutput.*return out.loss"):
        func.grad(run)(MODEL, X)


def test_a_result_is_opened_in_a_compiled_function() -> None:
    def everything(m: Any, x: Tensor) -> Any:
        loss: Any = lambda m: (m(x[0]).sum(), Output(m(x[0]), {"n": 3}))  # noqa: E731  # short
        return func.vmap(lambda x: Output(m(x)))(x), func.grad(loss, has_aux=True)(m)[1]

    compiled = torch.compile(everything, backend="eager", fullgraph=True)
    mapped, aux = compiled(MODEL, BATCH)
    torch.testing.assert_close(mapped.logits, torch.stack([MODEL(x) for x in BATCH]))
    torch.testing.assert_close(aux.logits, MODEL(BATCH[0]))
    assert aux.more == {"n": 3}
