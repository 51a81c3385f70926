"""``Parameter``, ``Buffer`` and ``field``: declarations that neither allocate nor compute."""

from __future__ import annotations

import copy
import operator
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import init

from parallax import Buffer, Module, Parameter, UninitializedError, field, tree
from tests.corpus import MLP, MODULES, SIZE, Case, Dense, Norm, chain, example_input

# -- what a declaration shows ---------------------------------------------------------------------


def test_a_declaration_has_the_metadata_of_the_tensor_it_becomes() -> None:
    lazy: Any = Parameter((2, 3), init.zeros_, dtype=torch.float64)
    twin = torch.empty(2, 3, dtype=torch.float64)
    assert lazy.shape == twin.shape and type(lazy.shape) is type(twin.shape)
    assert lazy.dtype == twin.dtype
    assert lazy.ndim == twin.ndim and lazy.dim() == twin.dim()
    assert lazy.size() == twin.size() and lazy.size(1) == twin.size(1)
    assert lazy.numel() == twin.numel()
    assert lazy.is_floating_point() and not lazy.is_complex()


@pytest.mark.parametrize("shape", [3, (3,), [3], torch.Size([3]), torch.tensor([1, 2, 3]).shape])
def test_a_shape_is_an_int_or_any_sequence_of_ints(shape: Any) -> None:
    assert tuple(Parameter(shape, init.zeros_).shape) == (3,)


def test_a_buffer_is_zeros_unless_told_otherwise() -> None:
    class Counter(Module):
        count: Buffer

    counter = Counter(Buffer((), dtype=torch.int64)).initialize(0)
    assert torch.equal(counter.count, torch.tensor(0))


def test_the_default_dtype_is_asked_when_the_value_is_made() -> None:
    declared = Dense()
    torch.set_default_dtype(torch.float64)
    try:
        assert declared.weight.dtype == torch.float64
        assert declared.initialize(0).weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_declaring_allocates_nothing() -> None:
    # The size of a fair part of all memory in the world.
    huge: Any = Parameter((2**40, 2**20), init.normal_)
    assert huge.numel() == 2**60


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_a_declared_module_shows_the_shapes_and_dtypes_it_will_have(case: Case) -> None:
    if case.name in ("in_eval", "with_rng"):
        return
    declared, made = tree.named_leaves(case.declare()), tree.named_leaves(case.make())
    assert list(declared) == list(made)
    for path, lazy in declared.items():
        assert lazy.shape == made[path].shape
        assert lazy.dtype == made[path].dtype


def test_its_repr_says_uninitialized() -> None:
    assert repr(Parameter((2,), init.zeros_)) == "Parameter((2,), uninitialized)"
    assert "torch.int64" in repr(Buffer((), dtype=torch.int64))
    assert "(uninitialized)" in repr(MLP())


# -- what a declaration refuses -------------------------------------------------------------------

UNARY = [operator.neg, operator.pos, operator.abs, operator.invert, float, int, complex, bool, len]
UNARY += [iter, operator.index, list]
BINARY = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod,
    operator.pow, operator.matmul, operator.and_, operator.or_, operator.xor, operator.lshift,
    operator.rshift, operator.lt, operator.le, operator.gt, operator.ge, operator.getitem,
    operator.contains, operator.eq, operator.ne, divmod,
]  # fmt: skip
METHODS = ["sum", "T", "mT", "to", "cpu", "data", "grad", "detach", "requires_grad_", "view",
           "copy_", "item", "numpy", "backward", "half", "flatten", "device"]  # fmt: skip
FUNCTIONS: list[Callable[[Any], Any]] = [
    torch.relu,
    torch.sum,
    lambda p: torch.add(torch.ones(3), p),
    lambda p: torch.add(torch.ones(3), other=p),
    lambda p: torch.stack([torch.ones(3), p]),
    lambda p: torch.cat((p, p)),
    lambda p: nn.functional.linear(torch.ones(3), p),
    lambda p: nn.functional.layer_norm(torch.ones(3), (3,), weight=p),
    lambda p: torch.einsum("i,i->", p, p),
    lambda p: torch.ones(3).add_(p),
    lambda p: torch.ones(3) + p,
    lambda p: torch.ones(3) @ p,
    lambda p: 2.0 - p,
    lambda p: p * 2,
    lambda p: torch.func.grad(lambda w: (w * p).sum())(torch.ones(3)),
]
MESSAGE = re.escape("Scale.by") + ".*" + re.escape("module = module.initialize(")


