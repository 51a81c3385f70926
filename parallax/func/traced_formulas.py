"""Other functions in the place of torch's in gradients of gradients that dynamo traces.

Those of which ``formulas`` says that gradients are wrong. A trace has no nodes of autograd to look
at, so they are replaced where they are called.
"""

from __future__ import annotations

from typing import Any

from parallax._compat.dynamo import constant_in_traces
from parallax._compat.replaced_calls import replace_in_traces
from parallax.func.formulas import OTHERS
from parallax.func.jets import NoRuleError
from parallax.func.other import AsItIsError

__all__ = ["replace_what_is_wrong"]

_ORDERS = {function: other.reverse for function, other in OTHERS.items() if other.reverse}


@constant_in_traces
def replace_what_is_wrong() -> None:
    """Has dynamo replace these functions where derivatives of derivatives are traced."""
    replace_in_traces(_ORDERS, _replacement)


def _replacement(function: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return OTHERS[function](function, args, kwargs)
    except (AsItIsError, NoRuleError):
        return function(*args, **kwargs)
