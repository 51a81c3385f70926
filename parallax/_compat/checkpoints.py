"""Where ``torch.utils.checkpoint`` is refused, and what it may do in a trace.

A checkpoint is made of saved-tensor hooks, which ``torch.func`` does not take. The switch that
refuses them is private, as is dynamo's state while it traces a checkpoint.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint

NO_CHECKPOINT = (
    "torch.utils.checkpoint cannot run inside a torch.func transform (vmap, jacrev, hessian, a "
    "nested func.grad) nor in a compiled func.grad: torch.func takes no saved-tensor hooks. Write "
    "func.checkpoint(fn)(x), which runs there, too; or call func.grad in eager mode with no "
    "transform around it, where it runs on autograd's tape and torch's checkpoints work"
)


REENTRANT: type = torch.utils.checkpoint.CheckpointFunction._backward_cls
"""The node of autograd's graph that stands for ``checkpoint(use_reentrant=True)``."""

NO_REENTRANT = (
    "torch.utils.checkpoint(use_reentrant=True) goes backward on its own, and no derivative of its "
    "parameters would come out where the graph leads to other tensors than those differentiated. "
    "Write: checkpoint(..., use_reentrant=False)"
)


def is_hook_refusal(error: RuntimeError) -> bool:
    """Whether ``torch.func`` met saved-tensor hooks, which is how checkpointing is done."""
    return "don't yet support saved tensor hooks" in str(error)


def hooked() -> bool:
    """Whether saved-tensor hooks are in use around this: a checkpoint's, or ``save_on_cpu``."""
    return top_hooks() is not None


def top_hooks() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """The innermost saved-tensor hooks in use: what packs, and what unpacks."""
    found: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return found  # type: ignore[no-any-return]  # a tuple or None


class without_hooks:  # noqa: N801  # called like a function, as torch.no_grad is
    """Refuses saved-tensor hooks, and so checkpoints, as ``disable_saved_tensors_hooks`` does.

    That is a generator, which costs a small model some per cent; and it raises where hooks are in
    use already, with the switch set for good. Here these stay in use: whoever put them there puts
    them there again for all that runs inside.
    """

    __slots__ = ("_before", "_hooked")

    def __enter__(self) -> None:
        self._hooked = hooked()
        if not self._hooked:
            autograd = torch._C._autograd
            self._before = autograd._saved_tensors_hooks_get_disabled_error_message()
            autograd._saved_tensors_hooks_disable(NO_CHECKPOINT)

    def __exit__(self, *_: object) -> None:
        if self._hooked:
            return
        if self._before is None:
            torch._C._autograd._saved_tensors_hooks_enable()
        else:
            torch._C._autograd._saved_tensors_hooks_disable(self._before)


def allow_hooks_again() -> None:
    """Allows hooks again after a trace that failed in a derivative, which leaves them refused.

    Where a transform of ``torch.func`` is active that is right, and so is what a user forbade.
    """
    message = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
    transforming = torch._C._are_functorch_transforms_active()
    if message is not None and message.startswith("torch.func.") and not transforming:
        torch._C._autograd._saved_tensors_hooks_enable()


@contextmanager
def hooks_aside() -> Iterator[None]:
    """Removes the saved-tensor hooks around this for a while, since ``torch.func`` allows none.

    Values and derivatives stay as they are: what is saved within is kept, and not computed again
    or moved to the CPU.
    """
    autograd: Any = torch._C._autograd
    taken = []
    try:
        while hooked():
            taken.append(autograd._top_saved_tensors_default_hooks(True))
            autograd._pop_saved_tensors_default_hooks()
        yield
    finally:
        for pack, unpack in reversed(taken):
            autograd._push_saved_tensors_default_hooks(pack, unpack)


def refuse_traced_checkpoint() -> None:
    """Stops the trace if a checkpoint was recorded inside a derivative.

    Such a graph fails when it runs, and leaves ordinary checkpointing switched off in the process.
    """
    from torch._dynamo.comptime import comptime

    comptime(_find_traced_checkpoint)


def _find_traced_checkpoint(context: Any) -> None:
    depth = 0
    for node in context.graph().nodes:
        name = str(getattr(node.target, "__name__", node.target))
        if name.endswith("saved_tensors_hooks_disable"):
            depth += 1
        elif name.endswith("saved_tensors_hooks_enable"):
            depth -= 1
        elif depth > 0 and "checkpoint" in name:
            raise RuntimeError(NO_CHECKPOINT)


def open_checkpoint() -> None:
    """While dynamo traces a checkpoint: what runs in it may now add to a list outside of it.

    Dynamo refuses that, as eager code would add again when it computes the checkpoint again. Who
    asks for this does not do so in eager code either. Torch's configuration can only allow it to
    all code at once.
    """
    from torch._dynamo.comptime import comptime

    comptime(_open_checkpoint)


def close_checkpoint() -> None:
    """Undoes ``open_checkpoint``."""
    from torch._dynamo.comptime import comptime

    comptime(_close_checkpoint)


def _open_checkpoint(context: Any) -> None:
    tracer = context._i_will_not_complain_if_bc_breaks_InstructionTranslator().output.current_tracer
    if "checkpoint" in str(tracer.source_target):
        tracer.allowed_before = tracer.allow_side_effects_in_hop
        tracer.allow_side_effects_in_hop = True
        # Then every tensor that is computed within is handed out, too.
        tracer.traced_with_externally_visible_side_effects = True


def _close_checkpoint(context: Any) -> None:
    tracer = context._i_will_not_complain_if_bc_breaks_InstructionTranslator().output.current_tracer
    if "checkpoint" in str(tracer.source_target):
        tracer.allow_side_effects_in_hop = tracer.allowed_before
