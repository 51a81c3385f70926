"""Arguments that are given away to a compiled function: their memory may become the results'.

A result is written into the memory of an argument only where nothing can tell but by its address:
the memory is whole, dense, and used by no other tensor; no other result lies in it; and in the
graph the write comes after all else. Other arguments are copied first, or their memory is left
alone.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import shards
from parallax._errors.arguments import shown
from parallax.compiler.packing import pack, paths_of, spans
from parallax.core.nodes import is_module
from parallax.tree.donated import mark_all
from parallax.tree.memory import Memory, make_private, memory_of

__all__ = ["Donate", "Donation", "donation_of", "may_be_written"]

Donate = int | str | Sequence[int | str]

_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Donation:
    """Which arguments of a function are given away.

    Attributes:
        name: of the function.
        refusal: the error of a call where nothing can be given away.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        names: Sequence[str],
        places: Sequence[int],
        labels: list[str],
    ) -> None:
        self.name: str = getattr(fn, "__name__", type(fn).__name__)
        self.refusal = (
            f"{self.name} was compiled with donate, and is called in a torch.func transform, in "
            f"another compiled function or under a dispatch mode, where memory cannot be given "
            f"away. Compile it for such calls without donate: parallax.compile({self.name})"
        )
        self._fn = fn
        self._names, self._places = frozenset(names), frozenset(places)
        self._labels = labels
        self._memory: Memory | None = None  # of the last call; asked before it is used

    def _given(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """The arguments of a call that are given away, by name."""
        for place, value in enumerate(args):
            if place in self._places:
                known = place < len(self._labels)
                yield (self._labels[place] if known else f"args.{place}"), value
        yield from [(name, value) for name, value in kwargs.items() if name in self._names]

    def parts(self) -> tuple[list[str], list[int], list[str]]:
        """What another process needs for the same, beside the function."""
        return sorted(self._names), sorted(self._places), list(self._labels)

    def positions(self, tokens: Sequence[Any]) -> set[int]:
        """The positions of the items of these arguments."""
        parts = spans(tokens)
        count = tokens[0]
        named = dict(zip(tokens[1], parts[count:], strict=True))
        chosen = [part for place, part in enumerate(parts[:count]) if place in self._places]
        chosen += [part for name, part in named.items() if name in self._names]
        return {position for part in chosen for position in part}

    def secured(
        self, tokens: Any, items: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Any]:
        """The items of a call, with copies of what is given away and is used elsewhere, too.

        Raises:
            ValueError: if a tree is given away twice, or a tensor is kept as well or requires grad.
        """
        self._refuse_twice(args, kwargs)
        given = self.positions(tokens)
        self._refuse_kept(tokens, items, given)
        held = _tensors_of(self._fn)
        return self._own(items, [k for k in sorted(given) if may_be_written(items[k])], held)

    def own(self, items: Sequence[Any], written: Sequence[int], rest: Sequence[int]) -> list[Any]:
        """The same for a graph that is there, and writes at some positions only."""
        memory, tensors = self._memory, [items[k] for k in written]
        read = [items[k] for k in rest]
        if memory is not None and memory.is_of(tensors) and memory.is_apart_from(read):
            return items  # type: ignore[return-value]  # only read
        return self._own(items, written, read)

    def _own(self, items: Sequence[Any], written: Sequence[int], read: Sequence[Any]) -> list[Any]:
        column: list[Any] = [items[k] for k in written]
        make_private(range(len(column)), [column], read)
        self._memory = memory_of(range(len(column)), [column])
        found = list(items)
        for k, tensor in zip(written, column, strict=True):
            found[k] = tensor
        return found

    def _refuse_twice(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first: dict[int, str] = {}
        for name, value in self._given(args, kwargs):
            if not (isinstance(value, Tensor) or is_module(value)):
                continue
            if first.setdefault(id(value), name) != name:
                raise ValueError(
                    f"{self.name}: {first[id(value)]} and {name} are one tree, which is donated "
                    f"twice. Give one of them a copy: {name}=tree.map(torch.clone, {name})"
                )

    def _refuse_kept(self, tokens: Any, items: Sequence[Any], given: set[int]) -> None:
        kept = {id(t): k for k, t in enumerate(items) if k not in given and isinstance(t, Tensor)}
        graph = torch.is_grad_enabled()
        for k, item in enumerate(items):
            if not isinstance(item, Tensor):
                continue
            if k in given and id(item) in kept and may_be_written(item):
                paths = paths_of(tokens, self._labels)[0]
                raise ValueError(
                    f"{self.name}: {paths[k]} is donated, and {paths[kept[id(item)]]}, which is "
                    f"kept, is the same tensor. Give a copy: tree.map(torch.clone, ...)"
                )
            if item.requires_grad and graph:
                path = paths_of(tokens, self._labels)[0][k]
                raise ValueError(
                    f"{self.name}: {path} requires grad, so what is computed from it may need the "
                    f"donated memory again, for its gradient. Take the gradient within the "
                    f"function, of a model that was not reset: model.train(key), or detach it"
                )

    def finish(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Makes the arguments of a call unusable, after it."""
        for _, value in self._given(args, kwargs):
            mark_all(value, self.name)


def may_be_written(item: Any) -> bool:
    """Whether an item that is given away is of a kind that a result may take the place of.

    Not what counts or draws, for a key is known by its tensor; nor a single number.
    """
    if shards.is_distributed(item):
        return may_be_written(shards.local_of(item))
    inexact = type(item) is Tensor and (item.is_floating_point() or item.is_complex())
    return inexact and item.numel() > 1


def _tensors_of(fn: Any) -> list[Tensor]:
    """The tensors that a function reads from its closure and from globals, or their containers."""
    code = getattr(fn, "__code__", None)
    if code is None:
        return []
    space = fn.__globals__
    values = [space[name] for name in code.co_names if name in space]
    for cell in fn.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    items: list[Any] = []
    for value in values:
        pack(value, items, [])
    return [item for item in items if isinstance(item, Tensor)]


# -- which arguments ------------------------------------------------------------------------------


def donation_of(fn: Callable[..., Any], donate: Any, held: int = 0) -> Donation | None:
    """The arguments of a function that are given away, by name or place.

    Args:
        fn: the function.
        donate: what ``compile`` was given.
        held: how many arguments come before those of the user: one for ``self``.

    Raises:
        TypeError: if ``donate`` holds anything but names and places.
        ValueError: if there is no such argument, or one is named twice.
    """
    named = isinstance(donate, (int, str)) and not isinstance(donate, bool)
    entries = (donate,) if named else donate
    if not isinstance(entries, (tuple, list)) or any(
        [isinstance(one, bool) or not isinstance(one, (int, str)) for one in entries]
    ):
        raise TypeError(
            f"compile: donate takes names or places of arguments, got {shown(donate)}. "
            f"Write donate=('model', 'state')"
        )
    if not entries:
        return None
    parameters = _parameters(fn)
    names: list[str] = []
    places: list[int] = []
    for entry in entries:
        name, place = _found(fn, entry, parameters[held:])
        if (name is not None and name in names) or (place is not None and place + held in places):
            raise ValueError(f"compile: donate={shown(donate)} names an argument twice")
        names += [] if name is None else [name]
        places += [] if place is None else [place + held]
    return Donation(fn, names, places, [p.name for p in parameters if p.kind in _PLACED])


def _parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # a builtin, whose arguments have places only
        return [inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)]


def _found(
    fn: Any, entry: int | str, parameters: Sequence[inspect.Parameter]
) -> tuple[str | None, int | None]:
    """The name and the place of an argument, as far as it has them."""
    kinds = inspect.Parameter
    placed = [
        p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    others = {p.kind for p in parameters}
    if isinstance(entry, int):
        if 0 <= entry < len(placed):
            named = placed[entry].kind is kinds.POSITIONAL_OR_KEYWORD
            return (placed[entry].name if named else None), entry
        if entry >= 0 and kinds.VAR_POSITIONAL in others:
            return None, entry
    else:
        for place, parameter in enumerate(placed):
            if parameter.name == entry:
                return entry, place
        if kinds.VAR_KEYWORD in others or any(
            [p.name == entry and p.kind is kinds.KEYWORD_ONLY for p in parameters]
        ):
            return entry, None
    names = [p.name for p in parameters]
    close = difflib.get_close_matches(str(entry), names, 1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"compile: donate={entry!r} is no argument of {getattr(fn, '__name__', fn)}"
        f"({', '.join(names)}).{meant} Write a name, or a place from 0 on"
    )
