"""Optimizer classes of others as pure steps, and L-BFGS."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import parallax
from parallax import Module, debug, func, optim, random, tree
from tests.corpus import MLP, TiedParameter, example_input
from tests.optim.cases import FIRST, Net, Options, Point, Twin, gradients, label, model_for


class Odd(torch.optim.Optimizer):
    """Keeps numbers, lists and text per parameter, and a number that changes in its group."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "d": 1.0, "rounds": 0})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as torch's are
        del closure
        for group in self.param_groups:
            group["rounds"] += 1
            group["d"] *= 1.5
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                state.setdefault("count", 0)
                state.setdefault("history", [])
                state.setdefault("note", "text")
                state["count"] += 1
                state["history"].append(param.grad.clone())
                state["factor"] = 1.0 / state["count"]
                mean = torch.stack(state["history"]).mean(0)
                param.data.add_(mean, alpha=-group["lr"] * group["d"] * state["factor"])


@pytest.mark.parametrize(("name", "options"), [(n, o) for n, o in FIRST], ids=label)
def test_torchs_own_classes_have_the_very_bits(name: str, options: Options) -> None:
    model = model_for(name)
    cls = getattr(torch.optim, name)
    opt = optim.from_torch(cls, **options)
    twin, state = Twin(lambda params: cls(params, **options), model), opt.init(model)
    for k, grads in enumerate(gradients(model, 6)):
        if k == 3:
            first = next(iter(tree.named_leaves(model)))
            grads = tree.partition(grads, first)[1]  # noqa: PLW2901
        model, state = opt.step(model, grads, state)
        twin.step(grads)
    for path, leaf in tree.named_leaves(model).items():
        assert torch.equal(leaf, twin.params[path])
    for moments in state.moments.values():
        assert type(moments) is type(model)


def test_numbers_lists_and_changing_groups_are_carried() -> None:
    model = Net().initialize(0)
    opt = optim.from_torch(Odd, lr=0.01)
    twin, state = Twin(lambda params: Odd(params, lr=0.01), model), opt.init(model)
    for grads in gradients(model, 4):
        before = [leaf.clone() for leaf in tree.leaves((model, state))]
        after, later = opt.step(model, grads, state)
        kept = zip(tree.leaves((model, state)), before, strict=True)
        assert all(torch.equal(a, b) for a, b in kept)
        model, state = after, pickle.loads(pickle.dumps(later))
        twin.step(grads)
    for path, leaf in tree.named_leaves(model).items():
        assert torch.equal(leaf, twin.params[path])
    assert state.moments["count"].bias.item() == 4


class Counts(torch.optim.Optimizer):
    """Keeps the number of its steps in its state, under no parameter."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as torch's are
        del closure
        self.state.setdefault("k", torch.tensor([0]))  # type: ignore[call-overload]  # as some do
        self.state["k"] += 1  # type: ignore[index]  # the same
        for param in self.param_groups[0]["params"]:
            rate = self.param_groups[0]["lr"] / self.state["k"].item()  # type: ignore[index]  # the same
            param.data.add_(param.grad, alpha=-rate)


def test_what_an_optimizer_keeps_beside_its_parameters_is_carried() -> None:
    model = Net().initialize(0)
    opt = optim.from_torch(Counts)
    twin, state = Twin(Counts, model), opt.init(model)
    for grads in gradients(model, 4):
        model, state = opt.step(model, grads, state)
        state = pickle.loads(pickle.dumps(state))
        twin.step(grads)
    for path, leaf in tree.named_leaves(model).items():
        assert torch.equal(leaf, twin.params[path])


class Remembers(torch.optim.Optimizer):
    """Keeps what it needs in attributes of its own, beside some that never change."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})
        self.count = 0
        self.means: dict[Any, Any] = {}
        self.mine = self.param_groups[0]["params"]
        self.sign = torch.neg

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as torch's are
        del closure
        self.count += 1
        self.last = [self.count, None]
        for param in self.mine:
            mean = self.means.setdefault(param, torch.zeros_like(param))
            mean.lerp_(param.grad, 0.5)
            param.data.add_(self.sign(mean), alpha=self.param_groups[0]["lr"] / self.count)


