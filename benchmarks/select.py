"""What does naming some leaves of a tree cost: to read them, to change them, to part them?

The references are what one writes without `tree.select`: `nn.Module`'s own lookups where something
is read, and optree's maps with a path or a predicate over nested dicts where a tree is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import optree
from torch import Tensor, nn

from benchmarks import floor, peers
from benchmarks.harness import Candidate, Question
from benchmarks.models import BLOCKS, Linear, NnGPT, as_dict, mirror
from parallax import tree

LEAVES = 150
PATH = "blocks.3.attention.qkv.weight"

_TEXT = (
    "A path is text that is split and looked up name by name, and select builds an object that can "
    "also set and freeze; plain attribute access does neither"
)
_MODULES = (
    "One tree is built, of modules that carry their structure, where the floor builds plain "
    "objects; the rest checks each selected leaf"
)
# The equinox process makes trees of its own, of the same shape.
_EQUINOX = "jax with equinox, in a process of its own"


def questions(quick: bool) -> Iterator[Question]:
    model = NnGPT(BLOCKS[LEAVES], width=8)
    asked = [_read(model), *_changed(model), _parted(model), _classes(model)]
    if not quick:
        asked.append(_size(model))
    yield from (replace(question, most_rounds=9) for question in asked)


def _read(model: NnGPT) -> Question:
    module = cast(Any, mirror(model))
    return Question(
        f"one leaf by its path, {LEAVES} leaves",
        Candidate("nn.Module.get_parameter", lambda: model.get_parameter(PATH)),
        [
            Candidate("select(path).get()", lambda: tree.select(module, PATH).get()),
            Candidate("select(lambda).get()", lambda: tree.select(module, _weight).get()),
        ],
        check=_same_memory,
        floor=Candidate("floor: attributes", lambda: _weight(module)),
        remains=_TEXT,
    )


def _changed(model: NnGPT) -> Iterator[Question]:
    """Trees with other leaves: what is new is the very tensor that was there, so all agree."""
    module = mirror(model)
    plain, leaves = cast(Any, as_dict(module)), tree.leaves(module)
    objects = floor.objects_of(module)
    paths = list(tree.named_leaves(module))
    weight = _weight(cast(Any, module))
    absent: dict[str, str] = {}
    index = paths.index(PATH)
    keys = _at(PATH)

    def put() -> Any:
        changed = list(leaves)
        changed[index] = weight
        return objects(changed)

    yield Question(
        f"another leaf at a path, {LEAVES} leaves",
        _of_dicts(plain, lambda path, leaf: weight if path == keys else leaf),
        [
            Candidate("select(path).set()", lambda: tree.select(module, PATH).set(weight)),
            Candidate("select(lambda).set()", lambda: tree.select(module, _weight).set(weight)),
        ],
        peers=peers.equinox("set", _EQUINOX, absent),
        check=_same_memory,
        floor=Candidate("floor: plain objects around a list", put),
        remains=_MODULES,
        absent=absent,
    )
    meant = [path.endswith(".weight") for path in paths]
    pairs = list(zip(leaves, meant, strict=True))
    yield Question(
        f"a map over a glob, {LEAVES} leaves",
        _of_dicts(plain, lambda path, leaf: _same(leaf) if path[-1] == "weight" else leaf),
        [
            Candidate(
                "select(glob).apply()", lambda: tree.select(module, "**.weight").apply(_same)
            ),
        ],
        check=_same_memory,
        floor=Candidate(
            "floor: plain objects around a list",
            lambda: objects([_same(leaf) if chosen else leaf for leaf, chosen in pairs]),
        ),
        remains=_MODULES,
    )
    frozen = NnGPT(BLOCKS[LEAVES], width=8)
    yield Question(
        f"all frozen, {LEAVES} leaves",
        Candidate("nn.Module.requires_grad_, in place", lambda: frozen.requires_grad_(False)),
        [Candidate("select(role).freeze()", lambda: tree.select(module, "trainable").freeze())],
        check=lambda _, made: _same_memory(plain, made),
        floor=Candidate("floor: plain objects around a list", lambda: objects(leaves)),
        remains="A new tree is built; requires_grad_ only sets a flag on each parameter in place",
    )


def _parted(model: NnGPT) -> Question:
    module = mirror(model)
    plain, leaves = cast(Any, as_dict(module)), tree.leaves(module)
    objects = floor.objects_of(module)
    absent: dict[str, str] = {}

    def by_hand() -> Any:
        one = optree.tree_map(lambda leaf: leaf if leaf.ndim == 2 else None, plain)
        two = optree.tree_map(lambda leaf: None if leaf.ndim == 2 else leaf, plain)
        return optree.tree_map(lambda a, b: b if a is None else a, one, two, none_is_leaf=True)

    def straight() -> Any:
        one = [leaf if leaf.ndim == 2 else None for leaf in leaves]
        two = [None if leaf.ndim == 2 else leaf for leaf in leaves]
        for part in (one, two):
            objects(part)
        return objects([b if a is None else a for a, b in zip(one, two, strict=True)])

    def parting(condition: Any) -> Callable[[], Any]:
        return lambda: tree.combine(*tree.partition(module, condition))

    return Question(
        f"in two parts and together again, {LEAVES} leaves",
        Candidate("optree, nested dict, by a predicate", by_hand),
        [
            Candidate("partition and combine, by a predicate", parting(_is_matrix)),
            Candidate("partition and combine, by a path", parting("blocks.0")),
            Candidate("partition and combine, by a glob", parting("**.weight")),
        ],
        peers=peers.equinox("partition", _EQUINOX, absent),
        check=_same_memory,
        floor=Candidate("floor: plain objects around lists, three times", straight),
        remains=_MODULES,
        absent=absent,
    )


def _classes(model: NnGPT) -> Question:
    module = mirror(model)
    every = [node for node in model.modules() if not isinstance(node, nn.ModuleList)]
    return Question(
        f"all layers of a class, {LEAVES} leaves",
        Candidate("nn.Module.modules, isinstance", lambda: _linears(model.modules())),
        [Candidate("select(class).get()", lambda: tree.select(module, Linear).get())],
        check=lambda expected, found: _equal(len(expected), len(found)),
        floor=Candidate("floor: a flat list, isinstance", lambda: _linears(every)),
        remains="The list of layers exists already; in a tree each layer is reached from the root",
    )


def _size(model: NnGPT) -> Question:
    small, large = mirror(model), mirror(NnGPT(BLOCKS[1_002], width=8))
    return Question(
        "one leaf by its path, in a larger tree",
        Candidate("150 leaves", lambda: tree.select(small, PATH).get()),
        [Candidate("1,002 leaves", lambda: tree.select(large, PATH).get(), limit=1.25)],
    )


def _of_dicts(plain: Any, change: Callable[[tuple[Any, ...], Tensor], Tensor]) -> Candidate:
    return Candidate(
        "optree, nested dict, with a path", lambda: optree.tree_map_with_path(change, plain)
    )


def _linears(nodes: Any) -> list[nn.Module]:
    return [node for node in nodes if isinstance(node, nn.Linear)]


def _weight(module: Any) -> Any:
    return module.blocks[3].attention.qkv.weight


def _at(path: str) -> tuple[Any, ...]:
    """The path as optree gives it."""
    return tuple([int(key) if key.isdigit() else key for key in path.split(".")])


def _is_matrix(path: str, leaf: Tensor) -> bool:
    del path
    return leaf.ndim == 2


def _same(leaf: Tensor) -> Tensor:
    return leaf


def _equal(one: object, two: object) -> None:
    assert one == two


def _same_memory(one: Any, two: Any) -> None:
    """Both hold the same tensors; dicts are sorted, so without order."""
    first, second = (sorted(leaf.data_ptr() for leaf in _leaves(each)) for each in (one, two))
    assert first == second


def _leaves(each: Any) -> list[Tensor]:
    return floor.leaves_of(each) if isinstance(each, floor.Plain) else tree.leaves(each)
