"""``Module``: declare fields, compute in ``forward``, and never change after construction."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar, cast, overload

import torch

from parallax import effects, random
from parallax._errors.arguments import shown
from parallax._errors.habits import hint_at_habits, without_habits
from parallax.core import notes
from parallax.core.error_paths import nodes_below
from parallax.core.frozen import delete_attribute, refuse_item, undeclared
from parallax.core.layout import Layout
from parallax.core.metaclass import ModuleMeta
from parallax.core.nodes import Instance, is_module
from parallax.core.registry import flatten_module, unflatten_module
from parallax.core.sealing import seal_copy
from parallax.core.structure import Structure
from parallax.effects import collection
from parallax.random import initialize, sources
from parallax.random.shares import Spreading
from parallax.tree import modes, recording, tape
from parallax.tree.repr import html_of, repr_of

__all__ = ["Module"]

_P = ParamSpec("_P")
_R_co = TypeVar("_R_co", covariant=True)


class _HasForward(Protocol[_P, _R_co]):
    """Tells type checkers the arguments and the result of a call."""

    def forward(self, *args: _P.args, **kwargs: _P.kwargs) -> _R_co: ...


class Module(Instance, metaclass=ModuleMeta):
    """An immutable tree of parameters, buffers, constants and other modules.

    Declare every field with an annotation; the annotation decides what the field is. Set the
    fields in ``__init__`` (or let one be generated), compute in ``forward``, call the module.
    After construction nothing about it changes: every verb returns a new module.

    Raises:
        TypeError: at construction, if a field is not set or holds what its annotation excludes.
        dataclasses.FrozenInstanceError: on setting or deleting an attribute afterwards.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter
        >>> class Dense(Module):
        ...     weight: Parameter
        ...     bias: Parameter
        ...     def __init__(self, n_in, n_out):
        ...         super().__init__()
        ...         self.weight = Parameter((n_out, n_in), torch.nn.init.xavier_normal_)
        ...         self.bias = Parameter((n_out,), torch.nn.init.zeros_)
        ...     def forward(self, x):
        ...         return self.weight @ x + self.bias
        >>> dense = Dense(3, 2).initialize(0)
        >>> dense(torch.ones(3)).shape
        torch.Size([2])
    """

    __slots__ = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The computation of a call; a class whose modules are called defines its own.

        Raises:
            TypeError: always, here.
        """
        raise TypeError(
            f"{type(self).__name__} defines no forward, so it cannot be called. "
            f"Write: def forward(self, x): ..."
        )

    if TYPE_CHECKING:

        def __call__(self: _HasForward[_P, _R_co], *args: _P.args, **kwargs: _P.kwargs) -> _R_co:
            """The result of ``forward``; at run time both are the same function."""
            ...

    # Type checkers know by dataclass_transform that it is frozen; these would hide typos.
    if not TYPE_CHECKING:
        __delattr__ = delete_attribute
        __setitem__ = __delitem__ = refuse_item

    def replace(self, **fields: Any) -> Self:
        """A copy with other values in some fields; ``__init__`` does not run, the checks do.

        Args:
            **fields: new values by field name.

        Returns:
            The new module, in the same mode and with the same rng.

        Raises:
            AttributeError: if a name is not a field of the class.
            TypeError: if a value is not what the field's annotation allows.

        Example:
            >>> from parallax import Module
            >>> class Dropout(Module):
            ...     rate: float
            >>> Dropout(0.5).replace(rate=0.1).rate
            0.1
        """
        cls: Any = type(self)
        for name, value in fields.items():
            if name not in cls.__layout__.fields:
                raise AttributeError(undeclared(cls, name, value))
        module = seal_copy(self, fields)
        for check in cls.__ready__[2]:
            check(module)
        return cast(Self, module)

    if not TYPE_CHECKING:  # type checkers generate it from the fields, from Python 3.13 on

        def __replace__(self, **fields: Any) -> Self:
            return self.replace(**fields)

    def initialize(
        self,
        rng: random.Rng,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        plan: Spreading | None = None,
    ) -> Self:
        """Gives every declared parameter and buffer its value.

        A value depends on the seed and the leaf's path only: adding a layer does not change the
        others, nor does a plan. The global RNG is left as it was found.

        Args:
            rng: a ``Key``, an int seed, a ``torch.Generator`` or its state as a ByteTensor; only
                read.
            device: where the tensors go; ``"meta"`` allocates nothing.
            dtype: the dtype of floating leaves, in place of each one's own.
            plan: a ``distributed.Plan``: each process of its mesh makes its part of each leaf, and
                all of them call this together. Beside its parts a process holds one leaf at a
                time; of a large one that ``torch.nn.init`` draws uniform or normal, only a piece.

        Returns:
            The module with tensors in place of declarations; leaves that had a value keep it.

        Raises:
            RuntimeError: if nothing is left to initialise.
            TypeError: if ``rng``, ``device``, ``dtype`` or ``plan`` is none, or an initializer
                returns something else than a tensor of the declared shape.
            ValueError: if the processes of a plan's mesh give different plans, modules or seeds.

        Example:
            >>> import torch
            >>> from parallax import Module, Parameter
            >>> class Bias(Module):
            ...     value: Parameter
            >>> Bias(Parameter((2,), torch.nn.init.ones_)).initialize(0).value
            tensor([1., 1.])
        """
        return cast(Self, initialize.initialize(self, rng, device, dtype, plan))

    def reset(self, rng: random.Rng, mode: str = "train") -> Self:
        """Prepares one step on autograd's tape.

        Trainable leaves are fresh tensors that require grad and have no ``.grad``; rng and mode
        are handed to every module below. For ``loss.backward()`` followed by ``grad()``.

        Args:
            rng: as in ``initialize``.
            mode: the value of ``self.mode``, ``"train"`` or ``"eval"``, in all modules but those
                that stay in eval (``tree.select(module, path).eval()``).

        Returns:
            The prepared module.

        Warns:
            UserWarning: if ``rng`` is the very state the tree already has, which repeats all
                its random numbers.

        Example:
            >>> import torch
            >>> from parallax import Module, Parameter
            >>> class Scale(Module):
            ...     by: Parameter
            ...     def forward(self, x):
            ...         return (self.by * x).sum()
            >>> scale = Scale(torch.ones(2)).reset(0)
            >>> scale(torch.tensor([1.0, 2.0])).backward()
            >>> scale.grad().by
            tensor([1., 2.])
        """
        return tape.reset(self, rng, mode)

    def train(self, rng: random.Rng | None = None) -> Self:
        """The module in mode ``"train"``, its leaves untouched; belongs with ``func.grad``.

        Args:
            rng: given to every module in the tree as in ``reset``; by default the rng stays.

        Returns:
            The module in the new mode.
        """
        source = collection.source_of(self._rng) if rng is None else sources.source_of(rng)
        return modes.in_mode(self, "train", source)

    def eval(self) -> Self:
        """The module in mode ``"eval"``, its leaves untouched and without an rng.

        Returns:
            The module in the new mode.

        Example:
            >>> from parallax import nn, random
            >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train(random.key(0))
            >>> net.mode, net.eval().mode
            ('train', 'eval')
            >>> random.bits(net.layers[1].rng, ()).dtype  # each module has a key of its own
            torch.int64
            >>> [type(module).__name__ for module in net.modules()]
            ['Sequential', 'Linear', 'Dropout']
        """
        return modes.in_mode(self, "eval", None)

    def _built(self, structure: Structure, leaves: Iterable[Any], rng: Any = None) -> Self:
        """A module of this one's class."""
        return cast(Self, unflatten_module(structure, leaves, rng))

    def split(self, n: int) -> tuple[Self, ...]:
        """Copies that share every leaf and differ in their random numbers.

        Shared or recurrent use of a module needs one copy per use, as an RNG key does.

        Args:
            n: how many copies, at least one.

        Returns:
            The copies; gradients reach the one set of leaves they share.

        Raises:
            ValueError: if ``n`` is less than one.

        Example:
            >>> from parallax import Module
            >>> class Identity(Module):
            ...     def forward(self, x):
            ...         return x
            >>> first, second = Identity().split(2)
            >>> second(first(1))
            1
        """
        if type(n) is not int or n < 1:
            raise ValueError(
                f"split(n): n must be a positive int, got {shown(n)}. "
                f"Write one, two = module.split(2)"
            )
        leaves, structure = flatten_module(self)
        return tuple(
            [self._built(notes.split_copy(structure, k), leaves, self._rng) for k in range(n)]
        )

    def grad(self) -> Self:
        """The gradients that ``backward`` stored on the leaves, as a module of the same structure.

        Returns:
            A module with ``leaf.grad`` in the place of each leaf, holes (``None``) where a leaf
            has none. It has no graph unless ``backward(create_graph=True)`` made one. The gradient
            of a distributed leaf (``DTensor``) has its placements.

        Raises:
            RuntimeError: if no leaf has a gradient.
        """
        return tape.grad(self)

    # With one tree the arguments of a lambda have a type for checkers that are strict.
    @overload
    def update(self, fn: Callable[[Any, Any], Any], tree: Any, /) -> Self: ...
    @overload
    def update(self, fn: Callable[..., Any], *trees: Any) -> Self: ...
    def update(self, fn: Callable[..., Any], *trees: Any) -> Self:
        """``fn`` of each leaf and the leaves in the same place of ``trees``.

        A graph is recorded only when a later tree carries one: meta-learning stays exact, and
        a loop of ``backward()``, ``grad()`` and ``update`` never grows one. ``func.grad`` of a
        tree that ``reset`` prepared carries one; for a loop of ``func.grad`` use ``train``.

        Args:
            fn: takes a leaf of this module and one of each tree to a new leaf.
            *trees: modules of this one's skeleton; where one has a hole, the leaf stays.

        Returns:
            The module of new leaves.

        Raises:
            ValueError: if a tree has another skeleton; the message names the first path.

        Example:
            >>> import torch
            >>> from parallax import Module, Parameter
            >>> class Point(Module):
            ...     at: Parameter
            >>> p, g = Point(torch.ones(2)), Point(torch.full((2,), 0.5))
            >>> p.update(lambda p, g: p - g, g).at
            tensor([0.5000, 0.5000])
        """
        return recording.update(fn, self, *trees)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, parents first, each object once.

        Returns:
            An iterator over modules.
        """
        return (value for _, value in nodes_below(self) if is_module(value))

    def extra_repr(self) -> str:
        """The text between the parentheses of this module's line in ``repr``.

        Returns:
            The constants by name; override it to show other text.
        """
        layout: Layout = type(self).__layout__
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in layout.constants)

    emit = effects.emit
    sow = effects.sow

    @property
    def mode(self) -> str:
        """``"train"`` or ``"eval"``, as set by the last ``reset``, ``train`` or ``eval``."""
        return notes.note_of(self).mode

    @property
    def rng(self) -> Any:
        """This module's own random state, of the kind that ``reset`` or ``train`` was given.

        Raises:
            RuntimeError: if no rng was handed out.
        """
        source = collection.source_of(self._rng)
        if source is None:
            raise RuntimeError(
                f"{type(self).__name__}.rng: no random state was handed to this tree. "
                f"Hand one out first: module = module.reset(rng) or module.train(rng)"
            )
        note = notes.note_of(self)
        return source.of((note.path or "") + note.copy)

    def __dir__(self) -> list[str]:
        return without_habits(super().__dir__(), [vars(self), *map(vars, type(self).__mro__)])

    def __repr__(self) -> str:
        return repr_of(self)

    def __format__(self, what: str) -> str:
        """The text of ``repr``; with ``f"{module:shapes}"`` also the dtype and shape of each leaf.

        Raises:
            ValueError: if the text after the colon is another.

        Example:
            >>> from parallax import nn
            >>> print(f"{nn.Linear(2, 16).initialize(0):shapes}")
            Linear(
              in_features=2, out_features=16, bias=True
              (weight): f32[16,2]
              (bias): f32[16]
            )
        """
        if what not in ("", "shapes"):
            raise ValueError(
                f"a module is formatted as it is or with shapes, got {what!r}. Write "
                f"f'{{module:shapes}}'"
            )
        return repr_of(self, shapes=True) if what else str(self)

    def _repr_html_(self) -> str:
        return html_of(self)

    def __reduce__(self) -> Any:
        leaves, structure = flatten_module(self)
        return unflatten_module, (structure, leaves, self._rng)

    def __copy__(self) -> Self:
        leaves, structure = flatten_module(self)
        return self._built(structure, leaves, self._rng)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        leaves, structure = flatten_module(self)
        return self._built(structure, [copy.deepcopy(leaf, memo) for leaf in leaves], self._rng)


hint_at_habits(Module)
_restore = unflatten_module  # its name in pickles of 0.1
