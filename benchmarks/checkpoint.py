"""What does a gradient cost whose blocks are computed once more, in time and in memory?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.harness import Candidate, Question
from benchmarks.memory import peak_bytes
from parallax import Module, bridge, func, nn, tree


class _Blocks(Module):
    blocks: tuple[nn.Sequential, ...]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + func.checkpoint(block)(x)
        return x


class _NnBlocks(torch.nn.Module):
    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            [
                torch.nn.Sequential(
                    torch.nn.Linear(width, 4 * width),
                    torch.nn.GELU(),
                    torch.nn.Linear(4 * width, width),
                )
                for _ in range(depth)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return x


def questions(quick: bool) -> Iterator[Question]:
    depth, width, batch = (4, 16, 32) if quick else (24, 64, 1024)
    blocks = [
        nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        for _ in range(depth)
    ]
    ours = _Blocks(tuple(blocks)).initialize(0)
    theirs = _NnBlocks(depth, width)
    named = {name.replace(".layers.", "."): leaf for name, leaf in bridge.state_dict(ours).items()}
    theirs.load_state_dict(named)
    x = torch.randn(batch, width)
    plain = nn.Sequential(*[nn.Residual(block) for block in ours.blocks])
    parts: Any = func.checkpoint(_loss, "layers.*")

    def reference() -> Any:
        return torch.autograd.grad(theirs(x).square().mean(), list(theirs.parameters()))

    ways: dict[str, Callable[[], Any]] = {
        "func.checkpoint(block)": lambda: tree.leaves(func.grad(_loss)(ours, x)),
        "func.checkpoint(loss, 'layers.*')": lambda: tree.leaves(func.grad(parts)(plain, x)),
    }
    torchs = "torch.utils.checkpoint, nn.Module"
    yield Question(
        f"gradient of {depth} blocks, each computed once more",
        Candidate(torchs, reference),
        [Candidate(name, run, limit=1.05) for name, run in ways.items()],
        check=torch.testing.assert_close,
        most_rounds=7,
    )
    yield Question(
        f"gradient of {depth} blocks, each computed once more: peak memory (1 MB as 1 ms)",
        _peak(torchs, reference),
        [_peak(name, run, limit=1.1) for name, run in ways.items()],
        most_rounds=3,
    )


def _loss(model: Any, x: Tensor) -> Any:
    return model(x).square().mean()


def _peak(name: str, run: Callable[[], Any], limit: float | None = None) -> Candidate:
    return Candidate(name, partial(_megabytes, run), self_timed=True, limit=limit)


def _megabytes(run: Callable[[], Any]) -> float:
    return peak_bytes(run) * 1e-9
