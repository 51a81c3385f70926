"""One traced function that is called many times, and compiled once: for ``nn.Stack``.

This file is what eager code may import; ``repeat_operator``, which loads dynamo, is how it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from parallax._compat.dynamo import constant_in_traces


@constant_in_traces
def _repeat() -> Any:
    from parallax._compat.repeat_operator import repeat  # imports dynamo, which runs already

    return repeat


def repeated(
    body: Callable[..., Tensor],
    value: Tensor,
    stacks: Sequence[Tensor],
    times: int,
    recompute: bool,
) -> Tensor:
    """Calls ``body(value, *rows)`` for each row of the stacks with the value of the call before.

    Only while dynamo traces; the body is traced and compiled once. It must not keep its value's
    tensor, nor return another shape. With ``recompute`` a derivative computes each call once more,
    and else only a derivative of a derivative does.
    """
    count = len(stacks)

    def call(value: Tensor, *rows_and_stacks: Tensor) -> Tensor:
        return body(value, *rows_and_stacks[:count])

    firsts = [stack[0] for stack in stacks]
    return _repeat()(call, value, *firsts, *stacks, members=count, times=times, recompute=recompute)  # type: ignore[no-any-return]  # what the body returns
