"""What do taking a module apart, putting it together and mapping over it cost?

The references work on nested dicts of the same leaves: optree's traversal is written in C++;
torch's own, in Python, is the one that `torch.func` and `torch.compile` use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import optree
from torch import Tensor, nn
from torch.utils import _pytree as torch_pytree

from benchmarks import floor, peers
from benchmarks.harness import Candidate, Question
from benchmarks.models import BLOCKS, NnGPT, NnMLP, as_dict, mirror, rebuild
from parallax import Module, tree

T = TypeVar("T")

_MODULES = (
    "Modules are immutable, so attributes are written through their dict, which Python has to "
    "create; a plain object needs none. And a module carries its structure"
)

# The size that the limits are for.
GPT = 150


@dataclass(frozen=True)
class Subject:
    """One model as a module, as nested dicts of the same leaves, and as a flat list."""

    leaves: int
    model: nn.Module
    module: Module
    plain: Any
    flat: list[Tensor]

    def limit(self, ratio: float) -> float | None:
        return ratio if self.leaves == GPT else None

    def equinox(self, task: str, absent: dict[str, str]) -> list[Candidate]:
        name = "jax with equinox, in a process of its own"
        return peers.equinox(task, name, absent) if self.leaves == GPT else []

    def tensordict(self, absent: dict[str, str]) -> Any:
        library = peers.find("tensordict", absent)
        return library and library.from_module(self.model, as_module=False).detach()


def questions(quick: bool) -> Iterator[Question]:
    subjects = [_subject(leaves) for leaves in ((6, GPT) if quick else (6, *BLOCKS))]
    for subject in subjects[:3]:
        if subject.leaves <= GPT:  # a fresh tree for every call takes long to make
            yield _flatten(subject)
        yield _unflatten(subject)
        yield _map(subject)
        yield _map_of_torch(subject)
    if not quick:
        yield _flatness(subjects)


def _subject(leaves: int) -> Subject:
    # Narrow where there are many leaves: their size is not what is measured here.
    model = NnGPT(BLOCKS[leaves], width=8) if leaves in BLOCKS else NnMLP((8, 8, 8, 8))
    module = mirror(model)
    # A registry that does not know the module would call it one leaf, and win every race.
    everything: Any = module
    for all_leaves in (tree.leaves, optree.tree_leaves, torch_pytree.tree_leaves):
        assert len(all_leaves(everything)) == leaves
    return Subject(leaves, model, module, as_dict(module), tree.leaves(module))


def _flatten(subject: Subject) -> Question:
    def fresh() -> Module:
        return rebuild(subject.module)

    absent: dict[str, str] = {}
    # Both sides fresh: what was just made lies as far away in memory on either.
    return Question(
        f"flatten, {subject.leaves} leaves",
        Candidate("optree, fresh nested dict", optree.tree_flatten, lambda: as_dict(fresh())),
        [
            Candidate(
                "optree, fresh module", optree.tree_flatten, fresh, limit=subject.limit(0.75)
            ),
            Candidate("tree.flatten, fresh module", tree.flatten, fresh),
            Candidate("tree.flatten, again", lambda: tree.flatten(subject.module)),
            Candidate(
                "tree.leaves, again",
                lambda: (tree.leaves(subject.module), None),
                limit=subject.limit(0.05),
            ),
        ],
        peers=subject.equinox("flatten", absent),
        check=lambda plain, flat: _same_leaves(plain[0], flat[0]),
        floor=Candidate("floor: a flat list, copied", lambda: (list(subject.flat), None)),
        remains="The leaves of a fresh module must be collected; the list exists already",
        absent=absent,
    )


def _unflatten(subject: Subject) -> Question:
    dict_leaves, dict_structure = optree.tree_flatten(subject.plain)
    leaves, structure = tree.flatten(subject.module)
    objects = floor.objects_of(subject.module)
    absent: dict[str, str] = {}
    return Question(
        f"unflatten, {subject.leaves} leaves",
        Candidate(
            "optree, nested dict", lambda: optree.tree_unflatten(dict_structure, dict_leaves)
        ),
        [
            Candidate("tree.unflatten", lambda: tree.unflatten(structure, leaves)),
        ],
        peers=subject.equinox("unflatten", absent),
        check=_same_tree,
        floor=Candidate("floor: plain objects, a line for each", lambda: objects(leaves)),
        remains=_MODULES,
        absent=absent,
    )


def _map(subject: Subject) -> Question:
    module, other = subject.module, rebuild(subject.module)
    flat = subject.flat
    absent: dict[str, str] = {}
    others = subject.equinox("map", absent)
    values = subject.tensordict(absent)
    if values is not None:
        others.append(Candidate("tensordict", lambda: values.apply(_identity)))
    return Question(
        f"map of the identity, {subject.leaves} leaves",
        Candidate("optree, nested dict", lambda: optree.tree_map(_identity, subject.plain)),
        [
            Candidate("tree.map", lambda: tree.map(_identity, module), limit=subject.limit(0.45)),
            Candidate(
                "tree.map, two trees",
                lambda: tree.map(_first, module, other),
                limit=subject.limit(0.55),
            ),
            Candidate("optree, module", lambda: optree.tree_map(_identity, cast(Any, module))),
        ],
        peers=[*others, Candidate("a flat list, no tree", floor.map_of(flat, _identity))],
        check=_same_tree,
        floor=_floor_of_map(subject),
        remains=_MODULES,
        absent=absent,
    )


def _floor_of_map(subject: Subject) -> Candidate:
    flat, objects = subject.flat, floor.objects_of(subject.module)
    return Candidate(
        "floor: plain objects, a line for each", lambda: objects([_identity(leaf) for leaf in flat])
    )


def _map_of_torch(subject: Subject) -> Question:
    module = subject.module
    return Question(
        f"map of the identity, {subject.leaves} leaves, against torch",
        Candidate("torch pytree, dict", lambda: torch_pytree.tree_map(_identity, subject.plain)),
        [
            Candidate("tree.map", lambda: tree.map(_identity, module), limit=subject.limit(0.12)),
            Candidate(
                "torch pytree, module",
                lambda: torch_pytree.tree_map(_identity, module),
                limit=subject.limit(0.50),
            ),
        ],
        check=_same_tree,
        floor=_floor_of_map(subject),
        remains=_MODULES,
    )


def _flatness(subjects: list[Subject]) -> Question:
    """Does a leaf of a large model cost what a leaf of a small one does?"""

    def mapping(subject: Subject) -> Candidate:
        module, many = subject.module, subject.leaves > GPT
        return Candidate(
            f"{subject.leaves} leaves",
            lambda: tree.map(_identity, module),
            per=subject.leaves,
            limit=1.25 if many else None,
        )

    _, reference, *larger = subjects
    return Question("tree.map, per leaf", mapping(reference), [mapping(s) for s in larger])


def _identity(leaf: T) -> T:
    return leaf


def _first(leaf: T, other: object) -> T:
    del other
    return leaf


def _same_tree(plain: Any, other: Any) -> None:
    """A module, a flat list or a tensordict holds the tensors that the dicts hold."""
    expected = optree.tree_leaves(plain)
    if isinstance(other, floor.Plain):
        other = floor.leaves_of(other)
    if hasattr(other, "batch_size"):  # a tensordict wraps what it holds
        found = [leaf.data_ptr() for leaf in other.values(True, True)]
        assert sorted(leaf.data_ptr() for leaf in expected) == sorted(found)
    else:
        _same_leaves(expected, tree.leaves(other))


def _same_leaves(plain: list[Tensor], leaves: list[Tensor]) -> None:
    # optree sorts dicts and modules keep the order of their fields: compare without order.
    assert sorted(map(id, plain)) == sorted(map(id, leaves))
