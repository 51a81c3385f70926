"""Modules that several tests lift, and proof that they stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Parameters, buffers of both kinds, children, plain attributes, methods, properties."""

    scale: Tensor
    mask: Tensor

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.gain = nn.Parameter(torch.randn(width))
        self.fixed = nn.Parameter(torch.randn(width), requires_grad=False)
        self.register_buffer("scale", torch.full((width,), 2.0))
        self.register_buffer("mask", torch.ones(width), persistent=False)
        self.register_parameter("nothing", None)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.gain * self.scale * self.mask + self.fixed  # type: ignore[no-any-return]  # a tensor

    def twice(self, x: Tensor, *, times: int = 2) -> Tensor:
        for _ in range(times):
            x = self(x)
        return x

    @property
    def doubled(self) -> Tensor:
        return self.gain * 2

    @staticmethod
    def plain(x: int) -> int:
        return x + 1


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.heads = nn.ModuleDict({"one": nn.Linear(4, 2), "a-b": nn.Linear(4, 2)})
        self.weights = nn.ParameterList([torch.randn(4), torch.randn(4)])
        self.table = nn.ParameterDict({"k": torch.randn(2)})
        self.absent = None

    def forward(self, x: Tensor, head: str = "one") -> Tensor:
        for block, weight in zip(self.blocks, self.weights, strict=True):
            x = block(x) * weight
        return self.heads[head](x) + self.table["k"]  # type: ignore[no-any-return]  # a tensor


def snapshot(module: nn.Module) -> dict[str, Any]:
    return {
        "state": {
            k: (id(v), v._version, v.clone()) for k, v in module.state_dict(keep_vars=True).items()
        },
        "attributes": {n: dict(vars(m)) for n, m in module.named_modules()},
    }


def unchanged(module: nn.Module, before: dict[str, Any]) -> None:
    for k, v in module.state_dict(keep_vars=True).items():
        identity, version, value = before["state"][k]
        assert id(v) == identity and v._version == version and torch.equal(v, value)
    for name, m in module.named_modules():
        assert vars(m).keys() == before["attributes"][name].keys()
        for key, value in vars(m).items():
            assert value is before["attributes"][name][key]
