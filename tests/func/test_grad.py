"""``func.grad`` and ``func.grad_and_value``: values, structure, graphs, errors."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from parallax import Buffer, Module, Parameter, UninitializedError, func, random, tree
from tests.corpus import TWINS, Case, Scale, example_input
from tests.func.programs import pair


class Net(Module):
    weight: Parameter
    bias: Parameter | None
    scale: Buffer
    steps: Buffer

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight * self.scale
        return y if self.bias is None else y + self.bias


class Twice(Module):
    first: Net
    second: Net

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x))))


def net(seed: int = 0, bias: bool = True) -> Net:
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Any:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    return Net(draw(3, 3), draw(3) if bias else None, draw(), torch.tensor(seed))


X = torch.tensor([[0.5, -1.0, 0.25], [1.0, 0.0, -0.5]], dtype=torch.float64)


def loss(model: Callable[[Tensor], Tensor], x: Tensor = X) -> Tensor:
    return (model(x) ** 2).mean()


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


# -- structure ------------------------------------------------------------------------------------


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
    grads = func.grad(loss)(frozen)
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


# -- graphs ---------------------------------------------------------------------------------------


def test_results_have_no_graph_where_nobody_can_ask_for_one() -> None:
    grads, (value, aux) = func.grad_and_value(lambda m: (loss(m), m(X)), has_aux=True)(net())
    for tensor in (*tree.leaves(grads), value, aux):
        assert tensor.grad_fn is None and not tensor.requires_grad


def test_graph_memory_is_freed_at_once() -> None:
    kept: list[Any] = []

    def fn(m: Net) -> Any:
        hidden = m(X).exp()
        kept.append(weakref.ref(hidden))
        return hidden.sum()

    gc.disable()
    try:
        func.grad(fn)(net())
        assert kept[0]() is None
    finally:
        gc.enable()


class Holder:
    def __init__(self, c: Tensor) -> None:
        self.c = c

    def method(self, m: Any) -> Tensor:
        return loss(m) * (self.c**2).sum()


CAPTURED = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)


def test_captured_tensors_stay_differentiable() -> None:
    c = CAPTURED
    cell = lambda m: loss(m) * (c**2).sum()  # noqa: E731  # a closure is the point
    partial_default = lambda m, d=c: loss(m) * (d**2).sum()  # noqa: E731
    for fn in (cell, partial_default, Holder(c).method, lambda m: loss(m) * (CAPTURED**2).sum()):
        total: Any = sum((g**2).sum() for g in tree.leaves(func.grad(fn)(net())))
        (ours,) = torch.autograd.grad(total, c)

        def reference(d: Tensor) -> Any:
            g = torch.func.grad(lambda w: loss(net().replace(weight=w)) * (d**2).sum())(
                net().weight
            )
            b = torch.func.grad(lambda b: loss(net().replace(bias=b)) * (d**2).sum())(net().bias)
            return (g**2).sum() + (b**2).sum()

        torch.testing.assert_close(ours, torch.func.grad(reference)(c.detach()))


class Scaled(torch.autograd.Function):
    """``x`` times the sum of ``k``, whose backward is written by hand."""

    @staticmethod
    def forward(x: Tensor, k: Tensor) -> Tensor:
        return x * k.sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, k = ctx.saved_tensors
        return grads[0] * k.sum(), (grads[0] * x).sum().expand_as(k)


def written_in_place(m: Any, c: Tensor) -> Tensor:
    y: Tensor = m(X).clone()
    y[0] *= c.sum()
    return y.mul_((c * 2)[0]).sum()


def written_into_zeros(m: Any, c: Tensor) -> Any:
    y = torch.zeros(4, dtype=torch.float64)
    y[:2] = c * 2
    return m.weight.sum() * y.unbind(0)[1]


HIDDEN: dict[str, Callable[[Any, Tensor], Any]] = {
    "custom function": lambda m, c: Scaled.apply(m(X), c).sum(),  # type: ignore[no-untyped-call]  # torch's own
    "in place": written_in_place,
    "a view of what was written": written_into_zeros,
    "one of several results": lambda m, c: torch.linalg.slogdet(m.weight * c[0] + torch.eye(3))[1],
    "where": lambda m, c: torch.where(m.weight > 0, m.weight * c[0], m.weight).sum(),
    "a list": lambda m, c: torch.stack([m.weight.sum(), c.sum()]).prod(),
    "a checkpoint": lambda m, c: checkpoint(
        lambda x: (m(x) * c.sum()).sum(), X, use_reentrant=False
    ),
}


@pytest.mark.parametrize("made", [lambda c: c, lambda c: c * 2], ids=["leaf", "made of a leaf"])
@pytest.mark.parametrize("how", HIDDEN)
def test_a_captured_tensor_is_found_wherever_it_enters(how: str, made: Any) -> None:
    fn, model, c = HIDDEN[how], net(), torch.tensor([0.3, 0.6], dtype=torch.float64)

    def slope(c: Tensor) -> Any:
        return (func.grad(lambda m: fn(m, made(c)))(model).weight ** 2).sum()

    leaf = c.clone().requires_grad_()
    (ours,) = torch.autograd.grad(slope(leaf), leaf)
    step = 1e-6 * torch.eye(2, dtype=torch.float64)
    numeric = torch.stack([(slope(c + h) - slope(c - h)) / 2e-6 for h in step])
    torch.testing.assert_close(ours, numeric, rtol=1e-5, atol=1e-6)


def test_dual_numbers_of_autograd_pass_through() -> None:
    model, along = net(), torch.ones(3, 3, dtype=torch.float64)
    with forward_ad.dual_level():
        dual: Any = forward_ad.make_dual(model.weight, along)
        grads: Any = func.grad(loss)(model.replace(weight=dual)).weight
        tangent = forward_ad.unpack_dual(grads).tangent
        factor = forward_ad.make_dual(torch.tensor(2.0), torch.tensor(1.0))
        captured: Any = func.grad(lambda m: loss(m) * factor**2)(model).weight
        by_factor = forward_ad.unpack_dual(captured).tangent

    def of_weight(w: Tensor) -> Tensor:
        return loss(model.replace(weight=w))

    expected: Any = torch.func.jvp(torch.func.grad(of_weight), (model.weight,), (along,))[1]
    torch.testing.assert_close(tangent, expected)
    torch.testing.assert_close(by_factor, 4 * func.grad(loss)(model).weight)


def test_a_captured_tensor_that_does_not_touch_the_gradient_leaves_no_graph_on_it() -> None:
    grads, value = func.grad_and_value(lambda m: loss(m) + CAPTURED.sum())(net())
    assert all(not g.requires_grad for g in tree.leaves(grads))
    assert value.requires_grad


def test_tensors_captured_from_inference_mode() -> None:
    with torch.inference_mode():
        x, model = X.clone(), net()
    expected = func.grad(loss)(net())
    assert tree.allclose(func.grad(lambda m: loss(m, x))(net()), expected)
    assert tree.allclose(func.grad(loss)(model), expected)
    assert tree.allclose(func.vjp(loss, model)[1](torch.ones((), dtype=torch.float64))[0], expected)


def test_a_view_taken_under_no_grad_is_a_constant() -> None:
    def fn(m: Net) -> Tensor:
        with torch.no_grad():
            return m.weight[0, 0]

    model = net()
    assert not func.grad(fn)(model).weight.any()
    assert not torch.func.vmap(lambda _: func.grad(fn)(model).weight)(torch.ones(2)).any()


def test_writing_into_an_argument_is_refused() -> None:
    def fn(x: Tensor) -> Tensor:
        x *= 2
        return x.sum()

    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="in-place"):
        func.grad(fn)(x)
    assert x.equal(torch.ones(3))
    with pytest.raises(RuntimeError, match="in place"):
        func.grad(fn)(torch.ones(3, requires_grad=True) * 1)


# -- loops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["train", "reset once", "reset every step", "clipped"])
def test_a_hundred_steps_leave_no_graph(how: str) -> None:
    # https://github.com/pytorch/pytorch/issues/134612
    model: Any = Twice(net(0), net(1))
    model = model.train(0) if how == "train" else model.reset(0)
    velocity = tree.zeros_like(model)
    for step in range(100):
        if how == "reset every step":
            model = model.reset(step + 1)
        grads = func.grad(loss)(model)
        if how == "clipped":
            grads = tree.map(lambda g: g.clamp(-1, 1), grads)
        velocity = velocity.update(lambda v, g: 0.9 * v + g, grads)
        model = model.update(lambda p, v: p - 0.01 * v, velocity)
    for leaf in tree.leaves(model) + tree.leaves(velocity):
        assert leaf.grad_fn is None


def test_the_loop_computes_the_same_however_it_is_prepared() -> None:
    ends = []
    preparations: list[Any] = [lambda m: m.train(0), lambda m: m.reset(0), lambda m: m]
    for prepare in preparations:
        model: Any = prepare(Twice(net(0), net(1)))
        for _ in range(5):
            model = model.update(lambda p, g: p - 0.1 * g, func.grad(loss)(model))
        ends.append(tree.map(lambda leaf: leaf.detach(), model))
    assert tree.allclose(ends[0], ends[1]) and tree.allclose(ends[0], ends[2])


def test_going_backward_through_a_gradient_of_a_reset_tree_is_exact() -> None:
    model = net().reset(0)
    penalty: Any = sum((g**2).sum() for g in tree.leaves(func.grad(loss)(model)))
    penalty.backward()
    reference = torch.func.grad(
        lambda w: sum((g**2).sum() for g in torch.func.grad(
            lambda ws: loss(net().replace(weight=ws[0], bias=ws[1])))(w))
    )((net().weight, net().bias))  # fmt: skip
    torch.testing.assert_close(model.grad().weight, reference[0])
    torch.testing.assert_close(model.grad().bias, reference[1])


@pytest.mark.parametrize("prepare", [lambda m: m, lambda m: m.reset(0)], ids=["plain", "reset"])
@pytest.mark.parametrize("steps", [1, 3])
def test_meta_learning_is_exact_to_second_order(prepare: Any, steps: int) -> None:
    # The first-order approximation would drop the derivative of the inner gradient.
    def adapted(model: Any) -> Tensor:
        for _ in range(steps):
            grads = func.grad(loss)(model)
            model = model.update(lambda p, g: p - 0.1 * g, grads)
        return loss(model, X.flip(0) * 2)

    model: Any = net()

    def reference(weights: dict[str, Tensor]) -> Tensor:
        for _ in range(steps):
            grads = torch.func.grad(lambda w: loss(model.replace(**w)))(weights)
            weights = {name: w - 0.1 * grads[name] for name, w in weights.items()}
        return loss(model.replace(**weights), X.flip(0) * 2)

    expected = torch.func.grad(reference)({"weight": model.weight, "bias": model.bias})
    grads = func.grad(adapted)(prepare(model))
    torch.testing.assert_close(grads.weight, expected["weight"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(grads.bias, expected["bias"], atol=1e-6, rtol=1e-6)
    raw = torch.func.grad(lambda w: adapted(model.replace(weight=w)))(model.weight)
    torch.testing.assert_close(raw, expected["weight"], atol=1e-6, rtol=1e-6)


def test_a_learned_rate_inside_update_is_differentiated() -> None:
    model = net()

    def adapted(rate: Tensor) -> Tensor:
        grads = func.grad(loss)(model)
        return loss(model.update(lambda p, g: p - rate * g, grads))

    rate = torch.tensor(0.1, dtype=torch.float64)
    slope = func.grad(adapted)(rate)
    step = 1e-6
    with torch.no_grad():
        numeric = (adapted(rate + step) - adapted(rate - step)) / (2 * step)
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-8)


# -- what runs on the tape ------------------------------------------------------------------------


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


def _checkpointed(m: Any) -> Any:
    return checkpoint(lambda x: (m(x) ** 2).mean(), X, use_reentrant=False)


def _plain_checkpoint_works() -> None:
    w = torch.ones(3, requires_grad=True)
    checkpoint(lambda v: v.sin().sum(), w, use_reentrant=False).backward()
    assert w.grad is not None


def test_checkpoint_under_a_transform_is_refused_with_the_remedy() -> None:
    # https://github.com/pytorch/pytorch/issues/146036
    model = net()
    with pytest.raises(RuntimeError, match=r"Call func.grad in eager"):
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
    torch.testing.assert_close(along.weight, slope.weight)


def test_autocast() -> None:
    model = tree.map(lambda t: t.float() if t.is_floating_point() else t, net())
    x = X.float()

    def fn(m: Net) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = m(x)
            assert out.dtype is torch.bfloat16 or m.bias is not None
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
    assert func.hvp(lambda m: m() ** 2, (again,), (tree.map(torch.ones_like, again),))[1][
        0
    ].w.shape == (3,)
    fresh = Noisy(torch.ones(3)).train(random.key(0))
    torch.testing.assert_close(
        torch.func.vmap(lambda w: func.grad(lambda m: m())(fresh.replace(w=w)).w)(torch.ones(1, 3))[
            0
        ],
        noise,
    )


# -- bad input ------------------------------------------------------------------------------------


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
        func.grad(loss, has_aux=True)(net())


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
        func.grad(lambda d: loss(d["net"]))({"net": net(), "rate": 0.5})
    with pytest.raises(ValueError, match="no tensor to differentiate"):
        func.grad(lambda d: torch.ones(()))({"a": None})


def test_argnums_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="names argument 2, and 1 positional"):
        func.grad(loss, argnums=2)(net())
    with pytest.raises(ValueError, match="names one argument twice"):
        func.grad(loss, argnums=(0, -1))(net())
    with pytest.raises(ValueError, match="empty"):
        func.grad(loss, argnums=())(net())
    with pytest.raises(TypeError, match="int or a tuple of ints"):
        func.grad(loss, argnums="model")(net())  # type: ignore[arg-type]  # what is refused


def test_a_failure_leaves_nothing_behind() -> None:
    model = net()
    with pytest.raises(ZeroDivisionError):
        func.grad(lambda m: 1 / 0)(model)
    with pytest.raises(ZeroDivisionError):
        torch.func.grad(lambda x: func.grad(lambda m: 1 / 0)(model))(torch.ones(()))
    assert torch.is_grad_enabled() and all(not leaf.requires_grad for leaf in tree.leaves(model))
    assert tree.allclose(func.grad(loss)(model), func.grad(loss)(net()))


def test_a_hole_of_pair_is_no_leaf() -> None:
    point = pair(torch.ones(3), torch.ones(3))
    grads = func.grad(lambda p: (p.b * p.again).sum())(point)
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