def test_what_an_optimizer_keeps_in_attributes_of_its_own_is_carried() -> None:
    model = Net().initialize(0)
    opt = optim.from_torch(Remembers, lr=0.01)
    twin, state = Twin(lambda params: Remembers(params, lr=0.01), model), opt.init(model)
    for grads in gradients(model, 4):
        model, state = opt.step(model, grads, state)
        state = pickle.loads(pickle.dumps(state))
        twin.step(grads)
    for path, leaf in tree.named_leaves(model).items():
        assert torch.equal(leaf, twin.params[path])


class Around(torch.optim.Optimizer):
    """Holds another optimizer, whose state nobody sees."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.inner = torch.optim.Adam(self.param_groups[0]["params"])

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as torch's are
        del closure
        self.inner.step()


def test_an_attribute_that_cannot_be_carried_is_an_error_and_not_forgotten() -> None:
    model, opt = Net().initialize(0), optim.from_torch(Around)
    with pytest.raises(TypeError, match=r"from_torch\(Around\): its attribute inner keeps a Adam"):
        opt.step(model, model, opt.init(model))


def test_a_tie_is_one_parameter() -> None:
    model = TiedParameter().initialize(0)
    opt = optim.from_torch(torch.optim.SGD, lr=1.0)
    stepped, _ = opt.step(model, tree.map(torch.ones_like, model), opt.init(model))
    assert stepped.encoder.weight is stepped.decoder.weight
    assert torch.equal(stepped.encoder.weight, model.encoder.weight - 1)


def test_what_is_kept_of_a_leaf_waits_while_it_is_frozen() -> None:
    model, opt = Net().initialize(0), optim.from_torch(Odd, lr=0.01)
    grads = next(gradients(model, 1))
    model, state = opt.step(model, grads, opt.init(model))
    frozen = tree.select(model, "bias").freeze()
    after, state = opt.step(frozen, grads, state)
    assert after.bias is model.bias
    assert state.moments["count"].bias.item() == 1 and state.moments["count"].first.item() == 2
    thawed = tree.select(after, "bias").unfreeze()
    thawed, state = opt.step(thawed, grads, state)
    assert state.moments["count"].bias.item() == 2


# -- L-BFGS ----------------------------------------------------------------------------------------


def loss(net: Any, x: Tensor) -> Any:
    return (net(x) - 0.5).square().mean()


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_has_the_very_bits_of_torch_also_when_resumed(search: str | None) -> None:
    x, model = example_input(), MLP().initialize(0)
    settings: dict[str, Any] = {"lr": 0.5, "max_iter": 4, "history_size": 3}
    opt = optim.LBFGS(**settings, line_search_fn=search)
    state = opt.init(model)

    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    with torch.no_grad():
        for param, leaf in zip(net.parameters(), tree.leaves(model), strict=True):
            param.copy_(leaf)
    theirs = torch.optim.LBFGS(net.parameters(), **settings, line_search_fn=search)

    def closure() -> Any:
        theirs.zero_grad()
        value = loss(net, x)
        value.backward()
        return value

    first = loss(model, x)
    for _ in range(5):
        model, state = opt.step(model, lambda m: func.grad_and_value(loss)(m, x), state)
        state = pickle.loads(pickle.dumps(state))
        theirs.step(closure)
    for leaf, param in zip(tree.leaves(model), net.parameters(), strict=True):
        assert torch.equal(leaf, param)
    assert loss(model, x) < first / 2


def test_the_state_is_a_state() -> None:
    x, model = example_input(), tree.select(MLP().initialize(0), "first").freeze()
    opt = optim.LBFGS(max_iter=3)
    state = opt.init(model)
    made: Any = state
    assert isinstance(made, optim.State)
    for count in range(3):
        assert state.step.item() == count
        model, state = opt.step(model, lambda m: func.grad_and_value(loss)(m, x), state)
    assert state.clock_of == (-1, -1, 0, 0) and "LBFGS, step=3.0, leaves=2" in repr(state)
    wide = Point(torch.ones(2))
    with pytest.raises(ValueError, match=r"there Point.at has shape \(3,\), here \(2,\)"):
        opt.step(wide, lambda m: (m, m.at.sum()), opt.init(Point(torch.ones(3))))


def test_lbfgs_leaves_frozen_parameters_alone() -> None:
    x = example_input()
    model = tree.select(MLP().initialize(0), "first").freeze()
    opt = optim.LBFGS()
    stepped, _ = opt.step(model, lambda m: func.grad_and_value(loss)(m, x), opt.init(model))
    assert stepped.first.weight is model.first.weight
    assert loss(stepped, x) < loss(model, x)


def test_the_closure_may_read_its_keys_again_within_a_step_and_not_after() -> None:
    x, model = example_input(), MLP().initialize(0)
    opt, key = optim.LBFGS(max_iter=5), random.key(0)
    calls = []

    def noisy(net: Any, key: Any) -> Any:
        noise = random.normal(key, (4,))
        calls.append(noise)
        return (net(x) - noise).square().mean()

    def closure(net: Any) -> Any:
        return func.grad_and_value(noisy)(net, key)

    after, state = opt.step(model, closure, opt.init(model))
    assert len(calls) > 2 and all(torch.equal(noise, calls[0]) for noise in calls)
    with random.reuse():
        assert noisy(after, key) < noisy(model, key)
    with pytest.raises(random.KeyReusedError):
        opt.step(after, closure, state)


# -- in compiled code ------------------------------------------------------------------------------


class Noisy(torch.optim.Optimizer):
    """Draws from torch's generator, and keeps a list that grows until it is full."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as torch's are
        del closure
        for param in self.param_groups[0]["params"]:
            if param.grad is not None:
                recent = self.state[param].setdefault("recent", [])
                recent[:] = [*recent, param.grad + 0.01 * torch.randn_like(param)][-2:]
                param.data.sub_(torch.stack(recent).mean(0), alpha=0.1)


