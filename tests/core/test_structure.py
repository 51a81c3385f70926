"""Structures: what two trees share when they differ in their leaves alone."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parallax import Module, Parameter, tree
from parallax.core import entries, flatten, structure
from parallax.core.module_structure import spec_of
from parallax.core.structure import MAX_DEPTH, Structure, decode, derived
from tests.corpus import (
    CONSTANTS,
    MLP,
    MODULES,
    Case,
    Constants,
    Dense,
    Norm,
    TiedModule,
    TiedParameter,
    chain,
)


@pytest.fixture
def clear_tables(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What happens by itself when a table is full."""

    def clear() -> None:
        for module, name in (
            (structure, "_structures"),
            (entries, "_locals"),
            (flatten, "_shapes"),
        ):
            monkeypatch.setattr(module, name, {})

    return clear


def named(module: Any) -> dict[str, Tensor]:
    """The leaves by dotted path, found by looking at attributes only."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def look(value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            if id(value) not in seen:
                seen.add(id(value))
                found[path] = value
            return
        items: Any = ()
        if isinstance(value, Module):
            items = ((n, getattr(value, n)) for n in type(value).__layout__.fields)
        elif isinstance(value, dict):
            items = value.items()
        elif isinstance(value, tuple):
            names = getattr(value, "_fields", range(len(value)))
            items = zip(names, value, strict=True)
        elif type(value).__name__ == "Foreign":
            items = enumerate((value.left, value.right))
        for name, item in items:
            look(item, f"{path}.{name}" if path else str(name))

    look(module, "")
    return found


# -- what a structure knows ---------------------------------------------------------------------


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_build_and_collect_are_inverse(case: Case) -> None:
    module = case.make()
    spec = spec_of(module)
    leaves = spec.collect(module)
    built = spec.build(leaves)
    assert all(a is b for a, b in zip(spec.collect(built), leaves, strict=True))
    assert {path: id(leaf) for path, leaf in named(built).items()} == {
        path: id(leaf) for path, leaf in named(module).items()
    }
    for name in type(module).__layout__.constants:
        assert getattr(built, name) is getattr(module, name)


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_paths_are_where_the_leaves_are(case: Case) -> None:
    module = case.make()
    spec = spec_of(module)
    leaves = spec.collect(module)
    assert {p: id(x) for p, x in zip(spec.paths, leaves, strict=True) if x is not None} == {
        p: id(x) for p, x in named(module).items()
    }
    assert len(spec.paths) == len(spec.roles) == len(spec.trainable) == len(spec.first)
    assert len(spec.place_paths) == spec.n_places


def test_roles() -> None:
    roles = dict(zip(spec_of(Norm().initialize(0)).paths, spec_of(Norm()).roles, strict=True))
    assert roles == {
        "weight": "parameter",
        "bias": "parameter",
        "running_mean": "buffer",
        "running_var": "buffer",
        "num_batches_tracked": "buffer",
    }


def test_ties_are_pairs_of_places() -> None:
    spec = spec_of(TiedParameter().initialize(0))
    assert spec.ties == ((2, 0),)
    assert spec.place_paths[2] == "decoder.weight" and spec.place_paths[0] == "encoder.weight"
    assert spec_of(Dense().initialize(0)).ties == ()
    # one and other and several.0 are one module of two leaves
    assert spec_of(TiedModule().initialize(0)).ties == ((2, 0), (3, 1), (4, 0), (5, 1))


def test_structure_of_a_declared_module_is_that_of_the_initialized_one() -> None:
    assert spec_of(MLP()) is spec_of(MLP().initialize(0))


# -- equality -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_equal_structures_are_one_object(case: Case) -> None:
    assert spec_of(case.make(0)) is spec_of(case.make(1))


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_structures_are_equal_by_value_after_the_tables_are_cleared(
    case: Case, clear_tables: Callable[[], None]
) -> None:
    before = case.make(0)
    clear_tables()
    after = case.make(1)
    one, two = spec_of(before), spec_of(after)
    assert one == two and hash(one) == hash(two)
    rebuilt = decode(one.encode())
    assert rebuilt is not one and rebuilt == one and hash(rebuilt) == hash(one)
    assert one.skeleton == two.skeleton
    total = tree.map(torch.add, before, tree.map(torch.zeros_like, after))
    torch.testing.assert_close(tree.named_leaves(total), tree.named_leaves(before), equal_nan=True)


def test_structures_differ_where_trees_do() -> None:
    alike = {"no_bias", "no_biases"}  # a hole is no part of a structure
    specs = [spec_of(case.make()) for case in MODULES if case.name not in alike]
    assert len(set(specs)) == len(specs)
    assert spec_of(MLP()) != spec_of(MLP(torch.relu))
    assert spec_of(MLP()) != "a string"
    assert spec_of(Dense()) == spec_of(Dense(bias=False))


def test_a_tie_is_part_of_the_skeleton_and_a_mode_is_not() -> None:
    tied = TiedParameter().initialize(0)
    untied = tied.replace(decoder=tied.decoder.replace(weight=tied.encoder.weight.clone()))
    assert spec_of(tied).skeleton != spec_of(untied).skeleton
    assert spec_of(tied) != spec_of(tied.eval())
    assert spec_of(tied).skeleton == spec_of(tied.eval()).skeleton


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_equals_its_copy(name: str) -> None:
    value = CONSTANTS[name]
    weight = torch.ones(4)
    one = Constants((value,), weight)
    try:
        copied = pickle.loads(pickle.dumps(value))
    except Exception:
        copied = copy.copy(value)
    assert spec_of(one) == spec_of(Constants((copied,), weight))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(width=16)
    | st.sampled_from(["", "a", b"a", 1j, torch.relu, torch.float32, int]),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


def same(one: Any, two: Any) -> bool:
    """Whether two constants are the same, told without the library."""
    if type(one) is not type(two):
        return False
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return repr(one) == repr(two) if isinstance(one, float) else bool(one == two)


@given(plain, plain)
def test_structures_are_equal_exactly_when_their_constants_are_the_same(one: Any, two: Any) -> None:
    first, second = (spec_of(Constants((v,), torch.ones(1))) for v in (one, two))
    assert (first == second) is same(one, two)
    if first == second:
        assert hash(first) == hash(second)


# -- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_a_pickled_structure_is_interned_again(case: Case) -> None:
    spec = spec_of(case.make())
    back = decode(spec.encode())
    assert back is spec
    # Constants such as a partial are other objects once they were loaded, and equal.
    loaded, copied = pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)
    assert loaded == spec and hash(loaded) == hash(spec)
    assert copied == spec and hash(copied) == hash(spec)


def test_a_pickled_structure_is_equal_in_another_process(tmp_path: Path) -> None:
    names = [case.name for case in MODULES]
    specs = {case.name: spec_of(case.make()) for case in MODULES}
    path = tmp_path / "specs.pickle"
    path.write_bytes(pickle.dumps(specs))
    script = f"""
