"""Names for the way from and to torch that are not here, and what to write instead."""

from __future__ import annotations

__all__ = ["INSTEAD"]

INSTEAD = {
    "convert": "bridge.lift(module), or bridge.lower(tree)",
    "export": "torch.export.export(bridge.lower(model), args)",
    "from_torch": "bridge.lift(module); optim.from_torch(cls) for an optimizer",
    "lift_type": "bridge.lifted_type(cls)",
    "to_torch": "bridge.lower(model)",
    "wrap": "bridge.lift(module)",
}
"""What to write instead of a name."""
