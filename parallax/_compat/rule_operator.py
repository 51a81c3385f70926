"""A higher-order operator that puts a written derivative in the place of a recorded one.

Only compiled custom derivatives load this file, which loads dynamo; ``flow.custom_derivative`` is
the way to it. Dynamo traces the forward of an ``autograd.Function`` within a transform as if it had
no backward, and the gradients are those of the forward, without a word.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.variables import higher_order_ops as variables
from torch._dynamo.variables.builder import wrap_fx_proxy
from torch._ops import HigherOrderOperator

from parallax._compat.flow_operator import Traced

__all__ = ["rule"]


class _Plan(NamedTuple):
    """What the operator is given: its operands are arguments, results, and what the body takes.

    Attributes:
        body: takes cotangents of the results, what was kept and what it captured.
        arguments: how many operands are arguments.
        results: how many are results.
        own: whether the body takes the results first of what was kept.
        places: of which arguments the body returns cotangents.
    """

    body: Any
    arguments: int
    results: int
    own: bool
    places: list[int]


class _Rule(HigherOrderOperator):
    """``rule(body, *operands, **plan)``: the results, with a derivative by the body."""

    def __init__(self) -> None:
        super().__init__("parallax_rule")  # type: ignore[no-untyped-call]  # it is torch's

    def __call__(self, body: Any, *operands: Any, **plan: Any) -> Any:
        return _Attached.apply(_Plan(body, **plan), *operands)  # type: ignore[no-untyped-call]  # it is torch's


rule = _Rule()


class _Attached(torch.autograd.Function):
    """The results as they are; backward is the body."""

    generate_vmap_rule = True

    @staticmethod
    def forward(plan: _Plan, *operands: Any) -> tuple[Tensor, ...]:
        results = operands[plan.arguments : plan.arguments + plan.results]
        return tuple([result.clone() for result in results])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.plan, *operands = inputs
        ctx.count = len(operands)
        given = operands[ctx.plan.arguments + ctx.plan.results :]
        if ctx.plan.own:  # they have this derivative, too
            given = [*output, *given[ctx.plan.results :]]
        # Sizes may be among them, where shapes are symbolic.
        ctx.sizes = [None if isinstance(x, Tensor) else x for x in given]
        ctx.save_for_backward(*[x for x in given if isinstance(x, Tensor)])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        saved = iter(ctx.saved_tensors)
        given = [next(saved) if size is None else size for size in ctx.sizes]
        with torch.enable_grad():  # as it was traced: it may take derivatives
            found = ctx.plan.body(*cotangents, *given)
        grads: list[Any] = [None] * (ctx.count + 1)
        for place, grad in zip(ctx.plan.places, found, strict=True):
            grads[place + 1] = grad
        return tuple(grads)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            "a custom derivative has no forward mode in compiled code. Use func.grad, func.vjp or "
            "func.jacrev there; or take the jvp outside of compiled code"
        )


class _RuleVariable(Traced):
    keeps_autocast = False  # the rule is called where the derivative is taken

    def _call_function(self, tx: Any, args: Any, kwargs: Any) -> Any:
        plan = {name: value.as_python_constant() for name, value in kwargs.items()}
        body, *operands = args
        given = operands[plan["arguments"] :]
        graph, said, lifted, _ = self._traced(tx, body, given)
        has_one = said.as_python_constant()
        plan["places"] = [place for place, has in enumerate(has_one) if has]
        proxies = [graph, *[x.as_proxy() for x in operands], *lifted]
        proxy = tx.output.create_proxy("call_function", self.value, tuple(proxies), plan)
        return wrap_fx_proxy(tx=tx, proxy=proxy)


variables._hop_name_to_variable_class["parallax_rule"] = _RuleVariable
