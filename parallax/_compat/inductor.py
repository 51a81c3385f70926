"""Inductor's options: what a mode means, and code that does not check its inputs again.

torch's configuration is global, and its modes are expanded by a private function. A pass of our
own is the only way to take out checks that ours has made already. Loads inductor when called.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
from typing import Any


def mode_options(mode: str, dynamic: bool | None) -> dict[str, Any]:
    """What a ``mode`` of ``torch.compile`` means in inductor's options."""
    from torch._inductor import list_mode_options

    return list_mode_options(mode, dynamic)


def unasserted_inputs() -> dict[str, Any]:
    """Inductor's options for code that does not check the sizes of its inputs again.

    What it checks of the results of kernels stays: that guards against wrong descriptions of them.
    """
    from torch._inductor import config

    # A pass of the user's own is left alone.
    free = getattr(config, "_post_fusion_custom_pass", "no such option") is None
    return {"_post_fusion_custom_pass": _unassert()} if free else {}


@functools.cache
def _unassert() -> Any:
    from torch._inductor.custom_graph_pass import CustomSchedulerPass
    from torch._inductor.virtualized import V

    class Unassert(CustomSchedulerPass):
        def __call__(self, nodes: list[Any]) -> list[Any]:
            getattr(V.graph.wrapper_code, "_pending_input_asserts", {}).clear()
            return nodes

        def uuid(self) -> str:
            return "parallax.unasserted_inputs"

        def __reduce__(self) -> Any:  # inductor pickles its options for the key of its cache
            return _unassert, ()

    return Unassert()
