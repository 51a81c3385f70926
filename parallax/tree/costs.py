"""What a call of a module computes, module by module, found without computing it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from parallax._compat import checkpoints
from parallax._compat.fakes import Saved
from parallax.core.module_structure import spec_of
from parallax.core.registry import flatten_module, unflatten_module
from parallax.core.structure import Structure
from parallax.effects.collection import Collection, source_of
from parallax.effects.running import run
from parallax.effects.watches import Watch
from parallax.tree import core
from parallax.tree.standins import StandIns
from parallax.tree.table import Table

__all__ = ["Cost", "Costs", "costs_of"]


class Cost(NamedTuple):
    """What the calls of one module compute, and of the modules below it.

    Attributes:
        path: where it stands; ``""`` is the module that was called.
        owner: its class.
        output: the shapes of what its last call returned; ``""`` if it was never called.
        calls: how often it was called.
        parameters: how many numbers its parameters hold.
        flops: floating-point operations.
        activations: bytes that autograd keeps for a backward; ``None`` where that is not known,
            as the call itself takes derivatives.
    """

    path: str
    owner: str
    output: str
    calls: int
    parameters: int
    flops: int
    activations: int | None


class Costs(Table):
    """What ``tree.summary`` returns of a call: rows and totals that print as a table.

    Attributes:
        rows: one for each module but the outermost, in the order of the tree.
        total: that of the outermost module: of the whole call.
    """

    def __init__(self, rows: list[Cost], total: Cost, max_rows: int) -> None:
        self.rows = rows
        self.total = total
        super().__init__(
            ("path", "class", "output", "parameters", "FLOPs", "activations"),
            [_cells(row) for row in rows],
            (f"total: {total.owner}", "", *_cells(total)[2:]),
            columns=range(6),
            numbers=(3, 4, 5),
            left_out=(1, 5, 3),
            max_rows=max_rows,
            noun="modules",
        )


def _cells(row: Cost) -> tuple[str, ...]:
    output = f"{row.output} x{row.calls}" if row.calls > 1 else row.output
    kept = "" if row.activations is None else f"{row.activations:,}"
    return row.path, row.owner, output, f"{row.parameters:,}", f"{row.flops:,}", kept


class _Measure(Watch):
    """Adds up what modules compute between a call and its return."""

    enters: ClassVar[bool] = True

    def __init__(self, paths: Iterable[str], flops: FlopCounterMode, saved: Saved) -> None:
        super().__init__(paths)
        self.flops = flops
        self.saved = saved
        self.begun: list[tuple[str, int, int]] = []
        self.found: dict[str, tuple[str, int, int, int]] = {}

    def called(self, path: str) -> None:
        """A call begins."""
        self.begun.append((path, self.flops.get_total_flops(), self.saved.nbytes))

    def returned(
        self,
        path: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        collection: Collection,
    ) -> None:
        """A call ends."""
        _, flops, nbytes = self.begun.pop()
        _, calls, earlier, kept = self.found.get(path, ("", 0, 0, 0))
        flops = earlier + self.flops.get_total_flops() - flops
        self.found[path] = _shapes(out), calls + 1, flops, kept + self.saved.nbytes - nbytes


def _shapes(out: Any) -> str:
    leaves = [leaf for leaf in core.opened(out)[0] if isinstance(leaf, Tensor)]
    return ", ".join([str(tuple(leaf.shape)) for leaf in leaves])


def costs_of(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], max_rows: int) -> Costs:
    """The costs of ``module(*args, **kwargs)``.

    Raises:
        RuntimeError: if the call looks at numbers.
    """
    try:
        found, known = _measured(module, args, kwargs, keeps=True), True
    except RuntimeError as error:
        if not checkpoints.is_hook_refusal(error):
            raise
        found, known = _measured(module, args, kwargs, keeps=False), False
    structure = spec_of(module)
    parameters = _parameters(structure, flatten_module(module)[0])
    rows = []
    for path, node in structure.modules().items():
        shapes, calls, flops, nbytes = found.get(path, ("", 0, 0, 0))
        kept = nbytes if known else None
        rows.append(Cost(path, node.cls.__name__, shapes, calls, parameters[path], flops, kept))
    return Costs(rows[1:], rows[0], max_rows)


def _measured(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], keeps: bool
) -> dict[str, tuple[str, int, int, int]]:
    """By path: the shapes of the output, calls, operations and bytes."""
    stand_ins = StandIns(module, args, kwargs)
    leaves, structure = flatten_module(stand_ins.of(module))
    given, named = stand_ins.of(args), stand_ins.of(kwargs)
    # Shapes do not depend on a key: a model that draws needs none here.
    rng = source_of(stand_ins.of(module)._rng) or stand_ins.source()
    flops = FlopCounterMode(display=False)
    with ExitStack() as stack:
        stack.enter_context(stand_ins.running("tree.summary"))
        stack.enter_context(torch.enable_grad())
        taken = [
            leaf.detach().requires_grad_(leaf.is_floating_point() or leaf.is_complex())
            if train and leaf is not None
            else leaf
            for leaf, train in zip(leaves, structure.trainable, strict=True)
        ]
        inputs = [leaf for leaf in core.opened((given, named))[0] if isinstance(leaf, Tensor)]
        saved = Saved([leaf for leaf in [*taken, *inputs] if isinstance(leaf, Tensor)])
        if keeps:
            stack.enter_context(saved.hooks())
        paths = tuple(structure.modules())
        measure = _Measure(paths, flops, saved)
        collection = Collection([], None, watches=(measure,))
        stack.enter_context(flops)
        run(
            lambda model: model(*given, **named),
            unflatten_module(structure, taken, rng),
            collection,
            (),
            {},
            paths,
        )
    return measure.found


def _parameters(structure: Structure, leaves: tuple[Any, ...]) -> dict[str, int]:
    """By a module's path, how many numbers the parameters at and below it hold, tied ones once."""
    places = structure.leaf_at
    found = {}
    for path, start, node in structure.walk():
        if type(node) is not Structure:
            continue
        own = {places[k] for k in range(start, start + node.n_places)}
        found[".".join(map(str, path))] = sum(
            [
                leaves[k].numel()
                for k in own
                if structure.roles[k] == "parameter" and leaves[k] is not None
            ]
        )
    return found
