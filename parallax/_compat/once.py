"""Functions with a first derivative only: ``torch.autograd.function.once_differentiable``.

torch cannot tell what the gradient of such a function was computed from. It gives the gradient no
graph, or one that leads nowhere, so a second derivative comes without their part, and nobody is
told. What it was computed from is what the function saved: a gradient that is recorded gets a graph
that leads there, and raises where it is followed.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import custom_function_call
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves

from parallax._compat.gradients import read

__all__ = ["is_marked", "marked", "refusal", "refuse_in_transforms", "refuse_second", "unmarked"]


def marked(nodes: Collection[Any]) -> list[Any]:
    """Those of some nodes of autograd's graph that have a first derivative only."""
    kinds = {kind for kind in set(map(type, nodes)) if _is_marked(kind)}
    return [node for node in nodes if type(node) in kinds] if kinds else []


def refuse_second(nodes: Collection[Any], inputs: Sequence[Tensor]) -> None:
    """Has second derivatives through these nodes raise, if they have none.

    Args:
        nodes: of autograd's graph of a function, before it goes backward.
        inputs: those of the function, of which derivatives may be asked for.
    """
    for node in marked(nodes):
        node.register_hook(functools.partial(_lead_back, inputs))


def refuse_in_transforms(running: Callable[[], bool]) -> None:
    """Has transforms of ``torch.func`` do so, too, which ``refuse_second`` does not see; once.

    Args:
        running: whether somebody who wants to be told takes a derivative.
    """
    table = custom_function_call.functorch_table
    grad = table[torch._C._functorch.TransformType.Grad]
    if grad.__name__ == "watched":
        return

    def watched(interpreter: Any, function: Any, *operands: Any) -> Any:
        outs = grad(interpreter, function, *operands)
        if is_marked(function) and running():
            made = [x for x in tree_leaves(outs) if isinstance(x, Tensor)]
            nodes = {x.grad_fn for x in made if x.grad_fn is not None}
            refuse_second(nodes, [x for x in operands if isinstance(x, Tensor)])
        return outs

    table[torch._C._functorch.TransformType.Grad] = watched


_MARKED = once_differentiable(lambda ctx: None).__code__
_UNMARKED = "GeneratedBackwardFor_torch_nn__linear_cross_entropy_batch_chunked"
"""Begins the names of torch's own functions that lack the mark."""


def _is_marked(kind: type) -> bool:
    """Whether the nodes of this kind have a backward that is differentiable once."""
    return is_marked(_function_of(kind))


def is_marked(function: Any) -> bool:
    """Whether an ``autograd.Function`` has a backward that is differentiable once."""
    if getattr(function, "__name__", "").startswith(_UNMARKED):
        return True
    for name in ("backward", "vjp"):  # two names for one method
        backward = getattr(function, name, None)
        while backward is not None:
            if getattr(backward, "__code__", None) is _MARKED:
                return True
            backward = getattr(backward, "__wrapped__", None)
    return False


def unmarked(function: Any) -> tuple[str, ...]:
    """The attributes that lead from an ``autograd.Function`` to its backward below the mark."""
    name = "backward" if function.vjp is torch.autograd.Function.vjp else "vjp"
    marked = getattr(getattr(function, name), "__code__", None) is _MARKED
    return (name, "__wrapped__") if marked else (name,)


def refusal(name: str) -> RuntimeError:
    """What is raised where a second derivative of a function is computed."""
    if name.startswith(_UNMARKED):
        return RuntimeError(
            "a second derivative of F.linear_cross_entropy with options was asked for, of which "
            "torch has the first only. Leave options out"
        )
    return RuntimeError(
        f"a second derivative of {name} was asked for, whose backward is marked with "
        f"once_differentiable, so torch has the first only. Write its backward with operators "
        f"that are differentiable and without that mark, or detach what it is given"
    )


def _function_of(kind: type) -> Any:
    """The user's ``autograd.Function`` behind nodes of this kind, or ``None``.

    ``torch.func`` makes a function of its own for each level, around the user's.
    """
    function = getattr(kind, "_forward_cls", None)
    while function is not None:
        code = getattr(function.backward, "__code__", None)
        if code is None or "autograd_function" not in code.co_freevars:
            break
        place = code.co_freevars.index("autograd_function")
        function = function.backward.__closure__[place].cell_contents
    return function


def _lead_back(
    inputs: Sequence[Tensor],
    grads: tuple[Tensor | None, ...],
    cotangents: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...] | None:
    """Runs after a marked function's backward."""
    if not torch.is_grad_enabled():
        return None
    node: Any = torch._C._current_autograd_node()  # held by this function, it would hold itself
    saved = read(node, _saved)
    sources = [x for x in [*saved, *cotangents] if x is not None and x.requires_grad]
    name = _function_of(type(node)).__name__
    known = [x.requires_grad for x in saved if x.is_floating_point() or x.is_complex()]
    if not all(known) or name.startswith(_UNMARKED):  # which drops what it kept
        # What forward computed without a graph may come from every input.
        below = _below(node)
        sources += [leaf.variable for leaf in below if hasattr(leaf, "variable")]
        sources += [x for x in inputs if x.grad_fn in below]
    found = [grad for grad in grads if grad is not None]
    if not sources or not found:
        return None
    led = iter(_Led.apply(name, len(found), *found, *sources))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return tuple([None if grad is None else next(led) for grad in grads])


def _saved(node: Any) -> list[Tensor]:
    """The tensors that a function kept for its backward, as torch says to or as attributes."""
    kept = tree_leaves([*node.saved_tensors, *vars(node).values()])
    return [x for x in kept if isinstance(x, Tensor)]


def _below(node: Any) -> set[Any]:
    """The nodes that a node leads to."""
    left: list[Any] = [node]
    seen: set[Any] = set()
    while left:
        below = {inner for inner, _ in left.pop().next_functions if inner is not None} - seen
        seen |= below
        left += below
    return seen


class _Led(torch.autograd.Function):
    """Gradients as they are, which refuse to be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple([x.view_as(x) for x in tensors[:count]])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.name, ctx.count = inputs[:2]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise refusal(ctx.name)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[2 : 2 + ctx.count]
