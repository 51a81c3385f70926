"""Where the derivative that comes with one of torch's kernels is right, and where it is not.

Some kernels have a first derivative only; that of others goes wrong from the second or third on,
under ``vmap``, or after a forward derivative. Layers run such a kernel where its derivative is
right whatever is asked for, and the same maths in operators that have all derivatives elsewhere.
In plain eager code nobody knows what will be asked for: there ``_compat.gradients`` waits for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, modes

__all__ = ["derived_forward", "in_plain_eager_code", "one_derivative_at_most"]


def in_plain_eager_code() -> bool:
    """Whether no transform is running, no graph is traced, and nothing is derived forward."""
    return not (
        dynamo.is_compiling() or functorch.transform_active() or modes.forward_level_active()
    )


def derived_forward() -> bool:
    """Whether forward derivatives are being taken."""
    if dynamo.is_compiling():
        return functorch.derivatives_running()[1] > 0
    return modes.forward_level_active()  # as it is in every transform that derives forward


def one_derivative_at_most(*inputs: Tensor | None, forward: bool = True) -> bool:
    """Whether nothing but one derivative of a kernel's output can be asked for.

    Not in plain eager code, where that is not known.

    Args:
        *inputs: of the kernel, as far as they have derivatives.
        forward: whether that may be a forward derivative.
    """
    reverse, along = functorch.derivatives_running()
    if dynamo.is_compiling():
        # Torch goes backward once through a graph, at most.
        if reverse == along == 0:
            return True
        one = reverse + along == 1 and (forward or not along)
        return one and not dynamo.differentiated_outside()
    if not along and modes.forward_level_active():
        along = 1
    if reverse + along > 1 or (along and not forward):
        return False
    if reverse == 0 and not torch.is_grad_enabled():
        return True
    # The tape, outside of all transforms, may record as many as it likes.
    return not any([x is not None and functorch.unwrapped(x).requires_grad for x in inputs])
