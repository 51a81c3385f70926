"""``compiled.lower(*args).save(path)`` and ``load_compiled``: compile here, call there."""

from __future__ import annotations

import functools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import parallax
from parallax import func, nn, optim, random, tree
from parallax.compiler.lowering import MAGIC
from tests.compiling import graphs
from tests.corpus import SIZE, Dense

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

X = torch.randn(5, SIZE, generator=torch.Generator().manual_seed(0))
OPT = optim.AdamW(lr=0.01)
HELD = torch.ones(SIZE)


def net() -> Any:
    return nn.Sequential(Dense(SIZE, 4), nn.Tanh(), Dense(4, 2)).initialize(0)


def step(model: Any, state: Any, x: Tensor) -> Any:
    grads, loss = func.grad_and_value(lambda model: model(x).square().mean())(model)
    return *OPT.step(model, grads, state), {"loss": loss}


def mean_square(model: Any, x: Tensor) -> Any:
    return model(x).square().mean()


def by_hand(steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """The losses and the last parameters of the same training with torch alone."""
    weights = [leaf.detach().clone().requires_grad_() for leaf in tree.leaves(net())]
    adam, losses = torch.optim.AdamW(weights, 0.01), []
    for _ in range(steps):
        weight, bias, last, offset = weights
        loss = F.linear(F.linear(X, weight, bias).tanh(), last, offset).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.detach())
    return losses, [weight.detach() for weight in weights]


def own() -> tuple[Any, Any]:
    model = tree.map(torch.clone, net())
    return model, OPT.init(model)


def check_training(train: Callable[..., Any]) -> None:
    model, state = own()
    losses = []
    for _ in range(3):
        model, state, out = train(model, state, X)
        losses.append(out["loss"])
    expected, weights = by_hand(3)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(tree.leaves(model), weights)


def lowered(fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    compiled: Any = parallax.compile(fn, **{"backend": "eager", **options})
    return compiled.lower(*args)


def reloaded(path: Path, fn: Callable[..., Any], *args: Any, **options: Any) -> Callable[..., Any]:
    lowered(fn, *args, **options).save(path)
    return parallax.load_compiled(path)


def test_what_was_lowered_is_not_run_and_compiles_no_more() -> None:
    runs = []

    def count(x: Tensor) -> Tensor:
        result: Tensor = counted(x)
        return result

    @torch.library.custom_op("parallax_tests::counted", mutates_args=())
    def counted(x: Tensor) -> Tensor:
        runs.append(1)
        return x + 1

    counted.register_fake(torch.empty_like)
    compiled = parallax.compile(count, backend="eager")
    compiled.lower(X)
    assert (graphs(), runs) == (1, [])
    assert torch.equal(compiled(X), X + 1)
    assert (graphs(), runs) == (1, [1])
    train = parallax.compile(step, donate=("model", "state"), backend="eager")
    model, state = own()
    train.lower(model, state, X)
    assert torch.equal(model(X), net()(X))  # nothing was given away
    check_training(train)
    assert graphs() == 2


def test_a_donated_step_from_a_file(tmp_path: Path) -> None:
    train = reloaded(tmp_path / "step", step, *own(), X, donate=("model", "state"))
    check_training(train)
    model, state = own()
    memory = tree.leaves(model)[0].data_ptr()
    new, *_ = train(model, state, X)
    assert tree.leaves(new)[0].data_ptr() == memory
    with pytest.raises(optim.DonatedError, match="step"):
        model(X)
    model, state = own()
    model = model.replace(layers=(model.layers[0], model.layers[0], model.layers[2]))
    with pytest.raises(RuntimeError, match=r"layers\.1 was a Tanh and is a Dense"):
        train(model, state, X)
    assert graphs() == 1


_THERE = """
import sys, torch, parallax
from tests.compiler import test_lowering as here
train = parallax.load_compiled(sys.argv[1])
here.check_training(train)
assert "torch._dynamo.output_graph" not in sys.modules or here.graphs() == 0
"""


def _in_another_process(path: Path, **environment: str) -> None:
    subprocess.run(
        [sys.executable, "-c", _THERE, str(path)], check=True, env={**os.environ, **environment}
    )


def test_a_step_in_another_process(tmp_path: Path) -> None:
    lowered(step, *own(), X).save(tmp_path / "step")
    _in_another_process(tmp_path / "step")


@pytest.mark.slow
def test_on_the_default_backend_and_without_a_compiler(tmp_path: Path) -> None:
    path = tmp_path / "step"
    lowered(step, *own(), X, backend="inductor", donate=(0, 1)).save(path)
    _in_another_process(path, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "empty"), CXX="/none")
    # Gradients from outside: forward and backward are in the file.
    model = net().reset(0)
    loss = reloaded(
        tmp_path / "loss", lambda m, x: m(x).square().mean(), model, X, backend="inductor"
    )
    loss(model, X).backward()
    found = tree.leaves(model.grad())
    model = net().reset(0)
    mean_square(model, X).backward()
    torch.testing.assert_close(found, tree.leaves(model.grad()))


