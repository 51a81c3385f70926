"""Names of ``torch.func`` that are not here, and what to write instead."""

from __future__ import annotations

__all__ = ["INSTEAD"]

INSTEAD = {
    "rearrange": "torch.func.rearrange(tensor, pattern), for the leaves of a tree by tree.map",
    "functionalize": "parallax.compile(fn); or torch.func.functionalize(fn), of tensors",
    "debug_unwrap": "torch.func.debug_unwrap(tensor)",
    "replace_all_batch_norm_modules_": "effects.collect(fn); running statistics are effects, "
    "which transforms take",
}
