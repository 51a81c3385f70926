"""Properties of generated classes and trees, by hypothesis.

A draw is a small program: classes with fields of every kind, some inherited, and an instance with
containers, holes, constants and ties. What must hold does so for all of them.
"""

from __future__ import annotations

import copy
import math
import pickle
import sys
import types
from functools import partial
from typing import Any

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree

from parallax import Buffer, Module, Parameter, tree

# Classes are made here, so that pickle finds them by name; each draw uses new names.
META: Any = type(Module)
HOME = types.ModuleType("generated_classes")
sys.modules[HOME.__name__] = HOME

CONSTANTS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, 0.1, 1 + 0j, "", "a", b"a", ...]),
    st.sampled_from([torch.relu, torch.float32, torch.Size([1]), (1, (2.0, "x")), frozenset({1})]),
)
KINDS = ["parameter", "buffer", "optional", "child", "constant", "slot", "tuple", "dict", "nested"]
ANNOTATIONS: dict[str, Any] = {
    "parameter": Parameter,
    "buffer": Buffer,
    "optional": Parameter | None,
    "child": Module | None,
    "constant": Any,
    "slot": Module | Any,
    "tuple": tuple[Module | Parameter | None, ...],
    "dict": dict[str, Parameter | Module],
    "nested": tuple[dict[str, tuple[Parameter, ...]], ...],
}


@st.composite
def tensors(draw: Any) -> Tensor:
    shape = draw(st.sampled_from([(), (1,), (2,), (2, 3)]))
    seed = draw(st.integers(0, 10_000))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def classes(draw: Any) -> tuple[type, dict[str, str]]:
    """A module class, perhaps of two generations, and the kinds of its fields."""
    cls: Any = Module
    fields: dict[str, str] = {}
    for generation in range(draw(st.integers(1, 2))):
        own = draw(st.lists(st.sampled_from(KINDS), max_size=4))
        names = {f"f{generation}_{k}": kind for k, kind in enumerate(own)}
        fields |= names
        title = f"Made{len(vars(HOME))}"
        space = {
            "__module__": HOME.__name__,
            "__annotations__": {name: ANNOTATIONS[kind] for name, kind in names.items()},
        }
        cls = META(title, (cls,), space)
        setattr(HOME, title, cls)
    return cls, fields


@st.composite
def modules(draw: Any, depth: int = 3, pool: list[Tensor] | None = None) -> Any:
    """A module whose leaves are real floats, some of them tied."""
    tensors_so_far: list[Tensor] = [] if pool is None else pool
    cls, fields = draw(classes())

    def leaf() -> Any:
        if tensors_so_far and draw(st.integers(0, 4)) == 0:
            return tensors_so_far[draw(st.integers(0, len(tensors_so_far) - 1))]
        tensors_so_far.append(draw(tensors()))
        return tensors_so_far[-1]

    def child() -> Any:
        return draw(modules(depth - 1, tensors_so_far)) if depth > 1 else None

    def either() -> Any:
        return leaf() if depth <= 1 or draw(st.booleans()) else child()

    def value(kind: str) -> Any:
        if kind in ("parameter", "buffer"):
            return leaf()
        if kind == "optional":
            return leaf() if draw(st.booleans()) else None
        if kind == "child":
            return child() if draw(st.booleans()) else None
        if kind == "slot":
            return child() if depth > 1 and draw(st.booleans()) else draw(CONSTANTS)
        if kind == "constant":
            return draw(CONSTANTS)
        size = draw(st.integers(0, 3))
        if kind == "tuple":
            return [either() if draw(st.integers(0, 3)) else None for _ in range(size)]
        keys = draw(st.permutations(["z", "a", "m"]))[:size]
        if kind == "dict":
            return {key: either() for key in keys}
        return [{key: [leaf() for _ in range(draw(st.integers(0, 2)))] for key in keys}]

    return cls(**{name: value(kind) for name, kind in fields.items()})


