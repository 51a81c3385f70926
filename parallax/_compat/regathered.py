"""What was gathered is not kept for backward: it is gathered again there.

Autograd saves tensors for backward, weights among them. While ``Regathered`` is entered, it is told
to save of each gathered tensor only which one it is; backward gathers all of them again when it
first needs one, and lets them go when it has their gradients.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from parallax._compat import checkpoints, collectives, dynamo, shards

__all__ = ["Regathered"]


class _Again:
    """The parts of a bucket's tensors, which are put together when one of them is needed."""

    __slots__ = ("bucket", "parts", "wholes")

    def __init__(self, bucket: collectives.Bucket, parts: list[Tensor]) -> None:
        self.bucket = bucket
        self.parts = parts
        self.wholes: list[Tensor] | None = None

    def whole(self, k: int) -> Tensor:
        """What this process holds of a whole tensor."""
        if self.wholes is None:
            with torch.no_grad():
                self.wholes = collectives.all_gathered(self.bucket, self.parts)
        return self.wholes[k]

    def forget(self) -> None:
        """Lets the whole tensors go."""
        self.wholes = None


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
        buckets = collectives.buckets_of(self._leaves, self._name)
        if not buckets:
            return found
        self._table: dict[int, Any] = {}
        self._wholes: list[tuple[Tensor, int]] = []
        for bucket in buckets:
            again = _Again(bucket, [shards.local_of(self._leaves[k]) for k in bucket.places])
            wholes = collectives.joined(bucket, again.forget, self._leaves)
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
            memory = local.untyped_storage()._cdata
            # In a mesh of one process all are views of one.
            self._table[memory] = None if memory in self._table else (again, k)

    def _pack(self, tensor: Tensor) -> Any:
        inner: Any = tensor
        local = inner._local_tensor if shards.is_distributed(tensor) else tensor
        if type(local) in (Tensor, torch.nn.Parameter):
            found = self._table.get(local.untyped_storage()._cdata)
            if found is not None:
                geometry = local.shape, local.stride(), local.storage_offset()
                again, k = found
                return _Saved(again, k, geometry, None if local is tensor else inner._spec)
        return tensor if self._around is None else self._around._pack(tensor)

    @staticmethod
    def _unpack(saved: Any) -> Tensor:
        return saved.restored() if type(saved) is _Saved else saved
