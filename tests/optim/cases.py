"""The optimizers and options that the tests of ``parallax.optim`` go through, and their twins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import init

from parallax import Module, Parameter, optim, tree

Options = dict[str, Any]


class Net(Module):
    """Matrices, vectors and a number."""

    first: Parameter
    bias: Parameter
    second: Parameter
    scale: Parameter

    def __init__(self) -> None:
        super().__init__()
        self.first = Parameter((4, 3), init.normal_)
        self.bias = Parameter((4,), init.normal_)
        self.second = Parameter((2, 4), init.normal_)
        self.scale = Parameter((), init.ones_)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (torch.tanh(x @ self.first.T + self.bias) @ self.second.T)


class Matrices(Module):
    """Matrices alone, which is what Muon steps."""

    first: Parameter
    second: Parameter

    def __init__(self) -> None:
        super().__init__()
        self.first = Parameter((4, 3), init.normal_)
        self.second = Parameter((2, 4), init.normal_)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first.T) @ self.second.T


class Point(Module):
    """One tensor."""

    at: Parameter


# Every option of every optimizer at least once.
OPTIONS: list[tuple[str, Options]] = [
    ("SGD", {}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05, "amsgrad": True, "maximize": True}),
    ("Adam", {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.3, "amsgrad": True, "maximize": True}),
    ("NAdam", {}),
    ("NAdam", {"lr": 0.05, "momentum_decay": 0.01, "weight_decay": 0.1, "maximize": True}),
    ("NAdam", {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.05}),
    ("RAdam", {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1, "maximize": True}),
    ("RAdam", {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adamax", {}),
    ("Adamax", {"lr": 0.05, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 0.9, "momentum": 0.9, "weight_decay": 0.1}),
    ("RMSprop", {"centered": True, "momentum": 0.5, "eps": 1e-4, "maximize": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "weight_decay": 0.1}),
    ("Adagrad", {"lr": 0.1, "maximize": True}),
    ("Adadelta", {}),
    ("Adadelta", {"rho": 0.8, "eps": 1e-4, "weight_decay": 0.1, "maximize": True}),
    ("ASGD", {}),
    ("ASGD", {"lr": 0.1, "t0": 20, "lambd": 0.01, "weight_decay": 0.1, "maximize": True}),
    ("Rprop", {}),
    ("Rprop", {"etas": (0.4, 1.3), "step_sizes": (1e-4, 1.0), "maximize": True}),
    ("Adafactor", {}),
    ("Adafactor", {"lr": 0.05, "weight_decay": 0.1, "d": 2.0, "beta2_decay": -0.6}),
    ("Adafactor", {"lr": 0.05, "eps": (1e-6, 1e-2), "maximize": True}),
    ("Muon", {}),
    ("Muon", {"lr": 0.05, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}),
]
FIRST = list(dict(reversed(OPTIONS)).items())
"""One entry per optimizer."""
HAS_FUSED = ("SGD", "Adam", "AdamW", "Adagrad")
HAS_FOREACH = tuple(name for name, _ in FIRST if name != "Muon")
DIFFERENTIABLE = tuple(name for name, _ in FIRST if name not in ("Muon", "Adafactor"))


def label(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items()) or "defaults"
    return str(value)


def model_for(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    module: Any = Matrices() if name == "Muon" else Net()
    return module.initialize(seed, dtype=dtype)


def gradients(model: Any, steps: int, seed: int = 1) -> Iterator[Any]:
    """Random trees of the model's structure."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield tree.map(lambda p: torch.randn(p.shape, generator=generator, dtype=p.dtype), model)


def ones(model: Any) -> Any:
    """The gradients whose every number is one."""
    return tree.map(torch.ones_like, model)


def run(opt: Any, model: Any, grads: Iterator[Any]) -> tuple[Any, Any]:
    """The model and state after a step per gradient."""
    state = opt.init(model)
    for grad in grads:
        model, state = opt.step(model, grad, state)
    return model, state


class Twin:
    """A stateful optimizer of torch over copies of a model's leaves."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer], model: Any) -> None:
        self.model = model
        self.params = {
            path: leaf.detach().clone().requires_grad_()
            for path, leaf in tree.named_leaves(model).items()
        }
        self.optimizer = make(list(self.params.values()))

    def step(self, grads: Any) -> None:
        given = tree.named_leaves(grads)
        for path, param in self.params.items():
            param.grad = given[path].clone() if path in given else None
        self.optimizer.step()

    def state(self, path: str) -> Any:
        return self.optimizer.state[self.params[path]]


def twin_of(name: str, options: Options, model: Any) -> Twin:
    return Twin(lambda params: getattr(torch.optim, name)(params, **options), model)


def make(name: str, options: Options) -> Any:
    return getattr(optim, name)(**options)


def distance(one: Any, two: Any) -> float:
    """How far apart two tensors are, relative to the second one's norm."""
    one, two = one.detach(), two.detach()
    gap = torch.linalg.vector_norm((one - two).double())
    return float(gap / torch.linalg.vector_norm(two.double()).clamp(min=1e-30))
