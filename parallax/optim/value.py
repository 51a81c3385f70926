"""An optimizer as an immutable value: its hyper-parameters are fields, its tensors are leaves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import FrozenInstanceError, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, ClassVar, NoReturn, Self

import torch
from typing_extensions import dataclass_transform

from parallax._compat import dynamo
from parallax.core import registry
from parallax.optim import groups as grouping
from parallax.optim.arguments import check_fields
from parallax.optim.habits import check_no_parameters
from parallax.optim.hyper import Hyper, sample

__all__ = ["Groups", "Value"]

Groups = Mapping[Any, Mapping[str, Any]] | None


@dataclass_transform(field_specifiers=(field,))
@dataclass(eq=False, repr=False)
class Value:
    """The hyper-parameters of an optimizer, which are the fields of its class.

    Attributes:
        names: the names of the hyper-parameters.
        hyper: their values by name.
        groups: other hyper-parameters for some leaves.
    """

    _torch: ClassVar[type[torch.optim.Optimizer]]
    names: ClassVar[tuple[str, ...]]

    groups: Groups = field(default=None, kw_only=True)
    hyper: Hyper = field(init=False)
    _groups: tuple[grouping.Group, ...] = field(init=False)
    _hypers: tuple[Hyper, ...] = field(init=False)  # the optimizer's own, then those of each group
    _fixed: bool = field(init=False)  # whether all are numbers: no tensor and no schedule
    _leaves: tuple[Any, ...] = field(init=False)
    _recipe: tuple[Any, ...] = field(init=False)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        generated = "__init__" not in vars(cls)
        dataclass(eq=False, repr=False)(cls)
        if generated:
            type.__setattr__(cls, "__init__", _refusing_parameters(cls.__init__))
        cls.names = tuple([f.name for f in fields(cls) if f.init and f.name != "groups"])
        registry.register(cls, _flatten, _unflatten)

    def __post_init__(self) -> None:
        hyper = {name: getattr(self, name) for name in self.names}
        groups = grouping.freeze(self.groups, self.names, type(self).__name__)
        values = grouping.Values()
        recipe = tuple([values.take(value) for value in hyper.values()])
        others = tuple([group.flatten(values) for group in groups])
        _fill(self, hyper, groups, tuple(values.tensors), (type(self), recipe, others))
        if not dynamo.is_compiling():
            self._validate()

    def _validate(self) -> None:
        check_fields(f"optim.{type(self).__name__}", self)
        for group, hyper in zip((None, *self._groups), self._hypers, strict=True):
            if group is not None:
                where = f"optim.{type(self).__name__}: groups[{group.condition!r}]"
                check_fields(where, self, group.over({}))
            plain = {name: sample(name, value) for name, value in hyper.items()}
            try:
                self._check_values(plain)
            except (ValueError, TypeError, RuntimeError) as error:
                where = "" if group is None else f" in groups[{group.condition!r}]"
                raise type(error)(f"optim.{type(self).__name__}{where}: {error}") from None

    def _check_values(self, hyper: Hyper) -> None:
        """Raises for values out of range: torch's own class is constructed, which checks them."""
        self._torch([torch.zeros(1, 1)], **hyper)

    def replace(self, **changes: Any) -> Self:
        """The optimizer with other hyper-parameters.

        Args:
            **changes: new values by name; ``groups`` too.

        Returns:
            A new optimizer; states made by this one fit it.

        Raises:
            TypeError: if there is no such hyper-parameter.

        Example:
            >>> from parallax import optim
            >>> optim.SGD(lr=0.1).replace(lr=0.01).lr
            0.01
        """
        _check_names(type(self), changes)
        return type(self)(**{"groups": self.groups, **self.hyper, **changes})

    def __setattr__(self, name: str, value: Any) -> None:
        if "hyper" not in self.__dict__:  # still in __init__
            object.__setattr__(self, name, value)
            return
        raise FrozenInstanceError(
            f"cannot assign to optim.{type(self).__name__}.{name}: optimizers are immutable. "
            f"Make a new one: opt = opt.replace({name}=...)"
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete optim.{type(self).__name__}.{name}")

    def __repr__(self) -> str:
        parts = [f"{name}={value!r}" for name, value in self.hyper.items()]
        if self.groups:
            parts.append(f"groups={self.groups!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


def _check_names(cls: type[Value], given: Iterable[str]) -> None:
    """Raises a ``TypeError`` for the first name that is none of a hyper-parameter."""
    known = (*cls.names, "groups")
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1) or [cls.names[0]]
            raise TypeError(
                f"optim.{cls.__name__} has no hyper-parameter {name!r}; it has "
                f"{', '.join(cls.names)}. Write {near[0]}=..."
            )


def _refusing_parameters(init: Callable[..., None]) -> Callable[..., None]:
    """A generated ``__init__`` that refuses unknown names, and a model as its first argument."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if not dynamo.is_compiling():
            check_no_parameters(type(self), args, kwargs)
            _check_names(type(self), kwargs)
        init(self, *args, **kwargs)

    return __init__


def _fill(
    opt: Value,
    hyper: Hyper,
    groups: tuple[grouping.Group, ...],
    leaves: tuple[Any, ...],
    recipe: tuple[Any, ...],
) -> None:
    hypers = (hyper, *[group.over(hyper) for group in groups])
    moving = any([callable(value) for h in hypers for value in h.values()])
    for name, value in (
        ("groups", grouping.thaw(groups)),
        ("hyper", hyper),
        ("_groups", groups),
        ("_hypers", hypers),
        ("_fixed", len(leaves) == 0 and not moving),  # dynamo does not trace not of a tuple
        ("_leaves", leaves),
        ("_recipe", recipe),
    ):
        object.__setattr__(opt, name, value)


# -- as a node of trees ---------------------------------------------------------------------------


def _flatten(opt: Value) -> tuple[tuple[Any, ...], Any]:
    # Which values are leaves was decided at construction: vmap unflattens around its own markers.
    return opt._leaves, opt._recipe


def _unflatten(recipe: Any, leaves: Any) -> Value:
    cls, held, others = recipe
    opt: Value = object.__new__(cls)
    values = grouping.Values(leaves)
    hyper: Hyper = {}
    for name, mark in zip(cls.names, held, strict=True):
        hyper[name] = values.give(mark)
        object.__setattr__(opt, name, hyper[name])
    groups = tuple([grouping.Group.unflatten(group, values) for group in others])
    _fill(opt, hyper, groups, tuple(leaves), recipe)
    return opt
