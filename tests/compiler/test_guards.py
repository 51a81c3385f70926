"""No graph is ever used where it is wrong: one change at a time, after the graph was made.

The functions tell all that they can see of their arguments and surroundings, so that a graph made
for anything else gives another answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters

import parallax
from parallax import Module, Parameter, UninitializedError, tree
from tests.corpus import SIZE, Dense, Scale, TiedParameter


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def make_compiled(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``parallax.compile``, of functions without types, too."""
    return parallax.compile(fn, **options)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


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
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", LEAVES)
def test_a_changed_leaf(name: str, backend: str) -> None:
    compiled = make_compiled(tell, backend=backend, dynamic=False)
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


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_changed_surroundings(name: str, backend: str) -> None:
    def fn(weight: Tensor, x: Tensor) -> tuple[Tensor, list[Any], list[Any]]:
        new, y = torch.ones(2), x @ weight
        return (
            y,
            [torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()],
            [y.dtype, y.requires_grad, new.dtype, new.device.type, torch.is_autocast_enabled()],
        )

    weight, x = torch.randn(3, 3, requires_grad=True), torch.randn(2, 3)
    compiled = make_compiled(fn, backend=backend)
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


# -- what is no argument ------------------------------------------------------------------------

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


def test_attributes_of_tensors() -> None:
    def fn(x: Tensor) -> Any:
        grad = x.grad
        return x + 1 if grad is None else grad * 2

    compiled = make_compiled(fn, backend="eager")
    x = torch.ones(2, requires_grad=True)
    for grad in (None, torch.ones(2), torch.full((2,), 3.0), None):
        x.grad = grad
        torch.testing.assert_close(compiled(x), fn(x))


# -- aliases ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_writes_into_overlapping_arguments(backend: str) -> None:
    def fn(a: Tensor, b: Tensor) -> Tensor:
        a.add_(1)
        return a + b

    compiled = make_compiled(fn, backend=backend)
    for _ in range(2):
        for left, right in ((slice(0, 4), slice(4, 8)), (slice(0, 4), slice(2, 6))):
            one, two = torch.arange(8.0), torch.arange(8.0)
            torch.testing.assert_close(compiled(one[left], one[right]), fn(two[left], two[right]))
            torch.testing.assert_close(one, two)
        one, two = torch.arange(8.0), torch.arange(8.0)
        torch.testing.assert_close(compiled(one, one), fn(two, two))
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("aliased_first", [True, False])
def test_an_argument_that_is_also_closed_over(backend: str, aliased_first: bool) -> None:
    held = torch.randn(3, requires_grad=True)

    def fn(x: Tensor) -> Tensor:
        return (x * held * 2).sum()

    compiled = make_compiled(fn, backend=backend)
    other = torch.randn(3, requires_grad=True)
    for x in (held, other, held) if aliased_first else (other, held, other):
        got = torch.autograd.grad(compiled(x), [x, held])
        expected = torch.autograd.grad(fn(x), [x, held])
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("aliased_first", [True, False])
def test_writes_into_what_is_also_closed_over(aliased_first: bool) -> None:
    held = torch.ones(3)

    def fn(x: Tensor) -> Tensor:
        x.add_(1)
        return held * 2

    compiled = make_compiled(fn, backend="aot_eager")
    for aliased in (aliased_first, not aliased_first, aliased_first):
        held.fill_(1)
        x = held if aliased else torch.ones(3)
        assert torch.equal(compiled(x), torch.full((3,), 4.0 if aliased else 2.0))


