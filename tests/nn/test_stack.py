"""A stack is the tuple of its blocks: values, gradients, random numbers, effects, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

import parallax
from parallax import Buffer, Module, Parameter, bridge, effects, func, nn, random, tree
from tests.nn.parity import assert_same


class Block(Module):
    """Everything a block may have: constants, a hole, a tie, a norm, dropout."""

    linear: nn.Linear
    norm: nn.LayerNorm
    dropout: nn.Dropout
    nothing: Parameter | None = None

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        return x + scale * self.dropout(torch.tanh(self.linear(self.norm(x))))


class Count(Module):
    """Emits, and names an intermediate result."""

    calls: Buffer
    weight: Parameter

    def forward(self, x: Tensor) -> Any:
        self.emit(calls=self.calls + x.detach().sum())
        self.sow(seen=x)
        return x * self.weight


class Tuple(Module):
    """What a stack stands for."""

    blocks: tuple[Module, ...]

    def forward(self, x: Tensor, *args: Any) -> Any:
        for block in self.blocks:
            x = block(x, *args)
        return x


class Net(Module):
    """A module with a stack below."""

    blocks: nn.Stack

    def forward(self, x: Tensor) -> Any:
        return self.blocks(x)


def block(rate: float = 0.0) -> Block:
    return Block(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout(rate))


def both(count: int = 3) -> tuple[nn.Stack, Tuple]:
    stack = nn.Stack(block(), count).initialize(0)
    return stack, Tuple(tuple(stack))


def loss(module: Any, x: Tensor) -> Any:
    return module(x).square().sum()


def rows(grads: Tuple) -> list[Tensor]:
    """The gradients of a tuple of blocks, stacked."""
    each = [[leaf for leaf in tree.leaves(b) if leaf is not None] for b in grads.blocks]
    return [torch.stack(leaves) for leaves in zip(*each, strict=True)]


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


# -- what it is -----------------------------------------------------------------------------------


def test_its_leaves_are_those_of_one_block_stacked() -> None:
    stack, unstacked = both()
    assert tree.summary(stack).count == tree.summary(unstacked).count
    assert stack.block.linear.weight.shape == (3, 4, 4)
    assert len(stack) == 3 and [type(b) for b in stack] == [Block] * 3
    assert_same(stack[1].linear.weight, stack.block.linear.weight[1])
    assert repr(stack).splitlines()[:2] == ["Stack(", "  (0-2): Block("]


def test_every_block_starts_as_in_a_tuple() -> None:
    stack = Net(nn.Stack(block(), 3)).initialize(7)
    unstacked = Tuple(tuple(block() for _ in range(3))).initialize(7)
    for one, two in zip(stack.blocks, unstacked.blocks, strict=True):
        assert tree.equal(one, two)
    nested = nn.Stack(nn.Stack(block(), 2), 3).initialize(0)
    weight = nested.block.block.linear.weight
    assert weight.shape == (3, 2, 4, 4) and weight.unique().numel() == weight.numel()
    assert_same(nested[1][1].linear.weight, weight[1, 1])
    following: Any = nn.Stack(nn.Stack(nn.WeightNorm(nn.Linear(4, 4)), 2), 3).initialize(0)
    found = following.block.block
    assert_same(found.magnitude, torch.linalg.vector_norm(found.layer.weight, dim=-1, keepdim=True))


def test_meta_devices_and_dtypes() -> None:
    stack = nn.Stack(block(), 3).initialize(0, dtype=torch.float64)
    assert stack(X.double()).dtype is torch.float64
    meta = nn.Stack(block(), 3).initialize(0, device="meta")
    assert meta.block.linear.weight.shape == (3, 4, 4)


def test_blocks_that_are_there_already() -> None:
    blocks = [block().initialize(seed) for seed in range(3)]
    stack = nn.Stack.of(blocks)
    assert_same(stack(X), Tuple(tuple(blocks))(X))
    assert all(tree.equal(one, two) for one, two in zip(stack, blocks, strict=True))
    with pytest.raises(ValueError, match="the trees do not fit together"):
        nn.Stack.of([*blocks[:2], block(0.5).initialize(0)])
    again = bridge.load_state_dict(nn.Stack(block(), 3), bridge.state_dict(stack))
    assert tree.equal(again, stack)


# -- calling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_values_and_gradients_are_a_tuples(count: int) -> None:
    stack, unstacked = both(count)
    assert_same(stack(X), unstacked(X))
    assert_same(stack(X, 0.5), unstacked(X, 0.5))
    found = [leaf for leaf in tree.leaves(func.grad(loss)(stack, X)) if leaf is not None]
    assert_same(found, rows(func.grad(loss)(unstacked, X)))


def test_it_vmaps_and_differentiates_twice() -> None:
    stack, unstacked = both()
    xs = torch.randn(5, 2, 4)
    torch.testing.assert_close(func.vmap(stack)(xs), torch.stack([unstacked(x) for x in xs]))

    def curvature(module: Any, x: Tensor) -> Any:
        return func.grad(loss, argnums=1)(module, x).square().sum()

    found = [leaf for leaf in tree.leaves(func.grad(curvature)(stack, X)) if leaf is not None]
    torch.testing.assert_close(found, rows(func.grad(curvature)(unstacked, X)))


@pytest.mark.parametrize(
    "rng", [random.key(3), 3, torch.Generator().manual_seed(3)], ids=["key", "int", "generator"]
)
def test_every_block_has_random_numbers_of_its_own(rng: Any) -> None:
    stack = nn.Stack(nn.Dropout(0.5), 2).train(rng)
    one, two = [b(torch.ones(64)) for b in nn.Stack(nn.Dropout(0.5), 2).train(rng)]
    assert not torch.equal(one, two)
    with random.reuse():
        assert_same(stack(torch.ones(64)), one * two)
        assert_same(stack.eval()(torch.ones(64)), torch.ones(64))


@pytest.mark.parametrize("compiled", [False, True])
def test_effects_are_each_blocks_own(compiled: bool) -> None:
    weights = torch.tensor([2.0, 3.0])
    stack = Net(nn.Stack.of([Count(torch.zeros(()), w) for w in weights]))
    run: Any = effects.collect(Net.forward)
    if compiled:
        run = parallax.compile(run, backend="eager")
    out, after = run(stack, torch.ones(4))
    assert_same(out, torch.full((4,), 6.0))
    assert_same(after.blocks.block.calls, torch.tensor([4.0, 8.0]))
    assert_same(stack.blocks.block.calls, torch.zeros(2))


def test_intermediate_results_are_captured_in_order() -> None:
    stack = nn.Stack.of([Count(torch.zeros(()), w) for w in torch.tensor([2.0, 3.0])])

    def run(stack: nn.Stack, x: Tensor) -> Any:
        return effects.collect(nn.Stack.forward)(stack, x)[0]

    _, sown = effects.capture(run)(stack, torch.ones(4))
    assert_same(sown, {"block.seen": (torch.ones(4), torch.full((4,), 2.0))})


def test_an_effect_that_nobody_collects_is_an_error() -> None:
    stack = nn.Stack.of([Count(torch.zeros(()), w) for w in torch.tensor([2.0, 3.0])])
    with pytest.raises(effects.EffectError, match="nobody collects"):
        stack(torch.ones(4))


def test_checkpoints_give_the_same_gradients_with_less_kept() -> None:
    kept: list[int] = []

    def gradient(stack: nn.Stack) -> Any:
        count = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            grads = func.grad(loss)(stack.train(random.key(1)), X)
        kept.append(count)
        return [leaf for leaf in tree.leaves(grads) if leaf is not None]

    plain = nn.Stack(block(0.5), 6).initialize(0)
    assert_same(gradient(plain), gradient(plain.replace(checkpoint=True)))
    assert kept[1] < kept[0]
    assert "checkpoint=True" in repr(plain.replace(checkpoint=True))


# -- compiled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("compiler", [parallax.compile, torch.compile])
def test_compiled_it_is_the_same(backend: str, compiler: Any) -> None:
    torch._dynamo.reset()
    stack, _ = both()
    options = {"backend": backend, "fullgraph": True}
    assert_same(compiler(lambda m, x: m(x, 0.5), **options)(stack, X), stack(X, 0.5))
    gradient = func.grad(loss, argnums=(0, 1))
    found = compiler(lambda m, x: gradient(m, x), **options)(stack, X)
    torch.testing.assert_close(tree.leaves(found[0]), tree.leaves(gradient(stack, X)[0]))
    torch.testing.assert_close(found[1], gradient(stack, X)[1])


def test_a_gradient_outside_of_compiled_code() -> None:
    stack, _ = both()
    call: Any = parallax.compile(lambda m, x: m(x), backend="aot_eager")
    found = func.grad(lambda m, x: call(m, x).square().sum(), argnums=(0, 1))(stack, X)
    expected = func.grad(loss, argnums=(0, 1))(stack, X)
    torch.testing.assert_close(tree.leaves(found[0]), tree.leaves(expected[0]))
    torch.testing.assert_close(found[1], expected[1])


def test_second_derivatives_and_vmap_in_compiled_code() -> None:
    stack, _ = both()

    def curvature(module: Any, x: Tensor) -> Any:
        return func.grad(loss, argnums=1)(module, x).square().sum()

    found = parallax.compile(func.grad(curvature), backend="aot_eager")(stack, X)
    expected = func.grad(curvature)(stack, X)
    torch.testing.assert_close(tree.leaves(found), tree.leaves(expected))
    xs = torch.randn(5, 2, 4)
    mapped: Any = parallax.compile(lambda m, xs: func.vmap(m)(xs), backend="aot_eager")
    torch.testing.assert_close(mapped(stack, xs), func.vmap(stack)(xs))


class Bent(Module):
    """A block that takes a gradient itself."""

    weight: Parameter

    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter((4,), torch.nn.init.normal_)

    def forward(self, x: Tensor) -> Any:
        return x + 0.1 * func.grad(lambda y: torch.sin(self.weight * y).sum())(x)


def test_a_gradient_within_a_block_in_compiled_code() -> None:
    stack = nn.Stack(Bent(), 4).initialize(0)
    gradient = func.grad(lambda m, x: m(x).square().sum(), argnums=(0, 1))
    found = parallax.compile(gradient, backend="aot_eager")(stack, X)
    expected = gradient(stack, X)
    torch.testing.assert_close(tree.leaves(found[0]), tree.leaves(expected[0]))
    torch.testing.assert_close(found[1], expected[1])


def test_a_batch_of_another_size_makes_the_size_symbolic() -> None:
    stack, _ = both()
    gradient: Any = parallax.compile(func.grad(loss), backend="aot_eager")
    for size in (2, 5, 7):
        x = torch.randn(size, 4)
        expected = func.grad(loss)(stack, x)
        torch.testing.assert_close(tree.leaves(gradient(stack, x)), tree.leaves(expected))


def test_all_calls_of_a_graph_have_operands_of_the_same_strides() -> None:
    """As inductor wants it: it takes one layout for each graph."""
    stack, unstacked = both()
    x = X.t().contiguous().t().requires_grad_()
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        for node in graph.graph.nodes:
            if "invoke_subgraph" in str(node.target):
                body = getattr(graph, node.args[0].target)
                takes = body.graph.find_nodes(op="placeholder")
                calls.append(
                    [[n.meta["val"].stride() for n in ns] for ns in (takes, node.args[2:])]
                )
        return graph

    def total(x: Tensor) -> Any:
        return stack(x).sum()  # whose gradient has strides of zero

    compiled = parallax.compile(func.grad(total), backend=aot_autograd(fw_compiler=backend))
    torch.testing.assert_close(compiled(x.detach()), torch.autograd.grad(unstacked(x).sum(), x)[0])
    assert len(calls) == 6 and all(taken == given for taken, given in calls)
    assert all(len(strides) < 3 for taken, _ in calls for strides in taken)  # nor whole stacks


class Mean(Module):
    """Changes the shape, and computes with it."""

    weight: Parameter

    def forward(self, x: Tensor) -> Any:
        return self.weight * x.sum(-1, keepdim=True).double() / x.shape[-1]


class Mixed(Module):
    """Is another function of its second input than of its first."""

    weight: Parameter

    def forward(self, x: Tensor, scale: Tensor) -> Any:
        return (x * scale + scale.sin() * x.cos()) * self.weight


def derivatives_of(call: Any, first: Tensor, second: Tensor) -> list[Any]:
    """Values and derivatives where operands are one tensor, and where they are two."""

    def loss(x: Tensor, scale: Tensor) -> Any:
        return call(x, scale).square().sum()

    return [
        call(first, first),
        call(first, second),
        func.grad(lambda x: loss(x, second) + loss(x, x))(first),
        func.vjp(call, first, second)[1](second),
        func.vjp(call, second, first)[1](second * 2),
        func.hvp(lambda x: loss(x, x), (first,), (first,)),
        func.hvp(lambda x: loss(x, second), (first,), (second,)),
    ]


def test_one_tensor_in_two_places_in_compiled_code() -> None:
    first, second = torch.randn(2, 3, 4, dtype=torch.float64)
    stack = nn.Stack(Mixed(Parameter((4,), torch.nn.init.normal_)), 3).initialize(0)
    stack = tree.to(stack, dtype=torch.float64)
    blocks = Tuple(tuple(stack))
    compiled = parallax.compile(derivatives_of, backend="aot_eager")
    for one, two in ((first, first), (first, second), (second, first)):
        expected = derivatives_of(blocks, one, two)
        for found, right in zip(
            tree.leaves(compiled(stack, one, two)), tree.leaves(expected), strict=True
        ):
            torch.testing.assert_close(found, right)


class Doubling(Module):
    """Writes into its first input."""

    weight: Parameter

    def forward(self, x: Tensor, shift: Tensor) -> Any:
        x.mul_(2)
        return x * self.weight + shift


def test_a_write_reaches_what_shares_its_memory_in_compiled_code() -> None:
    stack = nn.Stack(Doubling(Parameter((4,), torch.nn.init.ones_)), 2).initialize(0)

    def run(blocks: Any, x: Tensor) -> Any:
        own = x * 1
        return blocks(own, own[:2])

    x = torch.randn(2, 4)
    found = parallax.compile(run, backend="aot_eager")(stack, x)
    torch.testing.assert_close(found, run(Tuple(tuple(stack)), x))


def test_blocks_that_change_the_shape_or_dtype_are_compiled_one_by_one() -> None:
    stack = nn.Stack(Mean(torch.tensor([3.0])), 2)
    gradient: Any = parallax.compile(func.grad_and_value(loss), backend="aot_eager")
    grads, value = gradient(stack, X)
    weights = [torch.tensor([3.0], requires_grad=True) for _ in range(2)]
    expected = (X.sum(-1).double() / 4 * weights[0] * weights[1]).square().sum()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(
        grads.block.weight, torch.stack(torch.autograd.grad(expected, weights))
    )


def test_a_compiled_training_step_has_the_eager_steps_keys() -> None:
    stack = nn.Stack(block(0.5), 3).initialize(0)

    def step(model: nn.Stack, x: Tensor, key: random.Key) -> nn.Stack:
        grads = func.grad(loss)(model.train(key), x)
        return model.update(lambda p, g: p - 0.1 * g, grads)

    found = parallax.compile(step, backend="aot_eager")(stack, X, random.key(5))
    expected = step(stack, X, random.key(5))
    torch.testing.assert_close(tree.leaves(found), tree.leaves(expected))


class Noise(Module):
    """Draws from torch's own generator."""

    weight: Parameter

    def forward(self, x: Tensor) -> Any:
        return torch.nn.functional.dropout(self.weight * x, 0.5)


