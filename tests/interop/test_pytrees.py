"""Raw optree and raw ``torch.utils._pytree`` on modules."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import optree as _optree
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as _torch_pytree
from torch.utils.checkpoint import checkpoint

from parallax import tree
from tests.corpus import (
    FLOAT,
    MLP,
    MODULES,
    SIZE,
    TWINS,
    Branches,
    Case,
    Dense,
    Foreign,
    Gated,
    Holder,
    Sequential,
    TiedModule,
    TiedParameter,
    example_input,
)

# Their annotations know neither of registered classes nor of what comes back.
optree: Any = _optree
torch_pytree: Any = _torch_pytree

INPUT = example_input()


def by_attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        if isinstance(module, dict):
            module = module[name]
        elif isinstance(module, Foreign):
            module = (module.left, module.right)[int(name)]
        elif isinstance(module, tuple) and name.isdigit():
            module = module[int(name)]
        else:
            module = getattr(module, name)
    return module


# -- optree -------------------------------------------------------------------------------------


@pytest.mark.parametrize("none_is_leaf", [False, True])
@pytest.mark.parametrize("case", MODULES, ids=str)
def test_optree_there_and_back(case: Case, none_is_leaf: bool) -> None:
    module = case.make()
    leaves, spec = optree.tree_flatten(module, none_is_leaf=none_is_leaf)
    back: Any = optree.tree_unflatten(spec, leaves)
    assert type(back) is type(module)
    assert tree.structure(back) == tree.structure(module)
    for one, other in zip(tree.leaves(module), tree.leaves(back), strict=True):
        assert one is other


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_optree_leaves_are_the_attributes_in_field_order(case: Case) -> None:
    module = case.make()
    leaves, spec = optree.tree_flatten(module, namespace="parallax", none_is_leaf=True)
    paths = [".".join(map(str, path)) for path in spec.paths()]
    for path, leaf in zip(paths, leaves, strict=True):
        assert by_attribute(module, path) is leaf
    unique = {id(leaf): path for path, leaf in reversed(list(zip(paths, leaves, strict=True)))}
    if case.name == "gated":
        return  # optree numbers the fields of named tuples
    named = tree.named_leaves(module)
    assert [unique[id(leaf)] for leaf in named.values()] == list(named)


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_optree_accessors_reach_the_leaves(case: Case) -> None:
    module = case.make()
    if case.name == "foreign":
        return  # a class without entries of its own is not reached by accessors
    accessors, leaves, _ = optree.tree_flatten_with_accessor(module)
    for accessor, leaf in zip(accessors, leaves, strict=True):
        assert accessor(module) is leaf


def test_optree_entries_are_attributes() -> None:
    paths, _, _ = optree.tree_flatten_with_path(MLP().initialize(0))
    assert paths == [
        ("first", "weight"),
        ("first", "bias"),
        ("second", "weight"),
        ("second", "bias"),
    ]
    accessor = optree.tree_accessors(MLP().initialize(0))[1]
    assert accessor.codify("module") == "module.first.bias"


def test_dicts_of_modules_keep_their_order_in_every_registry() -> None:
    module = Branches("z", "a", "m").initialize(0)
    order = ["branches.z.weight", "branches.z.bias", "branches.a.weight"]
    for paths in (
        [".".join(map(str, path)) for path in optree.tree_paths(module)],
        [key[0].key for key, _ in torch_pytree.tree_flatten_with_path(module)[0]],
        list(tree.named_leaves(module)),
    ):
        assert paths[:3] == order


def test_optree_maps_a_module_and_its_constants_stay() -> None:
    module: Any = Sequential(Dense(), torch.relu, Dense()).initialize(0).eval()
    doubled: Any = optree.tree_map(lambda leaf: 2 * leaf, module)
    assert doubled.layers[1] is torch.relu and doubled.mode == "eval"
    torch.testing.assert_close(doubled.layers[2].bias, 2 * module.layers[2].bias)
    added: Any = optree.tree_map(torch.add, module, doubled)
    torch.testing.assert_close(added.layers[0].weight, 3 * module.layers[0].weight)


def test_optree_refuses_other_constants_and_classes() -> None:
    one, other = Gated().initialize(0), Dense().initialize(0)
    with pytest.raises(ValueError, match="Gated"):
        optree.tree_map(torch.add, one, other)
    with pytest.raises(ValueError, match=r"tanh.*relu"):
        optree.tree_map(torch.add, MLP().initialize(0), MLP(torch.relu).initialize(0))


def test_optree_on_any_value_in_a_leafs_place() -> None:
    module = MLP().initialize(0)
    shapes: Any = optree.tree_map(lambda leaf: tuple(leaf.shape), module)  # a tuple is a subtree
    assert shapes.first.bias == (SIZE,)
    numbers: Any = optree.tree_map(lambda leaf: leaf.numel(), module)
    assert numbers.first.weight == SIZE * SIZE
    assert optree.tree_sum(numbers) == 2 * (SIZE * SIZE + SIZE)
    assert tree.leaves(numbers) == [SIZE * SIZE, SIZE, SIZE * SIZE, SIZE]


def test_optree_transposes_around_modules() -> None:
    module = Dense().initialize(0)
    pairs = optree.tree_map(lambda leaf: {"p": leaf, "q": 2 * leaf}, module)
    turned: Any = optree.tree_transpose(
        optree.tree_structure(module), optree.tree_structure({"p": 0, "q": 0}), pairs
    )
    torch.testing.assert_close(turned["q"].weight, 2 * module.weight)


def test_a_tie_that_raw_optree_cut_is_refused_by_update() -> None:
    module = TiedParameter().initialize(0)
    cut: Any = optree.tree_map(torch.randn_like, module)
    assert len(tree.leaves(cut)) == len(tree.leaves(module)) + 1
    for combine in (module.update, lambda fn, other: tree.map(fn, module, other)):
        with pytest.raises(ValueError, match=r"encoder\.weight and decoder\.weight.*tree\.tie"):
            combine(lambda p, g: p - g, cut)


def test_a_tie_that_raw_optree_keeps_is_found_again() -> None:
    module = TiedModule().initialize(0)
    same: Any = optree.tree_map(lambda leaf: leaf, module)
    assert tree.structure(same) == tree.structure(module)
    assert len(tree.leaves(same)) == len(tree.leaves(module))


# -- torch's registry ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_torch_there_and_back(case: Case) -> None:
    module = case.make()
    leaves, spec = torch_pytree.tree_flatten(module)
    assert len(leaves) == len(tree.leaves(module))
    back = torch_pytree.tree_unflatten(leaves, spec)
    assert tree.structure(back) == tree.structure(module)
    for one, other in zip(tree.leaves(module), tree.leaves(back), strict=True):
        assert one is other
    again = torch_pytree.tree_flatten(tree.map(lambda leaf: leaf, module))[1]
    assert again == spec and repr(again)


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_torch_key_paths_are_dotted_names(case: Case) -> None:
    module = case.make()
    pairs, _ = torch_pytree.tree_flatten_with_path(module)
    assert {key[0].key: leaf for key, leaf in pairs} == tree.named_leaves(module)
    seen: list[str] = []
    torch_pytree.tree_map_with_path(lambda key, _: seen.append(key[0].key), module)
    assert seen == list(tree.named_leaves(module))


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_torch_specs_are_written_as_text(case: Case) -> None:
    module = case.make()
    leaves, spec = torch_pytree.tree_flatten((module, {"other": module}))
    text = torch_pytree.treespec_dumps(spec)
    json.loads(text)
    loaded = torch_pytree.treespec_loads(text)
    assert loaded == spec
    back, _ = torch_pytree.tree_unflatten(leaves, loaded)
    assert tree.structure(back) == tree.structure(module)


def test_a_constant_without_a_text_form_is_named() -> None:
    module = MLP(lambda x: x).initialize(0)
    with pytest.raises(TypeError, match="lambda"):
        torch_pytree.treespec_dumps(torch_pytree.tree_structure(module))


def test_torch_refuses_trees_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="mismatch"):
        torch_pytree.tree_map(torch.add, MLP().initialize(0), MLP(torch.relu).initialize(0))


def test_torch_keeps_a_tie_and_its_holes() -> None:
    module = TiedParameter().initialize(0)
    doubled = torch_pytree.tree_map(lambda leaf: 2 * leaf, module)
    assert doubled.encoder.weight is doubled.decoder.weight
    assert torch_pytree.tree_map(torch.neg, Dense(bias=False).initialize(0)).bias is None


def test_the_cxx_registry_of_torch_takes_the_modules_over() -> None:
    """Importing it replays every registration into optree's namespace "torch"."""
    script = """
import warnings; warnings.simplefilter("error")
import torch
from tests.corpus import Branches, Dense, TiedParameter, MODULES
from parallax import Module, Parameter, tree
from torch.utils import _cxx_pytree
def check(module):
    leaves, spec = _cxx_pytree.tree_flatten(module)
    assert len(leaves) == len(tree.leaves(module)), module
    back = _cxx_pytree.tree_unflatten(leaves, spec)
    assert tree.structure(back) == tree.structure(module)
for case in MODULES:
    check(case.make())
doubled = _cxx_pytree.tree_map(lambda x: 2 * x, TiedParameter().initialize(0))
assert doubled.encoder.weight is doubled.decoder.weight
class Late(Module):
    weight: Parameter
check(Late(torch.ones(2)))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


# -- other machinery of torch that walks trees --------------------------------------------------


@pytest.mark.parametrize("case", [c for c in TWINS if c.real and c.name != "empty"], ids=str)
def test_make_fx(case: Case) -> None:
    module = case.make()

    def step(module: Any, x: Tensor) -> Any:
        grads = torch.func.grad(lambda m: m(x).sum())(module)
        return torch_pytree.tree_map(lambda p, g: p - g, module, grads)

    graph = make_fx(step)(module, INPUT)
    other = case.make(1)
    got, expected = graph(other, INPUT), step(other, INPUT)
    assert type(got) is type(expected)
    torch.testing.assert_close(tree.named_leaves(got), tree.named_leaves(expected))


def test_checkpoint_takes_a_module_as_argument() -> None:
    """https://github.com/pytorch/pytorch/issues/122729: on autograd's tape it is exact."""
    module, again = MLP().initialize(0).reset(0), MLP().initialize(0).reset(0)
    checkpoint(lambda m, x: m(x).sum(), module, INPUT, use_reentrant=False).backward()
    again(INPUT).sum().backward()
    torch.testing.assert_close(tree.named_leaves(module.grad()), tree.named_leaves(again.grad()))


