"""Names of ``torch.nn`` that are not here, and what to write instead."""

from __future__ import annotations

__all__ = ["instead_of"]

_SIZE = (
    "nn.{name} with its input size, which func.eval_shape(before, x).shape tells; "
    "bridge.lift(module, sample=x) takes a lazy one of torch's"
)

_INSTEAD = {
    "Module": "from parallax import Module",
    "Parameter": "from parallax import Parameter, then Parameter(shape, init)",
    "Buffer": "from parallax import Buffer, then Buffer(shape, init)",
    "UninitializedParameter": "from parallax import Parameter; it has a shape, and no value yet",
    "UninitializedBuffer": "from parallax import Buffer; it has a shape, and no value yet",
    "ModuleList": "in the class body, 'layers: Sequence[Module]', and a list in __init__",
    "ModuleDict": "in the class body, 'heads: dict[str, Module]', and a dict in __init__",
    "ParameterList": "in the class body, 'weights: Sequence[Parameter]', and a list in __init__",
    "ParameterDict": "in the class body, 'weights: dict[str, Parameter]', and a dict in __init__",
    "Container": "from parallax import Module",
    "RNNBase": "nn.RNN, nn.LSTM or nn.GRU",
    "RNNCellBase": "nn.RNNCell, nn.LSTMCell or nn.GRUCell",
    "NLLLoss2d": "nn.NLLLoss(); it takes images, too",
    "LinearCrossEntropyOptions": "nn.LinearCrossEntropyLoss(..., chunk_size=256)",
    "DataParallel": "a plan, dist.Plan(dist.mesh(dp=2)), from parallax.distributed",
    "parallel": "a plan, dist.Plan(dist.mesh(dp=2)), from parallax.distributed",
    "init": "from torch.nn import init; Parameter(shape, init.zeros_) takes it",
    "functional": "import torch.nn.functional as F; it takes the leaves as they are",
    "grad": "func.grad, from parallax; torch.nn.grad is of convolutions alone",
    "utils": "optim.clip_grad_norm, nn.Orthogonal, nn.Parametrized, nn.Masked and the like; the "
    "guide 'Coming from nn.Module' has a table",
    "modules": "nn.Linear and the like, without a module between",
    "parameter": "from parallax import Parameter, Buffer",
    "common_types": "int | Sequence[int], which layers take",
    "factory_kwargs": "dtype=dtype in the constructor, and model.initialize(key, device=device)",
    **{
        name: f"torch.ao.nn.{name}, on bridge.lower(model)"
        for name in ("intrinsic", "qat", "quantizable", "quantized")
    },
}
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
        line = _SIZE if name.startswith("Lazy") else _LIFT
    return "" if line is None else f". Write: {line.format(name=name.removeprefix('Lazy'))}"
