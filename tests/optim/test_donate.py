"""``donate=True``: the same numbers in the old memory, and the old trees are gone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch.utils import _pytree as torch_pytree

from parallax import Module, Parameter, func, nn, optim, tree
from parallax.optim import DonatedError
from tests.corpus import MLP, MODULES, Case, example_input
from tests.optim.cases import FIRST, Options, Point, gradients, label, make, model_for, ones

USES: dict[str, Callable[[Any], Any]] = {
    "call": lambda m: m(torch.ones(4)),
    "field": lambda m: m.first,
    "method": lambda m: m.train(1),
    "map": lambda m: tree.map(torch.neg, m),
    "leaves of a tree around it": lambda m: tree.leaves({"net": m}),
    "torch's pytree": torch_pytree.tree_leaves,
    "optree": optree.tree_leaves,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "grad": lambda m: func.grad(lambda net: net(example_input()).sum())(m),
    "set": lambda m: setattr(m, "first", 1),
}


@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_the_numbers_are_those_of_a_pure_step(name: str, options: Options) -> None:
    opt, model = make(name, options), model_for(name)
    state = opt.init(model)
    mine = tree.map(torch.clone, model)
    mine_state = opt.init(mine)
    for grads in gradients(model, 4):
        model, state = opt.step(model, grads, state)
        memory = [leaf.data_ptr() for leaf in tree.leaves(mine)]
        mine, mine_state = opt.step(mine, grads, mine_state, donate=True)
        if name != "SGD":  # which may be out of place in any case
            assert [leaf.data_ptr() for leaf in tree.leaves(mine)] == memory
    pairs = zip(tree.leaves((model, state)), tree.leaves((mine, mine_state)), strict=True)
    for one, two in pairs:
        assert torch.allclose(one, two, rtol=1e-6, atol=0)


def test_memory_is_reused() -> None:
    for opt in (optim.SGD(), optim.SGD(momentum=0.9), optim.Adam(), optim.RMSprop()):
        model = MLP().initialize(0)
        state = opt.init(model)
        before = [leaf.data_ptr() for leaf in tree.leaves((model, tuple(state.moments.values())))]
        grads = ones(model)
        model, state = opt.step(model, grads, state, donate=True)
        after = [leaf.data_ptr() for leaf in tree.leaves((model, tuple(state.moments.values())))]
        assert after == before


@pytest.mark.parametrize("use", USES.values(), ids=list(USES))
def test_using_a_donated_model_raises_and_says_so(use: Callable[[Any], Any]) -> None:
    model, opt = MLP().initialize(0), optim.Adam()
    child = model.first
    opt.step(model, ones(model), opt.init(model), donate=True)
    message = (
        r"MLP was given to step\(..., donate=True\).*Use what step returned|a module was given"
    )
    with pytest.raises(DonatedError, match=message):
        use(model)
    with pytest.raises(DonatedError):
        use(child)
    assert repr(model) == "<MLP, given to step(..., donate=True)>"


@pytest.mark.parametrize("case", [c for c in MODULES if c.name != "empty"], ids=str)
def test_every_module_of_a_donated_tree_is_gone(case: Case) -> None:
    model, opt = case.make(), optim.SGD()
    below = list(model.modules())
    grads = tree.map(torch.ones_like, tree.partition(model, "trainable")[0])
    after, _ = opt.step(model, grads, opt.init(model), donate=True)
    for module in below:
        with pytest.raises(DonatedError):
            module.train()
    assert all(isinstance(module, Module) for module in after.modules())


def test_a_donated_state_is_gone_too() -> None:
    model, opt = MLP().initialize(0), optim.Adam()
    state = opt.init(model)
    moments = state.moments["exp_avg"]
    model, _ = opt.step(model, ones(model), state, donate=True)
    for use in (lambda: state.step, lambda: moments.first, lambda: tree.leaves(state)):
        with pytest.raises(DonatedError):
            use()
    with pytest.raises(DonatedError):
        opt.step(model, ones(model), state)


def test_what_works_on_copies_takes_what_is_given_away() -> None:
    table = nn.Embedding(4, 2, sparse=True).initialize(0)
    grads = func.grad(lambda table: table(torch.tensor([1, 3])).sum())(table)
    dense = tree.map(torch.Tensor.to_dense, grads)
    cases: Any = (
        (optim.SparseAdam(), grads),
        (optim.from_torch(torch.optim.Adam), dense),
        (optim.Split({"weight": optim.from_torch(torch.optim.Adam)}, rest=optim.Adam()), dense),
    )
    for opt, given in cases:
        expected = opt.step(table, given, opt.init(table))
        model, state = tree.map(torch.clone, table), opt.init(table)
        assert tree.equal(opt.step(model, given, state, donate=True), expected)
        with pytest.raises(DonatedError):
            _ = model.weight


class Pair(Module):
    one: Parameter
    two: Parameter


def test_a_leaf_that_is_stepped_only_later_is_not_written_where_others_use_its_memory() -> None:
    opt, held = optim.RMSprop(lr=0.1), torch.ones(4, 2)
    for view in (held[1:3], held[:, 1], torch.ones(1).expand(3)):
        model, ones = Pair(torch.ones(3), view), Pair(torch.ones(3), torch.ones(view.shape))
        first = tree.partition(ones, "one")[0]
        plain, state = model, opt.init(model)
        plain_state = state
        model = model.replace(one=torch.ones(3))
        for grads in (first, first, ones, ones):
            plain, plain_state = opt.step(plain, grads, plain_state)
            model, state = opt.step(model, grads, state, donate=True)
            assert tree.equal((model, state), (plain, plain_state))
            assert tree.equal(held, torch.ones(4, 2))


@pytest.mark.parametrize("name", ["SGD", "NAdam", "RAdam", "Adagrad", "ASGD", "LAMB"])
@pytest.mark.parametrize("donate", [False, True])
def test_lazily_conjugated_gradients_are_taken(name: str, donate: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    opt = getattr(optim, name)(lr=0.1)
    model = Point(torch.randn(3, dtype=torch.complex64, generator=generator))
    other, state, other_state = tree.map(torch.clone, model), opt.init(model), opt.init(model)
    for _ in range(3):
        lazy = Point(torch.randn(3, dtype=torch.complex64, generator=generator).conj())
        model, state = opt.step(model, tree.map(torch.clone, lazy), state)
        other, other_state = opt.step(other, lazy, other_state, donate=donate)
        assert tree.equal((other, other_state), (model, state))


def test_a_refused_step_donates_nothing() -> None:
    model, opt = MLP().initialize(0), optim.Adam()
    state = opt.init(model)
    sparse = tree.map(lambda g: g.to_sparse(), ones(model))
    before = [leaf.clone() for leaf in tree.leaves(model)]
    with pytest.raises(ValueError, match=r"MLP.first.weight is torch.sparse_coo. Make it dense"):
        opt.step(model, sparse, state, donate=True)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(model), before, strict=True))


def test_donation_is_for_eager_code() -> None:
    model, opt = MLP().initialize(0), optim.Adam()
    state = opt.init(model)

    def step(model: Any, state: Any) -> Any:
        return opt.step(model, model, state, donate=True)

    stacked, stacked_state = tree.stack([model, model]), tree.stack([state, state])
    with pytest.raises(ValueError, match=r"cannot be used here: a torch.func transform"):
        torch.vmap(step)(stacked, stacked_state)
    with pytest.raises(ValueError, match="a differentiable step keeps its inputs"):
        optim.SGD(differentiable=True).step(
            model, model, optim.SGD(differentiable=True).init(model), donate=True
        )
    # Without the refusal the derivative went as if the step was the identity.
    muon, point = optim.Muon(), Point(torch.ones(2, 2))
    with pytest.raises(ValueError, match="a derivative is being taken"):
        func.grad(
            lambda scale: muon.step(
                Point(scale * point.at), point, muon.init(point), donate=True
            )[0].at.sum()
        )(torch.tensor(2.0))  # fmt: skip
    with pytest.raises(Unsupported, match="a compiled function keeps what it is given"):
        torch.compile(step, fullgraph=True, backend="eager")(model, state)
    torch._dynamo.reset()
