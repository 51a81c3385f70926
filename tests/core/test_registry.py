"""Both registrations: of modules, of users' classes, from many threads, and rolled back."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import optree as _optree
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as _torch_pytree

from parallax import Module, Parameter, effects, nn, random, registry, tree
from parallax._compat import registries
from tests.corpus import MLP, MODULES, Case, Dense, TiedParameter

# Their annotations know neither of registered classes nor of what comes back.
optree: Any = _optree
torch_pytree: Any = _torch_pytree


def new_class() -> type[Any]:
    class Fresh:
        def __init__(self, one: Any, two: Any) -> None:
            self.one, self.two = one, two

    return Fresh


def register(cls: type[Any], **options: Any) -> None:
    registry.register(cls, lambda v: ((v.one, v.two), "meta"), lambda _, c: cls(*c), **options)


def is_known(cls: type[Any]) -> tuple[bool, bool]:
    return registries.is_optree_node(cls), registries.is_torch_node(cls)


# -- registering --------------------------------------------------------------------------------


def test_a_registered_class_is_a_node_everywhere() -> None:
    cls = new_class()
    register(cls)
    value = cls(torch.ones(2), [torch.zeros(2)])
    maps: list[Any] = [tree.map, optree.tree_map, torch_pytree.tree_map]
    for traverse in maps:
        mapped: Any = traverse(lambda leaf: leaf + 1, value)
        assert type(mapped) is cls
        assert mapped.one.tolist() == [2, 2] and mapped.two[0].tolist() == [1, 1]


def test_a_registered_class_holds_modules() -> None:
    cls = new_class()
    register(cls)
    value = cls(Dense().initialize(0), torch.ones(4))
    x = torch.ones(1, 4)
    grads = torch.func.grad(lambda v: (v.one(x) * v.two).sum())(value)
    torch.testing.assert_close(grads.one.bias, torch.ones(4))
    torch.testing.assert_close(grads.two, value.one(x)[0])


def test_registering_twice_is_refused_and_changes_nothing() -> None:
    cls = new_class()
    register(cls)
    value = cls(torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="registered already"):
        registry.register(cls, lambda v: ((), None), lambda _, c: cls(0, 0))
    assert len(optree.tree_leaves(value)) == len(torch_pytree.tree_leaves(value)) == 2


def test_a_module_class_is_refused() -> None:
    with pytest.raises(ValueError, match="Dense is registered already"):
        registry.register(Dense, lambda m: ((), None), lambda _, c: Dense())


@pytest.mark.parametrize("cls", [dict, list, tuple])
def test_a_container_that_the_registries_know_is_refused(cls: type[Any]) -> None:
    with pytest.raises(ValueError, match="registered already"):
        registry.register(cls, lambda m: ((), None), lambda _, c: cls())


def test_what_is_no_class_is_refused() -> None:
    with pytest.raises(TypeError, match="takes a class"):
        registry.register(3, lambda v: ((), None), lambda _, c: 3)  # type: ignore[arg-type]  # the point


def test_what_takes_a_class_apart_is_a_function() -> None:
    class Pair:
        pass

    wrong: Any = 3
    with pytest.raises(TypeError, match=r"register.*flatten"):
        registry.register(Pair, wrong, lambda _, c: Pair())
    with pytest.raises(TypeError, match=r"register.*unflatten"):
        registry.register(Pair, lambda p: ((), None), wrong)
    assert tree.leaves(leaf := Pair()) == [leaf]  # nothing was registered


@pytest.mark.parametrize("where", ["optree", "torch"])
def test_a_class_that_one_registry_knows_is_refused(where: str) -> None:
    cls = new_class()
    if where == "optree":
        optree.register_pytree_node(
            cls, lambda v: ((v.one,), None), lambda _, c: cls(*c, 0), namespace="parallax"
        )
        optree.unregister_pytree_node(cls, namespace="parallax")
        registries.register_optree_node(
            cls, lambda v: ((v.one,), None), lambda _, c: cls(*c, 0), entry=optree.AutoEntry
        )
    else:
        torch_pytree.register_pytree_node(cls, lambda v: ([v.one], None), lambda c, _: cls(*c, 0))
    before = is_known(cls)
    with pytest.raises(ValueError, match=where):
        register(cls)
    assert is_known(cls) == before and sum(before) == 1


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("torch refused")


def test_a_failed_registration_leaves_nothing_and_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cls = new_class()
    with monkeypatch.context() as patch:
        patch.setattr(registries, "register_torch_node", fail)
        with pytest.raises(RuntimeError, match="torch refused"):
            register(cls)
    assert is_known(cls) == (False, False)
    assert tree.leaves(cls(1, 2))[0].__class__ is cls  # a leaf still
    register(cls)
    assert is_known(cls) == (True, True)


def test_a_module_class_that_failed_to_register_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[Any] = []
    real = registries.register_optree_node

    def keep(cls: type, *args: Any, **kwargs: Any) -> None:
        kept.append(cls)
        real(cls, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(registries, "register_optree_node", keep)
        patch.setattr(registries, "register_torch_node", fail)
        with pytest.raises(RuntimeError, match="torch refused"):

            class Broken(Module):
                weight: Parameter

    assert is_known(kept[0]) == (False, False)


def test_a_subclass_of_a_module_is_a_node_of_its_own() -> None:
    class Wider(Dense):
        extra: Parameter

        def __init__(self) -> None:
            super().__init__()
            self.extra = Parameter((3,), torch.nn.init.ones_)

    module = Wider().initialize(0)
    assert is_known(Wider) == (True, True)
    assert list(tree.named_leaves(module)) == ["weight", "bias", "extra"]
    assert len(optree.tree_leaves(module)) == len(torch_pytree.tree_leaves(module)) == 3


def test_a_subclass_of_a_registered_class_is_a_leaf_until_it_is_registered() -> None:
    cls = new_class()
    register(cls)

    class Sub(cls):  # type: ignore[valid-type, misc]  # made above
        pass

    value = Sub(torch.ones(1), torch.ones(1))
    assert tree.leaves(value) == [value]
    register(Sub)
    assert len(tree.leaves(value)) == 2


# -- names --------------------------------------------------------------------------------------


def define(n: int) -> type[Any]:
    class Redefined(Module):
        weight: Parameter
        if n > 1:
            other: Parameter

        def forward(self, x: Any) -> Any:
            return n * x

    return Redefined


def test_two_classes_of_one_name() -> None:
    """As when a notebook's cell runs again: both work, and their trees do not fit."""
    first, second = define(1), define(1)
    one, two = first(torch.ones(2)), second(torch.ones(2))
    for traverse in (tree.map, optree.tree_map, torch_pytree.tree_map):
        for module in (one, two):
            mapped: Any = traverse(lambda leaf: 2 * leaf, module)
            assert type(mapped) is type(module)
    assert tree.structure(one) != tree.structure(two)
    with pytest.raises(ValueError, match="do not fit"):
        tree.map(torch.add, one, two)
    with pytest.raises(ValueError, match="ismatch"):
        torch_pytree.tree_map(torch.add, one, two)


