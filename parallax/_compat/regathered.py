"""Gathered tensors are not kept for backward, which gathers them again.

Autograd saves tensors for backward, weights among them. While ``Regathered`` is entered, it is told
to save of each gathered tensor only which one it is; backward gathers all of them again when it
first needs one, and lets them go when it has their gradients.

Of these gradients none waits for the others, either: each is written, when backward has it, into
what is reduced and scattered at last. So there are two kinds of nodes in the graph. Those of the
whole tensors (``_Whole``) take the gradients and hand on none; the one above them (``_Parts``), to
which backward comes when it has passed all of them, hands on those of the parts.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from parallax._compat import buckets, checkpoints, collectives, dynamo, shards
from parallax._compat.memory import storage_of

__all__ = ["Regathered"]


class _Again:
    """The tensors of a bucket in a call: their parts, and what backward makes of them."""

    __slots__ = ("_grads", "_wholes", "bucket", "parts")

    def __init__(self, bucket: buckets.Bucket, parts: list[Tensor]) -> None:
        self.bucket = bucket
        self.parts = parts
        self._wholes: list[Tensor] | None = None
        self._grads: dict[int, _Gradients] = {}

    def whole(self, k: int) -> Tensor:
        """What this process holds of a whole tensor, put together when one is needed."""
        if self._wholes is None:
            with torch.no_grad():
                self._wholes = buckets.all_gathered(self.bucket, self.parts)
        return self._wholes[k]

    def take(self, k: int, grad: Tensor) -> None:
        """Takes the gradient of a whole tensor."""
        task = torch._C._current_graph_task_id()  # one backward may run beside another
        if task not in self._grads:
            self._grads[task] = _Gradients(self.bucket)
        self._grads[task].take(k, grad)

    def finish(self) -> dict[int, Tensor]:
        """The gradients of the parts, of those that were taken; lets the whole tensors go."""
        self._wholes = None
        grads = self._grads.pop(torch._C._current_graph_task_id(), None)
        return {} if grads is None else grads.of_parts()


class _Gradients:
    """The gradients of a bucket's whole tensors, as one backward has them one by one."""

    __slots__ = ("_bucket", "_flat", "_others", "_placements")

    def __init__(self, bucket: buckets.Bucket) -> None:
        self._bucket = bucket
        self._flat: buckets.Flat | None = None
        self._placements: dict[int, Any] = {}  # of those in the flat tensor
        self._others: dict[int, Tensor] = {}

    def take(self, k: int, grad: Any) -> None:
        """Takes the gradient of a tensor: a term of a sum, or whatever backward computed."""
        bucket = self._bucket
        if torch.is_grad_enabled() or not grad.placements[bucket.dim].is_partial("sum"):
            self._others[k] = grad
            return
        placements = buckets.waiting(bucket, k, grad)
        term = buckets.as_placed(grad, bucket.mesh, placements)._local_tensor
        if self._flat is None:
            self._flat = buckets.Flat(bucket, term)
        if self._flat.fits(term):
            self._flat.put(k, term)
            self._placements[k] = placements
        else:
            self._others[k] = grad

    def of_parts(self) -> dict[int, Tensor]:
        """The gradients of the parts."""
        bucket, found = self._bucket, {}
        if self._others:
            grads = collectives.gradients_of_parts(
                bucket.of([*self._others]), [*self._others.values()]
            )
            found = dict(zip(self._others, grads, strict=True))
        if self._placements and self._flat is not None:
            sums = self._flat.scattered()
            parts = [buckets.as_part(bucket, k, sums[k], at) for k, at in self._placements.items()]
            like = [bucket.parts[k] for k in self._placements]
            found.update(zip(self._placements, buckets.placed(parts, like), strict=True))
        return found


class _Parts(torch.autograd.Function):
    """From the parts to an empty tensor, from which the whole ones are said to come."""

    @staticmethod
    def forward(ctx: Any, again: _Again, *leaves: Any) -> Tensor:
        ctx.again = again
        ctx.set_materialize_grads(False)
        return again.parts[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, *_: None) -> Any:
        found = ctx.again.finish()
        return None, *[
            found.get(k) if needed else None for k, needed in enumerate(ctx.needs_input_grad[1:])
        ]


class _Whole(torch.autograd.Function):
    """A whole tensor, of which the gradient goes to the others of its bucket."""

    @staticmethod
    def forward(ctx: Any, again: _Again, k: int, whole: Tensor, _: Tensor) -> Tensor:
        ctx.again, ctx.k = again, k
        ctx.set_materialize_grads(False)
        return shards.with_spec(whole, again.bucket.wholes[k])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if grads[0] is not None:
            ctx.again.take(ctx.k, grads[0])
        return None, None, None, None


