"""Where the leaves and nodes of a tree are among the modules of a lowered ``nn.Module``."""

from __future__ import annotations

from typing import Any

from torch import nn

from parallax._compat.opaque import real
from parallax.bridge.blueprint import STRUCTURE
from parallax.core.entries import Note
from parallax.core.notes import joined
from parallax.core.structure import Structure, derived
from parallax.tree.state_names import names_within

__all__ = [
    "Places", "flags_of", "gathered", "held", "modules_of", "parted", "places_of",
    "structure_in", "with_modes",
]  # fmt: skip

MODES = {True: "train", False: "eval"}


class Places:
    """The names of everything in a lowered module, which follow from the structure.

    Attributes:
        modules: every ``nn.Module`` below the node, after those above it, as the index of the one
            that holds it and its name there; the node itself has index 0 and is not among them.
        kinds: for every ``nn.Module``, the node itself first, the structure of the module it
            stands for; ``None`` for those that only hold others.
        slots: for every place of a leaf the index of the module that holds it, and its name there.
        hosts: for every module of the tree the index of what has its mode.
    """

    def __init__(self, structure: Structure) -> None:
        places, begins = names_within(structure)
        known: dict[str, int] = {"": 0}
        modules: list[tuple[int, str]] = []
        kinds: list[Structure | None] = [structure]

        def index_of(begin: str) -> int:
            if begin not in known:
                above, name = parted(begin[:-1])
                modules.append((index_of(above), name))
                kinds.append(None)
                known[begin] = len(modules)
            return known[begin]

        hosts = []
        for begin, node in zip(begins, structure.nodes(), strict=True):
            index = index_of(begin)
            if hasattr(node.cls, "__layout__"):
                hosts.append(index)
                kinds[index] = kinds[index] or node
        self.hosts = tuple(hosts)
        self.slots = tuple([(index_of(begin), name) for begin, name in map(parted, places)])
        self.modules = tuple(modules)
        self.kinds = tuple(kinds)


def parted(path: str) -> tuple[str, str]:
    """What a name in a state dict begins with, and the name there."""
    above, dot, name = path.rpartition(".")
    return above + dot, name


@derived
def places_of(structure: Structure) -> Places:
    """The places of a structure, found once."""
    return Places(structure)


@real
def _parts(structure: Structure) -> tuple[Any, ...]:
    """The same as constants of a trace."""
    places = places_of(structure)
    return places.modules, places.slots, places.hosts


def structure_in(module: Any) -> Any:
    """The structure that a lowered module stands for; ``None`` of everything else."""
    # Not by getattr: a wrapper such as torch.compile's has the attributes of what is inside.
    return module.__dict__.get(STRUCTURE) if isinstance(module, nn.Module) else None


def modules_of(root: nn.Module, structure: Structure) -> list[Any]:
    """The modules that a lowered module consists of, as ``Places`` has them.

    Raises:
        RuntimeError: if one is not there any more.
    """
    nodes: list[Any] = [root]
    for above, name in _parts(structure)[0]:
        below = nodes[above]._modules.get(name)
        if below is None:
            raise RuntimeError(
                f"{structure.cls.__name__}: the module {name!r} was taken out of what bridge.lower "
                f"made. Take it out of the tree before it is lowered"
            )
        nodes.append(below)
    return nodes


def gathered(root: nn.Module, structure: Structure) -> list[Any]:
    """The unique leaves of a structure, from the modules they are registered with."""
    nodes = modules_of(root, structure)
    places = [held(nodes[index], name) for index, name in _parts(structure)[1]]
    if any([isinstance(leaf, nn.Module) for leaf in places]):
        raise RuntimeError(
            f"{structure.cls.__name__}: a module was put where bridge.lower found none, and the "
            f"forward above takes it apart as a tree. Put it into the tree before it is lowered"
        )
    return places if structure.expand is None else [places[k] for k in structure.first]


def held(module: Any, name: str) -> Any:
    """What a module holds under a name: a tensor, also one that a parametrization computes."""
    for home in (module._parameters, module._buffers, module._modules):
        if name in home:
            return home[name]
    return getattr(module, name)


def flags_of(root: nn.Module, structure: Structure) -> tuple[bool, ...]:
    """For every module of the tree, in preorder, whether it is in training."""
    nodes = modules_of(root, structure)
    return tuple([nodes[index].training for index in _parts(structure)[2]])


@real
@derived
def with_modes(structure: Structure, flags: tuple[bool, ...]) -> Structure:
    """The structure with its modules in training or not."""
    modes = dict(zip(structure.modules(), [MODES[flag] for flag in flags], strict=True))

    def note(path: tuple[Any, ...], node: Structure) -> Note:
        mode = modes[joined(*path)]
        return node.note._replace(mode=mode, stays_eval=node.note.stays_eval and mode == "eval")

    return structure.renote(note)
