"""``torch.func``, as it is, on modules, as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.func import jvp as _jvp
from torch.func import vjp as _vjp

from parallax import Module, Parameter, tree
from tests.corpus import FLOAT, SIZE, TIED, TWINS, Case, Dense, TiedParameter, example_input

REAL_TWINS = [case for case in TWINS if case.real and case.name != "empty"]
Leaves = dict[str, Tensor]
INPUT = example_input()
jvp: Any = _jvp  # annotated as if they always returned an auxiliary value
vjp: Any = _vjp


def loss_of(module: Any) -> Tensor:
    return torch.cos(module(INPUT)).sum()


def twin_loss(case: Case, module: Any) -> tuple[Callable[[Leaves], Tensor], Leaves]:
    """The same loss as a function of the twin's parameters, a tied one given once."""
    twin = case.twin(module)
    parameters = {name: p.detach() for name, p in twin.named_parameters()}

    def loss(leaves: Leaves) -> Tensor:
        return torch.cos(functional_call(twin, leaves, (INPUT,))).sum()

    return loss, parameters


def assert_same(module: Any, leaves: Leaves) -> None:
    torch.testing.assert_close(tree.named_leaves(module), leaves)


def direction(leaves: Leaves, seed: int) -> Leaves:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(leaf.shape, generator=generator) for name, leaf in leaves.items()}


def like(module: Any, leaves: Leaves) -> Any:
    """A module of the same structure that holds ``leaves``."""
    given = iter(leaves.values())
    return tree.map(lambda _: next(given), module)


# -- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FLOAT, ids=str)
def test_grad_equals_autograd_on_the_leaves(case: Case) -> None:
    module = case.make()
    grads = torch.func.grad(loss_of)(module)
    leaves = tree.named_leaves(module)
    for leaf in leaves.values():
        leaf.requires_grad_()
    expected = (
        torch.autograd.grad(
            loss_of(module) + 0 * sum(leaf.sum() for leaf in leaves.values()), list(leaves.values())
        )
        if leaves
        else ()
    )
    assert type(grads) is type(module)
    assert_same(grads, dict(zip(leaves, expected, strict=True)))


@pytest.mark.parametrize("case", REAL_TWINS, ids=str)
def test_grad_equals_the_functional_call_of_the_twin(case: Case) -> None:
    module = case.make()
    loss, parameters = twin_loss(case, module)
    assert_same(torch.func.grad(loss_of)(module), torch.func.grad(loss)(parameters))


@pytest.mark.parametrize("case", REAL_TWINS, ids=str)
def test_grad_and_value(case: Case) -> None:
    module = case.make()
    loss, parameters = twin_loss(case, module)
    grads, value = torch.func.grad_and_value(loss_of)(module)
    expected, expected_value = torch.func.grad_and_value(loss)(parameters)
    assert_same(grads, expected)
    torch.testing.assert_close(value, expected_value)


@pytest.mark.parametrize("case", TIED, ids=str)
def test_the_gradient_of_a_tied_module_is_tied(case: Case) -> None:
    grads = torch.func.grad(loss_of)(case.make())
    if case.name == "tied_parameter":
        assert grads.encoder.weight is grads.decoder.weight
    else:
        assert grads.one.weight is grads.other.weight is grads.several[0].weight
        assert grads.one.bias is grads.other.bias
        assert grads.apart.weight is not grads.one.weight


@pytest.mark.parametrize("case", REAL_TWINS, ids=str)
def test_vjp(case: Case) -> None:
    module = case.make()
    loss, parameters = twin_loss(case, module)
    value, pull = vjp(loss_of, module)
    expected, expected_pull = vjp(loss, parameters)
    torch.testing.assert_close(value, expected)
    assert_same(pull(torch.tensor(2.0))[0], expected_pull(torch.tensor(2.0))[0])


@pytest.mark.parametrize("case", REAL_TWINS, ids=str)
def test_jvp_takes_a_module_as_tangent(case: Case) -> None:
    module = case.make()
    loss, parameters = twin_loss(case, module)
    along = direction(parameters, 1)
    got = jvp(loss_of, (module,), (like(module, along),))
    torch.testing.assert_close(got, jvp(loss, (parameters,), (along,)))


# torch.func.linearize warns so of every closed-over tensor, with plain tensors too.
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@pytest.mark.parametrize("case", REAL_TWINS, ids=str)
def test_linearize(case: Case) -> None:
    module = case.make()
    loss, parameters = twin_loss(case, module)
    along = direction(parameters, 2)
    value, push = torch.func.linearize(loss_of, module)
    expected, expected_push = torch.func.linearize(loss, parameters)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(push(like(module, along)), expected_push(along))


