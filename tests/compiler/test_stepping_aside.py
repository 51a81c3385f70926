"""Where ``parallax.compile`` steps aside: transforms, other traces, breaks, stances."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import parallax
from parallax import func, tree
from tests.comparing import assert_close_trees
from tests.compiler.programs import net
from tests.compiling import graphs, make_compiled
from tests.corpus import SIZE, Scale

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_under_a_transform_the_function_itself_runs() -> None:
    compiled = make_compiled(lambda model, x: model(x).square().sum(), backend="eager")
    model, x = net(), torch.randn(5, SIZE)
    got = torch.vmap(torch.func.grad(compiled), in_dims=(None, 0))(model, x)
    expected = torch.vmap(
        torch.func.grad(lambda model, x: model(x).square().sum()), in_dims=(None, 0)
    )(model, x)
    assert_close_trees(got, expected)
    assert graphs() == 0


def test_within_another_trace_it_is_inlined() -> None:
    inner = make_compiled(lambda model, x: model(x), backend="eager")
    outer = make_compiled(lambda model, x: inner(model, x) + 1, backend="eager")
    model, x = net(), torch.randn(SIZE)
    torch.testing.assert_close(outer(model, x), model(x) + 1)
    torch.testing.assert_close(torch.compile(outer, backend="eager")(model, x), model(x) + 1)
    assert graphs() == 2


def test_forward_mode_goes_through() -> None:
    compiled = make_compiled(lambda x: x.sin(), backend="eager")
    x = torch.randn(3)
    compiled(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones(3))
        tangent = torch.autograd.forward_ad.unpack_dual(compiled(dual)).tangent
    torch.testing.assert_close(tangent, x.cos())


def test_make_fx_and_fake_tensors_see_the_function() -> None:
    compiled = make_compiled(lambda scale, x: scale(x), backend="eager")
    scale, x = Scale(torch.ones(2)), torch.ones(2)
    compiled(scale, x)
    traced = make_fx(compiled)(scale, x)
    assert torch.ops.aten.mul.Tensor in {node.target for node in traced.graph.nodes}


def test_graph_breaks_are_allowed_on_request() -> None:
    def fn(model: Any, x: Tensor) -> Any:
        y = model(x)
        torch._dynamo.graph_break()
        return tree.map(lambda leaf: 2 * leaf, model), y + 1

    model, x = net(), torch.randn(SIZE)
    compiled = make_compiled(fn, backend="eager", fullgraph=False)
    for _ in range(3):
        doubled, y = compiled(model, x)
        assert_close_trees(doubled, tree.map(lambda leaf: 2 * leaf, model))
        torch.testing.assert_close(y, model(x) + 1)
    with pytest.raises(Unsupported):
        make_compiled(fn, backend="eager")(model, x)


@pytest.mark.parametrize("stance", ["force_eager", "eager_on_recompile"])
def test_torchs_stances_are_obeyed(stance: Any) -> None:
    compiled = make_compiled(lambda scale, x: (scale, scale(x)), backend="eager")
    scale, x = Scale(torch.full((2,), 3.0)), torch.ones(2)
    with torch.compiler.set_stance(stance):
        for _ in range(2):
            out, y = compiled(scale, x)
            assert_close_trees((out, y), (scale, scale(x)))
    assert graphs() == 0
    assert_close_trees(compiled(scale, x)[1], scale(x))
    assert graphs() == 1


def test_a_failed_trace_of_a_gradient_leaves_checkpoints_allowed() -> None:
    def loss(x: Any) -> Any:
        return torch.ops.aten.there_is_none(x)

    x = torch.ones(2)
    for _ in range(2):
        with pytest.raises(AttributeError, match="there_is_none"):
            parallax.compile(func.grad(loss), backend="eager")(x)
        leaf = x.clone().requires_grad_()
        checkpoint(torch.square, leaf, use_reentrant=False).sum().backward()
        torch.testing.assert_close(leaf.grad, 2 * x)


def test_what_a_user_forbids_stays_forbidden() -> None:
    def loss(x: Any) -> Any:
        return torch.ops.aten.there_is_none(x)

    x = torch.ones(2, requires_grad=True)
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        with pytest.raises(AttributeError, match="there_is_none"):
            parallax.compile(loss, backend="eager")(x)
        with pytest.raises(RuntimeError, match="not here"):
            checkpoint(torch.square, x, use_reentrant=False)
