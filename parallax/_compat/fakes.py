"""Running code on stand-ins for tensors, which have shapes, dtypes and devices but no numbers.

``FakeTensorMode`` is private, as are the errors of operators that ask for numbers.
"""

# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses import fake_tensor

from parallax._compat.functorch import is_wrapped
from parallax._compat.memory import storage_of

__all__ = ["Fakes", "Saved", "needs_numbers", "on_meta"]


def needs_numbers() -> tuple[type[Exception], ...]:
    """What operators raise whose results depend on the numbers in their arguments.

    Asked for when something was raised: one of these loads sympy, which takes longer than all of
    Parallax (0.26 s).
    """
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return (
        fake_tensor.DataDependentOutputException,
        fake_tensor.DynamicOutputShapeException,
        fake_tensor.UnsupportedOperatorException,
        GuardOnDataDependentSymNode,
    )


class Fakes:
    """Stand-ins for tensors; one tensor has one stand-in.

    Attributes:
        mode: within it all operators run on stand-ins; real tensors that come in get one, too.
        device: of the stand-ins for tensors on the meta device.
    """

    def __init__(self, device: torch.device) -> None:
        self.mode: Any = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
        self.device = device
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """The stand-in of a tensor, without a graph."""
        found = self._known.get(id(tensor))
        if found is None:
            found = self._known[id(tensor)] = tensor, self._made(tensor)
        return found[1]

    def _made(self, tensor: Tensor) -> Tensor:
        if tensor.device.type != "meta" and not is_wrapped(tensor):
            made: Tensor = self.mode.from_tensor(tensor.detach())
            return made
        device = self.device if tensor.device.type == "meta" else tensor.device
        with self.mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The stand-in of a tensor that is not there yet."""
        with self.mode:
            return torch.empty(shape, dtype=dtype, device=self.device)


def on_meta(tensor: Tensor) -> Tensor:
    """A plain tensor on the meta device of the same shape, strides and dtype."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


class Saved:
    """Counts the bytes that autograd keeps for a backward, each storage once.

    Args:
        apart: tensors whose storages are not counted.
    """

    def __init__(self, apart: list[Tensor]) -> None:
        self.nbytes = 0
        # The storages are held: else another one might come to have the number of one that is gone.
        self._seen = {storage_of(tensor): tensor for tensor in apart}

    def hooks(self) -> Any:
        """A context manager, within which what autograd keeps is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        number = storage_of(tensor)
        if number not in self._seen:
            self._seen[number] = tensor
            self.nbytes += tensor.untyped_storage().nbytes()
        return tensor
