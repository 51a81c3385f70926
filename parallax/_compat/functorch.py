"""The running ``torch.func`` transforms, their levels and wrappers; a lean ``vmap``.

torch has no public way to ask whether a transform runs, nor which tensor belongs to which: that
decides between autograd's tape and ``torch.func``, and keeps wrappers from escaping.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad

from parallax._compat.dynamo import constant_in_traces, is_compiling

innermost_transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
"""The innermost ``torch.func`` transform (vmap, grad, jvp, functionalize), ``None`` for none."""


def transform_active() -> bool:
    """Whether a ``torch.func`` transform is running."""
    return innermost_transform() is not None


def vmap_active() -> bool:
    """Whether a ``vmap`` is among the running transforms."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(entry.key() == torch._C._functorch.TransformType.Vmap for entry in stack)


@constant_in_traces
def vmap_in_trace() -> bool:
    """As ``vmap_active``, of the transforms that dynamo traces."""
    return vmap_active()


def chunk_of_vmap() -> tuple[int, int] | None:
    """Which ``vmap(chunk_size=)`` runs, and which of its chunks; ``None`` for none.

    The chunks are calls of one function, so what it is not given is used again by each.
    """
    frame = sys._getframe(1) if vmap_active() else None
    while frame is not None:
        if frame.f_code is _chunked:
            return id(frame), len(frame.f_locals["chunks_output"])
        frame = frame.f_back
    return None


_chunked = torch._functorch.vmap._chunked_vmap.__code__

_DIFFERENTIATING = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)


def differentiating() -> bool:
    """Whether a transform that differentiates (grad, jvp) is running, at whatever depth."""
    return levels_that_differentiate() > 0


def levels_that_differentiate() -> int:
    """How many transforms that differentiate are running, at the level that an operator is at."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return sum([interpreter.key() in _DIFFERENTIATING for interpreter in stack])


@constant_in_traces
def derivatives_running() -> tuple[int, int]:
    """How many transforms that differentiate are running: in reverse, and forward.

    A function that is traced to be expanded counts as differentiated twice in either way.
    """
    kinds = torch._C._functorch.TransformType
    keys = [entry.key() for entry in torch._C._functorch.get_interpreter_stack() or ()]
    more: int = 2 * getattr(_tracing, "expansions", 0)
    return keys.count(kinds.Grad) + more, keys.count(kinds.Jvp) + more


_tracing = threading.local()


@contextmanager
def tracing_an_expansion() -> Iterator[None]:
    """While dynamo traces a function whose Taylor expansion is taken when its graph runs."""
    before: int = getattr(_tracing, "expansions", 0)
    _tracing.expansions = before + 1
    try:
        yield
    finally:
        _tracing.expansions = before


def one_thread() -> AbstractContextManager[object]:
    """Lets one thread at a time take forward derivatives; the others wait.

    torch keeps the level of a forward derivative for the whole process, so two threads end each
    other's: an error, or wrong numbers without one.
    """
    return nullcontext() if is_compiling() else _forward_lock


_forward_lock: Any = threading.RLock()
if hasattr(os, "register_at_fork"):  # no thread of the parent is there to leave it
    os.register_at_fork(after_in_child=_forward_lock._at_fork_reinit)


def unwrapped_if_over(value: Any) -> Any:
    """A tensor without the wrappers of transforms that have ended; any other value as it is."""
    while isinstance(value, Tensor):
        inner = torch._C._functorch.unwrap_if_dead(value)
        if inner is value:
            break
        value = inner
    return value


is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether a tensor is a transform's wrapper, at any level."""


unwrapped: Callable[[Tensor], Tensor] = torch._C._functorch.get_unwrapped
"""The tensor that the outermost wrapper of a wrapped one is around."""


