"""What code reads besides its arguments may change between two calls: a call sees what eager sees.

One program reads a number in every way there is; each is changed in turn, and the compiled function
must give what a fresh eager run gives.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, Parameter
from tests.compiling import make_compiled

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

parallax_scale, SUPPORTED_NODES, _LEAF_SPEC = 2.0, 2.0, 2.0
TABLE = {"deep": [{"number": 2.0}]}


class Config:
    on_class = 2.0
    table = {"number": 2.0}

    def __init__(self) -> None:
        self.number = 2.0
        self.inner = SimpleNamespace(number=2.0)
        self.items = [2.0, {"number": 2.0}]

    def method(self, x: Tensor, by: float = 2.0, *, also: float = 2.0) -> Tensor:
        return x * by * also * self.number

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.number * self.on_class

    @property
    def doubled(self) -> float:
        return 2 * self.number


class Slotted:
    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 2.0


@dataclasses.dataclass(eq=False)
class Settings:
    number: float = 2.0
    nested: Any = dataclasses.field(default_factory=Config)


@dataclasses.dataclass(frozen=True)
class Frozen:
    config: Config
    number: float = 2.0


class Level(enum.Enum):
    LOW = "low"


class Plain:
    mixed = 2.0
    mixed_list = [2.0]

    def from_plain(self, x: Tensor, by: float = 2.0, *, also: float = 2.0) -> Tensor:
        return x * by * also

    @property
    def plain_property(self) -> float:
        return self.mixed


class World:
    """A module, what may be changed, and how."""

    def __init__(self) -> None:
        number = 2.0
        held = [2.0]
        config = Config()

        def activation(x: Tensor, by: float = 2.0, *, also: float = 2.0) -> Tensor:
            y: Tensor = x * by * also * number * held[0] * config.number
            return y * activation.attribute  # type: ignore[attr-defined, no-any-return]  # set below

        def decorated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            @functools.wraps(function)
            def wrapper(*args: Any) -> Tensor:
                return function(*args) * number * held[0]

            return wrapper

        class Local:
            number = 2.0

        class Net(Plain, Module):
            weight: Parameter
            config: Any
            settings: Any
            frozen: Any
            slotted: Any
            partial: Any
            method: Any
            level: Any
            activation: Callable[..., Tensor]

            on_class = 2.0
            on_class_list = [2.0]
            on_class_dict = {"number": 2.0}

            @decorated
            def forward(self, x: Tensor) -> Tensor:
                y = self.activation(self.weight * x) * self.config.number
                y = y * self.config.items[0] * self.config.items[1]["number"]
                y = y * self.config.inner.number * self.config.doubled * self.config.table["number"]
                y = y * self.settings.number * self.settings.nested.number * self.slotted.number
                y = y * self.frozen.config.number * self.frozen.number
                y = self.config(self.method(self.partial(y)))
                y = y * self.mixed * self.mixed_list[0] * self.plain_property
                y = y * self.on_class * self.on_class_list[0] * self.on_class_dict["number"]
                y = y * self.level.value.count("l") * Local.number
                return self.own(self.from_plain(y)) * self.own_property

            def own(self, x: Tensor, by: float = 2.0, *, also: float = 2.0) -> Tensor:
                return x * by * also * number * held[0]

            @property
            def own_property(self) -> float:
                return number

        activation.attribute = 2.0  # type: ignore[attr-defined]  # functions have a dict
        self.config, self.method_config, self.cell_config = Config(), Config(), config
        self.settings, self.frozen = Settings(), Frozen(Config())
        self.held, self.activation, self.local, self.cls = held, activation, Local, Net
        self.slotted = Slotted()
        self.partial = functools.partial(activation, by=2.0)
        self.net = Net(
            torch.ones(1), self.config, self.settings, self.frozen, self.slotted, self.partial,
            self.method_config.method, Level.LOW, activation,
        )  # fmt: skip

        def set_number(new: float) -> None:
            nonlocal number
            number = new

        self.set_number = set_number

    def changes(self, patch: pytest.MonkeyPatch) -> Iterator[str]:
        """Changes one thing after the other, by another factor each."""
        factors = iter([1 + k / 64 for k in range(1, 100)])
        for owner, name in (
            (self.config, "number"), (self.config.inner, "number"), (self.settings, "number"),
            (self.settings.nested, "number"), (self.slotted, "number"), (Config, "on_class"),
            (self.frozen.config, "number"), (self.method_config, "number"), (Plain, "mixed"),
            (self.cell_config, "number"), (self.cls, "on_class"), (self.local, "number"),
            (self.activation, "attribute"), (Level.LOW, "_value_"),
        ):  # fmt: skip
            patch.setattr(owner, name, "lll" if name == "_value_" else next(factors))
            yield f"{owner}.{name}"
        for items in (self.config.items, self.held, Plain.mixed_list, self.cls.on_class_list):
            items[0] = next(factors)
            yield f"an item of {items}"
        Plain.mixed_list[0] = 2.0
        yield "a list of a plain base once more"
        tables: Any = (self.config.items[1], Config.table, self.cls.on_class_dict)
        for table in tables:
            patch.setitem(table, "number", next(factors))
            yield f"a value of {table}"
        patch.setitem(self.partial.keywords, "by", next(factors))
        yield "an argument of a partial"
        self.set_number(next(factors))
        yield "a nonlocal cell"
        own = self.cls.own
        for function in (self.activation, own, Plain.from_plain, Config.method):
            patch.setattr(function, "__defaults__", (next(factors),))
            yield f"defaults of {function}"
            named: Any = function.__kwdefaults__
            patch.setitem(named, "also", next(factors))
            yield f"a keyword default of {function}"
            patch.setattr(function, "__kwdefaults__", {"also": next(factors)})
            yield f"keyword defaults of {function}"
        code = (lambda self, x, by=2.0, *, also=2.0: x * by).__code__
        for function in (Plain.from_plain, Config.method):
            patch.setattr(function, "__code__", code)
            yield f"the code of {function}"
        patch.setattr(Plain, "from_plain", lambda self, x: 3 * x)
        yield "a method of a plain base"
        patch.setattr(Plain, "plain_property", property(lambda self: 5.0))
        yield "a property of a plain base"
        patch.setattr(Config, "method", lambda self, x: 3 * x)
        patch.setattr(Config, "__call__", lambda self, x: 3 * x)
        yield "a method of a plain class"
        patch.setattr(self.cls, "own", lambda self, x: 7 * x)
        yield "a method of the module"


def test_what_a_module_holds_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    world, x = World(), torch.ones(1, dtype=torch.float64)
    model = world.net.update(lambda leaf: leaf.double())
    compiled = make_compiled(lambda net, x: net(x), backend="eager", recompile_limit=99)
    before = compiled(model, x)
    missed = []
    for change in world.changes(monkeypatch):
        expected, got = model(x), compiled(model, x)
        assert expected != before, change
        before = expected
        if not torch.equal(got, expected):
            missed.append(change)
    assert not missed
