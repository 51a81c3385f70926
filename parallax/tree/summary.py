"""``summary``: a table of a module's leaves, or of what a call of it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, overload

from torch import Tensor

from parallax._compat import shards
from parallax._errors.arguments import answered, shown
from parallax.core.fields import Lazy
from parallax.core.module_structure import leaves_of, spec_of
from parallax.core.nodes import is_module
from parallax.core.structure import Structure
from parallax.tree.costs import Costs, costs_of
from parallax.tree.table import Table

__all__ = ["Row", "Summary", "summary"]


class Row(NamedTuple):
    """One leaf in a summary."""

    path: str
    owner: str
    shape: str
    dtype: str
    numel: int
    nbytes: int
    trainable: bool
    placement: str  # of a distributed leaf; else empty
    here: int  # the bytes that this process holds
    stays_eval: bool  # whether its module stays in mode "eval"


class Summary(Table):
    """What ``tree.summary`` returns of a module alone: rows and totals that print as a table.

    Attributes:
        rows: one per unique leaf.
        count: the number of elements in all of them.
        trainable: how many of those are trained.
        nbytes: their size in bytes.
        here: how many of those this process holds; all, if no leaf is distributed.
    """

    def __init__(self, rows: list[Row], max_rows: int) -> None:
        self.rows = rows
        self.count = sum(row.numel for row in rows)
        self.trainable = sum(row.numel for row in rows if row.trainable)
        self.nbytes = sum(row.nbytes for row in rows)
        self.here = sum(row.here for row in rows)
        label = f"total: {len(rows):,} leaves"
        numbers = f"{self.count:,}", f"{self.nbytes:,}", f"{self.trainable:,}"
        spread = any(row.placement for row in rows)
        stays = any(row.stays_eval for row in rows)
        super().__init__(
            (*_HEADER, "placement", "here", "mode"),
            [_cells(row) for row in rows],
            (label, "", "", "", *numbers, "", f"{self.here:,}", ""),
            columns=[*range(len(_HEADER)), *[7, 8] * spread, *[9] * stays],
            numbers=(4, 5, 8),
            left_out=(5, 1, 3, 6, 2, *[9] * stays),
            max_rows=max_rows,
            noun="leaves",
        )


_HEADER = ("path", "class", "shape", "dtype", "count", "bytes", "trainable")


def _cells(row: Row) -> tuple[str, ...]:
    trained = "yes" if row.trainable else "no"
    numbers = f"{row.numel:,}", f"{row.nbytes:,}"
    mode = "stays in eval" if row.stays_eval else ""
    return (*row[:4], *numbers, trained, row.placement, f"{row.here:,}", mode)


@overload
def summary(module: Any, *, max_rows: int = 200) -> Summary: ...
@overload
def summary(
    module: Any,
    input: Any,
    /,
    *inputs: Any,
    max_rows: int = 200,
    kwargs: Mapping[str, Any] | None = None,
) -> Costs: ...
@overload
def summary(module: Any, *, max_rows: int = 200, kwargs: Mapping[str, Any]) -> Costs: ...
@answered("tree.summary", "tree.summary(model, x, kwargs={'mask': mask})")
def summary(
    module: Any, *inputs: Any, max_rows: int = 200, kwargs: Mapping[str, Any] | None = None
) -> Summary | Costs:
    """A table of every leaf of a module, or of what a call of it computes, module by module.

    A call runs on stand-ins for tensors: nothing is computed or allocated, and no key is used up.
    The module need not be initialized, and may be a lifted one. Count in the mode and with the rng
    of a real call: ``tree.summary(model.train(key), x)``.

    Args:
        module: the module.
        *inputs: the positional arguments of a call; tensors may be on the meta device. Without
            any, the table is of leaves.
        max_rows: how many rows are printed at most; ``.rows`` has them all.
        kwargs: the arguments of the call by name.

    Returns:
        A value that prints as a table and ends with the totals; ``f"{summary:60}"`` has no line of
        more than 60 characters. Of leaves: path, class, shape, dtype, count, bytes, trainable;
        where they are distributed (``DTensor``), also how, and the bytes that this process holds.
        Of a call, for every module: path, class, shape of the output, parameters, floating-point
        operations (as ``torch.utils.flop_counter`` counts them: of matrix products, convolutions
        and attention; two for each multiplication and addition) and the bytes of the activations
        that autograd keeps for a backward, beside parameters and inputs. Each includes the modules
        below.

    Raises:
        RuntimeError: if the call looks at numbers, or has shapes that depend on them.
        TypeError: if the argument is not a module.

    Example:
        >>> import torch
        >>> from parallax import nn, tree
        >>> mlp = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> tree.summary(mlp).count
        41
        >>> print(tree.summary(mlp, torch.empty(16, 3, device="meta")))
        path               class   output   parameters  FLOPs  activations
        ------------------------------------------------------------------
        layers.0           Linear  (16, 8)          32    768            0
        layers.1           Tanh    (16, 8)           0      0          512
        layers.2           Linear  (16, 1)           9    256            0
        ------------------------------------------------------------------
        total: Sequential          (16, 1)          41  1,024          512
    """
    if not is_module(module):
        raise TypeError(
            f"tree.summary(module=): expected a module, got {type(module).__name__}. Give a "
            f"parallax.Module; to make one of an nn.Module: bridge.lift(module)"
        )
    if type(max_rows) is not int:
        raise TypeError(
            f"tree.summary(max_rows=): expected an int, got {max_rows!r}. Write, for example, "
            f"max_rows=50"
        )
    given: Any = kwargs
    if not isinstance(given, Mapping | None):
        raise TypeError(
            f"tree.summary(kwargs=): expected a dict of arguments by name, got {shown(given)}. "
            f"Write kwargs={{'mask': mask}}"
        )
    if inputs or kwargs:
        return costs_of(module, inputs, dict(kwargs or {}), max_rows)
    structure = spec_of(module)
    owners = _owners(structure)
    facts = zip(structure.paths, leaves_of(module), structure.trainable, strict=True)
    rows = [
        _row(path, *owners[path], leaf, trainable)
        for path, leaf, trainable in facts
        if leaf is not None
    ]
    return Summary(rows, max_rows)


def _row(path: str, owner: str, stays: bool, leaf: Any, trainable: bool) -> Row:
    if not isinstance(leaf, (Tensor, Lazy)):
        return Row(path, owner, "", type(leaf).__name__, 0, 0, False, "", 0, stays)
    dtype = str(leaf.dtype).removeprefix("torch.")
    mark = dtype + (" (uninitialized)" if isinstance(leaf, Lazy) else "")
    nbytes = leaf.numel() * leaf.dtype.itemsize
    spread = shards.is_distributed(leaf)
    placement = shards.shown(leaf) if spread else ""
    here = shards.local_of(leaf).nbytes if spread else nbytes
    numbers = leaf.numel(), nbytes, trainable
    return Row(path, owner, str(tuple(leaf.shape)), mark, *numbers, placement, here, stays)


def _owners(structure: Structure) -> dict[str, tuple[str, bool]]:
    """For each leaf's path the class of the module it belongs to, and if that stays in eval."""
    owners: dict[str, tuple[str, bool]] = {}
    modules: dict[tuple[Any, ...], tuple[str, bool]] = {}
    for path, _, node in structure.walk():
        if type(node) is Structure:
            is_own = hasattr(node.cls, "__layout__")
            own = (node.cls.__name__, node.note.stays_eval) if is_own else ("", False)
            modules[path] = own if is_own else modules.get(path[:-1], own)
        else:
            owners[".".join(map(str, path))] = modules[path[:-1]]
    return owners
