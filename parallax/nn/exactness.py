"""Where the derivatives of torch's kernels are right, and where they are not.

Some kernels have a first derivative only. Those of others are wrong from the second or third order
on, under ``vmap``, or in forward mode. Layers run such a kernel where its derivatives are right,
and elsewhere compute the same with operators that have all derivatives. In plain eager code it is
not known yet which derivatives will be taken, and ``_compat.gradients`` decides when they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, modes

__all__ = ["can_be_read", "derived_forward", "has_no_derivative", "in_plain_eager_code",
           "kernel_has_derivatives", "one_derivative_at_most", "traced_forward"]  # fmt: skip


def in_plain_eager_code() -> bool:
    """Whether no transform runs, no graph is traced, and no forward derivative is taken."""
    return not (
        dynamo.is_compiling() or functorch.transform_active() or modes.forward_level_active()
    )


def can_be_read(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at."""
    traced = dynamo.is_compiling() or modes.dispatch_mode_active()
    return not (traced or tensor.is_meta or functorch.is_mapped_within(tensor))


def derived_forward() -> bool:
    """Whether forward derivatives are being taken."""
    if dynamo.is_compiling():
        return functorch.derivatives_running()[1] > 0
    return modes.forward_level_active()  # true in every forward-mode transform


def traced_forward() -> bool:
    """Whether forward derivatives are being taken in a graph that is traced."""
    return dynamo.is_compiling() and derived_forward()


def one_derivative_at_most(*inputs: Tensor | None, forward: bool = True) -> bool:
    """Whether at most one derivative of a kernel's output can be taken.

    Not in plain eager code, where that is not known.

    Args:
        *inputs: of the kernel, as far as they have derivatives.
        forward: whether that may be a forward derivative in eager code.
    """
    reverse, along = functorch.derivatives_running()
    if dynamo.is_compiling():
        # Torch goes backward through a graph at most once.
        if reverse == along == 0:
            return True
        # Torch's stand-ins for tensors have no forward derivative of many kernels.
        return reverse == 1 and not along and not dynamo.differentiated_outside()
    if not along and modes.forward_level_active():
        along = 1
    if reverse + along > 1 or (along and not forward):
        return False
    if reverse == 0 and not torch.is_grad_enabled():
        return True
    # The tape, outside of all transforms, may take any number of derivatives.
    return not any([x is not None and functorch.innermost(x).requires_grad for x in inputs])


def kernel_has_derivatives(*inputs: Tensor | None) -> bool:
    """Whether a kernel will do that has one derivative in reverse, and no rule for vmap.

    In plain eager code its output must be watched.

    Args:
        *inputs: of the kernel, as far as they have derivatives.
    """
    if in_plain_eager_code():
        return True
    mapped = not dynamo.is_compiling() and functorch.vmap_active()
    return not mapped and one_derivative_at_most(*inputs, forward=False)


def has_no_derivative(input: Tensor) -> bool:
    """Whether no derivative by an input of a kernel can be taken, for it is known."""
    if not input.is_floating_point():
        return True
    if functorch.derivatives_running() != (0, 0) or derived_forward():
        return False
    return not (input if dynamo.is_compiling() else functorch.innermost(input)).requires_grad
