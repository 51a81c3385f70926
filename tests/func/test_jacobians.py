"""``vjp``, ``jvp``, ``jacrev``, ``jacfwd``, ``hessian``, ``linearize``, ``hvp`` and matrices."""

from __future__ import annotations

import sys
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parallax import Buffer, Module, Parameter, func, random, tree
from tests.func.nets import Net, Twice, X, loss, net


def named(model: Any) -> dict[str, Tensor]:
    """The trained leaves by path: what torch.func works with."""
    return tree.named_leaves(func.grad(lambda m: torch.zeros((), dtype=torch.float64))(model)) and {
        path: leaf
        for path, leaf in tree.named_leaves(model).items()
        if not path.endswith(("scale", "steps"))
    }


def out_of(model: Any, weights: dict[str, Tensor], x: Tensor = X) -> Tensor:
    return func.functional_call(model, weights, x)  # type: ignore[no-any-return]  # of any module


MODEL = Twice(net(0), net(1, bias=False))
WEIGHTS = named(MODEL)


def close(trees: Any, expected: dict[str, Tensor]) -> None:
    found = tree.named_leaves(trees)
    assert set(found) == set(expected)
    for path, value in expected.items():
        torch.testing.assert_close(found[path], value)


def like(weights: dict[str, Tensor]) -> Any:
    """The tree of gradients' shape that holds these tensors."""
    hollow = func.grad(loss)(MODEL)
    spec = tree.structure(hollow)
    names = spec.paths
    return tree.unflatten(spec, [weights.get(name) for name in names])


DIRECTION = {k: torch.cos(v) for k, v in WEIGHTS.items()}


def test_vjp_of_a_module() -> None:
    out, pull = func.vjp(lambda m: m(X), MODEL)
    expected, theirs = torch.func.vjp(lambda w: out_of(MODEL, w), WEIGHTS)[:2]
    torch.testing.assert_close(out, expected)
    assert not out.requires_grad
    (grads,) = pull(out)
    close(grads, theirs(expected)[0])
    close(pull(2 * out)[0], theirs(2 * expected)[0])  # as often as wanted


def test_vjp_of_several_arguments_with_aux() -> None:
    out, pull, aux = func.vjp(lambda m, x: ({"y": m(x)}, "aux"), MODEL, X, has_aux=True)
    grads, gx = pull({"y": torch.ones_like(out["y"])})
    assert aux == "aux"
    _, theirs = torch.func.vjp(lambda w, x: out_of(MODEL, w, x), WEIGHTS, X)[:2]
    expected = theirs(torch.ones_like(out["y"]))
    close(grads, expected[0])
    torch.testing.assert_close(gx, expected[1])


def test_vjp_of_a_function_to_a_module() -> None:
    out, pull = func.vjp(lambda m: m.update(lambda p: p * 3), MODEL)
    assert type(out) is Twice and out.first.steps.equal(3 * MODEL.first.steps)
    (grads,) = pull(like(DIRECTION))  # holes in the cotangent stand for zeros
    close(grads, {k: 3 * v for k, v in DIRECTION.items()})


@pytest.mark.parametrize("outer", ["tape", "grad", "vmap", "jvp", "no_grad", "inference"])
def test_a_pullback_is_differentiable_itself(outer: str) -> None:
    out, pull = func.vjp(lambda m: m(X), MODEL)
    _, theirs = torch.func.vjp(lambda w: out_of(MODEL, w), WEIGHTS)[:2]
    ours_of: Any = lambda c: sum(v.sin().sum() for v in tree.leaves(pull(c)))  # noqa: E731  # short
    theirs_of: Any = lambda c: sum(v.sin().sum() for v in theirs(c)[0].values())  # noqa: E731
    cotangent = torch.cos(out)
    if outer == "tape":
        one, two = func.grad(ours_of)(cotangent), torch.func.grad(theirs_of)(cotangent)
    elif outer == "grad":
        one, two = torch.func.grad(ours_of)(cotangent), torch.func.grad(theirs_of)(cotangent)
    elif outer == "jvp":
        one = torch.func.jvp(ours_of, (cotangent,), (out,))[1]
        two = torch.func.jvp(theirs_of, (cotangent,), (out,))[1]
    elif outer == "vmap":
        rows = torch.stack([cotangent, 2 * cotangent])
        one, two = torch.func.vmap(ours_of)(rows), torch.func.vmap(theirs_of)(rows)
    else:
        with torch.no_grad() if outer == "no_grad" else torch.inference_mode():
            one, two = ours_of(cotangent), theirs_of(cotangent)
    torch.testing.assert_close(one, two)
    assert not one.requires_grad


