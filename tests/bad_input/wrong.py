"""Values that people pass by mistake, and which of them are wrong for which argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from parallax import Module, Parameter, nn


class Other(Module):
    """A tree that fits no other."""

    elsewhere: Parameter


VALUES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "text": lambda: "wrong",
    "number": lambda: 3,
    "fraction": lambda: 2.5,
    "negative": lambda: -1,
    "nan": lambda: float("nan"),
    "flag": lambda: True,
    "object": object,
    "tensor": lambda: torch.ones(5, 7),
    "other tree": lambda: Other(torch.ones(5, 7)),
    "nn.Module": lambda: torch.nn.Linear(2, 3),
    "uninitialized": lambda: nn.Linear(2, 3),
}
"""Every wrong value by name."""

_NO_NUMBER = ("none", "text", "object", "tensor", "other tree", "nn.Module")
_NO_TREE = ("none", "text", "object", "nn.Module")

KINDS: dict[str, tuple[str, ...]] = {
    "any tree": ("nn.Module",),
    "numbers": (*_NO_TREE, "number"),  # a tree of tensors
    "values": (*_NO_TREE, "number", "uninitialized"),  # a tree of initialized tensors
    "second": (*_NO_TREE, "number", "tensor", "other tree", "uninitialized"),  # fits a first one
    "module": (*_NO_TREE, "number", "tensor"),
    "either module": ("none", "text", "object", "number", "uninitialized"),  # ours or torch's
    "torch module": ("none", "text", "number", "object", "tensor", "other tree"),
    "function": ("none", "text", "number", "object", "tensor"),
    "input": (*_NO_TREE, "number", "other tree"),  # of a layer
    "int": (*_NO_NUMBER, "fraction", "nan"),
    "count": (*_NO_NUMBER, "fraction", "nan", "negative"),
    "number": _NO_NUMBER,
    "positive": (*_NO_NUMBER, "nan", "negative"),
    "flag": (*_NO_NUMBER, "number", "fraction"),
    "word": (*_NO_NUMBER, "number"),
    "condition": ("none", "number", "fraction", "object", "tensor", "other tree", "nn.Module"),
    "name": ("none", "object", "tensor", "other tree", "nn.Module"),
    "sizes": (*_NO_NUMBER, "fraction", "nan"),
    "shape": ("none", "text", "object", "other tree", "nn.Module", "fraction", "nan", "negative"),
    "dtype": (*_NO_NUMBER, "number"),
    "device": (*_NO_NUMBER, "fraction", "nan"),
    "key": (*_NO_NUMBER, "number", "fraction"),
    "rng": (*_NO_NUMBER, "fraction", "nan"),
    "pair": (*_NO_NUMBER, "number", "fraction"),
    "tuple": ("none", "text", "number", "object", "other tree", "nn.Module"),
    "mapping": (*_NO_NUMBER, "number"),
    "path": ("none", "fraction", "object", "tensor", "other tree", "nn.Module"),
    "tensor": ("none", "text", "object", "other tree", "nn.Module"),
    "optimizer": (*_NO_NUMBER, "number"),
    "anything": (),
}
"""For each kind of argument the values that are wrong for it; ``kind?`` also allows ``None``."""

OF_ANNOTATION = {
    "int": "int",
    "float": "number",
    "Number": "number",
    "bool": "flag",
    "str": "word",
    "Sizes": "sizes",
    "OutputSize": "sizes",
    "Sequence[int]": "sizes",
    "tuple[int, ...]": "sizes",
    "int | Sequence[int]": "sizes",
    "str | Sizes": "sizes",
    "Shape": "shape",
    "torch.dtype": "dtype",
    "torch.device | str": "device",
    "Device": "device?",
    "Key": "key",
    "Rng": "rng",
    "random.Rng": "rng",
    "Tensor": "tensor",
    "float | Tensor": "number",
    "Callable[[Any], Any]": "function",
    "tuple[float, float, float]": "pair",
    "torch.device | str | int": "device",
    "tuple[Any, Any]": "pair",
    "tuple[float, float]": "pair",
    "Groups": "mapping?",
    "str | os.PathLike[str]": "path",
    "Callable[..., Any]": "function",
    "Mapping[str, Any]": "mapping",
    "Module": "module",
    "nn.Module": "torch module",
}
"""What an annotation says about the kind of an argument."""

OF_NAME = {
    "fn": "function",
    "func": "function",
    "tree": "numbers",
    "one": "numbers",
    "two": "second",
    "num_features": "count",
    "in_features": "count",
    "out_features": "count",
    "in_channels": "count",
    "out_channels": "count",
    "num_layers": "count",
    "hidden_size": "count",
    "input_size": "count",
    "count": "count",
    "chunk_size": "count?",
    "eps": "positive",
    "lr": "positive",
    "max_norm": "positive",
    "argnums": "int",
}
"""What the name of an argument says, before its annotation is asked."""


def kind_of(name: str, annotation: Any) -> str:
    """The kind of an argument that nobody has said more about."""
    text = str(annotation).replace("'", "")
    optional = text.endswith(" | None")
    kind = OF_ANNOTATION.get(text.removesuffix(" | None"), "anything")
    kind = OF_NAME.get(name, kind)
    return f"{kind.removesuffix('?')}?" if optional and kind != "anything" else kind


def wrong_for(kind: str) -> list[str]:
    """The names of the values that are wrong for a kind of argument."""
    names = KINDS[kind.removesuffix("?")]
    return [name for name in names if name != "none" or not kind.endswith("?")]
