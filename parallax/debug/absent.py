"""Names for checks that are not here, and what to write instead."""

from __future__ import annotations

__all__ = ["INSTEAD"]

INSTEAD = {
    "anomaly": "torch.autograd.set_detect_anomaly(True), or debug.nans(fn)",
    "assert_max_traces": "with debug.trace_counts() as counts: ...; counts[step] is the number",
    "breakpoint": "breakpoint(), in eager code",
    "callback": "the call itself, in eager code",
    "checkify": "debug.check(condition, 'message')",
    "jaxtyped": "debug.shapes(fn)",
    "print": "print(x), in eager code",
    "set_detect_anomaly": "torch.autograd.set_detect_anomaly(True), or debug.nans(fn)",
}
"""What to write instead of a name."""