@pytest.mark.parametrize("jacobian", [torch.func.jacrev, torch.func.jacfwd])
@pytest.mark.parametrize("case", REAL_TWINS, ids=str)
def test_jacobians(case: Case, jacobian: Callable[..., Any]) -> None:
    module, x = case.make(), example_input()
    twin = case.twin(module)
    parameters = {name: p.detach() for name, p in twin.named_parameters()}
    got = jacobian(lambda m: m(x))(module)
    assert_same(got, jacobian(lambda p: functional_call(twin, p, (x,)))(parameters))


@pytest.mark.parametrize("name", ["dense", "no_biases", "tied_parameter", "tied_module"])
def test_the_hessian_is_a_module_of_modules(name: str) -> None:
    case = next(case for case in TWINS if case.name == name)
    module = case.make()
    loss, parameters = twin_loss(case, module)
    got = torch.func.hessian(loss_of)(module)
    expected = torch.func.hessian(loss)(parameters)
    rows = tree.named_leaves(got)  # modules in the places of leaves
    for path, row in expected.items():
        assert_same(_at(got, path), row)
    assert rows


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    return module


@pytest.mark.parametrize("case", TIED, ids=str)
def test_the_second_derivative_of_a_tied_module_is_exact(case: Case) -> None:
    module = case.make()
    loss, parameters = twin_loss(case, module)

    def penalty(module: Any) -> Any:
        grads = torch.func.grad(loss_of)(module)
        return sum(grad.pow(2).sum() for grad in tree.leaves(grads))

    def expected_penalty(leaves: Leaves) -> Any:
        return sum(grad.pow(2).sum() for grad in torch.func.grad(loss)(leaves).values())

    got = torch.func.grad(penalty)(module)
    assert_same(got, torch.func.grad(expected_penalty)(parameters))


def test_forward_over_reverse_is_a_hessian_vector_product() -> None:
    case = next(case for case in TWINS if case.name == "tied_parameter")
    module = case.make()
    loss, parameters = twin_loss(case, module)
    along = direction(parameters, 3)
    _, got = jvp(torch.func.grad(loss_of), (module,), (like(module, along),))
    _, expected = jvp(torch.func.grad(loss), (parameters,), (along,))
    assert_same(got, expected)


def test_three_gradients_deep() -> None:
    class Cube(Module):
        x: Parameter

    def third(fn: Callable[[Any], Tensor]) -> Callable[[Any], Any]:
        first = torch.func.grad(fn)
        second = torch.func.grad(lambda m: first(m).x)
        return torch.func.grad(lambda m: second(m).x)

    assert third(lambda m: m.x**5)(Cube(torch.tensor(2.0))).x == 60 * 2.0**2


def test_argnums_and_has_aux() -> None:
    one, other, x = Dense().initialize(0), Dense().initialize(1), example_input()

    def loss(scale: Tensor, one: Any, other: Any) -> tuple[Tensor, Any]:
        out = one(x) * other(x) * scale
        return out.sum(), (out, one)

    grads, (out, same) = torch.func.grad(loss, argnums=(1, 2), has_aux=True)(
        torch.tensor(3.0), one, other
    )
    torch.testing.assert_close(out, 3 * one(x) * other(x))
    torch.testing.assert_close(grads[0].bias, (3 * other(x)).sum(0))
    torch.testing.assert_close(grads[1].bias, (3 * one(x)).sum(0))
    torch.testing.assert_close(same.weight, one.weight)


def test_gradients_in_a_dict_of_modules() -> None:
    """Modules are leaves of nothing: they nest in any other container."""
    models = {"a": [Dense().initialize(0)], "b": Dense().initialize(1)}
    x = example_input()
    grads = torch.func.grad(lambda m: (m["a"][0](x) + 2 * m["b"](x)).sum())(models)
    torch.testing.assert_close(grads["b"].weight, 2 * grads["a"][0].weight)


def test_the_inputs_are_left_as_they_were() -> None:
    module = TiedParameter().initialize(0)
    before = [(leaf, leaf._version, leaf.clone()) for leaf in tree.leaves(module)]
    torch.func.grad(loss_of)(module)
    torch.func.hessian(loss_of)(module)
    for leaf, version, value in before:
        assert leaf._version == version and not leaf.requires_grad
        assert torch.equal(leaf, value)


# -- vmap -------------------------------------------------------------------------------------


def test_vmap_over_inputs_with_a_module_held_fixed() -> None:
    module, x = TiedParameter().initialize(0), example_input()
    got = torch.vmap(lambda m, x: m(x), in_dims=(None, 0))(module, x)
    torch.testing.assert_close(got, module(x))


