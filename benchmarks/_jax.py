"""Times JAX and Equinox on request: a line in with a task, a line out with seconds."""

# pyright: reportMissingImports=false
# (it is an optional peer; nothing imports this file where it is absent)
from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter
from typing import Any

# One thread on either side; what XLA and its BLAS would take must be said before they start.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"

import equinox as eqx
import jax
import jax.numpy as jnp

BLOCKS = 12


class Linear(eqx.Module):
    weight: Any
    bias: Any

    def __call__(self, x: Any) -> Any:
        return self.weight @ x + self.bias


class Norm(eqx.Module):
    weight: Any
    bias: Any
    eps: float = eqx.field(static=True, default=1e-5)


class Attention(eqx.Module):
    qkv: Linear
    out: Linear
    heads: int = eqx.field(static=True, default=4)


class Feed(eqx.Module):
    up: Linear
    down: Linear


class Block(eqx.Module):
    norm1: Norm
    attention: Attention
    norm2: Norm
    feed: Feed


class Embedding(eqx.Module):
    weight: Any


class GPT(eqx.Module):
    """The tree of the benchmarks' transformer, 150 leaves."""

    position: Any
    tokens: Embedding
    blocks: tuple[Block, ...]
    norm: Norm
    head: Linear


class MLP(eqx.Module):
    layers: tuple[Linear, ...]

    def __call__(self, x: Any) -> Any:
        *inner, last = self.layers
        for layer in inner:
            x = jax.nn.relu(layer(x))
        return last(x)


def _linear(n: int, m: int) -> Linear:
    return Linear(jnp.ones((m, n)), jnp.ones((m,)))


def _norm() -> Norm:
    return Norm(jnp.ones((8,)), jnp.ones((8,)))


def _block() -> Block:
    attention = Attention(_linear(8, 24), _linear(8, 8))
    return Block(_norm(), attention, _norm(), Feed(_linear(8, 32), _linear(32, 8)))


def tasks() -> dict[str, Callable[[], Any]]:
    gpt = GPT(
        jnp.ones((32, 8)),
        Embedding(jnp.ones((64, 8))),
        tuple(_block() for _ in range(BLOCKS)),
        _norm(),
        _linear(8, 64),
    )
    leaves, structure = jax.tree_util.tree_flatten(gpt)
    assert len(leaves) == 150
    mlp = _mlp(64, 64, 64, 10)
    x = jnp.ones((64,))
    call = eqx.filter_jit(lambda model, x: model(x))
    weight, bias = jnp.ones((2,)), jnp.ones((2,))
    value = gpt.blocks[3].attention.qkv.weight
    ensemble = eqx.filter_jit(
        eqx.filter_vmap(lambda model, x: jax.vmap(model)(x), in_axes=(0, None))
    )
    members = jax.tree_util.tree_map(lambda leaf: jnp.stack([leaf] * 8), _mlp(8, 8, 8, 8))
    few = jnp.ones((8, 8))
    return {
        "map": lambda: jax.tree_util.tree_map(lambda leaf: leaf, gpt),
        "flatten": lambda: jax.tree_util.tree_flatten(gpt),
        "unflatten": lambda: jax.tree_util.tree_unflatten(structure, leaves),
        "set": lambda: eqx.tree_at(lambda m: m.blocks[3].attention.qkv.weight, gpt, value),
        "partition": lambda: eqx.combine(*eqx.partition(gpt, lambda leaf: leaf.ndim == 2)),
        "construct": lambda: Linear(weight, bias),
        "read": _read(mlp),
        "call": lambda: call(mlp, x).block_until_ready(),
        "ensemble": lambda: ensemble(members, few).block_until_ready(),
        "step": _adam_step(),
        "laplacian": _laplacian_step(),
    }


def _read(owner: MLP) -> Callable[[], Any]:
    """As `benchmarks/attribute.py` reads."""
    scope: dict[str, Any] = {"owner": owner}
    exec("def read():\n" + "    owner.layers\n" * 100, scope)
    return scope["read"]  # type: ignore[no-any-return]  # made by the exec above


def _mlp(*sizes: int) -> MLP:
    return MLP(tuple(_linear(n, m) for n, m in pairwise(sizes)))


def _adam_step() -> Callable[[], Any]:
    """A compiled step of Adam, written out as in `benchmarks/compile.py`."""
    rate, beta1, beta2, eps = 1e-3, 0.9, 0.999, 1e-8
    tree_map = jax.tree_util.tree_map

    def loss(model: MLP, x: Any, y: Any) -> Any:
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    def step(model: MLP, m: MLP, v: MLP, t: Any, x: Any, y: Any) -> Any:
        value, grads = eqx.filter_value_and_grad(loss)(model, x, y)
        t = t + 1
        m = tree_map(lambda m, g: m + (1 - beta1) * (g - m), m, grads)
        v = tree_map(lambda v, g: beta2 * v + (1 - beta2) * g * g, v, grads)
        alpha, scale = rate / (1 - beta1**t), jnp.sqrt(1 - beta2**t)
        moved = tree_map(lambda p, m, v: p - alpha * m / (jnp.sqrt(v) / scale + eps), model, m, v)
        return moved, m, v, t, value

    compiled: Any = eqx.filter_jit(step)
    x, y = jnp.ones((8, 16)), jnp.ones((8, 4))
    model = _mlp(16, 32, 32, 4)
    zeros = tree_map(jnp.zeros_like, model)
    held: list[Any] = [model, zeros, zeros, jnp.zeros(())]

    def run() -> None:
        *held[:], value = compiled(*held, x, y)
        value.block_until_ready()

    return run


def _laplacian_step() -> Callable[[], Any]:
    """As in `benchmarks/laplacian.py`, by forward mode twice, the fastest of its ways."""
    sizes = (2, 64, 64, 1)
    shapes = [(m, n) for n, m in pairwise(sizes)]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    pairs = zip(keys, shapes, strict=True)
    net = [(jax.random.normal(key, shape) / 8, jnp.zeros(shape[0])) for key, shape in pairs]
    points = jax.random.uniform(jax.random.key(1), (256, 2))

    def at(net: Any, x: Any) -> Any:
        *inner, (weight, bias) = net
        for w, b in inner:
            x = jnp.tanh(w @ x + b)
        return (weight @ x + bias)[0]

    def twice(net: Any, x: Any, v: Any) -> Any:
        def along(x: Any) -> Any:
            return jax.jvp(lambda x: at(net, x), (x,), (v,))[1]

        return jax.jvp(along, (x,), (v,))[1]

    def loss(net: Any) -> Any:
        found = jax.vmap(lambda x: sum(twice(net, x, v) for v in jnp.eye(2)))(points)
        return jnp.mean((found - 1) ** 2)

    step = jax.jit(jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(step(net))


def main() -> None:
    known = tasks()
    for line in sys.stdin:
        task, calls = json.loads(line)
        run = known[task]
        run()
        gc.disable()
        start = perf_counter()
        for _ in range(calls):
            run()
        seconds = (perf_counter() - start) / calls
        gc.enable()
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
