"""What a test must leave in the process as it found it."""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

import torch


class State(NamedTuple):
    """Global state of torch and of the process, in values that compare."""

    grad_mode: bool
    inference_mode: bool
    anomaly_mode: bool
    default_dtype: torch.dtype
    default_device: torch.device
    autocast: tuple[bool, bool]
    saved_tensor_hooks: tuple[bool, str | None]
    transforms: bool
    dynamo: Any
    directory: frozenset[str]


def state() -> State:
    native: Any = torch._C  # torch says nothing of the types below it
    autograd = native._autograd
    return State(
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_anomaly_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        (
            autograd._top_saved_tensors_default_hooks(True) is not None,
            autograd._saved_tensors_hooks_get_disabled_error_message(),
        ),
        native._functorch.peek_interpreter_stack() is not None,
        _dynamo_settings(),
        # The caches of tools begin with a dot, and come with the first test that needs one.
        frozenset(name for name in os.listdir() if not name.startswith(".")),
    )


def changed(before: State, after: State) -> list[str]:
    """What is not as it was, in words."""
    pairs = zip(State._fields, before, after, strict=True)
    return [
        f"{name}: {old} before, {new} after"
        for name, old, new in pairs
        if old != new and not (name == "dynamo" and old is None)
    ]


def _dynamo_settings() -> Any:
    """What was set in dynamo's configuration; ``None`` before dynamo is imported."""
    config = sys.modules.get("torch._dynamo.config")
    entries = None if config is None else getattr(config, "_config", None)
    if entries is None:
        return None
    return [entry.user_override for entry in entries.values()]
