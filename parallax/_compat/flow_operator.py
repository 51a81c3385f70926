"""Higher-order operators for loops and branches, which work within transforms of ``torch.func``.

Only compiled control flow loads this file, which loads dynamo; ``flow`` is the way to it. torch has
such operators (``scan``, ``cond``, ``while_loop``), but dynamo refuses them within a transform that
differentiates, and what ``scan`` keeps for its backward is the weights, once for each step.

- Dynamo traces each body once, as for ``wrap``, and does not look for aliases in its graph, which
  is what it cannot do within a transform.
- While AOTAutograd traces the graph, a call becomes torch's operator, which inductor compiles.
  Under ``grad`` it becomes an autograd function whose backward is such a call again, of the
  vector-Jacobian product, so derivatives of any order work; under ``vmap`` the bodies are mapped.
- Everywhere else the bodies are simply called.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.variables import higher_order_ops as variables
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.builder import wrap_fx_proxy
from torch._dynamo.variables.lists import TupleVariable
from torch._ops import HigherOrderOperator

from parallax._compat import in_trace
from parallax._compat.autocasts import keep_autocast
from parallax._compat.drawing import draws
from parallax._compat.flow_branches import Cond, While
from parallax._compat.flow_programs import Program, Scan, called
from parallax._compat.flow_recompute import recompute_of, signature
from parallax._compat.levels import relevel

__all__ = ["Traced", "cond", "recompute", "scan", "while_loop"]


class _Flow(HigherOrderOperator):
    """``flow(*bodies, *operands, **constants)``, which ``made`` gives the program of."""

    def __init__(self, name: str, made: Callable[..., Program]) -> None:
        super().__init__(f"parallax_{name}")  # type: ignore[no-untyped-call]  # it is torch's
        self.made = made

    def __call__(self, *args: Any, bodies: int, **constants: Any) -> Any:
        return called(self.made(args[:bodies], **constants), args[bodies:])


def _only(places: Sequence[int], body: Callable[..., Any]) -> Callable[..., Any]:
    """A body that is given the operands of all, and takes its own."""
    return lambda *operands: body(*[operands[place] for place in places])


def _scan(bodies: Any, carried: int, rows: int) -> Program:
    return Scan(bodies[0], carried, rows, _size(bodies[0]))


def _size(body: Any) -> int:
    """How many operators a graph and those in it call, about."""
    graphs = [module.graph for module in body.modules() if isinstance(module, torch.fx.GraphModule)]
    return sum([len(graph.nodes) for graph in graphs])


def _cond(bodies: Any, places: Any, drawn: bool) -> Program:
    true, false = [_only(own, body) for own, body in zip(places, bodies, strict=True)]
    return Cond(true, false, drawn)


def _while(bodies: Any, places: Any, carried: int) -> Program:
    goes_on, body = [_only(own, body) for own, body in zip(places, bodies, strict=True)]
    return While(goes_on, body, carried)


scan = _Flow("scan", _scan)
cond = _Flow("cond", _cond)
while_loop = _Flow("while_loop", _while)
recompute = _Flow("recompute", lambda bodies, policy: recompute_of(bodies[0], policy.policy))


class Traced(variables.BaseHOPVariable):
    """What dynamo does with such an operator."""

    supports_input_mutation = True
    supports_aliasing = True
    keeps_autocast = True  # a body runs with the autocast that is on where it is traced

    def _traced(self, tx: Any, body: Any, given: Any) -> tuple[Any, Any, list[Any], list[Any]]:
        """The graph of a body, what it said, what it takes beside what it is given, its results."""
        name = self.value._name
        proxies, _, _, result, module, *_ = self.create_wrapped_node(
            tx, body, given, {}, name, subgraph_name=f"{name}_body",
            set_subgraph_inputs="automatic_with_forced_inputs",
        )  # fmt: skip
        outputs: Any = result
        tensors, said = outputs.items
        nodes = [tensor.as_proxy().node for tensor in tensors.items]
        # Dynamo makes outputs of all tensors that it finds in the result, each once.
        module.graph.output_node().args = (tuple(nodes),)
        relevel(module.graph)
        if self.keeps_autocast:
            keep_autocast(module.graph, [tracer.graph for tracer in tx.output.tracers])
        module.recompile()
        return proxies[0], said, list(proxies[1 + len(given) :]), nodes

    def _draws(self, tx: Any, body: Any, operands: Sequence[Any]) -> bool:
        """Whether the graph of a body draws from torch's random state."""
        with tx.fake_mode:
            examples = [x.node.meta["example_value"] for x in operands]
            return draws(tx.output.nn_modules[body.node.target], examples)

    def _called(
        self, tx: Any, operands: Any, examples: Any, said: Any, constants: dict[str, Any]
    ) -> Any:
        """The result of the call: its tensors, and what the bodies said."""
        proxy = tx.output.create_proxy("call_function", self.value, tuple(operands), constants)
        tensors = wrap_fx_proxy(tx=tx, proxy=proxy, example_value=tuple(examples))
        return TupleVariable([tensors, *said])


