"""Wrong calls: what is expected, what came, and the line to write."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Module, nn, optim, tree

func: Any = parallax.func  # what is called wrongly on purpose
debug: Any = parallax.debug
effects: Any = parallax.effects
io: Any = parallax.io
random: Any = parallax.random
from_torch: Any = optim.from_torch
opt: Any = optim.Adam()
MODEL: Any = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).initialize(0)
STATE = opt.init(MODEL)
X = torch.ones(4, 2)


@dataclass
class Plain:
    value: Tensor
    other: int = 0


def call(model: Any, x: Tensor) -> Any:
    return model(x).sum()


def double(x: Any) -> Any:
    return x * 2


KEYWORDS: dict[str, Callable[[], Any]] = {
    "func.root": lambda: func.root(double, X, maxiter=3),
    "func.fixed_point": lambda: func.fixed_point(double, X, tol=1e-3),
    "func.argmin": lambda: func.argmin(double, X, maxiter=3),
    "func.newton": lambda: func.newton(double, X, maxiter=3),
    "func.anderson": lambda: func.anderson(double, X, m=3),
    "func.damped_newton": lambda: func.damped_newton(double, X, damping=3),
    "func.scan": lambda: func.scan(call, X, X, length=3),
    "func.cond": lambda: func.cond(True, double, double, operand=X),
    "func.while_loop": lambda: func.while_loop(double, double, init_val=X),
    "func.fori_loop": lambda: func.fori_loop(0, 3, call, init=X),
    "func.associative_scan": lambda: func.associative_scan(torch.add, X, axis=0),
    "func.checkpoint": lambda: func.checkpoint(double, use_reentrant=False),
    "func.eval_shape": lambda: func.eval_shape(),
    "func.grad": lambda: func.grad(call, argnum=0),
    "func.grad_and_value": lambda: func.grad_and_value(call, aux=True),
    "func.jacrev": lambda: func.jacrev(call, argnum=0),
    "func.jacfwd": lambda: func.jacfwd(call, argnum=0),
    "func.hessian": lambda: func.hessian(call, argnum=0),
    "func.vjp": lambda: func.vjp(double, X, aux=True),
    "func.jvp": lambda: func.jvp(double, X),
    "func.hvp": lambda: func.hvp(double, X),
    "func.vmap": lambda: func.vmap(double, in_axes=0),
    "func.per_sample_grad": lambda: func.per_sample_grad(call, dims=0),
    "func.ensemble_grad": lambda: func.ensemble_grad(call, dims=0),
    "effects.capture": lambda: effects.capture(call, "0", input=True),
    "nn.lora": lambda: nn.lora(MODEL, "0", r=8),  # type: ignore[call-arg]  # wrong on purpose
    "optim.chain": lambda: optim.chain(clip=1.0),  # type: ignore[call-arg]  # wrong on purpose
    "tree.summary": lambda: tree.summary(MODEL, X, mask=X),  # type: ignore[call-overload]  # as above
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_a_wrong_keyword_is_answered_with_the_line_to_write(name: str) -> None:
    given = r"(got an unexpected keyword argument|missing \d required positional argument)"
    with pytest.raises(
        TypeError, match=rf"^{re.escape(name)} {given}.*\. Write {re.escape(name)}\("
    ):
        KEYWORDS[name]()


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "intervene with a path": (
        lambda: effects.intervene(call, "0", double),
        r"effects\.intervene takes 2 .* Write effects\.intervene\(fn, \{'blocks\.0': lambda",
    ),
    "intervene alone": (
        lambda: effects.intervene(call),
        r"missing.*'changes'\. Write effects\.int",
    ),
    "perturb with a path": (
        lambda: effects.perturb("0", call),
        r"effects\.perturb takes 1 .* Write effects\.perturb\(fn\)\(model, \{'blocks\.0': zeros\}",
    ),
    "custom_vjp of two functions": (
        lambda: func.custom_vjp(double, double),
        r"func\.custom_vjp\(double\): takes one function.* Write f = func\.custom_vjp\(f\); f\.def",
    ),
    "custom_jvp of two functions": (
        lambda: func.custom_jvp(double, double),
        r"func\.custom_jvp\(double\): takes one function.* f\.defjvp\(jvp\)",
    ),
    "custom_vjp of three": (
        lambda: func.custom_vjp(double, double, double),
        r"func\.custom_vjp takes.* Write f = func\.custom_vjp\(f\); f\.defvjp\(fwd, bwd\)",
    ),
    "a rule without bwd": (
        lambda: func.custom_vjp(double).defvjp(double),
        r"missing 1 .*'bwd'\. Write f\.defvjp\(fwd, bwd\)",
    ),
    "grad of a call": (
        lambda: func.grad(call, MODEL),
        r"func\.grad\(call\): argnums must be .*got a Sequential.*func\.grad\(call\)\(model, x\)",
    ),
    "jacfwd of a call": (
        lambda: func.jacfwd(double, X),
        r"argnums must be an int.*got a tensor of shape \(4, 2\)",
    ),
    "vjp without arguments": (lambda: func.vjp(double), r"no argument was given\. Give those"),
    "map over a dataclass": (
        lambda: tree.map(double, {"a": Plain(X)}),
        r"a is a Plain, .*not registered.*r\(Plain, lambda v: \(\(v\.value, v\.other,\), None\),",
    ),
    "map the other way round": (lambda: tree.map(MODEL, double), r"Write tree\.map\(fn, model\)"),
    "select the other way round": (
        lambda: tree.select("0", MODEL),
        r"the tree comes first, got '0'\. Write tree\.select\(model, '0'\)",
    ),
    "partition the other way round": (
        lambda: tree.partition("0", MODEL),
        r"Write tree\.partition\(model, '0'\)",
    ),
    "step in another order": (
        lambda: opt.step(MODEL, STATE, MODEL),
        r"got a Sequential\. Make one: .*give it last: opt\.step\(model, grads, state\)",
    ),
    "init of nothing": (lambda: opt.init(), r"optim\.Adam\.init takes a model\. Write: state ="),
    "init of nothing, from torch": (
        lambda: from_torch(torch.optim.SGD).init(),
        r"from_torch\(SGD\)\.init takes a model\. Write: state = opt\.init\(model\)",
    ),
    "from_torch by place": (
        lambda: from_torch(torch.optim.SGD, 0.1),
        r"optim\.from_torch takes 1 .* Write optim\.from_torch\(torch\.optim\.SGD, lr=0\.1\)",
    ),
    "accumulate the other way round": (
        lambda: optim.Accumulate(4, opt),
        r"Accumulate: opt must be an optimizer, got 4",
    ),
    "accumulate without a number": (
        lambda: optim.Accumulate(opt),  # type: ignore[call-arg]  # as tested
        r"missing.*'every'\. Write optim\.Accumulate\(opt, every=4\)",
    ),
    "a chain of a list": (
        lambda: optim.chain([opt]),
        r"got \(\[a Adam\],\)\. Write optim\.chain\(optim\.ClipNorm\(1\.0\), optim\.Adam\(\)\)",
    ),
    "a chain of a class": (
        lambda: optim.chain(optim.ClipNorm, opt),
        r"the class ClipNorm is not a transformation\. Give an instance, ClipNorm\(\.\.\.\)",
    ),
    "a shape for a key": (
        lambda: random.normal((3,), random.key(0)),
        r"the first argument must be a Key, got \(3,\)\. Make one: random\.key\(seed\)",
    ),
    "save without a path": (lambda: io.save(MODEL), r"'path'\. Write io\.save\(model, 'model\."),
    "load without a model": (
        lambda: io.load(Path("a.pt")),
        r"'like'\. Write io\.load\('model\.safetensors', like=model\)",
    ),
    "pure of a call": (lambda: debug.pure(double, X), r"Write debug\.pure\(fn\)\(model, x\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_says_what_to_write(name: str) -> None:
    wrong, match = WRONG[name]
    with pytest.raises(TypeError, match=f"(?s){match}"):
        wrong()


def test_an_error_within_is_not_taken_for_a_wrong_call() -> None:
    class Broken(Module):
        def forward(self) -> Any:
            return double()  # type: ignore[call-arg]  # that is what is tested

    with pytest.raises(
        TypeError, match=r"^double\(\) missing 1 required positional argument: 'x'$"
    ):
        debug.pure(Broken.forward)(Broken())
    with pytest.raises(AttributeError, match="'Tensor' object has no attribute 'absent'"):
        tree.map(lambda leaf: leaf.absent, MODEL)
    found: Any = tree.map(lambda plain: plain.value, {"a": Plain(X)})
    assert found["a"] is X
