"""From a class statement to its fields, its ``__init__`` and its bases.

Annotations are objects here; ``test_kinds`` has them as text.
"""

import abc
import dataclasses
import functools
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any, ClassVar, Generic, Optional, Protocol, TypeVar, runtime_checkable

import pytest
import torch
import typing_extensions
from torch import Tensor
from torch.nn import init

from parallax import Buffer, Module, Parameter, field, tree
from tests.corpus import Dense

T = TypeVar("T")
ModuleT = TypeVar("ModuleT", bound=Module)


def leaf() -> Any:
    return Parameter((2,), init.ones_)


# -- the generated __init__ -----------------------------------------------------------------------


def test_fields_are_arguments_in_order_with_defaults_and_keywords() -> None:
    class Conv(Module):
        weight: Parameter
        stride: int = 1
        _: KW_ONLY
        padding: int
        name: str = field(default="conv", kw_only=True)
        hidden: int = field(default=7, init=False)

    signature = inspect.signature(Conv.__init__)
    kinds = {name: str(p.kind.description) for name, p in signature.parameters.items()}
    assert kinds == {
        "self": "positional or keyword",
        "weight": "positional or keyword",
        "stride": "positional or keyword",
        "padding": "keyword-only",
        "name": "keyword-only",
    }
    assert signature.parameters["stride"].default == 1
    module = Conv(leaf(), 2, padding=3)
    assert (module.stride, module.padding, module.name, module.hidden) == (2, 3, "conv", 7)


def test_a_class_can_be_kw_only_as_a_whole() -> None:
    class Pool(Module, kw_only=True):
        size: int
        stride: int = 1
        first: int = field(kw_only=False)

    assert Pool(9, size=3).first == 9
    with pytest.raises(TypeError, match="positional"):
        Pool(9, 3)  # type: ignore[call-arg]  # wrong on purpose


def test_a_field_without_default_after_one_with_names_both_and_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"Bad\.b has no default but follows a.*kw_only=True"):

        class Bad(Module):
            a: int = 1
            b: int  # type: ignore[misc]  # what is tested


def test_missing_and_surplus_arguments_are_pythons_own_errors() -> None:
    class Two(Module):
        a: int
        b: int

    with pytest.raises(TypeError, match=r"__init__.*missing 1 required positional argument: 'b'"):
        Two(1)  # type: ignore[call-arg]  # wrong on purpose
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'c'"):
        Two(1, 2, c=3)  # type: ignore[call-arg]  # likewise


def test_no_field_needs_no_argument() -> None:
    class Nothing(Module):
        pass

    assert tree.leaves(Nothing()) == []
    assert tree.structure(Nothing()) == tree.structure(Nothing())


def test_field_init_false_without_a_default_is_set_by_post_init() -> None:
    class Area(Module):
        width: int
        height: int
        area: int = field(init=False)

        def __post_init__(self) -> None:
            self.area = self.width * self.height

    assert Area(3, 4).area == 12


def test_a_default_that_is_none_or_false_is_still_a_default() -> None:
    class Maybe(Module):
        weight: Optional[Parameter] = None  # noqa: UP045  # the spelling is what is tested
        flag: bool = False
        size: int = 0

    assert (Maybe().weight, Maybe().flag, Maybe().size) == (None, False, 0)


def test_a_function_default_stays_the_function() -> None:
    class Layer(Module):
        activation: Callable[[Tensor], Tensor] = torch.relu
        norm: Callable[[Tensor], Tensor] = lambda x: x / x.norm()  # a default
        inner: type = dict

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.activation(x))

    out = Layer()(torch.tensor([3.0, -1.0, 4.0]))
    torch.testing.assert_close(out, torch.tensor([0.6, 0.0, 0.8]))


def test_a_mutable_default_for_children_is_frozen_and_shared_by_nobody() -> None:
    class Stack(Module):
        layers: list[Dense] = field(default_factory=lambda: [Dense()])

    one: Any = Stack()
    other: Any = Stack()
    assert type(one.layers) is tuple
    assert one.layers[0] is not other.layers[0]