def square(model: Any, x: Tensor) -> Tensor:
    return model(x).square().mean()  # type: ignore[no-any-return]  # a tensor


def steps(run: Any, model: Any, state: Any, count: int) -> Any:
    torch.manual_seed(0)
    for k in range(count):
        model, state = run(model, state, example_input(k))
    return model, state


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    ("cls", "options", "graphs"),
    [(torch.optim.AdamW, {"amsgrad": True}, 2), (Odd, {}, 4), (Noisy, {}, 3)],
)
def test_compiled_it_has_the_bits_of_eager_code(cls: Any, options: Any, graphs: int) -> None:
    model = MLP().initialize(0)
    opt = optim.from_torch(cls, **options)

    def step(model: Any, state: Any, x: Tensor) -> Any:
        return opt.step(model, func.grad(square)(model, x), state)

    compiled: Any = parallax.compile(step, backend="aot_eager")
    with debug.trace_counts() as counts:
        found, found_state = steps(compiled, model, opt.init(model), 4)
    expected, expected_state = steps(step, model, opt.init(model), 4)
    assert counts[compiled] == graphs  # one for each set of what the class keeps
    assert tree.equal((found, found_state), (expected, expected_state))
    assert tree.structure(found_state) == tree.structure(expected_state)


class Stepwise(torch.optim.Optimizer):
    """Keeps a step size in its group, which is another only after large gradients, as Prodigy."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "d": 1.0})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as torch's are
        (group,) = self.param_groups
        for param in group["params"]:
            group["d"] = max(group["d"], param.grad.abs().max().item())
            param.data.sub_(param.grad, alpha=group["lr"] * group["d"])


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_a_number_may_stay_or_change() -> None:
    opt = optim.from_torch(Stepwise)
    step: Any = parallax.compile(opt.step, backend="aot_eager")
    point = other = Point(torch.ones(2))
    state = other_state = opt.init(point)
    for size in (0.5, 0.25, 7.0, 0.5):
        grads = Point(torch.full((2,), size))
        point, state = step(point, grads, state)
        other, other_state = opt.step(other, grads, other_state)
        assert tree.equal((point, state), (other, other_state))
        assert tree.structure(state) == tree.structure(other_state)


class Fickle(torch.optim.Optimizer):
    """Keeps something of large gradients alone."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as torch's are
        for param in self.param_groups[0]["params"]:
            if param.grad.abs().max() > 100:
                self.state[param]["large"] = param.grad.clone()


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_what_a_graph_cannot_hold_is_named() -> None:
    point, opt = Point(torch.ones(2)), optim.from_torch(Fickle)
    step: Any = parallax.compile(opt.step, backend="aot_eager")
    step(point, point, opt.init(point))
    with pytest.raises(RuntimeError, match=r"from_torch\(Fickle\).*keeps something else than when"):
        step(point, Point(torch.full((2,), 1e3)), opt.init(point))
    init: Any = parallax.compile(opt.init, backend="aot_eager")
    with pytest.raises(Exception, match=r"Call it before: state = opt.init\(model\)"):
        init(point)
    lbfgs = optim.from_torch(torch.optim.LBFGS, closure=True)

    def search(p: Any, s: Any) -> Any:
        loss: Any = lambda p: p.at.sum()  # noqa: E731  # with a type
        return lbfgs.step(p, func.grad_and_value(loss), s)

    searched: Any = parallax.compile(search, backend="aot_eager")
    with pytest.raises(Exception, match=r"calls a function again and again"):
        searched(point, lbfgs.init(point))
    mapped: Any = parallax.compile(
        lambda at, s: func.vmap(lambda at: opt.step(Point(at), Point(at), s)[0].at)(at),
        backend="aot_eager",
    )
    with pytest.raises(Exception, match=r"which transforms of torch.func cannot"):
        mapped(torch.ones(3, 2), opt.init(point))


