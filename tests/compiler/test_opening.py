"""The generated code of a call does what the walk along tokens does."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax import random, tree
from parallax.compiler.opening import write_builder, write_opener
from parallax.compiler.packing import build_call, pack_call
from parallax.core.frozendict import FrozenDict
from tests.corpus import MODULES, Case, Scale, TiedParameter


class Pair(NamedTuple):
    left: Any
    right: Any


class Name(enum.StrEnum):
    A = "a"


X = torch.ones(2)
SCALE = Scale(X)
KEYED = SCALE.train(random.key(0))
TIED = TiedParameter().initialize(0)
LEAVES = [X, torch.zeros(1), torch.nn.Parameter(X), None, 1, True, 2.0, "text"]
KEYS = st.sampled_from(["a", "b", Name.A, 1, True, 0])


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=2).map(FrozenDict),
        st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
    )


VALUES = st.recursive(
    st.sampled_from([*LEAVES, SCALE, SCALE.eval(), KEYED, TIED, tree.map(torch.clone, SCALE)]),
    nested,
    max_leaves=6,
)
CALLS = st.tuples(
    st.lists(VALUES, max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(["x", "y"]), VALUES, max_size=2),
)


def same(one: Any, two: Any) -> bool:
    return len(one) == len(two) and all(a is b for a, b in zip(one, two, strict=True))


def equal(one: Any, two: Any) -> bool:
    """Whether two values are packed alike, around the same items."""
    (items, tokens), (others, theirs) = pack_call((one,), {}), pack_call((two,), {})
    return tokens == theirs and same(items, others)


@given(CALLS, CALLS)
@settings(deadline=None, max_examples=150)
def test_an_opener_takes_its_own_calls_and_no_others(one: Any, two: Any) -> None:
    items, tokens = pack_call(*one)
    opener = write_opener(tokens, items)
    opened = opener(*one)
    assert opened is not None
    assert same(opened, items)
    others, theirs = pack_call(*two)
    opened = opener(*two)
    # In doubt it says nothing; what it says is what the walk says.
    assert opened is None or (tokens == theirs and same(opened, others))


@given(CALLS)
@settings(deadline=None, max_examples=100)
def test_a_builder_puts_together_what_was_taken_apart(call: Any) -> None:
    args, kwargs = call
    items, tokens = pack_call(([args, kwargs],), {})
    assert equal(write_builder(tokens[2:])(items), build_call(tokens, items)[0][0])


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_modules_with_and_without_rng(case: Case) -> None:
    module = case.make()
    for given_module in (module, module.train(random.key(0))):
        items, tokens = pack_call((given_module, X), {})
        opened = write_opener(tokens, items)((given_module, X), {})
        assert opened is not None
        assert same(opened, items)
        again = write_builder(tokens[2:-1])(items)
        assert tree.structure(again) == tree.structure(given_module)
        assert same(tree.leaves(again), tree.leaves(given_module))
        assert again._rng is given_module._rng


@pytest.mark.parametrize(
    "value",
    [[X] * 1000, {str(k): X for k in range(100)}, [[X] * 70, SCALE], (X, [SCALE] * 65)],
    ids=["list", "dict", "list in list", "modules"],
)
def test_wide_containers_are_left_to_the_walk(value: Any) -> None:
    items, tokens = pack_call((value,), {})
    opened = write_opener(tokens, items)((value,), {})
    assert opened is not None
    assert same(opened, items)
    assert equal(write_builder(tokens[2:])(items), value)


def test_deep_containers_are_no_deep_code() -> None:
    value: Any = X
    for _ in range(150):
        value = [value]
    items, tokens = pack_call((value,), {})
    assert write_opener(tokens, items)((value,), {}) == (X,)
    assert equal(write_builder(tokens[2:])(items), value)


def test_optimizer_states_and_registered_nodes() -> None:
    from parallax import optim

    opt = optim.Adam(lr=torch.tensor(0.1))
    args = (opt, opt.init(SCALE), {"opt": opt})
    items, tokens = pack_call(args, {})
    opened = write_opener(tokens, items)(args, {})
    assert opened is not None
    assert same(opened, items)
    other = (optim.Adam(lr=torch.tensor(0.1), eps=1e-3), *args[1:])
    assert write_opener(tokens, items)(other, {}) is None
