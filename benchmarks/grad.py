"""What does a gradient cost, as a tree?

The references are what people write without trees: an `nn.Module` and `loss.backward()`, and the
functional form, `torch.func.grad` over `functional_call`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import floor
from benchmarks.harness import Candidate, Question
from benchmarks.models import CONTEXT, VOCABULARY, NnGPT, NnMLP, mirror
from parallax import Module, func, tree

Loss = Callable[[Any], Tensor]


def questions(quick: bool) -> Iterator[Question]:
    gpt = language_model(2 if quick else 12)
    large = f"a GPT of {len(list(gpt[0].parameters()))} leaves"
    yield _against_backward("a 3-layer MLP", *tiny(), limit=1.0)
    yield replace(_against_backward(large, *gpt, limit=1.0), all_threads=True)
    yield _against_functional_call("a 3-layer MLP", *tiny(), limit=0.55)
    yield replace(_against_functional_call(large, *gpt, limit=None), all_threads=True)
    yield _hessian_product("a 3-layer MLP", *tiny())


def tiny() -> tuple[nn.Module, Loss]:
    """A small classifier and its loss on a batch."""
    x, y = torch.randn(32, 64), torch.randint(10, (32,))
    return NnMLP((64, 64, 64, 10)), lambda model: F.cross_entropy(model(x), y)


def language_model(blocks: int) -> tuple[nn.Module, Loss]:
    """A transformer and its loss on a batch of sequences."""
    tokens = torch.randint(VOCABULARY, (4, CONTEXT))
    after = torch.randint(VOCABULARY, (4 * CONTEXT,))
    return NnGPT(blocks), lambda model: F.cross_entropy(model(tokens).flatten(0, 1), after)


def same_gradients(named: dict[str, Tensor], grads: Module) -> None:
    """Both hold the same numbers under the same names."""
    torch.testing.assert_close(tree.named_leaves(grads), named, rtol=1e-4, atol=1e-5)


def _against_backward(name: str, model: nn.Module, loss: Loss, limit: float) -> Question:
    module = mirror(model)
    gradient, both = func.grad(loss), func.grad_and_value(loss)

    def backward() -> Tensor:
        model.zero_grad()
        value = loss(model)
        value.backward()
        return value

    def check(value: Tensor, result: Any) -> None:
        grads, ours = result if isinstance(result, tuple) else (result, value)
        torch.testing.assert_close(ours, value)
        backward()
        named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        same_gradients(named, grads)

    return Question(
        f"gradient of {name}",
        Candidate("nn.Module, zero_grad, loss.backward()", backward),
        [
            Candidate("parallax func.grad_and_value", kept(lambda: both(module)), limit=limit),
            Candidate("parallax func.grad", kept(lambda: gradient(module))),
        ],
        check=check,
        floor=Candidate("floor: the tape over a flat list", kept(straight_gradient(model, loss))),
    )


def straight_gradient(model: nn.Module, loss: Loss) -> Callable[[], tuple[Any, Tensor]]:
    """The gradient of a flat list on autograd's tape, made a tree for the check."""
    structure = tree.structure(mirror(model))
    line, flat = floor.line_of(model), [value.detach() for value in model.parameters()]

    def run() -> tuple[Any, Tensor]:
        leaves = [value.detach().requires_grad_() for value in flat]
        value = loss(lambda x: line(leaves, x))
        return tree.unflatten(structure, torch.autograd.grad(value, leaves)), value.detach()

    return run


def kept(run: Callable[[], Any]) -> Callable[[], Any]:
    """Keeps a result until the next one is computed, as ``.grad`` is kept until ``zero_grad``.

    What is dropped at once gives its memory back to the system, and the next call has to ask for
    it again page by page.
    """
    held: list[Any] = []

    def keeping() -> Any:
        held.clear()
        held.append(run())
        return held[0]

    return keeping


def _against_functional_call(
    name: str, model: nn.Module, loss: Loss, limit: float | None
) -> Question:
    module = mirror(model)
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def functional(weights: dict[str, Tensor]) -> Tensor:
        return loss(lambda x: torch.func.functional_call(model, weights, (x,)))

    gradient = torch.func.grad_and_value(functional)
    both, raw = func.grad_and_value(loss), torch.func.grad_and_value(loss)
    return Question(
        f"gradient of {name}, functional",
        Candidate("torch.func.grad_and_value(functional_call)", lambda: gradient(weights)),
        [
            Candidate("parallax func.grad_and_value", lambda: both(module), limit=limit),
            Candidate("torch.func.grad_and_value of a module", lambda: raw(module)),
        ],
        check=lambda named, ours: same_gradients(named[0], ours[0]),
        remains="This is the cost of torch.func itself when it is given a module",
        floor=Candidate("floor: the tape over a flat list", straight_gradient(model, loss)),
    )


def _hessian_product(name: str, model: nn.Module, loss: Loss) -> Question:
    module = mirror(model)
    along = tree.map(torch.ones_like, module)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    ones = {name: torch.ones_like(value) for name, value in weights.items()}

    def functional(weights: dict[str, Tensor]) -> Tensor:
        return loss(lambda x: torch.func.functional_call(model, weights, (x,)))

    structure = tree.structure(module)
    line, flat = floor.line_of(model), [value.detach() for value in model.parameters()]

    def straight() -> Any:
        leaves = [value.detach().requires_grad_() for value in flat]
        value = loss(lambda x: line(leaves, x))
        grads = torch.autograd.grad(value, leaves, create_graph=True)
        product = torch.autograd.grad(grads, leaves, [torch.ones_like(grad) for grad in grads])
        return tree.unflatten(structure, product)

    return Question(
        f"Hessian-vector product of {name}",
        Candidate(
            "torch.func.jvp(torch.func.grad)",
            lambda: torch.func.jvp(torch.func.grad(functional), (weights,), (ones,))[1],
        ),
        [Candidate("parallax func.hvp", lambda: func.hvp(loss, (module,), (along,))[1][0])],
        check=same_gradients,
        floor=Candidate("floor: the tape twice over a flat list", straight),
        remains="The inner gradient is a tree, and two searches find whether its graph is needed",
    )
