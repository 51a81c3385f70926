"""No graph is used where it is wrong: other modes of torch, globals, closures and classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, Parameter, func, random, tree
from tests.compiling import eager_and_aot, graphs, make_compiled
from tests.corpus import Scale

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@contextlib.contextmanager
def _default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "default dtype": _default_dtype,
    "default device": lambda: torch.device("meta"),
    "deterministic": _deterministic,
    "threads": _threads,
    "saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_changed_surroundings(name: str) -> None:
    def fn(weight: Tensor, x: Tensor) -> tuple[Tensor, list[Any], list[Any]]:
        new, y = torch.ones(2), x @ weight
        return (
            y,
            [torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()],
            [y.dtype, y.requires_grad, new.dtype, new.device.type, torch.is_autocast_enabled()],
        )

    weight, x = torch.randn(3, 3, requires_grad=True), torch.randn(2, 3)
    compiled = make_compiled(fn, backend=eager_and_aot)
    for change in (contextlib.nullcontext, SURROUNDINGS[name]) * 2:
        with change():
            got, expected = compiled(weight, x), fn(weight, x)
        assert got[1:] == expected[1:]
        assert (got[0].dtype, got[0].requires_grad) == (
            expected[0].dtype,
            expected[0].requires_grad,
        )
        torch.testing.assert_close(got[0], expected[0])
    assert graphs() <= 2


GLOBAL = {"factor": 2.0}
SCALAR = 2.0
TENSOR = torch.ones(2)


def test_globals_closures_and_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, held = 1.0, torch.ones(2)

    def fn(x: Tensor, default: float = 3.0) -> Tensor:
        return x * GLOBAL["factor"] * SCALAR * cell * default + TENSOR + held

    compiled, x = make_compiled(fn, backend="eager"), torch.ones(2)
    own = globals()

    def changes() -> Iterator[None]:
        nonlocal cell, held
        yield
        monkeypatch.setitem(own, "SCALAR", 5.0)
        yield
        monkeypatch.setitem(GLOBAL, "factor", 7.0)
        yield
        cell = 11.0
        yield
        fn.__defaults__ = (13.0,)
        yield
        monkeypatch.setitem(own, "TENSOR", torch.ones(2, 2))
        yield
        held = torch.ones(3, 1, 1)
        yield

    for _ in changes():
        torch.testing.assert_close(compiled(x), fn(x))


def test_results_of_another_shape_by_a_global(monkeypatch: pytest.MonkeyPatch) -> None:
    def fn(scale: Any) -> Any:
        return {"scale": scale} if SCALAR == 2.0 else (scale, scale.by)

    compiled, scale = make_compiled(fn, backend="eager"), Scale(torch.ones(2))
    for value in (2.0, 3.0, 2.0, 3.0):
        monkeypatch.setitem(globals(), "SCALAR", value)
        assert tree.structure(compiled(scale)) == tree.structure(fn(scale))
    assert graphs() <= 2


def test_a_class_that_changes() -> None:
    class Inner(Module):
        by: Parameter

        def forward(self, x: Tensor) -> Tensor:
            return self.helper(x)

        def helper(self, x: Tensor) -> Tensor:
            return self.by * x

    class Outer(Module):
        inner: Inner

        def forward(self, x: Tensor) -> Any:
            return self.inner(x)

    outer, x = Outer(Inner(torch.ones(2))), torch.ones(2)
    compiled = make_compiled(lambda outer, x: outer(x), backend="eager")
    assert torch.equal(compiled(outer, x), x)
    Inner.helper = lambda self, x: 5 * x  # type: ignore[method-assign]  # the change in question
    assert torch.equal(compiled(outer, x), 5 * x)
    Inner.forward = lambda self, x: 7 * x  # type: ignore[method-assign]  # as above
    assert torch.equal(compiled(outer, x), 7 * x)
    made = graphs()

    class Unrelated(Module):
        by: Parameter

    Unrelated.other = 1
    compiled(outer, x)
    assert graphs() == made


class Times:
    def __init__(self, by: float) -> None:
        self.by = by

    def factor(self) -> float:
        return self.by


class Meta(type):
    by = 2.0


class Scaled(Module):
    by: Parameter

    def factor(self) -> float:
        return 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x * self.factor()


def met() -> dict[str, tuple[Callable[[Tensor], Any], type, str, Any]]:
    """Functions, and an attribute of a class to change that is no argument's."""

    class Own(Times): ...

    class Other(metaclass=Meta): ...

    one, held, scaled = Own(2.0), {"it": Own(2.0)}, Scaled(torch.ones(2))
    listed = [scaled]
    five: Any = lambda self: 5.0  # noqa: E731
    return {
        "an object": (lambda x: x * one.factor(), Times, "factor", five),
        "an object in a dict": (lambda x: x * held["it"].factor(), Own, "factor", five),
        "an object that is made": (lambda x: x * Own(2.0).factor(), Own, "factor", five),
        "the class of a class": (lambda x: x * Other.by, Meta, "by", 5.0),
        "a module": (lambda x: scaled(x), Scaled, "factor", five),
        "a module in a list": (lambda x: listed[0](x), Scaled, "factor", five),
        "a module that is made": (lambda x: Scaled(x * 0 + 1)(x), Scaled, "factor", five),
        "a module in a gradient": (
            lambda x: x * func.grad(lambda m: m(x).sum())(scaled).by, Scaled, "factor", five,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", met())
def test_classes_that_change_of_what_is_no_argument(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fn, cls, attribute, value = met()[name]
    compiled, x = make_compiled(fn, backend="eager"), torch.ones(2)
    assert torch.equal(compiled(x), 2 * x)
    monkeypatch.setattr(cls, attribute, value, raising=False)
    assert torch.equal(compiled(x), 5 * x)


def exchanges() -> dict[str, tuple[Callable[[Tensor], Any], Callable[[], Any]]]:
    """Functions that give twice what they get, and what has them give five times that."""

    class Two:
        by = 2.0

        def factor(self) -> float:
            return 2.0

    class Five:
        def factor(self) -> float:
            return 5.0

    class Hidden(Two): ...

    class Based(Two): ...

    class Nameless(Two): ...

    class Asked:
        def __getattr__(self, name: str) -> float:
            return 2.0

    class Renamed(Five): ...

    class Veiled(Two):
        @property
        def __class__(self) -> type:
            return type

        @__class__.setter
        def __class__(self, value: type) -> None: ...

    class Called:
        def __call__(self) -> float:
            return 5.0

    cell: type[Two | Five] = Two

    def rebind() -> None:
        nonlocal cell
        cell = Five

    def rename() -> None:
        part: Any = Renamed.factor
        del Renamed.factor
        Renamed.other = part  # type: ignore[attr-defined]  # the change in question

    listed: list[type[Two | Five]] = [Two]
    holder = SimpleNamespace(cls=Two)
    Renamed.factor = Two.factor  # type: ignore[assignment]  # the last of its names
    Nameless.__module__ = None  # type: ignore[assignment]  # as some generated classes have it
    hidden, based, nameless, asked = Hidden(), Based(), Nameless(), Asked()
    renamed, veiled, plain = Renamed(), Veiled(), Hidden()
    five: Any = lambda self: 5.0  # noqa: E731
    return {
        "a class in a closure": (lambda x: x * cell().factor(), rebind),
        "a class in a list": (
            lambda x: x * listed[0]().factor(), lambda: listed.__setitem__(0, Five),
        ),
        "a class in an attribute": (
            lambda x: x * holder.cls().factor(), lambda: setattr(holder, "cls", Five),
        ),
        "the bases of a class": (
            lambda x: x * based.factor(), lambda: setattr(Based, "__bases__", (Five,)),
        ),
        "an object that hides a method": (
            lambda x: x * hidden.factor(), lambda: setattr(Hidden, "factor", Called()),
        ),
        "a number that hides a number": (
            lambda x: x * plain.by, lambda: setattr(Hidden, "by", 5.0),
        ),
        "a number in place of __getattr__": (
            lambda x: x * asked.by, lambda: setattr(Asked, "by", 5.0),
        ),
        "a method under another name": (lambda x: x * renamed.factor(), rename),
        "a class of no module": (
            lambda x: x * nameless.factor(), lambda: setattr(Nameless, "factor", five),
        ),
        "an object that says it is a class": (
            lambda x: x * veiled.factor(), lambda: setattr(Veiled, "factor", five),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", exchanges())
def test_classes_that_are_exchanged(name: str) -> None:
    fn, change = exchanges()[name]
    compiled, x = make_compiled(fn, backend="eager"), torch.ones(2)
    assert torch.equal(compiled(x), 2 * x)
    change()
    assert torch.equal(fn(x), 5 * x)
    assert torch.equal(compiled(x), 5 * x)


def test_the_bases_of_a_module_class() -> None:
    class Two:
        def factor(self) -> float:
            return 2.0

    class Five:
        def factor(self) -> float:
            return 5.0

    class Net(Module):
        by: Parameter

        def forward(self, x: Tensor) -> Tensor:
            factor: float = self.factor()  # type: ignore[attr-defined]  # of the other base
            return self.by * x * factor

    class Mixed(Net, Two): ...

    net, x = Mixed(torch.ones(2)), torch.ones(2)
    compiled = make_compiled(lambda net, x: net(x), backend="eager")
    assert torch.equal(compiled(net, x), 2 * x)
    Mixed.__bases__ = (Net, Five)
    assert torch.equal(compiled(net, x), 5 * x)


def test_a_counter_of_a_class_costs_no_graph() -> None:
    class Counted:
        count = 0

        def factor(self) -> float:
            return 2.0

    one = Counted()
    compiled, x = make_compiled(lambda x: x * one.factor(), backend="eager"), torch.ones(2)
    for _ in range(3):
        Counted.count += 1
        assert torch.equal(compiled(x), 2 * x)
    assert graphs() == 1


def test_keys_that_are_made_and_mapped() -> None:
    def drawn(x: Tensor) -> Tensor:
        keys: Any = random.split(random.key(5), 4)
        return func.vmap(lambda key: random.normal(key, (3,)))(keys) + x

    compiled, x = make_compiled(drawn, backend="eager"), torch.ones(3)
    assert torch.equal(compiled(x), drawn(x))


def test_a_global_module_read_beside_the_argument() -> None:
    def fn(scale: Any, x: Tensor) -> Any:
        return scale(x) + GLOBAL_SCALE.by  # the one it began with, an error that is often made

    compiled, x = make_compiled(fn, backend="eager"), torch.ones(2)
    scale: Any = GLOBAL_SCALE
    for _ in range(4):
        torch.testing.assert_close(compiled(scale, x), fn(scale, x))
        scale = tree.map(lambda leaf: leaf + 1, scale)
    assert graphs() == 2


GLOBAL_SCALE = Scale(torch.ones(2))
BATCH = torch.ones(2)


def test_a_global_that_is_only_given_costs_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = make_compiled(lambda scale, x: scale(x) * SCALAR, backend="eager")
    for value in (1.0, 2.0, 3.0):
        monkeypatch.setitem(globals(), "BATCH", torch.full((2,), value))
        torch.testing.assert_close(compiled(GLOBAL_SCALE, BATCH), BATCH * SCALAR)
    compiled(GLOBAL_SCALE, torch.ones(2))
    assert graphs() == 1
