"""``lora``: low-rank adaptation of a whole model; ``merge_lora`` keeps the change alone."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar, cast

from parallax._errors.arguments import answered, check_module
from parallax.core.entries import Note
from parallax.core.notes import note_of
from parallax.core.registry import flatten_module, unflatten_module
from parallax.core.structure import Structure
from parallax.nn.arguments import between, positive
from parallax.nn.lora import LoRA
from parallax.tree.chart import Chart, Entry
from parallax.tree.match import find
from parallax.tree.places import Survey
from parallax.tree.selection import Selection
from parallax.tree.state_names import names_of

__all__ = ["lora", "merge_lora"]

M = TypeVar("M")


@answered("nn.lora", "nn.lora(model, '**.q_proj', rank=8)")
def lora(
    model: M,
    *where: Any,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
) -> M:
    """A model with low-rank adapters beside some of its weights, and all its other weights frozen.

    Each selected layer becomes an ``nn.LoRA`` around it, whose two small matrices are declared:
    ``initialize`` draws them, each by its path. So gradients and the states of optimizers hold the
    adapters alone. ``tree.partition(model, "trainable")`` takes the adapters out, to be saved, and
    ``tree.combine`` puts them into another model; ``nn.merge_lora`` adds them to the weights.

    A module that stands in several places has one adapter. A model that has adapters can get
    others beside them; what was frozen of the first stays so.

    Args:
        model: a module, our own or lifted (``bridge.lift``), with values; it stays as it is.
        *where: which layers, as ``tree.select`` takes it: ``"**.q_proj"``, ``nn.Linear``,
            ``bridge.lifted_type(torch.nn.Linear)``. A layer is adapted in its leaf ``weight``;
            other weights are selected themselves: ``"**.in_proj_weight"``.
        rank: of the change.
        alpha: the change is multiplied by ``alpha / rank``; by default by 1.
        dropout: the probability with which a number of the adapters' input is dropped in mode
            ``"train"``; only where all that is selected are linear layers.

    Returns:
        The adapted model.

    Raises:
        LookupError: if nothing is selected; near misses are listed.
        TypeError: if ``model`` is no module, a number is none, or a weight has no floating dtype.
        ValueError: if what is selected has no weight, or a vector in its place, has an adapter
            already, or has no input to drop; or a number is out of range.

    Source: E. J. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.

    Example:
        >>> import torch
        >>> from parallax import nn, tree
        >>> model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 2)).initialize(0)
        >>> adapted = nn.lora(model, nn.Linear, rank=4, alpha=8).initialize(1)
        >>> tree.select(adapted, "trainable").paths[:2]
        ('layers.0.lora_A', 'layers.0.lora_B')
        >>> tree.equal(nn.merge_lora(adapted), model)
        True
    """
    check_module("nn.lora", model, "model")
    if not where:
        raise TypeError("nn.lora(model, *where): say which layers, for example '**.q_proj'")
    positive("nn.lora", rank=rank)
    between("nn.lora", 0, **({} if alpha is None else {"alpha": alpha}))
    between("nn.lora", 0, 1, dropout=dropout)
    options = {"rank": rank, "alpha": alpha, "dropout": dropout}
    names = _targets(Survey(model), where, rank)
    adapted: Any = model
    # The innermost first: what is around them keeps its path.
    for depth in sorted({_depth(path) for path in names}, reverse=True):
        survey = Survey(adapted)
        entries = [e for e in survey.chart.entries if e.path in names and _depth(e.path) == depth]
        known: dict[Any, Any] = {}
        made = []
        for entry in entries:
            thing = (_thing(survey, entry), *names[entry.path])
            if thing not in known:
                known[thing] = _wrapped(survey, entry, names[entry.path], options)
            made.append(known[thing])
        adapted = Selection(survey, entries, single=False).set(made)
    return cast(M, _frozen(adapted))


def merge_lora(model: M) -> M:
    """A model without adapters, whose changes are added to the weights they are beside.

    Args:
        model: a module; it stays as it is.

    Returns:
        The model as it was before ``nn.lora``, with other weights. They stay frozen:
        ``tree.select(merged, "parameter").unfreeze()``. Where a weight had been tied to another
        that has no such adapter, it is tied no more.

    Raises:
        TypeError: if it is no module.
        UninitializedError: if an adapter or a weight has no value yet.

    Example:
        >>> import torch
        >>> from parallax import nn
        >>> adapted = nn.lora(nn.Linear(3, 2).initialize(0), nn.Linear, rank=1).initialize(1)
        >>> nn.merge_lora(adapted)
        Linear(in_features=3, out_features=2, bias=True) (frozen)
    """
    check_module("nn.merge_lora", model, "model")
    survey = Survey(model)
    chart = survey.chart
    found = chart.distinct([e for e in chart.entries if _is_lora(e)])
    outer = [e for e in found if not any([o is not e and o.holds(e) for o in found])]
    if not outer:
        return model
    made: dict[Any, Any] = {}
    for entry, one in zip(outer, survey.values(outer), strict=True):
        made.setdefault(_thing(survey, entry), one)
    merged = {thing: one.merged() for thing, one in made.items()}
    new = [merged[_thing(survey, entry)] for entry in outer]
    return cast(M, Selection(survey, outer, single=False).set(new))


def _depth(path: str) -> int:
    return path.count(".") + 1 if path else 0


def _thing(survey: Survey, entry: Entry) -> Any:
    """What the entries of one module that stands in several places share, and no others."""
    present = [k for k in survey.chart.unique(entry) if survey.leaves[k] is not None]
    return entry.node.skeleton, *present


def _is_lora(entry: Entry) -> bool:
    return entry.is_module and issubclass(entry.cls, LoRA)


# -- what is meant --------------------------------------------------------------------------------


def _targets(survey: Survey, where: tuple[Any, ...], rank: int) -> dict[str, list[str]]:
    """The names of the weights that are meant, by the path of the module that holds them."""
    chart = survey.chart
    names: dict[str, list[str]] = {}
    for entry in chart.distinct([e for what in where for e in find(survey, what)[0]]):
        around = [other for other in chart.entries if other.is_module and other.holds(entry)]
        if any([other is not entry and hasattr(other.cls, "__repeats__") for other in around]):
            raise ValueError(
                f"nn.lora: {entry.path} is inside of an nn.Stack, whose blocks are stacked. Adapt "
                f"them first: nn.Stack.of([nn.lora(block, ..., rank={rank}) for block in stack])"
            )
        if any([_is_lora(other) for other in around]):
            raise ValueError(
                f"nn.lora: {entry.path or 'the model'} has an adapter already, or belongs to one. "
                f"Select others, or merge it first: nn.merge_lora(model)"
            )
        for owner, place in _places(survey, entry):
            node: Any = owner.node
            unique = node.leaf_at[place - owner.start]
            name = next(name for name, k in names_of(node) if k == unique)
            held = names.setdefault(owner.path, [])
            if name not in held:
                held.append(name)
    return names


def _places(survey: Survey, entry: Entry) -> list[tuple[Entry, int]]:
    """The module whose weight is meant, in each of its places, and the weight's place."""
    chart = survey.chart
    if entry.cls is not None:
        named = getattr(entry.node, "named", {}) if entry.is_module else {}
        _, start, leaf = named.get("weight", (None, 0, None))
        place = entry.start + start
        if getattr(leaf, "role", "") != "parameter":
            _refuse(chart, entry)
        return [(entry, place)]
    if entry.role != "parameter":
        raise ValueError(
            f"nn.lora: {entry.path} is a {entry.role}, which is not trained. Select a layer or a "
            f"matrix among the parameters, such as '**.q_proj'"
        )
    places = [k for k, index in enumerate(chart.expand) if index == entry.leaf]
    owners = [(owner, k) for k in places if (owner := chart.owners[k]) is not None]
    if len({_thing(survey, owner) for owner, _ in owners}) > 1:
        paths = ", ".join([repr(owner.path) for owner, _ in owners])
        raise ValueError(
            f"nn.lora: {entry.path} is one weight of several modules, and each would need an "
            f"adapter. Say of which: {paths}"
        )
    return owners


