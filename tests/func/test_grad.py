"""``func.grad`` and ``func.grad_and_value``: values, structure, arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import Module, Parameter, func, tree
from tests.corpus import TWINS, Case, Scale, example_input
from tests.func.nets import Net, Twice, X, loss, net
from tests.func.programs import pair


def by_backward(model: Any, fn: Callable[[Any], Tensor] = loss) -> dict[str, Tensor]:
    """The gradient as autograd leaves it on leaves of its own, by path."""
    leaves, spec = tree.flatten(model)
    fresh = [
        leaf.detach().clone().requires_grad_() if leaf is not None and leaf.is_floating_point()
        else leaf for leaf in leaves
    ]  # fmt: skip
    copy = tree.unflatten(spec, fresh)
    fn(copy).backward()
    return {
        path: leaf.grad for path, leaf in tree.named_leaves(copy).items() if leaf.grad is not None
    }


def test_gradient_is_a_module_with_holes_where_nothing_is_trained() -> None:
    grads, value = func.grad_and_value(loss)(net())
    assert type(grads) is Net
    assert [path for path, _ in tree.named_leaves(grads).items()] == ["weight", "bias"]
    expected = by_backward(net())
    torch.testing.assert_close(grads.weight, expected["weight"])
    torch.testing.assert_close(grads.bias, expected["bias"])
    torch.testing.assert_close(value, loss(net()))


def test_missing_bias_stays_a_hole() -> None:
    # https://github.com/pytorch/pytorch/issues/175521
    assert func.grad(loss)(net(bias=False)).bias is None


def test_frozen_leaves_are_holes_and_the_rest_is_unchanged() -> None:
    # https://github.com/pytorch/functorch/issues/1101
    model = Twice(net(0), net(1))
    frozen = tree.select(model, "first.weight").freeze()
    grads: Any = func.grad(loss)(frozen)
    assert grads.first.weight is None
    torch.testing.assert_close(grads.second.weight, func.grad(loss)(model).second.weight)


def test_structure_modes_and_constants_of_the_gradient_are_those_of_the_module() -> None:
    model = Twice(net(0), net(1)).eval()
    grads = func.grad(loss)(model)
    assert grads.mode == "eval"
    assert tree.map(lambda p, g: p - g, model, grads).mode == "eval"


@pytest.mark.parametrize("case", [c for c in TWINS if tree.leaves(c.make())], ids=str)
def test_equals_the_gradient_of_the_torch_twin(case: Case) -> None:
    module, x = case.make(), example_input()
    twin = case.twin(module)
    twin(x).pow(2).sum().backward()
    grads = tree.named_leaves(func.grad(lambda m: m(x).pow(2).sum())(module))
    expected = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    assert set(expected) <= set(grads)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected.get(name, torch.zeros_like(grad)))


def test_tied_weights_get_the_summed_gradient_in_both_places() -> None:
    # https://github.com/pytorch/pytorch/issues/86708
    shared: Any = net()
    model = Twice(shared, shared)
    linear = nn.Linear(3, 3).double()
    linear.weight.data, linear.bias.data = shared.weight.T.clone(), shared.bias.clone()

    def twin(x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.tanh(F.linear(x, linear.weight * shared.scale, linear.bias))
        return x

    loss(twin).backward()
    grads = func.grad(loss)(model)
    assert grads.first.weight is grads.second.weight
    assert linear.weight.grad is not None
    torch.testing.assert_close(grads.first.weight, linear.weight.grad.T)
    stepped = model.update(lambda p, g: p - g, grads)
    assert stepped.first.weight is stepped.second.weight


def test_argnums_aux_and_pytrees_come_back_in_torchs_order() -> None:
    def fn(a: Any, b: Tensor, c: Any, *, k: float) -> tuple[Tensor, Any]:
        value = (a["net"](b) ** 2).sum() * k + (c[0] * c[1]).sum()
        return value, {"b": b, "n": 3, "none": None, "net": a["net"]}

    a, c = {"net": net()}, (torch.ones(3), torch.full((3,), 2.0))
    (ga, gc_), (value, aux) = func.grad_and_value(fn, argnums=(0, -1), has_aux=True)(a, X, c, k=2.0)
    assert set(ga) == {"net"} and isinstance(gc_, tuple)
    torch.testing.assert_close(gc_[0], c[1])
    torch.testing.assert_close(
        ga["net"].weight, 2 * by_backward(net(), lambda m: (m(X) ** 2).sum())["weight"]
    )
    assert aux["n"] == 3 and aux["none"] is None and aux["b"] is X
    assert aux["net"].weight is a["net"].weight
    grads, again = func.grad(fn, argnums=1, has_aux=True)(a, X, c, k=2.0)
    assert grads.shape == X.shape and again["n"] == 3
    assert func.grad_and_value(fn, has_aux=True)(a, X, c, k=2.0)[1][0] == value


def test_independent_leaves_get_zeros_not_holes() -> None:
    grads = func.grad(lambda m: m.weight.sum())(net())
    torch.testing.assert_close(grads.bias, torch.zeros(3, dtype=torch.float64))
    nothing = func.grad(lambda m: torch.ones((), dtype=torch.float64))(net())
    assert all(not leaf.any() for leaf in tree.leaves(nothing))


def test_the_name_and_doc_of_the_function_stay() -> None:
    def named(x: Tensor) -> Tensor:
        """Said."""
        return x

    assert func.grad(named).__name__ == "named" and func.grad(named).__doc__ == "Said."
    model = Twice(net(), net(1))
    assert not hasattr(func.vmap(model), "first")  # a module's fields are not the wrapper's


def test_a_hole_of_pair_is_no_leaf() -> None:
    point = pair(torch.ones(3), torch.ones(3))
    grads: Any = func.grad(lambda p: (p.b * p.again).sum())(point)
    assert grads.b is grads.again and grads.shift is None and grads.count is None
    torch.testing.assert_close(grads.b, torch.full((3,), 2.0))


def test_a_function_that_goes_backward_itself_adds_nothing_to_the_gradient() -> None:
    def loss(scale: Scale) -> Tensor:
        inner = (scale.by * 3.0).sum()
        inner.backward(retain_graph=True)
        return (scale.by**2).sum()

    grads = func.grad(loss)(Scale(torch.tensor([1.0, 2.0])))
    assert torch.equal(grads.by, torch.tensor([2.0, 4.0]))


class Pair(Module):
    one: Parameter
    two: Parameter


def test_no_two_gradients_are_one_tensor() -> None:
    def loss(pair: Pair) -> Tensor:
        return (pair.one + pair.two).sum()

    grads = func.grad(loss)(Pair(torch.ones(3), torch.ones(3)))
    grads.one.add_(1.0)
    assert torch.equal(grads.two, torch.ones(3))
