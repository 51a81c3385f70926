"""The parts of a model that communicate while they are called.

Those that ``fsdp`` names are gathered. Layers whose leaves a tensor-parallel rule cuts end with the
sums that wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parallax._compat.sums import Along
from parallax.core import notes
from parallax.core.entries import Leaf
from parallax.core.registry import flatten_module, unflatten_module
from parallax.core.structure import Structure
from parallax.distributed.placements import Placed
from parallax.distributed.rules import FullyShard, sequence_of

__all__ = ["marked"]


def marked(module: Any, placed: Sequence[Placed | None], rules: Mapping[str, Any]) -> Any:
    """A module in which the parts that communicate are marked, and no others.

    What is marked are modules, for they are called: of a container those in it, of a ``Stack`` its
    blocks, and for a leaf the module that holds it.

    Args:
        module: the module.
        placed: where its leaves are held.
        rules: those of the plan, by dimension.
    """
    names = [name for name, rule in rules.items() if isinstance(rule, FullyShard)]
    parts: dict[str, str] = {}
    for one in placed:
        for name in names:
            if one is not None and one.cuts.get(name) is not None:
                parts[one.part] = name
    leaves, structure = flatten_module(module)
    nodes = {notes.joined(*path): node for path, _, node in structure.walk()}
    called = {one: name for path, name in parts.items() for one in _called(path, nodes)}
    summed = _summed(placed, rules, nodes)
    structure = structure.renote(
        lambda path, node: node.note._replace(
            gathered=called.get(notes.joined(*path), ""), summed=summed.get(notes.joined(*path), ())
        )
    )
    return unflatten_module(structure, leaves, module._rng)


def _summed(
    placed: Sequence[Placed | None], rules: Mapping[str, Any], nodes: Mapping[str, Any]
) -> dict[str, Along]:
    """The paths of the modules of which tensor-parallel rules cut leaves, and along what.

    With each dimension of the mesh is that of activations which is cut between the layers.
    """
    found: dict[str, Along] = {}
    for one in placed:
        for name, rule in rules.items():
            if one is not None and isinstance(rule, Mapping) and one.cuts.get(name) is not None:
                path = one.path
                while type(nodes[path]) is Leaf or not hasattr(nodes[path].cls, "__layout__"):
                    path = path.rpartition(".")[0]
                along = (name, sequence_of(rule))
                found[path] = tuple(dict.fromkeys([*found.get(path, ()), along]))
    return found


def _called(path: str, nodes: Mapping[str, Any]) -> list[str]:
    """The paths of the modules that are called when the part at a path is used."""
    node = nodes[path]
    if type(node) is Leaf:
        return _called(path.rpartition(".")[0], nodes)
    if hasattr(node.cls, "__layout__") and not hasattr(node.cls, "__repeats__"):
        return [path]
    below = zip(node.keys(), node.children, strict=True)
    return [
        found
        for key, child in below
        if type(child) is Structure
        for found in _called(notes.joined(path, key), nodes)
    ]