import pickle
from parallax.core.module_structure import spec_of
from tests.corpus import MODULES
specs = pickle.loads(open({str(path)!r}, "rb").read())
assert list(specs) == {names!r}
for case in MODULES:
    assert specs[case.name] == spec_of(case.make()), case
    assert hash(specs[case.name]) == hash(spec_of(case.make())), case
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


# -- limits -------------------------------------------------------------------------------------


def test_the_tables_keep_nothing_alive() -> None:
    tables = (structure._structures, entries._locals, flatten._shapes)

    class Rated(Module):
        weight: Parameter
        inner: tuple[Module, ...]
        rate: float

    sizes = []
    for turn in range(4):
        module: Any = None
        doubled: Any = None
        for k in range(40):
            module = Rated(torch.ones(2), (Dense().initialize(k),) * (k % 3), turn + k / 7)
            doubled = tree.map(lambda leaf: 2 * leaf, module)
            assert doubled.rate == turn + k / 7 and len(doubled.inner) == k % 3
        del module, doubled
        gc.collect()
        sizes.append([len(table) for table in tables])
    assert sizes[1] == sizes[2] == sizes[3]


def test_equal_constants_of_a_users_class_stay_apart() -> None:
    class Named:
        def __init__(self, name: str, note: str) -> None:
            self.name, self.note = name, note

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Named) and self.name == other.name

        def __hash__(self) -> int:
            return hash(self.name)

    class Net(Module):
        weight: Parameter
        config: Any

    one, two = (Net(torch.ones(1), Named("a", note)) for note in ("first", "second"))
    for net, note in ((one, "first"), (two, "second"), (one, "first")):
        assert tree.map(torch.neg, net).config.note == note
        assert net.train().config.note == note
    tree.map(torch.add, one, two)  # equal, so they fit


def test_modules_nest_as_deep_as_promised_and_no_deeper() -> None:
    deep = chain(MAX_DEPTH)
    assert spec_of(deep).depth == MAX_DEPTH
    made = deep.initialize(0)
    assert spec_of(pickle.loads(pickle.dumps(made))) is spec_of(made)
    assert len(tree.leaves(tree.map(torch.neg, made))) == MAX_DEPTH
    with pytest.raises(RecursionError, match=f"more than {MAX_DEPTH} deep.*tuple"):
        chain(MAX_DEPTH + 1)


def test_a_structure_prints_in_one_line() -> None:
    text = repr(spec_of(MLP()))
    assert "MLP" in text and "3 nodes" in text and "4 leaves" in text
    assert "\n" not in text


def test_renote_keeps_the_skeleton() -> None:
    spec: Structure = spec_of(MLP())
    frozen = spec.renote(
        lambda path, node: node.note._replace(mode=".".join(["m", *map(str, path)]))
    )
    assert [node.local.note.mode for node in frozen.nodes()] == ["m", "m.first", "m.second"]
    assert frozen.skeleton == spec.skeleton and frozen != spec
    assert functools.reduce(lambda a, b: a and b, [s.depth for s in frozen.nodes()])


def test_what_is_derived_from_a_structure_is_computed_once_for_its_arguments() -> None:
    asked = []

    @derived
    def names(structure: Structure, end: str) -> list[str]:
        asked.append(end)
        return [path + end for path in structure.modules()]

    spec = spec_of(MLP())
    assert names(spec, "!") is names(spec, "!") and names(spec, "?") == ["?", "first?", "second?"]
    assert asked == ["!", "?"]


@pytest.mark.parametrize("case", [c for c in MODULES if c.name != "foreign"], ids=str)
def test_modules_and_leaves_are_where_attributes_lead_to_them(case: Case) -> None:
    module = case.make()
    spec, leaves = spec_of(module), tree.flatten(module)[0]
    places = zip(spec.place_paths, spec.leaf_at, strict=True)
    assert all(reached(module, path) is leaves[index] for path, index in places)
    found = spec.modules()
    assert all(type(reached(module, path)) is node.cls for path, node in found.items())
    assert len({id(reached(module, path)) for path in found}) == len([*module.modules()])


def reached(value: Any, path: str) -> Any:
    """What stands at a dotted path, found step by step."""
    for name in path.split(".") if path else ():
        if isinstance(value, dict):
            value = {str(key): item for key, item in value.items()}[name]
        else:
            value = value[int(name)] if name.isdigit() else getattr(value, name)
    return value
