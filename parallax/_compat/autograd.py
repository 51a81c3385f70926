"""The engine that runs a backward, and its error messages.

``torch.autograd.grad`` does in Python what costs as much as four operators before it calls the
engine; the engine itself is private, as is the number of the backward that runs. Autograd's errors
have no classes of their own, so they are recognised by their messages.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat.dynamo import constant_in_traces

graph_task: Callable[[], int] = torch._C._current_graph_task_id
"""The number of the backward that this code runs within; -1 outside of any."""

AccumulateGrad: type = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]  # made in C++
"""The node of autograd's graph that stands for a leaf, its ``variable``."""


next_number: Callable[[], int] = torch._C._autograd._get_sequence_nr
"""The number that the next node of autograd's graph gets, in this thread."""


def in_backward() -> bool:
    """Whether this code runs within autograd's backward, as recomputation does."""
    return graph_task() != -1


@constant_in_traces
def load_forward_rules() -> None:
    """Loads torch's derivatives in forward mode without a warning.

    The first derivative in forward mode loads them, with a compiler that torch says not to use.
    """
    if "torch._decomp.decompositions_for_jvp" not in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.autograd.forward_ad._maybe_load_decompositions()


_run_backward: Callable[..., Any] = torch.autograd.Variable._execution_engine.run_backward


def backward(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    inputs: Sequence[Tensor],
    retain_graph: bool,
    create_graph: bool,
) -> list[Tensor]:
    """As ``torch.autograd.grad``, with zeros for the inputs that nothing depends on.

    What that function does in Python before it calls the engine costs as much as four operators.
    """
    found: Sequence[Tensor | None]
    if any([type(x) is not Tensor for x in outputs]):
        found = torch.autograd.grad(
            outputs, inputs, cotangents, retain_graph=retain_graph, create_graph=create_graph,
            allow_unused=True,
        )  # fmt: skip
    else:
        # The function in between hands the context on to the threads of other devices.
        run = _run_backward if outputs[0].is_cpu else torch.autograd.graph._engine_run_backward
        found = run(
            tuple(outputs), tuple(cotangents), retain_graph, create_graph, tuple(inputs),
            allow_unreachable=True, accumulate_grad=False,
        )  # fmt: skip
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def accumulated(output: Tensor, cotangent: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """As ``backward`` for a graph that ends at these fresh leaves and at no other.

    Accumulating is cheaper than handing gradients out (by one in a hundred for 150 leaves), and
    each leaf gets a tensor of its own: none is shared, and none is an expanded number.
    """
    if type(output) is Tensor and output.is_cpu:
        _run_backward(
            (output,), (cotangent,), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
    else:
        torch.autograd.backward(output, cotangent)
    found = [leaf.grad for leaf in leaves]
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def is_view(value: Any, base: Any) -> bool:
    """Whether a value is a view of this very tensor, as autograd remembers it."""
    return isinstance(value, Tensor) and isinstance(base, Tensor) and value._base is base


def is_inference_refusal(error: RuntimeError) -> bool:
    """Whether autograd met a tensor that was made in inference mode."""
    return str(error).startswith(
        (
            "Inference tensors cannot be saved for backward",
            "Setting requires_grad=True on inference tensor outside InferenceMode",
        )
    )


def is_forward_refusal(error: RuntimeError) -> bool:
    """Whether an operator, or the backward of one, has no derivative in forward mode."""
    return str(error).startswith(
        (
            "Trying to use forward AD with",
            "ZeroTensors are immutable",
            "Trying to set a forward gradient that has a different size",
        )
    )


def is_real_refusal(error: RuntimeError) -> bool:
    """Whether a backward gave a real tensor a complex gradient, as that of ``eigvalsh`` does."""
    return "isFloatingType(grad.scalar_type()) || (input_is_complex" in str(error)


def is_cut_refusal(error: RuntimeError) -> bool:
    """Whether ``torch.func`` refused an operation that detaches tensors silently on the tape."""
    return str(error).startswith(
        (
            "You are attempting to call Tensor.requires_grad_()",
            "In order to use an autograd.Function with functorch transforms",
        )
    )


def is_dtype_refusal(error: RuntimeError) -> bool:
    """Whether a kernel met tensors of two dtypes, as under autocast."""
    return str(error).startswith("expected scalar type")


def differentiates_backward(nodes: Iterable[Any]) -> bool:
    """Whether any node is the derivative of a backward that is an operator of its own."""
    return any(["BackwardBackward" in kind.__name__ for kind in set(map(type, nodes))])


def nodes_of(tensors: Sequence[Tensor]) -> set[Any]:
    """All nodes of the graph of some tensors."""
    stack: list[Any] = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(stack)
    while stack:
        for below, _ in stack.pop().next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                stack.append(below)
    return seen


def connected(tensor: Tensor) -> bool:
    """Whether autograd can start from a tensor.

    A view of a leaf that was taken under ``no_grad`` says that it requires grad, and has no graph.
    """
    return tensor.grad_fn is not None or (tensor.requires_grad and tensor._base is None)
