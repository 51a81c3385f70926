"""``select``: name some nodes or leaves of a tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from parallax.tree.arguments import refuse_text
from parallax.tree.match import find
from parallax.tree.places import Survey
from parallax.tree.selection import Selection

__all__ = ["select"]

T = TypeVar("T")


@overload
def select(tree: T, what: Callable[[T], object], /) -> Selection[T]: ...
@overload
def select(tree: T, what: Callable[[str, Any], object], /) -> Selection[T]: ...
@overload
def select(tree: T, *what: Any) -> Selection[T]: ...
def select(tree: T, *what: Any) -> Selection[T]:
    """Selects some of a tree's nodes and leaves, to read, replace, map or freeze them.

    Args:
        tree: a module, or any pytree that holds modules and tensors.
        *what: conditions; what any of them matches is selected. Each is one of

            - a dotted path, ``"encoder.layers.0.weight"``: a leaf, a module or a container; its
              name in the state dict does, too, ``"0.weight"`` of a ``Sequential``;
            - a glob over the segments of paths, ``"**.bias"`` or ``"blocks.*.norm"``: ``*`` is
              any text in one segment, ``?`` one character, ``[qkv]`` one of some (``[!qkv]`` any
              other), ``**`` any number of segments (at the end, any *leaf* below); where it matches
              no path, it is for names in the state dict, ``"*.weight"`` of a ``Sequential``;
            - a role: ``"parameter"``, ``"buffer"``, ``"trainable"`` or ``"frozen"``;
            - a class: modules of it; ``Parameter``, ``Buffer`` and ``Tensor`` select leaves;
            - a mask, which is a tree of bools: ``tree.map(lambda leaf: leaf.ndim == 2, model)``; a
              bool in the place of a whole module outside of others is for all of it. For a tree
              of labels see ``tree.masks``;
            - a function of one argument, the tree: ``lambda m: m.head.weight``, or a tuple or
              list of nodes; it may look at values and holes;
            - a function of two, the path and value of each leaf, that says whether it is selected:
              ``lambda path, leaf: leaf.ndim == 2``.

    Returns:
        The selection. A tied leaf, or a module that stands in several places, is one thing
        whichever path leads to it. Holes are selected only by their exact path or by a lambda.

    Raises:
        LookupError: if a condition matches nothing; near misses are listed.
        TypeError: if a condition has none of these forms.
        ValueError: if a mask does not fit the tree.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, tree
        >>> class Dense(Module):
        ...     weight: Parameter
        ...     bias: Parameter
        >>> dense = Dense(torch.ones(2, 3), torch.ones(2))
        >>> tree.select(dense, "*").paths
        ('weight', 'bias')
        >>> tree.select(dense, lambda m: m.bias).apply(torch.neg).bias
        tensor([-1., -1.])
        >>> tree.select(dense, "weihgt")
        Traceback (most recent call last):
        LookupError: select: nothing in Dense is at 'weihgt'. Near misses: weight
    """
    if not what:
        raise TypeError("select(tree, *what): say what to select, for example '**.bias'")
    refuse_text("select", tree)
    survey = Survey(tree)
    if len(what) == 1:
        return Selection(survey, *find(survey, what[0]))
    found = [entry for condition in what for entry in find(survey, condition)[0]]
    return Selection(survey, survey.chart.distinct(found), single=False)
