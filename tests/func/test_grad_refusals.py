"""What ``func.grad`` refuses, and that it leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from parallax import Parameter, UninitializedError, func, random, tree
from tests.func.nets import Twice, X, loss, net


def test_losses_that_have_no_gradient() -> None:
    cases: list[tuple[Any, str]] = [
        (lambda m: m(X), r"shape \(2, 3\), and only a scalar.*loss.mean\(\)"),
        (lambda m: None, "returned nothing.*return loss"),
        (lambda m: 1.0, "returned a float. Return one scalar tensor"),
        (lambda m: (loss(m), 1), "has_aux=True"),
        (lambda m: (m.weight > 0).sum(), "int64 scalar, which has no gradient"),
        (lambda m: loss(m) * 1j, "complex128 scalar. Return a real one"),
    ]
    model = net()
    for fn, message in cases:
        with pytest.raises(TypeError, match=message):
            func.grad(fn)(model)
        with pytest.raises(TypeError, match=message):
            torch.func.vmap(lambda s, fn=fn: func.grad(fn)(model).weight * s)(torch.ones(2))
    with pytest.raises(
        TypeError, match=r"func.grad\(loss\): with has_aux=True the function returns a pair"
    ):
        func.grad(loss, has_aux=True)(net())  # type: ignore[call-overload]  # what is refused


def test_arguments_that_cannot_be_differentiated() -> None:
    frozen = tree.select(net(), "weight", "bias").freeze()
    with pytest.raises(ValueError, match=r"Net has no trainable leaf: .* 4 leaves .*unfreeze"):
        func.grad(loss)(frozen)
    with pytest.raises(
        TypeError,
        match=r"argument 0: Net.bias is a Parameter that holds a tensor of .*int64.*'bias: Buffer'",
    ):
        func.grad(loss)(net().replace(bias=torch.tensor([1, 2, 3])))
    with pytest.raises(
        UninitializedError, match=r"Twice.first.weight is not initialized.*initialize"
    ):
        func.grad(loss)(Twice(net().replace(weight=Parameter((3, 3), nn.init.zeros_)), net()))
    with pytest.raises(TypeError, match=r"argument 1 is a tensor of torch.int64"):
        func.grad(lambda m, k: loss(m), argnums=1)(net(), torch.tensor(3))
    with pytest.raises(TypeError, match=r"rate is a float, and only tensors.*outside of argnums"):
        func.grad(lambda d: torch.ones(()))({"rate": 0.5})
    with pytest.raises(ValueError, match=r"nothing in it can be differentiated.*unfreeze\(\)"):
        func.grad(lambda d: loss(d["net"]))(
            {"net": tree.select(net(), "weight", "bias").freeze(), "rate": 0.5}
        )
    with pytest.raises(TypeError, match=r"bridge.lift\(module\)"):
        func.grad(lambda pair: loss(pair[0]))((net(), nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="no tensor to differentiate"):
        func.grad(lambda d: torch.ones(()))({"a": None})


def test_what_is_not_differentiated_is_a_hole_in_a_packed_argument() -> None:
    pack: Any = {"net": net(), "rate": 0.5, "ids": torch.arange(2), "act": torch.tanh, "x": X}
    weighted = lambda p: p["rate"] * p["act"](loss(p["net"], p["x"])) * p["ids"][1]  # noqa: E731  # short
    grads, value = func.grad_and_value(weighted)(pack)
    assert [grads[name] for name in ("rate", "ids", "act")] == [None] * 3
    model, x = net(), X.clone().requires_grad_()
    weight = model.weight.clone().requires_grad_()
    expected = 0.5 * torch.tanh(loss(model.replace(weight=weight), x))
    torch.testing.assert_close(value, expected.detach())
    slopes = torch.autograd.grad(expected, (weight, x))
    torch.testing.assert_close((grads["net"].weight, grads["x"]), slopes)
    stepped = tree.map(lambda p, g: p - g, pack, grads)
    assert stepped["rate"] == 0.5 and stepped["ids"] is pack["ids"]
    assert tree.allclose(func.vjp(weighted, pack)[1](torch.ones_like(value))[0], grads)
    along = func.jvp(weighted, (pack,), (grads,))[1]
    torch.testing.assert_close(along, sum((g**2).sum() for g in tree.leaves(grads)))


def test_a_key_beside_a_model_stays() -> None:
    pair = net(), random.key(0)
    noisy = lambda p: loss(p[0]) * random.uniform(p[1], ())  # noqa: E731  # short
    grads = func.grad(noisy)(pair)
    factor = random.uniform(random.key(0), ())
    assert tree.allclose(grads[0], tree.scale(func.grad(loss)(net()), float(factor)))
    assert tree.leaves(grads[1]) == [] and tree.map(torch.add, pair, grads)[1].data is pair[1].data


def test_argnums_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="names argument 2, and 1 positional"):
        func.grad(loss, argnums=2)(net())
    with pytest.raises(ValueError, match="names one argument twice"):
        func.grad(loss, argnums=(0, -1))(net())
    with pytest.raises(ValueError, match="empty"):
        func.grad(loss, argnums=())(net())
    with pytest.raises(TypeError, match="int or a tuple of ints"):
        func.grad(loss, argnums="model")(net())  # type: ignore[call-overload]  # what is refused


def test_a_failure_leaves_nothing_behind() -> None:
    model = net()
    with pytest.raises(ZeroDivisionError):
        func.grad(lambda m: 1 / 0)(model)
    with pytest.raises(ZeroDivisionError):
        torch.func.grad(lambda x: func.grad(lambda m: 1 / 0)(model))(torch.ones(()))
    assert torch.is_grad_enabled() and all(not leaf.requires_grad for leaf in tree.leaves(model))
    assert tree.allclose(func.grad(loss)(model), func.grad(loss)(net()))