def _refuse(chart: Chart, entry: Entry) -> NoReturn:
    """Says that what is selected has no weight, and what does."""
    inside = [e.path for e in chart.first if entry.holds(e) and e.role == "parameter"]
    remedy = f"Select the weights themselves: {', '.join(map(repr, inside[:4]))}"
    if not inside:
        remedy = "Select layers that have one, such as '**.q_proj'"
    raise ValueError(
        f"nn.lora: {entry.path or 'the model'} is {entry.cls.__name__}, which has no matrix called "
        f"'weight' of its own. {remedy}"
    )


# -- putting them there ---------------------------------------------------------------------------


def _wrapped(survey: Survey, entry: Entry, names: list[str], options: dict[str, Any]) -> Any:
    """A layer with adapters beside some of its weights."""
    (layer,) = survey.values([entry])
    where = f"{type(survey.tree).__name__}.{entry.path}".removesuffix(".")
    made = layer
    for name in names:
        try:
            made = LoRA(made, name, **options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"nn.lora: {where}: {error}") from None
    leaves, structure = flatten_module(made)
    # Of what is new, the adapters come first and their dropout last.
    paths = [path for path, _, node in structure.walk() if type(node) is Structure]
    mode = note_of(layer).mode
    new = {*paths[: len(names)], *(paths[-1:] if made.dropout is not None else ())}

    def note(path: tuple[Any, ...], node: Structure) -> Note:
        return node.note._replace(mode=mode) if path in new else node.note

    return unflatten_module(structure.renote(note), leaves, layer._rng)


def _frozen(model: Any) -> Any:
    """The model with all frozen but the adapters."""
    survey = Survey(model)
    owners = survey.chart.owners
    rest = [
        entry
        for entry in survey.present(survey.chart.first)
        if entry.role == "parameter" and not _is_adapter(entry, owners[entry.start])
    ]
    return Selection(survey, rest, single=False).freeze()


def _is_adapter(entry: Entry, owner: Any) -> bool:
    return _is_lora(owner) and entry.path.rpartition(".")[2] in ("lora_A", "lora_B")