def test_outer_backward_reaches_primals_and_captured_tensors_through_a_pullback() -> None:
    c = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = X.clone().requires_grad_()
    out, pull = func.vjp(lambda y: (y * c).sin(), x)
    (out.sum() + pull(torch.ones_like(out))[0].pow(2).sum()).backward()
    y, d = X.clone().requires_grad_(), c.detach().clone().requires_grad_()
    ((y * d).sin().sum() + (d * (y * d).cos()).pow(2).sum()).backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(c.grad, d.grad)


def test_cotangents_that_do_not_fit_name_the_path() -> None:
    _, pull = func.vjp(lambda m: m.update(lambda p: p * 3), MODEL)
    bad = tree.map(lambda g: g[:1], like(DIRECTION))
    with pytest.raises(
        ValueError,
        match=r"cotangents: Twice.first.weight has shape \(3, 3\) and was given \(1, 3\)",
    ):
        pull(bad)
    other: Any = net()
    with pytest.raises(ValueError, match="cotangents: the trees do not fit"):
        pull(other)


def test_jvp_of_a_module_with_holes_in_the_tangent() -> None:
    out, along = func.jvp(lambda m: m(X), (MODEL,), (like(DIRECTION),))
    expected = torch.func.jvp(lambda w: out_of(MODEL, w), (WEIGHTS,), (DIRECTION,))
    torch.testing.assert_close((out, along), expected)
    some = {k: v for k, v in DIRECTION.items() if k != "first.bias"}
    zeroed = {k: some.get(k, torch.zeros_like(v)) for k, v in DIRECTION.items()}
    partly = func.jvp(lambda m: m(X), (MODEL,), (like(some),))[1]
    torch.testing.assert_close(
        partly, torch.func.jvp(lambda w: out_of(MODEL, w), (WEIGHTS,), (zeroed,))[1]
    )
    # What stands beside leaves that do not move is not read.
    whole = tree.map(lambda leaf: torch.ones_like(leaf), MODEL)
    ones = {k: torch.ones_like(v) for k, v in WEIGHTS.items()}
    torch.testing.assert_close(
        func.jvp(lambda m: m(X), (MODEL,), (whole,))[1],
        torch.func.jvp(lambda w: out_of(MODEL, w), (WEIGHTS,), (ones,))[1],
    )


def test_jvp_with_aux_and_a_module_as_result() -> None:
    out, along, aux = func.jvp(
        lambda m: (m.update(lambda p: p * p), m.first.steps),
        (MODEL,),
        (like(DIRECTION),),
        has_aux=True,
    )
    close(along, {
        **{k: 2 * WEIGHTS[k] * v for k, v in DIRECTION.items()},
        **{f"{k}.scale": torch.zeros((), dtype=torch.float64) for k in ("first", "second")},
    })  # fmt: skip
    assert along.first.steps is None and out.first.steps.equal(MODEL.first.steps**2)
    assert aux.equal(MODEL.first.steps)


def test_linearize_agrees_with_jvp() -> None:
    out, push = func.linearize(lambda m: m(X), MODEL)
    torch.testing.assert_close(
        (out, push(like(DIRECTION))), func.jvp(lambda m: m(X), (MODEL,), (like(DIRECTION),))
    )
    gradient, push = func.linearize(func.grad(loss), MODEL)
    product = func.hvp(loss, (MODEL,), (like(DIRECTION),))[1][0]
    close(push(like(DIRECTION)), tree.named_leaves(product))
    assert type(gradient) is Twice