def test_a_redefined_class_may_have_other_fields() -> None:
    one, two = define(1)(torch.ones(2)), define(2)(torch.ones(2), torch.zeros(2))
    assert len(tree.leaves(one)) == 1 and len(tree.leaves(two)) == 2
    leaves, spec = torch_pytree.tree_flatten(two)
    loaded = torch_pytree.treespec_loads(
        torch_pytree.treespec_dumps(torch_pytree.tree_structure(MLP().initialize(0)))
    )
    assert loaded.num_leaves == 4
    assert torch_pytree.tree_unflatten(leaves, spec).other is leaves[1]


# -- threads ------------------------------------------------------------------------------------


def in_threads(n: int, work: Callable[[int], Any]) -> list[Any]:
    """What ``work`` returns in ``n`` threads that start at once."""
    barrier = threading.Barrier(n)

    def run(k: int) -> Any:
        barrier.wait()
        return work(k)

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(run, range(n)))


def test_classes_are_defined_in_many_threads_at_once() -> None:
    def work(k: int) -> Any:
        cls = define(1 + k % 2)
        module = cls(*(torch.full((2,), float(k)) for _ in range(1 + k % 2)))
        doubled = tree.map(lambda leaf: 2 * leaf, module)
        grads = torch.func.grad(lambda m: m(m.weight).sum())(module)
        return k, module, doubled, grads

    for k, module, doubled, grads in in_threads(16, work):
        assert type(doubled) is type(grads) is type(module)
        assert doubled.weight.tolist() == [2.0 * k] * 2
        assert grads.weight.tolist() == [1.0 + k % 2] * 2


