"""Loops that dynamo traces into operators: for ``func.scan``.

This file is what eager code may import; ``flow_operator``, which loads dynamo, is how it is done.
What a body returns is ``(tensors, said)``: tensors that are no argument and none twice, and
constants about them, such as the structure of the tree that they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from parallax._compat.dynamo import constant_in_traces

Body = Callable[..., tuple[Any, Any]]


@constant_in_traces
def _scan() -> Any:
    from parallax._compat import flow_operator  # imports dynamo, which runs already

    return flow_operator.scan


def scanned(
    body: Body, carry: Sequence[Tensor], stacks: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Any]:
    """Calls ``body(*carry, *rows)`` for each row of the stacks; only while dynamo traces.

    Args:
        body: returns the next carry, of the same shapes and dtypes, and what is stacked.
        carry: the first carry.
        stacks: what is looped over, in dimension 0.

    Returns:
        The last carry and the stacks; and what the body said.
    """
    firsts = [stack[0] for stack in stacks]
    return _scan()(  # type: ignore[no-any-return]  # dynamo knows what it is
        body, *carry, *firsts, *stacks, carried=len(carry), rows=len(stacks)
    )