def test_a_module_default_is_tied_to_nothing() -> None:
    shared = Dense().initialize(0)

    class Uses(Module):
        first: Dense = shared
        second: Dense = field(default=shared)

    module = Uses()
    assert len(tree.leaves(module)) == 4
    assert module.first.weight is not module.second.weight
    assert torch.equal(module.first.weight, shared.weight)


# -- a custom __init__ ----------------------------------------------------------------------------


def test_super_init_may_be_called_with_and_without_fields() -> None:
    class Plain(Module):
        a: int

        def __init__(self) -> None:
            super().__init__()
            self.a = 1

    class Silent(Module):
        a: int

        def __init__(self) -> None:
            self.a = 1

    class Generated(Module):
        a: int

    class Above(Generated):
        b: int

        def __init__(self) -> None:
            super().__init__(5)
            self.b = self.a + 1

    assert Plain().a == Silent().a == 1
    assert (Above().a, Above().b) == (5, 6)


def test_a_custom_init_is_inherited_and_child_fields_extend() -> None:
    class Base(Module):
        weight: Parameter
        size: int

        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size
            self.weight = Parameter((size,), init.ones_)

    class Child(Base):
        rate: float = 0.5
        extra: Optional[Parameter] = None  # noqa: UP045

    class Grandchild(Child):
        def __init__(self, size: int) -> None:
            super().__init__(size + 1)  # type: ignore[arg-type, call-arg]  # what is tested
            self.extra = Parameter((1,), init.zeros_)

    # Checkers see the fields; what is run is the inherited __init__.
    child: Any = Child(3)  # type: ignore[arg-type, call-arg]  # as said
    assert (child.size, child.rate) == (3, 0.5)
    assert list(tree.named_leaves(child)) == ["weight"]
    assert list(tree.named_leaves(Grandchild(3))) == ["weight", "extra"]
    assert Grandchild(3).size == 4


def test_a_child_field_that_the_inherited_init_does_not_know_needs_a_default() -> None:
    class Base(Module):
        a: int

        def __init__(self) -> None:
            self.a = 1

    class Child(Base):
        b: int

    with pytest.raises(
        TypeError, match=r"Child\.b was never set.*self\.b = .*field\(default="
    ) as e:
        Child()  # type: ignore[call-arg]  # checkers see the fields
    assert "Child.__init__" in str(e.value)


def test_generated_inits_extend_base_first_and_an_override_keeps_its_place() -> None:
    class Base(Module):
        a: int
        b: int = 2

    class Child(Base):
        c: int = 3
        a: int = 1

    assert list(inspect.signature(Child).parameters) == ["a", "b", "c"]
    assert (Child().a, Child(9).a) == (1, 9)


def test_a_default_can_be_changed_without_repeating_the_annotation() -> None:
    class Base(Module):
        rate: float = 0.1
        sizes: tuple[int, ...] = field(default=(), converter=tuple)
        activation: Callable[[Tensor], Tensor] = torch.relu
        note: str = field(default="", kw_only=True)

    class Child(Base):
        rate = 0.2
        sizes = field(default_factory=lambda: (1,), converter=tuple)  # pyright: ignore[reportGeneralTypeIssues, reportAssignmentType]  # what is tested
        activation = torch.tanh
        note = "changed"

    assert (Base().rate, Child().rate, Child(0.3).rate) == (0.1, 0.2, 0.3)
    assert (Base().sizes, Child().sizes) == ((), (1,))
    assert (Base().activation, Child().activation) == (torch.relu, torch.tanh)
    assert Child().note == "changed"
    assert list(inspect.signature(Child).parameters) == ["rate", "sizes", "activation", "note"]