def test_trees_are_built_mapped_and_flattened_in_many_threads_at_once() -> None:
    def work(k: int) -> Any:
        out = []
        for seed in range(4):
            for case in MODULES:
                module = case.make(seed)
                mapped = tree.map(lambda leaf: leaf + 0, module)
                raw: Any = optree.tree_map(lambda leaf: leaf, mapped)
                torch_pytree.tree_map(lambda leaf: leaf, raw)
                out.append((tree.structure(mapped), tree.structure(raw)))
        return out

    results = in_threads(8, work)
    for other in results[1:]:
        assert other == results[0]


def test_one_module_is_first_flattened_by_many_threads_at_once() -> None:
    for _ in range(5):
        module: Any = optree.tree_map(lambda leaf: leaf, MLP().initialize(0))  # nothing memoised
        expected = [
            module.first.weight,
            module.first.bias,
            module.second.weight,
            module.second.bias,
        ]
        for leaves in in_threads(8, partial(lambda module, _: tree.leaves(module), module)):
            assert all(a is b for a, b in zip(leaves, expected, strict=True))


def test_a_forward_reference_is_resolved_by_one_of_many_threads() -> None:
    class Later(Module):
        weight: Parameter
        inner: Further | None  # defined below

    class Further(Module):
        weight: Parameter

    for module in in_threads(8, lambda _: Later(torch.ones(1), Further(torch.ones(1)))):
        assert len(tree.leaves(module)) == 2


# -- memory -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_heap")
@pytest.mark.parametrize("case", MODULES, ids=str)
def test_no_cache_keeps_a_module_or_its_leaves(case: Case) -> None:
    module = case.make()
    mapped = tree.map(torch.clone, module)
    raw: Any = optree.tree_map(torch.clone, module)
    leaves, spec = torch_pytree.tree_flatten(mapped)
    tree.flatten(raw)
    named = tree.named_leaves(mapped)
    watched = [weakref.ref(x) for x in (module, mapped, raw, *leaves, *tree.leaves(module))]
    del module, mapped, raw, leaves, named
    gc.collect()
    assert not any(ref() is not None for ref in watched)
    assert spec.num_leaves >= 0  # a structure lives on without them


@pytest.mark.usefixtures("small_heap")
def test_a_loop_of_maps_keeps_nothing() -> None:
    module: Any = TiedParameter().initialize(0)
    tree.map(torch.clone, module)

    def alive() -> int:
        gc.collect()
        # Not isinstance: asking the metaclass about a million objects takes a minute.
        kinds = map(type, gc.get_objects())
        return sum(kind is torch.Tensor or hasattr(kind, "__layout__") for kind in kinds)

    before = alive()
    for _ in range(1000):
        module = tree.map(lambda leaf: leaf * 0.999, module)
        torch_pytree.tree_leaves(module)
        optree.tree_leaves(module)
    assert alive() == before


def test_a_module_is_freed_without_the_collector() -> None:
    gc.disable()
    try:
        module = MLP().initialize(0)
        doubled = tree.map(lambda leaf: 2 * leaf, module)
        watched = weakref.ref(module), weakref.ref(doubled)
        tree.named_leaves(doubled)
        del module, doubled
        assert watched[0]() is None and watched[1]() is None
    finally:
        gc.enable()


def test_what_a_module_holds_beside_its_key_goes_through_torchs_pytree() -> None:
    """A collection stays under way, and a context that was read from a file has the key alone."""
    norm = nn.BatchNorm1d(2).initialize(0).train(random.key(0))

    def rebuilt(norm: Any, x: Tensor) -> Any:
        return torch_pytree.tree_map(lambda leaf: leaf, norm)(x)

    _, after = effects.collect(rebuilt)(norm, torch.ones(4, 2))
    assert after.num_batches_tracked == 1
    leaves, spec = torch_pytree.tree_flatten(norm)
    read = torch_pytree.treespec_loads(torch_pytree.treespec_dumps(spec))
    made = torch_pytree.tree_unflatten(leaves, read)
    assert torch.equal(made.rng.data, norm.rng.data)


def test_torch_shows_a_module_by_its_class_and_size() -> None:
    shown = repr(torch_pytree.tree_structure(nn.Linear(2, 2).initialize(0)))
    assert "Structure(Linear, 1 nodes, 2 leaves)" in shown
