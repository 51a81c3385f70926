"""The losses of many copies of a model, added: the gradient of the sum holds that of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax.func.call import Argnums, Call
from parallax.func.differentiated import filled, path_of
from parallax.func.grad import scalar_and_aux
from parallax.func.nesting import Nesting
from parallax.func.results import open_tensors
from parallax.func.tape import gradient_by_tape
from parallax.func.vmap import Batch, run_flat

__all__ = ["Chunk", "Summed"]


class Summed:
    """The losses of all, as a function of one copy of each leaf for each loss.

    Attributes:
        batch: the arguments, every leaf that moves mapped.
        places: where the leaves that move are among the mapped tensors.
    """

    __slots__ = ("batch", "call", "closing", "has_aux", "nesting", "places")

    closing: tuple[Callable[[Sequence[Any]], Any], int]

    def __init__(
        self,
        func: Callable[..., Any],
        what: str,
        argnums: Argnums,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        dims: tuple[Any, ...],
        has_aux: bool,
    ) -> None:
        self.nesting = nesting = Nesting(func, args, kwargs)
        self.call = Call(nesting.func, what, argnums, nesting.args, nesting.kwargs)
        self.has_aux = has_aux
        moving = dict(zip(self.call.indices, self.call.parts, strict=True))
        self.batch = Batch(self.call.args, dims, what, moving)
        mapped = {part.index: part for part in self.batch.parts}
        self.places: list[int] = []
        for index, part in moving.items():
            where = {place: k for k, place in enumerate(mapped[index].places, mapped[index].start)}
            self.places += [where[place] for place in part.places]

    def nbytes(self, chunk_size: int | None) -> int:
        """How much a copy of each leaf for each loss of a chunk takes."""
        whole = sum([self.batch.tensors[place].nbytes for place in self.places])
        size = self.batch.size
        return whole if chunk_size is None or chunk_size >= size else whole * chunk_size // size

    def gradients(self, chunk_size: int | None) -> Any:
        """The stacked gradients, with the stacked ``aux`` if there is one.

        Raises:
            SecondOrderError: if ``func`` takes derivatives itself.
        """
        # The cotangent of each loss is one, so it is their sum that is differentiated.
        found = [gradient_by_tape(chunk, _as_it_is, False) for chunk in self.chunks(chunk_size)]
        dims = [self.batch.dims[place] for place in self.places]
        grads = _joined([grads for grads, _, _ in found], dims)
        trees = self.call.trees(
            [g.movedim(d, 0) if d else g for g, d in zip(grads, dims, strict=True)]
        )
        aux = self.aux([beside or [] for _, _, beside in found])
        return (trees, aux) if self.has_aux else trees

    def chunks(self, chunk_size: int | None) -> list[Chunk]:
        """The losses in chunks of at most a size; one chunk of none where there are none."""
        size = self.batch.size
        step = max(size, 1) if chunk_size is None else chunk_size
        starts = range(0, max(size, 1), step)
        return [Chunk(self, start, min(step, size - start)) for start in starts]

    def aux(self, columns: list[list[Tensor]]) -> Any:
        """The stacked ``aux``, from what came beside the losses of each chunk; relays effects."""
        close, count = self.closing
        tensors = _joined(columns)
        self.nesting.relay(tensors[count:], self.batch.aside())
        return close(tensors[:count])

    def path(self, k: int) -> str:
        """The dotted path of a leaf that is differentiated, for error messages."""
        for part in self.call.parts:
            if k < len(part.places):
                return path_of(part.tree, part.places[k]) or "the tensor"
            k -= len(part.places)
        raise IndexError(k)

    def losses(self, members: Sequence[Tensor]) -> list[Tensor]:
        """The loss of one member, and the tensors that come beside it."""
        call = self.call
        result = self.nesting.call(self.batch.around(members))
        loss, aux = scalar_and_aux(result, call.what, self.has_aux)
        beside, close = open_tensors(aux, call.what)
        self.closing = close, len(beside)
        return [loss, *beside, *self.nesting.emitted()]


class Chunk:
    """Some of the losses, to be differentiated as one."""

    __slots__ = ("size", "summed", "tensors", "values", "what")

    def __init__(self, summed: Summed, start: int, size: int) -> None:
        self.summed = summed
        self.what = summed.call.what
        self.size = size
        batch = summed.batch
        self.tensors = batch.tensors
        if size < batch.size:
            pairs = zip(batch.tensors, batch.dims, strict=True)
            self.tensors = [tensor.narrow(dim, start, size) for tensor, dim in pairs]
        self.values = [self.tensors[place] for place in summed.places]

    def at(self, values: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor] | None]:
        """The losses at these copies, and what came beside them."""
        loss, beside = self.mapped(self.summed.losses, values)
        return loss, beside or None

    def mapped(
        self, losses: Callable[[Sequence[Tensor]], list[Tensor]], values: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """As ``at``, by a function of the members of all mapped tensors."""
        tensors = filled(list(self.tensors), self.summed.places, values)
        found = run_flat(losses, tensors, self.summed.batch.dims, self.size, "error")
        return found[0], found[1:]


def _as_it_is(result: Any) -> Any:
    return result


def _joined(columns: list[list[Tensor]], dims: Sequence[int] | None = None) -> list[Tensor]:
    """The tensors of all chunks, one after the other."""
    if len(columns) == 1:
        return columns[0]
    rows = zip(*columns, strict=True)
    return [torch.cat(row, dims[k] if dims else 0) for k, row in enumerate(rows)]
