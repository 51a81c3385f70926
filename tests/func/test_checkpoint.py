"""A checkpointed function is the function: values, derivatives, draws, effects; less is kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import parallax
from parallax import Buffer, Module, effects, func, nn, random, tree
from tests.comparing import assert_close_trees
from tests.compiling import eager_and_aot, make_compiled
from tests.optim.test_memory import peak

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))

Forms = dict[str, Callable[[Any, Tensor], Any]]
FORMS: Forms = {
    "": lambda block, x: block(x),
    "a module": lambda block, x: func.checkpoint(block)(x),
    "a method": lambda block, x: func.checkpoint(block.forward)(x),
    "a function that captures": lambda block, x: func.checkpoint(lambda x: block(x))(x),
    "trees": lambda block, x: func.checkpoint(_in_trees)({"block": block}, x=(x, 2))["y"],
}
"""Ways to call a block; the first is no checkpoint."""
CHECKPOINTS = [*[*FORMS][1:], "the variable of a loop"]


def _in_trees(modules: Any, *, x: tuple[Tensor, int]) -> Any:
    return {"y": modules["block"](x[0]), "two": x[1]}


class Block(Module):
    """Dropout between two layers."""

    first: nn.Linear
    second: nn.Linear
    dropout: nn.Dropout

    def forward(self, x: Tensor) -> Any:
        return x + self.second(self.dropout(torch.tanh(self.first(x))))


class Net(Module):
    """Blocks, called plainly or in one of the forms."""

    blocks: tuple[Block, ...]
    form: str = ""

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            if self.form == "the variable of a loop":
                x = func.checkpoint(lambda x: block(x))(x)  # noqa: B023  # that is the point
            else:
                x = FORMS[self.form](block, x)
        return x


def net(form: str = "", width: int = 4, count: int = 3) -> Net:
    blocks = [
        Block(nn.Linear(4, width), nn.Linear(width, 4), nn.Dropout(0.3)) for _ in range(count)
    ]
    return Net(tuple(blocks), form).initialize(0).train(random.key(5))


def loss(module: Any, x: Tensor) -> Any:
    return module(x).square().mean()


def slope(module: Any, x: Tensor) -> Any:
    return func.grad(loss, argnums=1)(module, x).square().sum()


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "grad": lambda net: func.grad(loss)(net, X),
    "vjp": lambda net: func.vjp(lambda net, x: net(x), net, X)[1](X),
    "vmap of grad": lambda net: func.vmap(func.grad(loss), (None, 0))(net, X),
    "grad of vmap": lambda net: func.grad(lambda net: func.vmap(lambda x: loss(net, x))(X).sum())(
        net
    ),
    "per_sample_grad": lambda net: func.per_sample_grad(loss)(net, X),
    "ensemble_grad": lambda net: func.ensemble_grad(loss)(tree.stack([net, net]).eval(), X),
    "grad of grad": lambda net: func.grad(slope)(net, X),
    "vmap of grad of grad": lambda net: func.vmap(func.grad(slope), (None, 0))(net, X),
    "grad of vmap of grad": lambda net: func.grad(
        lambda net: func.vmap(lambda x: slope(net, x))(X).sum()
    )(net),
    "torch.func": lambda net: torch.func.grad(slope)(net.eval(), X),
    "jacrev": lambda net: func.jacrev(lambda net: net(X).sum(0))(net),
    "hessian": lambda net: func.hessian(lambda x: loss(net, x))(X[:2]),
    "jvp": lambda net: func.jvp(lambda x: net(x), (X,), (X,)),
    "jvp of grad": lambda net: func.jvp(lambda x: func.grad(loss)(net, x), (X,), (X,)),
    "grad of jvp": lambda net: func.grad(
        lambda net: func.jvp(lambda x: net(x), (X,), (X,))[1].square().sum()
    )(net),
    "jacfwd": lambda net: func.jacfwd(lambda x: net(x).sum(0))(X),
}


@pytest.mark.parametrize("form", CHECKPOINTS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_derivatives_are_those_of_the_function(transform: str, form: str) -> None:
    expected = TRANSFORMS[transform](net())
    found = TRANSFORMS[transform](net(form))
    for one, other in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


counts: list[int] = []


class Around(Module):
    """A module whose inner one is checkpointed."""

    inner: Module

    def forward(self, x: Tensor) -> Any:
        return func.checkpoint(self.inner)(x)


class Emitting(Module):
    """Emits, names an intermediate result, and notes that it is called."""

    linear: nn.Linear
    calls: Buffer

    def forward(self, x: Tensor) -> Any:
        counts.append(1)
        self.emit(calls=self.calls + 1, merge="last")
        h = torch.tanh(self.linear(x))
        self.sow(h=h)
        return h


def counting() -> Any:
    return Emitting(nn.Linear(4, 4), torch.zeros(())).initialize(0)


CALLS: dict[str, tuple[int, Callable[..., Any]]] = {
    "grad": (2, lambda module: func.grad(loss)(module, X)),
    "grad of vmap": (
        2,
        lambda module: func.grad(lambda m: func.vmap(lambda m, x: m(x), (None, 0))(m, X).sum())(
            module
        ),
    ),
    "jvp": (1, lambda module: func.jvp(lambda m: m(X).sum(), (module,), (module,))[1]),
    "grad of grad": (3, lambda module: func.grad(slope)(module, X)),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_runs_again_once_for_each_derivative_and_emits_once(name: str) -> None:
    times, call = CALLS[name]
    module = counting()
    counts.clear()
    expected, plain = effects.collect(call)(module)
    assert len(counts) == 1
    counts.clear()
    found, after = effects.collect(call)(Around(module))
    assert len(counts) == times
    assert after.inner.calls == plain.calls
    for one, other in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(one, other)


def test_what_is_sown_is_part_of_the_graph() -> None:
    def through(module: Any, x: Tensor) -> Any:
        (_, _), found = effects.capture(effects.collect(loss))(module, x)
        return sum([h.square().sum() for h in found.values() if isinstance(h, Tensor)])

    module = counting()
    for transform in (func.grad(through), func.vmap(func.grad(through), (None, 0))):
        expected: Any = transform(module, X)
        found: Any = transform(Around(module), X)
        torch.testing.assert_close(found.inner.linear.weight, expected.linear.weight)


DRAWS: dict[str, Callable[[Any], Any]] = {
    "grad": lambda fn: func.grad(lambda w: fn(w, X).sum())(torch.ones(4)),
    "vmap, the same": lambda fn: func.vmap(
        func.grad(lambda w, x: fn(w, x).sum()), (None, 0), randomness="same"
    )(torch.ones(4), X),
    "vmap, different": lambda fn: func.vmap(
        func.grad(lambda w, x: fn(w, x).sum()), (None, 0), randomness="different"
    )(torch.ones(4), X),
    "grad of vmap": lambda fn: func.grad(
        lambda w: func.vmap(lambda x: fn(w, x).sum(), randomness="different")(X).sum()
    )(torch.ones(4)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_torchs_own_generator_is_as_it_was(name: str) -> None:
    def noisy(w: Tensor, x: Tensor) -> Any:
        return torch.nn.functional.dropout(torch.tanh(w * x), 0.5).square()

    torch.manual_seed(3)
    expected, after = DRAWS[name](noisy), torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(DRAWS[name](func.checkpoint(noisy)), expected)
    assert torch.equal(torch.rand(2), after)


def test_autocast_is_as_it_was() -> None:
    def half(w: Tensor, x: Tensor) -> Tensor:
        return (x @ w).float()

    def through(fn: Any, w: Tensor, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            y = fn(w, x)
        return y.square().sum()

    w = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    for around in (func.grad, lambda f: func.vmap(func.grad(f), (None, 0))):
        expected = around(lambda w, x: through(half, w, x))(w, X)
        found = around(lambda w, x: through(func.checkpoint(half), w, x))(w, X)
        assert torch.equal(found, expected)


def test_what_it_captures_gets_its_gradients() -> None:
    w = torch.arange(4.0, requires_grad=True)

    def captured(x: Tensor) -> Any:
        return func.checkpoint(lambda x: (w * w * x).sum())(x)

    for total in (captured(X), func.vmap(captured)(X).sum()):
        (found,) = torch.autograd.grad(total, w)
        torch.testing.assert_close(found, 2 * w.detach() * X.sum(0))
    # As an argument of a transform around, and mapped.
    found = func.vmap(lambda w: func.grad(lambda v: func.checkpoint(lambda x: w * v * x)(v).sum())(
        torch.ones(4)))(torch.eye(4))  # fmt: skip
    torch.testing.assert_close(found, 2 * torch.eye(4))
    assert not w.grad


# -- memory ---------------------------------------------------------------------------------------


def wide(form: str) -> Any:
    return net(form, 512, 12).eval()


MEMORY: dict[str, Callable[[Any, Tensor], Any]] = {
    "grad": lambda net, x: func.grad(loss, argnums=1)(net, x),
    "torch.func.grad": lambda net, x: torch.func.grad(loss, argnums=1)(net, x),
    "vmap of grad": lambda net, x: func.vmap(func.grad(loss, argnums=1), (None, 0))(net, x),
    "grad of vmap": lambda net, x: func.grad(lambda x: func.vmap(lambda x: loss(net, x))(x).sum())(
        x
    ),
}


@pytest.mark.parametrize("name", MEMORY)
def test_it_keeps_the_inputs_of_the_blocks(name: str) -> None:
    """Of twelve blocks one at a time has its activations, which are wider than what it is given."""
    x = torch.ones(64, 4)
    plain, less = [peak(partial(MEMORY[name], wide(form), x)) for form in ("", "a module")]
    assert less < 0.4 * plain


def test_it_keeps_what_torch_keeps() -> None:
    x = torch.ones(256, 4)
    ours = wide("a module")
    theirs = torch.nn.ModuleList(
        [
            torch.nn.Sequential(torch.nn.Linear(4, 512), torch.nn.Tanh(), torch.nn.Linear(512, 4))
            for _ in range(12)
        ]
    )

    def reference() -> Any:
        y = x
        for block in theirs:
            y = y + torch_checkpoint(block, y, use_reentrant=False)
        return torch.autograd.grad(y.square().mean(), list(theirs.parameters()))

    assert peak(lambda: func.grad(loss)(ours, x)) <= 1.1 * peak(reference)


# -- policies -------------------------------------------------------------------------------------

aten = torch.ops.aten


# -- compiled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", [make_compiled, torch.compile])
def test_compiled(fresh_dynamo: None, compiler: Any) -> None:
    """Each block in another form."""

    def both(net: Any, x: Tensor) -> Any:
        with random.reuse():
            return func.grad(slope)(net, x), func.per_sample_grad(loss)(net, x)

    forms = tuple([net(form, count=1) for form in CHECKPOINTS[1:]])
    several = nn.Sequential(*forms).train(random.key(5))
    plain = nn.Sequential(*[one.replace(form="") for one in forms]).train(random.key(5))
    found = compiler(both, backend=eager_and_aot, fullgraph=True)(several, X)
    for one, other in zip(tree.leaves(found), tree.leaves(both(plain, X)), strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_on_the_default_backend_memory_falls(fresh_dynamo: None) -> None:
    x = torch.ones(64, 4)
    step = parallax.compile(func.grad(loss))
    found = step(wide("a module"), x)
    assert_close_trees(found.blocks, func.grad(loss)(wide(""), x).blocks)
    less = peak(lambda: step(wide("a module"), x))
    assert less < 0.7 * peak(lambda: func.grad(loss)(wide(""), x))


def test_equal_blocks_are_compiled_once(fresh_dynamo: None) -> None:
    """The number of operators that a backend compiles does not depend on the number of blocks."""

    def operators(count: int) -> int:
        found = 0

        def backend(graph: Any, inputs: Any) -> Any:
            nonlocal found
            modules = {id(m): m for m in graph.modules() if isinstance(m, torch.fx.GraphModule)}
            names = [str(node.target) for m in modules.values() for node in m.graph.nodes]
            found = sum(["tanh" in name for name in names])
            return graph

        step: Any = parallax.compile(func.grad(loss), backend=aot_autograd(fw_compiler=backend))
        model = net("a module", count=count).eval()
        assert_close_trees(step(model, X).blocks, func.grad(loss)(model, X).blocks)
        return found

    assert operators(3) == operators(5) > 0


def test_a_gradient_outside_of_compiled_code(fresh_dynamo: None) -> None:
    call = parallax.compile(loss, backend=eager_and_aot)
    assert_close_trees(func.grad(call)(net("a module"), X).blocks, func.grad(loss)(net(), X).blocks)


def test_compiled_effects_come_once(fresh_dynamo: None) -> None:
    module = counting()
    step: Any = parallax.compile(effects.collect(func.grad(loss)), backend=eager_and_aot)
    found, after = step(Around(module), X)
    assert after.inner.calls == 1
    expected = effects.collect(func.grad(loss))(module, X)[0]
    torch.testing.assert_close(found.inner.linear.weight, expected.linear.weight)


def test_what_draws_from_torchs_generator_is_not_drawn_again(fresh_dynamo: None) -> None:
    """The gradient of ``mask * w * x`` tells the mask, and the value does."""

    def noisy(w: Tensor, x: Tensor) -> Any:
        y = func.checkpoint(lambda w, x: torch.nn.functional.dropout(w * x, 0.5))(w, x)
        return y.sum(), y

    step: Any = parallax.compile(func.grad(noisy, has_aux=True), backend="aot_eager")
    w = torch.full((200,), 3.0)
    grad, y = step(w, torch.ones(200))
    torch.testing.assert_close(grad * w, y)


# -- bad input ------------------------------------------------------------------------------------


def test_arguments_that_make_no_sense() -> None:
    wrong: Any = 3
    with pytest.raises(TypeError, match=r"func.checkpoint: func must be a function, got 3"):
        func.checkpoint(wrong)
    with pytest.raises(TypeError, match=r"policy must be a list of operators or a function, got 3"):
        func.checkpoint(torch.sin, policy=wrong)


def test_what_cannot_be_followed_is_refused() -> None:
    w = torch.ones(4, requires_grad=True)

    def hidden(x: Tensor) -> Any:
        return func.checkpoint(lambda x: func.grad(lambda w: (w * w * x).sum())(w).sum())(x)

    assert torch.autograd.grad(hidden(X), w)[0] is not None
    with pytest.raises(RuntimeError, match=r"captures is differentiated.*func.checkpoint\(fn\)\("):
        func.vmap(hidden)(X)
    inner = counting()

    class Capturing(Module):
        inner: Module

        def forward(self, x: Tensor) -> Any:
            return func.checkpoint(lambda x: self.inner(x))(x)

    run = func.vmap(effects.capture(effects.collect(loss)), (None, 0))
    with pytest.raises(effects.EffectError, match=r"Pass it as an argument: func.checkpoint\(fn\)"):
        run(Capturing(inner), X)


def product(x: Tensor, weight: Tensor) -> Tensor:
    return (x @ weight).sin()


def under_autocast(call: Any, x: Tensor) -> list[Any]:
    """Gradients of calls within autocast, without it within it, and within it once more."""

    def loss(x: Tensor, on: bool = True) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            return call(x, x.mT).float().sum()

    found = [func.grad(loss)(x), func.grad(lambda x: loss(x) + call(x, x).sum())(x)]
    with torch.autocast("cpu", torch.bfloat16):
        return [*found, func.grad(loss)(x), func.grad(lambda x: loss(x, on=False))(x)]


def test_compiled_autocast_is_that_of_the_call() -> None:
    x = torch.randn(4, 4)
    found: Any = parallax.compile(under_autocast, backend="aot_eager")(func.checkpoint(product), x)
    for one, other in zip(found, under_autocast(product, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def with_conjugates(call: Any, z: Tensor) -> Any:
    def loss(z: Tensor) -> Any:
        return (call(z, z) + 2 * call(z, z.conj()) + 3 * call(z.conj(), z)).abs().sum() + call(
            z.real, z.conj().imag
        ).sum()

    return loss(z), func.grad(loss)(z)


def test_compiled_operands_may_be_lazily_conjugated() -> None:
    z = torch.randn(4, 4, dtype=torch.complex128)
    found = parallax.compile(with_conjugates, backend="aot_eager")(func.checkpoint(product), z)
    torch.testing.assert_close(found, with_conjugates(product, z))
