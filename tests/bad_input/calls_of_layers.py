"""A right call of every layer's constructor and ``forward``, for ``every_call``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from parallax import nn, tree
from tests.bad_input.every_call import Subject, fixed
from tests.bad_input.wrong import kind_of
from tests.nn.test_every_layer import CASES

__all__ = ["layers"]


def layers() -> Iterator[Subject]:
    sizes: dict[str, Any] = {
        "in_features": 3,
        "out_features": 2,
        "in1_features": 3,
        "in2_features": 4,
        "num_features": 3,
        "in_channels": 4,
        "out_channels": 2,
        "kernel_size": 3,
        "padding": 1,
        "output_size": 2,
        "input_size": 3,
        "hidden_size": 4,
        "num_embeddings": 5,
        "embedding_dim": 4,
        "num_groups": 2,
        "num_channels": 4,
        "normalized_shape": (3,),
        "norm_type": 2.0,
        "value": 0.5,
        "threshold": 0.1,
        "dim": 1,
        "embed_dim": 4,
        "num_heads": 2,
        "d_model": 4,
        "nhead": 2,
        "upscale_factor": 2,
        "downscale_factor": 2,
        "groups": 2,
        "size": 2,
        "unflattened_size": (2, 2),
        "sizes": (3, 4, 2),
        "count": 2,
        "num_layers": 2,
        "function": torch.tanh,
        "n_classes": 12,
        "num_classes": 4,
        "cutoffs": [3, 6],
    }
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "Residual": lambda: {"inner": nn.Linear(3, 3)},
        "Sequential": lambda: {"layers": (nn.Linear(3, 3), torch.tanh)},
        "Stack": lambda: {"block": nn.Residual(nn.Linear(3, 3)), "count": 2},
        "LoRA": lambda: {"layer": nn.Linear(3, 2), "rank": 2},
        "SpectralNorm": lambda: {"layer": nn.Linear(3, 2)},
        "WeightNorm": lambda: {"layer": nn.Linear(3, 2)},
        "Orthogonal": lambda: {"layer": nn.Linear(3, 2)},
        "Parametrized": lambda: {"layer": nn.Linear(3, 2), "function": torch.tanh},
        "Masked": lambda: {"layer": nn.Linear(3, 5), "mask": torch.ones(5, 3)},
        "TransformerEncoder": lambda: {
            "encoder_layer": nn.TransformerEncoderLayer(4, 2, 8),
            "num_layers": 2,
        },
        "TransformerDecoder": lambda: {
            "decoder_layer": nn.TransformerDecoderLayer(4, 2, 8),
            "num_layers": 2,
        },
        "Upsample": lambda: {"size": 2},
        "UpsamplingNearest2d": lambda: {"size": 2},
        "UpsamplingBilinear2d": lambda: {"size": 2},
        "RotaryEmbedding": lambda: {"dim": 4},
        "AdaptiveLogSoftmaxWithLoss": lambda: {
            "in_features": 32,
            "n_classes": 12,
            "cutoffs": [3, 6],
        },
        "CrossMapLRN2d": lambda: {"size": 3},
        "Fold": lambda: {"output_size": (4, 5), "kernel_size": 2},
        "Transformer": lambda: {"d_model": 4, "nhead": 2},
        "FractionalMaxPool2d": lambda: {"kernel_size": 2, "output_size": 2},
        "FractionalMaxPool3d": lambda: {"kernel_size": 2, "output_size": 2},
    }
    kinds = {
        "function": "function",
        "inner": "function",
        "layers": "function",
        "block": "module",
        "layer": "module",
        "encoder_layer": "module",
        "decoder_layer": "module",
        "norm": "module?",
        "embed_dim": "count",
        "num_heads": "count",
        "d_model": "count",
        "nhead": "count",
        "num_groups": "count",
        "num_channels": "count",
        "num_embeddings": "count",
        "embedding_dim": "count",
        "kernel_size": "sizes",
        "unflattened_size": "sizes",
        "activation": "function",
        "rotary": "module?",
    }
    of_activation = {"TransformerEncoderLayer", "TransformerDecoderLayer"}
    for name in nn.__all__:
        layer = getattr(nn, name)
        if name == "KVCache" or not isinstance(layer, type):  # made by attention; in calls.py
            continue
        needed = [
            p.name
            for p in inspect.signature(layer).parameters.values()
            if p.default is p.empty and p.name in sizes
        ]
        given = made.get(name, fixed(**{n: sizes[n] for n in needed}))
        own = {
            **kinds,
            **({"kwargs": "anything", "args": "anything"} if name == "Identity" else {}),
        }
        if name in of_activation:
            own["activation"] = "anything"
        if name.startswith("RMSNorm"):
            own["eps"] = "positive?"
        yield Subject(f"nn.{name}", layer, given, own)
    kinds = {"model": "module", "where": "condition", "rank": "count", "alpha": "positive?"}
    model = nn.Linear(3, 2).initialize(0)
    yield Subject(
        "nn.lora",
        nn.lora,
        fixed(model=model, where=("weight",), rank=2),
        {**kinds, "dropout": "positive"},
    )
    yield Subject("nn.merge_lora", nn.merge_lora, fixed(model=model), kinds)
    for case in {case.name: case for case in CASES}.values():
        if case.name in ("Identity", "Lambda"):  # which take anything
            continue
        names = inspect.signature(case.ours().forward).parameters
        shown = list(names)[: len(case.inputs)]
        if any(p.kind is p.VAR_POSITIONAL for p in names.values()):
            continue
        yield Subject(
            f"nn.{case.name}.forward",
            _forward(case),
            fixed(**dict(zip(shown, case.inputs, strict=True))),
            {
                n: _NAMED.get(n, "input") if n in shown else kind_of(n, parameter.annotation)
                for n, parameter in names.items()
            },
        )


_NAMED = {"hx": "input?", "state": "input?", "var": "number"}
"""Inputs of layers that may be left out, or be numbers."""


def _forward(case: Any) -> Any:
    layer = case.ours()
    leaves = tree.leaves(layer)
    layer = (layer.initialize(0) if leaves else layer).eval()

    def forward(*args: Any, **kwargs: Any) -> Any:
        return layer(*args, **kwargs)

    forward.__signature__ = inspect.signature(layer.forward)  # type: ignore[attr-defined]  # read by inspect
    return forward
