"""What do ensembles and per-sample gradients cost?

The references are `torch.func.vmap` over `functional_call`, with `stack_module_state` for
ensembles: what torch's own tutorials write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import floor, peers
from benchmarks.grad import same_gradients
from benchmarks.harness import Candidate, Question
from benchmarks.models import CONTEXT, VOCABULARY, NnGPT, NnMLP, mirror
from parallax import Module, func, tree

Loss = Callable[[Any, Tensor, Tensor], Tensor]


def questions(quick: bool) -> Iterator[Question]:
    for many in (8,) if quick else (8, 64):
        for subject in (_mlp, _gpt):
            small = subject is _mlp
            limits = (0.65, 0.97) if small else (1.0, None)
            for question in (
                _ensemble_forward(subject, many, 0.80 if small else None),
                _ensemble_gradient(subject, many, *limits),
                _per_sample(subject, many, *limits),
            ):
                yield replace(question, all_threads=not small and many == 8)


def _mlp() -> tuple[str, nn.Module, Tensor, Tensor]:
    model = NnMLP((8, 8, 8, 8))
    return "MLP", model, torch.randn(64, 8), torch.randint(8, (64,))


def _gpt() -> tuple[str, nn.Module, Tensor, Tensor]:
    tokens = torch.randint(VOCABULARY, (64, CONTEXT))
    return "2-layer GPT", NnGPT(2), tokens, torch.randint(VOCABULARY, (64, CONTEXT))


def _loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def _functional(model: nn.Module) -> Callable[..., Tensor]:
    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return _loss(lambda x: torch.func.functional_call(model, weights, (x,)), x, y)

    return loss


def _members(model: nn.Module, many: int) -> tuple[dict[str, Tensor], Module]:
    """The same ensemble as stacked dicts and as a stacked module."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    noisy = [
        {name: value + 0.01 * torch.randn_like(value) for name, value in parameters.items()}
        for _ in range(many)
    ]
    stacked = {name: torch.stack([one[name] for one in noisy]) for name in parameters}
    module = mirror(model)
    spec = tree.structure(module)
    members = [tree.unflatten(spec, list(one.values())) for one in noisy]
    return stacked, tree.stack(members)


Subject = Callable[[], tuple[str, nn.Module, Tensor, Tensor]]


def _ensemble_forward(subject: Subject, many: int, limit: float | None) -> Question:
    name, model, x, _ = subject()
    stacked, members = _members(model, many)
    x = x[:8]

    def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (x,))  # type: ignore[no-any-return]  # of any module

    reference = torch.func.vmap(call, (0, None))
    forward = type(members).forward
    ours, raw = func.vmap(forward, (0, None)), torch.func.vmap(forward, (0, None))
    flat, straight = list(stacked.values()), torch.func.vmap(floor.line_of(model), (0, None))
    absent: dict[str, str] = {}
    jitted: list[Candidate] = []
    if (name, many) == ("MLP", 8):
        called = "jax with equinox, jitted, in a process of its own"
        jitted = peers.equinox("ensemble", called, absent)
    return Question(
        f"forward of {many} x {name}",
        Candidate("torch vmap(functional_call)", lambda: reference(stacked, x)),
        [
            Candidate("parallax func.vmap", lambda: ours(members, x), limit=limit),
            Candidate("torch vmap of a module", lambda: raw(members, x)),
        ],
        peers=jitted,
        absent=absent,
        check=lambda a, b: torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5),
        context=torch.no_grad,
        floor=Candidate("floor: vmap of straight-line calls", lambda: straight(flat, x)),
    )


def _ensemble_gradient(subject: Subject, many: int, limit: float, plain: float | None) -> Question:
    name, model, x, y = subject()
    stacked, members = _members(model, many)
    x, y = x[:8], y[:8]
    reference = torch.func.vmap(torch.func.grad(_functional(model)), (0, None, None))
    many_grads = func.ensemble_grad(_loss)
    line, spec = floor.line_of(model), tree.structure(members)

    def straight() -> Any:
        leaves = [value.detach().requires_grad_() for value in stacked.values()]
        losses = torch.func.vmap(lambda w: _loss(lambda x: line(w, x), x, y))(leaves)
        return tree.unflatten(spec, torch.autograd.grad(losses.sum(), leaves))

    mapped = func.vmap(func.grad(_loss), (0, None, None))
    return Question(
        f"gradients of {many} x {name}",
        Candidate("torch vmap(grad(functional_call))", lambda: reference(stacked, x, y)),
        [
            Candidate(
                "parallax func.ensemble_grad", lambda: many_grads(members, x, y), limit=limit
            ),
            Candidate("parallax vmap(grad)", lambda: mapped(members, x, y), limit=plain),
        ],
        check=same_gradients,
        floor=Candidate("floor: the tape over vmap of straight-line calls", straight),
        remains="As written, torch.func.grad runs inside of vmap, operator by operator",
    )


def _per_sample(subject: Subject, many: int, limit: float, plain: float | None) -> Question:
    name, model, x, y = subject()
    module = mirror(model)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    x, y = x[:many, None], y[:many, None]
    reference = torch.func.vmap(torch.func.grad(_functional(model)), (None, 0, 0))
    many_grads = func.per_sample_grad(_loss)
    line, spec = floor.line_of(model), tree.structure(module)

    def straight() -> Any:
        leaves = [value.expand(many, *value.shape).requires_grad_() for value in weights.values()]
        losses = torch.func.vmap(lambda w, x, y: _loss(lambda x: line(w, x), x, y))(leaves, x, y)
        return tree.unflatten(spec, torch.autograd.grad(losses.sum(), leaves))

    mapped = func.vmap(func.grad(_loss), (None, 0, 0))
    return Question(
        f"gradients of {name} for each of {many} examples",
        Candidate("torch vmap(grad(functional_call))", lambda: reference(weights, x, y)),
        [
            Candidate(
                "parallax func.per_sample_grad", lambda: many_grads(module, x, y), limit=limit
            ),
            Candidate("parallax vmap(grad)", lambda: mapped(module, x, y), limit=plain),
        ],
        check=same_gradients,
        floor=Candidate("floor: the tape over vmap of straight-line calls", straight),
        remains="As written, torch.func.grad runs inside of vmap, operator by operator",
    )
