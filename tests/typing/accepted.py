"""What type checkers must accept and infer; ``test_typing`` runs them on this file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar, assert_type

import torch
from torch import Tensor, nn
from torch.nn import init

import parallax
from parallax import (
    Buffer,
    Module,
    Parameter,
    bridge,
    debug,
    effects,
    field,
    func,
    io,
    optim,
    random,
    tree,
)
from parallax import nn as layers

ModuleT = TypeVar("ModuleT", bound=Module)


class Dense(Module):
    """A custom ``__init__`` that declares."""

    weight: Parameter
    bias: Parameter | None
    steps: Buffer
    name: ClassVar[str] = "dense"

    def __init__(self, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = Parameter((n_out, n_in), init.xavier_normal_)
        self.bias = Parameter((n_out,), init.zeros_, dtype=torch.float64) if bias else None
        self.steps = Buffer((), dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


class Square4(Dense, init=False):
    """``init=False`` says that the ``__init__`` of the base is inherited."""

    extra: ClassVar[int] = 4


class FromTensors(Module):
    """Leaves may be assigned tensors, and ints and sequences are shapes."""

    weight: Parameter
    counts: Buffer
    more: tuple[Parameter, ...]
    named: dict[str, Parameter]

    def __init__(self, weight: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.weight = weight
        self.counts = torch.zeros(3)
        self.more = (Parameter(3, torch.randn), Parameter([3, 4], init.ones_))
        self.named = {"a": Parameter(shape, init.zeros_)}


class Scale(Module):
    """A generated ``__init__``."""

    by: Parameter
    rate: float = 0.5
    shift: Buffer = field(default=torch.zeros(3))
    sizes: tuple[int, ...] = field(default=(), kw_only=True)
    hidden: int = field(default=3, init=False)
    activation: Module | Callable[[Tensor], Tensor] = torch.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x * self.rate + self.shift


class Child(Scale):
    """Fields of the base first."""

    extra: int = 1


class Residual(Module, Generic[ModuleT]):
    """Generic over its child."""

    inner: ModuleT

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return x + out


class Sized(Protocol):
    """A protocol that modules fulfil."""

    def width(self) -> int: ...


class Layer(Module, ABC):
    """An abstract module."""

    @abstractmethod
    def width(self) -> int: ...


class Square(Layer):
    """A concrete one."""

    weight: Parameter

    def width(self) -> int:
        return self.weight.shape[0]


class Wrapped(Module):
    """A base whose fields may hold several things."""

    inner: Module
    bias: Parameter | None = None


class WrappedDense(Wrapped):
    """mypy takes narrower fields; pyright, of frozen dataclasses only."""

    inner: Dense  # pyright: ignore[reportIncompatibleVariableOverride]
    bias: None = None  # pyright: ignore[reportIncompatibleVariableOverride]


def narrowed_fields_have_their_type(wrapped: WrappedDense) -> None:
    """A field has the type that the subclass gave it."""
    assert_type(wrapped.inner, Dense)
    assert_type(wrapped.inner.weight, Tensor)


def leaves_are_tensors(dense: Dense, holder: FromTensors) -> None:
    """A field of a leaf reads as a ``Tensor``."""
    assert_type(dense.weight, Tensor)
    assert_type(dense.steps, Tensor)
    assert_type(dense.weight.shape, torch.Size)
    assert_type(dense.weight @ dense.weight, Tensor)
    shifted: Tensor | None = dense.bias
    if dense.bias is not None:
        total: Tensor = dense.bias + 1
        torch.relu(total)
    first: Tensor = holder.more[0]
    by_name: Tensor = holder.named["a"] * 2
    torch.stack([first, by_name, dense.weight, *holder.more, torch.zeros_like(dense.weight)])
    assert_type(dense.name, str)
    del shifted


def verbs_keep_the_type(dense: Dense) -> None:
    """The verbs of the original return what they are called on."""
    assert_type(dense.initialize(0), Dense)
    assert_type(dense.initialize(torch.Generator(), device="cpu", dtype=torch.float64), Dense)
    assert_type(dense.initialize(torch.random.get_rng_state()), Dense)
    assert_type(dense.reset(0, mode="train"), Dense)
    assert_type(dense.train(1), Dense)
    assert_type(dense.eval(), Dense)
    assert_type(dense.grad(), Dense)
    assert_type(dense.grad().weight, Tensor)
    assert_type(dense.update(lambda p, g: p - 0.1 * g, dense.grad()), Dense)
    assert_type(dense.replace(bias=None), Dense)
    assert_type(dense.split(2), tuple[Dense, ...])
    modules: Iterator[Module] = dense.modules()
    mode: str = dense.mode
    del modules, mode


def constructors_are_seen() -> None:
    """The generated ``__init__`` has the fields for arguments."""
    Dense(3, 4)
    Dense(3, n_out=4, bias=False)
    Square4(4, 4, bias=False)
    Scale(torch.ones(3))
    Scale(Parameter((3,), init.ones_), 0.1, torch.ones(3), sizes=(1, 2))
    Scale(by=torch.ones(3), rate=2, activation=Dense(3, 3))
    Child(torch.ones(3), extra=3)
    assert_type(Residual(Dense(3, 3)), Residual[Dense])
    assert_type(Residual(Dense(3, 3)).inner, Dense)
    wide: Sized = Square(torch.ones(3, 3))
    wide.width()


def trees_keep_their_type(dense: Dense) -> None:
    """So do the functions of ``tree``."""
    assert_type(tree.map(torch.relu, dense), Dense)
    assert_type(tree.update(torch.add, dense, dense), Dense)
    leaves: list[Any] = tree.leaves(dense)
    named: dict[str, Any] = tree.named_leaves(dense)
    del leaves, named


def calls_are_forward(dense: Dense) -> None:
    """A call has the arguments and the result of ``forward``."""
    assert_type(dense.forward(torch.ones(3)), Tensor)
    assert_type(dense(torch.ones(3)), Tensor)
    assert_type(layers.Linear(3, 2)(torch.ones(3)), Tensor)
    out = torch.vmap(dense)(torch.ones(2, 3))
    torch.func.grad(lambda module: module(out).sum())(dense)


def effects_keep_the_types(dense: Dense) -> None:
    """``collect`` returns what the function does, and the module; lambdas are accepted."""
    assert_type(effects.collect(Dense.forward)(dense, torch.ones(3)), tuple[Tensor, Dense])
    effects.collect(lambda module, x: module(x))(dense, torch.ones(3))


Sown = dict[str, Tensor | tuple[Tensor, ...]]


def watched_calls_keep_the_types(dense: Dense, x: Tensor) -> None:
    """What is captured comes beside the result; the rest are called as before."""
    assert_type(effects.capture(loss)(dense, x, scale=2.0), tuple[Tensor, Sown])
    assert_type(effects.capture(loss, "weight")(dense, x)[0], Tensor)
    assert_type(effects.intervene(loss, {"": torch.relu})(dense, x, scale=2.0), Tensor)
    assert_type(effects.perturb(loss)(dense, {"": x}, x, scale=2.0), Tensor)
    assert_type(debug.nans(loss)(dense, x, scale=2.0), Tensor)
    assert_type(debug.pure(loss)(dense, x, scale=2.0), Tensor)
    assert_type(debug.shapes(loss)(dense, x, scale=2.0), Tensor)
    assert_type(func.checkpoint(loss)(dense, x, scale=2.0), Tensor)


def wrappers_know_what_they_hold(dense: Dense) -> None:
    """The layer, the block and the model that was given."""
    assert_type(layers.WeightNorm(dense).layer.steps, Tensor)
    assert_type(layers.LoRA(dense, rank=2).merged(), Dense)
    assert_type(layers.Stack(dense, 3).block, Dense)
    assert_type(layers.Stack(dense, 3)[0], Dense)
    assert_type(layers.Stack.of([dense])[0], Dense)
    assert_type(layers.Residual(dense).inner, Dense)
    average = optim.EMA().init(dense)
    assert_type(average, optim.Average[Dense])
    assert_type(optim.EMA().update(average, dense).model, Dense)
    bare: tuple[layers.Stack, layers.WeightNorm, optim.Average] | None = None
    del bare


def what_is_handed_around_has_a_type(x: Tensor, key: random.Key) -> None:
    """Keys, and the caches of attention."""
    assert_type(random.split(key), random.Key)
    attention = layers.MultiheadAttention(8, 2)
    assert_type(attention.decode(x, attention.empty_cache(1, 16)), tuple[Tensor, layers.KVCache])


def files_keep_the_types(dense: Dense) -> None:
    """What is loaded has the type of what says the structure."""
    assert_type(io.load("file", like=dense), Dense)
    assert_type(io.Checkpoints("run").resume({"model": dense}), dict[str, Dense])
    assert_type(io.report("file", like=dense), io.Report)
    assert_type(bridge.load_state_dict(dense, {}), Dense)
    assert_type(tree.combine(dense, dense), Dense)
    assert_type(func.stack_module_state([dense]), tuple[dict[str, Tensor], dict[str, Tensor]])


def loss(dense: Dense, x: Tensor, scale: float = 1.0) -> Tensor:
    return dense(x).sum() * scale


def loss_and_scores(dense: Dense, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    scores = dense(x)
    return scores.sum(), {"scores": scores}


Scores = dict[str, Tensor]


def gradients_are_like_the_first_argument(dense: Dense, x: Tensor) -> None:
    """Arguments keep their types, and a gradient has that of what it is the gradient of."""
    assert_type(func.grad(loss)(dense, x, scale=2.0), Dense)
    assert_type(func.grad(loss_and_scores, has_aux=True)(dense, x), tuple[Dense, Scores])
    assert_type(func.grad_and_value(loss)(dense, x), tuple[Dense, Tensor])
    found = func.grad_and_value(loss_and_scores, has_aux=True)(dense, x)
    assert_type(found, tuple[Dense, tuple[Tensor, Scores]])
    assert_type(func.grad_and_value(loss, argnums=(0, 1))(dense, x)[1], Tensor)
    assert_type(func.per_sample_grad(loss)(dense, x), Dense)
    assert_type(func.per_sample_norms(loss)(dense, x), Tensor)
    assert_type(
        func.per_sample_norms(loss_and_scores, has_aux=True)(dense, x), tuple[Tensor, Scores]
    )
    assert_type(func.clipped_grad(loss, 1.0)(dense, x), Dense)
    assert_type(
        func.clipped_grad(loss_and_scores, 1.0, has_aux=True)(dense, x), tuple[Dense, Scores]
    )
    assert_type(func.ensemble_grad(loss)(dense, x), Dense)
    assert_type(func.per_sample_grad(loss_and_scores, has_aux=True)(dense, x), tuple[Dense, Scores])
    assert_type(func.jacrev(loss)(dense, x), Dense)
    assert_type(func.jacfwd(torch.sin)(x), Tensor)
    assert_type(func.laplacian(loss, argnums=1)(dense, x), Tensor)
    assert_type(func.divergence(torch.sin)(x), Tensor)
    assert_type(func.jacobian_matrix(loss)(dense, x), Tensor)
    assert_type(func.hessian_matrix(loss)(dense, x), Tensor)


def products_keep_the_types(dense: Dense, x: Tensor) -> None:
    """Of the result, and of each of the primals."""
    out, pull = func.vjp(loss, dense, x)
    assert_type(out, Tensor)
    assert_type(pull(out), tuple[Dense, Tensor])
    assert_type(func.vjp(loss_and_scores, dense, x, has_aux=True)[2], Scores)
    assert_type(func.jvp(loss, (dense, x), (dense, x)), tuple[Tensor, Tensor])
    assert_type(func.hvp(loss, (dense, x), (dense, x)), tuple[Tensor, tuple[Dense, Tensor]])
    jets = func.jet(loss, (dense, x), ((dense, None), (x, None)))
    assert_type(jets, tuple[Tensor, tuple[Tensor, ...]])
    gradient, push = func.linearize(func.grad(loss_and_scores), dense, x)
    assert_type(gradient, Dense)
    assert_type(push(dense, x), Dense)


def functions_keep_their_type(dense: Dense, x: Tensor, anything: Module) -> None:
    """What is mapped, compiled or collected is called as before, and transforms nest."""
    assert_type(func.vmap(loss)(dense, x, scale=2.0), Tensor)
    assert_type(func.vmap(dense)(x), Tensor)
    assert_type(func.vmap(func.grad(loss), (0, None))(dense, x), Dense)
    assert_type(func.functional_call(dense, {}, x), Tensor)
    assert_type(func.functional_call(nn.Linear(3, 2), {}, x), Tensor)
    assert_type(parallax.compile(loss)(dense, x, scale=2.0), Tensor)
    assert_type(parallax.compile(dense)(x), Tensor)
    step = func.grad_and_value(loss)
    assert_type(parallax.compile(step)(dense, x), tuple[Dense, Tensor])
    (gradient, value), after = effects.collect(func.grad_and_value(loss))(dense, x)
    assert_type(gradient, Dense)
    assert_type(value, Tensor)
    assert_type(after, Dense)
    parallax.compile(anything)(x)
    func.functional_call(anything, {}, x)


def add(total: Tensor, row: tuple[Tensor, Tensor]) -> tuple[Tensor, Scores]:
    return total + row[0], {"scores": row[1]}


def newton(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return x - f(x) / func.grad(f)(x)


@func.custom_vjp
def clipped(x: Tensor, scores: Scores) -> Scores:
    return {**scores, "x": x}


@func.custom_jvp
def rounded(x: Tensor) -> Tensor:
    return x.round()


def loops_keep_the_types(dense: Dense, x: Tensor) -> None:
    """What is carried along has the type of what is carried first."""
    assert_type(func.scan(add, x, (x, x)), tuple[Tensor, Scores])
    assert_type(func.scan(lambda m, row: (m, row.sum()), dense, x)[0], Dense)
    assert_type(func.fori_loop(0, 3, lambda i, value: value * i, x), Tensor)
    assert_type(func.while_loop(lambda m, t: t < 3, lambda m, t: (m, t), (dense, x))[0], Dense)
    func.while_loop(lambda t: t < 3, lambda t: (t,), [x])[0].sum()
    assert_type(func.associative_scan(torch.mul, x), Tensor)
    assert_type(func.associative_scan(lambda one, two: two, (x, dense)), tuple[Tensor, Dense])
    assert_type(func.cond(x.sum() > 0, dense.forward, torch.sin, (x,)), Tensor)
    assert_type(func.cond(True, lambda x: dense, lambda x: dense, [x]), Dense)


def solutions_keep_the_types(dense: Dense, x: Tensor) -> None:
    """A solution is like what the solver begins with."""
    assert_type(func.root(lambda x, a: x**2 - a, x, (x,), solver=newton), Tensor)
    assert_type(func.fixed_point(lambda x, a: x + a, x, (x,), solver=lambda f, x: f(x)), Tensor)
    assert_type(func.argmin(lambda m: m(x).sum(), dense, solver=lambda f, m: m), Dense)
    assert_type(func.root(lambda x, a: x**2 - a, x, (x,)), Tensor)
    assert_type(func.fixed_point(torch.cos, x, solver=partial(func.anderson, tol=0.1)), Tensor)
    assert_type(func.argmin(lambda m: m(x).sum(), dense), Dense)


def rules_keep_the_types(x: Tensor, scores: Scores) -> None:
    """A function with a derivative of its own returns what it returned."""
    assert_type(func.custom_vjp(loss)(Dense(3, 3), x), Tensor)
    assert_type(func.custom_jvp(loss)(Dense(3, 3), x), Tensor)
    clipped.defvjp(lambda x, scores: (scores, None), lambda _, g: (g["x"], None))
    rounded.defjvp(lambda primals, tangents: (primals[0].round(), tangents[0]))
    assert_type(clipped(x, scores), Scores)
    assert_type(rounded(x), Tensor)


def steps_keep_the_types(dense: Dense) -> None:
    """Of the model and of the optimizer's state."""
    rate: optim.schedules.Schedule = optim.schedules.StepLR(1.0, 2)
    watch = optim.schedules.ReduceLROnPlateau()
    assert_type(watch.step(watch.init(lr=1.0), 0.5), optim.schedules.Plateau)
    assert_type(rate(dense.steps), Tensor)
    assert_type(rate(2), float | Tensor)
    optim.Adam(lr=lambda step: 0.1 * 0.9**step, groups=optim.layerwise_lr(dense, "weight", lr=rate))
    opt, scaler = optim.Adam(), optim.LossScaler()
    stepped = scaler.step(opt, dense, dense, opt.init(dense), scaler.init())
    assert_type(stepped, tuple[Dense, optim.State, optim.Scale])


