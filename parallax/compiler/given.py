"""What one graph writes into the memory of its donated arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import in_trace, shards
from parallax._compat.memory import storage_of
from parallax.compiler.donation import Donation, may_be_written
from parallax.compiler.packing import ITEM, placed
from parallax.core.structure import Structure

__all__ = ["Given", "overwrite"]

# One node for dynamo; AOTAutograd sees single copies, into which inductor can compute right away.
_library = torch.library.Library("parallax", "FRAGMENT")
_library.define("overwrite(Tensor(a!)[] leaves, Tensor[] results) -> ()")


def _overwrite(leaves: list[Tensor], results: list[Tensor]) -> None:
    for leaf, result in zip(leaves, results, strict=True):
        leaf.copy_(result)


_library.impl("overwrite", _overwrite, "CompositeImplicitAutograd")
overwrite: Callable[..., None] = torch.ops.parallax.overwrite.default


class Given:
    """The leaves of one graph that are given away, and those that results are written into.

    Args:
        donation: which arguments are given away.
        tokens: those of the call.
        items: those of the call.
        own: the positions of the leaves among the items.
        others: those of the other items. Distributed tensors are among them.

    Attributes:
        distributed: which of the other items are counted after the leaves.
    """

    def __init__(
        self,
        donation: Donation,
        tokens: Any,
        items: Sequence[Any],
        own: Sequence[int],
        others: Sequence[int],
    ) -> None:
        given = donation.positions(tokens)
        self.distributed = [
            n for n, k in enumerate(others) if k in given and may_be_written(items[k])
        ]
        own = [*own, *[others[n] for n in self.distributed]]
        self._donation = donation
        taken = [(token, k) for token, k in placed(tokens[2:]) if k in given]
        self._bare = [k for token, k in taken if token is ITEM]
        self._modules = [(token, k) for token, k in taken if type(token) is Structure]
        self._tensors = [k for k, item in enumerate(items) if isinstance(item, Tensor)]
        self._own = own
        # What a trace may write into; fewer after the first, for only those are looked at by then.
        self._leaves = [n for n, k in enumerate(own) if k in given and may_be_written(items[k])]
        self._traced = False
        self._name_positions()

    def _name_positions(self) -> None:
        self._written = [self._own[leaf] for leaf in self._leaves]
        written = set(self._written)
        self._read = [k for k in self._tensors if k not in written]

    @property
    def written(self) -> list[int]:
        """The leaves that the graph writes into, once it is traced."""
        return self._leaves if self._traced else []

    def restore(self, written: list[int]) -> None:
        """Takes what a trace in another process has found."""
        self._leaves, self._traced = list(written), True
        self._name_positions()

    # -- at each call ---------------------------------------------------------------------------

    def secured(self, items: Sequence[Any]) -> Sequence[Any]:
        """The items, with copies of what is to be written and has not its memory to itself."""
        if not self._written:
            return items
        return self._donation.own(items, self._written, self._read)

    def apart(self, items: Sequence[Any], results: list[Any]) -> list[Any]:
        """The results, none of which is a tensor that is given away and will be marked as such."""
        if not self._bare:
            return results
        gone = {id(items[k]) for k in self._bare}
        return [result.detach() if id(result) in gone else result for result in results]

    def finish(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Makes what was given away unusable."""
        self._donation.finish(args, kwargs)

    # -- while dynamo traces --------------------------------------------------------------------

    def pairing(self) -> Callable[[Any], None]:
        """What a trace calls last, with its context, to be told which result goes where.

        Of the lists ``into`` and ``made`` it leaves the leaves that are written, and what is
        written there; ``done`` are the results, with those leaves in their places.
        """

        def arrange(context: Any) -> None:  # dynamo calls no method here
            pairs = self._pairs(context)
            if not self._traced:
                self._leaves, self._traced = sorted({leaf for leaf, _ in pairs}), True
                self._name_positions()
            written = dict(pairs)
            in_trace.keep_items(context, "into", written)
            in_trace.keep_items(context, "made", written.values())
            in_trace.replace(context, "done", "known", pairs)

        return arrange

    def _pairs(self, context: Any) -> list[tuple[int, int]]:
        """Which leaf's memory each result gets.

        A leaf in whose memory any result lies is left alone; all are, if one cannot be looked into.
        """
        leaves = in_trace.tensors_of(context, "known")
        results = in_trace.tensors_of(context, "results")
        plain = all([in_trace.is_plain(_held(seen.value)) for seen in results if seen is not None])
        if not plain or in_trace.is_opaque(context, "results"):
            return []
        outside = {_storage(leaf.value) for leaf in leaves if leaf is not None}
        used = {_storage(result.value) for result in results if result is not None}
        free = {
            index: _kind(leaf.value)
            for index, leaf in enumerate(leaves)
            if index in self._leaves and leaf is not None and _storage(leaf.value) not in used
        }
        taken: dict[int, int] = {}  # by result, which may stand in several places

        def take(result: Any, options: Iterable[int]) -> None:
            if result is None or id(result.node) in taken or _storage(result.value) in outside:
                return
            kind = _kind(result.value)
            leaf = next((k for k in options if kind is not None and free.get(k) == kind), None)
            if leaf is not None:
                taken[id(result.node)] = leaf
                del free[leaf]

        # First what is in a module goes where such a module was, then the rest where there is room.
        for place, leaf in self._alike(in_trace.items(context, "tokens")):
            take(results[place], [leaf])
        for result in results:
            take(result, list(free))
        return [
            (taken[id(result.node)], place)
            for place, result in enumerate(results)
            if result is not None and id(result.node) in taken
        ]

    def _alike(self, tokens: Sequence[Any]) -> Iterator[tuple[int, int]]:
        """Places in the results, and the leaves that are there in a module of the same skeleton."""
        leaf_at = {k: leaf for leaf, k in enumerate(self._own)}
        left = list(self._modules)
        for token, start in placed(tokens):
            if type(token) is not Structure:
                continue
            for entry in left:
                module, first = entry
                if module.skeleton == token.skeleton:
                    left.remove(entry)
                    for k in range(len(token.first)):
                        if first + k in leaf_at:
                            yield start + k, leaf_at[first + k]
                    break


def _held(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return shards.local_of(value) if shards.is_distributed(value) else value


def _storage(value: Tensor) -> int:
    return storage_of(_held(value))


def _kind(value: Tensor) -> Any:
    """What two tensors have in common of which one can take the memory of the other."""
    held = _held(value)
    numbers = (*held.shape, *held.stride())
    if value.requires_grad or not all([type(number) is int for number in numbers]):
        return None
    return numbers, held.ndim, held.dtype, held.device, shards.spread_of(value)