def is_differentiated(tensor: Tensor) -> bool:
    """Whether a derivative is taken by a tensor, in whatever wrappers it is."""
    while True:
        # What stands for a member has the derivatives of what it is around; vmap cannot be asked.
        mapped = torch._C._functorch.is_batchedtensor(tensor)
        if tensor.requires_grad or (
            not mapped and forward_ad.unpack_dual(tensor).tangent is not None
        ):
            return True
        if not is_wrapped(tensor):
            return False
        tensor = unwrapped(tensor)


def is_differentiated_around(tensor: Tensor) -> bool:
    """As ``is_differentiated``, also where another transform runs within the derivative."""
    while is_wrapped(tensor):
        if not torch._C._functorch.is_batchedtensor(tensor):
            with ExitStack() as left:  # a transform within does not tell
                while current_level() > level_of(tensor) > 0:
                    left.enter_context(temporarily_pop_interpreter_stack())
                if is_differentiated(tensor):
                    return True
        tensor = unwrapped(tensor)
    return is_differentiated(tensor)


def innermost(tensor: Tensor) -> Tensor:
    """The tensor that all transforms' wrappers are around."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def innermost_dims(tensor: Tensor) -> list[int]:
    """Of each dimension of a tensor, which one it is of its ``innermost``."""
    dims = list(range(tensor.ndim))
    while is_wrapped(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            members = torch._C._functorch.maybe_get_bdim(tensor)
            dims = [dim + (dim >= members) for dim in dims]
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return dims


def level_of(tensor: Tensor) -> int:
    """The level of the innermost transform a tensor belongs to; 0 for a plain one."""
    level: int = torch._C._functorch.maybe_get_level(tensor)
    return max(level, 0)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written into, which wrappers of ``vmap`` do not count."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor._version


def current_level() -> int:
    """How many transforms are running."""
    return torch._C._functorch.maybe_current_level() or 0


@constant_in_traces
def traced_level() -> int:
    """As ``current_level``, also of the transforms that dynamo traces."""
    return current_level()


def wrapped_here(tensor: Tensor) -> Tensor:
    """A tensor as the innermost transform, one that differentiates, hands its arguments over.

    Writes in place reach the tensor itself, and leave no graph there.
    """
    wrapper: Tensor = torch._C._functorch._wrap_for_grad(tensor, current_level())
    return wrapper


def gradients_here(output: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """As ``torch.autograd.grad`` within a transform that differentiates, also while dynamo traces.

    Args:
        output: a scalar.
        inputs: tensors of this transform, its arguments or made in it; zeros where none depends.
    """
    grads: tuple[Tensor, ...] = torch._functorch.eager_transforms._autograd_grad((output,), inputs)
    return grads


_NO_HOOKS = "torch.func.grad does not support saved tensor hooks yet"
"""Begins as torch's own text does, by which ``checkpoints.allow_hooks_again`` knows it."""


