"""Models are built and initialized under ``vmap`` over keys: the values of a loop over them."""

from __future__ import annotations

from typing import Any

import torch

from parallax import Module, Parameter, func, nn, random, tree


def build(key: Any) -> Any:
    return nn.MLP((2, 3, 1), torch.tanh).initialize(key)


def leaves(models: Any) -> list[torch.Tensor]:
    return tree.leaves(models)


def keys(*shape: int) -> Any:
    found = random.split(random.key(0), torch.Size(shape).numel())
    return random.Key(found.data.reshape(shape))


def test_an_ensemble_from_keys() -> None:
    state = torch.get_rng_state()
    expected = tree.stack([build(key) for key in random.split(random.key(0), 4)])
    for chunk_size in (None, 3):
        found = func.vmap(build, chunk_size=chunk_size)(keys(4))
        assert tree.structure(found) == tree.structure(expected)
        assert tree.equal(found, expected)
    assert torch.equal(state, torch.get_rng_state())


def test_nested_mapped_elsewhere_and_by_torch() -> None:
    grid = keys(2, 3)
    expected = [[build(random.Key(one)) for one in row] for row in grid.data]
    inner = func.vmap(func.vmap(build))(grid)
    outer = func.vmap(func.vmap(build), in_dims=1)(grid)
    by_torch = torch.vmap(lambda data: build(random.Key(data)))(grid.data[0])
    for i in range(2):
        assert tree.equal(tree.map(lambda leaf, i=i: leaf[i, 0], inner), expected[i][0])
        assert tree.equal(tree.map(lambda leaf, i=i: leaf[0, i], outer), expected[i][0])
    assert tree.equal(by_torch, tree.stack(expected[0]))


def test_trained_from_the_start() -> None:
    x = torch.tensor([0.5, -1.0])

    def slope(key: Any) -> Any:
        return func.grad(lambda m: m(x).sum())(build(key))

    found = func.vmap(slope)(keys(3))
    expected = tree.stack([slope(key) for key in random.split(random.key(0), 3)])
    assert tree.allclose(found, expected)


class Half(Module):
    given: Parameter
    drawn: Parameter


def test_what_has_a_value_is_shared_and_options_reach_each_member() -> None:
    def half(key: Any) -> Any:
        declared = Half(torch.ones(2), Parameter((2,), torch.nn.init.normal_))
        return declared.initialize(key, dtype=torch.float64)

    found = func.vmap(half)(keys(3))
    assert found.drawn.dtype is torch.float64 and found.given.shape == (3, 2)
    expected = tree.stack([half(key) for key in random.split(random.key(0), 3)])
    assert tree.equal(found, expected)