def test_the_graph_of_a_block_that_draws_is_not_computed_again(fresh_dynamo: None) -> None:
    """The gradient of ``mask * weight * x`` tells the mask, and the value does."""

    def noisy(stack: Any, x: Tensor) -> Any:
        y = stack(x)
        return y.sum(), y

    step: Any = parallax.compile(func.grad(noisy, has_aux=True), backend="aot_eager")
    weight = torch.full((1, 200), 3.0)
    grads, y = step(nn.Stack.of([Noise(weight[0])]), torch.ones(200))
    torch.testing.assert_close(grads.block.weight * weight, y[None])


def test_the_graph_of_a_block_is_there_once_whatever_the_depth() -> None:
    """The number of operators that a backend compiles does not depend on the number of blocks."""

    def operators(count: int) -> int:
        found = 0

        def backend(graph: Any, inputs: Any) -> Any:
            nonlocal found
            modules = [m for m in graph.modules() if isinstance(m, torch.fx.GraphModule)]
            found = sum(
                node.op == "call_function" and "aten" in str(node.target)
                for module in {id(m): m for m in modules}.values()
                for node in module.graph.nodes
                if "layer_norm" in str(node.target) or "tanh" in str(node.target)
            )
            return graph

        compiler = aot_autograd(fw_compiler=backend)
        stack = nn.Stack(block(), count).initialize(0)
        parallax.compile(func.grad(loss), backend=compiler)(stack, X)
        return found

    assert operators(3) == operators(9) > 0


