"""What each draw returns: shape, dtype, device, range, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parallax import random
from parallax.random.seeds import generator_of

SHAPED: dict[str, Callable[..., Tensor]] = {
    "bernoulli": random.bernoulli,
    "bits": random.bits,
    "dropout_mask": random.dropout_mask,
    "exponential": random.exponential,
    "gumbel": random.gumbel,
    "normal": random.normal,
    "randint": lambda key, shape, **options: random.randint(key, shape, -3, 4, **options),
    "truncated_normal": random.truncated_normal,
    "uniform": random.uniform,
}
FLOATING = ["dropout_mask", "exponential", "gumbel", "normal", "truncated_normal", "uniform"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
seeds = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("name", SHAPED)
@given(seed=seeds, shape=shapes)
def test_a_draw_is_a_function_of_key_and_shape(
    name: str, seed: int, shape: tuple[int, ...]
) -> None:
    one, two = (SHAPED[name](random.key(seed), shape) for _ in range(2))
    assert one.shape == shape and one.device.type == "cpu"
    assert torch.equal(one, two)
    assert one.is_floating_point() is (name in FLOATING)


@pytest.mark.parametrize("name", SHAPED)
def test_other_keys_give_other_numbers(name: str) -> None:
    one, two = (SHAPED[name](random.key(seed), (200,)) for seed in (0, 1))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("dtype", DTYPES)
def test_floating_draws_have_every_floating_dtype(name: str, dtype: torch.dtype) -> None:
    drawn = SHAPED[name](random.key(0), (50,), dtype=dtype)
    assert drawn.dtype is dtype and bool(torch.isfinite(drawn).all())


@pytest.mark.parametrize("name", FLOATING)
def test_the_default_dtype_and_device_are_torchs(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert SHAPED[name](random.key(0), (2,)).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert SHAPED[name](random.key(0), (2,)).device.type == "meta"


@pytest.mark.parametrize("name", SHAPED)
def test_meta_draws_have_a_shape_and_no_numbers(name: str) -> None:
    drawn = SHAPED[name](random.key(0), (2, 3), device="meta")
    assert drawn.device.type == "meta" and drawn.shape == (2, 3)


def test_complex_normals() -> None:
    drawn = random.normal(random.key(0), (10_000,), dtype=torch.complex64)
    assert drawn.dtype is torch.complex64
    torch.testing.assert_close(drawn.abs().square().mean(), torch.tensor(1.0), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"device": "no such device"}, ValueError),
        ({"device": "cuda:99"}, ValueError),
        ({"device": 1.5}, ValueError),
        ({"shape": (-1,)}, ValueError),
        ({"shape": (1.5,)}, TypeError),
        ({"shape": (True,)}, TypeError),
        ({"shape": "ab"}, TypeError),
    ],
)
def test_no_such_device_or_shape(
    name: str, options: dict[str, Any], error: type[Exception]
) -> None:
    shape = options.get("shape", (2,))
    options = {name: value for name, value in options.items() if name != "shape"}
    with pytest.raises(error, match=rf"{name}\("):
        SHAPED[name](random.key(0), shape, **options)


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, "float32"])
def test_floating_draws_refuse_other_dtypes(name: str, dtype: Any) -> None:
    with pytest.raises(TypeError, match="dtype"):
        SHAPED[name](random.key(0), (2,), dtype=dtype)


# -- normal and uniform ---------------------------------------------------------------------


def test_a_generator_in_the_state_of_the_key_gives_the_same_normals() -> None:
    generator = generator_of(11)
    expected = torch.randn(1000, generator=generator)
    assert torch.equal(random.normal(random.key(11), (1000,)), expected)


def test_mean_and_std_shift_and_scale_the_same_numbers() -> None:
    standard = random.normal(random.key(0), (5,))
    assert torch.equal(random.normal(random.key(0), (5,), 2.0, 3.0), standard * 3 + 2)
    mean, std = torch.arange(5.0), torch.full((5,), 0.5)
    assert torch.equal(random.normal(random.key(0), (5,), mean, std), standard * std + mean)


def backward(loss: Any) -> None:
    loss.backward()


def test_gradients_reach_tensor_parameters() -> None:
    mean, std = torch.zeros((), requires_grad=True), torch.ones((), requires_grad=True)
    backward(random.normal(random.key(0), (8,), mean, std).sum())
    assert mean.grad == 8
    torch.testing.assert_close(std.grad, random.normal(random.key(0), (8,)).sum())
    low, high = torch.zeros((), requires_grad=True), torch.ones((), requires_grad=True)
    backward(random.uniform(random.key(0), (8,), low, high).sum())
    share = random.uniform(random.key(0), (8,)).sum()
    torch.testing.assert_close(high.grad, share)
    torch.testing.assert_close(low.grad, 8 - share)


def test_a_degenerate_std_and_interval_are_allowed() -> None:
    assert torch.equal(random.normal(random.key(0), (3,), 1.5, 0.0), torch.full((3,), 1.5))
    assert torch.equal(random.uniform(random.key(0), (3,), 2.0, 2.0), torch.full((3,), 2.0))


@pytest.mark.parametrize("std", [-1.0, float("nan")])
def test_std_is_not_negative(std: float) -> None:
    with pytest.raises(ValueError, match="std"):
        random.normal(random.key(0), (), 0.0, std)


def test_low_is_not_above_high() -> None:
    with pytest.raises(ValueError, match="low"):
        random.uniform(random.key(0), (), 1.0, 0.5)


@given(seed=seeds, bounds=st.tuples(st.floats(-6, 6), st.floats(0.01, 5)))
def test_truncated_normals_stay_inside(seed: int, bounds: tuple[float, float]) -> None:
    lower, upper = bounds[0], bounds[0] + bounds[1]
    drawn = random.truncated_normal(random.key(seed), (200,), lower, upper, dtype=torch.float64)
    assert bool(((drawn >= lower) & (drawn <= upper)).all())


def test_a_far_tail_is_drawn_from_evenly() -> None:
    drawn: Any = random.truncated_normal(random.key(0), (10_000,), 8.0, 9.0, dtype=torch.float64)
    assert len(drawn.unique()) == 10_000
    torch.testing.assert_close(drawn.mean().item(), 8.1209, atol=0.01, rtol=0)


@pytest.mark.parametrize(("lower", "upper"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_truncation_bounds_are_in_order(lower: float, upper: float) -> None:
    with pytest.raises(ValueError, match="lower must be below upper"):
        random.truncated_normal(random.key(0), (), lower, upper)


def test_gumbels_and_exponentials_are_finite_at_a_uniform_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Tensor.uniform_

    def all_zero(tensor: Tensor, *, generator: torch.Generator) -> Tensor:
        return plain(tensor, generator=generator).zero_()

    monkeypatch.setattr(Tensor, "uniform_", all_zero)
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert bool(torch.isfinite(random.gumbel(random.key(0), (2,), dtype=dtype)).all())
        times = random.exponential(random.key(0), (2,), dtype=dtype)
        assert bool(((times > 0) & (times < 1e-6)).all())


# -- bernoulli and dropout --------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certain_outcomes(p: float) -> None:
    assert bool((random.bernoulli(random.key(0), (1000,), p) == bool(p)).all())
    assert bool((random.bernoulli(random.key(0), (1000,), torch.tensor(p)) == bool(p)).all())
    mask = random.dropout_mask(random.key(0), (1000,), p)
    assert torch.equal(mask, torch.full((1000,), 1 - p))


def test_a_dropout_mask_is_zero_or_the_scale() -> None:
    mask = random.dropout_mask(random.key(0), (1000,), 0.25)
    assert set(mask.tolist()) == {0.0, torch.tensor(1 / 0.75).item()}


def test_bernoulli_takes_a_tensor_of_probabilities() -> None:
    p = torch.tensor([0.0, 1.0, 0.0])
    drawn = random.bernoulli(random.key(0), (4, 3), p, dtype=torch.float32)
    assert torch.equal(drawn, p.expand(4, 3))


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), torch.tensor(1.1), torch.tensor([-1.0])])
def test_probabilities_are_between_0_and_1(p: Any) -> None:
    with pytest.raises(ValueError, match="probability"):
        random.bernoulli(random.key(0), (), p)
    if isinstance(p, float):
        with pytest.raises(ValueError, match="probability"):
            random.dropout_mask(random.key(0), (2,), p)


@pytest.mark.parametrize("p", ["0.5", None, True, torch.tensor(1)])
def test_probabilities_are_floats(p: Any) -> None:
    with pytest.raises(TypeError, match="probabilit"):
        random.bernoulli(random.key(0), (), p)


# -- integers ---------------------------------------------------------------------------------


@given(seed=seeds, low=st.integers(-(2**62), 2**62), width=st.integers(1, 2**62))
def test_integers_lie_in_their_range(seed: int, low: int, width: int) -> None:
    drawn = random.randint(random.key(seed), (20,), low, low + width)
    assert bool(((drawn >= low) & (drawn <= low + width - 1)).all())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_bits_fill_every_bit_of_every_integer_dtype(dtype: torch.dtype) -> None:
    drawn = random.bits(random.key(0), (4001,), dtype=dtype)
    assert drawn.dtype is dtype and drawn.shape == (4001,)
    for bit in range(torch.iinfo(dtype).bits):
        share = (drawn >> bit & 1).double().mean().item()
        assert abs(share - 0.5) < 0.05


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint16])
def test_bits_names_the_dtypes_it_has(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        random.bits(random.key(0), dtype=dtype)


@pytest.mark.parametrize(
    ("low", "high", "options", "error"),
    [
        (3, 3, {}, ValueError),
        (4, 3, {}, ValueError),
        (0, 300, {"dtype": torch.uint8}, ValueError),
        (-1, 3, {"dtype": torch.uint8}, ValueError),
        (0, 3, {"dtype": torch.float32}, TypeError),
        (0.0, 3, {}, TypeError),
        (False, 3, {}, TypeError),
    ],
)
def test_randint_checks_its_range(
    low: Any, high: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match="randint"):
        random.randint(random.key(0), (2,), low, high, **options)


# -- elements ---------------------------------------------------------------------------------


@given(seed=seeds, n=st.integers(0, 50))
def test_a_permutation_holds_every_integer_once(seed: int, n: int) -> None:
    assert random.permutation(random.key(seed), n).sort().values.tolist() == list(range(n))


def test_a_permutation_of_a_tensor_moves_its_slices() -> None:
    x = torch.arange(12).reshape(3, 4)
    order = random.permutation(random.key(0), 4)
    assert torch.equal(random.permutation(random.key(0), x, dim=1), x[:, order])
    assert torch.equal(random.permutation(random.key(0), x, dim=-1), x[:, order])


@pytest.mark.parametrize(("n", "error"), [(-1, ValueError), (1.5, TypeError), ("a", TypeError)])
def test_permutation_takes_a_count(n: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="permutation"):
        random.permutation(random.key(0), n)


def test_categorical_never_draws_the_impossible_and_always_the_certain() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [-torch.inf, 0.0, -torch.inf]])
    drawn = random.categorical(random.key(0), logits, (500,))
    assert drawn.shape == (500, 2) and drawn.dtype is torch.int64
    assert set(drawn[:, 0].tolist()) == {0, 2} and set(drawn[:, 1].tolist()) == {1}
    along = random.categorical(random.key(0), logits.T, (500,), dim=0)
    assert along.shape == (500, 2) and set(along[:, 1].tolist()) == {1}


@pytest.mark.parametrize("row", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
def test_categorical_refuses_what_gives_no_probabilities(row: list[float]) -> None:
    with pytest.raises(ValueError, match=r"categorical\(\): logits hold nan or inf"):
        random.categorical(random.key(0), torch.tensor([[0.0, 1.0], row]), (3,))


@pytest.mark.parametrize(
    ("logits", "error"),
    [(torch.tensor(0.0), ValueError), (torch.zeros(2, 0), ValueError),
     (torch.zeros(2, dtype=torch.int64), TypeError), ([0.0], TypeError)],
)  # fmt: skip
def test_categorical_needs_categories(logits: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="categorical"):
        random.categorical(random.key(0), logits)


def test_choice_draws_elements() -> None:
    x = torch.arange(10.0).reshape(2, 5)
    drawn = random.choice(random.key(0), x, (3, 4), dim=1)
    assert drawn.shape == (2, 3, 4)
    assert torch.equal(drawn[1], drawn[0] + 5)
    assert random.choice(random.key(0), x, dim=1).shape == (2,)
    assert random.choice(random.key(0), 7).shape == ()


@given(seed=seeds, weighted=st.booleans(), count=st.integers(0, 6))
def test_choice_without_replacement_repeats_nothing(seed: int, weighted: bool, count: int) -> None:
    p = torch.full((6,), 1 / 6) if weighted else None
    drawn = random.choice(random.key(seed), 6, (count,), replace=False, p=p)
    assert len(set(drawn.tolist())) == count


def test_choice_follows_its_probabilities() -> None:
    p = torch.tensor([0.0, 0.25, 0.75])
    drawn = random.choice(random.key(0), 3, (20_000,), p=p)
    share = drawn.bincount(minlength=3) / 20_000
    torch.testing.assert_close(share, p, atol=0.02, rtol=0)
    certain = random.choice(random.key(0), 3, (2,), replace=False, p=p)
    assert sorted(certain.tolist()) == [1, 2]


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (0, {}),
        (-1, {}),
        (torch.zeros(0), {}),
        (3, {"shape": (4,), "replace": False}),
        (3, {"p": torch.tensor([0.5, 0.5])}),
        (3, {"p": torch.tensor([0.5, 0.5, 1.5])}),
        (3, {"shape": (2,), "p": torch.tensor([0.0, 0.0, 1.0]), "replace": False}),
    ],
)
def test_choice_refuses_what_cannot_be_drawn(x: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="choice"):
        random.choice(random.key(0), x, **options)


def bad(value: Any) -> Any:
    """What no type checker would let pass."""
    return value


UNFIT: list[tuple[Callable[[random.Key], Tensor], type[Exception], str]] = [
    (lambda k: random.normal(k, (3,), torch.zeros(2)), ValueError, r"mean=.*\(2,\).*\(3,\)"),
    (lambda k: random.normal(k, (), torch.zeros(2)), ValueError, "does not broadcast"),
    (lambda k: random.normal(k, (3,), 0.0, bad("1")), TypeError, "std=.*'1'"),
    (lambda k: random.normal(k, (3,), bad(None)), TypeError, "mean=.*None"),
    (lambda k: random.uniform(k, (3,), bad(True)), TypeError, "low=.*True"),
    (lambda k: random.uniform(k, (3,), 0.0, torch.inf), ValueError, "finite"),
    (lambda k: random.truncated_normal(k, (3,), bad("a")), TypeError, "lower=.*'a'"),
    (lambda k: random.bernoulli(k, (3,), torch.full((2,), 0.5)), ValueError, "does not broadcast"),
    (lambda k: random.bernoulli(k, (3,), dtype=bad("float")), TypeError, "torch.dtype"),
    (lambda k: random.dropout_mask(k, (2,), bad(torch.zeros(2))), TypeError, "a float"),
    (lambda k: random.randint(k, (3,), 0, 2, dtype=bad("int")), TypeError, "torch.dtype"),
    (lambda k: random.permutation(k, torch.zeros(3), dim=4), IndexError, r"no dim 4.*\(3,\)"),
    (lambda k: random.permutation(k, torch.zeros(())), IndexError, "no dim 0"),
    (lambda k: random.permutation(k, bad([1, 2])), TypeError, "a count or a tensor"),
    (lambda k: random.categorical(k, torch.zeros(3), dim=5), IndexError, "no dim 5"),
    (lambda k: random.choice(k, torch.zeros(3), dim=3), IndexError, "no dim 3"),
    (lambda k: random.choice(k, torch.zeros(3), dim=bad(0.0)), TypeError, "dim is an int"),
    (lambda k: random.choice(k, bad(None)), TypeError, "a count or a tensor"),
    (lambda k: random.choice(k, bad(1.5)), TypeError, "a count or a tensor"),
    (lambda k: random.choice(k, 3, p=bad([0.5, 0.5, 0.0])), TypeError, "tensor of prob"),
    (lambda k: random.choice(k, 3, p=torch.zeros(3)), ValueError, "too few"),
    (lambda k: random.normal(k, (2**40, 2**40)), RuntimeError, "overflow"),
    (lambda k: random.normal(k, (3,), dtype=torch.float8_e5m2), NotImplementedError, "Float8"),
]


@pytest.mark.parametrize(("draw", "error", "message"), UNFIT)
def test_what_goes_wrong_uses_nothing_up(
    draw: Callable[[random.Key], Tensor], error: type[Exception], message: str
) -> None:
    key = random.key(0)
    with torch.random.fork_rng(devices=[]), pytest.raises(error, match=message):
        draw(key)
    assert torch.equal(random.normal(key, (3,)), random.normal(random.key(0), (3,)))