def test_keys_numbers_and_containers(tmp_path: Path) -> None:
    layer = nn.Dropout(0.5)

    def draw(layer: Any, batch: Any, *, scale: float) -> Any:
        batch["seen"] = batch["x"] + 1
        return layer(batch["x"]) * scale

    path = tmp_path / "draw"
    compiled = parallax.compile(draw, backend="eager")
    compiled.lower(layer.train(random.key(0)), {"x": X}, scale=2.0).save(path)
    loaded = parallax.load_compiled(path)
    for seed in (1, 2):
        batch = {"x": X}
        found = loaded(layer.train(random.key(seed)), batch, scale=2.0)
        assert torch.equal(found, layer.train(random.key(seed))(X) * 2)
        assert torch.equal(batch["seen"], X + 1)
    for scale in (3.0, 2):
        with pytest.raises(RuntimeError, match=r"scale was the float 2\.0, and is the"):
            loaded(layer.train(random.key(1)), {"x": X}, scale=scale)
    with pytest.raises(RuntimeError, match="a key of shape"):
        loaded(layer.train(3), {"x": X}, scale=2.0)


def test_other_calls_are_refused_by_the_name_of_what_differs(tmp_path: Path) -> None:
    def call(model: Any, x: Tensor) -> Any:
        return model(x)

    loaded = reloaded(tmp_path / "call", call, net(), X)
    model = net()
    other = nn.Sequential(Dense(SIZE, 4), nn.ReLU(), Dense(4, 2)).initialize(0)
    for args, match in [
        ((model,), "it took 2 arguments, and gets 1"),
        ((model, X[:2]), r"the shape of x was \(5, 4\), and is \(2, 4\)"),
        ((model, X.double()), "the dtype of x was torch.float32, and is torch.float64"),
        ((model, X.t().contiguous().t()), "the strides of x"),
        ((model, X.clone().requires_grad_()), "the requires_grad of x was False, and is True"),
        ((model, X.to("meta")), "the device of x was cpu, and is meta"),
        ((model, 3), "x was a plain tensor, and is 3"),
        ((model.eval(), X), "the mode of model was 'train' and is 'eval'"),
        ((other, X), r"model.layers.1 was Tanh, is ReLU|model.layers.1"),
        ((model, {"x": X}), "it took x, where it gets x.x"),
    ]:
        with pytest.raises(RuntimeError, match=match):
            loaded(*args)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"grad_mode.*set_grad_enabled\(True\)"):
        loaded(model, X)
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match="autocast"):
        loaded(model, X)
    with pytest.raises(RuntimeError, match="cannot be part of a transform"):
        torch.func.vmap(lambda x: loaded(model, x))(X)
    add = reloaded(tmp_path / "add", torch.add, X, X.clone())
    with pytest.raises(RuntimeError, match=r"input and other|args.0 and args.1 are one tensor"):
        add(X, X)
    assert torch.equal(loaded(model, X), model(X))


def test_other_files_are_refused_by_the_name_of_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "twice"
    lowered(lambda x: 2 * x, X).save(path)
    header, _, body = path.read_bytes()[len(MAGIC) :].partition(b"\n")
    for name, value in [("torch", "1.0"), ("Python", "cpython-30"), ("processor", "abacus")]:
        changed = {**json.loads(header), name: value}
        path.write_bytes(MAGIC + json.dumps(changed).encode() + b"\n" + body)
        with pytest.raises(RuntimeError, match=f"for {name} {value}, and here is .* Compile it"):
            parallax.load_compiled(path)
    moved = pickle.dumps({**pickle.loads(body), "imports": ["parallax.before.moved"]})
    path.write_bytes(MAGIC + header + b"\n" + moved)
    with pytest.raises(RuntimeError, match=r"for another Parallax .*parallax\.before.* Compile it"):
        parallax.load_compiled(path)
    path.write_bytes(MAGIC + header + b"\n" + body[: len(body) // 2])
    with pytest.raises(ValueError, match=r"is cut off or damaged: .* Write it again with"):
        parallax.load_compiled(path)
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match="is no compiled function"):
        parallax.load_compiled(path)
    with pytest.raises(FileNotFoundError):
        parallax.load_compiled(tmp_path / "nothing")


def test_what_cannot_be_saved_is_refused_by_its_name(tmp_path: Path) -> None:
    path, inside, log = tmp_path / "no", torch.ones(SIZE), list[int]()

    class Local(Dense):
        pass

    layer: Any = Local
    local: Any = layer(SIZE, 1).initialize(0)

    def appends(x: Tensor) -> Tensor:
        log.append(1)
        return x + 1

    def writes(x: Tensor) -> Tensor:
        return x.add_(1)

    cases: list[Any] = [
        (lambda x: x + HELD, (X,), {}, "it reads .*HELD, which is no argument"),
        (lambda x: x + inside, (X,), {}, "it reads or writes what it closes over"),
        (appends, (X,), {}, "appends cannot be saved: it reads or writes what it closes over"),
        (writes, (X.clone(),), {}, "it writes into a tensor that it is given"),
        (lambda m: m(X + 1), (local,), {}, "reads .*X"),
        (lambda m, x: m(x), (local, X), {}, "top level of a module"),
        (lambda x, f: x + 1, (X, functools.partial(int)), {}, "an argument holds a type"),
        (lambda x: x + 1, (X,), {"dynamic": True}, "Leave dynamic=True out"),
    ]
    for fn, args, options, match in cases:
        with pytest.raises(TypeError, match=match):
            lowered(fn, *args, **options).save(path)
    with pytest.raises(TypeError, match="what backend='aot_eager' makes cannot be saved"):
        lowered(appends, X, backend="aot_eager")
    compiled = parallax.compile(writes, backend="eager")
    with pytest.raises(RuntimeError, match="outside of transforms"):
        torch.func.vmap(lambda x: compiled.lower(x))(X)
    with pytest.raises(parallax.UninitializedError, match=r"m\.weight is not initialized"):
        lowered(lambda m: m(X), nn.Linear(3, 2))
    assert not list(tmp_path.iterdir())
