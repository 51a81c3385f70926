"""``func.checkpoint(loss, "blocks.*")``: parts of a model are checkpointed, and the model stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, bridge, effects, func, nn, random, tree
from tests.comparing import assert_close_trees
from tests.compiling import eager_and_aot, make_compiled
from tests.func.test_checkpoint import Around, Emitting, X, counting, counts, loss, net, wide
from tests.optim.test_memory import peak

checkpointed: Any = func.checkpoint(loss, "blocks.*")


def slope(fn: Any) -> Any:
    return lambda net, x: func.grad(fn, argnums=1)(net, x).square().sum()


TRANSFORMS: dict[str, Any] = {
    "grad": func.grad,
    "vmap of grad": lambda fn: func.vmap(func.grad(fn), (None, 0)),
    "per_sample_grad": func.per_sample_grad,
    "grad of grad": lambda fn: func.grad(slope(fn)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradients_are_trees_of_the_model(name: str) -> None:
    model = net()
    with random.reuse():
        found, expected = [TRANSFORMS[name](fn)(model, X) for fn in (checkpointed, loss)]
    assert_close_trees(found, expected)


@pytest.mark.parametrize("compiler", [make_compiled, torch.compile])
def test_compiled(fresh_dynamo: None, compiler: Any) -> None:
    model = net()
    step = compiler(
        lambda net, x: func.grad(checkpointed)(net, x), backend=eager_and_aot, fullgraph=True
    )
    found = step(model, X)
    with random.reuse():
        assert_close_trees(found, func.grad(loss)(model, X))


@pytest.mark.parametrize("name", ["grad", "vmap of grad"])
def test_less_is_kept(name: str) -> None:
    model, x = wide(""), torch.ones(64, 4)

    def most(fn: Any) -> int:
        grad = func.grad(fn, argnums=1)
        return peak(lambda: (grad if name == "grad" else func.vmap(grad, (None, 0)))(model, x))

    assert most(checkpointed) < 0.4 * most(loss)


def test_classes_are_meant_wherever_they_stand_and_effects_come_once() -> None:
    def of_inner(module: Any, x: Tensor) -> Any:
        return module.inner(x).sum()

    parts: Any = func.checkpoint(of_inner, Emitting)

    def of_each(module: Any, x: Tensor) -> Any:
        return func.vmap(parts, (None, 0))(module, x).sum()

    for fn in (parts, of_each):
        counts.clear()
        around: Any = Around(counting())
        _, after = effects.collect(func.grad(fn))(around, X)
        assert len(counts) == 2 and after.inner.calls == 1


def test_what_is_captured_and_perturbed_is_the_same() -> None:
    model = net().eval()

    def through(fn: Any) -> Any:
        captured = effects.capture(fn, "blocks.1.first")
        return func.grad(lambda m, x: captured(m, x)[1]["blocks.1.first"].square().sum())

    def perturbed(fn: Any) -> Any:
        zeros = {"blocks.1": torch.zeros(4)}
        return lambda m, x: func.grad(effects.perturb(fn), argnums=1)(m, zeros, x)["blocks.1"]

    for of in (through, perturbed):
        found, expected = [func.vmap(of(fn), (None, 0))(model, X) for fn in (checkpointed, loss)]
        for one, other in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            torch.testing.assert_close(one, other)


def test_a_captured_output_without_a_graph_is_refused() -> None:
    class Capturing(Module):
        inner: nn.Linear

        def forward(self, x: Tensor) -> Any:
            return func.checkpoint(lambda x: self.inner(x))(x)

    model = Capturing(nn.Linear(4, 4)).initialize(0)
    run: Any = effects.capture(loss, "inner")
    assert run(model, X)[1]["inner"].grad_fn is None  # nothing is differentiated
    with pytest.raises(effects.EffectError, match=r"Pass it as an argument: func.checkpoint"):
        func.vmap(func.grad(lambda m, x: run(m, x)[1]["inner"].sum()), (None, 0))(model, X)


def test_the_blocks_of_a_stack() -> None:
    class Deep(Module):
        stack: nn.Stack

        def forward(self, x: Tensor) -> Any:
            return self.stack(x)

    blocks = nn.Stack(nn.MLP([4, 8, 4]), 3)
    expected = func.vmap(func.grad(loss), (None, 0))(Deep(blocks).initialize(0), X)
    parts: Any = func.checkpoint(loss, "stack.block")
    found = func.vmap(func.grad(parts), (None, 0))(Deep(blocks).initialize(0), X)
    assert_close_trees(found, expected)
    whole = Deep(nn.Stack(nn.MLP([4, 8, 4]), 3, checkpoint=True)).initialize(0).train(0)
    found = func.vmap(func.grad(loss), (None, 0))(whole, X)
    torch.testing.assert_close(tree.leaves(found), tree.leaves(expected))


def test_what_selects_nothing_is_refused() -> None:
    wrong: Any = 3
    with pytest.raises(LookupError, match=r"no module of Net is at 'block.\*'. Near misses"):
        func.checkpoint(loss, "block.*")(net(), X)
    with pytest.raises(TypeError, match=r"the first argument must be a module, got 3"):
        func.checkpoint(loss, "blocks.*")(wrong, X)
    with pytest.raises(TypeError, match=r"cannot select modules by 3"):
        func.checkpoint(loss, wrong)(net(), X)
    with pytest.raises(effects.EffectError, match=r"selects 1 module of Net, and none was called"):
        func.checkpoint(lambda net, x: x.sum(), "blocks.0")(net(), X)
    lifted = nn.Sequential(bridge.lift(torch.nn.Linear(4, 4)))
    with pytest.raises(TypeError, match=r"'layers.0' is a lifted nn.Module"):
        func.checkpoint(loss, "layers.0")(lifted, X)


def test_a_policy_is_for_each_part(fresh_dynamo: None) -> None:
    kept: Any = func.checkpoint(loss, "blocks.*", policy=[torch.ops.aten.addmm.default])
    model = net().eval()
    assert_close_trees(func.grad(kept)(model, X), func.grad(loss)(model, X))
    compiled = func.grad(make_compiled(kept, backend=eager_and_aot))
    assert_close_trees(compiled(model, X), func.grad(loss)(model, X))