class Scale(Module):
    by: Parameter

    def forward(self, x: Any) -> Any:
        return self.by * x


@pytest.fixture
def lazy() -> Any:
    return Scale(Parameter((3,), init.ones_)).by


@pytest.mark.parametrize("operation", UNARY, ids=lambda op: op.__name__)
def test_every_unary_operator_names_parameter_module_and_remedy(
    operation: Callable[[Any], Any], lazy: Any
) -> None:
    with pytest.raises(UninitializedError, match=MESSAGE):
        operation(lazy)


@pytest.mark.parametrize("operation", BINARY, ids=lambda op: op.__name__)
def test_every_binary_operator_does_from_both_sides(
    operation: Callable[[Any, Any], Any], lazy: Any
) -> None:
    with pytest.raises(UninitializedError, match=MESSAGE):
        operation(lazy, 2)
    if operation not in (operator.getitem, operator.contains):
        with pytest.raises(UninitializedError, match=MESSAGE):
            operation(torch.ones(3), lazy)
        with pytest.raises(UninitializedError, match=MESSAGE):
            operation(2, lazy)


@pytest.mark.parametrize("name", METHODS)
def test_every_attribute_of_a_tensor_does(name: str, lazy: Any) -> None:
    with pytest.raises(UninitializedError, match=MESSAGE):
        getattr(lazy, name)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_torch_function_does(function: Callable[[Any], Any], lazy: Any) -> None:
    with pytest.raises(UninitializedError, match=MESSAGE):
        function(lazy)


def test_setting_an_item_does(lazy: Any) -> None:
    with pytest.raises(UninitializedError, match=MESSAGE):
        lazy[0] = 1


def test_what_a_tensor_lacks_is_an_ordinary_missing_attribute(lazy: Any) -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        getattr(lazy, "no_such_thing")  # noqa: B009  # an expression would be unused


def test_numpy_cannot_read_it(lazy: Any) -> None:
    with pytest.raises(UninitializedError, match=MESSAGE):
        np.asarray(lazy)


def test_declarations_compare_and_hash_by_identity(lazy: Any) -> None:
    other = Parameter((3,), init.ones_)
    assert lazy in [other, lazy] and lazy != other
    assert (lazy == lazy) is True and (lazy == other) is False  # noqa: PLR0124  # with itself
    assert len({lazy, other, lazy}) == 2


@pytest.mark.parametrize(
    "module", [Dense(), MLP(), Norm(), chain(3)], ids=lambda m: type(m).__name__
)
def test_calling_an_uninitialised_module_says_what_to_initialise(module: Any) -> None:
    with pytest.raises(UninitializedError, match=r"(Dense|Norm|Twig)\.\w+ is not initialized"):
        module(example_input())


def test_a_declaration_outside_of_any_module_says_its_shape() -> None:
    lazy: Any = Parameter((7, 2), init.zeros_)
    with pytest.raises(UninitializedError, match=r"Parameter of shape \(7, 2\)"):
        _ = lazy + 1


