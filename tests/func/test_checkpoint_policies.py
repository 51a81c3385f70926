"""What a policy keeps is not computed again, on the tape or within transforms; values are exact."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

import parallax
from parallax import func, nn, tree
from tests.comparing import assert_close_trees
from tests.compiling import eager_and_aot, make_compiled
from tests.optim.test_memory import peak

aten = torch.ops.aten
PRODUCTS = [aten.mm.default, aten.bmm.default, aten.addmm.default]
NET, OTHER = (nn.MLP([4, 8, 8, 4]).initialize(seed, dtype=torch.float64) for seed in range(2))
BOTH = tree.stack([NET, OTHER])
X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Operators(TorchDispatchMode):
    """The operators that are run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # it is torch's
        self.run: list[Any] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.run.append(op)
        return op(*args, **(kwargs or {}))

    def products(self) -> int:
        """How many of them are products of matrices."""
        return sum([op in PRODUCTS for op in self.run])


def everything(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE


def products(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = op in PRODUCTS
    return CheckpointPolicy.PREFER_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def loss_of(function: Callable[..., Any]) -> Any:
    def loss(net: Any, x: Tensor) -> Any:
        return function(net, x).square().sum()

    return loss


def gradients_of_gradients(loss: Any) -> Any:
    def slopes(net: Any) -> Any:
        return sum([g.square().sum() for g in tree.leaves(func.grad(loss)(net, X))])

    return func.grad(slopes)(NET)


WAYS: dict[str, Callable[[Any], Any]] = {
    "tape": lambda loss: func.grad(loss)(NET, X),
    "nested": gradients_of_gradients,
    "vmap of grad": lambda loss: func.vmap(func.grad(loss), (None, 0))(NET, X),
    "grad of vmap": lambda loss: func.grad(lambda m: func.vmap(loss, (None, 0))(m, X).sum())(NET),
    "per sample": lambda loss: func.per_sample_grad(loss)(NET, X),
    "in the second dimension": lambda loss: func.vmap(func.grad(loss), (None, 1))(NET, X[:4]),
    "an ensemble": lambda loss: func.vmap(func.grad(loss), (0, None))(BOTH, X),
    "Hessian": lambda loss: func.jacrev(func.grad(loss, argnums=1), argnums=1)(NET, X),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", [PRODUCTS, products, everything])
def test_products_are_kept(way: str, policy: Any) -> None:
    derivative = WAYS[way]
    expected = derivative(loss_of(nn.MLP.forward))
    counts = []
    for chosen in (None, policy):
        with Operators() as operators:
            found = derivative(loss_of(func.checkpoint(nn.MLP.forward, policy=chosen)))
        assert_close_trees(found, expected)
        counts.append(operators.products())
    assert counts[1] < counts[0]


def writes(net: Any, x: Tensor) -> Tensor:
    """Into what a product returned, and into parts of what comes of it."""
    h = net.layers[0](x)
    h.relu_()
    h = h * 2
    part = h[..., :4]
    h.add_(1.0)
    part.mul_(3.0)
    return (h @ net.layers[1].weight).sin()  # type: ignore[no-any-return]  # a tensor's


def constants(net: Any, x: Tensor) -> Tensor:
    """Two tensors that are made in turn, maybe in the same memory."""
    twice = net.layers[0](x) * torch.tensor(2.0)
    return twice.cos() * (net.layers[0](x) * torch.tensor(3.0)).sin()  # type: ignore[no-any-return]  # a tensor's


def several(net: Any, x: Tensor) -> Tensor:
    """Operators with several results."""
    parts = F.layer_norm(net.layers[0](x), (8,)).chunk(2, -1)
    return torch.stack(parts).sort(-1)[0].exp()


def draws(net: Any, x: Tensor) -> Tensor:
    """Torch's own random numbers."""
    hidden = F.dropout(net.layers[0](x))
    return net.layers[1](F.dropout(torch.rand_like(hidden) * hidden, 0.3))  # type: ignore[no-any-return]  # a layer's


@pytest.mark.parametrize("function", [writes, constants, several])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", [PRODUCTS, everything])
def test_values_are_exact_whatever_is_kept(way: str, function: Any, policy: Any) -> None:
    expected = WAYS[way](loss_of(function))
    assert_close_trees(WAYS[way](loss_of(func.checkpoint(function, policy=policy))), expected)


@pytest.mark.parametrize("policy", [PRODUCTS, everything])
def test_the_same_numbers_are_drawn_again(policy: Any) -> None:
    results = []
    for fn in (draws, func.checkpoint(draws, policy=policy)):
        loss = loss_of(fn)
        torch.manual_seed(0)
        each = func.vmap(func.grad(loss), (None, 0), randomness="different")(NET, X)
        results.append((each, func.grad(loss)(NET, X)))
    assert_close_trees(*results)


def test_what_is_written_before_backward_is_computed_again() -> None:
    weight = torch.ones(4, 4, dtype=torch.float64)

    def product(x: Tensor) -> Tensor:
        return torch.tanh(x @ weight)

    def slope(fn: Any) -> Tensor:
        weight.fill_(0.5)
        out, pull = func.vjp(lambda x: func.vmap(fn)(x), X)
        weight.fill_(0.1)  # as without a policy, the derivative is that of now
        return torch.as_tensor(pull(torch.ones_like(out))[0])

    kept = slope(func.checkpoint(product, policy=everything))
    torch.testing.assert_close(kept, slope(func.checkpoint(product)))


def test_a_policy_that_keeps_nothing_holds_no_more_than_none() -> None:
    wide = nn.MLP([4, 512, 512, 4]).initialize(0)
    x = torch.randn(256, 1, 4)

    def most(policy: Any) -> int:
        loss = loss_of(func.checkpoint(nn.MLP.forward, policy=policy))
        return peak(lambda: func.vmap(func.grad(loss, argnums=1), (None, 0))(wide, x))

    assert most([]) < 1.05 * most(None)


@pytest.mark.parametrize("policy", [[aten.addmm.default], products])
def test_on_the_tape_a_compiled_function_has_torchs_policy(policy: Any) -> None:
    def through(net: Any, x: Tensor) -> Any:
        return func.checkpoint(net, policy=policy)(x).square().mean()

    compiled = func.grad(parallax.compile(through, backend=eager_and_aot))
    assert_close_trees(compiled(NET, X), func.grad(lambda m: m(X).square().mean())(NET))


def products_run(way: str, checkpointed: Any, expected: Any) -> int:
    """How many products of matrices a compiled derivative computes, which must be exact."""
    loss = loss_of(checkpointed)
    step = make_compiled(lambda: WAYS[way](loss), backend="aot_eager")
    assert_close_trees(step(), expected)
    operators = Operators()
    with operators:
        assert_close_trees(step(), expected)
    return operators.products()


@functools.cache
def recomputed_products(way: str) -> int:
    """As ``products_run``, without a policy."""
    expected = WAYS[way](loss_of(nn.MLP.forward))
    return products_run(way, func.checkpoint(nn.MLP.forward), expected)


@pytest.mark.parametrize("way", WAYS)
def test_products_are_kept_where_transforms_are_compiled(fresh_dynamo: None, way: str) -> None:
    expected = WAYS[way](loss_of(nn.MLP.forward))
    kept = products_run(way, func.checkpoint(nn.MLP.forward, policy=PRODUCTS), expected)
    plain = products_run(way, nn.MLP.forward, expected)
    assert plain <= kept < recomputed_products(way)


@pytest.mark.parametrize("way", ["tape", "nested", "per sample", "Hessian"])
@pytest.mark.parametrize("function", [writes, constants, several])
def test_compiled_values_are_exact_whatever_is_kept(
    fresh_dynamo: None, way: str, function: Any
) -> None:
    loss = loss_of(func.checkpoint(function, policy=everything))
    found = make_compiled(lambda: WAYS[way](loss), backend=eager_and_aot)()
    assert_close_trees(found, WAYS[way](loss_of(function)))


class Chooses:
    """A policy that is an object."""

    def __call__(self, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return products(context, op)


def by_name(name: str, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = name in op.name()
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


GIVEN: dict[str, Callable[[], Any]] = {
    "a list": lambda: list(PRODUCTS),
    "a closure": lambda: lambda context, op, *_, **__: op in PRODUCTS,
    "a partial": lambda: functools.partial(by_name, "mm"),
}


@pytest.mark.parametrize("given", [*GIVEN, "an object", "a method"])
def test_compiled_code_takes_any_policy(fresh_dynamo: None, given: str) -> None:
    policies = {name: made() for name, made in GIVEN.items()}
    policies |= {"an object": Chooses(), "a method": Chooses().__call__}
    expected = WAYS["tape"](loss_of(nn.MLP.forward))
    kept = func.checkpoint(nn.MLP.forward, policy=policies[given])
    assert products_run("tape", kept, expected) < recomputed_products("tape")


@pytest.mark.parametrize("given", GIVEN)
def test_a_policy_may_be_made_in_compiled_code(fresh_dynamo: None, given: str) -> None:
    expected = WAYS["tape"](loss_of(nn.MLP.forward))

    def checkpointed(net: Any, x: Tensor) -> Any:
        return func.checkpoint(nn.MLP.forward, policy=GIVEN[given]())(net, x)

    assert products_run("tape", checkpointed, expected) < recomputed_products("tape")


def test_an_object_that_is_made_in_compiled_code_is_no_policy(fresh_dynamo: None) -> None:
    def loss(x: Tensor) -> Any:
        return func.checkpoint(torch.sin, policy=Chooses())(x).sum()

    with pytest.raises(RuntimeError, match=r"must be a list of operators or a plain function, got"):
        make_compiled(func.grad(loss), backend="eager")(X)


def test_equal_blocks_with_other_policies_are_other_graphs(fresh_dynamo: None) -> None:
    def twice(net: Any, x: Tensor) -> Any:
        hidden = func.checkpoint(nn.MLP.forward, policy=PRODUCTS)(net, x)
        return func.checkpoint(nn.MLP.forward)(net, hidden)

    expected = WAYS["tape"](loss_of(lambda net, x: net(net(x))))
    counts = [
        products_run("tape", function, expected)
        for function in (
            lambda net, x: func.checkpoint(nn.MLP.forward)(net, net(x)),
            twice,
            lambda net, x: func.checkpoint(nn.MLP.forward)(net, func.checkpoint(net)(x)),
        )
    ]
    assert counts[0] == counts[1] < counts[2]


@pytest.mark.slow
def test_inductor_has_the_values_of_a_kept_result(fresh_dynamo: None) -> None:
    loss = loss_of(func.checkpoint(several, policy=PRODUCTS))
    found = parallax.compile(func.per_sample_grad(loss))(NET, X)
    assert_close_trees(found, func.per_sample_grad(loss_of(several))(NET, X))


def test_a_kept_result_is_taken_for_each_of_several_derivatives() -> None:
    x = X.clone().requires_grad_()
    loss = func.checkpoint(NET, policy=PRODUCTS)(x).square().sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, x), first)