class Holder:
    """Something that a global may be."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


HELD = torch.full((3,), 3.0)
SHELF: dict[Any, Any] = {"tensor": HELD, 3: [HELD]}
HOLDER = Holder(HELD)
READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "a global": lambda x: x * HELD,
    "in a dict": lambda x: x * SHELF["tensor"],
    "in a list": lambda x: x * SHELF[3][0],
    "an attribute": lambda x: x * HOLDER.tensor,
}


@pytest.mark.parametrize("aliased_first", [True, False])
@pytest.mark.parametrize("where", READERS)
def test_an_argument_that_is_also_a_global(where: str, aliased_first: bool) -> None:
    # Raw torch takes the two for one at every later call: it guards no pair of local and global.
    fn = READERS[where]
    compiled, other = make_compiled(fn, backend="aot_eager"), torch.full((3,), 5.0)
    for x in (HELD, other, HELD) if aliased_first else (other, HELD, other):
        torch.testing.assert_close(compiled(x), fn(x))
    assert graphs() <= 2


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


@pytest.mark.parametrize("aliased_first", [True, False])
def test_writes_into_what_is_also_a_global(aliased_first: bool) -> None:
    def fn(x: Tensor) -> Tensor:
        x.add_(1)
        return HELD * 2

    compiled = make_compiled(fn, backend="aot_eager")
    for aliased in (aliased_first, not aliased_first, aliased_first):
        HELD.fill_(3)
        x = HELD if aliased else torch.ones(3)
        assert torch.equal(compiled(x), torch.full((3,), 8.0 if aliased else 6.0))
    HELD.fill_(3)


# -- the structure ------------------------------------------------------------------------------


def test_constants_modes_and_marks_make_one_graph_each() -> None:
    class Drop(Module):
        by: Parameter
        rate: float

        def forward(self, x: Tensor) -> Tensor:
            return x * self.rate * self.by if self.mode == "train" else x + 0

    compiled = make_compiled(lambda drop, x: (drop(x), drop), backend="eager")
    drop, x = Drop(torch.ones(2), 0.5), torch.ones(2)
    variants = [drop, drop.eval(), drop.replace(rate=0.25), drop.replace(rate=1), drop.train()]
    variants.append(tree.select(drop, "by").freeze())
    for variant in variants * 3:
        y, back = compiled(variant, x)
        torch.testing.assert_close(y, variant(x))
        assert tree.structure(back) == tree.structure(variant)
    assert graphs() == len({tree.structure(variant) for variant in variants})


@pytest.mark.parametrize(
    "constants", [(1, True), (1, 1.0), (0.0, -0.0), ((1, 2), (1, True))], ids=str
)
def test_equal_constants_of_other_types_differ(constants: tuple[Any, Any]) -> None:
    class Held(Module):
        value: Any

        def forward(self) -> str:
            return repr(self.value)

    compiled = make_compiled(lambda held, x: (x + 1, held()), backend="eager")
    for constant in constants * 2:
        assert compiled(Held(constant), torch.ones(1))[1] == repr(constant)


def test_keys_of_dicts_and_holes() -> None:
    def fn(d: Any) -> Any:
        return [(key, type(key), None if x is None else x + 1) for key, x in d.items()]

    compiled, x = make_compiled(fn, backend="eager"), torch.ones(2)
    for d in ({1: x, "a": x}, {True: x, "a": x}, {1: x}, {1: None, "a": x}, {1: x, "a": None}):
        for _ in range(2):
            assert str(compiled(d)) == str(fn(d))


def test_a_hole_in_a_module() -> None:
    compiled = make_compiled(lambda dense, x: dense(x), backend="eager")
    x = torch.randn(SIZE)
    for bias in (True, False, True):
        dense = Dense(bias=bias).initialize(0)
        torch.testing.assert_close(compiled(dense, x), dense(x))
    assert graphs() == 2


def test_ties_are_part_of_the_structure() -> None:
    tied = TiedParameter().initialize(0)

    def fn(module: Any) -> int:
        return len(tree.leaves(module))

    compiled = make_compiled(lambda m: (fn(m), tree.map(torch.neg, m)), backend="eager")
    assert compiled(tied)[0] == fn(tied)
    loose = tree.unflatten(tree.structure(tied), tree.leaves(tied))
    assert compiled(loose)[0] == fn(tied)


# -- numbers, sizes, and how often --------------------------------------------------------------


def test_numbers_become_symbols_and_do_not_recompile_for_ever() -> None:
    compiled = make_compiled(lambda x, n, rate: x * n + rate, backend="eager")
    x = torch.ones(2)
    for n in range(10):
        torch.testing.assert_close(compiled(x, n, n / 4), x * n + n / 4)
    assert graphs() <= 4


def test_sizes_of_plain_tensors_become_symbolic() -> None:
    compiled = make_compiled(lambda scale, x: scale(x) * x.shape[0], backend="aot_eager")
    scale = Scale(torch.ones(3))
    for n in (4, 5, 6, 7, 1, 9, 4, 0, 12, 1):
        x = torch.randn(n, 3)
        torch.testing.assert_close(compiled(scale, x), scale(x) * n)
    assert graphs() <= 4
    with pytest.raises(RuntimeError):
        compiled(scale, torch.randn(4, 2))
    x = torch.randn(3, 8).t()
    torch.testing.assert_close(compiled(scale, x), scale(x) * 8)


def test_dynamic_false_makes_a_graph_per_size_and_true_one() -> None:
    for dynamic, made in ((False, 3), (True, 1)):
        torch.compiler.reset()
        counters.clear()
        compiled = make_compiled(lambda x: x + x.shape[0], backend="eager", dynamic=dynamic)
        for n in (4, 5, 6, 4, 5, 6):
            assert torch.equal(compiled(torch.ones(n)), torch.ones(n) + n)
        assert graphs() == made


def test_models_of_another_size_get_graphs_of_their_own() -> None:
    compiled = make_compiled(lambda dense, x: dense(x), backend="eager")
    for n in (3, 4, 5, 3, 4):
        dense, x = Dense(n, n).initialize(0), torch.randn(n)
        torch.testing.assert_close(compiled(dense, x), dense(x))
    assert graphs() == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda k: (Scale(torch.ones(k + 2)), 0), r"scale\.by.*size"),
        (lambda k: (Scale(torch.ones((2,) * k)), 0), r"scale\.by.*rank|scale\.by.*dimension"),
        (
            lambda k: (Constant(torch.ones(2), k), 0),
            r"scale\.number was the constant 3.*constant 4",
        ),
        (lambda k: (Scale(torch.ones(2)), torch.ones((1,) * k)), r"x.*rank|x.*dimension"),
    ],
)
def test_what_changes_at_every_call_is_named(change: Callable[[int], Any], said: str) -> None:
    def fn(scale: Any, x: Any) -> Any:
        return scale.by * 1, x

    compiled = make_compiled(fn, backend="eager", recompile_limit=4)
    for k in range(4):
        compiled(*change(k))
    with pytest.raises(RuntimeError, match=said):
        compiled(*change(4))
    compiled(*change(3))
    lenient = make_compiled(fn, backend="eager", recompile_limit=1, fullgraph=False)
    lenient(*change(0))
    with pytest.warns(RuntimeWarning, match="called as it is"):
        assert torch.equal(lenient(*change(1))[0], change(1)[0].by)


class Constant(Module):
    by: Parameter
    number: int


def test_an_uninitialized_module_is_refused_by_path() -> None:
    compiled = make_compiled(lambda dense: dense, backend="eager")
    with pytest.raises(UninitializedError, match=r"dense\.weight is not initialized"):
        compiled(Dense())


class Wrapped(Tensor):
    """A plain subclass."""


def test_subclasses_are_guarded_by_dynamo() -> None:
    compiled = make_compiled(lambda x: (x * 2, type(x).__name__), backend="eager")
    plain = torch.ones(2)
    for x in (plain, plain.as_subclass(Wrapped), plain):
        y, name = compiled(x)
        assert (type(y), name) == (type(x), type(x).__name__)
