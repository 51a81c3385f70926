"""A network whose parts are called once, twice or never, and the same of ``torch.nn``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallax import Module, bridge, nn


class Block(Module):
    """A residual block, with an argument by keyword."""

    linear: nn.Linear
    act: nn.Tanh

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return x + scale * self.act(self.linear(x))


class Pair(Module):
    """Returns two tensors."""

    left: nn.Linear
    right: nn.Linear

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x), self.right(x)


class Net(Module):
    """Blocks, one of which is called twice; two outputs at once; a part that is never called."""

    blocks: tuple[Block, ...]
    pair: Pair
    unused: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, scale=0.5)
        x = self.blocks[0](x)
        left, right = self.pair(x)
        return left * right


class TorchBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.act = torch.nn.Tanh()

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Any:
        return x + scale * self.act(self.linear(x))


class TorchPair(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = torch.nn.Linear(4, 3)
        self.right = torch.nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.left(x), self.right(x)


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([TorchBlock(), TorchBlock()])
        self.pair = TorchPair()
        self.unused = torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x, scale=0.5)
        x = self.blocks[0](x)
        left, right = self.pair(x)
        return left * right


def nets() -> tuple[Any, Any, TorchNet]:
    """The network, the lifted one, and the ``nn.Module``, of equal parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = TorchNet()
    blocks = tuple([Block(nn.Linear(4, 4), nn.Tanh()) for _ in range(2)])
    ours: Any = Net(blocks, Pair(nn.Linear(4, 3), nn.Linear(4, 3)), nn.Linear(4, 4))
    return bridge.load_state_dict(ours, theirs.state_dict()), bridge.lift(theirs), theirs


def call(module: Any, x: Tensor) -> Any:
    return module(x)


def loss(module: Any, x: Tensor) -> Any:
    return module(x).square().mean()


def hooked(module: torch.nn.Module, x: Tensor) -> dict[str, list[tuple[Any, Any, Any]]]:
    """By path, in the order in which they return, arguments and output of all calls."""
    found: dict[str, list[tuple[Any, Any, Any]]] = {}

    def keep(path: str) -> Any:
        def hook(_: Any, args: Any, kwargs: Any, out: Any) -> None:
            found.setdefault(path, []).append((args, kwargs, out))

        return hook

    handles = [
        part.register_forward_hook(keep(path), with_kwargs=True)
        for path, part in module.named_modules()
        if path
    ]
    module(x)
    for handle in handles:
        handle.remove()
    return found


def calls_of(found: Any) -> list[Any]:
    """What was captured of one module, as a list of its calls; for ``inputs=True``."""
    return [found] if hasattr(found, "output") else list(found)