def identical(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def same_values(one: Any, other: Any) -> bool:
    pairs = zip(tree.leaves(one), tree.leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def attributes(module: Any) -> Any:
    """All that a user can read of a tree, as plain Python."""
    if isinstance(module, Module):
        names = sorted(name for name in vars(module) if not name.startswith("_"))
        return type(module), [(name, attributes(getattr(module, name))) for name in names]
    if isinstance(module, tuple):
        return type(module), [attributes(item) for item in module]
    if isinstance(module, dict):
        return dict, [(key, attributes(item)) for key, item in module.items()]
    return id(module) if isinstance(module, Tensor) else (type(module), repr(module))


@given(modules())
def test_unflatten_is_the_inverse_of_flatten(module: Any) -> None:
    leaves, spec = tree.flatten(module)
    again = tree.unflatten(spec, leaves)
    assert attributes(again) == attributes(module)
    assert identical(tree.flatten(again)[0], leaves)
    assert tree.structure(again) == spec


@given(modules())
def test_it_is_in_optrees_registry_raw(module: Any) -> None:
    for hole in (False, True):
        leaves, spec = optree.tree_flatten(module, none_is_leaf=hole)
        again = optree.tree_unflatten(spec, leaves)
        assert attributes(again) == attributes(module)
        assert tree.structure(again) == tree.structure(module)
        assert optree.tree_structure(again, none_is_leaf=hole) == spec
        assert len(optree.tree_paths(module, none_is_leaf=hole)) == len(leaves)


@given(modules())
def test_it_is_in_torchs_registry_raw(module: Any) -> None:
    leaves, spec = _pytree.tree_flatten(module)
    again = _pytree.tree_unflatten(leaves, spec)
    assert attributes(again) == attributes(module)
    assert _pytree.tree_structure(again) == spec
    assert len({id(leaf) for leaf in leaves}) == len(leaves)  # a tie comes once
    keyed, keyed_spec = _pytree.tree_flatten_with_path(module)
    assert identical([leaf for _, leaf in keyed], leaves) and keyed_spec == spec


@given(modules())
def test_leaves_are_what_a_walk_over_the_attributes_finds(module: Any) -> None:
    found: list[Tensor] = []

    def walk(value: Any) -> None:
        if isinstance(value, Tensor) and not any(value is seen for seen in found):
            found.append(value)
        elif isinstance(value, Module):
            for name, item in vars(value).items():
                if not name.startswith("_"):
                    walk(item)
        elif isinstance(value, (tuple, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                walk(item)

    walk(module)
    assert identical(tree.leaves(module), found)


@given(modules())
def test_structures_compare_and_hash_by_everything_but_the_leaves(module: Any) -> None:
    spec = tree.structure(module)
    moved = tree.map(lambda leaf: leaf + 1, module)
    assert tree.structure(moved) == spec and hash(tree.structure(moved)) == hash(spec)
    assert tree.structure(copy.deepcopy(module)) == spec
    assert tree.structure(module.eval()) != spec
    assert tree.structure(module.eval().train()) == tree.structure(module.train())

    class Around(Module):
        inner: Module

    assert tree.structure(Around(module)) != spec


@given(modules(), modules())
def test_two_trees_fit_exactly_if_their_structures_are_equal(one: Any, other: Any) -> None:
    if tree.structure(one) == tree.structure(other):
        tree.map(torch.add, one, other)
    else:
        with pytest.raises(ValueError, match="do not fit"):
            tree.map(lambda a, b: a, one, other)


@given(modules())
def test_pickles_and_copies_round_trip(module: Any) -> None:
    for again in (pickle.loads(pickle.dumps(module)), copy.copy(module), copy.deepcopy(module)):
        assert type(again) is type(module)
        assert tree.structure(again) == tree.structure(module)
        assert hash(tree.structure(again)) == hash(tree.structure(module))
        assert same_values(again, module)
        assert repr(again) == repr(module)


@given(modules())
def test_names_are_unique_and_map_keeps_them(module: Any) -> None:
    named = tree.named_leaves(module)
    assert identical(list(named.values()), tree.leaves(module))
    paths = tree.map_with_path(lambda path, leaf: path, module)
    assert tree.leaves(paths) == list(named)


@given(modules())
def test_map_is_a_functor(module: Any) -> None:
    assert attributes(tree.map(lambda leaf: leaf, module)) == attributes(module)
    once = tree.map(lambda leaf: 2 * leaf + 1, module)
    twice = tree.map(lambda leaf: leaf + 1, tree.map(lambda leaf: 2 * leaf, module))
    assert same_values(once, twice)


def total(module: Any) -> Tensor:
    terms = [(leaf**2).sum() * (k + 1) for k, leaf in enumerate(tree.leaves(module))]
    return torch.stack(terms).sum()


@given(modules())
def test_torch_func_grad_takes_them_raw(module: Any) -> None:
    if not tree.leaves(module):
        return
    grads = torch.func.grad(total)(module)
    assert tree.structure(grads) == tree.structure(module)
    for k, (leaf, grad) in enumerate(zip(tree.leaves(module), tree.leaves(grads), strict=True)):
        torch.testing.assert_close(grad, 2 * (k + 1) * leaf)


@given(modules())
def test_torch_func_vmap_takes_them_raw(module: Any) -> None:
    if not tree.leaves(module):
        return
    many = tree.map(lambda leaf: torch.stack([leaf, 2 * leaf, -leaf]), module)
    expected = torch.stack(
        [total(tree.map(partial(torch.mul, other=c), module)) for c in (1.0, 2.0, -1.0)]
    )
    torch.testing.assert_close(torch.func.vmap(total)(many), expected)
    out = torch.func.vmap(lambda one: tree.map(lambda leaf: leaf + 1, one))(many)
    assert tree.structure(out) == tree.structure(module)
    assert same_values(out, tree.map(lambda leaf: leaf + 1, many))


@given(modules(), st.integers(0, 3))
def test_verbs_keep_the_tree(module: Any, seed: int) -> None:
    ready = module.reset(seed)
    assert same_values(ready, module)
    assert tree.structure(ready.eval().replace()) == tree.structure(module.eval())
    assert [type(m) for m in ready.modules()] == [type(m) for m in module.modules()]
    first, second = ready.split(2)
    assert identical(tree.leaves(first), tree.leaves(second))
    trained = [m for m in ready.modules() if m.rng is not None]
    assert len({m.rng for m in trained}) == len(trained)