@pytest.mark.parametrize("around", ["grad", "tape", "vmap", "jvp", "backward", "inference"])
def test_linearize_where_its_point_is_differentiated_or_mapped(around: str) -> None:
    # What torch.func.linearize records is constant there: zeros, or an error.
    model, direction = net(), func.grad(loss)(net())

    def along(w: Tensor, push: bool) -> Any:
        point = model.replace(weight=w)
        if push:
            return func.linearize(loss, point)[1](direction)
        return func.jvp(loss, (point,), (direction,))[1]

    w = model.weight
    found = []
    for push in (True, False):
        fn = partial(along, push=push)
        if around == "grad":
            found.append(torch.func.grad(fn)(w))
        elif around == "tape":
            found.append(func.grad(fn)(w))
        elif around == "vmap":
            found.append(torch.func.vmap(fn)(torch.stack([w, 2 * w])))
        elif around == "jvp":
            found.append(torch.func.jvp(fn, (w,), (w,))[1])
        elif around == "backward":
            leaf = w.clone().requires_grad_()
            found += torch.autograd.grad(fn(leaf), leaf)
        else:
            with torch.inference_mode():
                found.append(fn(w))
    assert found[0].any()
    torch.testing.assert_close(found[0], found[1])


def test_linearize_of_what_is_linear_or_constant_already() -> None:
    fn: Any = lambda x, y: (x, 3 * y, y.detach(), {"x": x[0]})  # noqa: E731  # short
    x, v = X[0], X[1]
    _, push = func.linearize(fn, x, x + 1)
    expected = torch.func.jvp(fn, (x, x + 1), (v, 2 * v))[1]
    torch.testing.assert_close(push(v, 2 * v), expected)


def test_a_recording_is_mapped_and_differentiated() -> None:
    _, push = func.linearize(lambda x: x.sin() * x.sum(), X[0])
    reference: Any = lambda v: torch.func.jvp(lambda x: x.sin() * x.sum(), (X[0],), (v,))[1]  # noqa: E731  # short
    torch.testing.assert_close(func.vmap(push)(X), torch.stack([reference(v) for v in X]))
    squared: Any = lambda f: lambda v: f(v).pow(2).sum()  # noqa: E731  # short
    expected = torch.func.grad(squared(reference))(X[1])
    libraries: list[Any] = [func, torch.func]
    for lib in libraries:
        torch.testing.assert_close(lib.grad(squared(push))(X[1]), expected)
    torch.testing.assert_close(func.vmap(func.grad(squared(push)))(X)[1], expected)
    torch.testing.assert_close(
        func.jvp(push, (X[0],), (X[1],)), torch.func.jvp(reference, (X[0],), (X[1],))
    )
    v = X[1].clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(squared(push)(v), v)[0], expected)


def test_linearize_of_a_function_that_captures_what_requires_grad() -> None:
    c = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    model = net()
    _, push = func.linearize(lambda m: loss(m) * c, model)
    (slope,) = torch.autograd.grad(push(func.grad(loss)(model)), c)
    torch.testing.assert_close(slope, func.jvp(loss, (model,), (func.grad(loss)(model),))[1])


@pytest.mark.parametrize("transform", ["jacrev", "hessian", "hessian_matrix"])
def test_checkpoint_within_a_jacobian_is_refused_with_the_remedy(transform: str) -> None:
    def fn(m: Any) -> Any:
        return checkpoint(lambda x: (m(x) ** 2).mean(), X, use_reentrant=False)

    with pytest.raises(RuntimeError, match=r"jacrev, hessian, .* Write func.checkpoint\(fn\)\(x\)"):
        getattr(func, transform)(fn)(net())
    grads = func.grad(fn)(net())  # and ordinary checkpoints still work
    assert tree.allclose(grads, func.grad(loss)(net()))


def test_linearize_of_a_module_that_draws() -> None:
    class Noisy(Module):
        w: Parameter

        def forward(self) -> Tensor:
            return self.w * random.normal(self.rng, (3,))

    out, push = func.linearize(lambda m: m(), Noisy(torch.ones(3)).train(random.key(0)))
    torch.testing.assert_close(push(Noisy(torch.ones(3))), out)


