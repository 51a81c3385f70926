"""The second use of a key is found in eager code, and in compiled code while it is traced."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import parallax
from parallax import Module, bridge, debug, func, nn, random, tree
from parallax.random import KeyReusedError, fold_in, normal
from tests.random.second_uses import COPIES, ONCE, SECOND, SINGLE, STACK, TWICE, Program

X = torch.linspace(-1, 1, 4)
RNGS: dict[str, Callable[[], Any]] = {
    "a key": lambda: random.key(0),
    "an int": lambda: 0,
    "a generator": torch.Generator,
    "a state": lambda: torch.Generator().manual_seed(0).get_state(),  # not that of the process
}


@pytest.fixture(params=list(RNGS.values()), ids=list(RNGS))
def rng(request: pytest.FixtureRequest) -> Any:
    """Makes an rng: the same state each time, a new key."""
    made = request.param()
    if isinstance(made, torch.Generator):
        return made.clone_state
    if isinstance(made, Tensor):
        return made.clone
    return lambda: random.clone(made) if isinstance(made, random.Key) else made


@pytest.mark.parametrize("program", SECOND.values(), ids=SECOND)
def test_a_second_use_is_an_error(program: Program) -> None:
    with pytest.raises(KeyReusedError, match="would repeat"):
        program(random.key(0), X)


@pytest.mark.parametrize("program", SINGLE.values(), ids=SINGLE)
def test_what_is_no_second_use_is_none(program: Program) -> None:
    program(random.key(0), X)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("program", SECOND.values(), ids=SECOND)
def test_a_second_use_is_found_while_tracing(program: Program) -> None:
    for compiler in (parallax.compile, torch.compile):
        made: Any = compiler(program, backend="eager")
        with pytest.raises(KeyReusedError, match="would repeat"):
            made(random.key(0), X)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("program", SINGLE.values(), ids=SINGLE)
def test_what_is_no_second_use_compiles_to_the_same_numbers(program: Program) -> None:
    expected = program(random.key(0), X)
    found = parallax.compile(program, backend="eager")(random.key(0), X)
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_the_default_backend_repeats_nothing_either() -> None:
    def all_of_them(key: random.Key, x: Tensor) -> Any:
        names = [name for name in SINGLE if name not in ("in jacfwd", "in func.hessian")]
        return [SINGLE[name](fold_in(key, name), x) for name in names]

    found: Any = parallax.compile(all_of_them)(random.key(0), X)
    torch.testing.assert_close(found, all_of_them(random.key(0), X))
    with pytest.raises(KeyReusedError):
        parallax.compile(lambda key: (normal(key), normal(key)))(random.key(0))


@pytest.mark.parametrize("name", ["two draws", "the same fold", "a row", "a module"])
def test_a_second_use_is_found_in_exports_and_other_traces(name: str) -> None:
    class Holder(torch.nn.Module):
        def __init__(self, program: Program) -> None:
            super().__init__()
            self.program, self.key = program, random.key(0)

        def forward(self, x: Tensor) -> Any:
            return self.program(self.key, x)

    for program in (SECOND[name], SINGLE["one draw"], SINGLE["other folds"]):
        for run in (
            lambda p: torch.export.export(Holder(p), (X,), strict=False),
            lambda p: torch.export.export(Holder(p), (X,), strict=True),
            lambda p: make_fx(p)(random.key(0), X),
            lambda p: make_fx(p, tracing_mode="fake")(random.key(0), X),
        ):
            if program is SECOND[name]:
                with pytest.raises(KeyReusedError):
                    run(program)
            else:
                run(program)


@pytest.mark.usefixtures("fresh_dynamo")
def test_one_of_two_branches_is_run() -> None:
    def both(key: random.Key, x: Tensor, extra: bool) -> Any:
        def one(x: Tensor) -> Tensor:
            return x + normal(key)

        def other(x: Tensor) -> Tensor:
            return x - normal(key)

        out = torch.cond(x.sum() > 0, one, other, (x,))
        return out + normal(key) if extra else out

    run: Any = parallax.compile(both, backend="eager")
    x = torch.ones(4)
    torch.testing.assert_close(run(random.key(0), x, False), x + normal(random.key(0)))
    torch.testing.assert_close(run(random.key(0), -x, False), -x - normal(random.key(0)))
    with pytest.raises(KeyReusedError):
        run(random.key(0), x, True)


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_loop_is_told_of_a_key_from_outside() -> None:
    from torch._higher_order_ops.scan import scan

    def run(key: random.Key, x: Tensor, fold: bool) -> Any:
        def step(carry: Tensor, row: Tensor) -> Any:
            noise = normal(fold_in(key, row.long()) if fold else key)
            return carry + noise, row * noise

        return scan(step, torch.zeros(()), x)

    compiled: Any = torch.compile(run, backend="eager", fullgraph=True)
    with pytest.raises(KeyReusedError, match="body of a scan"):
        compiled(random.key(0), torch.arange(3.0), False)
    total, _ = compiled(random.key(0), torch.arange(3.0), True)
    noise = [normal(fold_in(random.key(0), i)) for i in range(3)]
    torch.testing.assert_close(total, torch.stack(noise).sum())


# -- every kind of rng --------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["train", "reset"])
def test_a_module_is_called_once_whatever_rng_it_has(rng: Any, verb: str) -> None:
    with pytest.raises(KeyReusedError, match=r"^drop .*self\.drop\.split\(n\), or one layer"):
        getattr(TWICE, verb)(rng())(X)
    getattr(COPIES, verb)(rng())(X)
    model = getattr(ONCE, verb)(rng())
    model(X)
    with pytest.raises(KeyReusedError, match=r"^drop .*another rng"):
        model(X)
    with pytest.raises(KeyReusedError):
        copy.deepcopy(model)(X)
    with pytest.raises(KeyReusedError):
        tree.map(torch.clone, model)(X)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda m: m(X), lambda m: m(X)),
        (lambda m: m[1](X), lambda m: tree.map(torch.clone, m)[1](X)),
        (lambda m: func.grad(lambda x: m(x).sum())(X), lambda m: m(X)),
        (lambda m: func.jvp(m, (X,), (X,)), lambda m: func.jacrev(m)(X)),
    ],
    ids=["calls", "a layer and its copy", "a gradient", "transforms"],
)
def test_a_lifted_module_that_draws_is_called_once_whatever_rng_it_has(
    rng: Any, first: Any, second: Any
) -> None:
    lifted = bridge.lift(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)))
    drawn = lifted.train(rng())
    first(drawn)
    with pytest.raises(KeyReusedError, match="given the key that it has drawn from already"):
        second(drawn)
    with random.reuse():
        assert torch.equal(drawn(X), drawn(X))
    assert torch.equal(drawn[0](X), drawn[0](X))  # draws nothing
    halves = lifted.train(rng()).split(2)
    assert not torch.equal(halves[0](X), halves[1](X))
    for quiet in (lifted.eval(), lifted.train(rng()).eval()):
        assert torch.equal(quiet(X), quiet(X))


TRANSFORMED: dict[str, Callable[[Any], Any]] = {
    "grad": lambda m: func.grad(lambda x: m(x).sum())(X),
    "torch.func.grad": lambda m: torch.func.grad(lambda x: m(x).sum())(X),
    "jvp": lambda m: func.jvp(m, (X,), (X,)),
    "jacrev": lambda m: func.jacrev(m)(X),
    "jacfwd": lambda m: func.jacfwd(m)(X),
    "hessian": lambda m: func.hessian(lambda x: m(x).sum())(X),
    "vmap": lambda m: func.vmap(m, randomness="same")(torch.stack([X, X])),
}


@pytest.mark.parametrize("transformed", TRANSFORMED.values(), ids=TRANSFORMED)
def test_a_use_in_a_transform_is_a_use_whatever_rng_it_is(rng: Any, transformed: Any) -> None:
    for first, second in ((transformed, lambda m: m(X)), (lambda m: m(X), transformed)):
        layer = nn.Dropout(0.5).train(rng())
        first(layer)
        with pytest.raises(KeyReusedError, match="given the key that it has drawn from already"):
            second(layer)


def test_generators_and_states_give_the_same_mask_within_transforms(rng: Any) -> None:
    x = torch.ones(50)
    for layer in (nn.Dropout(0.5), bridge.lift(torch.nn.Dropout(0.5))):
        wanted = layer.train(rng())(x)
        masks = [
            torch.func.grad(lambda x, m: m(x).sum())(x, layer.train(rng())),
            func.jvp(layer.train(rng()), (x,), (x,))[1],
            func.jacrev(layer.train(rng()))(x).diagonal(),
        ]
        assert all(torch.equal(mask, wanted) for mask in masks)


def test_a_stack_draws_for_each_block_whatever_rng_it_has(rng: Any) -> None:
    model = STACK.train(rng())
    model(torch.ones(64))
    with pytest.raises(KeyReusedError, match="drop"):
        model(X)


def test_errors_name_copies_and_places_in_tuples(rng: Any) -> None:
    class Net(Module):
        layers: tuple[Module, ...]

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.layers[1].split(2)
            return second(first(second(x)))  # type: ignore[no-any-return]  # a Tensor

    net = Net((nn.Identity(), nn.Dropout(0.5)))
    with pytest.raises(
        KeyReusedError, match=r"^layers\.1, copy 1, .*self\.layers\[1\]\.split\(n\)"
    ):
        net.train(rng())(X)


class Own(Module):
    """A layer that makes a key of what it is given, as layers of users do."""

    draws: int

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.draws):
            x = x + normal(random.as_key(self.rng), x.shape)
        return x


def test_layers_of_users_draw_once_whatever_rng_they_have(rng: Any) -> None:
    Own(1).train(rng())(X)
    with pytest.raises(KeyReusedError):
        Own(2).train(rng())(X)
    model = Own(1).train(rng())
    with random.reuse():
        assert torch.equal(model(X), model(X))
    debug.deterministic(model)(X)
    model(X)


def test_recomputation_and_line_searches_repeat_whatever_rng_there_is(rng: Any) -> None:
    class Block(Module):
        linear: nn.Linear
        drop: nn.Dropout

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.linear(x))

    stack = nn.Stack(Block(nn.Linear(4, 4), nn.Dropout(0.5)), 2, checkpoint=True).initialize(0)
    model = stack.reset(rng())
    model(X).sum().backward()
    plain = stack.replace(checkpoint=False).reset(rng())
    plain(X).sum().backward()
    for one, other in zip(tree.leaves(model.grad()), tree.leaves(plain.grad()), strict=True):
        torch.testing.assert_close(one, other)
    optimizer = parallax.optim.LBFGS(max_iter=3)
    state = optimizer.init(stack)
    loss = func.grad_and_value(lambda m: m(X).square().sum())
    optimizer.step(stack.train(rng()), loss, state)


def test_members_and_their_stack_are_the_same_keys() -> None:
    members = [Own(1).train(key) for key in random.split(random.key(0), 2)]
    stacked = tree.stack(members)
    members[1](X)
    with pytest.raises(KeyReusedError):
        func.vmap(lambda m: m(X))(stacked)


# -- lowered ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_lowered_module_draws_anew_at_each_use() -> None:
    class Both(Module):
        drop: nn.Dropout

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.drop(x), self.drop(x)

    lowered, x = bridge.lower(Both(nn.Dropout(0.5)).train()), torch.ones(64)
    calls: list[Any] = [lowered]
    calls += [torch.compile(lowered, backend=b, fullgraph=True) for b in ("eager", "inductor")]
    calls += [torch.export.export(lowered, (x,), strict=s).module() for s in (False, True)]
    for call in calls:
        torch.manual_seed(0)
        one, two = call(x)
        assert not torch.equal(one, two)
        three, _ = call(x)
        assert not torch.equal(one, three)
        torch.manual_seed(0)
        again, too = call(x)
        assert torch.equal(again, one) and torch.equal(too, two)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("backend", ["none", "aot_eager", "inductor"])
def test_a_lowered_module_draws_the_same_when_it_is_recomputed(backend: str) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(64, 64)
            self.drop = bridge.lower(nn.Dropout(0.5).train())

        def forward(self, x: Tensor) -> Any:
            return checkpoint(
                lambda x: self.drop(self.drop(self.linear(x))), x, use_reentrant=False
            )

    net = Net()
    run: Any = net if backend == "none" else torch.compile(net, backend=backend, fullgraph=True)
    out = run(torch.ones(64))
    out.sum().backward()
    assert net.linear.weight.grad is not None
    assert torch.equal(out != 0, net.linear.weight.grad.abs().sum(1) != 0)


def test_a_lowered_stack_with_checkpoints_draws_the_same_when_it_is_recomputed() -> None:
    class Block(Module):
        linear: nn.Linear
        drop: nn.Dropout

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.linear(x))

    block = Block(nn.Linear(64, 64), nn.Dropout(0.5))
    lowered: Any = bridge.lower(nn.Stack(block, 3, checkpoint=True).initialize(0).train())
    out = lowered(torch.ones(64))
    out.sum().backward()
    assert torch.equal(out != 0, lowered.block.linear.weight.grad[2].abs().sum(1) != 0)
