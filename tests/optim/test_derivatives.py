"""Derivatives through what stands around an optimizer, against finite differences."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import func, optim, tree
from tests.optim.cases import Point

WHOLE = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
NAN = float("nan")


def sgd(asked: bool) -> Any:
    return optim.SGD(lr=0.1, momentum=0.5, differentiable=asked)


AROUND: dict[str, Any] = {
    "accumulated": lambda asked: optim.Accumulate(sgd(asked), 2),
    "accumulated chain": lambda asked: optim.Accumulate(
        optim.chain(sgd(asked), optim.Lookahead(2)), 2
    ),
    "split": lambda asked: optim.Split({"at": sgd(asked)}),
    "split in a chain": lambda asked: optim.chain(
        optim.Split({"at": sgd(asked)}), optim.Lookahead(2)
    ),
    "chain in a chain": lambda asked: optim.chain(
        optim.chain(sgd(asked), optim.Lookahead(2)), halved
    ),
    "skipping": lambda asked: optim.SkipNonfinite(optim.Adam(lr=0.1, differentiable=asked)),
    "sharpness": lambda asked: optim.ASAM(sgd(asked)),
    "adaptive clipping": lambda asked: optim.chain(optim.ClipAdaptive(0.1), sgd(asked)),
    "adaptive clipping after": lambda asked: optim.chain(sgd(asked), optim.ClipAdaptive(0.1)),
    "slow weights": lambda asked: optim.chain(sgd(asked), optim.Lookahead(2)),
    "an average": lambda asked: optim.SGDScheduleFree(lr=0.1, differentiable=asked),
    "a distance": lambda asked: optim.Prodigy(d0=1e-2, differentiable=asked),
}


def halved(update: Any) -> Any:
    return tree.scale(update, 0.5)


def end_of(make: Any, scale: Tensor, asked: bool = True) -> Tensor:
    """A number that depends on a scale through the model, the gradients and the state."""
    point, opt = Point(scale * WHOLE), make(asked)
    state: Any = opt.init(point)
    for k in range(4):

        def grads(point: Any, k: int = k) -> Any:
            return tree.map(lambda at: (at.sin() + k) * scale, point)

        bad = isinstance(opt, optim.SkipNonfinite) and k in (0, 2)
        given = grads if isinstance(opt, optim.SAM) else grads(point)
        given = Point(torch.full_like(WHOLE, NAN)) if bad else given
        point, state = opt.step(point, given, state)
    end = opt.averaged(point, state) if isinstance(opt, optim.SGDScheduleFree) else point
    total: Tensor = (end.at * WHOLE.T).sum()
    return total


@pytest.mark.parametrize("make", AROUND.values(), ids=list(AROUND))
def test_meta_gradients_through_what_stands_around_an_optimizer_are_exact(make: Any) -> None:
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: end_of(make, s), scale)
    expected = torch.autograd.grad(end_of(make, scale), scale)[0]
    by_transform = torch.func.grad(lambda s: end_of(make, s))(scale.detach())
    torch.testing.assert_close(by_transform, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("make", AROUND.values(), ids=list(AROUND))
def test_a_step_within_a_derivative_is_differentiated_unasked(make: Any) -> None:
    def end(scale: Tensor) -> Tensor:
        return end_of(make, scale, asked=False)

    one = torch.tensor(0.7, dtype=torch.float64)
    step = 1e-6
    expected = (end(one + step) - end(one - step)) / (2 * step)
    plain, vmap = torch.func.grad(end), func.vmap(func.grad(end))
    for found in (func.grad(end)(one), plain(one), vmap(one[None])[0]):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_step_within_a_derivative_is_differentiated_unasked() -> None:
    def end(scale: Tensor) -> Tensor:
        opt = optim.chain(optim.ClipNorm(3.0), optim.Adam(lr=0.05))
        point: Any = Point(scale * WHOLE)
        state: Any = opt.init(point)
        for _ in range(3):
            grads = func.grad(lambda point: point.at.sin().square().sum())(point)
            point, state = opt.step(point, grads, state)
        total: Tensor = point.at.sin().square().sum()
        return total

    one, step = torch.tensor(0.7, dtype=torch.float64), 1e-6
    expected = (end(one + step) - end(one - step)) / (2 * step)
    found = parallax.compile(func.grad(end), backend="eager")(one)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    along = func.jvp(end, (one,), (torch.ones_like(one),))[1]
    torch.testing.assert_close(along, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("make", [optim.Muon, optim.Adafactor], ids=lambda cls: cls.__name__)
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_step_that_cannot_be_differentiated_is_refused_where_it_is(make: Any) -> None:
    start, one = Point(WHOLE.float()), torch.ones(())

    def end(scale: Tensor, opt: Any) -> Tensor:
        point = tree.map(lambda at: at * scale, start)
        total: Tensor = opt.step(point, point, opt.init(start))[0].at.sum()
        return total

    def whole(scale: Tensor) -> Tensor:
        return end(scale, make())

    def of_rate(rate: Tensor) -> Tensor:
        opt = make(lr=rate)
        total: Tensor = opt.step(start, start, opt.init(start))[0].at.sum()
        return total

    compiled = parallax.compile(func.grad(whole), backend="eager")
    for taken, given in (
        (func.grad(whole), (one,)),
        (torch.func.grad(whole), (one,)),
        (func.vmap(func.grad(whole)), (one[None],)),
        (func.jacfwd(whole), (one,)),
        (lambda at: func.jvp(whole, (at,), (at,)), (one,)),
        (func.grad(of_rate), (one,)),
        (torch.func.grad(of_rate), (one,)),
        (func.jacfwd(of_rate), (one,)),
        (compiled, (one,)),
    ):
        with pytest.raises(RuntimeError, match=f"{make.__name__} has no differentiable steps"):
            taken(*given)
    foreign = optim.from_torch(torch.optim.Rprop, lr=0.1)
    with pytest.raises(RuntimeError, match="can be vmapped and differentiated"):
        func.grad(end)(one, foreign)


def test_a_step_that_is_a_constant_of_a_derivative_is_made() -> None:
    opt, start = optim.Muon(), Point(WHOLE.float())
    state, (known, _) = opt.init(start), opt.step(start, start, opt.init(start))

    def loss(scale: Tensor) -> Tensor:
        free = opt.step(start, start, state)[0]  # nothing in it is differentiated
        moved = Point(start.at * scale)
        with torch.no_grad():
            constant = opt.step(moved, moved, state)[0]
        total: Tensor = (scale * free.at * constant.at).sum()
        return total

    found = func.grad(loss)(torch.ones(()))
    torch.testing.assert_close(found, known.at.square().sum())


@pytest.mark.parametrize("opt", [optim.AdamW(0.1), optim.RMSprop(0.1)], ids=["AdamW", "RMSprop"])
@pytest.mark.usefixtures("fresh_dynamo")
def test_so_it_is_in_compiled_code(opt: Any) -> None:
    start = Point(WHOLE)

    def loss(scale: Tensor) -> Tensor:
        moved = Point(start.at * scale)
        with torch.no_grad():
            constant = opt.step(moved, moved, opt.init(moved))[0]
        total: Tensor = (scale * scale * constant.at).sum()
        return total

    known = opt.step(start, start, opt.init(start))[0]
    one = torch.ones((), dtype=WHOLE.dtype)
    found = parallax.compile(func.grad(loss), backend="aot_eager")(one)
    torch.testing.assert_close(found, 2 * known.at.sum())


def test_forward_mode_does_not_end_where_nothing_is_recorded() -> None:
    """Adafactor reads numbers of tensors, which have no derivative."""
    opt = optim.Adafactor(0.1)

    def end(scale: Tensor) -> Tensor:
        start = Point(WHOLE * scale)
        with torch.no_grad():
            total: Tensor = opt.step(start, start, opt.init(start))[0].at.sin().sum()
        return total

    one = torch.ones((), dtype=WHOLE.dtype)
    expected = (end(one + 1e-5) - end(one - 1e-5)) / 2e-5
    torch.testing.assert_close(func.jvp(end, (one,), (one,))[1], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "opt",
    [
        optim.chain(optim.ClipAdaptive(0.1), optim.SGD(), optim.Lookahead(2)),
        optim.Accumulate(optim.SGD(), 2),
        optim.SGDScheduleFree(),
    ],
    ids=["chain", "accumulate", "schedule-free"],
)
def test_a_loop_whose_leaves_require_grad_grows_no_graph(opt: Any) -> None:
    point = after = Point(WHOLE.clone().requires_grad_())
    state = opt.init(point)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no gradient carries a graph
        for _ in range(3):
            after, state = opt.step(point, Point(WHOLE), state)
    seen = (after, state) if isinstance(opt, optim.SGDScheduleFree) else state
    assert not any(leaf.requires_grad for leaf in tree.leaves(seen))
    if isinstance(opt, optim.SGDScheduleFree):
        assert not opt.averaged(point, state).at.requires_grad


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_step_that_may_be_left_out_grows_no_graph() -> None:
    opt = optim.SkipNonfinite(optim.SGD())
    point = Point(WHOLE.clone().requires_grad_())
    step: Any = parallax.compile(opt.step, backend="eager")
    after, state = step(point, Point(WHOLE), opt.init(point))
    assert not any(leaf.requires_grad for leaf in tree.leaves((after, state)))


def test_a_chain_says_that_it_records_no_graph() -> None:
    opt, scale = optim.chain(optim.ClipNorm(1.0), optim.SGD()), torch.ones((), requires_grad=True)
    point = Point(torch.ones(2))
    with pytest.warns(UserWarning, match=r"chain\(...\).step: .*optim.SGD\(..., differentiable"):
        opt.step(point, Point(torch.ones(2) * scale), opt.init(point))


def test_a_step_without_derivatives_names_an_optimizer_that_has_them() -> None:
    point = Point(WHOLE.clone().requires_grad_())
    grads = tree.map(lambda at: at.sin(), point)
    with pytest.warns(UserWarning, match=r"optim.Muon.step: .*optim.Adam\(..., differentiable"):
        optim.Muon().step(point, grads, optim.Muon().init(point))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        optim.Muon().step(point, grads, optim.Muon().init(point))


def test_a_rate_that_requires_grad_is_told_that_it_gets_none() -> None:
    rate, point = torch.tensor(0.1, requires_grad=True), Point(WHOLE.clone())
    for make in (optim.SGD, optim.Adam):
        with pytest.warns(UserWarning, match=rf"{make.__name__}.step: a hyper-param.*different"):
            make(lr=rate).step(point, point, make(lr=rate).init(point))
        recorded = make(lr=rate, differentiable=True)
        after = recorded.step(point, point, recorded.init(point))[0]
        (slope,) = torch.autograd.grad(after.at.sum(), rate)
        step = 1e-6
        high, low = (make(lr=0.1 + s).step(point, point, make().init(point)) for s in (step, -step))
        expected = (high[0].at - low[0].at).sum() / (2 * step)
        torch.testing.assert_close(slope.double(), expected, rtol=1e-6, atol=1e-8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        optim.SGD(lr=rate).step(point, point, optim.SGD(lr=rate).init(point))