@pytest.mark.parametrize("name", ["jacrev", "jacfwd"])
def test_jacobians_are_trees(name: str) -> None:
    jacobian = getattr(func, name)(lambda m: m(X))(MODEL)
    expected = getattr(torch.func, name)(lambda w: out_of(MODEL, w))(WEIGHTS)
    close(jacobian, expected)
    assert jacobian.first.weight.shape == (2, 3, 3, 3)
    (jm, jx), aux = getattr(func, name)(lambda m, x: (m(x), "aux"), argnums=(0, 1), has_aux=True)(
        MODEL, X
    )
    close(jm, expected)
    torch.testing.assert_close(jx, torch.func.jacrev(lambda x: out_of(MODEL, WEIGHTS, x))(X))
    assert aux == "aux"


def test_jacobian_of_a_pytree_of_results() -> None:
    jacobian = func.jacrev(
        lambda m: {"y": m(X), "net": m.first.update(lambda p: p.sin())}, chunk_size=2
    )(MODEL)
    close(jacobian["y"], torch.func.jacrev(lambda w: out_of(MODEL, w))(WEIGHTS))
    block = jacobian["net"].weight.first.weight
    torch.testing.assert_close(block, torch.func.jacrev(torch.sin)(WEIGHTS["first.weight"]))
    assert not jacobian["net"].weight.second.weight.any()


def test_hessian_is_a_tree_of_trees_and_a_matrix() -> None:
    hessian = func.hessian(loss)(MODEL)
    expected = torch.func.hessian(lambda w: (out_of(MODEL, w) ** 2).mean())(WEIGHTS)
    for row in WEIGHTS:
        block = hessian
        for key in row.split("."):
            block = getattr(block, key)
        close(block, expected[row])
    matrix = func.hessian_matrix(loss)(MODEL)
    blocks = [
        torch.cat([expected[a][b].reshape(WEIGHTS[a].numel(), -1) for b in WEIGHTS], 1)
        for a in WEIGHTS
    ]
    torch.testing.assert_close(matrix, torch.cat(blocks))
    vector, _ = tree.ravel(like(DIRECTION))
    product = func.hvp(loss, (MODEL,), (like(DIRECTION),))[1][0]
    torch.testing.assert_close(matrix @ vector, tree.ravel(product)[0])


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_jacobian_matrix_times_a_vector_is_the_jvp(mode: str) -> None:
    matrix = func.jacobian_matrix(lambda m: m(X), mode=mode)(MODEL)
    vector, _ = tree.ravel(like(DIRECTION))
    along = func.jvp(lambda m: m(X), (MODEL,), (like(DIRECTION),))[1]
    torch.testing.assert_close(matrix @ vector, along.flatten())
    with pytest.raises(ValueError, match="mode must be"):
        func.jacobian_matrix(loss, mode="sideways")


def test_third_derivatives() -> None:
    third = func.jacrev(func.hessian(lambda x: (x**4).sum()))(X[0])
    torch.testing.assert_close(
        third, torch.func.jacrev(torch.func.hessian(lambda x: (x**4).sum()))(X[0])
    )
    one = func.jacfwd(func.hessian(lambda n: (n.w**4).sum()))(Point(X[0]))
    torch.testing.assert_close(one.w.w.w, third)


class Point(Module):
    w: Parameter


@pytest.mark.parametrize("around", ["nothing", "vmap", "no_grad", "inference"])
def test_hvp_everywhere(around: str) -> None:
    def product(scale: Tensor) -> Tensor:
        value, (hv,), aux = func.hvp(
            lambda m: (loss(m) * scale, 7), (MODEL,), (like(DIRECTION),), has_aux=True
        )
        assert aux == 7
        return torch.cat([value[None], tree.ravel(hv)[0]])

    one = torch.ones((), dtype=torch.float64)
    if around == "vmap":
        found = torch.func.vmap(product)(torch.stack([one, 2 * one]))[0]
    elif around == "nothing":
        found = product(one)
    else:
        with torch.no_grad() if around == "no_grad" else torch.inference_mode():
            found = product(one)
    vector = tree.ravel(like(DIRECTION))[0]
    expected = func.hessian_matrix(loss)(MODEL) @ vector
    torch.testing.assert_close(found, torch.cat([loss(MODEL)[None], expected]))
    assert not found.requires_grad


