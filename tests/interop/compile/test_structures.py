"""Structures while a function is traced: made outside, made inside, changed inside."""

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Module, Parameter, field, func, nn, random, tree

INPUT = torch.linspace(-1, 1, 10).reshape(5, 2)
MODEL: Any = nn.MLP((2, 3, 2), torch.tanh).initialize(0)
COMPILERS: dict[str, Callable[..., Any]] = {
    "parallax": parallax.compile,
    "parallax, eager backend": lambda fn: parallax.compile(fn, backend="eager"),
    "torch": lambda fn: torch.compile(fn, backend="eager", fullgraph=True),
}


@pytest.fixture(params=COMPILERS, autouse=True)
def compiled(request: pytest.FixtureRequest) -> Callable[..., Any]:
    torch._dynamo.reset()
    return COMPILERS[request.param]


def test_freezing_inside_leaves_the_layer_as_it_is(compiled: Callable[..., Any]) -> None:
    def step(model: Any, x: Tensor) -> Any:
        model = tree.select(model, "layers.0").freeze()
        grads = func.grad(lambda model: model(x).square().mean())(model)
        thawed = tree.select(model, "layers.0").unfreeze()
        return model.update(lambda p, g: p - 0.1 * g, grads), thawed

    got, thawed = compiled(step)(MODEL, INPUT)
    weight = MODEL.layers[1].weight.detach().requires_grad_()
    hidden = torch.tanh(INPUT @ MODEL.layers[0].weight.T + MODEL.layers[0].bias)
    (hidden @ weight.T + MODEL.layers[1].bias).square().mean().backward()
    assert weight.grad is not None
    assert torch.equal(got.layers[0].weight, MODEL.layers[0].weight)
    torch.testing.assert_close(got.layers[1].weight, weight.detach() - 0.1 * weight.grad)
    frozen = tree.select(MODEL, "layers.0").freeze()
    assert tree.structure(got) == tree.structure(frozen)
    assert tree.structure(thawed) == tree.structure(MODEL)


def test_a_seed_given_inside_is_the_seed_given_outside(compiled: Callable[..., Any]) -> None:
    def run(model: Any, x: Tensor) -> Any:
        prepared = model.train(7)
        return prepared, prepared(x)

    got, out = compiled(run)(MODEL, INPUT)
    assert got.rng == MODEL.train(7).rng and got.mode == "train"
    torch.testing.assert_close(out, MODEL(INPUT))


def test_modules_with_defaults_are_made_inside(compiled: Callable[..., Any]) -> None:
    class Made(Module):
        weight: Parameter
        sizes: tuple[int, ...] = field(default_factory=lambda: (1, 2))
        scale: tuple[int, ...] = field(default=(3, 4))

    def build(x: Tensor) -> Any:
        made = Made(3 * x)
        return sum(made.sizes) * sum(made.scale) * made.weight, tree.map(torch.neg, made)

    out, negated = compiled(build)(INPUT)
    torch.testing.assert_close(out, 63 * INPUT)
    assert torch.equal(negated.weight, -3 * INPUT) and negated.sizes == (1, 2)


class Pair(NamedTuple):
    one: Any
    two: Any


CONTAINERS: dict[str, Any] = {
    "module": MODEL,
    "dict": {"b": MODEL, "a": [torch.ones(2), None]},
    "kinds": (
        Pair(MODEL, torch.zeros(1)),
        OrderedDict(z=torch.ones(1), a=MODEL),
        defaultdict(int, {1: 2}),
        deque([torch.ones(2)], maxlen=3),
        random.key(0),
    ),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_structure_from_outside_is_built_inside(compiled: Callable[..., Any], name: str) -> None:
    whole = CONTAINERS[name]
    leaves, spec = tree.flatten(whole)
    got = compiled(lambda leaves: tree.unflatten(spec, leaves))(leaves)
    assert tree.structure(got) == spec
    assert [type(part) for part in tree.leaves(got)] == [type(part) for part in tree.leaves(whole)]
    assert str(got) == str(whole)


@pytest.mark.parametrize("name", ["module", "dict"])
def test_a_vector_is_taken_back_inside(compiled: Callable[..., Any], name: str) -> None:
    vector, unravel = tree.ravel(CONTAINERS[name])

    def loss(vector: Tensor) -> Tensor:
        made: Any = unravel(vector)
        module = made if name == "module" else made["b"]
        return module(INPUT).square().mean()  # type: ignore[no-any-return]  # a tensor

    want = torch.func.grad_and_value(loss)(vector)
    got = compiled(torch.func.grad_and_value(loss))(vector)
    torch.testing.assert_close(got, want)


def test_branches_build_trees(compiled: Callable[..., Any]) -> None:
    vector, unravel = tree.ravel(MODEL)

    def choose(vector: Tensor, which: Tensor) -> Any:
        return torch.cond(
            which, lambda v: unravel(v)(INPUT), lambda v: -unravel(v)(INPUT), (vector,)
        )

    run = compiled(choose)
    for which, sign in ((True, 1), (False, -1)):
        torch.testing.assert_close(run(vector, torch.tensor(which)), sign * MODEL(INPUT))


class Head(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    A = "a"


class Keyed(Module):
    parts: dict[Any, Parameter]

    def forward(self, x: Tensor) -> Any:
        kinds = [type(key) for key in self.parts]
        factor = 100.0 if kinds[0] in (Head, Word) else 10.0 if kinds[0] is bool else 1.0
        return factor * next(iter(self.parts.values())) * x


@pytest.mark.parametrize("keys", [(1, True, Head.ONE), ("a", Word.A), (Head.ONE, 1), (True, 1)])
def test_equal_keys_of_other_types_stay_apart(
    compiled: Callable[..., Any], keys: tuple[Any, ...]
) -> None:
    def step(net: Any, x: Tensor) -> Any:
        return tree.map(torch.neg, net)(x), tree.map(torch.neg, net), {next(iter(net.parts)): x}

    run, x = compiled(step), torch.ones(1)
    for key in (*keys, *keys):
        net: Any = Keyed(parts={key: torch.ones(1)})  # type: ignore[dict-item]  # a tensor is one at run time
        value, made, plain = run(net, x)
        assert value.item() == -net(x).item()
        for result in (made, tree.map(torch.neg, net), net.train(), net.reset(0)):
            assert [type(k) for k in result.parts] == [type(key)]
        assert [type(k) for k in plain] == [type(key)]


def test_what_a_constant_holds_is_guarded_in_trees_made_inside(
    compiled: Callable[..., Any],
) -> None:
    class Config:
        def __init__(self) -> None:
            self.scale = 2.0

    class Scaled(Module):
        weight: Parameter
        config: Any

        def forward(self, x: Tensor) -> Any:
            return self.config.scale * self.weight * x

    config = Config()
    net = Scaled(torch.ones(1), config)
    run = compiled(lambda net, x: net.train()(x) + tree.map(torch.neg, net)(x) * 3)
    assert run(net, torch.ones(1)).item() == -4.0
    config.scale = 7.0
    assert run(net, torch.ones(1)).item() == -14.0
