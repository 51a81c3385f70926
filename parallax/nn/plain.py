"""Whether a layer runs in plain eager code, where torch's kernels do all that they can."""

from __future__ import annotations

from parallax import _compat

__all__ = ["in_plain_eager_code"]


def in_plain_eager_code() -> bool:
    """Whether no transform is running, no graph is traced, and nothing is derived forward."""
    return not (
        _compat.is_compiling() or _compat.transform_active() or _compat.forward_level_active()
    )
