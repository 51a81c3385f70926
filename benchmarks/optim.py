"""What does an optimizer's step cost as a pure function?

The reference is the stateful class as constructed by default. `torchopt` is an optional peer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Candidate, Question
from benchmarks.models import BLOCKS, NnGPT, mirror
from parallax import Module, optim, tree
from parallax._compat import kernels

_CHECKS = "Three trees are compared, each leaf is checked, and two trees are built"

SIZES = (150, 1_002)
TORCHOPT = importlib.util.find_spec("torchopt") is not None


@dataclass
class Subject:
    """One model, as a module with gradients and as a network of torch."""

    leaves: int
    model: Module
    grads: Module

    def network(self) -> list[nn.Parameter]:
        """Parameters with copies of the numbers."""
        params = [nn.Parameter(leaf.clone()) for leaf in tree.leaves(self.model)]
        for param, grad in zip(params, tree.leaves(self.grads), strict=True):
            param.grad = grad.clone()
        return params


def questions(quick: bool) -> Iterator[Question]:
    for leaves in SIZES[:1] if quick else SIZES:
        model = mirror(NnGPT(BLOCKS[leaves], width=64 if leaves == SIZES[0] else 16))
        subject = Subject(leaves, model, tree.map(torch.randn_like, model))
        yield _adam(subject)
        yield _adam_of_torchopt(subject)
        yield _clipped(subject)
        yield _sgd(subject, momentum=0.0, limit=1.0)
        yield _sgd(subject, momentum=0.9)


def _adam(subject: Subject) -> Question:
    opt = optim.Adam()
    return Question(
        f"Adam, {subject.leaves} leaves",
        _torch("torch.optim.Adam, default", torch.optim.Adam, subject),
        [
            _pure("pure", opt, subject, limit=0.60),
            _donated("donated", opt, subject, limit=0.25 if subject.leaves == SIZES[0] else None),
        ],
        peers=[
            _torch("torch.optim.Adam, fused", lambda p: torch.optim.Adam(p, fused=True), subject)
        ],
        floor=_floor_of_adam(subject),
        remains=_CHECKS,
    )


def _adam_of_torchopt(subject: Subject) -> Question:
    name = f"Adam, {subject.leaves} leaves, functional"
    pure = _pure("pure", optim.Adam(), subject, limit=0.25)
    if not TORCHOPT:
        how = "pip install torchopt --no-deps, and graphviz, to compare with it"
        return Question(name, pure, [], absent={"torchopt.adam": how})
    torchopt: Any = importlib.import_module("torchopt")  # no requirement of the types, either
    params = tuple(tree.leaves(subject.model))
    grads = tuple(tree.leaves(subject.grads))
    opt = torchopt.adam(lr=1e-3)
    state = opt.init(params)

    def run() -> Any:
        nonlocal state
        updates, state = opt.update(grads, state, params=params, inplace=False)
        return torchopt.apply_updates(params, updates, inplace=False)

    return Question(
        name,
        Candidate("torchopt.adam", run),
        [pure],
        floor=_floor_of_adam(subject),
        remains=_CHECKS,
    )


def _clipped(subject: Subject) -> Question:
    """Is a chain as fast as its parts called one after the other?"""
    adam = optim.Adam()
    model, state = adam.step(subject.model, subject.grads, adam.init(subject.model))

    def run() -> Any:
        nonlocal model, state
        model, state = adam.step(model, optim.clip_grad_norm(subject.grads, 1.0)[0], state)

    network = subject.network()
    fused = torch.optim.Adam(network, fused=True)

    def torchs() -> None:
        nn.utils.clip_grad_norm_(network, 1.0)
        fused.step()

    chain = optim.chain(optim.ClipNorm(1.0), adam)
    return Question(
        f"clipping and Adam, {subject.leaves} leaves",
        Candidate("optim.clip_grad_norm, optim.Adam", run),
        [_pure("optim.chain", chain, subject, limit=1.10), _donated("donated", chain, subject)],
        peers=[Candidate("clip_grad_norm_, torch.optim.Adam, fused", torchs)],
        remains="A second tree of gradients is made, where torch overwrites the first",
    )


def _sgd(subject: Subject, momentum: float, limit: float | None = None) -> Question:
    opt = optim.SGD(lr=1e-3, momentum=momentum)
    called = "SGD with momentum" if momentum else "SGD"
    return Question(
        f"{called}, {subject.leaves} leaves",
        _torch("torch.optim.SGD, default", partial(torch.optim.SGD, momentum=momentum), subject),
        [
            _pure("pure", opt, subject, limit=limit),
            _donated("donated", opt, subject),
        ],
        floor=_floor_of_sgd(subject, momentum),
        remains=_CHECKS,
    )


def _floor_of_adam(subject: Subject) -> Candidate:
    """Copies and the fused kernel, on lists."""
    params, grads = tree.leaves(subject.model), tree.leaves(subject.grads)
    n = len(params)
    held = [*params, *map(torch.zeros_like, params), *map(torch.zeros_like, params)]
    step = torch.zeros(())
    hyper = optim.Adam().hyper
    numbers = {name: hyper[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
    beta1, beta2 = hyper["betas"]

    def run() -> None:
        nonlocal held, step
        held, step = list(kernels.foreach_clone(held)), step + 1
        columns: Any = held[:n], grads, held[n : 2 * n], held[2 * n :], [], [step] * n
        kernels.fused_adam(*columns, beta1=beta1, beta2=beta2, **numbers)

    return Candidate("copies, torch._fused_adam_", run)


def _floor_of_sgd(subject: Subject, momentum: float) -> Candidate:
    """Sums out of place, on lists."""
    params, grads = tree.leaves(subject.model), tree.leaves(subject.grads)
    held = [torch.zeros_like(param) for param in params]

    def run() -> None:
        nonlocal params, held
        moved = grads
        if momentum:
            held = kernels.foreach_add(kernels.foreach_mul(held, momentum), grads)
            moved = held
        params = list(kernels.foreach_add(params, moved, alpha=-1e-3))

    return Candidate("torch._foreach_add", run)


def _torch(name: str, make: Callable[[Any], torch.optim.Optimizer], subject: Subject) -> Candidate:
    optimizer = make(subject.network())
    return Candidate(name, optimizer.step)


def _pure(name: str, opt: Any, subject: Subject, limit: float | None = None) -> Candidate:
    model, state = opt.step(subject.model, subject.grads, opt.init(subject.model))

    def run() -> Any:
        nonlocal model, state
        model, state = opt.step(model, subject.grads, state)

    return Candidate(name, run, limit=limit)


def _donated(name: str, opt: Any, subject: Subject, limit: float | None = None) -> Candidate:
    model = tree.map(Tensor.clone, subject.model)
    state = opt.init(model)

    def run() -> Any:
        nonlocal model, state
        model, state = opt.step(model, subject.grads, state, donate=True)

    return Candidate(name, run, limit=limit)