@pytest.mark.parametrize("case", REAL_TWINS, ids=str)
def test_per_sample_gradients(case: Case) -> None:
    module, x = case.make(), example_input()
    twin = case.twin(module)
    parameters = {name: p.detach() for name, p in twin.named_parameters()}

    def loss(module: Any, x: Tensor) -> Tensor:
        return torch.cos(module(x)).sum()

    def expected_loss(leaves: Leaves, x: Tensor) -> Tensor:
        return torch.cos(functional_call(twin, leaves, (x,))).sum()

    got = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(module, x)
    expected = torch.vmap(torch.func.grad(expected_loss), in_dims=(None, 0))(parameters, x)
    assert_same(got, expected)
    assert next(iter(expected.values())).shape[0] == len(x)


@pytest.mark.parametrize("case", REAL_TWINS, ids=str)
def test_an_ensemble_of_stacked_modules(case: Case) -> None:
    members = [case.make(seed) for seed in range(3)]
    stacked = tree.map(lambda *leaves: torch.stack(leaves), *members)
    x = example_input()
    got = torch.vmap(lambda m: m(x))(stacked)
    twins: list[nn.Module] = [case.twin(member) for member in members]
    torch.testing.assert_close(got, torch.stack([twin(x).detach() for twin in twins]))


def test_the_gradient_of_an_ensemble() -> None:
    case = next(case for case in TWINS if case.name == "tied_parameter")
    members = [case.make(seed) for seed in range(3)]
    stacked = tree.map(lambda *leaves: torch.stack(leaves), *members)
    got = torch.vmap(torch.func.grad(loss_of))(stacked)
    assert got.encoder.weight is got.decoder.weight
    for k, member in enumerate(members):
        loss, parameters = twin_loss(case, member)
        expected = torch.func.grad(loss)(parameters)
        assert_same(tree.map(lambda leaf, k=k: leaf[k], got), expected)


def test_in_dims_in_the_shape_of_a_module() -> None:
    members: list[Any] = [Dense().initialize(seed) for seed in range(3)]
    weight = torch.stack([member.weight for member in members], dim=1)
    bias = torch.stack([member.bias for member in members], dim=0)
    stacked = members[0].replace(weight=weight, bias=bias)
    dims = tree.unflatten(tree.structure(stacked), [1, 0])
    x = example_input()
    got = torch.vmap(lambda m: m(x), in_dims=(dims,))(stacked)
    torch.testing.assert_close(got, torch.stack([member(x) for member in members]))


def test_out_dims_in_the_shape_of_a_module() -> None:
    module: Any = Dense().initialize(0)
    dims = tree.unflatten(tree.structure(module), [2, 1])
    got = torch.vmap(lambda k: tree.map(lambda leaf: leaf * k, module), out_dims=dims)(
        torch.arange(3.0)
    )
    assert got.weight.shape == (SIZE, SIZE, 3) and got.bias.shape == (SIZE, 3)
    torch.testing.assert_close(got.weight[..., 2], 2 * module.weight)


def test_a_module_comes_out_of_vmap() -> None:
    module, factors = TiedParameter().initialize(0), torch.arange(3.0)
    got = torch.vmap(lambda k: tree.map(lambda leaf: leaf * k, module))(factors)
    assert got.encoder.weight is got.decoder.weight
    torch.testing.assert_close(got.encoder.weight[2], 2 * module.encoder.weight)


def test_an_ensemble_of_ensembles() -> None:
    members = [Dense().initialize(seed) for seed in range(4)]
    stacked = tree.map(lambda *leaves: torch.stack(leaves).view(2, 2, *leaves[0].shape), *members)
    x = example_input()
    got = torch.vmap(torch.vmap(lambda m: m(x)))(stacked).flatten(0, 1)
    torch.testing.assert_close(got, torch.stack([member(x) for member in members]))


def test_optional_and_missing_parameters_need_no_care() -> None:
    """https://github.com/pytorch/pytorch/issues/175521: None leaves under torch.func."""
    module = Dense(bias=False).initialize(0)
    grads = torch.func.grad(lambda m: m(torch.ones(2, SIZE)).sum())(module)
    assert grads.bias is None
    torch.testing.assert_close(grads.weight, torch.full((SIZE, SIZE), 2.0))
    _, pushed = jvp(lambda m: m(torch.eye(SIZE)).T, (module,), (grads,))
    torch.testing.assert_close(pushed, grads.weight)


def test_an_integer_leaf_is_refused_as_torch_refuses_it() -> None:
    case = next(case for case in TWINS if case.name == "norm")
    with pytest.raises(RuntimeError, match="only Tensors of floating point"):
        torch.func.grad(lambda m: m(example_input()).sum())(case.make())


def test_constants_and_modes_come_along() -> None:
    module = Dense().initialize(0).eval()
    modes: list[str] = []

    def loss(module: Any) -> Tensor:
        modes.append(module.mode)
        return loss_of(module)

    assert torch.func.grad(loss)(module).mode == "eval"
    assert modes == ["eval"]
