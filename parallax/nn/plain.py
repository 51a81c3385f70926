"""Whether a layer runs in plain eager code, where torch's kernels do all that they can."""

from __future__ import annotations

from parallax._compat import dynamo, functorch, modes

__all__ = ["in_plain_eager_code"]


def in_plain_eager_code() -> bool:
    """Whether no transform is running, no graph is traced, and nothing is derived forward."""
    return not (
        dynamo.is_compiling() or functorch.transform_active() or modes.forward_level_active()
    )
