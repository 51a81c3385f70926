"""From annotations to kinds. This file's annotations are text; ``test_declare`` has objects."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import gc
import re
import types
import typing
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Generic, NewType, Optional, Self, TypeVar, Union

import pytest
import torch
import typing_extensions
from torch import Tensor, nn

import parallax
from parallax import Buffer, Module, Parameter, registry, tree
from tests.corpus import Dense, Foreign, Gates, Scale, leaf

AnyT = TypeVar("AnyT")
ModuleT = TypeVar("ModuleT", bound=Module)
LateT = TypeVar("LateT", bound="Late")
EitherT = TypeVar("EitherT", Dense, Scale)
MixedT = TypeVar("MixedT", Dense, int)
Inner = NewType("Inner", Dense)
Count = NewType("Count", int)
Alias = Optional["tuple[Dense, ...]"]


class Late(Module):
    pass


def declare(annotation: Any) -> Any:
    """A module class with one field ``x`` of this annotation, as if written in this file."""
    space = {"__annotations__": {"x": annotation}, "__module__": __name__, "__qualname__": "Made"}
    return types.new_class("Made", (Module,), exec_body=lambda body: body.update(space))


def paths(annotation: str, value: Any) -> list[str]:
    """Where a tree of one field has leaves."""
    return list(tree.named_leaves(declare(annotation)(value)))


# -- what is a leaf, a child, a container, a constant ---------------------------------------------


@pytest.mark.parametrize(
    "annotation",
    [
        "Parameter", "'Parameter'", '"""Parameter"""', "parallax.Parameter", "Optional[Parameter]",
        "Optional['Parameter']", "Parameter | None", "None | Parameter", "Union[None, Parameter]",
        "Union[Parameter, 'None']", "typing.Optional[Parameter]", "Annotated[Parameter, 'a note']",
        "Annotated['Parameter', 1]", "Final[Parameter]", "typing_extensions.Final[Parameter]",
        "Annotated[Optional[Parameter], 1]", "Parameter | Dense",
    ],
)  # fmt: skip
def test_a_leaf_in_every_spelling(annotation: str) -> None:
    assert paths(annotation, leaf()) == ["x"]


@pytest.mark.parametrize(
    "annotation",
    [
        "Dense", "Module", "'Module'", "Dense | None", "Optional[Dense]", "Dense | Scale", "Self",
        "Self | None", "typing_extensions.Self", "Made", "Made | None", "ModuleT", "EitherT",
        "MixedT", "Inner", "Annotated[Dense, 0]", "Final[Module]", "Module | Callable",
        "Callable[..., Any] | Dense", "Module | int", "LateT",
    ],
)  # fmt: skip
def test_a_child_in_every_spelling(annotation: str) -> None:
    assert paths(annotation, Dense()) == ["x.weight", "x.bias"]


@pytest.mark.parametrize(
    "annotation",
    [
        "tuple[Dense, ...]", "list[Dense]", "typing.List[Dense]", "typing.List['Dense']",
        "list['Dense']", "Sequence[Dense]", "typing.Sequence[Dense]", "typing.Iterable[Dense]",
        "collections.abc.MutableSequence[Dense]", "collections.abc.Collection[Dense]",
        "tuple[Dense, ...] | None", "Alias", "list[Dense | None]", "tuple[Dense]",
        "tuple[Module | Callable, ...]", "tuple[ModuleT, ...]", "Dense | tuple[Dense, ...]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("container", [list, tuple])
def test_a_sequence_of_children_in_every_spelling_becomes_a_tuple(
    annotation: str, container: type
) -> None:
    module = declare(annotation)(container([Dense(bias=False)]))
    assert type(module.x) is tuple
    assert list(tree.named_leaves(module)) == ["x.0.weight"]


@pytest.mark.parametrize(
    "annotation",
    [
        "dict[str, Dense]", "typing.Dict[str, Dense]", "Mapping[str, Dense]",
        "dict[str, Dense] | None",
        "typing.Mapping[str, 'Dense']", "collections.abc.MutableMapping[str, Dense]",
        "dict[str, Dense | Callable[..., Any]]",
    ],
)  # fmt: skip
def test_a_mapping_of_children_in_every_spelling_is_frozen(annotation: str) -> None:
    given = {"z": Dense(bias=False), "a": Dense(bias=False)}
    module = declare(annotation)(given)
    assert list(tree.named_leaves(module)) == ["x.z.weight", "x.a.weight"]
    with pytest.raises(TypeError, match="frozen"):
        module.x["b"] = Dense()
    given["b"] = Dense()
    assert list(module.x) == ["z", "a"]


def test_containers_nest_to_any_depth() -> None:
    value = [{"a": [leaf(), None]}, {"b": (leaf(),)}]
    assert paths("list[dict[str, list[Parameter | None]]]", value) == ["x.0.a.0", "x.1.b.0"]


def test_fixed_tuples_and_named_tuples_have_a_kind_per_item() -> None:
    assert paths("tuple[Dense, int, Parameter]", (Dense(bias=False), 3, leaf())) == [
        "x.0.weight",
        "x.2",
    ]
    assert paths("Gates", Gates(Dense(bias=False), leaf(), 2)) == ["x.inner.weight", "x.gain"]


def test_a_registered_class_is_a_child() -> None:
    assert paths("Foreign", Foreign(leaf(), Dense(bias=False), "tag")) == ["x.0", "x.1.weight"]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("int", 3), ("'int'", 3), ("Any", "text"), ("object", 1.5), ("AnyT", 4), ("Count", 5),
        ("int | str", "a"), ("typing.Literal['a', 'b']", "a"),
        ("Callable[[Dense], Dense]", torch.relu),
        ("type[Module]", Dense), ("tuple[int, ...]", (1, 2)), ("tuple[()]", ()), ("tuple", (1,)),
        ("dict[str, int] | None", None), ("Final[int]", 1), ("Final", 2), ("None", None),
        ("frozenset[int]", frozenset({1})), ("tuple[Any, ...]", (1, "a", torch.relu)),
        ("torch.dtype", torch.float32), ("Optional[float]", None), ("slice | None", None),
        ("Module | Callable", torch.relu), ("Dense | int | None", 3),
    ],
)  # fmt: skip
def test_everything_else_is_a_constant_of_the_structure(annotation: str, value: Any) -> None:
    module = declare(annotation)(value)
    assert tree.leaves(module) == []
    assert module.x == value
    assert tree.structure(module) == tree.structure(module.replace(x=value))


def test_a_slot_for_a_module_or_a_constant_takes_either_and_says_which() -> None:
    cls = declare("Module | Callable[..., Any]")
    assert len(tree.leaves(cls(Dense()))) == 2
    assert tree.structure(cls(torch.relu)) != tree.structure(cls(torch.tanh))
    with pytest.raises(ValueError, match=r"Made\.x"):
        tree.map(torch.add, cls(torch.relu), cls(torch.tanh))


@pytest.mark.parametrize("annotation", ["ClassVar[int]", "typing.ClassVar[int]", "'ClassVar[int]'",
                                        "typing_extensions.ClassVar", "ClassVar"])  # fmt: skip
def test_a_class_variable_is_no_field(annotation: str) -> None:
    space = {"__annotations__": {"x": annotation}, "__module__": __name__, "x": 3}
    cls: Any = types.new_class("Made", (Module,), exec_body=lambda body: body.update(space))
    assert cls().x == cls.x == 3
    with pytest.raises(TypeError):
        cls(4)


# -- names that exist later -----------------------------------------------------------------------


class Before(Module):
    """Names a class that is defined below, and itself."""

    after: After | None = None
    same: Before | None = None
    many: tuple[After, ...] = ()


class After(Module):
    weight: Parameter


def test_forward_references_resolve_at_the_first_instance() -> None:
    assert paths("Before", Before(After(leaf()), Before(), (After(leaf()),))) == [
        "x.after.weight",
        "x.many.0.weight",
    ]


def test_classes_of_a_function_refer_to_each_other_and_to_themselves() -> None:
    class One(Module):
        weight: Parameter
        two: Two | None = None
        one: One | None = None

    class Two(Module):
        one: One | None = None

    module = One(leaf(), Two(One(leaf())), One(leaf()))
    assert list(tree.named_leaves(module)) == ["weight", "two.one.weight", "one.weight"]


def test_they_do_after_the_function_has_returned() -> None:
    def make() -> Any:
        class One(Module):
            two: Two | None = None

        class Two(Module):
            weight: Parameter
            one: One | None = None

        return One, Two

    (one, two), (other_one, other_two) = make(), make()
    assert len(tree.leaves(one(two(leaf(), one())))) == 1
    assert len(tree.leaves(other_one(other_two(leaf())))) == 1


def test_classes_in_classes_in_functions_see_all_of_them() -> None:
    class Sibling(Module):
        weight: Parameter

    class Outer:
        class Helper(Module):
            weight: Parameter

        class Inner(Module):
            helper: Helper  # type: ignore[name-defined]  # noqa: F821  # of the class body
            sibling: Sibling

    made = Outer.Inner(Outer.Helper(leaf()), Sibling(leaf()))
    assert list(tree.named_leaves(made)) == ["helper.weight", "sibling.weight"]


def test_code_without_an_importable_module_finds_its_own_names() -> None:
    # As in doctests, notebooks' cells and `exec`: sys.modules does not have the globals.
    source = """
