"""What watches calls of selected modules: it records them, or changes what they return.

A watch is one run of ``capture``, ``intervene`` or ``perturb``. It stands in the collection that
the tree carries, so it goes where effects go. For a transform, whose tensors are wrappers, it has a
stand-in (``within``), which hands on what it recorded when the transform returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor

from parallax._compat import autograd, checkpoints, dynamo, functorch

if TYPE_CHECKING:
    from parallax.effects.collection import Collection

__all__ = ["Call", "Change", "Record", "Watch"]

ChangeOf = Callable[[str, "int | None", Any], Any]


class Call(NamedTuple):
    """One call of a module, as ``effects.capture(..., inputs=True)`` returns it.

    Attributes:
        args: the positional arguments.
        kwargs: the keyword arguments.
        output: what it returned.

    Example:
        >>> import torch
        >>> from parallax import effects, nn
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).initialize(0)
        >>> run = effects.capture(nn.Sequential.forward, nn.ReLU, inputs=True)
        >>> call = run(net, torch.ones(1, 2))[1]["layers.1"]
        >>> bool((call.output == call.args[0].relu()).all())
        True
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class Watch:
    """One run of something that watches.

    Attributes:
        paths: where the modules stand that it is about.
        calls: by path, for each call what is recorded of it, ``None`` for nothing.
        outer: the watch that this one stands in for within a transform; ``None`` outside.
        changes: whether it changes what they return; else it records that.
        enters: whether it is told when a call begins, too.
        surrounds: whether it makes the call.
    """

    changes: ClassVar[bool] = False
    enters: ClassVar[bool] = False
    surrounds: ClassVar[bool] = False

    def __init__(self, paths: Iterable[str], outer: Any = None) -> None:
        self.paths = dict.fromkeys(paths)
        self.outer = outer
        self.calls: dict[str, list[Any]] = {}

    def within(self) -> Watch:
        """What stands in for this watch within a transform: itself, if it keeps no tensors."""
        return self

    def called(self, path: str) -> None:
        """The module at a path is called."""

    def around(
        self, path: str, call: Callable[..., Any], collection: Collection
    ) -> Callable[..., Any]:
        """What makes the call in place of ``call``."""
        return call

    def changed(self, path: str, out: Any, collection: Collection) -> Any:
        """What the call returns in place of ``out``."""
        return out

    def returned(
        self,
        path: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        collection: Collection,
    ) -> None:
        """The call has returned."""

    def note(self, path: str, record: Any, collection: Collection, traced: bool) -> bool:
        """Adds a call; not if a checkpoint makes it again in backward, and then it is false."""
        if collection.over:
            return False
        calls = self.calls.get(path)
        if traced:
            checkpoints.open_checkpoint()
            self.calls.setdefault(path, []).append(record)
            checkpoints.close_checkpoint()
        elif calls is None:  # said for the first time
            self.calls[path] = [record]
        elif autograd.in_backward() and collection.recomputes(True):
            return False
        else:
            calls.append(record)
        return True

    def tensors(self) -> list[Tensor]:
        """The tensors of all that is recorded, to be returned from a transform."""
        return [t for records in self.calls.values() for one in records for t in _tensors(one)]

    def hand_on(self, tensors: Iterator[Tensor]) -> None:
        """Has the watch outside record what this one did, around the tensors that came out."""
        for path, records in self.calls.items():
            self.outer.calls.setdefault(path, []).extend(
                [_rebuilt(one, tensors) for one in records]
            )


class Record(Watch):
    """Keeps what modules return.

    Attributes:
        inputs: whether the arguments are kept, too, in a ``Call``.
    """

    def __init__(self, paths: Iterable[str], inputs: bool, outer: Any = None) -> None:
        super().__init__(paths, outer)
        self.inputs = inputs

    def within(self) -> Watch:
        """What stands in for this watch within a transform."""
        return Record(self.paths, self.inputs, self)

    def returned(
        self,
        path: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        collection: Collection,
    ) -> None:
        """The call has returned: it is recorded."""
        record = Call(args, dict(kwargs), out) if self.inputs else out
        traced = dynamo.is_compiling()
        if not traced and functorch.transform_active():
            _refuse_wrappers(path, record, collection)
        self.note(path, record, collection, traced)


class Change(Watch):
    """Has modules return something else.

    Attributes:
        change: takes the path, how many calls of it there were before, and what this one returned.
            The count is ``None`` in the second run of a checkpoint, where it is not known.
    """

    changes = True

    def __init__(self, paths: Iterable[str], change: ChangeOf, outer: Any = None) -> None:
        super().__init__(paths, outer)
        self.change = change

    def within(self) -> Watch:
        """What stands in for this watch within a transform."""
        return Change(self.paths, self.change, self)

    def changed(self, path: str, out: Any, collection: Collection) -> Any:
        """What the call returns in place of ``out``."""
        noted = self.note(path, None, collection, dynamo.is_compiling())
        if not noted or collection.again:
            return self.change(path, None, out)
        count = -1
        watch: Any = self
        while watch is not None:
            count += len(watch.calls.get(path, ()))
            watch = watch.outer
        return self.change(path, count, out)


def _refuse_wrappers(path: str, record: Any, collection: Collection) -> None:
    from parallax.effects.collection import EffectError

    if collection.is_apart():
        raise EffectError(
            f"effects.capture: func.checkpoint within a transform has no graph for what "
            f"{path or 'the module'} returns, as the function captures the module. Pass it as an "
            f"argument: func.checkpoint(fn)(module, x)"
        )
    if any([functorch.level_of(value) > collection.level for value in _tensors(record)]):
        raise EffectError(
            f"effects.capture: a transform of torch.func would let its wrapper escape from "
            f"{path or 'the module'}. Use the transform of the same name in parallax.func, with "
            f"the module as an argument: it hands on what is captured. Or capture inside: "
            f"torch.vmap(effects.capture(fn, ...))"
        )


def _tensors(record: Any) -> list[Tensor]:
    if isinstance(record, Tensor):
        return [record]
    from parallax.tree import core  # which stands on modules, and they on this

    return [leaf for leaf in core.opened(record)[0] if isinstance(leaf, Tensor)]


def _rebuilt(record: Any, tensors: Iterator[Tensor]) -> Any:
    """A record around other tensors."""
    if isinstance(record, Tensor):
        return next(tensors)
    from parallax.tree import core

    leaves, spec = core.opened(record)
    return spec.build([next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in leaves])
