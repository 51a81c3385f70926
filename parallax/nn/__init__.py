"""Layers with the names, arguments, shapes, numbers and state dicts of ``torch.nn``.

Each is an immutable module whose maths is ``torch.nn.functional``'s. What is random reads
``self.rng``, what has state emits it; nothing is written in place. The device of the parameters is
``initialize(device=)``'s, or that of the checkpoint that ``bridge.load_state_dict`` reads.
"""

from parallax.nn.linear import Linear

__all__ = [
    "Linear",
]
