"""Distributed leaves are stepped in parts, by the kernels that step plain ones, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from parallax import Module, Parameter, optim, tree
from tests.meshes import alone, spread

# One process has more of some leaves than the other, or all. The fused kernels of the CPU round the
# last entries of a list, those that fill no register, otherwise: so these leaves are not theirs.
UNEVEN = {"wide": ((3, 5), Shard(1)), "alone": ((1, 4), Shard(0)), "tall": ((7, 3), Shard(0))}
EVEN = {"even": ((32, 16), Shard(0)), "across": ((4, 32), Shard(1)), "bias": ((7,), Replicate())}
# Formulas and kernels without a fused form; and fused ones.
UNFUSED = [
    optim.SGD(lr=0.1, momentum=0.9, fused=False), optim.AdamW(lr=0.1, fused=False),
    optim.Adam(lr=0.1, amsgrad=True, foreach=True), optim.RMSprop(lr=0.1, momentum=0.9),
    optim.Adagrad(lr=0.1, fused=False), optim.Adadelta(), optim.Rprop(), optim.ASGD(t0=1.0),
    optim.Adamax(), optim.NAdam(), optim.RAdam(), optim.Lion(lr=0.1), optim.SGD(lr=0.1),
    optim.AdamWScheduleFree(lr=0.1), optim.SGDScheduleFree(lr=0.1),
]  # fmt: skip
FUSED = [
    optim.AdamW(lr=0.1), optim.Adam(lr=torch.tensor(0.1), weight_decay=0.1, amsgrad=True),
    optim.SGD(lr=0.1, momentum=0.9, nesterov=True), optim.Adagrad(lr=0.1),
]  # fmt: skip


class Model(Module):
    leaves: dict[str, Parameter | None]
    tied: Parameter
    still: Parameter


def model(kinds: dict[str, Any], seed: int) -> Any:
    draw = torch.Generator().manual_seed(seed)
    leaves: Any = {name: torch.randn(size, generator=draw) for name, (size, _) in kinds.items()}
    made = Model(leaves, next(iter(leaves.values())), torch.randn(4, 2, generator=draw))
    return tree.select(made, "still").freeze()


def gradients(kinds: dict[str, Any], seed: int) -> Any:
    """With a hole in some steps, so that this leaf has a count of its own."""
    made = model(kinds, seed)
    return tree.select(made, "leaves.bias").set(None) if seed == 2 else made


def cut(whole: Any, kinds: dict[str, Any], mesh: Any) -> Any:
    def place(path: str, leaf: Any) -> Any:
        return spread(leaf, mesh, kinds.get(path.rpartition(".")[2], (0, Shard(0)))[1])

    return tree.map_with_path(place, whole)


def local(leaf: Any) -> Any:
    return leaf.to_local() if isinstance(leaf, DTensor) else leaf


def _steps(opt: Any, kinds: dict[str, Any], mesh: Any, donate: bool) -> None:
    whole = model(kinds, 0)
    held = cut(whole, kinds, mesh)
    state, states = opt.init(whole), opt.init(held)
    for seed in range(1, 4):
        grads = gradients(kinds, seed)
        whole, state = opt.step(whole, grads, state)
        old = [(leaf, local(leaf).clone()) for leaf in tree.leaves((held, states))]
        last = held.leaves["bias"]
        held, states = opt.step(held, cut(grads, kinds, mesh), states, donate=donate)
        assert donate or all(torch.equal(local(leaf), copy) for leaf, copy in old)
        assert not donate or held.leaves["bias"] is last
    assert held.leaves[next(iter(kinds))] is held.tied
    for found, expected in ((held, whole), (states, state)):
        for leaf, wanted in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
            assert leaf.stride() == wanted.stride() and not leaf.requires_grad
            cuts = isinstance(leaf, DTensor)
            mine = spread(wanted, mesh, *leaf.placements).to_local() if cuts else wanted
            assert torch.equal(local(leaf), mine)


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_parts_are_stepped_as_the_whole_is(rank: int, donate: bool) -> None:
    with alone(2, rank=rank) as mesh:
        for opt in UNFUSED:
            _steps(opt, {**UNEVEN, **EVEN}, mesh, donate)
        for opt in FUSED:
            _steps(opt, EVEN, mesh, donate)
