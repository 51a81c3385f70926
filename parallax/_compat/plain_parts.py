"""A function of distributed tensors computed with the plain tensors of each process.

Torch takes longer to find out how the result of an operator is cut than a small operator takes. A
function whose operators all compute each process's part from its parts alone, as a network does
with a batch that is cut, needs to be asked about once: ``rehearsed`` runs it on fake tensors,
with distributed tensors and with plain ones, and compares the operators that the process would run.
Where they are the same, in the same order and with the same numbers, so are the results, and plain
tensors may take the place. ``entering`` and ``leaving`` are the edges, with their derivatives.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from parallax._compat import buckets, shards
from parallax._compat.drawing import is_draw
from parallax._compat.operands import memory_of

__all__ = ["are_simply_run", "entering", "gradient_specs", "leaving", "rehearsed"]

_NUMBERS = (int, float, bool, complex, str, type(None))


def are_simply_run() -> bool:
    """Whether operators are run, with nobody who traces, transforms or watches them."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and not torch.is_inference_mode_enabled()
        and not torch._C._is_any_autocast_enabled()
        and torch._C._get_tracing_state() is None
    )


# -- whether plain tensors give the same ----------------------------------------------------------


class _OtherError(Exception):
    """An operator was met that plain tensors cannot have the place of distributed ones in."""