def gradients_in_trace(
    fn: Callable[..., tuple[Tensor, list[Tensor]]], tensors: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """As ``torch.func.grad_and_value(fn, ..., has_aux=True)`` of all tensors, while dynamo traces.

    torch handles each tensor by a dozen functions of Python, for pytrees. Dynamo follows them all,
    which takes a third of the trace of a step, and each leaves nodes in the graph.

    Args:
        fn: takes the tensors to a scalar and a list of other tensors.
        tensors: what is differentiated by.

    Returns:
        The gradients, the scalar and the other tensors.
    """
    eager: Any = torch._functorch.eager_transforms
    wrap, unwrap = eager._wrap_for_grad, eager._unwrap_for_grad
    no_hooks = torch.autograd.graph.disable_saved_tensors_hooks(_NO_HOOKS)
    with no_hooks, eager.grad_increment_nesting() as level, torch.enable_grad():
        wrapped = [wrap(tensor, level) for tensor in tensors]
        with eager.enable_inplace_requires_grad(True):
            for tensor in wrapped:
                eager._set_tensor_requires_grad(tensor)
        output, beside = fn(*wrapped)
        grads = eager._autograd_grad((output,), wrapped, create_graph=True)
        opened = [unwrap(tensor, level) for tensor in beside]
        return [unwrap(grad, level) for grad in grads], unwrap(output, level), opened


outside_transforms: Callable[[], AbstractContextManager[object]] = torch._C._DisableFuncTorch
"""Within ``with outside_transforms():`` operators on plain tensors pass ``torch.func`` by."""


def is_mapped(tensor: Any) -> bool:
    """Whether a tensor stands for one member of a running ``vmap``, at whatever depth."""
    return isinstance(tensor, Tensor) and torch._C._functorch.is_batchedtensor(tensor)


def with_members_first(tensor: Tensor) -> Tensor:
    """The tensor of all members that a mapped tensor stands for one of."""
    inner: Tensor = torch._C._functorch.get_unwrapped(tensor)
    return inner.movedim(torch._C._functorch.maybe_get_bdim(tensor), 0)


def as_mapped(tensor: Tensor, level: int) -> Tensor:
    """One member of a tensor, for the running ``vmap`` of this level; the members come first."""
    member: Tensor = torch._C._functorch._add_batch_dim(tensor, 0, level)
    return member


def is_mapped_within(tensor: Tensor) -> bool:
    """Whether a tensor differs between the members of a ``vmap``, in whatever wrappers it is."""
    while is_wrapped(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def mapped_levels(tensor: Tensor) -> frozenset[int]:
    """The levels of the running ``vmap``s that a tensor stands for one member of."""
    levels = []
    while is_wrapped(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            levels.append(level_of(tensor))
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return frozenset(levels)


def is_vmap_refusal(error: RuntimeError) -> bool:
    """Whether torch refused to look at the data of what stands for a member of a ``vmap``."""
    return "`data` under vmap transform" in str(error)


def is_wrapper_refusal(error: RuntimeError) -> bool:
    """Whether torch met a wrapper of a transform that it had left for the moment."""
    return "wrapper == nullptr INTERNAL ASSERT FAILED" in str(error)


def member_by_member(fn: Callable[[Tensor], Sequence[Tensor]], tensor: Tensor) -> list[Tensor]:
    """A function that is no operator, of a mapped tensor: called for each member, stacked.

    Args:
        fn: takes a plain tensor to plain tensors, as if there were no ``vmap``.
        tensor: what is mapped.
    """
    functorch = torch._C._functorch
    if not functorch.is_batchedtensor(tensor):
        with outside_transforms():
            return list(fn(tensor))
    level, dim = functorch.maybe_get_level(tensor), functorch.maybe_get_bdim(tensor)
    members = functorch.get_unwrapped(tensor).movedim(dim, 0).unbind()
    columns = zip(*[member_by_member(fn, member) for member in members], strict=True)
    return [functorch._add_batch_dim(torch.stack(column), 0, level) for column in columns]


def run_vmap(
    fn: Callable[[list[Tensor]], Sequence[Tensor]],
    tensors: Sequence[Tensor],
    dims: Sequence[int],
    size: int,
    randomness: str,
) -> list[Tensor]:
    """``torch.func.vmap`` of a function of a list to a list, without its handling of pytrees.

    That costs more than all the rest for a small model. Eager only.

    Args:
        fn: takes one member of each tensor; its results get the mapped dimension in front.
        tensors: what is mapped.
        dims: the mapped dimension of each, not negative.
        size: how many members there are.
        randomness: ``"error"``, ``"same"`` or ``"different"``.
    """
    torch._functorch.predispatch.lazy_load_decompositions()
    functorch = torch._C._functorch
    level = functorch._vmap_increment_nesting(size, randomness)
    try:
        add = functorch._add_batch_dim
        outs = fn([add(t, dim, level) for t, dim in zip(tensors, dims, strict=True)])
        remove = functorch._remove_batch_dim
        return [remove(t, level, size, 0) for t in outs]
    finally:
        functorch._vmap_decrement_nesting()