class Attention(Module):
    """A block whose operator could draw: it has a rate of dropout, which is 0."""

    mix: nn.Linear

    def forward(self, x: Tensor) -> Any:
        q = self.mix(x).view(1, 1, *x.shape)
        return x + torch.nn.functional.scaled_dot_product_attention(q, q, q).view(x.shape)


@pytest.mark.parametrize(
    "made", [block, lambda: Attention(nn.Linear(4, 4))], ids=["mlp", "attention"]
)
def test_a_compiled_gradient_computes_what_a_tuples_computes(made: Any) -> None:
    """Each block once, and with ``checkpoint`` once more; as many operations as torch counts."""
    stack = nn.Stack(made(), 3).initialize(0)
    blocks = nn.Sequential(*stack)
    counts, results = [], []
    for model in (blocks, stack, stack.replace(checkpoint=True)):
        gradient: Any = parallax.compile(func.grad(loss, argnums=1), backend="aot_eager")
        gradient(model, X)
        with FlopCounterMode(display=False) as counter:
            results.append(gradient(model, X))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] < counts[2]
    x = X.clone().requires_grad_()
    expected = torch.autograd.grad(blocks(x).square().sum(), x)[0]
    for result in results:
        torch.testing.assert_close(result, expected)


def test_a_pullback_in_compiled_code_is_called_twice_and_mapped() -> None:
    stack, unstacked = both()

    def rows(x: Tensor) -> Any:
        y, pull = func.vjp(stack, x)
        return pull(y)[0], pull(torch.ones_like(y))[0], func.jacrev(stack)(x)

    def directly(x: Tensor) -> Any:
        y, pull, *_ = torch.func.vjp(unstacked, x)
        return pull(y)[0], pull(torch.ones_like(y))[0], torch.func.jacrev(unstacked)(x)

    found: Any = parallax.compile(rows, backend="aot_eager")
    torch.testing.assert_close(found(X), directly(X))


