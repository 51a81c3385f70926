"""Whether a transform, mode or trace is active, so that operators are not simply run.

Traces (``make_fx``, ``torch.fx``, ``torch.jit.trace``), fake tensors, forward-mode levels and
global hooks of ``nn.Module`` are entered globally, and none can be asked for publicly. Our short
ways past torch's Python are right only while none is on.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from parallax._compat.dynamo import is_compiling
from parallax._compat.functorch import innermost_transform, outside_transforms


def dispatch_mode_active() -> bool:
    """Whether operators are being traced or faked (``make_fx``, ``FakeTensorMode``)."""
    return torch._C._len_torch_dispatch_stack() > 0


def tracing_mode() -> Any:
    """The innermost mode that records or fakes operators, ``None`` for none."""
    keys = torch._C._TorchDispatchModeKey
    for key in (keys.PROXY, keys.FUNCTIONAL, keys.FAKE):
        mode = torch._C._get_dispatch_mode(key)
        if mode is not None:
            return mode
    return None


def without_numbers() -> bool:
    """Whether operators run on stand-ins that have no numbers (``FakeTensorMode``)."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def jit_tracing() -> bool:
    """Whether ``torch.jit.trace`` runs."""
    return torch._C._get_tracing_state() is not None


def forward_level_active() -> bool:
    """Whether ``torch.autograd.forward_ad.dual_level`` is entered."""
    return torch.autograd.forward_ad._current_level >= 0


def leave_transforms() -> None:
    """Leaves the transforms that a graph had entered when one of its operators raised.

    Dynamo writes that as two calls, without a ``finally`` between them.
    """
    torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(0)
    try:
        torch._C._exit_dual_level(level=0)
    except RuntimeError as error:  # nothing tells whether one was entered
        if "is not the last that was created" not in str(error):
            raise


def module_calls_watched() -> bool:
    """Whether global hooks or ``torch.jit.trace`` watch every call of an ``nn.Module``."""
    module = torch.nn.modules.module
    return bool(
        module._global_forward_pre_hooks
        or module._global_forward_hooks
        or module._global_backward_pre_hooks
        or module._global_backward_hooks
        or torch._C._get_tracing_state()
    )


def is_transforming() -> bool:
    """Whether operations are not simply run: a transform, dispatch mode or another trace is on."""
    return (
        innermost_transform() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch.fx._symbolic_trace.is_fx_symbolic_tracing()
    )


def tape_is_exact() -> bool:
    """Whether no transform, trace, dual level or inference mode is active; one call for all."""
    return not (
        is_compiling()
        or innermost_transform() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch.is_inference_mode_enabled()
    )


@contextlib.contextmanager
def outside_of_all() -> Iterator[None]:
    """Within it operators are simply run, whatever transform or mode of dispatch is on."""
    with _disable_current_modes(), outside_transforms(), torch.inference_mode(False):
        yield
