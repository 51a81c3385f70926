"""Names of ``torch.nn`` that are not here, and what to write instead."""

from __future__ import annotations

__all__ = ["instead_of"]

_INSTEAD = {
    "Module": "from parallax import Module",
    "Parameter": "from parallax import Parameter, then Parameter(shape, init)",
    "Buffer": "from parallax import Buffer, then Buffer(shape, init)",
    "ModuleList": "in the class body, 'layers: Sequence[Module]', and a list in __init__",
    "ModuleDict": "in the class body, 'heads: dict[str, Module]', and a dict in __init__",
    "ParameterList": "in the class body, 'weights: Sequence[Parameter]', and a list in __init__",
    "ParameterDict": "in the class body, 'weights: dict[str, Parameter]', and a dict in __init__",
    "init": "from torch.nn import init; Parameter(shape, init.zeros_) takes it",
    "functional": "import torch.nn.functional as F; it takes the leaves as they are",
    "utils": "optim.clip_grad_norm, nn.SpectralNorm, nn.WeightNorm and the like",
}
_LOSS = "F.cross_entropy(scores, labels) and the like, from torch.nn.functional"
_LAZY = "the layer with its input size; bridge.lift(module, sample=x) takes a lazy one of torch's"
_LIFT = "bridge.lift(torch.nn.{name}(...))"


def instead_of(name: str) -> str:
    """What to write instead of a name of ``torch.nn``; empty if torch has no such name.

    Example:
        >>> instead_of("ModuleList")
        ". Write: in the class body, 'layers: Sequence[Module]', and a list in __init__"
        >>> instead_of("Linaer")
        ''
    """
    import torch.nn

    line = _INSTEAD.get(name)
    there = getattr(torch.nn, name, None)
    if line is None and isinstance(there, type):
        line = _LOSS if name.endswith("Loss") else _LAZY if name.startswith("Lazy") else _LIFT
    return "" if line is None else f". Write: {line.format(name=name)}"