class Nested(Module):
    """A block whose gradient is a call of a graph: a loop."""

    weight: Parameter

    def forward(self, x: Tensor) -> Any:
        return func.fori_loop(0, 3, lambda k, y: torch.sin(self.weight * y), x)


class Writing(Module):
    """A block that writes into what it computed, and returns a view."""

    weight: Parameter

    def forward(self, x: Tensor) -> Any:
        y = (self.weight * x).t()
        y.add_(1.0)
        return y.sin_().t()


@pytest.mark.parametrize("made", [Nested, Writing, nn.Identity])
def test_blocks_with_loops_writes_and_views_are_compiled(made: Any) -> None:
    blocks = [made() if made is nn.Identity else made(torch.rand(4)) for _ in range(3)]
    stack = nn.Stack.of(blocks)
    gradient: Any = parallax.compile(func.grad(loss, argnums=1), backend="aot_eager")
    x = X.clone().requires_grad_()
    expected = torch.autograd.grad(nn.Sequential(*blocks)(x).square().sum(), x)[0]
    torch.testing.assert_close(gradient(stack, X), expected)


# -- bad input ------------------------------------------------------------------------------------


def test_arguments_that_make_no_sense() -> None:
    wrong: Any = torch.tanh
    with pytest.raises(
        TypeError, match=r"Stack\(block=\): expected a parallax.Module, got the fun"
    ):
        nn.Stack(wrong, 2)
    with pytest.raises(ValueError, match=r"Stack\(count=\): must be at least 1, got 0"):
        nn.Stack(block(), 0)
    with pytest.raises(TypeError, match=r"Stack\(count=\): expected an int, got 2.0"):
        nn.Stack(block(), 2.0)  # type: ignore[arg-type]  # that is the point


