"""Classes that a loop makes are freed; a class that anybody can use stays in the registries."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch.utils import _pytree as torch_pytree

from parallax import Module, Parameter, func, tree
from parallax.nn import Linear

Hold = tuple[Any, Callable[[], Any]]


def define() -> Any:
    class Local(Module):
        weight: Parameter
        inner: Linear

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.ones(2)
            self.inner = Linear(2, 2).initialize(0)

        def forward(self, x: Any) -> Any:
            return self.inner(x * self.weight).sum()

    return Local


def used(cls: Any) -> Any:
    module = cls()
    tree.map(torch.neg, module.eval())
    torch.func.grad(lambda m: m(torch.ones(2)))(module)
    optree.tree_map(torch.neg, module)
    return module


def define_more() -> None:
    for _ in range(2):
        for _ in range(20):
            used(define())
        gc.collect()


def is_node(module: Any) -> bool:
    found = [*optree.tree_leaves(module), *torch_pytree.tree_leaves(module)]
    return all(isinstance(leaf, torch.Tensor) for leaf in found)


def test_classes_of_a_loop_are_freed() -> None:
    classes = [weakref.ref(type(used(define()))) for _ in range(100)]
    gc.collect()
    assert sum(ref() is not None for ref in classes) <= 20


def structure(module: Any) -> Hold:
    leaves, spec = tree.flatten(module)
    return spec, lambda: tree.unflatten(spec, leaves)


def torch_spec(module: Any) -> Hold:
    leaves, spec = torch_pytree.tree_flatten(module)
    return spec, lambda: torch_pytree.tree_unflatten(leaves, spec)


def optree_spec(module: Any) -> Hold:
    leaves, spec = optree.tree_flatten(module)
    return spec, lambda: optree.tree_unflatten(spec, leaves)


def subclass(module: Any) -> Hold:
    class Below(type(module)):  # type: ignore[misc]  # a class that is known at run time
        pass

    return Below, Below


def parent(module: Any) -> Hold:
    class Parent(Module):
        child: Module

    whole = Parent(module)
    return whole, lambda: whole.child


def method(module: Any) -> Hold:
    """Whose closure leads to the class, and nothing else does."""
    init: Any = type(module).__init__
    cls: Any = weakref.ref(init.__closure__[0].cell_contents)
    return init, lambda: cls()()


@pytest.mark.parametrize("hold", [structure, torch_spec, optree_spec, subclass, parent, method])
def test_a_class_that_can_be_used_stays_a_node(hold: Callable[[Any], Hold]) -> None:
    held, make = hold(used(define()))
    define_more()
    made = make()
    assert is_node(made) and held is not None
    grads = func.grad(lambda m: (m.weight**2).sum())(made)
    assert grads.weight.equal(2 * made.weight)


def test_a_class_with_an_instance_of_its_own_stays() -> None:
    cls = define()
    module = used(cls)
    cls.default = module
    del cls
    define_more()
    assert is_node(module) and is_node(type(module).default)


def test_instances_in_other_threads_stay_nodes() -> None:
    wrong: list[Any] = []
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            module = define()()
            wrong.extend([module for _ in range(20) if not is_node(module)])

    threads = [threading.Thread(target=loop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        define_more()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_later_class_keeps_the_name_in_files() -> None:
    first = used(define())
    name = f"{define.__module__}.define.<locals>.Local"
    del first
    define_more()
    latest = type(used(define()))
    assert torch_pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE[name] is latest
