"""What stands around an optimizer: averages, scalers, accumulation, chains and splits."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

import parallax
from parallax import Module, Parameter, func, optim, tree
from tests.corpus import MLP, MODULES, Norm
from tests.optim.cases import Matrices, Net, Point, distance, gradients, model_for


def assert_close(one: Any, two: Any, tolerance: float = 0.0) -> None:
    for a, b in zip(tree.leaves(one), tree.leaves(two), strict=True):
        assert a.dtype == b.dtype and distance(a, b) <= tolerance


# -- averages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["swa", "ema"])
@pytest.mark.parametrize("name", ["mlp", "norm"])
def test_averages_are_those_of_torch(kind: str, name: str) -> None:
    case = next(case for case in MODULES if case.name == name)
    averager = optim.SWA() if kind == "swa" else optim.EMA(0.9)
    make_rule: Any = get_swa_multi_avg_fn if kind == "swa" else partial(get_ema_multi_avg_fn, 0.9)
    rule = make_rule()
    models = [case.make(seed) for seed in range(5)]
    theirs = AveragedModel(copy.deepcopy(case.twin(models[0])), multi_avg_fn=rule)
    average = averager.init(models[0])
    for model in models:
        average = averager.update(average, model)
        theirs.update_parameters(case.twin(model))
    values = dict(theirs.module.named_parameters()) | dict(theirs.module.named_buffers())
    for path, leaf in tree.named_leaves(average.model).items():
        assert distance(leaf, values[path].detach()) <= 1e-6, path
    assert average.count.item() == 5 and type(average.model) is type(models[0])


def test_an_average_holds_no_memory_of_a_model_and_no_graph() -> None:
    model = tree.map(lambda p: p.requires_grad_(), MLP().initialize(0))
    average = optim.EMA(0.5).init(model)
    average = optim.EMA(0.5).update(average, model)
    assert not any(leaf.requires_grad for leaf in tree.leaves(average))
    memory = {leaf.data_ptr() for leaf in tree.leaves(model)}
    assert memory.isdisjoint(leaf.data_ptr() for leaf in tree.leaves(average))
    other: Any = Net().initialize(0)
    with pytest.raises(ValueError, match="do not fit together"):
        optim.SWA().update(average, other)
    with pytest.raises(ValueError, match=r"decay must be between 0 and 1, got 1.5"):
        optim.EMA(1.5)


@pytest.mark.parametrize("averager", [optim.SWA(), optim.EMA(0.9)])
def test_averages_compile_to_one_graph(averager: Any) -> None:
    counter = torch._dynamo.testing.CompileCounter()
    update: Any = torch.compile(averager.update, fullgraph=True, backend=counter)
    average = mine = averager.init(Norm().initialize(0))
    for seed in range(4):
        model = Norm().initialize(seed)
        average, mine = averager.update(average, model), update(mine, model)
    assert counter.frame_count == 1
    assert_close(mine, average, 1e-6)
    torch._dynamo.reset()


# -- mixed precision -------------------------------------------------------------------------------


def test_the_scaler_is_torchs() -> None:
    settings: dict[str, Any] = {"init_scale": 8.0, "growth_interval": 3}
    scaler, theirs = optim.LossScaler(**settings), torch.amp.GradScaler("cpu", **settings)
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], lr=0.1)
    point, opt = Point(torch.ones(2)), optim.SGD(lr=0.1)
    state, scale = opt.init(point), scaler.init()
    theirs.scale(torch.zeros(()))  # which makes its state
    for k in range(12):
        bad = k in (1, 8)
        grad = torch.tensor([1.0, torch.inf if bad else 2.0])
        param.grad = grad * theirs.get_scale()
        theirs.step(optimizer)
        theirs.update()
        grads = Point(scaler.scale(grad, scale))
        point, state, scale = scaler.step(opt, point, grads, state, scale)
        assert scale.scale.item() == theirs.get_scale()
        assert distance(point.at, param.detach()) <= 1e-6
    assert state.step.item() == 10


def test_the_state_of_the_scaler_shows_its_numbers_where_there_are_some() -> None:
    scale = optim.LossScaler(8.0).init()
    assert repr(scale) == "Scale(scale=8.0, growth_tracker=0)"
    assert "meta" in repr(tree.to(scale, "meta")) and "[8., 8.]" in repr(tree.stack([scale] * 2))
    texts: list[str] = []

    def show(each: Any) -> Any:
        texts.append(repr(each))
        return each.scale

    func.vmap(show)(tree.stack([scale] * 2))
    assert "8., 8." in texts[0]


def test_the_scaler_compiles_to_one_graph() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    scaler, opt = optim.LossScaler(8.0, growth_interval=2), optim.Adam(lr=0.1)
    point = end = Point(torch.ones(2))
    state = end_state = opt.init(point)
    scale = end_scale = scaler.init()
    step = torch.compile(
        lambda m, g, s, c: scaler.step(opt, m, g, s, c), fullgraph=True, backend=counter
    )
    for value in (1.0, torch.inf, 2.0, 3.0):
        grads = Point(torch.tensor([value, 1.0]))
        point, state, scale = scaler.step(opt, point, grads, state, scale)
        end, end_state, end_scale = step(end, grads, end_state, end_scale)
    assert counter.frame_count == 1
    assert_close((end, end_state, end_scale), (point, state, scale), 1e-6)
    torch._dynamo.reset()
    with pytest.raises(ValueError, match="growth_factor must be above 1"):
        optim.LossScaler(growth_factor=0.5)


# -- accumulation ----------------------------------------------------------------------------------


def test_accumulated_steps_are_steps_with_the_mean() -> None:
    inner = optim.AdamW(lr=0.1)
    opt, model = optim.Accumulate(inner, every=3), Net().initialize(0)
    state = opt.init(model)
    expected, expected_state = model, inner.init(model)
    grads = list(gradients(model, 6))
    for k, grad in enumerate(grads):
        before = model
        model, state = opt.step(model, grad, state)
        assert (model is before) == (k % 3 != 2)
    for part in (grads[:3], grads[3:]):
        mean = tree.map(lambda *g: torch.stack(g).sum(0) / 3, *part)
        expected, expected_state = inner.step(expected, mean, expected_state)
    assert_close(model, expected, 1e-6)
    with pytest.raises(ValueError, match="every must be an int of at least 1, got 0"):
        optim.Accumulate(inner, 0)


def test_donated_accumulation_is_the_same_to_the_bit_and_writes_into_its_state_only() -> None:
    opt = optim.Accumulate(optim.AdamW(lr=0.1), every=3)
    model = plain = Net().initialize(0)
    state, plain_state = opt.init(model), opt.init(model)
    window = tree.leaves(state.sum)[0].view(-1)[:1]  # it shares memory with the first sum
    model = tree.map(torch.clone, model)
    for k, grads in enumerate(list(gradients(model, 7))):
        given = grads if k != 5 else tree.partition(grads, "first")[1]
        before = tree.map(torch.clone, given)
        last, (model, state) = state, opt.step(model, given, state, donate=True)
        plain, plain_state = opt.step(plain, given, plain_state)
        assert_close((model, state), (plain, plain_state))
        assert_close(given, before)
        with pytest.raises(optim.DonatedError):
            _ = last.sum
    assert window.item() == 0.0


def test_a_gradient_that_is_the_sum_itself_is_added_to_a_copy() -> None:
    opt, point = optim.Accumulate(optim.SGD(lr=1.0), every=4), Point(torch.zeros(2))
    _, state = opt.step(point, Point(torch.ones(2)), opt.init(point))
    (taken,) = tree.leaves(state.sum)
    _, state = opt.step(point, Point(taken), state, donate=True)
    assert tree.equal(state.sum, Point(torch.full((2,), 2.0)))
    assert taken.tolist() == [1.0, 1.0]


def test_what_an_optimizer_keeps_of_the_mean_is_not_written_again() -> None:
    class Keeps:
        """Its state is the last gradient."""

        def init(self, model: Any) -> Any:
            return tree.map(torch.zeros_like, model)

        def step(self, model: Any, grads: Any, state: Any, *, donate: bool = False) -> Any:
            del state, donate
            return model, grads

    opt, point = optim.Accumulate(Keeps(), every=2), Point(torch.zeros(1))
    state = opt.init(point)
    for grad in (1.0, 3.0, 7.0):
        point, state = opt.step(point, Point(torch.tensor([grad])), state, donate=True)
    assert tree.equal(state.inner, Point(torch.tensor([2.0])))
    assert tree.equal(state.sum, Point(torch.tensor([7.0])))


class Pair(Module):
    one: Parameter
    two: Parameter


def test_a_sum_in_the_memory_of_the_model_or_of_a_moment_is_written_as_a_copy() -> None:
    opt = optim.Accumulate(optim.SGD(lr=1.0, momentum=0.9), every=4)
    at, moment = torch.ones(2), torch.full((2,), 3.0)
    start: Any = opt.init(Point(at))
    for taken in (at, at[:], moment):
        inner = start.inner.replace(moments={"momentum_buffer": Point(moment)})
        state = start.replace(inner=inner, sum=Point(taken))
        expected = taken + 5
        _, after = opt.step(Point(at), Point(torch.full((2,), 5.0)), state, donate=True)
        assert at.tolist() == [1.0, 1.0] and moment.tolist() == [3.0, 3.0]
        assert tree.equal(after.sum, Point(expected))


@pytest.mark.parametrize("donate", [False, True])
def test_gradients_that_have_a_tied_leaf_twice_are_added_and_divided_once(donate: bool) -> None:
    weight = torch.ones(2)
    model, opt = Pair(weight, weight), optim.Accumulate(optim.SGD(lr=1.0), every=2)
    state, apart = opt.init(model), Pair(torch.ones(2), torch.ones(2))
    for value in (2.0, 4.0):
        grad = torch.full((2,), value)
        model, state = opt.step(model, tree.map(lambda _: grad, apart), state, donate=donate)  # noqa: B023  # called at once
    assert model.one.tolist() == [-2.0, -2.0] and model.one is model.two


def test_a_gradient_that_cannot_be_added_leaves_the_donated_state_as_it_was() -> None:
    model, opt = Pair(torch.zeros(2), torch.zeros(2)), optim.Accumulate(optim.SGD(), every=3)
    _, state = opt.step(model, tree.map(torch.ones_like, model), opt.init(model))
    with pytest.raises(RuntimeError, match="device"):
        opt.step(model, Pair(torch.ones(2), torch.ones(2, device="meta")), state, donate=True)
    assert tree.equal(state.sum, Pair(torch.ones(2), torch.ones(2)))


@pytest.mark.parametrize("donate", [False, True])
def test_sums_keep_the_memory_format_of_the_model(donate: bool) -> None:
    image = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    model, opt = Point(image), optim.Accumulate(optim.SGD(), every=2)
    state = opt.init(model)
    for _ in range(3):
        assert tree.leaves(state.sum)[0].is_contiguous(memory_format=torch.channels_last)
        model, state = opt.step(model, tree.map(torch.ones_like, model), state, donate=donate)


@pytest.mark.parametrize("donate", [False, True])
def test_a_leaf_without_a_sum_begins_at_zero(donate: bool) -> None:
    whole = Pair(torch.zeros(2), torch.zeros(2))
    opt = optim.Accumulate(optim.SGD(lr=1.0), every=2)
    state = opt.init(tree.select(whole, "two").freeze())
    assert tree.named_leaves(state.sum).keys() == {"one"}
    for value in (2.0, 4.0):
        grads = tree.map(lambda p: torch.full_like(p, value), whole)  # noqa: B023  # called at once
        whole, state = opt.step(whole, grads, state, donate=donate)
    assert whole.one.tolist() == whole.two.tolist() == [-3.0, -3.0]


def test_a_mean_is_of_as_many_gradients_as_were_added() -> None:
    more, fewer = optim.Accumulate(optim.SGD(lr=1.0), 5), optim.Accumulate(optim.SGD(lr=1.0), 2)
    point = Point(torch.zeros(1))
    state = more.init(point)
    for value in (1.0, 2.0, 6.0):
        _, state = more.step(point, Point(torch.tensor([value])), state)
    compiled: Any = torch.compile(fewer.step, fullgraph=True, backend="eager")
    for step in (fewer.step, compiled, partial(fewer.step, donate=True)):
        after, later = step(Point(torch.zeros(1)), Point(torch.tensor([11.0])), state)
        assert after.at.item() == -5.0 and later.count.item() == 0
    torch._dynamo.reset()


def test_donation_works_with_every_optimizer_inside_or_is_refused_at_once() -> None:
    class Plain:
        def init(self, model: Any) -> Any:
            return model

        def step(self, model: Any, grads: Any, state: Any) -> Any:
            return tree.map(torch.sub, model, grads), state

    opt, model = optim.Accumulate(optim.from_torch(torch.optim.Adam), every=2), Net().initialize(0)
    plain, state, plain_state = model, opt.init(model), opt.init(model)
    model = tree.map(torch.clone, model)
    for grads in gradients(plain, 4):
        plain, plain_state = opt.step(plain, grads, plain_state)
        model, state = opt.step(model, grads, state, donate=True)
    assert_close((model, state), (plain, plain_state))
    other = optim.Accumulate(Plain(), every=2)
    begun, ones = other.init(model), tree.map(torch.ones_like, model)
    with pytest.raises(TypeError, match=r"the step of Plain, which takes no donate. Leave it out"):
        other.step(model, ones, begun, donate=True)
    assert other.step(model, ones, begun)[0] is model


def test_accumulation_compiles_to_one_graph() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    opt, model = optim.Accumulate(optim.Adam(lr=0.1), every=2), Net().initialize(0)
    step = torch.compile(opt.step, fullgraph=True, backend=counter)
    state = end_state = opt.init(model)
    end = model
    for grads in gradients(model, 5):
        model, state = opt.step(model, grads, state)
        end, end_state = step(end, grads, end_state)
    assert counter.frame_count == 1
    assert_close((end, end_state), (model, state), 1e-6)
    torch._dynamo.reset()


# -- chains and splits -----------------------------------------------------------------------------


class Sum:
    """A transformation with a state: the sum of all gradients so far."""

    def init(self, model: Any) -> Any:
        return tree.map(torch.zeros_like, model)

    def update(self, grads: Any, state: Any, model: Any) -> Any:
        del model
        total = tree.map(torch.add, state, grads)
        return total, total


def test_a_chain_applies_its_parts_in_turn() -> None:
    opt = optim.chain(lambda g: tree.map(torch.neg, g), Sum(), optim.ClipValue(1.5), optim.SGD(1.0))
    point = Point(torch.zeros(2))
    state = opt.init(point)
    for _ in range(2):
        point, state = opt.step(point, Point(torch.tensor([1.0, 0.5])), state)
    assert point.at.tolist() == [1 + 1.5, 0.5 + 1.0]


def test_each_part_of_a_split_is_stepped_by_its_own_optimizer() -> None:
    model = model_for("Adam")
    opt = optim.Split({lambda path, p: p.ndim == 2: optim.Muon(lr=0.1)}, rest=optim.Adam(lr=0.05))
    state = opt.init(model)
    params = {k: v.clone().requires_grad_() for k, v in tree.named_leaves(model).items()}
    muon = torch.optim.Muon([params["first"], params["second"]], lr=0.1)
    adam = torch.optim.Adam([params["bias"], params["scale"]], lr=0.05)
    for grads in gradients(model, 5):
        for path, grad in tree.named_leaves(grads).items():
            params[path].grad = grad
        model, state = opt.step(model, grads, state)
        muon.step()
        adam.step()
    for path, leaf in tree.named_leaves(model).items():
        assert distance(leaf, params[path].detach()) <= 1e-6


def test_without_a_rest_other_leaves_stay() -> None:
    model = Matrices().initialize(0)
    opt = optim.Split({"first": optim.SGD(lr=1.0)})
    stepped, _ = opt.step(model, tree.map(torch.ones_like, model), opt.init(model))
    assert stepped.second is model.second
    assert torch.equal(stepped.first, model.first - 1)
    with pytest.raises(LookupError, match=r"optim.Split.init: groups\['third'\]"):
        optim.Split({"third": optim.SGD()}).init(model)
    with pytest.raises(TypeError, match="Split takes a dict of conditions to optimizers"):
        optim.Split([optim.SGD()])  # type: ignore[arg-type]  # that is what is tested


def test_a_split_compiles_and_donates() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    model = end = model_for("Adam")
    opt = optim.Split({lambda path, p: p.ndim == 2: optim.Muon()}, rest=optim.AdamW())
    step = torch.compile(opt.step, fullgraph=True, backend=counter)
    state = end_state = opt.init(model)
    donated, donated_state = tree.map(torch.clone, model), opt.init(model)
    for grads in gradients(model, 3):
        model, state = opt.step(model, grads, state)
        end, end_state = step(end, grads, end_state)
        donated, donated_state = opt.step(donated, grads, donated_state, donate=True)
    assert counter.frame_count == 1
    assert_close(end, model, 1e-6)
    assert_close(donated, model)
    torch._dynamo.reset()


# -- files -----------------------------------------------------------------------------------------

RUNS: dict[str, Any] = {
    "plain": lambda: optim.Adam(lr=0.1),
    "momentum that begins with a gradient": lambda: optim.SGD(momentum=0.9, dampening=0.5),
    "chain": lambda: optim.chain(optim.ClipNorm(1.0), Sum(), optim.Adam(lr=0.1)),
    "split": lambda: optim.Split({"first": optim.SGD(momentum=0.9)}, rest=optim.Adam(lr=0.1)),
    "accumulate": lambda: optim.Accumulate(optim.RMSprop(), 2),
    "parts before and after": lambda: optim.SkipNonfinite(
        optim.chain(optim.AddNoise(0.1, 0), optim.Adam(lr=0.1), optim.Lookahead(k=2))
    ),
    "of torch": lambda: optim.from_torch(torch.optim.Adam, lr=0.1, amsgrad=True),
}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("make", RUNS.values(), ids=list(RUNS))
def test_a_state_of_leaves_of_several_ages_is_resumed_from_a_file(
    make: Any, suffix: str, tmp_path: Path
) -> None:
    opt, model = make(), Net().initialize(0)
    state = opt.init(tree.select(model, "second").freeze())
    grads = list(gradients(model, 8))
    for k in (1, 2, 4):
        grads[k] = tree.partition(grads[k], "bias")[1]
    for grad in grads[:5]:
        model, state = opt.step(model, grad, state)
    files = tmp_path / f"model.{suffix}", tmp_path / f"state.{suffix}"
    parallax.io.save(model, files[0])
    parallax.io.save(state, files[1])
    other: Any = parallax.io.load(files[0], like=Net().initialize(7))
    fresh = opt.init(other)
    resumed = parallax.io.load(files[1], like=fresh)
    for grad in grads[5:]:
        model, state = opt.step(model, grad, state)
        other, resumed = opt.step(other, grad, resumed)
    assert_close((other, resumed), (model, state))


def test_a_state_of_another_model_is_not_resumed(tmp_path: Path) -> None:
    opt, path = optim.Adam(), tmp_path / "state.pt"
    parallax.io.save(opt.init(MLP().initialize(0)), path)
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*Unexpected key"):
        parallax.io.load(path, like=opt.init(Matrices().initialize(0)))


# -- bad input -------------------------------------------------------------------------------------


def test_a_state_of_another_kind_is_refused() -> None:
    model, adam, scaler = Net().initialize(0), optim.Adam(), optim.LossScaler()
    state = adam.init(model)
    others: dict[str, Any] = {
        r"chain\(...\).step": optim.chain(optim.ClipNorm(1.0), adam),
        "optim.Split.step": optim.Split({"first": adam}),
        "optim.Accumulate.step": optim.Accumulate(adam, 2),
    }
    for name, opt in others.items():
        match = f"{name}: the state must be what init returned, got a State. Make one: state = opt"
        with pytest.raises(TypeError, match=match):
            opt.step(model, model, state)
    with pytest.raises(TypeError, match=r"optim.Adam.step: .* got a Chained"):
        adam.step(model, model, others[r"chain\(...\).step"].init(model))
    with pytest.raises(TypeError, match=r"LossScaler.step: .*Make one: state = scaler.init\(\)"):
        scaler.step(adam, model, model, state, state)  # type: ignore[arg-type]  # as tested
    with pytest.raises(TypeError, match=r"EMA.update: .* got None. Make one: state = ema.init"):
        optim.EMA().update(None, model)  # type: ignore[arg-type]  # that is what is tested


def test_gradients_of_other_shapes_are_not_spread_over_a_sum() -> None:
    model, opt = Net().initialize(0), optim.Accumulate(optim.SGD(), 2)
    grads = tree.map(lambda g: g.sum(), model)
    with pytest.raises(ValueError, match=r"Net.first has shape \(4, 3\) and its gradient has \(\)"):
        opt.step(model, grads, opt.init(model))
    with pytest.raises(ValueError, match=r"Accumulate.step: the gradients: the trees do not fit"):
        opt.step(model, MLP().initialize(0), opt.init(model))


def test_a_scaler_without_any_gradient_steps_nothing() -> None:
    model, opt, scaler = Net().initialize(0), optim.SGD(), optim.LossScaler()
    holes = tree.partition(model, "parameter")[1]
    after, _, scale = scaler.step(opt, model, holes, opt.init(model), scaler.init())
    assert_close(after, model)
    assert scale.growth_tracker.item() == 1


def test_an_unknown_keyword_is_answered() -> None:
    opt: Any = optim
    with pytest.raises(TypeError, match=r"optim.SAM got .* 'r'. Write optim.SAM\(opt, rho=0.05\)"):
        opt.SAM(opt.SGD(0.1), r=1.0)
    with pytest.raises(TypeError, match=r"optim.ASAM got .* 'r'. Write optim.ASAM\(opt, rho=0.5"):
        opt.ASAM(opt.SGD(0.1), r=1.0)
    with pytest.raises(TypeError, match=r"optim.EMA got .* 'rate'. Write optim.EMA\(decay=0.999\)"):
        opt.EMA(rate=1.0)
    with pytest.raises(TypeError, match=r"optim.Lookahead got .* 'kk'. Write .*\(k=5, alpha=0.5\)"):
        opt.Lookahead(kk=3)
    with pytest.raises(TypeError, match=r"schedules.StepLR missing .*StepLR\(lr, step_size, "):
        opt.schedules.StepLR(0.1)
