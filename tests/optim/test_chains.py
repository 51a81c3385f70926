"""What stands before and after an optimizer, against loops written out by hand."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import parallax
from parallax import func, optim, random, tree
from tests.comparing import same_leaves
from tests.optim.cases import Net, Point, distance, gradients, ones

NAN = float("nan")


def steps(opt: Any, model: Any, grads: Any) -> tuple[Any, Any]:
    state = opt.init(model)
    for grad in grads:
        model, state = opt.step(model, grad, state)
    return model, state


def assert_near(one: Any, two: Any, tolerance: float = 1e-6) -> None:
    for a, b in zip(tree.leaves(one), tree.leaves(two), strict=True):
        assert distance(a, b) <= tolerance


# -- the protocol ----------------------------------------------------------------------------------


def test_parts_after_the_optimizer_get_the_update() -> None:
    model, grads = Net().initialize(0), list(gradients(Net().initialize(0), 3))
    seen = []

    def halved(update: Any) -> Any:
        seen.append(update)
        return tree.scale(update, 0.5)

    mine, _ = steps(optim.chain(optim.SGD(lr=0.2), halved), model, grads)
    theirs, _ = steps(optim.SGD(lr=0.1), model, grads)
    assert_near(mine, theirs)
    assert distance(seen[0].first, -0.2 * grads[0].first) <= 1e-6


def test_the_norm_of_an_update_is_clipped_by_the_part_that_clips_gradients() -> None:
    model = Net().initialize(0)
    opt = optim.chain(optim.Adam(lr=1.0), optim.ClipNorm(0.1))
    stepped, _ = steps(opt, model, gradients(model, 1))
    assert tree.norm(tree.sub(stepped, model)).item() == pytest.approx(0.1, rel=1e-4)


class Decay:
    """Reads the model before the step, and keeps no state."""

    def update(self, update: Any, state: Any, model: Any) -> Any:
        return tree.sub(update, model, 0.01), state


def test_a_part_without_a_state_may_read_the_model() -> None:
    model = Net().initialize(0)
    mine, _ = steps(optim.chain(optim.Adam(lr=0.1), Decay()), model, gradients(model, 5))
    theirs, _ = steps(optim.AdamW(lr=0.1, weight_decay=0.1), model, gradients(model, 5))
    assert_near(mine, theirs)


def test_leaves_that_are_not_stepped_are_no_part_of_the_update() -> None:
    model: Any = tree.select(Net().initialize(0), "first").freeze()
    grads = tree.partition(ones(model), "bias")[1]
    opt = optim.chain(optim.SGD(lr=0.1), optim.AddNoise(1.0, 0), optim.Lookahead(k=1))
    stepped, state = steps(opt, model, [grads])
    assert stepped.first is model.first and stepped.bias is model.bias
    assert not torch.equal(stepped.second, model.second)
    slow: Any = state.parts[2]
    assert slow.model.first is None
    thawed: Any = tree.select(stepped, "first").unfreeze()
    after, state = opt.step(thawed, ones(model), state)
    slow = state.parts[2]
    assert torch.equal(slow.model.first, after.first)


def test_what_is_given_away_may_stand_before_other_parts() -> None:
    opt = optim.chain(optim.ClipNorm(1.0), optim.Adam(lr=0.1), optim.Lookahead(k=2))
    model = Net().initialize(0)
    given, state = tree.map(torch.clone, model), opt.init(model)
    for grads in gradients(model, 4):
        first = given
        given, state = opt.step(given, grads, state, donate=True)
        with pytest.raises(optim.DonatedError):
            tree.leaves(first)
    assert_near(given, steps(opt, model, gradients(model, 4))[0])


def test_a_derivative_goes_through_all_parts_if_the_optimizer_lets_it() -> None:
    def loss(scale: Tensor, opt: Any) -> Tensor:
        point, grads = Point(torch.ones(2).double()), Point(torch.tensor([0.5, 2.0]).double())
        state = opt.init(point)
        for _ in range(2):
            point, state = opt.step(point, tree.map(lambda g: g * scale, grads), state)
        return (point.at * torch.tensor([1.0, 3.0])).sum()

    after = optim.ClipNorm(0.3), optim.Lookahead(k=2)
    opt = optim.chain(optim.SGD(lr=0.1, differentiable=True), *after)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss(s, opt), scale)
    expected = torch.autograd.grad(loss(scale, opt), scale)[0]
    assert torch.allclose(torch.func.grad(loss)(scale.detach(), opt), expected)
    constant = optim.chain(optim.SGD(lr=0.1), *after)
    assert torch.allclose(torch.func.grad(loss)(scale.detach(), constant), expected)
    with pytest.warns(UserWarning, match="optim.SGD.*differentiable=True"):
        assert not loss(scale, constant).requires_grad


def all_of_them(**settings: Any) -> Any:
    return optim.SkipNonfinite(
        optim.chain(
            optim.Centralize(),
            optim.ClipAdaptive(0.1),
            optim.AddNoise(0.01, random.key(3)),
            optim.ClipNorm(1.0),
            optim.Adam(lr=0.1, **settings),
            optim.ClipValue(0.05),
            optim.Lookahead(k=2, alpha=0.3),
        )
    )


def test_all_parts_together_compile_to_one_graph_and_map_over_members() -> None:
    opt, model = all_of_them(), Net().initialize(0)
    counter = torch._dynamo.testing.CompileCounter()
    step: Any = parallax.compile(opt.step, backend=counter)
    grads = list(gradients(model, 5))
    grads[2] = tree.map(lambda g: g * NAN, grads[2])
    end, end_state = model, opt.init(model)
    for grad in grads:
        end, end_state = step(end, grad, end_state)
    model, state = steps(opt, model, grads)
    assert counter.frame_count == 1
    assert_near((end, end_state), (model, state))
    assert state.total.item() == 1 and state.in_a_row.item() == 0
    models = [Net().initialize(seed) for seed in range(2)]
    rows = [list(gradients(m, 2, seed=k)) for k, m in enumerate(models)]
    rows[1][1] = grads[2]
    many, many_state = tree.stack(models), tree.stack([opt.init(m) for m in models])
    for row in zip(*rows, strict=True):
        many, many_state = torch.vmap(opt.step)(many, tree.stack(list(row)), many_state)
    pairs = [steps(opt, m, row) for m, row in zip(models, rows, strict=True)]
    assert_near((many, many_state), tree.stack(pairs), 1e-5)
    assert many_state.total.tolist() == [0, 1]


def test_a_chain_and_its_states_can_be_pickled_and_printed() -> None:
    opt, model = all_of_them(), Net().initialize(0)
    state = pickle.loads(pickle.dumps(opt.init(model)))
    again = pickle.loads(pickle.dumps(opt))
    one, two = [o.step(model, next(gradients(model, 1)), state) for o in (opt, again)]
    assert same_leaves(one, two)
    assert "Lookahead(k=2, alpha=0.3)" in repr(opt) and repr(opt).startswith("SkipNonfinite(chain(")


# -- the parts -------------------------------------------------------------------------------------


def test_lookahead_is_the_loop_of_its_paper() -> None:
    model = Net().initialize(0)
    opt = optim.chain(optim.SGD(lr=0.1, momentum=0.9), optim.Lookahead(k=3, alpha=0.4))
    fast = {path: leaf.clone() for path, leaf in tree.named_leaves(model).items()}
    slow = {path: leaf.clone() for path, leaf in fast.items()}
    inner = torch.optim.SGD(list(fast.values()), lr=0.1, momentum=0.9)
    state = opt.init(model)
    for number, grads in enumerate(gradients(model, 10), 1):
        model, state = opt.step(model, grads, state)
        for path, param in fast.items():
            param.grad = tree.named_leaves(grads)[path]
        inner.step()
        if number % 3 == 0:
            for path, param in fast.items():
                slow[path] += 0.4 * (param - slow[path])
                param.copy_(slow[path])
        for path, leaf in tree.named_leaves(model).items():
            assert distance(leaf, fast[path]) <= 1e-6


def test_steps_that_are_not_finite_are_left_out() -> None:
    model, inner = Net().initialize(0), optim.AdamW(lr=0.1)
    grads = list(gradients(model, 6))
    for k, value in ((1, NAN), (2, float("inf")), (4, -float("inf"))):
        grads[k] = tree.select(grads[k], "bias").set(torch.tensor([0.1, value, 0.2, 0.3]))
    mine, state = steps(optim.SkipNonfinite(inner), model, grads)
    theirs, expected = steps(inner, model, [grads[k] for k in (0, 3, 5)])
    assert same_leaves(mine, theirs) and same_leaves(state.inner, expected)
    assert (state.total.item(), state.in_a_row.item()) == (3, 0)
    frozen = tree.select(model, "bias").freeze()  # of which nobody reads the gradient
    _, state = steps(optim.SkipNonfinite(inner), frozen, [grads[1]])
    assert state.total.item() == 0


_ONE = torch.tensor([1])


def test_a_step_that_grows_the_state_is_not_left_out_in_a_graph() -> None:
    inner = optim.SGD(momentum=0.9, dampening=0.5)
    opt, model = optim.SkipNonfinite(inner), Net().initialize(0)
    state = opt.init(model)
    with pytest.raises(ValueError, match="Make the first step in eager code"):
        torch.vmap(lambda k: opt.step(model, tree.scale(model, k), state)[0])(torch.ones(2))
    opt.step(model, ones(model), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_adaptive_clipping_is_a_loop_over_rows(dtype: torch.dtype) -> None:
    model: Any = Net().initialize(0)
    model = tree.map(lambda p: (p * (1 - 0.5j) if dtype.is_complex else p).to(dtype), model)
    model = tree.select(model, "first").apply(lambda w: w.index_fill(0, _ONE, 0))
    grads = next(gradients(model, 1))
    made, _ = optim.ClipAdaptive(0.2, eps=0.01).update(grads, None, model)
    single = torch.complex64 if dtype.is_complex else torch.float32
    for path, grad in tree.named_leaves(grads).items():
        param, expected = tree.named_leaves(model)[path].to(single), grad.to(single).clone()
        rows = range(len(grad)) if grad.ndim == 2 else [...]
        for row in rows:
            most = 0.2 * max(param[row].abs().square().sum().sqrt().item(), 0.01)
            size = expected[row].abs().square().sum().sqrt().item()
            if size > most:
                expected[row] *= most / size
        assert made_of(made, path).dtype == dtype
        tolerance = 5e-3 if dtype is torch.bfloat16 else 1e-6  # one rounding of eight bits
        assert largest_gap(made_of(made, path).to(single), expected) <= tolerance
    stay, _ = optim.ClipAdaptive(1e9).update(grads, None, model)
    assert same_leaves(stay, grads)


def largest_gap(one: Tensor, two: Tensor) -> float:
    return ((one - two).abs().max() / two.abs().max()).item()


def made_of(made: Any, path: str) -> Tensor:
    leaf: Tensor = tree.named_leaves(made)[path]
    return leaf


def test_centralised_rows_have_no_mean() -> None:
    grads = next(gradients(Net().initialize(0), 1))
    made = optim.Centralize()(grads)
    for row, given in zip(made.first, grads.first, strict=True):
        mean = sum(given.tolist()) / len(given)
        assert torch.allclose(row, given - mean, atol=1e-6)
    assert made.bias is grads.bias and made.scale is grads.scale
    kernel = torch.arange(12.0).reshape(2, 3, 2)
    assert optim.Centralize()({"k": kernel})["k"][1].sum().item() == 0


def test_the_variance_of_the_noise_falls_as_published() -> None:
    point, count = Point(torch.zeros(50_000)), 3
    opt = optim.chain(optim.AddNoise(eta=0.5, rng=random.key(1), gamma=0.8), optim.SGD(lr=1.0))
    state = opt.init(point)
    noises = []
    for step in range(count):
        after, state = opt.step(point, Point(torch.zeros(50_000)), state)
        noises.append(after.at)
        # The variance of an estimate from n numbers is 2 / n of its square: five deviations.
        assert after.at.var().item() == pytest.approx(0.5 / (1 + step) ** 0.8, rel=0.032)
        assert after.at.mean().abs().item() < 5 * (0.5 / 50_000) ** 0.5
    correlation = torch.corrcoef(torch.stack(noises)) - torch.eye(count)
    assert correlation.abs().max().item() < 5 / 50_000**0.5


def test_noise_depends_on_key_step_and_path_alone() -> None:
    model = Net().initialize(0)
    before = torch.get_rng_state()
    zeros = tree.zeros_like(model)
    opt = optim.AddNoise(1.0, 7)
    state = opt.init(model)
    one, later = opt.update(zeros, state, model)
    again, _ = opt.update(zeros, state, model)
    assert same_leaves(one, again)
    two, _ = opt.update(zeros, later, model)
    other, _ = optim.AddNoise(1.0, 8).update(zeros, optim.AddNoise(1.0, 8).init(model), model)
    some: Any
    some, _ = opt.update(tree.partition(zeros, "first")[1], state, model)
    assert torch.equal(some.second, one.second) and some.first is None
    firsts = [one.second, two.second, other.second]
    assert len({tuple(leaf.flatten().tolist()) for leaf in firsts}) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_the_norm_of_sparse_gradients_is_clipped_and_others_refuse_them() -> None:
    table, point = torch.eye(4, 2).mul(3.0), Point(torch.ones(4, 2))
    twice = torch.sparse_coo_tensor(  # two entries in one place
        torch.tensor([[0, 0, 1], [0, 0, 1]]), torch.tensor([1.0, 2.0, 3.0]), (4, 2),
        check_invariants=True,
    )  # fmt: skip
    opt = optim.chain(optim.ClipNorm(0.5), optim.SGD(lr=0.1))
    dense, _ = opt.step(point, Point(table), opt.init(point))
    sparse, _ = opt.step(point, Point(twice), opt.init(point))
    assert torch.allclose(sparse.at, dense.at)
    clipped, norm = optim.clip_grad_norm(Point(twice), 0.5)
    assert clipped.at.is_sparse and norm.item() == pytest.approx(18**0.5)
    parts = optim.ClipValue(1.0), optim.Centralize(), optim.ClipAdaptive(), optim.AddNoise(1.0, 0)
    for part in parts:
        opt = optim.chain(part, optim.SGD())
        with pytest.raises(ValueError, match=r"gradient of at is sparse.*Make it dense first"):
            opt.step(point, Point(twice), opt.init(point))


def test_slow_weights_of_a_leaf_that_is_trained_later_begin_before_its_first_step() -> None:
    def run(step: Any, opt: Any) -> Any:
        net: Any = tree.zeros_like(Net().initialize(0))
        grads = ones(net)
        state = opt.init(tree.select(net, "first").freeze())
        net = tree.select(net, "first").freeze()
        for k in range(6):
            net, state = step(net if k == 0 else tree.select(net, "first").unfreeze(), grads, state)
        return net

    opt = optim.chain(optim.SGD(lr=1.0), optim.Lookahead(k=3, alpha=0.5))
    eager = run(opt.step, opt)
    assert eager.bias.tolist() == [-3.0] * 4
    # Two steps from 0, then half of the way back to where it began; three more, and half of those.
    assert eager.first.unique().tolist() == [-2.5]
    compiled = run(parallax.compile(opt.step, backend="eager"), opt)
    assert same_leaves(compiled, eager)
    torch._dynamo.reset()


# -- bad input -------------------------------------------------------------------------------------


def test_bad_chains_are_refused() -> None:
    with pytest.raises(TypeError, match=r"must be an optimizer, got .*Write optim.chain\("):
        optim.chain(optim.ClipNorm(1.0))
    with pytest.raises(TypeError, match=r"are both optimizers, and one steps.*optim\.Split"):
        optim.chain(optim.SGD(), optim.Adam())
    for part in (3, optim.Lookahead, optim.EMA):
        with pytest.raises(TypeError, match=r"not a transformation. Give .*a function of a tree"):
            optim.chain(part, optim.SGD())
    model = Net().initialize(0)
    opt = optim.chain(optim.SGD(), lambda update: tree.map(lambda u: u.sum(), update))
    with pytest.raises(ValueError, match=r"Net.first has shape \(4, 3\) and its gradient has"):
        opt.step(model, ones(model), opt.init(model))
    opt = optim.chain(optim.SGD(), lambda update: {"first": update.first})
    with pytest.raises(ValueError, match=r"chain\(...\).step: the updates: the trees do not fit"):
        opt.step(model, ones(model), opt.init(model))


def test_parts_do_not_stand_after_an_optimizer_that_leaves_out_steps() -> None:
    skip, every = optim.SkipNonfinite(optim.SGD()), optim.Accumulate(optim.SGD(), 2)
    inside = r"Put the chain inside: optim.SkipNonfinite\(optim.chain\(SGD\(...\), Lookahead"
    for opt in (skip, optim.chain(optim.ClipNorm(1.0), skip), optim.Split({"at": skip})):
        with pytest.raises(ValueError, match=r"Lookahead stands after .*, which leaves out steps"):
            optim.chain(opt, optim.Lookahead())
    with pytest.raises(ValueError, match=inside):
        optim.chain(skip, optim.Lookahead())
    with pytest.raises(
        ValueError, match=r"optim.Accumulate\(optim.chain\(SGD\(...\), halved\), ev"
    ):
        optim.chain(every, halved)
    optim.chain(optim.ClipNorm(1.0), every)  # which clips each gradient


def halved(update: Any) -> Any:
    return tree.scale(update, 0.5)


def test_a_state_of_a_chain_of_other_parts_is_refused() -> None:
    short = optim.chain(optim.ClipNorm(1.0), optim.SGD())
    long = optim.chain(optim.ClipNorm(1.0), optim.SGD(), optim.Lookahead())
    point = Point(torch.ones(1))
    with pytest.raises(ValueError, match=r"made for a chain of 2 parts, and this one has 3\. Make"):
        long.step(point, point, short.init(point))
    with pytest.raises(ValueError, match=r"made for a chain of 3 parts, and this one has 2\. Make"):
        short.step(point, point, long.init(point))


def test_bad_options_are_refused() -> None:
    wrong: list[tuple[Any, type[Exception], str]] = [
        (lambda: optim.Lookahead(k=0), ValueError, "k must be 1 or more, got 0"),
        (lambda: optim.Lookahead(alpha=1.5), ValueError, "alpha must be between 0 and 1, got 1.5"),
        (lambda: optim.ClipAdaptive(0.0), ValueError, "clipping must be above 0, got 0.0"),
        (lambda: optim.ClipAdaptive(eps=-1), ValueError, "eps must be 0 or more, got -1"),
        (lambda: optim.AddNoise(-1.0, 0), ValueError, "eta must be 0 or more, got -1.0"),
        (lambda: optim.AddNoise(1.0, "seed"), TypeError, "expected a Key, an int"),  # type: ignore[arg-type]  # that is what is tested
        (lambda: optim.SkipNonfinite(optim.Adam), TypeError, "Pass an instance: optim.AdamW"),
    ]
    for make, error, message in wrong:
        with pytest.raises(error, match=message):
            make()
    point = Point(torch.ones(2, dtype=torch.complex64))
    opt = optim.chain(optim.AddNoise(1.0, 0), optim.SGD())
    with pytest.raises(TypeError, match=r"gradient of at is torch.complex64, and the noise is"):
        opt.step(point, point, opt.init(point))
    with pytest.raises(TypeError, match=r"Lookahead.update: the state must be what init returned"):
        optim.Lookahead().update(point, None, point)  # type: ignore[arg-type]  # that is what is tested


def test_a_chain_takes_the_gradients_of_a_loss() -> None:
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    model = Net().initialize(0)
    opt = all_of_them()

    def loss(net: Net) -> Tensor:
        return (net(x) - 0.5).square().mean()

    state, before = opt.init(model), loss(model)
    for _ in range(20):
        model, state = opt.step(model, func.grad(loss)(model), state)
    assert loss(model) < before
