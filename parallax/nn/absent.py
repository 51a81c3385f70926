"""Names of ``torch.nn`` that are not here, and what to write instead."""

from __future__ import annotations

__all__ = ["ELSEWHERE", "INSTEAD", "instead_of"]

_SIZE = (
    "nn.{name} with its input size, which func.eval_shape(before, x).shape tells; "
    "bridge.lift(module, sample=x) takes a lazy one of torch's"
)

INSTEAD = {
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
"""What to write instead of a name of ``torch.nn``."""

ELSEWHERE = {
    "BatchNorm": "nn.BatchNorm1d, nn.BatchNorm2d or nn.BatchNorm3d",
    "Conv": "nn.Conv1d, nn.Conv2d or nn.Conv3d",
    "ConvTranspose": "nn.ConvTranspose1d, nn.ConvTranspose2d or nn.ConvTranspose3d",
    "Dense": "nn.Linear(n_in, n_out)",
    "Embed": "nn.Embedding(number, width)",
    "F": "import torch.nn.functional as F",
    "MultiHeadAttention": "nn.MultiheadAttention(width, heads)",
    "MultiHeadDotProductAttention": "nn.MultiheadAttention(width, heads)",
    "RotaryPositionalEmbedding": "nn.RotaryEmbedding(width)",
    "SelfAttention": "nn.MultiheadAttention(width, heads), called with (x, x, x)",
    "Shared": "one module in two fields; what is shared stays shared",
    "StatefulLayer": "Module, from parallax, with 'mean: Buffer' and self.emit(mean=...)",
    "initializers": "from torch.nn import init; Parameter(shape, init.zeros_) takes it",
    "inference": "model.eval()",
    "parametrizations": "nn.Orthogonal, nn.WeightNorm or nn.SpectralNorm",
    "remove_weight_norm": "tree.select(model, nn.WeightNorm).apply(lambda norm: "
    "norm.layer.replace(weight=norm.weight))",
    "spectral_norm": "nn.SpectralNorm(layer)",
    "weight_norm": "nn.WeightNorm(layer)",
}
"""What to write instead of a name of ``torch.nn.utils``, Equinox or Flax."""

_LIFT = "bridge.lift(torch.nn.{name}(...))"


def instead_of(name: str) -> str | None:
    """What to write instead of a name of ``torch.nn``, Equinox or Flax; ``None`` for any other.

    Example:
        >>> instead_of("ModuleList")
        "in the class body, 'layers: Sequence[Module]', and a list in __init__"
        >>> instead_of("relu")
        'F.relu(x), with torch.nn.functional as F, or the layer nn.ReLU'
        >>> instead_of("Linaer")
    """
    import torch.nn
    import torch.nn.functional as F

    from parallax import nn  # which asks this file for names that it does not have

    line = INSTEAD.get(name) or ELSEWHERE.get(name)
    there = getattr(torch.nn, name, None)
    if line is None and isinstance(there, type):
        line = _SIZE if name.startswith("Lazy") else _LIFT
    if line is not None:
        return line.format(name=name.removeprefix("Lazy"))
    plain = name.replace("_", "")
    layers = [mine for mine in nn.__all__ if name.islower() and mine.lower() == plain]
    as_layer = f"nn.{layers[0]}" if layers else ""
    if name in F.__dict__ and callable(F.__dict__[name]):
        also = f", or the layer {as_layer}" if layers else ""
        return f"F.{name}(x), with torch.nn.functional as F{also}"
    return as_layer or None
