"""What the options that most optimizers have mean, written once for all docstrings.

In the file, the docstring of an optimizer describes only the options that it alone has. An editor
that reads the file shows that; ``help()`` shows all options. ``parallax/optim/__init__.py``
completes the docstrings once, at its end; optimizers that users write keep theirs as they are.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

__all__ = ["complete"]

_OPTIONS = """
    lr: learning rate: a number, a tensor of no dimension, or a function of the step.
    betas: decay of the running averages of the gradient and of its square.
    eps: added to the denominator.
    weight_decay: factor of the L2 penalty.
    decoupled_weight_decay: decay as ``AdamW`` does.
    amsgrad: divide by the largest average so far.
    momentum: factor of the last update.
    nesterov: Nesterov's momentum.
    foreach: torch's kernels over lists; ``None`` lets torch choose.
    maximize: climb instead of descending.
    capturable: for CUDA graphs: the count of steps lives on the device.
    differentiable: record a graph outside of ``func.grad`` too, for ``backward()``.
    fused: torch's fused kernel; ``None`` takes it where there is one.
    groups: other hyper-parameters for some leaves: conditions of ``tree.select`` to dicts.
"""
_RAISES = """
Raises:
    ValueError: if a value is refused, such as a negative learning rate."""


def complete(optimizer: Any) -> None:
    """Gives the class of an optimizer the whole docstring.

    Args:
        optimizer: the class. Under ``python -OO`` it has no docstring, and gets none.
    """
    if optimizer.__doc__ is None:
        return
    written, begin, example = inspect.cleandoc(optimizer.__doc__).partition("\n\nExample:\n")
    text, _, own = written.partition("\n\nArgs:\n")
    described = _entries(_OPTIONS) | _entries(own + "\n")
    arguments = [described[name] for name in (*optimizer.names, "groups")]
    optimizer.__doc__ = f"{text}\n\nArgs:\n{''.join(arguments)}{_RAISES}{begin}{example}"


def _entries(section: str) -> dict[str, str]:
    """The entries of a section, by their names."""
    entries = re.split(r"^(?=    \S)", section, flags=re.MULTILINE)[1:]
    return {entry.partition(":")[0].strip(): entry for entry in entries}
