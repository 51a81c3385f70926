"""The same questions on a GPU: `python -m benchmarks --device cuda`.

A kernel is launched and not waited for, so every call here ends with a synchronisation, on both
sides: what is measured is the time until the result is there. Small models show what Python and the
launches cost, which a compiled step with CUDA graphs avoids; large ones show the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parallax
from benchmarks import floor
from benchmarks.grad import same_gradients, straight_gradient
from benchmarks.harness import Candidate, Question
from benchmarks.models import CONTEXT, VOCABULARY, NnGPT, NnMLP, mirror
from parallax import func, optim, random, tree

DEVICE = "cuda"

Run = Callable[[], Any]


def questions(quick: bool, device: str = DEVICE) -> Iterator[Question]:
    on = _Device(device)
    for name, model, x, y in _subjects(quick, device):
        yield _call(on, name, model, x)
        yield _gradient(on, name, model, x, y)
        yield _optimizer(on, name, model)
    yield _ensemble(on, 8 if quick else 64)
    yield _random(on, 1_000 if quick else 100_000_000)
    if not quick:
        for subject in _subjects(True, device):
            yield _compiled(on, *subject)


class _Device:
    """Where everything happens, and how to wait for it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def candidate(self, name: str, run: Run, limit: float | None = None) -> Candidate:
        if self.name != DEVICE:
            return Candidate(name, run, limit=limit)

        def waited() -> Any:
            result = run()
            torch.cuda.synchronize()
            return result

        return Candidate(name, waited, limit=limit)


def _subjects(quick: bool, device: str) -> Iterator[tuple[str, nn.Module, Tensor, Tensor]]:
    with torch.device(device):
        x, y = torch.randn(32, 64), torch.randint(10, (32,))
        yield "3-layer MLP", NnMLP((64, 64, 64, 10)), x, y
        for width in (64,) if quick else (64, 1024):
            tokens = torch.randint(VOCABULARY, (8, CONTEXT))
            after = torch.randint(VOCABULARY, (8, CONTEXT))
            blocks = 1 if quick else 12
            yield f"{blocks}-layer GPT, {width} wide", NnGPT(blocks, width), tokens, after


def _loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def _call(on: _Device, name: str, model: nn.Module, x: Tensor) -> Question:
    module: Any = mirror(model)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    return Question(
        f"forward of a {name}",
        on.candidate("nn.Module", lambda: model(x)),
        [on.candidate("parallax", lambda: module(x), limit=1.0)],
        peers=[
            on.candidate(
                "torch.func.functional_call",
                lambda: torch.func.functional_call(model, parameters, (x,)),
            ),
        ],
        check=torch.testing.assert_close,
        context=torch.no_grad,
        floor=on.candidate("floor: straight-line calls", partial(floor.forward_of(model), x)),
    )


def _gradient(on: _Device, name: str, model: nn.Module, x: Tensor, y: Tensor) -> Question:
    module, both = mirror(model), func.grad_and_value(_loss)

    def backward() -> dict[str, Tensor]:
        model.zero_grad()
        _loss(model, x, y).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    return Question(
        f"gradient of a {name}",
        on.candidate("nn.Module, zero_grad, loss.backward()", backward),
        [on.candidate("parallax func.grad_and_value", lambda: both(module, x, y), limit=1.0)],
        check=lambda named, result: same_gradients(named, result[0]),
        floor=on.candidate(
            "floor: the tape over a flat list", straight_gradient(model, lambda m: _loss(m, x, y))
        ),
    )


def _optimizer(on: _Device, name: str, model: nn.Module) -> Question:
    module = mirror(model)
    grads, opt = tree.map(torch.randn_like, module), optim.Adam()
    state = opt.init(module)
    parameters = [nn.Parameter(leaf.clone()) for leaf in tree.leaves(module)]
    for parameter, grad in zip(parameters, tree.leaves(grads), strict=True):
        parameter.grad = grad
    reference, fused = torch.optim.Adam(parameters), torch.optim.Adam(parameters, fused=True)
    return Question(
        f"Adam step of a {name}",
        on.candidate("torch.optim.Adam, default", reference.step),
        [on.candidate("parallax, pure", lambda: opt.step(module, grads, state), limit=1.0)],
        peers=[on.candidate("torch.optim.Adam, fused", fused.step)],
    )


def _ensemble(on: _Device, many: int) -> Question:
    with torch.device(on.name):
        models = [NnMLP((64, 64, 64, 10)) for _ in range(many)]
        x = torch.randn(32, 64)
    parameters, _ = torch.func.stack_module_state(models)
    weights = {name: value.detach() for name, value in parameters.items()}
    members: Any = tree.stack([mirror(model) for model in models])
    straight = torch.vmap(lambda flat: floor.mlp(flat, x))

    def raw(parameters: Any) -> Tensor:
        out: Tensor = torch.func.functional_call(models[0], parameters, (x,))
        return out

    return Question(
        f"forward of {many} MLPs",
        on.candidate("torch vmap(functional_call)", lambda: torch.vmap(raw)(weights)),
        [on.candidate("parallax func.vmap", lambda: func.vmap(lambda m: m(x))(members), limit=1.0)],
        check=lambda a, b: torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5),
        context=torch.no_grad,
        floor=on.candidate(
            "floor: vmap of straight-line calls", lambda: straight(list(weights.values()))
        ),
    )


def _random(on: _Device, size: int) -> Question:
    generator = torch.Generator(on.name).manual_seed(0)
    key = random.key(0)

    def check(theirs: Tensor, ours: Tensor) -> None:
        assert ours.shape == theirs.shape and ours.device == theirs.device
        assert abs(float(ours.mean())) < 0.2

    reference = on.candidate(
        "torch.randn with a Generator",
        lambda: torch.randn(size, device=on.name, generator=generator),
    )
    return Question(
        f"{size:,} normal numbers",
        reference,
        [
            on.candidate(
                "parallax random.normal",
                lambda: random.normal(random.clone(key), (size,), device=on.name),
                limit=1.15,
            )
        ],
        check=check,
        floor=reference,
    )


def _compiled(on: _Device, name: str, model: nn.Module, x: Tensor, y: Tensor) -> Question:
    """A whole training step: as torch runs it, compiled, and with CUDA graphs."""
    module, opt = mirror(model), optim.AdamW()
    state = opt.init(module)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    backward: Any = torch.compile(_loss)
    update: Any = torch.compile(optimizer.step)
    leaves = [value.detach().clone().requires_grad_() for value in model.parameters()]
    line, move = floor.line_of(model), floor.adamw_of(leaves, 1e-3)

    def eager() -> None:
        optimizer.zero_grad()
        _loss(model, x, y).backward()
        optimizer.step()

    def compiled() -> None:
        optimizer.zero_grad()
        backward(model, x, y).backward()
        update()

    def straight() -> None:
        move(torch.autograd.grad(_loss(lambda x: line(leaves, x), x, y), leaves))

    def step(model: Any, state: Any, x: Tensor, y: Tensor) -> Any:
        return opt.step(model, func.grad(_loss)(model, x, y), state)

    ways = []
    for how, options in (("compiled", {}), ("CUDA graphs", {"mode": "reduce-overhead"})):
        whole: Any = parallax.compile(step, **options)
        whole(module, state, x, y)
        ways.append(on.candidate(f"parallax, {how}", partial(whole, module, state, x, y)))
    return Question(
        f"AdamW step of a {name}",
        on.candidate("nn.Module, fused", eager),
        ways,
        peers=[on.candidate("nn.Module, compiled", compiled)],
        floor=on.candidate("floor: a flat list, in place", straight),
    )