def test_a_property_or_method_takes_the_place_of_an_inherited_field() -> None:
    class Base(Module):
        rate: float
        scale: float

        def forward(self, x: Any) -> Any:
            return x * self.rate

    class Fixed(Base):
        @property  # type: ignore[misc]  # what is tested
        def rate(self) -> float:  # type: ignore[override]  # on purpose
            return 2 * self.scale

    assert Fixed(0.5)(3) == 3  # type: ignore[call-arg]  # checkers see the fields
    assert list(inspect.signature(Fixed).parameters) == ["scale"]


def test_a_field_takes_the_place_of_an_inherited_property_or_method() -> None:
    class Base(Module, ABC):
        @property
        @abstractmethod
        def width(self) -> int: ...

        def height(self) -> int:
            return 1

    class Wide(Base):
        width: int  # pyright: ignore[reportIncompatibleMethodOverride]  # what is tested
        height: int  # type: ignore[assignment]  # likewise

    assert (Wide(3, 4).width, Wide(3, 4).height) == (3, 4)
    assert tree.structure(Wide(3, 4)) != tree.structure(Wide(3, 5))

    class Unset(Base):
        width: int  # pyright: ignore[reportIncompatibleMethodOverride]  # what is tested

        def __init__(self) -> None:
            super().__init__()

    with pytest.raises(TypeError, match=r"Unset\.width was never set"):
        Unset()