def full_batch(dense: Dense, state: optim.State, x: Tensor) -> tuple[Dense, optim.State]:
    """The state of L-BFGS is one like the others."""
    loss = func.grad_and_value(lambda dense: dense(x).sum())
    return optim.LBFGS().step(dense, loss, state)


class Compiled(Module):
    """Compiled methods, with and without options."""

    inner: Dense

    @parallax.compile
    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.inner(x) * scale

    @parallax.compile
    def once(self, x: Tensor) -> Tensor:
        return self.inner(x)

    @parallax.compile(backend="eager")
    def twice(self, x: Tensor) -> Tensor:
        return self.inner(x) * 2


def methods_stay_methods(compiled: Compiled, x: Tensor) -> None:
    """They take what they took, without the module."""
    assert_type(compiled(x), Tensor)
    assert_type(compiled(x, scale=2.0), Tensor)
    assert_type(compiled.once(x), Tensor)
    assert_type(compiled.twice(x), Tensor)


def lambdas_are_accepted(dense: Dense, x: Tensor, with_aux: bool) -> None:
    """Their arguments may be called and read, whatever they are."""
    assert_type(func.grad(lambda m, x: m(x).sum())(dense, x), Dense)
    assert_type(func.grad(lambda m: (m.weight.sum(), m), has_aux=True)(dense)[0], Dense)
    (gradient, value) = func.grad_and_value(lambda m, x: (m(x) ** 2).sum())(dense, x)
    assert_type(gradient, Dense)
    assert_type(func.vmap(func.grad(lambda m: m(x).sum()))(dense), Dense)
    assert_type(effects.collect(func.grad(lambda m, x: m(x).sum()))(dense, x), tuple[Dense, Dense])
    step: Callable[[Dense, Tensor], Dense] = func.grad(loss)
    func.grad(lambda m, x: m(x).sum(), argnums=1)(dense, x).sum()
    func.grad(loss, 0, with_aux)(dense, x)
    func.grad_and_value(loss, has_aux=with_aux)(dense, x)
    assert_type(func.per_sample_grad(lambda m, x: m(x).sum())(dense, x), Dense)
    func.jacrev(lambda m: m(x))(dense).weight.sum()
    func.jacfwd(lambda x: x**2)(x).sum()
    func.hessian(lambda x: (x**3).sum())(x).sum()
    func.hessian(lambda m: m(x).sum())(dense).weight.bias.sum()
    func.vmap(lambda m, x: m(x), in_dims=(0, None))(dense, x).sum()
    func.vmap(lambda m: m(x))(dense).sum()
    assert_type(tree.map_with_path(lambda path, leaf: leaf * len(path), dense), Dense)
    assert_type(tree.select(dense, lambda m: m.weight).set(x), Dense)
    assert_type(tree.select(dense, lambda path, leaf: leaf.ndim == 2).freeze(), Dense)
    func.vjp(lambda m: m(x), dense)[1](x)
    func.jvp(lambda m: m(x), (dense,), (dense,))[1].sum()
    func.jvp(func.grad(loss), (dense, x), (dense, x))[1].weight.sum()
    func.linearize(lambda m: m(x), dense)[1](dense).sum()
    func.hvp(lambda m: m(x).sum(), (dense,), (dense,))[1]
    func.functional_call(dense, {"weight": x}, (x,)).sum()
    del gradient, value, step