class _ScanVariable(Traced):
    def _call_function(self, tx: Any, args: Any, kwargs: Any) -> Any:
        constants = {name: value.as_python_constant() for name, value in kwargs.items()}
        carried, rows = constants["carried"], constants["rows"]
        given, stacks = args[1 : 1 + carried + rows], args[1 + carried + rows :]
        try:
            body, said, lifted, nodes = self._traced(tx, args[0], given)
        except Unsupported as error:
            if "side effect" not in str(error):
                raise
            return self._unrolled(tx, args[0], given[:carried], stacks)
        operands = [body, *[x.as_proxy() for x in [*given[:carried], *stacks]], *lifted]
        # A derivative computes a step again, and would draw other numbers.
        if self._draws(tx, body, [*[x.as_proxy() for x in given], *lifted]):
            return self._unrolled(tx, args[0], given[:carried], stacks)
        examples = [node.meta["example_value"] for node in nodes]
        length = stacks[0].as_proxy().node.meta["example_value"].shape[0]
        with tx.fake_mode:
            examples[carried:] = [
                x.unsqueeze(0).expand(length, *x.shape).clone() for x in examples[carried:]
            ]
        return self._called(tx, operands, examples, [said], {"bodies": 1, **constants})

    def _unrolled(self, tx: Any, body: Any, carry: Any, stacks: Any) -> Any:
        """The steps one by one, which may emit effects to a collection outside."""
        results: list[Any] = []
        said: Any = None
        length = stacks[0].as_proxy().node.meta["example_value"].shape[0]
        # The keys of the first step were seen to be used once, in the trace that is not used.
        with in_trace.reusing(tx.output):
            for k in range(length):
                number = VariableTracker.build(tx, k)
                rows = [stack.call_method(tx, "__getitem__", [number], {}) for stack in stacks]
                tensors, said = body.call_function(tx, [*carry, *rows], {}).items
                carry = tensors.items[: len(carry)]
                results.append(tensors.items[len(carry) :])
        stack = VariableTracker.build(tx, torch.stack)
        columns = [TupleVariable(list(column)) for column in zip(*results, strict=True)]
        stacked = [stack.call_function(tx, [column], {}) for column in columns]
        return TupleVariable([TupleVariable([*carry, *stacked]), said])


class _CondVariable(Traced):
    def _call_function(self, tx: Any, args: Any, kwargs: Any) -> Any:
        true, false, pred = args
        traced = [self._traced(tx, body, []) for body in (true, false)]
        operands, places = _together([], [lifted for _, _, lifted, _ in traced])
        examples = [node.meta["example_value"] for node in traced[0][3]]
        bodies = [body for body, _, _, _ in traced]
        drawn = any([self._draws(tx, body, lifted) for body, _, lifted, _ in traced])
        constants = {"bodies": 2, "places": places, "drawn": drawn}
        said = [said for _, said, _, _ in traced]
        return self._called(tx, [*bodies, pred.as_proxy(), *operands], examples, said, constants)


class _WhileVariable(Traced):
    def _call_function(self, tx: Any, args: Any, kwargs: Any) -> Any:
        goes_on, body, *carry = args
        traced = [self._traced(tx, each, carry) for each in (goes_on, body)]
        operands, places = _together(carry, [lifted for _, _, lifted, _ in traced])
        examples = [node.meta["example_value"] for node in traced[1][3]]
        bodies = [body for body, _, _, _ in traced]
        constants = {"bodies": 2, "places": places, "carried": len(carry)}
        said = [said for _, said, _, _ in traced]
        return self._called(tx, [*bodies, *operands], examples, said, constants)


class _RecomputeVariable(Traced):
    def _call_function(self, tx: Any, args: Any, kwargs: Any) -> Any:
        body, *given = args
        try:
            graph, said, lifted, nodes = self._traced(tx, body, given)
        except Unsupported as error:
            if "side effect" not in str(error):
                raise
            return self._inlined(tx, body, given)
        operands = [*[x.as_proxy() for x in given], *lifted]
        if self._draws(tx, graph, operands):
            return self._inlined(tx, body, given)
        examples = [node.meta["example_value"] for node in nodes]
        policy = kwargs["policy"].as_python_constant()
        body = self._shared(tx, graph, tx.output.nn_modules[graph.node.target], policy)
        return self._called(
            tx, [body, *operands], examples, [said], {"bodies": 1, "policy": policy}
        )

    def _shared(self, tx: Any, graph: Any, module: Any, policy: Any) -> Any:
        """The graph; of several that compute the same the first, so that one is compiled."""
        text = signature(module.graph)
        if text is None:
            return graph
        tracer = tx.output.current_tracer
        known = tracer.__dict__.setdefault("parallax_recomputed", {})
        return known.setdefault((text, policy), graph)

    def _inlined(self, tx: Any, body: Any, given: Any) -> Any:
        """The function itself: effects that leave it, and random numbers of torch's, come once."""
        # Its keys were seen to be used once, in the trace that is not used.
        with in_trace.reusing(tx.output):
            return body.call_function(tx, list(given), {})


def _together(given: Any, lifted: Sequence[Sequence[Any]]) -> tuple[list[Any], list[list[int]]]:
    """The operands of several bodies, and which of them each takes."""
    operands: dict[Any, Any] = {k: value.as_proxy() for k, value in enumerate(given)}
    for proxy in [proxy for proxies in lifted for proxy in proxies]:
        operands.setdefault(proxy.node, proxy)
    order = {name: place for place, name in enumerate(operands)}
    own = list(range(len(given)))
    places = [[*own, *[order[proxy.node] for proxy in proxies]] for proxies in lifted]
    return list(operands.values()), places


_KINDS = {"scan": _ScanVariable, "cond": _CondVariable, "while_loop": _WhileVariable,
          "recompute": _RecomputeVariable}  # fmt: skip
variables._hop_name_to_variable_class |= {f"parallax_{name}": kind for name, kind in _KINDS.items()}
