"""The annotation decides, also one that names what does not exist yet."""

import sys
from typing import Any, TypeVar

import torch

from parallax import Buffer, Module, Parameter, tree
from tests.corpus import Dense

# Before Python 3.14 only this puts the evaluation of annotations off; from then on all code does.
LATER = "" if sys.version_info >= (3, 14) else "from __future__ import annotations\n"


def run(source: str, **names: Any) -> dict[str, Any]:
    """The variables of a file that defines modules."""
    space = {"__name__": "elsewhere", "Module": Module, "Parameter": Parameter, **names}
    exec(LATER + source, space)
    return space


def test_a_buffer_and_a_parameter_differ_by_annotation_alone() -> None:
    class Both(Module):
        a: Parameter
        b: Buffer

    both = Both(torch.ones(1), torch.ones(1)).reset(0)
    assert both.a.requires_grad and not both.b.requires_grad


def test_what_is_defined_later_is_found_alone_in_unions_and_in_containers() -> None:
    space = run("""
class Early(Module):
    one: Late
    two: Parameter | Late
    many: tuple[Parameter | Late, ...]
    named: dict[str, Late | None]
class Late(Module):
    weight: Parameter
""")
    late = space["Late"](torch.ones(1))
    early = space["Early"](late, torch.ones(1), (late, torch.ones(1)), {"a": late})
    assert list(tree.named_leaves(early)) == ["one.weight", "two", "many.1"]  # the rest is tied


def test_its_own_name_is_this_class_also_in_a_function_where_it_meant_another() -> None:
    source = """
class Node(Module):
    below: Node | None = None
    others: tuple[Node, ...] = ()
def make():
    class Other(Module):
        below: Other | None = None
    return Other
"""
    space = run(source, Node=int, Other=int)
    node, other = space["Node"], space["make"]()
    assert type(node(node(), (node(),)).below) is node
    assert type(other(other()).below) is other


def test_a_condition_in_an_annotation_is_decided_where_all_its_names_are_known() -> None:
    made = run("class Made(Module):\n x: Parameter if learn else int\n", learn=False)["Made"]
    assert tree.leaves(made(3)) == []


def test_type_parameters_and_the_function_around_them_are_seen() -> None:
    # What `class Box[T: Dense](Module)` stands for, https://peps.python.org/pep-0695/, which is no
    # syntax of Python 3.11: a function between the class and the function that it is written in.
    source = """
def make(T):
    class Inner(Module): pass
    def generic():
        class Box(Module):
            __type_params__ = (T,)
            item: T
            items: tuple[T, ...]
            inner: Inner
            late: Late
        return Box
    generic.__code__ = generic.__code__.replace(co_name="<generic parameters of Box>")
    box = generic()
    class Late(Module): pass
    return box, Inner, Late
"""
    box, inner, late = run(source)["make"](TypeVar("T", bound=Dense))
    module = box(Dense(), (Dense(),), inner(), late())
    assert len(tree.leaves(module)) == 4