# -- bad input -------------------------------------------------------------------------------------


def test_bad_input_is_refused() -> None:
    point = Point(torch.ones(1))
    sgd = optim.from_torch(torch.optim.SGD)
    state = sgd.init(point)
    with pytest.raises(TypeError, match=r"takes a subclass of torch.optim.Optimizer, got"):
        optim.from_torch(nn.Linear)  # type: ignore[arg-type]  # that is what is tested
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        optim.from_torch(torch.optim.SGD, lr=-1).init(point)
    with pytest.raises(TypeError, match="takes a tree of gradients; got a function"):
        sgd.step(point, lambda m: (m, 0), state)
    with pytest.raises(TypeError, match=r"takes a function of the model: lambda model: func.grad"):
        optim.LBFGS().step(point, point, optim.LBFGS().init(point))
    with pytest.raises(TypeError, match=r"returns \(grads, loss\), as func.grad_and_value does"):
        optim.LBFGS().step(point, lambda m: m.at.sum(), optim.LBFGS().init(point))
    with pytest.raises(ValueError, match="the state was not made by this optimizer"):
        sgd.step(point, point, optim.from_torch(torch.optim.Adam).init(point))
    with pytest.raises(RuntimeError, match=r"which transforms of torch.func cannot"):
        torch.vmap(lambda p: sgd.step(point, Point(p), state)[0].at)(torch.ones(2, 1))
    adam = optim.from_torch(torch.optim.Adam)
    other = Net().initialize(0)
    _, later = adam.step(other, other, adam.init(other))
    with pytest.raises(ValueError, match="made for another model: in its step"):
        adam.step(point, point, later)

    class Empty(Module):
        pass

    with pytest.raises(ValueError, match="Empty has nothing to train"):
        sgd.init(Empty())


