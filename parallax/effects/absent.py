"""Names for state and intermediate results that are not here, and what to write instead."""

from __future__ import annotations

__all__ = ["INSTEAD"]

_HOOK = "effects.capture(fn, path) to see, effects.intervene to replace"

INSTEAD = {
    "get_state": "model.mean, where 'mean: Buffer' stands in the class body",
    "hook": _HOOK,
    "hooks": _HOOK,
    "intercept": _HOOK,
    "mutable": "effects.collect(fn)(model, x), which returns the model of the next step, too",
    "record": "effects.collect(fn)(model, x), or effects.capture(fn, path)",
    "set_state": "self.emit(mean=...) in forward, effects.collect around the call",
    "variables": "effects.collect(fn)(model, x), which returns the model of the next step, too",
}
"""What to write instead of a name."""