CALLS: dict[str, Callable[[Any, Tensor], Any]] = {
    "call": lambda net, x: net(x),
    "grad": lambda net, x: func.grad(loss)(net, x),
    "checkpoint": lambda net, x: func.grad(loss)(net, x),
    "vmap": lambda net, x: func.vmap(func.grad(loss), (None, 0))(net, x[None]),
    "collect": lambda net, x: effects.collect(Net.forward)(net, x),
}


@pytest.mark.parametrize("name", CALLS)
def test_inputs_that_do_not_fit_name_the_layer(name: str) -> None:
    call, checkpoint = CALLS[name], name == "checkpoint"
    net = Net(nn.Stack(block(), 2, checkpoint=checkpoint)).initialize(0).train(0)
    where = r"^Net.blocks\[0\].norm \(LayerNorm\): expected input of shape \(\*, 4\)"
    with pytest.raises(ValueError, match=where):
        call(net, torch.ones(2, 5))
    inner = nn.Residual(nn.WeightNorm(nn.Linear(4, 4, bias=False)))
    net = Net(nn.Stack(nn.Stack(inner, 2), 2, checkpoint=checkpoint)).initialize(0).train(0)
    with pytest.raises(ValueError, match=r"^Net.blocks\[0\]\[0\].inner.layer \(Linear\): "):
        call(net, torch.ones(2, 5))


class Iterating(Module):
    blocks: nn.Stack

    def forward(self, x: Tensor) -> Any:
        for one in self.blocks:
            x = one(x)
        return x


def test_an_error_names_the_block_it_is_raised_in() -> None:
    stack = nn.Stack(nn.Linear(4, 5), 3).initialize(0)
    with pytest.raises(ValueError, match=r"^Net.blocks\[1\] \(Linear\): .*, got \(2, 5\)"):
        Net(stack)(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"^Iterating.blocks.block \(Linear\): .*, got \(2, 5\)"):
        Iterating(stack)(torch.ones(2, 4))