class Modes(torch.optim.SGD):
    """Has modes, as the package schedulefree has."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


def test_a_class_with_modes_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Modes has modes.*Use optim\.AdamWScheduleFree"):
        optim.from_torch(Modes)


def test_what_cannot_be_carried_is_named() -> None:
    class Strange(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as torch's are
            for param in self.param_groups[0]["params"]:
                self.state[param]["thing"] = object()

    point, opt = Point(torch.ones(1)), optim.from_torch(Strange)
    with pytest.raises(TypeError, match=r"from_torch\(Strange\) keeps a object, which"):
        opt.step(point, point, opt.init(point))


class Cooling(torch.optim.Optimizer):
    """Halves its rate in place."""

    def __init__(self, params: Any, lr: Any) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as torch's are
        group = self.param_groups[0]
        for param in group["params"]:
            param.sub_(group["lr"] * param.grad)
        group["lr"].mul_(0.5)


def test_a_tensor_that_is_a_hyper_parameter_is_not_written() -> None:
    lr = torch.tensor(1.0)
    opt, point = optim.from_torch(Cooling, lr=lr), Point(torch.ones(2))
    one, state = opt.step(point, point, opt.init(point))
    two, _ = opt.step(one, point, state)
    assert lr == 1
    again = opt.step(point, point, opt.init(point))[0]
    assert tree.equal(again, one)
    assert two.at.tolist() == [-0.5, -0.5]


def test_pickles_of_before_steps_in_graphs_step() -> None:
    opt, point = optim.from_torch(torch.optim.SGD, lr=0.5), Point(torch.ones(2))
    old = object.__new__(type(opt))
    old.__setstate__({name: value for name, value in vars(opt).items() if name != "_known"})
    assert tree.equal(old.step(point, point, old.init(point))[0], Point(torch.full((2,), 0.5)))


class Doubled(torch.optim.Optimizer):
    """Keeps what may be one tensor under two names, a part of another, or the parameter."""

    def __init__(self, params: Any, kind: str = "apart") -> None:
        super().__init__(params, {"kind": kind})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as torch's are
        group = self.param_groups[0]
        for param in group["params"]:
            state = self.state[param]
            if not state:
                both = torch.zeros(2 * len(param))
                seen = torch.zeros_like(param)
                state["one"], state["two"] = {
                    "apart": (both[: len(param)], both[len(param) :]),
                    "same": (seen, seen),
                    "part": (both, both[1:]),
                    "parameter": (seen, param),
                    "list": (seen, [param, seen]),
                }[group["kind"]]
            state["one"].add_(1)


def test_two_entries_that_share_memory_are_refused() -> None:
    point = Point(torch.ones(2))
    for kind, names in {
        "same": r"state\['one'\] of at and state\['two'\] of at",
        "part": r"state\['one'\] of at and state\['two'\] of at",
        "parameter": r"the parameter at and state\['two'\] of at",
        "list": r"state\['one'\] of at and state\['two'\] of at",
    }.items():
        opt = optim.from_torch(Doubled, kind=kind)
        with pytest.raises(TypeError, match=rf"from_torch\(Doubled\): {names} share memory"):
            opt.step(point, point, opt.init(point))
    opt = optim.from_torch(Doubled)
    _, state = opt.step(point, point, opt.init(point))
    _, state = opt.step(point, point, state)
    assert state.moments["one"].at.tolist() == [2, 2]
    assert state.moments["two"].at.tolist() == [0, 0]


class Flat(torch.optim.Optimizer):
    """Momentum in one flat buffer, which it keeps in one or several places."""

    state: Any

    def __init__(self, params: Any, kind: str) -> None:
        super().__init__(params, {"kind": kind})
        members = self.param_groups[0]["params"]
        self.flat = torch.zeros(sum(p.numel() for p in members), 2)
        if kind == "moved":  # the parameters themselves lie in it
            self.flat = torch.cat([p.detach().reshape(-1) for p in members])
        for param, part in zip(members, self._parts(), strict=True):
            if kind == "moved":
                param.data = part.view_as(param)
            elif kind != "alone":
                self.state[param]["first"] = part[:, 0].view_as(param)
        if kind == "group":
            self.param_groups[0]["flat"] = self.flat
        if kind == "shared":
            self.state["flat"]["all"] = self.flat
        if kind in ("group", "shared"):
            del self.flat

    def _parts(self) -> Any:
        return self.flat.split([p.numel() for p in self.param_groups[0]["params"]])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as torch's are
        group = self.param_groups[0]
        for k, param in enumerate(group["params"]):
            if group["kind"] == "moved":
                self._parts()[k].sub_(param.grad.reshape(-1))
                continue
            if group["kind"] == "alone":
                part = self._parts()[k][:, 0].view_as(param)
            else:
                part = self.state[param]["first"]
            param.sub_(part.mul_(0.5).add_(param.grad))


class Columns(torch.optim.Optimizer):
    """Keeps two views of one buffer, which overlap or do not."""

    def __init__(self, params: Any, kind: str) -> None:
        super().__init__(params, {"kind": kind})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as torch's are
        for param in self.param_groups[0]["params"]:
            state, n = self.state[param], len(param)
            if not state:
                both = torch.zeros(2 * n)
                state["one"] = both[:n] if self.param_groups[0]["kind"] == "windows" else both[::2]
                state["two"] = {
                    "columns": both[1::2],
                    "windows": both[n - 1 : 2 * n - 1],
                    "bytes": both.view(torch.uint8)[8:9],
                    "other bytes": both.view(torch.uint8)[4:5],
                }[self.param_groups[0]["kind"]]
            state["one"].add_(1)


def test_a_flat_buffer_is_carried_alone_and_refused_in_two_places() -> None:
    model = Net().initialize(0)
    opt = optim.from_torch(Flat, kind="alone")
    twin, state = Twin(lambda params: Flat(params, "alone"), model), opt.init(model)
    for grads in list(gradients(model, 4)):
        model, state = opt.step(model, grads, state)
        twin.step(grads)
    for path, leaf in tree.named_leaves(model).items():
        assert torch.equal(leaf, twin.params[path])
    for kind, other in {
        "attribute": "its attribute flat",
        "group": r"group\['flat'\]",
        "shared": r"state\['flat'\]",
    }.items():
        with pytest.raises(TypeError, match=rf"state\['first'\] of first and {other} share memory"):
            optim.from_torch(Flat, kind=kind).init(model)
    moved = optim.from_torch(Flat, kind="moved")
    with pytest.raises(TypeError, match="the parameter first and its attribute flat share memory"):
        moved.step(model, tree.map(torch.ones_like, model), moved.init(model))


def test_views_of_one_buffer_are_kept_where_they_do_not_overlap() -> None:
    point = Point(torch.ones(3))
    for kind in ("columns", "other bytes"):
        opt = optim.from_torch(Columns, kind=kind)
        _, state = opt.step(point, point, opt.init(point))
        _, state = opt.step(point, point, state)
        assert state.moments["one"].at.tolist() == [2, 2, 2]
    for kind in ("windows", "bytes"):
        opt = optim.from_torch(Columns, kind=kind)
        with pytest.raises(TypeError, match=r"state\['one'\] of at and state\['two'\] of at share"):
            opt.step(point, point, opt.init(point))


@pytest.mark.parametrize("opt", [optim.LBFGS(), optim.from_torch(torch.optim.Adam)])
def test_a_state_made_within_a_transform_is_refused(opt: Any) -> None:
    model = MLP().initialize(0)

    def made(scale: Tensor) -> Tensor:
        opt.init(tree.scale(model, scale))
        return scale

    one = torch.ones(())
    with pytest.raises(RuntimeError, match=r"init makes a stateful optimizer.*Call it outside"):
        func.jvp(made, (one,), (one,))
    with pytest.raises(RuntimeError, match=r"init makes a stateful optimizer.*Call it outside"):
        func.vmap(made)(one[None])