class _Saved(NamedTuple):
    """What is saved in the place of a view of a whole tensor.

    Attributes:
        again: what puts it together.
        k: which tensor of its bucket.
        geometry: sizes, strides and offset of the view.
        spec: as what it is distributed; ``None`` if it is plain.
    """

    again: _Again
    k: int
    geometry: tuple[Any, Any, Any]
    spec: Any

    def restored(self) -> Tensor:
        """The view."""
        local = self.again.whole(self.k).as_strided(*self.geometry)
        return local if self.spec is None else shards.with_spec(local, self.spec)


def _wholes_of(again: _Again, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The whole tensors of a bucket, those of leaves that are trained with a graph."""
    with torch.no_grad():
        wholes = buckets.all_gathered(again.bucket, again.parts)
    above = _Parts.apply(again, *leaves)  # type: ignore[no-untyped-call]  # it is torch's
    return [
        _Whole.apply(again, k, whole, above)  # type: ignore[no-untyped-call]  # it is torch's
        if leaf.requires_grad
        else shards.with_spec(whole, again.bucket.wholes[k])
        for k, (leaf, whole) in enumerate(zip(leaves, wholes, strict=True))
    ]


class Regathered:
    """Within it, tensors are put together, and their parts are saved for backward.

    Where a graph is recorded by another than autograd's tape, or somebody else says what is saved
    (``torch.utils.checkpoint``), whole tensors are saved, or what that one says.

    Args:
        leaves: distributed tensors or others.
        name: the dimension of their mesh along which they are put together.
    """

    __slots__ = ("_around", "_hooks", "_leaves", "_name", "_table", "_wholes")

    def __init__(self, leaves: Sequence[Tensor], name: str) -> None:
        self._leaves = leaves
        self._name = name
        self._hooks: Any = None

    def __enter__(self) -> list[Tensor]:
        """The tensors, put together."""
        if not self._is_possible():
            return collectives.gathered(self._leaves, self._name)
        found = list(self._leaves)
        chosen = buckets.known_buckets_of(self._leaves, self._name)
        if not chosen:
            return found
        self._table: dict[int, Any] = {}
        self._wholes: list[tuple[Tensor, int]] = []
        for bucket in chosen:
            leaves = [self._leaves[k] for k in bucket.places]
            again = _Again(bucket, [shards.local_of(leaf) for leaf in leaves])
            wholes = _wholes_of(again, leaves)
            for k, (place, whole) in enumerate(zip(bucket.places, wholes, strict=True)):
                found[place] = whole
                self._remember(again, k, whole)
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()
        return found

    def __exit__(self, *_: object) -> None:
        if self._hooks is None:
            return
        self._hooks.__exit__()
        written = any([whole._version != version for whole, version in self._wholes])
        self._table.clear()
        self._wholes.clear()
        if written:
            raise RuntimeError(
                "a parameter was written in place in the forward of a part that fsdp gathers. "
                "Compute a new tensor instead: w = 2 * self.weight, not self.weight.mul_(2)"
            )

    def _is_possible(self) -> bool:
        if not torch.is_grad_enabled() or dynamo.is_compiling():
            return False
        if torch._C._are_functorch_transforms_active():
            return False
        top = checkpoints.top_hooks()
        self._around = None if top is None else getattr(top[0], "__self__", None)
        return top is None or type(self._around) is Regathered

    def _remember(self, again: _Again, k: int, whole: Tensor) -> None:
        """Has views of a whole tensor recognized, by their memory."""
        self._wholes.append((whole, whole._version))  # torch counts no writes into what is local
        local = shards.local_of(whole)
        if type(local) is Tensor:  # of this process alone, as it is but in tests
            memory = storage_of(local)
            # In a mesh of one process all are views of one.
            self._table[memory] = None if memory in self._table else (again, k)

    def _pack(self, tensor: Tensor) -> Any:
        inner: Any = tensor
        local = inner._local_tensor if shards.is_distributed(tensor) else tensor
        if type(local) in (Tensor, torch.nn.Parameter):
            found = self._table.get(storage_of(local))
            if found is not None:
                geometry = local.shape, local.stride(), local.storage_offset()
                again, k = found
                return _Saved(again, k, geometry, None if local is tensor else inner._spec)
        return tensor if self._around is None else self._around._pack(tensor)

    @staticmethod
    def _unpack(saved: Any) -> Tensor:
        return saved.restored() if type(saved) is _Saved else saved
