"""``compile(..., donate=...)``: the numbers of a pure call, in memory that was given away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Module, Parameter, effects, func, nn, optim, random, tree
from parallax.optim import DonatedError
from tests.compiling import make_compiled
from tests.optim.test_operator import wide

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
BOTH = ("model", "state")


class Net(Module):
    first: Parameter
    second: Parameter

    def forward(self, x: Tensor) -> Any:
        return torch.tanh(x @ self.first) @ self.second


def small() -> Any:
    generator = torch.Generator().manual_seed(1)
    sizes = ((3, 4), (4, 2))
    return Net(*[torch.randn(size, generator=generator) for size in sizes])


def own(value: Any) -> Any:
    """A copy that shares nothing with anybody."""
    return tree.map(torch.clone, value)


def training(opt: Any) -> Callable[..., Any]:
    def train(model: Any, state: Any, x: Tensor) -> Any:
        grads, loss = func.grad_and_value(lambda net: net(x).square().mean())(model)
        return *opt.step(model, grads, state), loss

    return train


def places(value: Any) -> list[int]:
    """Where the numbers are, but for single ones, which are no memory to save."""
    leaves = [leaf for leaf in tree.leaves(value) if leaf.is_floating_point()]
    return [leaf.data_ptr() for leaf in leaves if leaf.numel() > 1]


def assert_close(mine: Any, theirs: Any) -> None:
    for one, two in zip(tree.leaves(mine), tree.leaves(theirs), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


# -- steps --------------------------------------------------------------------------------------


OPTIMIZERS: dict[str, tuple[Callable[[], Any], Any]] = {
    "operator": (wide, optim.AdamW(lr=0.05)),
    "leaf by leaf": (small, optim.Adam(lr=0.05)),
    "clipped": (small, optim.chain(optim.ClipNorm(1.0), optim.SGD(lr=0.05, momentum=0.9))),
    "groups": (wide, optim.SGD(momentum=0.9, groups={lambda path, p: p.ndim == 1: {"lr": 0.02}})),
    "parts": (small, optim.Split({"first": optim.Adam()}, rest=optim.RMSprop())),
    "accumulated": (small, optim.Accumulate(optim.Adam(lr=0.05), every=2)),
}


@pytest.mark.parametrize(("make", "opt"), OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_steps_have_the_numbers_of_eager_ones_and_stay_in_their_memory(make: Any, opt: Any) -> None:
    train = training(opt)
    step = make_compiled(train, donate=BOTH, backend="aot_eager")
    model = make()
    pure = model, opt.init(model)
    model = own(model)
    state = opt.init(model)
    memory = places((model, state))
    for _ in range(4):
        before = model, state
        *pure, loss = train(*pure, X)
        model, state, mine = step(model, state, X)
        assert_close((model, state, mine), (*pure, loss))
        assert places((model, state)) == memory
        for gone in before:
            with pytest.raises(DonatedError, match="was given to train, which reused its memory"):
                gone.train()


def test_the_default_backend_writes_in_place_and_reads_first() -> None:
    opt = optim.AdamW(lr=0.05)
    swap_opt = optim.SGD(lr=0.1, momentum=0.9)

    def step_by_step(model: Any, state: Any, net: Any, moments: Any, x: Tensor) -> Any:
        grads, loss = func.grad_and_value(lambda net: net(x).square().mean())(model)
        # Copies of parameters as gradients, which inductor leaves out.
        again = tree.partition(tree.map(torch.clone, model), "trainable")[0]
        after, state = opt.step(model, tree.add(grads, again), state)
        net_grads = tree.map(torch.clone, net)
        net, moments = swap_opt.step(net, net_grads, moments)
        # The old model after the step.
        return loss, after, state, net, moments, tree.norm(model)

    names = ("model", "state", "net", "moments")
    eager: Any = step_by_step
    step: Any = parallax.compile(step_by_step, donate=names)
    pure: Any = wide(), opt.init(wide()), wide(), swap_opt.init(wide())
    pure = (*pure[:2], tree.partition(pure[2], "trainable")[0], pure[3])
    mine = own(pure)
    memory = places(mine)
    for _ in range(3):
        ends = eager(*pure, X)
        found = step(*mine, X)
        assert_close(found, ends)
        pure, mine = ends[1:5], found[1:5]
        assert places(mine) == memory


def test_each_leaf_stays_in_its_place_whatever_is_returned_first() -> None:
    opt = optim.Adam(lr=0.1)
    train = training(opt)

    def turned(state: Any, model: Any, x: Tensor) -> Any:
        model, state, loss = train(model, state, x)
        return {"loss": loss, "state": state}, -x, model

    step = make_compiled(turned, donate=BOTH, backend="aot_eager")
    model, state = own(small()), opt.init(small())
    for _ in range(2):
        memory = places(model), places(state)
        found, _, model = step(state, model, X)
        state = found["state"]
        assert (places(model), places(state)) == memory


def test_results_in_another_order_and_number() -> None:
    def turn(a: Any, b: Any) -> Any:
        return b.second @ a.second.T, a.update(torch.add, b), tree.map(torch.neg, a)

    step = make_compiled(turn, donate=("a", "b"), backend="aot_eager")
    for _ in range(2):
        a, b = own(small()), tree.map(lambda leaf: 2 * leaf, small())
        assert_close(step(own(a), own(b)), turn(a, b))


def test_results_that_are_what_was_given_are_left_alone() -> None:
    def give(model: Any, x: Tensor) -> Any:
        new = tree.map(lambda leaf: leaf + 1, model)
        return new, model.first, model.second[1], x, {"old": model}

    step = make_compiled(give, donate="model", backend="aot_eager")
    model = own(small())
    found = step(model, X)
    assert_close(found, give(small(), X))
    assert found[3] is X
    with pytest.raises(DonatedError):
        model(X)


class Held(Module):
    one: Parameter
    act: Callable[..., Any] | None = None


def test_a_module_that_the_function_makes_keeps_what_it_holds() -> None:
    def hold(model: Any) -> Any:
        return tree.map(lambda leaf: leaf + 1, model), Held(model.first)

    def hold_more(model: Any) -> Any:
        return tree.map(lambda leaf: leaf + 1, model), Held(model.first[:2], lambda x: x)

    for fn in (hold, hold_more):
        found = make_compiled(fn, donate="model", backend="aot_eager")(own(small()))
        assert_close(found, fn(small()))


def test_tied_frozen_and_integer_leaves() -> None:
    opt = optim.SGD(lr=0.1)
    model = wide()
    model = tree.select(model, "leaves.4").set(model.leaves[0])
    model = tree.select(model, "leaves.2").freeze()
    train = training(opt)
    step = make_compiled(train, donate=BOTH, backend="aot_eager")
    mine: Any = own(model), opt.init(model)
    pure: Any = model, opt.init(model)
    for _ in range(3):
        *mine, _ = step(*mine, X)
        *pure, _ = train(*pure, X)
        assert_close(mine, pure)
    assert mine[0].leaves[4] is mine[0].leaves[0]


def test_running_statistics_dropout_and_averages() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).initialize(0)
    opt, ema = optim.SGD(lr=0.1, momentum=0.9), optim.EMA(0.9)

    def train(model: Any, state: Any, average: Any, key: Any, x: Tensor) -> Any:
        def loss(model: Any) -> Any:
            out, after = effects.collect(lambda model: model(x))(model)
            return out.square().mean(), after

        grads, after = func.grad(loss, has_aux=True)(model.train(key))
        model, state = opt.step(after.eval(), grads, state)
        return model, state, ema.update(average, model)

    eager: Any = train
    step = make_compiled(train, donate=(0, 1, 2), backend="aot_eager")
    mine: Any = own(net), opt.init(net), ema.init(own(net))
    pure: Any = net, opt.init(net), ema.init(net)
    for k in range(3):
        mine = step(*mine, random.key(k), X)
        pure = eager(*pure, random.key(k), X)
        assert_close(mine, pure)


# -- memory -------------------------------------------------------------------------------------


def plus(model: Any) -> Any:
    return tree.map(lambda leaf: leaf + 1, model)


def strange() -> dict[str, tuple[Any, Tensor]]:
    """Leaves that are not dense and alone in their memory, and what else is in it."""
    base, array = torch.arange(24.0), torch.arange(8.0).reshape(4, 2).numpy()
    rows = base[:12].view(3, 4)
    return {
        "a slice": (Net(rows, torch.ones(4, 2)), base),
        "expanded": (Net(torch.ones(1, 4).expand(3, 4), torch.ones(4, 2)), base),
        "two windows": (Net(rows, base[4:12].view(4, 2)), base),
        "numpy's": (Net(torch.ones(3, 4), torch.from_numpy(array)), torch.from_numpy(array)),
        "transposed": (Net(torch.ones(4, 3).T, torch.ones(4, 2)), base),
    }


@pytest.mark.parametrize("name", list(strange()))
def test_memory_that_others_use_is_not_written(name: str) -> None:
    step = make_compiled(plus, donate=0, backend="aot_eager")
    model, other = strange()[name]
    kept = other.clone()
    expected = [leaf + 1 for leaf in tree.leaves(model)]
    assert_close(step(strange()[name][0]), expected)
    assert_close(step(model), expected)
    assert torch.equal(other, kept)


def test_a_tensor_that_the_function_closes_over_is_not_written() -> None:
    weight = torch.ones(3, 4)

    def shifted(model: Any) -> Any:
        return tree.map(lambda leaf: leaf + weight.sum(), model)

    found = make_compiled(shifted, donate="model", backend="aot_eager")(Net(weight, X.clone()))
    assert torch.equal(weight, torch.ones(3, 4))
    assert_close(found, [torch.full((3, 4), 13.0), X + 12])


def test_what_is_kept_stays_as_it_was() -> None:
    def mix(model: Any, other: Any) -> Any:
        return tree.add(model, other), other

    step = make_compiled(mix, donate="model", backend="aot_eager")
    other = small()
    before = own(other)
    for _ in range(3):
        step(own(small()), other)
    assert tree.equal(other, before)


def test_bare_tensors_and_containers_are_gone_too() -> None:
    def turn(cache: Any, x: Tensor) -> Any:
        return {"k": cache["k"] + x, "v": (cache["v"][0] * x,)}, x + 1

    step = make_compiled(turn, donate=("cache", 1), backend="aot_eager")
    cache: Any = {"k": torch.ones(3), "v": (torch.ones(3),)}
    for _ in range(3):
        old, x = cache, torch.full((3,), 2.0)
        expected = turn(old, x)
        expected = tree.map(torch.clone, expected)
        cache, after = step(old, x)
        assert_close((cache, after), expected)
        for gone in (old["k"], old["v"][0], x):
            with pytest.raises(DonatedError, match="a tensor was given away"):
                torch.neg(gone)


def test_a_second_structure_is_another_graph() -> None:
    step = make_compiled(plus, donate="model", backend="aot_eager")
    for model in (small(), wide(), small(), nn.Linear(2, 1).initialize(0)):
        whole = tree.map(lambda leaf: leaf.double(), model)
        assert_close(step(own(whole)), plus(whole))


# -- errors -------------------------------------------------------------------------------------


def test_an_error_while_tracing_gives_nothing_away() -> None:
    def wrong(model: Any, x: Tensor) -> Any:
        return plus(model), model(x).nonsense

    model = own(small())
    with pytest.raises(Exception, match="nonsense"):
        make_compiled(wrong, donate="model", backend="eager")(model, X)
    assert_close(model, small())


@torch.library.custom_op("tests::fails_if", mutates_args=())
def fails_if(x: Tensor) -> Tensor:
    if x.sum() > 0:
        raise RuntimeError("it is positive")
    return x.clone()


@fails_if.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_after_an_error_in_a_graph_the_arguments_are_gone() -> None:
    def run(model: Any, x: Tensor) -> Any:
        return tree.map(lambda leaf: leaf + 1, model), fails_if(x)

    step = make_compiled(run, donate="model", backend="aot_eager")
    model, _ = step(own(small()), -torch.ones(2))
    with pytest.raises(RuntimeError, match="it is positive"):
        step(model, torch.ones(2))
    with pytest.raises(DonatedError):
        tree.leaves(model)


def test_one_tensor_in_two_arguments_is_refused() -> None:
    def mix(model: Any, other: Any, x: Tensor) -> Any:
        return tree.add(model, other), x

    step = make_compiled(mix, donate="model", backend="eager")
    model = own(small())
    with pytest.raises(
        ValueError,
        match=r"mix: model.first is donated, and other.first, which is kept, is the same",
    ):
        step(model, model, X)
    with pytest.raises(ValueError, match=r"model.second is donated, and x, which is kept"):
        step(model, own(small()), model.second)
    both = make_compiled(mix, donate=(0, "other"), backend="eager")
    with pytest.raises(
        ValueError, match=r"mix: model and other are one tree, which is donated twice"
    ):
        both(model, model, X)
    with pytest.raises(
        ValueError, match=r"mix: model and other are one tree, which is donated twice"
    ):
        both(model, x=X, other=model)
    assert_close(model, small())
    # Two trees may share a tensor: it is copied.
    other = small().replace(first=model.first)
    assert_close(both(model, other, X), mix(small(), small(), X))
    model = own(small())
    step(model, own(small()), X)
    with pytest.raises(DonatedError):
        step(model, own(small()), X)


def test_where_nothing_can_be_given_away() -> None:
    step = make_compiled(plus, donate="model", backend="eager")
    two = tree.stack([small(), small()])
    with pytest.raises(
        ValueError, match=r"plus was compiled with donate, and is called in a torch"
    ):
        func.vmap(step)(two)
    with pytest.raises(ValueError, match=r"without donate: parallax.compile\(plus\)"):
        torch.func.grad(lambda model: tree.norm(step(model)))(small())
    with pytest.raises(ValueError, match=r"plus: model.first requires grad"):
        func.grad(lambda model: tree.norm(step(model)))(small())
    with pytest.raises(Exception, match="in another compiled function"):
        make_compiled(step, backend="eager")(small())
    with pytest.raises(ValueError, match=r"plus: model.first requires grad"):
        step(small().reset(0))
    with torch.no_grad():
        assert_close(step(own(small()).reset(0)), plus(small()))
    inside = make_compiled(lambda model: func.vmap(plus)(model), donate="model", backend="eager")
    assert_close(inside(own(two)), plus(two))


def test_donate_of_a_step_in_a_compiled_function() -> None:
    opt = optim.Adam()

    def train(model: Any, state: Any) -> Any:
        return opt.step(model, model, state, donate=True)

    model = small()
    with pytest.raises(
        Exception, match=r"write parallax.compile\(train, donate=\('model', 'state'"
    ):
        make_compiled(train, backend="eager")(model, opt.init(model))
    found = make_compiled(train, donate=BOTH, backend="eager")(own(model), opt.init(model))
    assert_close(found, opt.step(model, model, opt.init(model)))


def test_arguments_that_are_not_there() -> None:
    def step(model: Any, state: Any, /, x: Any, *, key: Any) -> Any:
        return model

    for donate, message in {
        "modle": r"donate='modle' is no argument of step\(model, state, x, key\)",
        "keys": r"Did you mean 'key'\?",
        3: r"donate=3 is no argument of step",
        -1: "a place from 0 on",
        (2, "x"): "names an argument twice",
    }.items():
        with pytest.raises(ValueError, match=message):
            make_compiled(step, donate=donate)
    for wrong in (True, None, 1.5, (0, None), {"x"}):
        with pytest.raises(TypeError, match="donate takes names or places of arguments, got"):
            make_compiled(step, donate=wrong)
    with pytest.raises(ValueError, match="Leave fullgraph=False out, or donate"):
        make_compiled(step, donate=0, fullgraph=False)


def test_methods_and_keywords() -> None:
    class Trainer(Module):
        rate: Parameter

        def step(self, model: Any, *, by: Any = None) -> Any:
            return tree.map(
                lambda leaf: leaf * self.rate + (0 if by is None else by.first.sum()), model
            )

        def forward(self, model: Any) -> Any:
            return self.step(model)

    trainer = Trainer(torch.tensor(2.0))
    step = make_compiled(trainer.step, donate=(0, "by"), backend="eager")
    model = own(small())
    assert_close(step(model), trainer.step(small()))
    with pytest.raises(DonatedError):
        tree.leaves(model)
    by = own(small())
    assert_close(step(own(small()), by=by), trainer.step(small(), by=small()))
    with pytest.raises(DonatedError):
        tree.leaves(by)
    call = make_compiled(trainer, donate=0, backend="eager")
    assert_close(call(own(small())), trainer(small()))
    assert float(trainer.rate) == 2


def test_a_module_in_two_trees_that_are_given_away_is_gone_once() -> None:
    class Half(Module):
        weight: Parameter
        act: nn.Sequential

    act: Any = nn.Sequential(torch.tanh, nn.Sequential(torch.sin))  # has no leaves
    one, two = (Half(torch.full((2,), value), act) for value in (1.0, 2.0))

    def total(one: Half, two: Half) -> Any:
        return one.act(one.weight) + two.act(two.weight)

    compiled = make_compiled(total, donate=("one", "two"))
    for _ in range(2):  # the second call finds the graph
        found = compiled(one, two)
        expected = torch.full((2,), 1.0).tanh().sin() + torch.full((2,), 2.0).tanh().sin()
        torch.testing.assert_close(found, expected)
        for gone in (one, two, act):
            with pytest.raises(DonatedError, match="was given to total"):
                gone.train()
        act = nn.Sequential(torch.tanh, nn.Sequential(torch.sin))
        one, two = (Half(torch.full((2,), value), act) for value in (1.0, 2.0))
