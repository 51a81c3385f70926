"""One compiled graph: a flat function, and the check that replaces dynamo's guards on leaves."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Callable, Sequence
from types import CellType, CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from parallax._compat.artifacts import Keeper, NotRunError
from parallax._compat.checkpoints import allow_hooks_again
from parallax._compat.dynamo import (
    hides_own_error,
    is_compiling,
    tensor_check,
    trace_reporter,
)
from parallax._compat.in_trace import allow_donation
from parallax._compat.inductor import have_vectors_tested, is_cpp_failure
from parallax._compat.memory import storage_of
from parallax._compat.modes import leave_transforms
from parallax._compat.rerun import changing_nothing
from parallax.compiler.class_guard import ClassGuard
from parallax.compiler.donation import Donation
from parallax.compiler.dynamo import compile_flat, settings_for, without_risks
from parallax.compiler.given import Given, overwrite
from parallax.compiler.guards import Guards
from parallax.compiler.leaves import Leaves
from parallax.compiler.opening import write_opener
from parallax.compiler.outside import Outside
from parallax.compiler.packing import build_call, spell
from parallax.compiler.results import Loaded, Result, recorder
from parallax.compiler.writes import containers, has_containers, note, put_back, spell_written
from parallax.random import reuse

__all__ = ["Graph"]

Sizes = list[int | None]

_count = itertools.count()

# What the flat function below reads: every graph has a namespace of its own for them.
parallax_comptime: Any = None
parallax_build: Any = None
parallax_places: Any = None
parallax_record: Any = None
parallax_spell: Any = None
parallax_tokens: Any = None
parallax_report: Any = None
parallax_note: Any = None
parallax_written: Any = None
parallax_pairing: Any = None
parallax_distributed: Any = None
parallax_allow_donation: Any = None
parallax_copy: Any = None
parallax_traced: Any = None


class Graph:
    """The compiled form of a function for one structure of arguments and one kind of leaves.

    The check is torch's own in C++, over all leaves in one call: type, dispatch keys (device,
    conjugation, negation, inference, autocast), dtype, requires_grad under the present grad mode,
    sizes, strides, and that no tensor comes twice. Dynamo keeps its guards on everything else.

    Attributes:
        tokens: the structure of the arguments.
        leaves: which items are leaves.
        sizes: per leaf its sizes; ``None`` where dynamo made a size symbolic and guards it.
        classes: the classes of the modules among the arguments.
        code: what dynamo compiles; ``space`` are its globals.
        open: takes the items from the arguments of a call, or gives ``None`` in doubt.
    """

    def __init__(
        self,
        fn: Callable[..., Any] | None,
        tokens: tuple[Any, ...],
        items: Sequence[Any],
        settings: dict[str, Any],
        *,
        donation: Donation | None = None,
        like: Graph | None = None,
        every_size: bool = False,
        keeper: Keeper | None = None,
        loaded: Loaded | None = None,
    ) -> None:
        self.tokens = tokens
        self._fn = fn
        self.leaves = Leaves(items)
        self.classes = ClassGuard(tokens)
        self.open = write_opener(tokens, items)
        own = range(len(items)) if self.leaves.own is None else self.leaves.own
        self.given = (
            None if donation is None else Given(donation, tokens, items, own, self.leaves.others)
        )
        self.results: list[Result] = []
        leaves = self.leaves.pick(items)
        self.sizes = [[None if every_size else n for n in leaf.shape] for leaf in leaves]
        if like is not None:
            self.sizes = [_differing(*pair) for pair in zip(like.sizes, self.sizes, strict=True)]
        self.loose = frozenset(k for k, sizes in enumerate(self.sizes) if None in sizes)
        anything = [[None] * leaf.ndim for leaf in leaves]
        strides = [
            anything[k] if k in self.loose else list(leaf.stride()) for k, leaf in enumerate(leaves)
        ]
        self._tensors = tensor_check(leaves, self.sizes, strides)
        self._kinds = tensor_check(leaves, anything, anything)
        self.check: Callable[..., bool] = self._tensors.check
        self._outside = Outside({})
        self._writes = False
        self._sharing: dict[int, Any] = {}  # by the number of globals that were known then
        if loaded is not None:
            self._take(loaded)
            return
        assert fn is not None
        # Dynamo makes a size symbolic when it sees another one under the same name.
        self.name: str = like.name if like is not None else f"{_name(fn)}_{next(_count)}"
        chosen = settings_for(settings, items, tokens)
        self._spare = without_risks(chosen, settings)
        self._keeper = keeper
        self._run = self._compile(fn, chosen)

    @property
    def compiled(self) -> bool:
        """Whether it was traced and compiled; it may not have run yet."""
        return self._outside.traced

    @property
    def writes(self) -> bool:
        """Whether it writes into tensors that it is given, and does not own."""
        return self._writes

    def fits(self, items: Sequence[Any]) -> bool:
        """Whether this graph is right for ``items`` of its structure."""
        leaves = self.leaves.pick(items)
        if not self.check(*leaves) or (self.leaves.own is not None and not self.leaves.fits(items)):
            return False
        if self._outside.same and not self._outside.unchanged(leaves):
            return False
        # Where memory overlaps matters to a graph that writes into it.
        return not self._writes or self._sharing[len(self._outside.tensors)] == self._shared(leaves)

    def why_not(self, items: Sequence[Any], paths: list[str]) -> str:
        """What keeps ``items`` of this structure from using this graph, with the item's path."""
        now = Leaves(items)
        if now.own != self.leaves.own or now.same != self.leaves.same:
            return "other arguments are one and the same tensor, or are no plain tensors"
        if self.check(*self.leaves.pick(items)):
            if not self._outside.unchanged(self.leaves.pick(items)):
                return "an argument was a global that the function reads, and is another tensor now"
            return "other arguments overlap in memory, and the function writes into them"
        leaves, names = self.leaves.pick(items), self.leaves.pick(paths)
        return str(self._tensors.check_verbose(*leaves, tensor_check_names=list(names)))

    def resized(self, items: Sequence[Any]) -> set[int] | None:
        """The positions of the leaves with other sizes, if nothing but sizes differs."""
        leaves = self.leaves.pick(items)
        if not (self._kinds.check(*leaves) and self.leaves.fits(items)):
            return None
        positions = range(len(items)) if self.leaves.own is None else self.leaves.own
        return {
            position
            for position, leaf, sizes in zip(positions, leaves, self.sizes, strict=True)
            if _differing(sizes, list(leaf.shape)) != sizes
        }

    def __call__(self, items: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The function of the arguments, and of the ``items`` that were taken from them."""
        others = self.leaves.others
        leaves = tuple(self.leaves.pick(items))
        records = torch.is_grad_enabled()
        try:
            number, results = self._run(leaves, tuple([items[k] for k in others]) if others else ())
        except RuntimeError as error:
            _tidy(records)
            if self._spared(error):
                return self(items, args, kwargs)
            if not self._gone(args, kwargs) and not self._writes:
                self._tell(items, error)
            raise
        except BaseException:  # an interrupt, say
            _tidy(records)
            self._gone(args, kwargs)
            raise
        if self._writes:
            self._sharing.setdefault(len(self._outside.tensors), self._shared(leaves))
        known = self.results[number]
        if self.given is not None:
            results = self.given.apart(items, results)
            self.given.finish(args, kwargs)
        if known.names_argument:
            result = known.build(results, containers((*args, *kwargs.values()), []))
        else:
            result = known.build(results)
        if not known.written.indices:
            return result
        result, *contents = result
        put_back(known.written, contents, args, kwargs)
        return result

    def _take(self, loaded: Loaded) -> None:
        """Has what was compiled in another process run here."""
        self._run, self._spare, self._keeper = loaded.run, None, None
        self.results += [Result.of(*known) for known in loaded.results]
        self._outside.traced = True
        if self.given is not None:
            self.given.restore(loaded.written)

    def trace(self, items: Sequence[Any]) -> None:
        """Compiles the graph of these items without running it; needs a keeper."""
        records = torch.is_grad_enabled()
        try:
            self._run(tuple(self.leaves.pick(items)), tuple([items[k] for k in self.leaves.others]))
        except NotRunError:
            return
        except RuntimeError as error:
            _tidy(records)
            if not self._spared(error):
                if hides_own_error(error):
                    self._tell(items, error)
                raise
            self.trace(items)
        except BaseException:  # an interrupt, say
            _tidy(records)
            raise

    def _spared(self, error: RuntimeError) -> bool:
        """Whether an error came from C++; what is around the kernels is Python from now on."""
        if self._spare is None or not is_cpp_failure(error):
            return False
        assert self._fn is not None
        have_vectors_tested()
        self._run, self._spare = self._compile(self._fn, self._spare), None
        return True

    def _gone(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """After an error: whether memory that was given away may have been written in part."""
        if self.given is None or not self._outside.traced:
            return False
        self.given.finish(args, kwargs)
        return True

    def _tell(self, items: Sequence[Any], error: RuntimeError) -> None:
        """Raises what the function itself raises, where ``error`` says less.

        C++ keeps only the message of an operator's exception, and none of a custom operator's.
        Dynamo ends a trace with an error of its own, which knows no path of a module. The function
        may give memory away, of which nothing has happened yet in a trace, so it gets copies then.
        """
        if self._fn is None:
            return
        hidden = hides_own_error(error)
        if hidden:
            items = [item.clone() if isinstance(item, Tensor) else item for item in items]
        elif type(error) is not RuntimeError:
            return
        tensors = [item for item in items if isinstance(item, Tensor)]
        args, kwargs = build_call(self.tokens, items)
        with reuse(), changing_nothing(tensors, own=tensors if hidden else ()):
            self._fn(*args, **kwargs)

    def _compile(self, fn: Callable[..., Any], settings: dict[str, Any]) -> Callable[..., Any]:
        comptime, report = trace_reporter(self._note)
        namespace = {
            "parallax_comptime": comptime,
            "parallax_report": report,
            "__builtins__": builtins,
            "parallax_build": build_call,
            "parallax_places": self.leaves.places(),
            "parallax_record": recorder(self.results),
            "parallax_spell": spell,
            "parallax_tokens": self.tokens,
            "parallax_note": note if has_containers(self.tokens) else None,
            "parallax_written": spell_written,
            "parallax_pairing": None if self.given is None else self.given.pairing(),
            "parallax_distributed": [] if self.given is None else self.given.distributed,
            "parallax_allow_donation": allow_donation,
            "parallax_copy": overwrite,
            "parallax_traced": is_compiling,
        }
        # Dynamo caches by code object: each graph has its own. The function is in a cell, for
        # dynamo sees that a leaf is also closed over only where both are local.
        code = _flat(fn).__code__.replace(co_name=self.name, co_qualname=self.name)
        flat = FunctionType(code, namespace, self.name, None, (CellType(fn),))
        self._outside = Outside(namespace)
        watch = self.classes.watch
        loose: Callable[[int], bool] = lambda k: self._writes or k in self.loose  # noqa: E731
        guards = Guards(namespace, {"fn": fn}, tuple(namespace), loose, watch)
        self.code, self.space = code, namespace
        return compile_flat(flat, settings, guards, self._outside, self._keeper)

    def _note(self, written: bool, codes: frozenset[CodeType]) -> None:
        self._writes = self._writes or written
        self._outside.names |= {name for code in codes for name in code.co_names}

    def _shared(self, leaves: Sequence[Tensor]) -> Any:
        """Where the memory of the leaves, and of the globals that the function reads, overlaps."""
        return _sharing([*leaves, *self._outside.present()])


def _tidy(records: bool) -> None:
    """Undoes what a graph leaves that failed within a transform, or where nothing is recorded.

    It began outside of any transform, and with this grad mode.
    """
    leave_transforms()
    allow_hooks_again()
    torch.set_grad_enabled(records)


def _differing(one: Sizes, two: Sizes) -> Sizes:
    """The sizes, with ``None`` where they differ."""
    return [a if a == b else None for a, b in zip(one, two, strict=True)]


def _sharing(leaves: Sequence[Tensor]) -> tuple[tuple[int, int], ...] | None:
    """Which leaves share memory, and from where in it; ``None`` if none do."""
    first: dict[int, int] = {}
    found = []
    for leaf in leaves:
        storage = storage_of(leaf)
        found.append((first.setdefault(storage, len(first)), int(leaf.storage_offset())))
    return None if len(first) == len(leaves) else tuple(found)


def _name(fn: Callable[..., Any]) -> str:
    name = getattr(fn, "__name__", type(fn).__name__)
    return name if name.isidentifier() else "compiled"


def _flat(fn: Callable[..., Any]) -> FunctionType:
    """What is compiled: leaves in, leaves out; the globals it reads are given by each graph."""

    def flat(parallax_leaves: Any, parallax_others: Any) -> Any:
        donates = parallax_pairing is not None and parallax_traced()
        if donates:
            parallax_comptime(parallax_allow_donation)
        items = parallax_leaves
        if parallax_places is not None:
            given = parallax_leaves, parallax_others
            items = [given[0][k] if k >= 0 else given[1][-1 - k] for k in parallax_places]
        args, kwargs = parallax_build(parallax_tokens, items)
        noted = [] if parallax_note is None else parallax_note(args, kwargs)
        results: list[Any] = []
        tokens: list[Any] = []
        met = [one for one, _ in noted]

        def spell_one(value: Any) -> None:
            parallax_spell(value, results, tokens, met, donates)

        spell_one(fn(*args, **kwargs))
        indices, same = parallax_written(noted, spell_one)
        parallax_comptime(parallax_report)
        if donates:
            known = [*parallax_leaves, *[parallax_others[k] for k in parallax_distributed]]
            into, made, done = list(known), list(results), list(results)
            parallax_comptime(parallax_pairing)
            if into:  # the last thing of all, so nothing reads what was there
                parallax_copy(into, made)
            results = done
        return parallax_record(tuple(tokens), indices, same), results

    return flat  # type: ignore[return-value]  # a def is one
