"""A higher-order operator that expands a traced function when its graph runs.

Only compiled Taylor expansions load this file, which loads dynamo; ``flow.taylor_expansion`` is the
way to it. Dynamo, which cannot follow jets, traces the function once, as for ``wrap``. While
AOTAutograd traces the graph, the function runs on jets, and what they compute is in the graph.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch._dynamo.variables import higher_order_ops as variables
from torch._ops import HigherOrderOperator

from parallax._compat import functorch
from parallax._compat.flow import ENGINES
from parallax._compat.flow_operator import Traced

__all__ = ["expand"]


class _Expand(HigherOrderOperator):
    """``expand(body, *operands, given=, series=, outs=, engine=, order=, present=)``.

    The operands are where the body is expanded, their series, and what it takes beside them; it
    returns ``outs`` tensors that are expanded, and others.
    """

    def __init__(self) -> None:
        super().__init__("parallax_expand")  # type: ignore[no-untyped-call]  # it is torch's

    def __call__(
        self, body: Any, *operands: Any, given: int, series: int, outs: int, engine: str,
        order: int, present: Sequence[bool],
    ) -> Any:  # fmt: skip
        values, rest = operands[:given], operands[given + series :]

        def flat(*inner: Any) -> Any:
            found = body(*inner, *rest)
            return list(found[:outs]), list(found[outs:])

        terms = operands[given : given + series]
        return tuple(ENGINES[engine].run(flat, values, terms, present, order))


expand = _Expand()


class _ExpandVariable(Traced):
    def _call_function(self, tx: Any, args: Any, kwargs: Any) -> Any:
        constants = {name: value.as_python_constant() for name, value in kwargs.items()}
        body, *operands = args
        given = operands[: constants["given"]]
        with functorch.tracing_an_expansion():
            graph, said, lifted, nodes = self._traced(tx, body, given)
        count, told = said.items
        constants["outs"] = outs = count.as_python_constant()
        examples = [node.meta["example_value"] for node in nodes]
        with tx.fake_mode:
            like = ENGINES[constants["engine"]].like(examples[:outs], constants["order"])
        proxies = [graph, *[x.as_proxy() for x in operands], *lifted]
        return self._called(tx, proxies, [*like, *examples[outs:]], [told], constants)


variables._hop_name_to_variable_class["parallax_expand"] = _ExpandVariable
