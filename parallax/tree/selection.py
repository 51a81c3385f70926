"""``Selection``: some nodes or leaves of a tree, to read, replace, change or freeze."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast, overload

from torch import Tensor

from parallax._compat import dynamo
from parallax._errors.arguments import check_function, shown
from parallax.core.fields import Lazy
from parallax.core.nodes import is_module
from parallax.tree import core
from parallax.tree.chart import Entry
from parallax.tree.freeze import marked
from parallax.tree.insert import inserted
from parallax.tree.match import condition_name
from parallax.tree.modes import staying
from parallax.tree.places import Survey
from parallax.tree.rebuild import rebuild
from parallax.tree.refine import refined

__all__ = ["Selection"]

T = TypeVar("T")
_SHOWN = 20
_LISTED = 8


class Selection(Generic[T]):
    """Some nodes and leaves of a tree: what ``select`` returns. Printing it shows which.

    Example:
        >>> import torch
        >>> from parallax import nn, tree
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).initialize(0)
        >>> biases = tree.select(model, "**.bias")
        >>> biases
        Selection of 2 in Sequential:
          layers.0.bias  parameter float32[3]
          layers.2.bias  parameter float32[1]
        >>> model = biases.freeze()  # a new tree; likewise set, apply and unfreeze
        >>> tree.select(model, "trainable").paths
        ('layers.0.weight', 'layers.2.weight')
        >>> model = tree.select(model, "**.bias").unfreeze()
        >>> halved = tree.select(model, "layers.0.weight").apply(lambda weight: weight / 2)
        >>> halved = tree.select(halved, "layers.2.bias").set(torch.zeros(1))
        >>> tree.select(halved, "layers.2.bias").get()
        tensor([0.])
    """

    def __init__(self, survey: Survey, entries: list[Entry], single: bool) -> None:
        self._survey = survey
        self._entries = entries
        self._single = single

    @property
    def paths(self) -> tuple[str, ...]:
        """The dotted path of each selected node or leaf; of a tied one the first."""
        return tuple([entry.path for entry in self._entries])

    @overload
    def count(self) -> int: ...
    @overload
    def count(self, n: int) -> Selection[T]: ...
    def count(self, n: int | None = None) -> int | Selection[T]:
        """The number of selected nodes and leaves, or a check of it.

        Args:
            n: how many there must be.

        Returns:
            Their number; this selection, if ``n`` was given.

        Raises:
            ValueError: if there are not ``n``; the message says what is selected.

        Example:
            >>> from parallax import nn, tree
            >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).initialize(0)
            >>> model = tree.select(model, "**.bias").count(2).freeze()
        """
        if n is None:
            return len(self._entries)
        if type(n) is not int:
            raise TypeError(
                f"Selection.count(n=): expected an int, got {shown(n)}. Write "
                f"tree.select(model, '**.bias').count(12)"
            )
        if n != len(self._entries):
            raise ValueError(f"count({n}): {len(self._entries)} are selected: {self._listed()}")
        return self

    def refine(self, *what: Any) -> Selection[T]:
        """Selects some of what lies at or below the selected nodes and leaves.

        Args:
            *what: conditions of ``select``; what any of them matches is selected. A path or glob
                goes on from each selected node, and a function of one argument gets each; a node
                that has nothing there adds nothing. Others hold as for the whole tree, where a
                function of two gets whole paths.

        Returns:
            The selection, of the same tree.

        Raises:
            LookupError: if nothing is left.
            TypeError: if a condition has none of the forms of ``select``.

        Example:
            >>> from parallax import nn, tree
            >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
            >>> tree.select(model, nn.Linear).refine("bias").paths
            ('layers.0.bias', 'layers.2.bias')
            >>> tree.select(model, "**.weight").refine(lambda path, leaf: leaf.ndim == 1).paths
            ('layers.1.weight',)
        """
        if not what:
            raise TypeError("refine(*what): say what to select, for example 'bias'")
        survey = self._survey
        found = [refined(survey, self._entries, condition) for condition in what]
        entries = survey.chart.distinct([entry for some, _ in found for entry in some])
        if not entries:
            told = ", ".join([condition_name(condition) for condition in what])
            raise LookupError(f"refine: nothing matches {told} within {self._listed()}")
        single = self._single and len(what) == 1 and found[0][1]
        return Selection(survey, entries, single)

    def _listed(self) -> str:
        paths = [path or "the root" for path in self.paths]
        more = f", and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
        return ", ".join(paths[:_LISTED]) + more

    def get(self) -> Any:
        """The selected nodes and leaves.

        Returns:
            The node or leaf itself when the selection names one by its form (an exact path, or
            a lambda that returns one node); a tuple in every other case, even of one.
        """
        values = self._survey.values(self._entries)
        return values[0] if self._single else tuple(values)

    def set(self, value: Any) -> T:
        """The tree with other values in the selected places; the inverse of ``get``.

        Args:
            value: a value for all, or a list or tuple with one for each. One tensor or module
                for several places is copied for each, so that they are not tied by accident;
                give the same object twice in a list to tie them on purpose.

        Returns:
            The new tree. Where a module is replaced, the fields' annotations are checked, and
            modes, frozen marks and ties elsewhere stay.

        Raises:
            TypeError: if an annotation does not allow a value.
            ValueError: if the number of values is another, or a selected node contains another
                selected one.
        """
        if self._single:
            return self._put([value])
        if isinstance(value, (list, tuple)):
            if len(value) != len(self._entries):
                raise ValueError(
                    f"set() got {len(value)} values for {len(self._entries)} selected things: "
                    f"{', '.join(self.paths[:5])}{', ...' if len(self.paths) > 5 else ''}"
                )
            return self._put(list(value))
        return self._put([value, *[_copy(value) for _ in self._entries[1:]]])

    def apply(self, fn: Callable[[Any], Any]) -> T:
        """The tree with ``fn`` applied to each selected node or leaf.

        Args:
            fn: takes a leaf or a node to a new one; it is not called on holes.

        Returns:
            The new tree.

        Raises:
            TypeError: if an annotation does not allow a value.
            ValueError: if a selected node contains another selected one.
        """
        check_function("Selection.apply", fn, "tree.select(model, 'weight').apply(torch.neg)")
        values = self._survey.values(self._entries)
        return self._put([None if value is None else fn(value) for value in values])

    def insert_before(self, *values: Any) -> T:
        """The tree with new items before each selected item of a tuple or list.

        Args:
            *values: what is inserted, in this order. Where several items are selected, further
                ones get copies, so that nothing is tied by accident.

        Returns:
            The new tree. Later items have other paths then, so an optimizer state made before
            does not fit.

        Raises:
            TypeError: if a selected node or leaf is no item of a tuple or list, no value is given,
                or an annotation does not allow one.

        Example:
            >>> from parallax import nn, tree
            >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).initialize(0)
            >>> tree.select(model, "layers.1").insert_before(nn.ReLU())
            Sequential(
              (0): Linear(in_features=2, out_features=3, bias=True)
              (1): ReLU()
              (2): Linear(in_features=3, out_features=1, bias=True)
            )
        """
        return self._insert("insert_before", values, 0)

    def insert_after(self, *values: Any) -> T:
        """The tree with new items after each selected item of a tuple or list.

        Args:
            *values: what is inserted, in this order; see ``insert_before``.

        Returns:
            The new tree.

        Raises:
            TypeError: if a selected node or leaf is no item of a tuple or list, no value is given,
                or an annotation does not allow one.

        Example:
            >>> from parallax import nn, tree
            >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)).initialize(0)
            >>> model = tree.select(model, nn.Linear).insert_after(nn.Dropout(0.1))
            >>> [type(layer).__name__ for layer in model.layers]
            ['Linear', 'Dropout', 'Linear', 'Dropout']
        """
        return self._insert("insert_after", values, 1)

    def freeze(self) -> T:
        """The tree with the selected parameters, and those below selected nodes, not trained.

        It is an annotation: the skeleton is unchanged, so trees made before still fit.

        Returns:
            The tree; ``reset`` and gradients leave frozen parameters out.

        Raises:
            TypeError: if a selected leaf belongs to no module.
        """
        return self._mark(True)

    def unfreeze(self) -> T:
        """The tree with the selected parameters, and those below selected nodes, trained again.

        Returns:
            The tree.

        Raises:
            TypeError: if a selected leaf belongs to no module.
        """
        return self._mark(False)

    def eval(self) -> T:
        """The tree whose selected modules, and those below, stay in mode ``"eval"``.

        Neither ``train`` nor ``reset`` of the tree changes their mode: a pretrained backbone
        whose batch norms keep their statistics. It is an annotation: the skeleton is unchanged,
        and parameters are trained as before unless they are frozen, too.

        Returns:
            The tree. It stays so through every operation; the ``train`` of a selection undoes it.

        Raises:
            TypeError: if a selected leaf or container holds no module, which is what has a mode.

        Example:
            >>> from parallax import nn, tree
            >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)).initialize(0)
            >>> net = tree.select(net, "layers.0").eval().train(1)
            >>> [layer.mode for layer in net.layers]
            ['eval', 'train']
            >>> tree.select(net, "layers.0").train()[0].mode
            'train'
        """
        return cast(T, staying(self._survey, self._entries, True))

    def train(self) -> T:
        """The tree whose selected modules, and those below, are in mode ``"train"``.

        Undoes the ``eval`` of a selection: their mode follows ``train``, ``eval`` and ``reset`` of
        the tree again.

        Returns:
            The tree.

        Raises:
            TypeError: if a selected leaf or container holds no module, which is what has a mode.
        """
        return cast(T, staying(self._survey, self._entries, False))

    def __repr__(self) -> str:
        pairs = zip(self._entries, self._survey.values(self._entries), strict=True)
        lines = [f"  {e.path or '(the root)'}  {_shown(e.role, value)}" for e, value in pairs]
        if len(lines) > _SHOWN:
            lines = [*lines[: _SHOWN - 1], f"  ... {len(lines) - _SHOWN + 1} more"]
        tree = type(self._survey.tree).__name__
        return "\n".join([f"Selection of {len(self._entries)} in {tree}:", *lines])

    def _mark(self, frozen: bool) -> T:
        chosen = self._survey.indices(self._entries)
        return cast(T, marked(self._survey, tuple(chosen), frozen))

    def _put(self, values: list[Any]) -> T:
        survey = self._survey
        if self._only_leaves(values):
            leaves = list(survey.leaves)
            for entry, value in zip(self._entries, values, strict=True):
                leaves[entry.leaf] = value
            if dynamo.is_compiling() or not _ties_anew(leaves, values):
                return cast(T, survey.spec.build(leaves))
        _check_apart(self._entries)
        pairs = zip(self._entries, values, strict=True)
        edits = [
            (twin, value)
            for entry, value in pairs
            for twin in (survey.chart.twins(entry) if entry.item >= 0 else [entry])
        ]
        return cast(T, rebuild(survey, edits))

    def _insert(self, verb: str, values: tuple[Any, ...], shift: int) -> T:
        if not values:
            raise TypeError(f"{verb}(*values): say what to insert, such as nn.ReLU()")
        return cast(T, inserted(verb, self._survey, self._entries, values, shift, _copy))

    def _only_leaves(self, values: list[Any]) -> bool:
        """Whether tensors replace leaves, so that no annotation has to be checked."""
        if not all([isinstance(value, Tensor) for value in values]):
            return False
        return all([entry.cls is None and self._is_lone(entry) for entry in self._entries])

    def _is_lone(self, entry: Entry) -> bool:
        """Whether a leaf is its entry among the leaves, and nothing else."""
        if self._survey.leaves[entry.leaf] is not None:
            return True
        return entry.role != "slot" and len(self._survey.chart.twins(entry)) == 1


def _check_apart(entries: list[Entry]) -> None:
    """Raises if one selected node holds another: which value should win would be unclear."""
    open_node: Entry | None = None
    for entry in sorted(entries, key=lambda e: (e.start, -e.stop, len(e.path))):
        if open_node is not None and open_node.holds(entry):
            raise ValueError(
                f"{entry.path} lies inside {open_node.path or 'the root'}, and both are "
                f"selected; select only one of them to set or apply"
            )
        open_node = entry


def _ties_anew(leaves: list[Any], values: list[Any]) -> bool:
    """Whether a new value is the tensor of another leaf."""
    new = set(map(id, values))
    return sum(map(new.__contains__, map(id, leaves))) > len(new)


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Lazy):
        return value.copy()
    return core.map(_copy, value) if is_module(value) else value


def _shown(role: str, value: Any) -> str:
    if isinstance(value, (Tensor, Lazy)):
        mark = ", uninitialized" if isinstance(value, Lazy) else ""
        return f"{role} {str(value.dtype).removeprefix('torch.')}{list(value.shape)}{mark}"
    return "a hole" if value is None else type(value).__name__