def test_hvp_of_complex_parameters_is_symmetric() -> None:
    z = torch.tensor([0.3 + 0.4j, -0.2 + 0.1j], dtype=torch.complex128)
    fn = lambda p: (p.w * p.w * p.w.conj()).abs().sum() + (p.w**3).real.sum()  # noqa: E731
    u, v = torch.randn(2, dtype=torch.complex128), torch.randn(2, dtype=torch.complex128)
    hu, hv = (func.hvp(fn, (Point(z),), (Point(t),))[1][0].w for t in (u, v))
    torch.testing.assert_close((v.conj() * hu).real.sum(), (u.conj() * hv).real.sum())


def test_results_that_cannot_be_differentiated() -> None:
    cases: list[tuple[Any, str]] = [
        (lambda m: None, "returned nothing"),
        (lambda m: (m(X), 3), r"returned a int at 1 of its result.*has_aux=True"),
        (lambda m: m(X) > 0, "torch.bool tensor as its result"),
    ]
    for fn, message in cases:
        for call in (
            lambda fn: func.vjp(fn, MODEL),
            lambda fn: func.jvp(fn, (MODEL,), (like(DIRECTION),)),
            lambda fn: func.jacrev(fn)(MODEL),
            lambda fn: func.jacfwd(fn)(MODEL),
            lambda fn: func.linearize(fn, MODEL),
        ):
            with pytest.raises(TypeError, match=message):
                call(fn)


@pytest.mark.parametrize("name", ["jacrev", "jacfwd", "hessian", "hessian_matrix"])
def test_an_error_names_the_transform_that_was_called(name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"^func.{name}\(<lambda>\): the function returned nothing"
    ):
        getattr(func, name)(lambda m: None)(MODEL)
    with pytest.raises(ValueError, match=rf"^func.{name}\(loss\), argument 0: .*no trainable leaf"):
        getattr(func, name)(loss)(tree.select(net(), "weight", "bias").freeze())


def test_primals_and_tangents_that_do_not_fit() -> None:
    wide = net().replace(weight=net().weight.float())
    with pytest.raises(ValueError, match=r"tangents: Net.weight has dtype torch.float64.*float32"):
        func.jvp(loss, (net(),), (wide,))
    with pytest.raises(TypeError, match=r"primals must be a tuple.*\(argument,\)"):
        func.jvp(loss, MODEL, (like(DIRECTION),))  # type: ignore[call-overload]  # what is refused
    with pytest.raises(TypeError, match="one tree for each of the 1 primals, got 2"):
        func.jvp(loss, (MODEL,), (1, 2))
    with pytest.raises(ValueError, match="tangents: the trees do not fit"):
        func.jvp(loss, (MODEL,), (net(),))
    with pytest.raises(TypeError, match="primals must be a tuple"):
        func.hvp(loss, MODEL, (MODEL,))  # type: ignore[call-overload]  # what is refused


def test_buffers_do_not_move() -> None:
    class Only(Module):
        w: Parameter
        shift: Buffer

    only = Only(X[0], X[1])
    matrix = func.jacobian_matrix(lambda m: m.w + m.shift)(only)
    assert matrix.shape == (3, 3)
    assert func.vjp(lambda m: m.w * m.shift, only)[1](X[0])[0].shift is None
    assert isinstance(Net, type)


def test_the_first_derivative_in_forward_mode_does_not_warn(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """torch loads its rules then, with a compiler whose use it warns of."""
    texts = ["`torch.jit.script` is deprecated"]
    rules = "torch._decomp.decompositions_for_jvp"
    monkeypatch.delitem(sys.modules, rules, raising=False)

    def load() -> None:
        if texts:
            warnings.warn(texts.pop(), FutureWarning, stacklevel=1)

    monkeypatch.setattr(torch.autograd.forward_ad, "_maybe_load_decompositions", load)
    func.jvp(torch.sin, (torch.ones(2),), (torch.ones(2),))
    assert not texts and not recwarn.list
