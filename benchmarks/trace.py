"""What does dynamo ask for modules: to trace a step, and to check its guards at every call?"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from benchmarks.harness import Candidate, Question
from benchmarks.models import CONTEXT, HEADS, VOCABULARY, NnGPT, as_dict, attend, mirror
from parallax import tree

LATE = True

_PARTS = "Dynamo traces how modules are flattened and rebuilt, and guards each of them"

Step = Callable[[Any, Tensor, Tensor], Any]


def questions(quick: bool) -> Iterator[Question]:
    del quick
    model = NnGPT(1).requires_grad_(False)
    module = mirror(model)
    nested = as_dict(module)
    flat = torch_pytree.tree_leaves(nested)
    tokens = torch.randint(0, VOCABULARY, (2, CONTEXT))
    data = tokens, tokens.roll(1, -1)

    yield Question(
        "cold trace of a gradient and SGD step, 1-layer GPT",
        _cold("nested dict, torch's tree_map", _dict_step, nested, data),
        [
            _cold("parallax, tree.map", _module_step, module, data),
            _cold("parallax, torch's tree_map", _raw_step, module, data),
        ],
        floor=_cold("flat list", _list_step, flat, data),
        remains=_PARTS,
        most_rounds=2,
    )
    yield Question(
        "a call whose graph does nothing, forward of a 1-layer GPT",
        _idle("nn.Module", lambda m, x, _: m(x), model, data),
        [
            _idle("parallax", lambda m, x, _: m(x), module, data),
        ],
        peers=[_idle("nested dict", lambda d, x, _: _dict_gpt(d, x), nested, data)],
        floor=_idle("flat list", lambda leaves, x, _: _list_gpt(leaves, x), flat, data),
        remains=_PARTS,
    )
    yield Question(
        "a call whose graph does nothing, step of a 1-layer GPT, tree in and tree out",
        _idle("nested dict", _dict_step, nested, data),
        [
            _idle("parallax", _module_step, module, data),
        ],
        floor=_idle("flat list", _list_step, flat, data),
        remains=_PARTS,
    )


def _cold(name: str, step: Step, argument: Any, data: tuple[Tensor, Tensor]) -> Candidate:
    def run() -> float:
        torch._dynamo.reset()
        gc.collect()
        start = time.process_time()  # dynamo runs in one thread; other processes do not count
        torch.compile(step, backend="eager", fullgraph=True)(argument, *data)
        return time.process_time() - start

    return Candidate(name, run, self_timed=True)


def _idle(name: str, step: Step, argument: Any, data: tuple[Tensor, Tensor]) -> Candidate:
    """Calls that check guards, load the inputs, build the outputs, and compute nothing."""
    held: list[Any] = []

    def nothing(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        results = graph(*inputs)
        return lambda *_: results

    def run() -> Any:
        if not held:  # compiled at the first call, after other candidates reset dynamo
            held.append(torch.compile(step, backend=nothing, fullgraph=True))
        return held[0](argument, *data)

    return Candidate(name, run)


def _module_step(module: Any, x: Tensor, y: Tensor) -> Any:
    grads = torch.func.grad(lambda m: _loss(m(x), y))(module)
    return tree.map(lambda p, g: p - 0.1 * g, module, grads)


def _raw_step(module: Any, x: Tensor, y: Tensor) -> Any:
    grads = torch.func.grad(lambda m: _loss(m(x), y))(module)
    return torch_pytree.tree_map(lambda p, g: p - 0.1 * g, module, grads)


def _dict_step(nested: Any, x: Tensor, y: Tensor) -> Any:
    grads = torch.func.grad(lambda d: _loss(_dict_gpt(d, x), y))(nested)
    return torch_pytree.tree_map(lambda p, g: p - 0.1 * g, nested, grads)


def _list_step(leaves: Any, x: Tensor, y: Tensor) -> Any:
    grads = torch.func.grad(lambda each: _loss(_list_gpt(each, x), y))(leaves)
    return [p - 0.1 * g for p, g in zip(leaves, grads)]  # noqa: B905  # dynamo traces no strict=


def _loss(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), y.flatten())


def _dict_gpt(d: Any, tokens: Tensor) -> Tensor:
    x = F.embedding(tokens, d["tokens"]["weight"]) + d["position"][: tokens.shape[-1]]
    for block in d["blocks"]:
        qkv = _linear(block["attention"]["qkv"], _norm(block["norm1"], x))
        x = x + _linear(block["attention"]["out"], attend(qkv, HEADS))
        up = _linear(block["feed"]["up"], _norm(block["norm2"], x))
        x = x + _linear(block["feed"]["down"], F.gelu(up))
    return _linear(d["head"], _norm(d["norm"], x))


def _linear(d: Any, x: Tensor) -> Tensor:
    return F.linear(x, d["weight"], d["bias"])


def _norm(d: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, d["weight"].shape, d["weight"], d["bias"])


def _list_gpt(leaves: Any, tokens: Tensor) -> Tensor:
    position, embedding, *rest = leaves
    width = position.shape[-1:]
    x = F.embedding(tokens, embedding) + position[: tokens.shape[-1]]
    for k in range(0, len(rest) - 4, 12):
        w = rest[k : k + 12]
        qkv = F.linear(F.layer_norm(x, width, w[0], w[1]), w[2], w[3])
        x = x + F.linear(attend(qkv, HEADS), w[4], w[5])
        up = F.linear(F.layer_norm(x, width, w[6], w[7]), w[8], w[9])
        x = x + F.linear(F.gelu(up), w[10], w[11])
    last = rest[-4:]
    return F.linear(F.layer_norm(x, width, last[0], last[1]), last[2], last[3])
