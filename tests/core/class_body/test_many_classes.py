"""Classes of one name, and classes made in many threads."""

import threading
from typing import Any, Optional

import pytest
import torch

from parallax import Module, Parameter, tree
from tests.corpus import leaf


def test_classes_of_one_name_are_different_classes() -> None:
    def define(default: int) -> Any:
        class Twice(Module):
            weight: Parameter
            size: int = default

        return Twice

    one, other = define(1), define(2)
    first, second = one(leaf()).initialize(0), other(leaf()).initialize(0)
    assert (first.size, second.size) == (1, 2)
    assert tree.structure(first) != tree.structure(second)
    assert type(tree.map(torch.relu, first)) is one
    assert type(tree.map(torch.relu, second)) is other
    with pytest.raises(ValueError, match="do not fit"):
        tree.map(torch.add, first, second)


def test_classes_are_defined_and_made_in_many_threads_at_once() -> None:
    start, failures = threading.Barrier(8), []

    class Shared(Module):
        later: "Later | None" = None
        weight: Optional[Parameter] = None  # noqa: UP045

    class Later(Module):
        weight: Parameter

    def work(k: int) -> None:
        try:
            start.wait()
            for n in range(20):
                Shared(Later(leaf()))

                class Own(Module):
                    weight: Parameter
                    inner: Shared
                    size: int = k

                made = Own(leaf(), Shared(Later(leaf()), leaf())).initialize(n)
                doubled = tree.map(lambda x: 2 * x, made)
                assert [float(x.sum()) for x in tree.leaves(doubled)] == [4.0, 4.0, 4.0]
                assert doubled.size == k
                assert list(tree.named_leaves(made)) == [
                    "weight",
                    "inner.later.weight",
                    "inner.weight",
                ]
        except BaseException as error:  # handed to the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_module_classes_are_looked_up_as_quickly_as_any() -> None:
    # typing_extensions writes both in Python, and tables by class are read everywhere.
    metaclass, plain = type(Module), type(type)
    for name in ("__hash__", "__eq__"):
        assert getattr(metaclass, name) is getattr(plain, name)