# -- bad declarations -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Parameter((2, 2.5), init.zeros_), TypeError, "shape must be ints"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Parameter("ab", init.zeros_), TypeError, "shape must be ints"),  # type: ignore[arg-type]  # likewise
        (lambda: Parameter((2, -1), init.zeros_), ValueError, "must not be negative"),
        (lambda: Parameter(torch.ones(2)), TypeError, "assign it as it is: self.name = tensor"),  # type: ignore[arg-type, call-arg]  # likewise
        (lambda: Parameter((2,)), TypeError, r"none was given. Write: Parameter(shape, torch."),  # type: ignore[call-arg]  # likewise
        (lambda: Parameter((2,), "zeros"), TypeError, "torch.nn.init.zeros_"),  # type: ignore[arg-type]  # likewise
        (lambda: Parameter((2,), torch.zeros(2)), TypeError, "torch.nn.init.zeros_"),  # type: ignore[arg-type]  # likewise
        (lambda: Parameter(torch.zeros(2), init.zeros_), TypeError, "self.name = tensor"),  # type: ignore[arg-type]  # likewise
        (lambda: Parameter((2,), init.zeros_, dtype="float"), TypeError, "torch.dtype"),  # type: ignore[arg-type]  # likewise
        (lambda: Buffer((2,), dtype=float), TypeError, "torch.dtype"),  # type: ignore[arg-type]  # likewise
    ],
)
def test_a_bad_declaration_says_what_was_expected(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_field_takes_a_default_or_a_factory_and_not_both() -> None:
    with pytest.raises(TypeError, match="default or default_factory"):
        field(default=1, default_factory=int)  # type: ignore[call-overload]  # wrong on purpose


# -- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_declaration_can_be_copied_and_pickled(way: Callable[[Any], Any]) -> None:
    lazy: Any = Buffer((2,), init.ones_, dtype=torch.float64)
    other = way(lazy)
    assert type(other) is type(lazy)
    assert (other.shape, other.dtype, other.init) == (lazy.shape, lazy.dtype, lazy.init)


def test_two_fields_with_one_default_declaration_are_not_tied() -> None:
    class Two(Module):
        a: Parameter = Parameter((2,), init.normal_)
        b: Parameter = field(default=Parameter((2,), init.normal_))

    module = Two().initialize(0)
    assert len(tree.leaves(module)) == 2
    assert not torch.equal(module.a, module.b)
    assert Two().a is not Two().a


def test_a_tensor_default_is_copied_for_every_instance() -> None:
    shared = torch.ones(SIZE)

    class Two(Module):
        a: Parameter = field(default=shared)
        b: Buffer = field(default=shared)

    module = Two()
    pointers = {module.a.data_ptr(), module.b.data_ptr(), Two().a.data_ptr(), shared.data_ptr()}
    assert len(pointers) == 4
    assert torch.equal(module.a, shared)


def test_a_default_factory_runs_for_every_instance_that_needs_it() -> None:
    made = []

    def factory() -> int:
        made.append(1)
        return len(made)

    class Counted(Module):
        n: int = field(default_factory=factory)

    assert (Counted().n, Counted(7).n, Counted().n) == (1, 7, 2)
    assert len(made) == 2


def test_a_converter_runs_once_at_the_end_of_construction() -> None:
    seen = []

    def convert(value: Any) -> tuple[int, ...]:
        seen.append(value)
        return tuple(value)

    class Window(Module):
        sizes: tuple[int, ...] = field(default=[1, 2], converter=convert)  # type: ignore[arg-type]  # what it converts

    given = Window([5, 5])  # type: ignore[arg-type]  # likewise
    assert given.sizes == (5, 5) and Window().sizes == (1, 2)
    assert seen == [[5, 5], [1, 2]]
    copies = copy.copy(given), copy.deepcopy(given), tree.map(torch.relu, given)
    assert all(other.sizes == (5, 5) for other in copies)
    assert len(seen) == 2


def test_a_converter_makes_a_parameter_of_what_it_is_given() -> None:
    class Point(Module):
        at: Parameter = field(converter=torch.as_tensor)

    given: Any = [1.0, 2.0]
    point: Any = Point(given)
    assert torch.equal(point.at, torch.tensor([1.0, 2.0]))


def test_a_static_field_is_a_constant_whatever_its_annotation_allows() -> None:
    class Apply(Module):
        fn: Module | Callable[[Any], Any] = field(static=True)

    assert tree.leaves(Apply(torch.relu)) == []
    with pytest.raises(TypeError, match=r"Apply\.fn is declared as a constant"):
        Apply(Dense())


def test_a_buffer_and_a_parameter_differ_by_annotation_alone() -> None:
    class Both(Module):
        a: Parameter
        b: Buffer

    both = Both(torch.ones(1), torch.ones(1)).reset(0)
    assert both.a.requires_grad and not both.b.requires_grad
    with pytest.raises(TypeError, match=r"Both\.b is annotated Buffer.*'b: Parameter'"):
        Both(Parameter((1,), init.ones_), Parameter((1,), init.ones_))