from __future__ import annotations
from parallax import Module, Parameter
class One(Module):
    two: Two | None = None
class Two(Module):
    weight: Parameter
"""
    space: dict[str, Any] = {"__name__": "no_such_module_anywhere"}
    exec(source, space)
    assert len(tree.leaves(space["One"](space["Two"](leaf())))) == 1


@pytest.mark.usefixtures("small_heap")
def test_a_frame_is_not_kept_once_the_annotations_are_resolved() -> None:
    def make(annotation: str) -> Any:
        loud = Dense()

        class Local(Module):
            __annotations__ = {"count": annotation}

        return Local, weakref.ref(loud)

    cls, loud = make("int")
    assert loud() is None
    cls, loud = make("Unknown")
    assert loud() is not None  # a variable of this name may still be meant
    del cls
    gc.collect()
    assert loud() is None


def test_its_own_name_is_this_class_also_when_the_name_had_another_meaning() -> None:
    space: dict[str, Any] = {"__name__": "redefined", "Node": int}
    source = """
from __future__ import annotations
from parallax import Module, Parameter
class Node(Module):
    below: Node | None = None
"""
    exec(source, space)
    node = space["Node"]
    assert type(node(node()).below) is node


def test_an_inherited_field_is_resolved_where_it_was_written() -> None:
    namespace: dict[str, Any] = {"__name__": "elsewhere"}
    exec(
        "from __future__ import annotations\n"
        "from parallax import Module, Parameter as Weight\n"
        "class Base(Module):\n"
        "    weight: Weight\n",
        namespace,
    )
    base: Any = namespace["Base"]

    class Child(base):  # type: ignore[misc]  # a class from exec
        bias: Parameter

    assert list(tree.named_leaves(Child(leaf(), leaf()))) == ["weight", "bias"]


# -- annotations that are errors ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "error", "parts"),
    [
        ("Tensor", TypeError, ["torch.Tensor", "x: Parameter", "x: Buffer"]),
        ("torch.Tensor | None", TypeError, ["torch.Tensor", "x: Parameter", "x: Buffer"]),
        ("tuple[Tensor, ...]", TypeError, ["torch.Tensor", "x: Parameter"]),
        (
            "nn.Parameter",
            TypeError,
            ["torch.nn.parameter.Parameter", "x: Parameter", "from parallax"],
        ),
        ("nn.Buffer", TypeError, ["torch.nn.parameter.Buffer", "x: Buffer", "from parallax"]),
        ("nn.Module", TypeError, ["torch.nn", "x: Module"]),
        ("nn.Linear | None", TypeError, ["torch.nn.modules.linear.Linear", "x: Module"]),
        ("dict[str, nn.Linear]", TypeError, ["Linear", "x: Module"]),
        ("Parameter | float", TypeError, ["mixes a leaf with a constant", "Parameter | None"]),
        ("Parameter | Buffer", TypeError, ["either a Parameter or a Buffer", "two fields"]),
        ("tuple[Dense, ...] | tuple[Dense, int]", TypeError, ["two containers", "two fields"]),
        ("set[Dense]", TypeError, ["set[", "tuple[..., ...]", "dict[str, ...]"]),
        ("frozenset[Module]", TypeError, ["frozenset[", "tuple[..., ...]"]),
        ("collections.deque[Parameter]", TypeError, ["deque[", "tuple[..., ...]"]),
        ("tuple[*tuple[Dense, ...]]", TypeError, ["unpacked", "two fields"]),
        ("tuple[int, typing_extensions.Unpack[tuple[Dense, ...]]]", TypeError, ["unpacked"]),
        ("dataclasses.InitVar[int]", TypeError, ["InitVar", "__init__"]),
        ("int |", TypeError, ["'int |'", "no type"]),
        ("int | 'str'", TypeError, ["no type"]),
        ("Missing", NameError, ["'Missing'", "not defined"]),
        ("tuple[Missing, ...]", NameError, ["'tuple[Missing, ...]'", "'Missing'"]),
        ("parallax.Missing | None", NameError, ["'parallax.Missing | None'", "Missing"]),
        ("KT", NameError, ["'KT'"]),  # a name of typing's own that nobody imported
    ],
)
def test_a_bad_annotation_names_class_field_and_remedy(
    annotation: str, error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        declare(annotation)(None)
    message = str(caught.value)
    assert "Made.x" in message
    for part in parts:
        assert part in message


def test_a_name_can_be_supplied_after_it_was_missed() -> None:
    space: dict[str, Any] = {"__name__": "supplied"}
    exec(
        "from __future__ import annotations\n"
        "from parallax import Module\n"
        "class Uses(Module):\n"
        "    child: Supplied\n",
        space,
    )
    with pytest.raises(NameError, match=r"Uses\.child.*'Supplied'"):
        space["Uses"](Dense())
    space["Supplied"] = Dense
    assert len(tree.leaves(space["Uses"](Dense()))) == 2


def test_a_class_that_is_registered_too_late_is_found_out() -> None:
    class Later:
        pass

    class Holds(Module):
        later: Later

    registry.register(Later, lambda _: ((), None), lambda *_: Later())
    with pytest.raises(TypeError, match=r"Holds\.later.*registered node.*before"):
        Holds(Later())


def test_values_never_change_a_kind() -> None:
    class Fixed(Module):
        leaf: Parameter | None
        constant: int | None

    assert tree.structure(Fixed(None, None)) != tree.structure(Fixed(None, 1))
    with pytest.raises(TypeError, match=re.escape("Fixed.leaf is a Parameter and was given int")):
        Fixed(1, None)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TypeError, match=r"Fixed\.constant is declared as a constant"):
        Fixed(None, torch.ones(1))  # type: ignore[arg-type]  # likewise


def test_names_used_in_text_alone() -> None:
    """What the annotations above name; listed so that nothing seems unused."""
    names = [collections, dataclasses, typing, typing_extensions, parallax, Tensor, nn, Self,
             Annotated, ClassVar, Final, Generic, Union, Mapping, Sequence, Callable,
             Buffer]  # fmt: skip
    assert all(names)
