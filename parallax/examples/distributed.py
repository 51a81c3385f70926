"""One model on many processes: replicated, sharded and tensor-parallel, from one file.

The character model is trained as one process would, and under each plan; the table says how far
the losses and the parameters are from those of one process, and what a process holds. Alone it runs
in one process. On several:

    torchrun --nproc-per-node 2 -m parallax.examples.distributed

Neither the model nor the step knows of the plan.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from parallax import distributed as dist
from parallax import func, optim, random, tree
from parallax.examples._command import command_line, run_quietly
from parallax.examples.character_model import (
    BATCH,
    CharacterModel,
    Text,
    cross_entropy_loss,
    read,
    sample_batch,
)

FEED = {"**.feed.layers.0.weight": 0, "**.feed.layers.1.weight": 1}
ADAM = optim.AdamW(lr=3e-3)


def plans(processes: int) -> dict[str, dist.Plan]:
    """The plans for so many processes."""
    found = {
        "replicated": dist.Plan(dist.mesh(dp=processes), dp=dist.replicate()),
        "sharded": dist.Plan(dist.mesh(dp=processes), dp=dist.fsdp("blocks")),
        "tensor-parallel": dist.Plan(dist.mesh(tp=processes), tp=FEED),
    }
    if processes >= 4 and processes % 2 == 0:
        mesh = dist.mesh(dp=processes // 2, tp=2)
        found["sharded, tensor-parallel"] = dist.Plan(mesh, dp=dist.fsdp("blocks"), tp=FEED)
    return found


class Trained(NamedTuple):
    """The course of a training, and its end in plain tensors."""

    losses: list[float]
    model: CharacterModel


def step(model: CharacterModel, state: Any, codes: Tensor) -> Any:
    """One step of AdamW."""
    grads, loss = func.grad_and_value(cross_entropy_loss)(model, codes)
    return *ADAM.step(model, grads, state), loss


def train(text: Text, plan: dist.Plan, steps: int, seed: int) -> Trained:
    """Train a model under a plan; every random number comes from the seed.

    Args:
        text: the training text.
        plan: how model and batches are spread.
        steps: how many.
        seed: of the initial weights and of the batches.
    """
    key = random.key(seed)
    loader = [sample_batch(text.codes, random.fold_in(key, k), BATCH) for k in range(steps)]
    model = CharacterModel(len(text.characters)).initialize(seed, plan=plan)
    state, losses = ADAM.init(model), []
    for codes in plan.batches(loader):
        model, state, loss = step(model, state, codes)
        losses.append(plan.gather(loss).item())
    return Trained(losses, plan.gather(model))


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """The number of this process and how many there are; torchrun says it in the environment."""
    started = "WORLD_SIZE" in os.environ and not torch.distributed.is_initialized()
    if started:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        alone = not torch.distributed.is_initialized()
        yield (
            (0, 1) if alone else (torch.distributed.get_rank(), torch.distributed.get_world_size())
        )
    finally:
        if started:
            torch.distributed.destroy_process_group()


def compare(steps: int, seed: int) -> list[str]:
    """Train under each plan; the first process returns the lines that tell how."""
    with process_group() as (rank, processes):
        text = read()
        alone = dist.Plan({"dp": 1})
        expected = train(text, alone, steps, seed)
        first, last = expected.losses[0], expected.losses[-1]
        declared = CharacterModel(len(text.characters))
        lines = [
            f"{tree.summary(declared).count:,} parameters, {processes} process(es), {steps} steps",
            f"one process: cross-entropy loss {first:.4f} before, {last:.4f} after",
            "",
            "differences to one process:   losses  parameters   bytes of one process",
        ]
        for name, plan in plans(processes).items():
            found = train(text, plan, steps, seed)
            pairs = zip(found.losses, expected.losses, strict=True)
            losses = max([abs(one - other) for one, other in pairs])
            both = zip(tree.leaves(found.model), tree.leaves(expected.model), strict=True)
            parameters = max([(one - other).abs().max().item() for one, other in both])
            told = plan.describe(declared, optimizer=ADAM)
            held = told.parameters + told.gradients + told.state
            lines.append(f"{name:<26} {losses:10.1e} {parameters:11.1e} {held:12,}")
        return lines if rank == 0 else []


def main(arguments: Sequence[str] | None = None) -> None:
    """Train under each plan, and say how far it is from one process."""
    asked = command_line(__file__, __doc__).parse_args(arguments)
    for line in compare(3 if asked.quick else 20, asked.seed):
        print(line)


if __name__ == "__main__":
    sys.exit(run_quietly(main))
