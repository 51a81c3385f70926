"""Names for files that are not here, and what to write instead."""

from __future__ import annotations

__all__ = ["INSTEAD"]

_SAVE = "io.save(model, path)"
_LOAD = "model = io.load(path, like=model)"

INSTEAD = {
    "CheckpointManager": "io.Checkpoints(directory, keep=3)",
    "Checkpointer": "io.Checkpoints(directory, keep=3)",
    "checkpoint": "io.Checkpoints(directory, keep=3)",
    "dump": _SAVE,
    "load_file": _LOAD,
    "load_state_dict": "model = bridge.load_state_dict(model, mapping)",
    "restore": _LOAD,
    "save_file": _SAVE,
    "state_dict": "bridge.state_dict(model)",
}
"""What to write instead of a name."""