class _Operators(TorchDispatchMode):
    """The operators that this process runs, and what they are given."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # it is torch's
        self.met: list[Any] = []
        self.given = {memory_of(tensor) for tensor in given}
        self._numbers = {id(tensor): k for k, tensor in enumerate(given)}
        self._held: list[Tensor] = []  # so that no other tensor gets the id of one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_draw(func, args, kwargs or {}):
            raise _OtherError
        if any([shards.is_distributed_class(kind) for kind in types]):
            return NotImplemented  # its own operators come next
        if func.namespace == "prim":  # a question
            return func(*args, **(kwargs or {}))
        if func.namespace not in ("aten", "prims"):  # a collective
            raise _OtherError
        if func._schema.is_mutable and not self._writes_its_own(func, args):
            raise _OtherError
        values, spec = tree_flatten((args, kwargs or {}))
        told = [self._told(value) for value in values]
        found = func(*args, **(kwargs or {}))
        self.met.append((func, spec, told))
        for one in tree_flatten(found)[0]:
            if isinstance(one, Tensor):
                self._held.append(one)
                self._numbers[id(one)] = len(self._numbers)
        return found

    def _writes_its_own(self, func: Any, args: Sequence[Any]) -> bool:
        """Whether an operator in place writes, as its first argument, what was made before it."""
        told = [one.alias_info for one in func._schema.arguments]
        writes = [k for k, alias in enumerate(told) if alias is not None and alias.is_write]
        return writes == [0] and memory_of(args[0]) not in self.given

    def _told(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return type(value), value
        if id(value) not in self._numbers:
            raise _OtherError
        return self._numbers[id(value)], value.shape, value.dtype


def rehearsed(
    run: Callable[[Sequence[Tensor]], Any], specs: Sequence[Any], parts: Sequence[Tensor]
) -> list[Any] | None:
    """How the results are cut, if plain tensors give them; nothing is computed or communicated.

    Args:
        run: the function; it is called three times, and must depend on nothing else.
        specs: torch's description of each distributed tensor.
        parts: what this process holds of each.

    Returns:
        For each value of the result torch's description, or a list with the value if it is no
        tensor. ``None`` if plain tensors do not do.
    """
    fake = FakeTensorMode()
    with fake:
        fakes = [
            torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device=part.device)
            for part in parts
        ]
    spread = [shards.with_spec(*pair) for pair in zip(fakes, specs, strict=True)]
    first, one, two = (_Operators(fakes) for _ in range(3))
    try:
        with fake, first:  # torch finds out how results are cut, by operators of its own
            run(spread)
        with fake, one:
            wholes, structure = tree_flatten(run(spread))
        with fake, two:
            plain, other = tree_flatten(run(fakes))
    except Exception:  # whatever stops it: it is run on distributed tensors, which says the same
        return None
    if one.met != two.met or structure != other:
        return None
    varies = _cut_dims(specs)
    found: list[Any] = []
    for whole, local in zip(wholes, plain, strict=True):
        if isinstance(local, Tensor) and shards.is_distributed(whole):
            spec = whole._spec
            if (
                memory_of(local) in one.given  # a view of what it was given
                or whole._local_tensor.shape != local.shape
                or _cut_dims([spec]) != varies
            ):
                return None
            found.append(spec)
        elif type(local) in _NUMBERS and type(whole) is type(local) and whole == local:
            found.append([local])
        else:
            return None
    return found


def _cut_dims(specs: Sequence[Any]) -> set[int]:
    """The dimensions of the mesh along which one of these is cut."""
    return {k for spec in specs for k, at in enumerate(spec.placements) if at.is_shard()}


def gradient_specs(specs: Sequence[Any]) -> list[Any]:
    """How the gradients of what a function is given are cut, from how that is.

    What is whole while something else is cut has in each process the gradient of that process's
    part: a term of a sum.
    """
    from torch.distributed.tensor import Partial

    varies = _cut_dims(specs)
    found = []
    for spec in specs:
        told = [
            Partial() if k in varies and at.is_replicate() else at
            for k, at in enumerate(spec.placements)
        ]
        meta = spec.tensor_meta
        found.append(buckets.described(spec.mesh, tuple(told), meta.shape, meta.dtype))
    return found


# -- the edges ------------------------------------------------------------------------------------


def entering(tensors: Sequence[Any], gradients: Sequence[Any]) -> list[Tensor]:
    """What this process holds of distributed tensors, those that are trained with a graph.

    Args:
        tensors: distributed.
        gradients: torch's description of the gradient of each.
    """
    found = [shards.local_of(tensor) for tensor in tensors]
    if not torch.is_grad_enabled():
        return found
    trained = [k for k, tensor in enumerate(tensors) if tensor.requires_grad]
    if trained:
        told = [gradients[k] for k in trained]
        parts = _Enter.apply(told, *[tensors[k] for k in trained])  # type: ignore[no-untyped-call]  # it is torch's
        for k, part in zip(trained, parts, strict=True):
            found[k] = part
    return found


def leaving(parts: Sequence[Tensor], specs: Sequence[Any]) -> Sequence[Tensor]:
    """What this process holds, as distributed tensors with the graph of their parts."""
    if torch.is_grad_enabled() and any([part.requires_grad for part in parts]):
        return _Leave.apply(specs, *parts)  # type: ignore[no-untyped-call, no-any-return]  # it is torch's
    return [shards.with_spec(*pair) for pair in zip(parts, specs, strict=True)]


class _Enter(torch.autograd.Function):
    """From distributed tensors to plain ones."""

    @staticmethod
    def forward(ctx: Any, specs: Sequence[Any], *tensors: Any) -> tuple[Tensor, ...]:
        ctx.specs = specs
        ctx.set_materialize_grads(False)
        return tuple([shards.local_of(tensor).detach() for tensor in tensors])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        pairs = zip(grads, ctx.specs, strict=True)
        return None, *[None if grad is None else spread(grad, spec) for grad, spec in pairs]


class _Leave(torch.autograd.Function):
    """From plain tensors to distributed ones."""

    @staticmethod
    def forward(ctx: Any, specs: Sequence[Any], *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.specs = specs
        ctx.set_materialize_grads(False)
        pairs = zip(parts, specs, strict=True)
        found = tuple([shards.with_spec(part.detach(), spec) for part, spec in pairs])
        ctx.mark_non_differentiable(
            *[whole for part, whole in zip(parts, found, strict=True) if not part.requires_grad]
        )
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        pairs = zip(grads, ctx.specs, strict=True)
        return None, *[None if grad is None else _part(grad, spec) for grad, spec in pairs]


def spread(part: Tensor, spec: Any) -> Tensor:
    """What backward computes in this process as a distributed tensor, with a graph if it has one.

    Args:
        part: what this process holds.
        spec: torch's description of a tensor that is contiguous.
    """
    if torch.is_grad_enabled():
        from torch.distributed.tensor import DTensor

        meta = spec.tensor_meta
        return DTensor.from_local(
            part.contiguous(), spec.mesh, spec.placements, run_check=False,
            shape=meta.shape, stride=meta.stride,
        )  # fmt: skip
    return shards.with_spec(part.contiguous(), spec)


def _part(grad: Any, spec: Any) -> Tensor:
    """What this process holds of a gradient that is cut as its tensor is."""
    placed = buckets.as_placed(grad, spec.mesh, spec.placements)
    if torch.is_grad_enabled():
        return placed.to_local()  # type: ignore[no-any-return]  # a Tensor
    local = shards.local_of(placed)
    return local.wait() if hasattr(local, "wait") else local
