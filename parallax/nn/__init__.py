"""Layers with the names, arguments, shapes, numbers and state dicts of ``torch.nn``.

Each is an immutable module whose maths is ``torch.nn.functional``'s. What is random reads
``self.rng``, what has state emits it; nothing is written in place. The device of the parameters is
``initialize(device=)``'s, or that of the checkpoint that ``bridge.load_state_dict`` reads.
"""

from parallax.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from parallax.nn.conv import Conv1d, Conv2d, Conv3d
from parallax.nn.linear import Linear
from parallax.nn.transposed import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Linear",
]
