"""``initialize``: every form of initializer, numbers by seed and path, the global RNG as found."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import init

from parallax import Buffer, Module, Parameter, UninitializedError, tree
from tests.comparing import same_leaves
from tests.corpus import (
    MLP,
    MODULES,
    SIZE,
    Case,
    Dense,
    Norm,
    Precisions,
    Sequential,
    TiedModule,
    TiedParameter,
    example_input,
)

DECLARED = [
    case for case in MODULES if tree.leaves(case.declare()) and case.name[:2] not in ("in", "wi")
]


class One(Module):
    """A module of one declared leaf."""

    leaf: Parameter

    def forward(self, x: Any) -> Any:
        return self.leaf * x


def drawn(
    initializer: Callable[..., Any], shape: tuple[int, ...] = (64, 32), **more: Any
) -> Tensor:
    made: Tensor = One(Parameter(shape, initializer, **more)).initialize(0).leaf
    return made


def numpy_state() -> Any:
    state: Any = np.random.get_state()
    return state[1].copy()


# -- the forms ------------------------------------------------------------------------------------


class Normal:
    """An initializer with a state of its own."""

    def __init__(self, std: float) -> None:
        self.std = std

    def __call__(self, shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
        return self.std * torch.randn(shape, generator=generator)


def in_place_without_result(tensor: Tensor) -> None:
    tensor.normal_(0, 2)


def from_numpy(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(np.full(shape, 2.0)).to(dtype)


SPREAD: dict[str, tuple[Callable[..., Any], float]] = {
    "normal_": (init.normal_, 1.0),
    "uniform_": (init.uniform_, 12**-0.5),
    "xavier_normal_": (init.xavier_normal_, (2 / 96) ** 0.5),
    "kaiming_uniform_": (init.kaiming_uniform_, (2 / 32) ** 0.5),
    "trunc_normal_": (functools.partial(init.trunc_normal_, std=0.1), 0.1),
    "orthogonal_": (init.orthogonal_, 1 / 8),
    "partial": (functools.partial(init.normal_, std=3.0), 3.0),
    "partial of a partial": (
        functools.partial(functools.partial(init.normal_, mean=0.0), std=2.0),
        2.0,
    ),
    "tensor's method": (torch.Tensor.normal_, 1.0),
    "torch.randn": (torch.randn, 1.0),
    "torch.rand": (torch.rand, 12**-0.5),
    "partial of a builtin": (functools.partial(torch.normal, 0.0, 2.0), 2.0),
    "lambda in place": (lambda t: t.normal_().mul_(4), 4.0),
    "lambda of a tensor": (lambda t: torch.randn_like(t) * 5, 5.0),
    "lambda of a shape": (lambda shape: torch.randn(shape) * 2, 2.0),
    "lambda of a shape by another name": (lambda s: torch.randn(*s) * 2, 2.0),
    "lambda with a generator": (
        lambda shape, generator: torch.randn(shape, generator=generator),
        1.0,
    ),
    "function without result": (in_place_without_result, 2.0),
    "object": (Normal(0.5), 0.5),
    "bound method": (Normal(0.5).__call__, 0.5),
}
CONSTANT: dict[str, tuple[Callable[..., Any], float]] = {
    "zeros_": (init.zeros_, 0.0),
    "ones_": (init.ones_, 1.0),
    "constant_": (functools.partial(init.constant_, val=7.0), 7.0),
    "torch.zeros": (torch.zeros, 0.0),
    "torch.ones": (torch.ones, 1.0),
    "torch.full": (functools.partial(torch.full, fill_value=3.0), 3.0),
    "zeros_like": (torch.zeros_like, 0.0),
    "fill_": (lambda t: t.fill_(4), 4.0),
    "from_numpy": (from_numpy, 2.0),
}


@pytest.mark.parametrize("form", SPREAD)
def test_every_form_of_random_initializer(form: str) -> None:
    initializer, std = SPREAD[form]
    value = drawn(initializer)
    assert value.shape == (64, 32)
    torch.testing.assert_close(value.std(), torch.tensor(std), rtol=0.1, atol=0.0)
    assert torch.equal(value, drawn(initializer))
    other = One(Parameter((64, 32), initializer)).initialize(1).leaf
    assert not torch.equal(value, other)


@pytest.mark.parametrize("form", CONSTANT)
def test_every_form_of_constant_initializer(form: str) -> None:
    initializer, value = CONSTANT[form]
    assert torch.equal(drawn(initializer), torch.full((64, 32), value))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), 5])
def test_every_shape(shape: Any) -> None:
    for initializer in (init.normal_, torch.randn, lambda t: t.fill_(1.0)):
        value = One(Parameter(shape, initializer)).initialize(0).leaf
        assert value.shape == torch.Size([shape] if isinstance(shape, int) else shape)


def test_a_generator_is_given_to_those_that_take_one() -> None:
    given = []

    def initializer(tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
        given.append(generator)
        return tensor.normal_(generator=generator)

    drawn(initializer)
    assert isinstance(given[0], torch.Generator)
    assert given[0] is not torch.default_generator


def test_an_initializer_may_initialize_a_module_before_it_draws() -> None:
    def initializer(tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
        drawn(init.normal_)
        return tensor.normal_(generator=generator)

    assert torch.equal(drawn(initializer), drawn(init.normal_))


def test_complex_and_double_leaves_are_drawn_in_their_own_precision() -> None:
    for initializer in (torch.randn, init.normal_, lambda t: t.normal_()):
        spectrum = drawn(initializer, dtype=torch.complex64)
        assert spectrum.dtype == torch.complex64 and bool((spectrum.imag != 0).all())
        double = drawn(initializer, dtype=torch.float64)
        assert not torch.equal(double.float().double(), double)


# -- dtype and device -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float32])
def test_dtype_replaces_floating_ones_and_no_others(dtype: torch.dtype) -> None:
    made = Precisions().initialize(0, dtype=dtype)
    dtypes = {path: leaf.dtype for path, leaf in tree.named_leaves(made).items()}
    assert dtypes == {
        "half": dtype,
        "brain": dtype,
        "single": dtype,
        "double": dtype,
        "spectrum": torch.complex64,
        "flags": torch.bool,
        "counts": torch.int32,
    }


def test_a_lower_precision_has_the_rounded_numbers_of_single() -> None:
    single = MLP().initialize(3)
    for dtype in (torch.float16, torch.bfloat16):
        low = MLP().initialize(3, dtype=dtype)
        for a, b in zip(tree.leaves(single), tree.leaves(low), strict=True):
            assert torch.equal(a.to(dtype), b)


@pytest.mark.parametrize("case", DECLARED, ids=str)
def test_meta_tensors_have_shape_and_dtype_and_no_memory(case: Case) -> None:
    real = case.make()
    for device in ("meta", torch.device("meta")):
        made = case.declare().initialize(0, device=device)
        assert tree.structure(made) == tree.structure(real) or case.name == "with_rng"
        for meta, leaf in zip(tree.leaves(made), tree.leaves(real), strict=True):
            assert meta.device.type == "meta"
            assert (meta.shape, meta.dtype) == (leaf.shape, leaf.dtype)


def test_meta_runs_no_initializer_and_forward_infers_shapes() -> None:
    def never(tensor: Tensor) -> Tensor:
        raise AssertionError

    module = One(Parameter((3, 4), never)).initialize(0, device="meta")
    assert module(torch.ones(3, 4, device="meta")).shape == (3, 4)


def test_the_default_device_is_where_leaves_go() -> None:
    with torch.device("meta"):
        assert Dense().initialize(0).weight.device.type == "meta"
    assert Dense().initialize(0, device="cpu").weight.device.type == "cpu"
    assert Dense().initialize(0).weight.device.type == "cpu"


# -- numbers depend on the seed and the path only -------------------------------------------------


def test_adding_reordering_or_removing_fields_changes_no_other_number() -> None:
    class Before(Module):
        a: Dense
        b: Dense

    class After(Module):
        new: Dense
        b: Dense
        shift: Parameter
        a: Dense

    before = Before(Dense(), Dense()).initialize(7)
    after = After(Dense(), Dense(), Parameter((3,), torch.randn), Dense()).initialize(7)
    for path, leaf in tree.named_leaves(before).items():
        assert torch.equal(leaf, tree.named_leaves(after)[path])
    assert not torch.equal(before.a.weight, before.b.weight)
    longer = Sequential(Dense(), torch.relu, Dense(), Dense()).initialize(7)
    shorter = Sequential(Dense(), torch.relu, Dense()).initialize(7)
    for path, leaf in tree.named_leaves(shorter).items():
        assert torch.equal(leaf, tree.named_leaves(longer)[path])


def test_different_seeds_and_paths_give_different_numbers() -> None:
    leaves = [
        leaf
        for seed in range(20)
        for leaf in tree.leaves(
            Sequential(*[Dense(bias=False)] * 1, Dense(bias=False)).initialize(seed)
        )
    ]
    sums = {float(leaf.double().sum()) for leaf in leaves}
    assert len(sums) == len(leaves) == 40


@pytest.mark.parametrize(
    "make",
    [
        lambda: 5,
        lambda: torch.Generator().manual_seed(5),
        lambda: torch.Generator().manual_seed(5).get_state(),
        lambda: -5,
        lambda: 2**80,
    ],
    ids=["seed", "generator", "state", "negative", "huge"],
)
def test_every_form_of_rng_is_read_and_not_advanced(make: Callable[[], Any]) -> None:
    rng = make()
    first, second, third = (MLP().initialize(r) for r in (rng, rng, make()))
    assert same_leaves(first, second) and same_leaves(first, third)
    if isinstance(rng, torch.Generator):
        assert torch.equal(rng.get_state(), make().get_state())


def test_ambient_settings_do_not_change_the_numbers() -> None:
    plain = MLP().initialize(5)
    torch.manual_seed(99)
    with torch.no_grad():
        assert same_leaves(plain, MLP().initialize(5))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        torch.rand(17)
        assert same_leaves(plain, MLP().initialize(5))
    with torch.inference_mode():
        assert same_leaves(plain, MLP().initialize(5))


def test_numbers_after_a_mode_are_those_before_it() -> None:
    plain = MLP().initialize(5)

    def initializer(tensor: Tensor, generator: torch.Generator) -> None:
        MLP().initialize(5)  # with a generator of its own, which is made here
        tensor.normal_(generator=generator)

    for mode in (torch.inference_mode(), FakeTensorMode(), torch.device("meta")):
        with mode:
            drawn(initializer)
        drawn(initializer)
        assert same_leaves(plain, MLP().initialize(5))


def test_ties_are_one_number_and_stay_ties() -> None:
    for module in (TiedParameter().initialize(0), TiedModule().initialize(0)):
        assert tree.structure(module) == tree.structure(type(module)().initialize(1))
    tied = TiedModule().initialize(0)
    assert tied.one.weight is tied.other.weight is tied.several[0].weight
    assert not torch.equal(tied.one.weight, tied.apart.weight)


# -- the global RNG is left as it was found -------------------------------------------------------


@pytest.mark.parametrize("form", [*SPREAD, *CONSTANT])
def test_the_global_rng_stays(form: str) -> None:
    initializer, _ = (SPREAD | CONSTANT)[form]
    before, legacy = torch.random.get_rng_state(), numpy_state()
    drawn(initializer)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (numpy_state() == legacy).all()


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError, KeyboardInterrupt])
def test_it_does_when_an_initializer_raises(error: type[BaseException]) -> None:
    def bad(tensor: Tensor) -> Tensor:
        tensor.normal_()
        torch.manual_seed(3)
        raise error("broken on purpose")

    before = torch.random.get_rng_state()
    module = MLP()
    with pytest.raises(error, match="broken on purpose"):
        module.replace(second=Dense().replace(bias=Parameter((SIZE,), bad))).initialize(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(tree.leaves(module.initialize(0))) == 4


# -- partial trees and errors ---------------------------------------------------------------------


def test_leaves_that_have_a_value_keep_it() -> None:
    first = Dense().initialize(1)
    module = MLP().replace(first=first)
    with pytest.raises(UninitializedError, match=r"Dense\.weight"):
        module(example_input())
    made = module.initialize(0)
    assert made.first.weight is first.weight
    assert torch.equal(made.second.weight, MLP().initialize(0).second.weight)


def test_initialising_twice_says_what_to_do_instead() -> None:
    module = MLP().initialize(0)
    with pytest.raises(
        RuntimeError, match=r"MLP is initialized already.*MLP\(\.\.\.\)\.initialize"
    ):
        module.initialize(0)


def test_nothing_to_initialise_is_no_error() -> None:
    class Holes(Module):
        weight: Parameter | None

    assert Holes(None).initialize(0).weight is None
    assert tree.leaves(Sequential(torch.relu).initialize(0)) == []


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu9", "gpu9"),
        ("cpu:x", "cpu:x"),
        ("cuda:99", "cuda:99"),
        (object(), "object"),
        (1.5, "1.5"),
    ],
)
def test_an_unknown_device_is_named(device: Any, message: str) -> None:
    with pytest.raises(
        (ValueError, TypeError), match=rf"initialize\(device=.*{message}.*no such device"
    ):
        MLP().initialize(0, device=device)


@pytest.mark.parametrize("dtype", ["float32", float, np.float32, 3, torch.ones(1)])
def test_an_unknown_dtype_is_named(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"initialize\(dtype=\): expected a torch\.dtype, got"):
        MLP().initialize(0, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_a_dtype_that_is_not_floating_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"initialize\(dtype=.*floating"):
        MLP().initialize(0, dtype=dtype)


@pytest.mark.parametrize(
    ("initializer", "parts"),
    [
        (lambda shape: torch.zeros(3), ["shape (3,)", "(64, 32) is declared"]),
        (lambda t: 3.0, ["torch.nn.init.zeros_", "torch.zeros", "returned float"]),
        (lambda: None, ["torch.nn.init.zeros_", "torch.zeros", "positional argument"]),
        (lambda t, std: t, ["torch.nn.init.zeros_", "'std'"]),
        (lambda shape: [[0.0] * 32] * 64, ["returned list"]),
        (str, ["returned str"]),
    ],
)
def test_a_bad_initializer_names_path_function_and_expectation(
    initializer: Callable[..., Any], parts: list[str]
) -> None:
    class Holds(Module):
        inner: dict[str, One]

    module = Holds({"a": One(Parameter((64, 32), initializer))})
    with pytest.raises(TypeError, match=r"Holds\.inner\.a\.leaf") as caught:
        module.initialize(0)
    for part in parts:
        assert part in str(caught.value)


def test_an_initializers_own_error_says_which_leaf_it_was_for() -> None:
    class Vector(Module):
        bias: Parameter

    with pytest.raises(ValueError, match="Fan in and fan out") as caught:
        Vector(Parameter((3,), init.xavier_normal_)).initialize(0)
    assert "xavier_normal_, the initializer of Vector.bias" in caught.value.__notes__[0]


# -- what is made belongs to the tree -------------------------------------------------------------


def test_an_initializer_that_gives_one_tensor_twice_shares_nothing() -> None:
    table = torch.ones(3)

    class Two(Module):
        a: Parameter
        b: Parameter

    for give in (lambda shape: table, lambda t: table, lambda t: table.requires_grad_(False)):
        made = Two(Parameter((3,), give), Parameter((3,), give)).initialize(0)
        pointers = {made.a.data_ptr(), made.b.data_ptr(), table.data_ptr()}
        assert len(pointers) == 3


def test_leaves_are_contiguous_plain_tensors_without_graph() -> None:
    for give in (
        lambda shape: torch.zeros(1).expand(shape),
        lambda shape: torch.nn.Parameter(torch.ones(shape)),
        lambda shape: torch.ones(shape[::-1], requires_grad=True).T * 2,
        init.normal_,
    ):
        leaf = drawn(give)
        assert type(leaf) is Tensor and leaf.is_contiguous() and leaf.is_leaf
        assert not leaf.requires_grad and leaf.grad_fn is None


def test_buffers_are_initialised_like_parameters() -> None:
    norm = Norm().initialize(0)
    assert torch.equal(norm.running_var, torch.ones(SIZE))
    assert norm.num_batches_tracked.dtype == torch.int64

    class Noise(Module):
        at: Buffer

    assert float(Noise(Buffer((100,), init.normal_)).initialize(0).at.std()) > 0.5


# -- names in paths -------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [["a.b"], [""], [1, "1"], ["."]])
def test_keys_that_would_make_paths_ambiguous_are_refused(keys: list[Any]) -> None:
    class Holds(Module):
        layers: dict[Any, Dense]

    with pytest.raises(ValueError, match=re.escape("Holds.layers has the key")):
        Holds({key: Dense() for key in keys})
    assert len(tree.named_leaves(Holds({1: Dense(), "b": Dense()}))) == 4