def test_setters_and_getters_work_while_constructing() -> None:
    class Angle(Module):
        radians: float

        def __init__(self, degrees: float) -> None:
            super().__init__()
            self.degrees = degrees

        @property  # type: ignore[no-redef]  # what is tested
        def degrees(self) -> float:
            return self.radians * 180

        @degrees.setter
        def degrees(self, value: float) -> None:
            self.radians = value / 180

    angle = Angle(90.0)
    assert (angle.radians, angle.degrees) == (0.5, 90.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        angle.degrees = 3.0


def test_class_and_static_methods_and_cached_values_of_the_class() -> None:
    class Table(Module):
        size: int
        count: ClassVar[int] = 3

        @classmethod
        def small(cls) -> "Table":
            return cls(cls.count)

        @staticmethod
        def twice(n: int) -> int:
            return 2 * n

        @functools.cache  # of the class, not of instances
        @staticmethod
        def table() -> str:
            return "made"

    class Bigger(Table):
        count = 4

    assert (Table.small().size, Bigger.small().size, type(Bigger.small())) == (3, 4, Bigger)
    assert Table.small().twice(4) == Table.twice(4) == 8


# -- __post_init__ and __check_init__ -------------------------------------------------------------


def test_check_init_of_every_class_runs_base_first_on_the_finished_module() -> None:
    ran: list[str] = []

    class Mixin:
        def __check_init__(self) -> None:
            ran.append("mixin")

    class Base(Module):
        sizes: list[Dense]

        def __check_init__(self) -> None:
            ran.append("base")
            sizes: Any = self.sizes
            assert type(sizes) is tuple  # frozen by now
            with pytest.raises(dataclasses.FrozenInstanceError):
                self.sizes = []

    class Child(Mixin, Base):
        def __check_init__(self) -> None:
            ran.append("child")

    module = Child([Dense()])
    assert ran == ["base", "mixin", "child"]
    tree.map(torch.relu, module.initialize(0))
    assert len(ran) == 3
    module.replace(sizes=())
    assert ran[3:] == ["base", "mixin", "child"]


def test_a_failing_check_reaches_the_caller_as_it_is() -> None:
    class Positive(Module):
        n: int

        def __check_init__(self) -> None:
            if self.n <= 0:
                raise ValueError("n must be positive")

    assert Positive(1).n == 1
    with pytest.raises(ValueError, match="n must be positive"):
        Positive(0)
    with pytest.raises(ValueError, match="n must be positive"):
        Positive(1).replace(n=-1)


# -- bases ----------------------------------------------------------------------------------------


def test_a_diamond_has_each_field_once_in_mro_order() -> None:
    class Top(Module):
        a: int
        b: int = 2

    class Left(Top):
        c: int = 3

    class Right(Top):
        d: int = 4
        b: int = 5

    class Bottom(Left, Right):
        e: int = 6
        c = 7

    assert list(inspect.signature(Bottom).parameters) == ["a", "b", "d", "c", "e"]
    bottom = Bottom(1)
    assert (bottom.a, bottom.b, bottom.c, bottom.d, bottom.e) == (1, 5, 7, 4, 6)


def test_several_bases_run_cooperative_inits() -> None:
    class Named(Module):
        name: str

        def __init__(self, name: str, **rest: Any) -> None:
            super().__init__(**rest)
            self.name = name

    class Sized(Module):
        size: int

        def __init__(self, size: int, **rest: Any) -> None:
            super().__init__(**rest)
            self.size = size

    class Both(Named, Sized):
        weight: Parameter

        def __init__(self) -> None:
            super().__init__(name="both", size=2)
            self.weight = leaf()

    both = Both()
    assert (both.name, both.size) == ("both", 2)
    assert list(tree.named_leaves(both)) == ["weight"]


def test_an_abstract_class_cannot_be_made_until_its_methods_are_defined() -> None:
    class Layer(Module, abc.ABC):
        @abstractmethod
        def forward(self, x: Any) -> Any: ...

        @property
        @abstractmethod
        def width(self) -> int: ...

    class Half(Layer):
        def forward(self, x: Any) -> Any:
            return x

    class Whole(Half):
        width: int  # pyright: ignore[reportIncompatibleMethodOverride]  # what is tested

    for cls in (Layer, Half):
        with pytest.raises(TypeError, match="abstract"):
            cls()  # type: ignore[abstract]  # wrong on purpose
    assert Whole(3)(4) == 4


def test_generic_modules_can_be_subscripted_and_nested() -> None:
    class Residual(Module, Generic[ModuleT, T]):
        inner: ModuleT
        note: T

        def forward(self, x: Tensor) -> Any:
            return x + self.inner(x)

    class Concrete(Residual[Dense, str]):
        pass

    made = Concrete(Dense(), "n").initialize(0)
    x = torch.ones(4)
    torch.testing.assert_close(made(x), x + made.inner(x))
    assert type(Residual[Dense, str](Dense(), "n")) is Residual
    assert len(tree.leaves(Residual(Residual(Dense(), 1), 2))) == 2


@runtime_checkable
class HasWidth(Protocol):
    width: int

    def forward(self, x: Any) -> Any: ...


class Calls(Protocol):
    def __call__(self, x: Any) -> Any: ...


def test_protocols_may_be_bases_before_and_after_module() -> None:
    class First(HasWidth, Calls, Module):
        width: int

        def forward(self, x: Any) -> Any:
            return x + self.width

    class Last(Module, HasWidth, Calls):
        width: int

        def forward(self, x: Any) -> Any:
            return x + self.width

    class Extended(typing_extensions.Protocol):
        width: int

    class Third(Extended, Module):
        width: int

        def forward(self, x: Any) -> Any:
            return x + self.width

    for cls in (First, Last, Third):
        module = cls(3)  # type: ignore[abstract]  # what is tested
        assert (module.width, module(4)) == (3, 7)
        assert isinstance(module, HasWidth)


def test_plain_mixins_give_methods_class_state_and_hooks() -> None:
    seen: list[type] = []

    class Counts:
        total = 0
        label: str = "not a field"

        def __init_subclass__(cls, tag: str = "", **rest: Any) -> None:
            super().__init_subclass__(**rest)
            seen.append(cls)
            cls.tag = tag

        def describe(self) -> str:
            return f"{type(self).__name__} {self.total} {self.label}"

        tag: str

    class Layer(Counts, Module, tag="x"):
        total: int

    assert seen == [Layer]
    assert Layer.tag == "x"
    assert Layer(3).describe() == "Layer 3 not a field"


def test_a_mixin_with_an_init_of_its_own_is_run_by_super() -> None:
    class Mixin:
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size

    class Layer(Mixin, Module):
        size: int

    assert Layer(4).size == 4


# -- forward and __call__ -------------------------------------------------------------------------


def test_a_call_is_forward_itself() -> None:
    class Add(Module):
        def forward(self, x: int, *rest: int, y: int = 1, **more: int) -> int:
            return x + sum(rest) + y + sum(more.values())

    assert Add.__call__ is Add.forward
    assert Add()(1, 2, 3, y=4, z=5) == 15


def test_reassigning_forward_reaches_the_class_and_its_subclasses() -> None:
    class Base(Module):
        def forward(self, x: int) -> int:
            return x

    class Child(Base):
        pass

    class Own(Base):
        def forward(self, x: int) -> int:
            return 100 * x

    class Mixed(Child, Own):
        pass

    made = Base(), Child(), Own(), Mixed()
    assert [module(1) for module in made] == [1, 1, 100, 100]
    Base.forward = lambda self, x: x + 1  # type: ignore[method-assign]  # what is tested
    assert [module(1) for module in made] == [2, 2, 100, 100]
    Child.forward = lambda self, x: -x  # type: ignore[method-assign]  # likewise
    assert [module(1) for module in made] == [2, -1, 100, -1]
    del Child.forward
    assert [module(1) for module in made] == [2, 2, 100, 100]


def test_a_call_that_a_user_wrote_wins_for_the_class_and_those_below() -> None:
    class Logged(Module):
        def forward(self, x: int) -> int:
            return x

        def __call__(self, x: int) -> Any:
            return "logged", self.forward(x)

    class Child(Logged):
        pass

    class Other(Logged):
        def forward(self, x: int) -> int:
            return 2 * x

    assert [cls()(3) for cls in (Logged, Child, Other)] == [
        ("logged", 3),
        ("logged", 3),
        ("logged", 6),
    ]
    Logged.forward = lambda self, x: 5 * x  # type: ignore[method-assign]  # what is tested
    assert [cls()(3) for cls in (Logged, Child, Other)] == [
        ("logged", 15),
        ("logged", 15),
        ("logged", 6),
    ]
    Other.__call__ = lambda self, x: "own"  # type: ignore[method-assign]  # likewise
    Other.forward = lambda self, x: 7 * x  # type: ignore[method-assign]  # likewise
    assert Other()(3) == "own"
    del Other.__call__
    assert Other()(3) == ("logged", 21)


def test_forward_may_be_a_static_or_class_method_or_a_partial() -> None:
    class Static(Module):
        @staticmethod
        def forward(x: int) -> int:
            return x + 1

    class OfClass(Module):
        @classmethod
        def forward(cls, x: int) -> Any:
            return cls.__name__, x

    assert Static()(1) == 2
    assert OfClass()(1) == ("OfClass", 1)


def test_a_module_without_forward_says_so_when_called() -> None:
    class Nothing(Module):
        pass

    with pytest.raises(TypeError, match=r"Nothing defines no forward.*def forward"):
        Nothing()(1)


def test_a_mixin_can_supply_forward() -> None:
    class Identity:
        def forward(self, x: int) -> int:
            return x

    class Layer(Identity, Module):
        pass

    assert Layer()(3) == 3


# -- many classes ---------------------------------------------------------------------------------


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


def test_a_buffer_and_a_parameter_differ_by_annotation_alone() -> None:
    class Both(Module):
        a: Parameter
        b: Buffer

    both = Both(torch.ones(1), torch.ones(1)).reset(0)
    assert both.a.requires_grad and not both.b.requires_grad


def test_a_class_may_say_that_it_inherits_its_init() -> None:
    class Base(Module):
        size: int

        def __init__(self, half: int) -> None:
            super().__init__()
            self.size = 2 * half

    class Derived(Base, init=False):
        pass

    assert Derived(half=3).size == 6