def test_functional_call_of_a_twin_takes_the_named_leaves() -> None:
    case = next(case for case in TWINS if case.name == "tied_module")
    module = case.make()
    got = functional_call(case.twin(case.make(1)), tree.named_leaves(module), (INPUT,))
    torch.testing.assert_close(got, module(INPUT))


@pytest.mark.parametrize("case", FLOAT, ids=str)
def test_nothing_is_lost_in_a_container_of_modules(case: Case) -> None:
    whole = {"b": [case.make()], "a": (case.make(1), torch.ones(1))}
    leaves, spec = torch_pytree.tree_flatten(whole)
    back = torch_pytree.tree_unflatten(leaves, spec)
    assert tree.structure(back["b"][0]) == tree.structure(whole["b"][0])
    assert list(back) == ["b", "a"]


def test_a_registered_class_is_a_node_of_both() -> None:
    holder = Holder().initialize(0)
    names = [".".join(map(str, path)) for path in optree.tree_paths(holder)]
    assert names == ["pair.0.weight", "pair.0.bias", "pair.1"] == list(tree.named_leaves(holder))
    mapped: Any = optree.tree_map(torch.neg, holder)
    assert mapped.pair.tag == "tag"
    alone = Foreign(torch.ones(2), [torch.zeros(1)], "t")
    mapped = torch_pytree.tree_map(lambda leaf: leaf + 1, alone)
    assert mapped.tag == "t" and mapped.right[0].item() == 1
