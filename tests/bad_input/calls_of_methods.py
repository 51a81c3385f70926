"""A right call of methods, and of what transforms return, for ``every_call``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from parallax import effects, func, nn, optim, tree
from parallax.optim import schedules
from tests.bad_input.every_call import Subject, fixed
from tests.bad_input.net import net

__all__ = ["methods"]


def methods() -> Iterator[Subject]:
    """Of optimizers, averages, schedules and layers, and the functions that transforms make."""
    yield from _steps()
    yield from _averages()
    yield from _scaler()
    yield from _schedules()
    yield from _layers()
    yield from _transformed()


def _steps() -> Iterator[Subject]:
    opts: dict[str, Any] = {
        "Accumulate": optim.Accumulate(optim.SGD(0.1), 2),
        "Split": optim.Split({"weight": optim.SGD(0.1)}),
        "SkipNonfinite": optim.SkipNonfinite(optim.SGD(0.1)),
        "chain": optim.chain(optim.ClipNorm(1.0), optim.SGD(0.1), optim.Lookahead(k=1)),
        "from_torch": optim.from_torch(torch.optim.SGD, lr=0.1),
    }
    kinds = {"model": "values", "grads": "second", "state": "second"}
    for name, opt in opts.items():
        yield Subject(f"optim.{name}.init", opt.init, lambda: {"model": net()}, kinds)
        given = {"model": net(), "grads": net(), "state": opt.init(net())}
        yield Subject(f"optim.{name}.step", opt.step, fixed(**given), kinds)
    sharp: Any = optim.SAM(optim.SGD(0.1))
    given = {"model": net(), "closure": lambda model: model, "state": sharp.init(net())}
    yield Subject("optim.SAM.step", sharp.step, fixed(**given), {**kinds, "closure": "function"})
    given = {"model": net(), "grads": net()}
    yield Subject("optim.SAM.ascend", sharp.ascend, fixed(**given), kinds)
    free = optim.SGDScheduleFree()
    given = {"model": net(), "state": free.init(net())}
    yield Subject("optim.SGDScheduleFree.averaged", free.averaged, fixed(**given), kinds)
    parts: dict[str, Any] = {
        "AddNoise": optim.AddNoise(1.0, 0),
        "ClipAdaptive": optim.ClipAdaptive(),
        "Lookahead": optim.Lookahead(k=1),
    }
    for name, part in parts.items():
        first = part.init(net()) if hasattr(part, "init") else None
        given = {"grads": net(), "state": first, "model": net()}
        if name == "Lookahead":
            given["updates"] = given.pop("grads")
        own = {**kinds, "updates": "second", "state": "anything" if first is None else "second"}
        yield Subject(f"optim.{name}.update", part.update, fixed(**given), own)
    yield Subject(
        "optim.SGD.replace",
        lambda lr: optim.SGD(0.1).replace(lr=lr),
        lambda: {"lr": 0.2},
        {"lr": "positive"},
        lambda opt: opt.step(net(), net(), opt.init(net())),
    )


def _averages() -> Iterator[Subject]:
    averages: dict[str, Any] = {"EMA": optim.EMA(0.9), "SWA": optim.SWA()}
    for name, average in averages.items():
        yield Subject(f"optim.{name}.init", average.init, lambda: {"model": net()},
                      {"model": "values"})  # fmt: skip
        given = {"average": average.init(net()), "model": net()}
        kinds = {"average": "second", "model": "second"}
        yield Subject(f"optim.{name}.update", average.update, fixed(**given), kinds)


def _scaler() -> Iterator[Subject]:
    scaler, opt = optim.LossScaler(), optim.SGD(0.1)
    scale: Any = scaler.init()
    loss = torch.ones(())
    kinds = {"loss": "tensor", "scale": "second", "grads": "values", "finite": "tensor"}
    yield Subject("optim.LossScaler.scale", scaler.scale, fixed(loss=loss, scale=scale), kinds)
    given: dict[str, Any] = {"grads": net(), "scale": scale}
    yield Subject("optim.LossScaler.unscale", scaler.unscale, fixed(**given), kinds)
    given = {"scale": scale, "finite": torch.tensor(True)}
    yield Subject("optim.LossScaler.update", scaler.update, fixed(**given), kinds)
    given = {"opt": opt, "model": net(), "grads": net(), "state": opt.init(net()), "scale": scale}
    own = {**kinds, "opt": "optimizer", "model": "values", "grads": "second", "state": "second"}
    yield Subject("optim.LossScaler.step", scaler.step, fixed(**given), own)


def _schedules() -> Iterator[Subject]:
    watch = schedules.ReduceLROnPlateau()
    yield Subject("schedules.ReduceLROnPlateau.init", watch.init, lambda: {"lr": 0.1},
                  {"lr": "positive"})  # fmt: skip
    given: dict[str, Any] = {"plateau": watch.init(0.1), "metrics": 1.0}
    kinds = {"plateau": "second", "metrics": "number"}
    yield Subject("schedules.ReduceLROnPlateau.step", watch.step, fixed(**given), kinds)
    step = schedules.StepLR(0.1, 2)
    yield Subject("schedules.StepLR.call", lambda step_: step(step_), lambda: {"step_": 1},
                  {"step_": "tensor"})  # fmt: skip


def _layers() -> Iterator[Subject]:
    table = torch.zeros(5, 3)
    for layer in (nn.Embedding, nn.EmbeddingBag):
        yield Subject(f"nn.{layer.__name__}.from_pretrained", layer.from_pretrained,
                      fixed(embeddings=table))  # fmt: skip
    attention = nn.MultiheadAttention(4, 2, batch_first=True).initialize(0).eval()
    given = {"batch_size": 1, "max_len": 3}
    kinds = {"batch_size": "count", "max_len": "count", "device": "device?"}
    yield Subject("nn.MultiheadAttention.empty_cache", attention.empty_cache, fixed(**given), kinds)
    cached = {"input": torch.ones(1, 1, 4), "cache": attention.empty_cache(1, 3)}
    kinds = {"input": "input", "cache": "second"}
    yield Subject("nn.MultiheadAttention.decode", attention.decode, fixed(**cached), kinds)
    blocks = [nn.Linear(3, 3).initialize(k) for k in range(2)]
    yield Subject("nn.Stack.of", nn.Stack.of, fixed(blocks=blocks), {"blocks": "tuple"})


def _transformed() -> Iterator[Subject]:
    made: dict[str, Callable[..., Any]] = {
        "func.grad": func.grad(_loss),
        "func.grad_and_value": func.grad_and_value(_loss),
        "func.jacrev": func.jacrev(_loss),
        "func.jacfwd": func.jacfwd(_loss),
        "func.hessian": func.hessian(_loss),
        "func.ensemble_grad": func.ensemble_grad(_loss),
        "effects.collect": effects.collect(_loss),
        "effects.capture": effects.capture(_loss),
    }
    for name, call in made.items():
        model = tree.stack([net(), net()]) if name == "func.ensemble_grad" else net()
        # Of a tensor a derivative can be taken: there it is the function that does not take it.
        kind = "module" if name.startswith("effects") else "numbers"
        yield Subject(f"{name}.call", _of_one(call), fixed(module=model), {"module": kind})


def _of_one(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda module: call(module)


def _loss(model: Any) -> Any:
    return model(torch.ones(3))
