"""One key, one set of bits: in eager code, vmap, grad, jvp, compile, and nested in each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import random
from parallax.random import Key

CPU = torch.device("cpu")
DRAWS: dict[str, Callable[[Key], Tensor]] = {
    "bernoulli": lambda key: random.bernoulli(key, (5,), 0.3),
    "bits": lambda key: random.bits(key, (5,), dtype=torch.int16),
    "categorical": lambda key: random.categorical(key, torch.zeros(4), (5,)),
    "choice": lambda key: random.choice(key, torch.arange(9.0), (5,), replace=False),
    "dropout_mask": lambda key: random.dropout_mask(key, (2, 3), 0.3),
    "exponential": lambda key: random.exponential(key, (5,)),
    "fold_in": lambda key: random.fold_in(random.fold_in(key, 3), "x").data,
    "fold_in_tensor": lambda key: random.fold_in(key, torch.tensor(7)).data,
    "gumbel": lambda key: random.gumbel(key, (5,)),
    "normal": lambda key: random.normal(key, (20,)),
    "permutation": lambda key: random.permutation(key, 6),
    "randint": lambda key: random.randint(key, (5,), 0, 10, dtype=torch.int32),
    "split": lambda key: random.split(key, 3).data,
    "split_many": lambda key: random.split(key, 50).data,
    "truncated_normal": lambda key: random.truncated_normal(key, (5,)),
    "uniform": lambda key: random.uniform(key, (3, 2), -1.0, 1.0, dtype=torch.float64),
    "split_then_draw": lambda key: sum_of_parts(*random.split(key, 2)),
}


def sum_of_parts(one: Key, two: Key) -> Tensor:
    return random.normal(one, (4,)) + random.normal(random.fold_in(two, 1), (4,))


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.fixture(params=list(DRAWS))
def draw(request: pytest.FixtureRequest) -> Callable[[Key], Tensor]:
    return DRAWS[request.param]


Draw = Callable[[Key], Tensor]


def stack(shape: tuple[int, ...] = (4,)) -> Key:
    return Key(random.bits(random.key(99), shape))


def looped(draw: Draw, keys: Key) -> Tensor:
    return torch.stack([draw(random.key(int(seed))) for seed in keys.data])


def test_vmap_equals_a_loop(draw: Draw) -> None:
    keys = stack()
    assert torch.equal(bits(torch.vmap(draw)(keys)), bits(looped(draw, keys)))


def test_nested_vmap_equals_nested_loops(draw: Draw) -> None:
    keys = stack((2, 3))
    expected = torch.stack([looped(draw, Key(row)) for row in keys.data])
    assert torch.equal(torch.vmap(torch.vmap(draw))(keys), expected)
    across = torch.vmap(torch.vmap(draw), in_dims=(1,))(random.clone(keys))
    assert torch.equal(across, expected.transpose(0, 1))


def test_a_key_that_is_not_mapped_gives_every_example_the_same(draw: Draw) -> None:
    out = torch.vmap(lambda x: draw(random.key(3)).double() + x)(torch.zeros(3))
    assert torch.equal(out, torch.stack([draw(random.key(3)).double()] * 3))


def weighted(draw: Draw) -> Callable[[Tensor, Key], Tensor]:
    return lambda x, key: (x * draw(key).double()).sum()


def test_grad_sees_the_numbers_as_constants(draw: Draw) -> None:
    x, key = torch.tensor(2.0, dtype=torch.float64), random.key(5)
    expected = draw(random.key(5)).double().sum()
    gradient = torch.func.grad(weighted(draw))
    torch.testing.assert_close(gradient(x, key), expected, rtol=1e-15, atol=0)
    jvp: Any = torch.func.jvp
    _, tangent = jvp(lambda x: weighted(draw)(x, random.key(5)), (x,), (x / x,))
    torch.testing.assert_close(tangent, expected, rtol=1e-15, atol=0)
    keys = stack()
    each = torch.vmap(gradient, in_dims=(None, 0))(x, keys)
    sums = looped(draw, keys).double().reshape(4, -1).sum(1)
    torch.testing.assert_close(each, sums, rtol=1e-14, atol=0)
    second = torch.func.grad(lambda x, key: torch.func.grad(weighted(draw))(x, key) * x)
    torch.testing.assert_close(second(x, random.key(5)), expected, rtol=1e-15, atol=0)


def test_compiled_numbers_are_the_eager_ones(draw: Draw) -> None:
    compiled = torch.compile(draw, backend="aot_eager", fullgraph=True)
    key = random.key(6)
    expected = draw(random.key(6))
    assert torch.equal(bits(compiled(key)), bits(expected))
    assert torch.equal(compiled(key), expected), "compiled code does not detect reuse"


def test_compiled_vmap_equals_a_loop() -> None:
    keys = stack()
    mapped = torch.vmap(DRAWS["split_then_draw"])
    compiled = torch.compile(mapped, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(keys), looped(DRAWS["split_then_draw"], keys))


def test_compiled_derivatives_of_mapped_draws_equal_a_loop() -> None:
    def loss(x: Tensor, keys: Key) -> Tensor:
        return torch.vmap(lambda key: (x**2 * random.normal(key, (3,))).sum())(keys).sum()

    keys, x = stack(), torch.tensor(3.0, dtype=torch.float64)
    drawn = looped(lambda key: random.normal(key, (3,)), keys).double().sum()
    gradient = torch.func.grad(loss)
    compiled = torch.compile(gradient, backend="aot_eager", fullgraph=True)
    for found in (gradient(x, random.clone(keys)), compiled(x, keys)):
        torch.testing.assert_close(found, 6 * drawn)

    def curvature(x: Tensor, keys: Key) -> Tensor:
        return torch.func.jvp(lambda x: gradient(x, keys), (x,), (torch.ones_like(x),))[1]  # type: ignore[no-any-return]  # a Tensor

    torch.testing.assert_close(curvature(x, random.clone(keys)), 2 * drawn)


def test_inductor_gives_the_same_bits_and_one_graph_for_all_keys() -> None:
    graphs = []

    def step(key: Key, i: Tensor) -> Tensor:
        one, two = random.split(random.fold_in(key, i))
        return random.normal(one, (64,)) * random.dropout_mask(two, (64,), 0.5)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            i = torch.tensor(seed)
            assert torch.equal(compiled(random.key(seed), i), step(random.key(seed), i))
            graphs.append(seed)


def test_a_draw_inside_compile_from_a_seed_made_there() -> None:
    def f(x: Tensor) -> Tensor:
        return x + random.normal(random.key(4), x.shape)

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(torch.zeros(3)), f(torch.zeros(3)))


def test_fold_in_maps_over_keys_and_data_in_either_order() -> None:
    keys, steps = stack((2,)), torch.arange(3)

    def fold(key: Key, step: Tensor) -> Tensor:
        return random.fold_in(key, step).data

    expected = torch.stack(
        [torch.stack([fold(random.key(int(k)), s) for s in steps]) for k in keys.data]
    )
    over_steps = torch.vmap(fold, in_dims=(None, 0))
    over_keys = torch.vmap(fold, in_dims=(0, None))
    assert torch.equal(torch.vmap(over_steps, in_dims=(0, None))(keys, steps), expected)
    assert torch.equal(torch.vmap(over_keys, in_dims=(None, 0))(keys, steps), expected.T)
    pairs = torch.vmap(fold)(keys, steps[:2])
    assert torch.equal(pairs, expected[:, :2].diagonal())


def test_the_stack_may_be_mapped_along_any_dimension() -> None:
    keys = stack((2, 3))
    out = torch.vmap(lambda row: torch.vmap(DRAWS["normal"])(row), in_dims=(1,))(keys)
    assert out.shape == (3, 2, 20)
    assert torch.equal(out[2, 1], DRAWS["normal"](random.key(int(keys.data[1, 2]))))


OPERATORS = {
    "bits": (3, CPU),
    "fold_in": (torch.tensor(3),),
    "fold_in_name": ("x",),
    "normal": ((3,), torch.float32, CPU),
    "permutation": (3, CPU),
    "randint": ((3,), 0, 9, torch.int64, CPU),
    "split": (3,),
    "uniform": ((3,), torch.float64, CPU),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("shape", [(), (2,)])
def test_opcheck_passes(name: str, shape: tuple[int, ...]) -> None:
    operator = getattr(torch.ops.parallax, name).default
    torch.library.opcheck(operator, (stack(shape).data, *OPERATORS[name]))


def test_export_holds_the_draw_as_one_operator() -> None:
    class Noise(torch.nn.Module):
        def forward(self, key: Tensor) -> Tensor:
            return random.normal(Key(key), (3,))

    program = torch.export.export(Noise(), (random.key(0).data,))
    assert torch.equal(program.module()(random.key(1).data), random.normal(random.key(1), (3,)))
