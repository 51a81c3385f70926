"""Finds the nodes and leaves that a condition matches: a path, glob, type, function or role."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from torch import Tensor, nn

from parallax._compat import dynamo
from parallax.core.arguments import shown
from parallax.core.fields import Buffer, Parameter
from parallax.core.nodes import is_module
from parallax.tree import core
from parallax.tree.around import Around, containers
from parallax.tree.chart import Chart, Entry
from parallax.tree.places import Survey, follow

__all__ = ["find", "match"]

_ROLES = ("parameter", "buffer", "trainable", "frozen")


def match(survey: Survey, what: Any) -> tuple[list[Entry], bool]:
    """The entries that one condition matches; see ``tree.select``.

    Returns:
        The entries, a tied leaf once, and whether the condition is of a form that names one: an
        exact path, or a lambda that returns one node.

    Raises:
        TypeError: if ``what`` is not a condition.
        LookupError: if a path or glob matches nothing, or a function returns no node.
    """
    if isinstance(what, str):
        return _by_text(survey, what)
    if isinstance(what, type):
        return _by_type(survey, what), False
    if callable(what) and not (is_module(what) or isinstance(what, nn.Module)):
        if _arity(what) == 1:
            return _by_lambda(survey, what)
        pairs = zip(survey.chart.first, survey.leaves, strict=True)
        found = [e for e, leaf in pairs if leaf is not None and what(e.path, leaf)]
        return found, False
    raise TypeError(
        f"cannot select by {shown(what)}. Give a dotted path 'encoder.weight', a glob '**.bias', a "
        f"role such as 'trainable', a class, lambda tree: tree.encoder.weight, or "
        f"lambda path, leaf: leaf.ndim == 2"
    )


def find(survey: Survey, what: Any) -> tuple[list[Entry], bool]:
    """As ``match``, but an error if nothing is found.

    Raises:
        LookupError: if nothing is found.
    """
    found, single = match(survey, what)
    if not found:
        name = getattr(what, "__name__", None) or repr(what)
        entries = survey.chart.entries
        held = sorted({entry.cls.__name__ for entry in entries if entry.is_module})
        raise LookupError(
            f"select: nothing in {_name(survey)} matches {name}; it has {len(survey.leaves)} "
            f"leaves and modules of {', '.join(held) or 'no class'}"
        )
    return found, single


def _name(survey: Survey) -> str:
    return type(survey.tree).__name__


# -- paths, globs, roles --------------------------------------------------------------------------


def _by_text(survey: Survey, text: str) -> tuple[list[Entry], bool]:
    if text in _ROLES:
        return survey.present(survey.chart.remember(_of_role, text)), False
    entry = survey.at(text)
    if entry is not None:
        return [entry], True
    around = containers(survey.tree, survey)
    for container in around:
        if container.path == text:
            return [container], True
    found: list[Entry] = []
    if any([mark in text for mark in "*?["]):
        found = survey.present(survey.chart.remember(_of_glob, text))
        if around and not _only_leaves(text):
            meant = matching(text, tuple([container.path for container in around]))
            found = _in_order([*[around[k] for k in meant], *found])
    if not found:
        _nothing(survey, text)
    return found, False


def _of_role(chart: Chart, role: str) -> list[Entry]:
    if role == "frozen":
        return [entry for entry in chart.first if entry.leaf in chart.frozen]
    if role == "trainable":
        parameters = [entry for entry in chart.first if entry.role == "parameter"]
        return [entry for entry in parameters if entry.leaf not in chart.frozen]
    return [entry for entry in chart.first if entry.role == role]


def _of_glob(chart: Chart, glob: str) -> list[Entry]:
    entries = [e for e in chart.entries if e.cls is None or not _only_leaves(glob)]
    meant = matching(glob, tuple([entry.path for entry in entries]))
    return chart.distinct([entries[k] for k in meant])


def _only_leaves(glob: str) -> bool:
    return glob == "**" or glob.endswith(".**")


def _in_order(entries: list[Entry]) -> list[Entry]:
    """The entries in preorder: a node before what it holds."""
    return sorted(entries, key=lambda e: (e.start, -e.stop, len(e.path)))


@dynamo.constant_in_traces
def matching(glob: str, paths: tuple[str, ...]) -> tuple[int, ...]:
    """Which of some paths a glob matches, segment by segment.

    Args:
        glob: segments in which ``*`` is any text, ``?`` any character, ``[ab]`` one of some and
            ``[!ab]`` any other, or that are ``**``: any number of segments.
        paths: dotted paths.

    Returns:
        The indices of those that match.
    """
    matches = re.compile("".join(map(_segment, glob.split(".")))).fullmatch
    # A dot after each segment, so that any number of them is a repetition.
    return tuple([k for k, path in enumerate(paths) if matches(f"{path}." if path else "")])


def _segment(glob: str) -> str:
    """The regular expression of one segment and the dot after it."""
    if glob == "**":
        return r"(?:[^.]*\.)*"
    return _PIECES.sub(_piece, glob) + r"\."


_PIECES = re.compile(r"\[(!?)([^]]+)\]|.", re.DOTALL)
_WILD = {"*": "[^.]*", "?": "[^.]"}


def _piece(match: re.Match[str]) -> str:
    """The regular expression of one character, or of a set of them: ``[qkv]``."""
    if match[2] is None:
        return _WILD.get(match[0]) or re.escape(match[0])
    return f"[{'^.' if match[1] else ''}{re.escape(match[2])}]"


def _nothing(survey: Survey, text: str) -> NoReturn:
    entries = [*containers(survey.tree, survey), *survey.chart.entries]
    paths = [entry.path for entry in entries if entry.path]
    near = difflib.get_close_matches(text, paths, n=5, cutoff=0.4)
    last = text.rsplit(".", maxsplit=1)[-1]
    near += [p for p in paths if p.split(".")[-1] == last and p not in near][:3]
    listed = ", ".join(near or paths[:5]) or "nothing, the tree is empty"
    word = "Near misses" if near else "It holds"
    raise LookupError(f"select: nothing in {_name(survey)} is at {text!r}. {word}: {listed}")


# -- types and functions --------------------------------------------------------------------------


def _by_type(survey: Survey, cls: type) -> list[Entry]:
    chart = survey.chart
    if cls is Parameter or cls is Buffer:
        return survey.present(chart.remember(_of_role, cls.__name__.lower()))
    if issubclass(cls, Tensor):
        return [
            e for e, leaf in zip(chart.first, survey.leaves, strict=True) if isinstance(leaf, cls)
        ]
    nodes = [entry for entry in chart.entries if entry.cls is not None]
    if hasattr(cls, "__layout__"):
        classes = {entry.cls for entry in nodes}  # few: ask each once
        meant = {c for c in classes if issubclass(c, cls)}
        return chart.distinct([entry for entry in nodes if entry.cls in meant])
    pairs = zip(nodes, survey.values(nodes), strict=True)
    found = [entry for entry, value in pairs if isinstance(value, cls)]
    around = [c for c in containers(survey.tree, survey) if isinstance(c.value, cls)]
    return chart.distinct(_in_order([*around, *found]) if around else found)


def _arity(function: Callable[..., Any]) -> int:
    code = getattr(function, "__code__", None)
    if code is None or inspect.ismethod(function):
        try:
            return len(inspect.signature(function).parameters)
        except ValueError:
            raise TypeError(
                f"cannot tell how many arguments {function!r} takes; wrap it: "
                f"lambda path, leaf: ..."
            ) from None
    return int(code.co_argcount)


class _Marks:
    """Trees of one structure with its entries as leaves, for a user's lambda to walk.

    Holes are entries, too, unless ``leaves`` says which places are holes.
    """

    def __init__(self, chart: Chart, leaves: Sequence[Any] | None = None) -> None:
        self.chart = chart
        self.items: list[Any] = []
        marks: list[Entry | None] = list(chart.first)
        if leaves is not None:
            marks = [
                None if held is None else mark for mark, held in zip(marks, leaves, strict=True)
            ]
        stop = 0
        for part in chart.parts:
            lone = core.TreeSpec(None, (part,), (None,))
            start, stop = stop, stop + lone.num_leaves
            self.items.append(lone.build(marks[start:stop]))
        self._entries: dict[int, tuple[Any, Entry]] = {}

    def entry_of(self, node: Any) -> Entry | None:
        """The entry of a node or leaf of such a tree; ``None`` for anything else."""
        if isinstance(node, Entry):
            return node
        if isinstance(node, tuple) and not node:
            return None  # every empty tuple is one object
        if dynamo.is_compiling():
            alike = [(other, e) for other, e in self._pairs() if type(other) is type(node)]
            found = [entry for other, entry in alike if _is(other, node)]
            return found[0] if found else None
        if not self._entries:  # beside the nodes themselves, so that no id is given again
            self._entries = {id(pair[0]): pair for pair in reversed(self._pairs())}
        return self._entries.get(id(node), (None, None))[1]

    def _pairs(self) -> list[tuple[Any, Entry]]:
        """Every node of the trees with its entry."""
        entries = [entry for entry in self.chart.entries if entry.cls is not None]
        return [(follow(self.items[entry.item], entry.keys), entry) for entry in entries]


def _by_lambda(survey: Survey, where: Callable[[Any], Any]) -> tuple[list[Entry], bool]:
    """The nodes that a lambda returns of the tree itself; in a trace, of a tree of marks."""
    if dynamo.is_compiling():
        return _by_marks(survey, where)
    # Containers are built anew, for the lambda might write into a list of the caller.
    shown = core.with_items(survey.spec, list(survey.items))
    known = _Nodes(survey, containers(shown, survey))
    result = _called(where, shown)
    marked: list[Any] = []

    def entry_of(node: Any, place: int) -> Entry:
        found = known.entries_of(node)
        if len(found) == 1:
            return found[0]
        if not marked:  # equal holes or numbers are one object; marks are distinct objects
            marked.extend(_entries_of_marks(survey, where))
        told = marked[place] if place < len(marked) else None
        return _one(survey, node, told if told in found else None)

    single = not isinstance(result, (list, tuple)) or bool(known.entries_of(result))
    items = [result] if single else result
    found = [entry_of(node, place) for place, node in enumerate(items)]
    return survey.chart.distinct(found), single


def _one(survey: Survey, node: Any, entry: Entry | None) -> Entry:
    if entry is not None:
        return entry
    if node is None:
        raise LookupError(
            f"select: the function returned None, and which hole of {_name(survey)} that is cannot "
            f"be told. Name it by its path, such as 'layers.0.bias'"
        )
    raise LookupError(
        f"select: the function returned {node!r}, which is neither a leaf, a module nor a "
        f"container of {_name(survey)}. Constants are changed by module.replace(name=...)"
    )


def _called(where: Callable[[Any], Any], shown: Any) -> Any:
    try:
        return where(shown)
    except (AttributeError, TypeError) as error:
        raise TypeError(
            f"select: a function of one argument gets the tree and returns nodes of it: {error}. "
            f"A predicate takes two: lambda path, leaf: leaf.ndim == 2"
        ) from error


class _Nodes:
    """The nodes and leaves of a tree by identity."""

    def __init__(self, survey: Survey, around: list[Around]) -> None:
        self._survey = survey
        self._around = around
        self._nodes: dict[int, list[Entry]] | None = None

    def entries_of(self, node: Any) -> list[Entry]:
        """The entries of all places that hold this object; several for a hole, for example."""
        survey = self._survey
        if isinstance(node, tuple) and not node:
            return []  # every empty tuple is one object
        held = survey.leaves
        found = [survey.chart.first[k] for k, leaf in enumerate(held) if leaf is node]
        if found or node is None:
            return found
        if self._nodes is None:
            entries = [entry for entry in survey.chart.entries if entry.cls is not None]
            pairs: list[tuple[Entry, Any]] = [
                *zip(self._around, [a.value for a in self._around], strict=True)
            ]
            pairs += [*zip(entries, survey.values(entries), strict=True)]
            nodes: dict[int, list[Entry]] = {}
            for entry, value in pairs:
                nodes.setdefault(id(value), []).append(entry)
            self._nodes = nodes
        return survey.chart.distinct(self._nodes.get(id(node), []))


def _marked(survey: Survey, where: Callable[[Any], Any]) -> tuple[Any, _Marks]:
    """What a lambda returns when it is given a tree of marks in place of leaves."""
    chart = survey.chart
    # In a trace its trees are made anew, for they are no constants.
    marks = _Marks(chart) if dynamo.is_compiling() else chart.remember(_Marks)
    return _called(where, core.with_items(survey.spec, list(marks.items))), marks


def _by_marks(survey: Survey, where: Callable[[Any], Any]) -> tuple[list[Entry], bool]:
    """As ``_by_lambda`` in a trace: values are unknown, and a lambda sees only holes and marks."""
    marks = _Marks(survey.chart, survey.leaves)
    result = _called(where, core.with_items(survey.spec, list(marks.items)))
    single = not isinstance(result, list) and (
        not isinstance(result, tuple) or marks.entry_of(result) is not None
    )
    nodes = [result] if single else list(result)
    if any([node is None for node in nodes]):  # which hole?
        told = _entries_of_marks(survey, where)
        pairs = zip(nodes, told, strict=False)  # ``told`` may be empty
        nodes = [entry if node is None else node for node, entry in pairs]
    return survey.chart.distinct([_one(survey, n, marks.entry_of(n)) for n in nodes]), single


def _entries_of_marks(survey: Survey, where: Callable[[Any], Any]) -> list[Entry | None]:
    """The entries that a lambda returns of marks; empty if it needs values and so raises."""
    try:
        result, marks = _marked(survey, where)
    except Exception:  # a function of tensors may raise anything when it gets marks
        return []
    single = not isinstance(result, (list, tuple)) or marks.entry_of(result) is not None
    return [marks.entry_of(node) for node in ([result] if single else result)]


def _is(one: Any, two: Any) -> bool:
    """Whether two nodes are one object; dynamo knows that of tuples by their items only."""
    if isinstance(one, tuple):
        same_length = type(one) is type(two) and len(one) == len(two)
        return same_length and all(_is(a, b) for a, b in zip(one, two, strict=True))
    return one is two
