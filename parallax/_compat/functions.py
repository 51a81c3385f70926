"""A user's ``torch.autograd.Function`` in what dynamo traces within a transform.

Dynamo (2.13 and 2.14) traces its forward there as if it had no backward: the gradient is that of
the operators in forward, without a word. It is zero for a straight-through estimator, and has the
wrong sign for a reversed gradient. Here the function's own backward becomes the derivative.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import flow, functorch, once, trace_derivatives
from parallax._compat.dynamo import constant_in_traces

__all__ = ["keep_backwards"]


@constant_in_traces
def keep_backwards() -> None:
    """Has dynamo take derivatives of such functions by their backward, from now on."""
    _keep_backwards()


@functools.cache
def _keep_backwards() -> None:
    from torch._dynamo.source import AttrSource
    from torch._dynamo.variables import misc
    from torch._dynamo.variables.base import VariableTracker

    _refused()
    unset = torch.autograd.function._SingleLevelFunction.setup_context
    variable: Any = misc.AutogradFunctionVariable
    call = variable.call_apply

    def call_apply(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        function = self.fn_cls
        own = function.__module__.partition(".")[0] == "parallax"
        if own or functorch.current_level() == 0 or not torch.is_grad_enabled():
            return call(self, tx, args, kwargs)

        def part(*names: str) -> Any:
            value, source = function, self.source
            for name in names:
                value, source = getattr(value, name), source and AttrSource(source, name)
            return VariableTracker.build(tx, value, source)

        plain = function.setup_context is unset
        parts = [
            part("forward"),
            VariableTracker.build(tx, None) if plain else part("setup_context"),
            part(*once.unmarked(function)),
            VariableTracker.build(tx, function.__name__ if once.is_marked(function) else ""),
        ]
        return VariableTracker.build(tx, _applied).call_function(tx, [*parts, *args], kwargs)

    variable.call_apply = call_apply


def _refused() -> None:
    """Defines the operator that raises where a second derivative is computed."""

    def second_derivative(x: Tensor, cotangent: Tensor, name: str) -> Tensor:
        raise once.refusal(name)

    op = torch.library.custom_op("parallax::second_derivative", second_derivative, mutates_args=())
    op.register_fake(lambda x, cotangent, name: torch.empty_like(x))
    op.register_vmap(lambda info, dims, x, *rest: (op(x, *rest), dims[0]))


_OWN = ("needs_input_grad", "saved_tensors", "parallax_still", "parallax_fills")


class _Context:
    """What a function gets as ``ctx`` in a trace."""

    def __init__(self, needs: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs
        self.saved_tensors: tuple[Any, ...] = ()
        self.parallax_still: tuple[Any, ...] = ()
        self.parallax_fills = True

    def has_more(self) -> bool:
        """Whether the function wrote attributes."""
        return len(self.__dict__) > len(_OWN)

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Any) -> None: ...

    def mark_non_differentiable(self, *tensors: Any) -> None:
        self.parallax_still = tensors

    def set_materialize_grads(self, value: bool) -> None:
        self.parallax_fills = value

    def mark_dirty(self, *tensors: Any) -> None:
        raise RuntimeError(
            "an autograd.Function that writes into its inputs has no derivative by a transform in "
            "compiled code. Have its forward return a new tensor"
        )


class _Saved:
    """The same in backward, with the function's results in the place of what forward computed."""

    def __init__(
        self, ctx: _Context, computed: Sequence[Tensor], results: Sequence[Tensor]
    ) -> None:
        self.parallax_ctx = ctx
        self.parallax_pairs = list(zip(computed, results, strict=True))
        self.saved_tensors = _exchanged(ctx.saved_tensors, self.parallax_pairs)

    def __getattr__(self, name: str) -> Any:
        return _exchanged(getattr(self.parallax_ctx, name), self.parallax_pairs)


def _exchanged(value: Any, pairs: Sequence[tuple[Tensor, Tensor]]) -> Any:
    """The value with the second tensor of a pair wherever it has the first."""
    if isinstance(value, Tensor):
        for computed, result in pairs:
            if value is computed:
                return result
    elif type(value) in (tuple, list):
        return type(value)([_exchanged(item, pairs) for item in value])
    elif type(value) is dict:
        return {key: _exchanged(item, pairs) for key, item in value.items()}
    return value


def _applied(
    forward: Callable[..., Any], setup: Callable[..., Any] | None, backward: Callable[..., Any],
    once_only: str, *args: Any,
) -> Any:  # fmt: skip
    """The result of a function, with the derivative by its backward; dynamo traces it.

    Args:
        forward: of the function.
        setup: its ``setup_context``, if it has one.
        backward: of the function, without a mark of ``once_differentiable``.
        once_only: the name of the function if it had that mark, otherwise empty.
        *args: of the call.
    """
    moving = [_is_inexact(x) for x in args]
    tensors = [x for x, moves in zip(args, moving, strict=True) if moves]
    ctx = _Context(tuple(moving))
    with trace_derivatives.forward_of_rule():
        if setup is None:
            out = forward(ctx, *args)
        else:
            out = forward(*args)
            setup(ctx, args, out)
    outs = list(out) if isinstance(out, (tuple, list)) else [out]
    still = [not _is_inexact(x) or any([x is y for y in ctx.parallax_still]) for x in outs]
    moved = [x for x, stays in zip(outs, still, strict=True) if not stays]

    def body(*given: Tensor) -> tuple[Any, Any]:
        cotangents, own = list(given[: len(moved)]), given[len(moved) :]
        around: list[Tensor | None] = []
        for x, stays in zip(outs, still, strict=True):
            if not stays:
                around.append(cotangents.pop(0))
            else:
                fills = ctx.parallax_fills and isinstance(x, Tensor)
                around.append(torch.zeros_like(x) if fills else None)
        with trace_derivatives.of_rule():
            found = backward(_Saved(ctx, moved, own), *around)
        row = list(found) if isinstance(found, (tuple, list)) else [found]
        # There may be more than arguments, as torch allows.
        grads = [grad for grad, moves in zip(row, moving, strict=False) if moves]
        there = [grad for grad in grads if grad is not None]
        if once_only and there:
            # What is kept may come from every argument.
            kept = list(tensors) if ctx.saved_tensors or ctx.has_more() else []
            there = list(_led(once_only, there, [*kept, *given[: len(moved)]]))
        return tuple([grad.clone() for grad in there]), [grad is not None for grad in grads]

    made = [x.detach() for x in moved]
    if tensors and moved:
        made = list(flow.custom_derivative(body, tensors, made, None))
    whole = [_still(x) if stays else made.pop(0) for x, stays in zip(outs, still, strict=True)]
    if isinstance(out, tuple):
        return tuple(whole)
    return whole if isinstance(out, list) else whole[0]


def _is_inexact(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _still(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _led(name: str, grads: Sequence[Tensor], sources: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradients as they are, which refuse to be differentiated."""

    def refuse(*cotangents: Tensor) -> tuple[Any, Any]:
        # Without a cotangent it would not be known to belong to backward. torch looks for a
        # derivative of the operator unless its inputs are without one.
        call, given = torch.ops.parallax.second_derivative, cotangents[0].detach()
        return tuple([call(x.detach(), given, name) for x in sources]), [True for _ in sources]

    return flow.custom_derivative(refuse, sources, [x.detach() for x in grads], [])
