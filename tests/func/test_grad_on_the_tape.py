"""What runs within ``func.grad``: checkpoints, hooks, autocast, threads, keys."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parallax import Module, Parameter, func, random, tree
from tests.func.nets import Net, Twice, X, loss, net


def test_checkpoint_runs_on_the_tape() -> None:
    # https://github.com/pytorch/pytorch/issues/122729
    model = Twice(net(0), net(1))
    calls = []

    def fn(m: Twice) -> Any:
        def block(x: Tensor) -> Any:
            calls.append(1)
            return m(x)

        return (checkpoint(block, X, use_reentrant=False) ** 2).mean()

    grads = func.grad(fn)(model)
    assert len(calls) == 2  # once forward, once again in backward
    assert tree.allclose(grads, func.grad(loss)(model))


def test_a_reentrant_checkpoint_is_exact_or_refused() -> None:
    model, x = net(), X.clone().requires_grad_()

    def through(m: Any, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(m, x, use_reentrant=True)
        return (y**2).mean()

    prepared = model.reset(0)
    through(prepared, x).backward()
    expected = prepared.grad().weight
    found = func.grad(through, argnums=(0, 1))(model, X)[0]
    torch.testing.assert_close(found.weight, expected)
    # Autograd's engine would find no way from the loss to the leaves, and hand out zeros.
    for verb in (func.grad(lambda m: through(m, x)), lambda m: func.vjp(through, m, x)):
        with pytest.raises(RuntimeError, match=r"Write: checkpoint\(..., use_reentrant=False\)"):
            verb(model)
    outer = through(model, x)  # which is not of the derivative
    torch.testing.assert_close(
        func.grad(lambda m: outer * m.weight.sum())(model).weight,
        outer.detach().expand_as(model.weight),
    )


def _checkpointed(m: Any) -> Any:
    return checkpoint(lambda x: (m(x) ** 2).mean(), X, use_reentrant=False)


def _plain_checkpoint_works() -> None:
    w = torch.ones(3, requires_grad=True)
    checkpoint(lambda v: v.sin().sum(), w, use_reentrant=False).backward()
    assert w.grad is not None


def test_checkpoint_under_a_transform_is_refused_with_the_remedy() -> None:
    # https://github.com/pytorch/pytorch/issues/146036
    model = net()
    with pytest.raises(RuntimeError, match=r"Write func.checkpoint\(fn\)\(x\)"):
        torch.func.vmap(lambda s: func.grad(lambda m: s * _checkpointed(m))(model).weight)(
            torch.ones(2)
        )
    _plain_checkpoint_works()


@pytest.mark.parametrize("fullgraph", [True, False])
def test_checkpoint_in_a_compiled_gradient_is_refused_and_breaks_nothing(fullgraph: bool) -> None:
    torch._dynamo.reset()
    step = torch.compile(
        lambda m: func.grad(_checkpointed)(m), backend="eager", fullgraph=fullgraph
    )
    with pytest.raises(Exception, match="checkpoint cannot run inside"):
        step(net())
    _plain_checkpoint_works()
    torch._dynamo.reset()


def test_hooks_and_old_custom_functions_run_on_the_tape() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return 2 * grads[0]

    seen = []

    apply: Any = Double.apply

    def fn(x: Tensor) -> Any:
        x.register_hook(lambda g: seen.append(g))
        return apply(x).sum()

    assert func.grad(fn)(torch.ones(2)).equal(torch.full((2,), 2.0))
    assert len(seen) == 1


def test_double_backward_and_forward_over_reverse_agree() -> None:
    model = net()
    direction = tree.map(torch.ones_like, func.grad(loss)(model))
    _, along = func.jvp(func.grad(loss), (model,), (direction,))
    slope = func.grad(lambda m: sum((g).sum() for g in tree.leaves(func.grad(loss)(m))))(model)
    weights: dict[str, Any] = {"weight": model.weight, "bias": model.bias}
    ones = {name: torch.ones_like(value) for name, value in weights.items()}
    slopes = torch.func.grad(lambda w: loss(net().replace(**w)))
    expected: Any = torch.func.jvp(slopes, (weights,), (ones,))[1]
    torch.testing.assert_close(along.weight, expected["weight"])
    torch.testing.assert_close(slope.weight, expected["weight"])


def test_autocast() -> None:
    model = tree.map(lambda t: t.float() if t.is_floating_point() else t, net())
    x = X.float()

    def fn(m: Net) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = m(x)
            assert (x @ m.weight).dtype is torch.bfloat16
            return F.mse_loss(out.float(), torch.zeros_like(out, dtype=torch.float32))

    grads = func.grad(fn)(model)
    leaf = model.weight.clone().requires_grad_()
    fn(model.replace(weight=leaf)).backward()
    assert grads.weight.dtype is torch.float32
    assert leaf.grad is not None
    torch.testing.assert_close(grads.weight, leaf.grad, rtol=0, atol=0)


def test_complex_parameters() -> None:
    class Spectrum(Module):
        z: Parameter

    z = torch.randn(3, dtype=torch.complex128)
    fn: Any = lambda m: (m.z * m.z.conj() * (1 + 2j)).abs().sum() + m.z.real.sum()  # noqa: E731
    ours = func.grad(fn)(Spectrum(z)).z
    leaf = z.clone().requires_grad_()
    fn(Spectrum(leaf)).backward()
    assert leaf.grad is not None
    torch.testing.assert_close(ours, leaf.grad)
    inside = torch.func.vmap(lambda w: func.grad(fn)(Spectrum(w)).z)(z[None])
    torch.testing.assert_close(inside[0], leaf.grad)


def test_threads_do_not_disturb_each_other() -> None:
    # functional_call gives wrong results in most of these.
    models = [Twice(net(k), net(k + 1)) for k in range(3)]
    expected = [func.grad(loss)(m) for m in models]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(30):
            if not tree.equal(func.grad(loss)(models[k]), expected[k]):
                wrong.extend([k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_keys_survive_a_gradient_and_are_used_once() -> None:
    class Noisy(Module):
        w: Parameter

        def forward(self) -> Tensor:
            return (self.w * random.normal(self.rng, (3,))).sum()

    model = Noisy(torch.ones(3)).train(random.key(0))
    noise = func.grad(lambda m: m())(model).w
    with pytest.raises(random.KeyReusedError):
        func.grad(lambda m: m())(model)
    again = Noisy(torch.ones(3)).train(random.key(0))
    assert torch.equal(noise, random.normal(random.clone(again.rng), (3,)))
    _, (product,) = func.hvp(lambda m: m() ** 2, (again,), (tree.map(torch.ones_like, again),))
    torch.testing.assert_close(product.w, 2 * noise * noise.sum())
    fresh = Noisy(torch.ones(3)).train(random.key(0))
    torch.testing.assert_close(
        torch.func.vmap(lambda w: func.grad(lambda m: m())(fresh.replace(w=w)).w)(torch.ones(1, 3))[
            0
        ],
        noise,
    )
