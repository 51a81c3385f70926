"""A higher-order operator that calls one traced function several times, and is compiled once.

Only a compiled ``nn.Stack`` loads this file, which loads dynamo; ``repeat`` is the way to it.
torch has such operators (``scan``, ``invoke_subgraph``), but dynamo refuses them within a transform
of ``torch.func``, so that no gradient can be taken inside of compiled code.

- Dynamo traces the function once, as for ``wrap``, and does not look for aliases in its graph,
  which is what it cannot do within a transform. Only where one call returns what the next is
  given, by shape, dtype and device, are the calls alike; otherwise each is traced by itself.
- While AOTAutograd traces the graph, each call becomes an ``invoke_subgraph`` of one and the same
  graph, which inductor compiles once; operands of other strides make another graph. A call under
  ``grad`` becomes an autograd function whose backward is such a call again. If only one derivative
  is taken, the first call keeps what the second needs; else, or where it is asked for, the second
  is of the vector-Jacobian product, which computes the function once more, so that derivatives of
  any order work.
- Everywhere else, and of distributed tensors, the function is simply called.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo import config
from torch._dynamo.variables import higher_order_ops as variables
from torch._dynamo.variables.base import VariableTracker
from torch._functorch._aot_autograd.autograd_cache import (
    BypassAOTAutogradCache,
    check_node_safe,
)
from torch._higher_order_ops.invoke_subgraph import invoke_subgraph
from torch._ops import HigherOrderOperator
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from parallax._compat import functorch, in_trace, shards
from parallax._compat.autocasts import autocast_for, keep_autocast
from parallax._compat.drawing import draws
from parallax._compat.inductor import sources
from parallax._compat.levels import relevel
from parallax._compat.operands import told_apart
from parallax._compat.partition import part

__all__ = ["NamedProgram", "repeat"]

_Grad = torch._C._functorch.TransformType.Grad
_count = itertools.count()


class Repeat(HigherOrderOperator):
    """``repeat(body, value, *firsts, *stacks, *rest, members=, times=, recompute=)``.

    ``body(value, *members, *stacks, *rest)`` is called ``times`` times with the value it returned
    before, each time with the next row of every stack. ``firsts`` are the first rows. With
    ``recompute`` nothing is kept of a call for its derivative but its operands.

    What a graph with it is compiled to depends on the graph, ``body`` included, and on the files of
    Parallax. So torch may cache it: a traced call has ``source``, too, which tells them.
    """

    def __init__(self) -> None:
        super().__init__("parallax_repeat", cacheable=True)  # type: ignore[no-untyped-call]  # it is torch's

    def __call__(
        self, body: Any, value: Tensor, *operands: Any,
        members: int, times: int, recompute: bool, source: str = "",
    ) -> Any:  # fmt: skip
        del source
        stacks, rest = operands[members : 2 * members], operands[members:]
        program, used = _program(body, recompute)
        rows = [stack.unbind(0) for stack in stacks]
        for k in range(times):
            given = [value, *[row[k] for row in rows], *rest]
            (value,) = _called(program, [given[place] for place in used])
        return (value,)


repeat = Repeat()


class _Variable(variables.BaseHOPVariable):
    supports_input_mutation = True
    supports_aliasing = True

    def _call_function(self, tx: Any, args: Any, kwargs: Any) -> Any:
        proxies, _, example, body, module, _, outputs, _ = self.create_wrapped_node(
            tx, args[0], args[1:], {}, "repeat", subgraph_name="repeated",
            set_subgraph_inputs="automatic_with_forced_inputs",
        )  # fmt: skip
        relevel(module.graph)
        keep_autocast(module.graph, [tracer.graph for tracer in tx.output.tracers])
        module.recompile()
        constants = {name: value.as_proxy() for name, value in kwargs.items()}
        constants["source"] = _source(module)
        with tx.fake_mode:
            drawn = draws(module, [x.node.meta["example_value"] for x in proxies[1:]])
        # Drawn again for a derivative, the numbers would be others. What is written into an operand
        # reaches the others in its memory, of which the graph of a call knows nothing.
        if drawn or _writes(module.graph) or not _are_alike(args[1], body):
            return self._unrolled(tx, args, constants["members"], constants["times"])
        return variables._call_function_with_auto_output_flattening(
            tx, self.value, proxies, constants, example, body, outputs
        )

    def _unrolled(self, tx: Any, args: Any, members: int, times: int) -> Any:
        """The calls one by one, as if they were written so; what was traced before is not used."""
        body, value, *operands = args
        stacks, rest = operands[members : 2 * members], operands[members:]
        # The keys of the first call were seen to be used once, in the trace that is not used.
        with in_trace.reusing(tx.output):
            for k in range(times):
                number = VariableTracker.build(tx, k)
                rows = [stack.call_method(tx, "__getitem__", [number], {}) for stack in stacks]
                value = body.call_function(tx, [value, *rows, *rest], {})
        return value


def _source(body: GraphModule) -> str:
    """What torch has to find in a graph with a body beside it, before it takes it from its cache.

    torch looks at no body for what may not be cached, such as a function that a user allows in
    graphs, whose name alone is in them. Nothing is found for such a body.
    """
    try:
        for module in body.modules():
            for node in module.graph.nodes if isinstance(module, GraphModule) else ():
                if str(getattr(node.target, "__module__", "")).partition(".")[0] != "parallax":
                    check_node_safe(node)
    except BypassAOTAutogradCache:
        return uuid.uuid4().hex
    return sources()


def _writes(graph: Graph) -> bool:
    """Whether a traced body writes into what it is given."""
    values = [place.meta.get("example_value") for place in graph.find_nodes(op="placeholder")]
    tensors = [value for value in values if isinstance(value, Tensor)]
    return any([x.is_inference() or functorch.version_of(x) for x in tensors])


def _are_alike(given: Any, returned: Any) -> bool:
    """Whether two tensors of dynamo's have the same shape, dtype and device."""
    if not (given.is_tensor() and returned.is_tensor()):
        return False
    one, two = [x.as_proxy().node.meta["example_value"] for x in (given, returned)]
    return bool((one.shape, one.dtype, one.device) == (two.shape, two.dtype, two.device))


variables._hop_name_to_variable_class["parallax_repeat"] = _Variable


class NamedProgram:
    """A function of tensors to a tuple of tensors, by a name that tells equal graphs."""

    __slots__ = ("fn", "layouts", "name", "parted", "pullbacks", "recompute", "records")

    def __init__(
        self, fn: Callable[..., Sequence[Tensor]], name: str, recompute: bool = True
    ) -> None:
        self.fn = fn
        self.name = name
        self.recompute = recompute
        self.parted: dict[Any, _Parts | None] = {}
        self.pullbacks: dict[Any, NamedProgram] = {}
        self.layouts: dict[Any, int] = {}
        self.records: dict[str, Any] = {}  # by the name of a graph, what it keeps

    def name_for(self, operands: Sequence[Any]) -> str:
        """The name of the graph: all that it depends on is the same in all calls of it."""
        # As text, for sizes may be symbolic, and to compare them would make them numbers.
        layout = (
            autocast_for(operands),
            *[
                (str(x.shape), str(x.stride()), x.dtype, x.device)
                if isinstance(x, Tensor)
                else str(x)
                for x in operands
            ],
        )
        return f"{self.name}_{self.layouts.setdefault(layout, len(self.layouts))}"

    def pullback(self, wanted: tuple[int, ...], given: tuple[int, ...], count: int) -> NamedProgram:
        """The program of the operands and the cotangents ``given`` to those of ``wanted``."""
        key = wanted, given
        if key not in self.pullbacks:
            fn = self.fn

            def back(*inputs: Tensor) -> tuple[Tensor, ...]:
                operands, cotangents = list(inputs[:count]), inputs[count:]

                def moved(*values: Tensor) -> list[Tensor]:
                    for place, value in zip(wanted, values, strict=True):
                        operands[place] = value
                    outs = fn(*operands)
                    return [outs[k] for k in given]

                pull: Any = torch.func.vjp(moved, *[operands[k] for k in wanted])[1]
                return tuple(pull(list(cotangents)))

            self.pullbacks[key] = NamedProgram(back, f"{self.name}_back{len(self.pullbacks)}")
        return self.pullbacks[key]

    def parts(self, operands: Sequence[Tensor], wanted: tuple[int, ...]) -> _Parts | None:
        """The program and its derivative as two programs for operands like these."""
        layout = tuple([(x.shape, x.stride(), x.dtype, x.device) for x in operands])
        key = wanted, layout, autocast_for(operands)
        if key not in self.parted:
            found = part(self.fn, operands, wanted)
            name = f"{self.name}_part{len(self.parted)}"
            self.parted[key] = found and _Parts(
                NamedProgram(found.forward, name), NamedProgram(found.backward, f"{name}_back"),
                found.held, found.kept,
            )  # fmt: skip
        return self.parted[key]


class _Parts(NamedTuple):
    """A program and its derivative: see ``partition.Parted``."""

    forward: NamedProgram
    backward: NamedProgram
    held: tuple[int, ...]
    kept: tuple[int, ...]


def _program(body: Any, recompute: bool) -> tuple[NamedProgram, list[int]]:
    """The program of a graph, the same each time, and which of the operands it takes.

    The value, and what the graph uses: of the others, whole stacks, each call would return zeros
    for gradients.
    """
    found: tuple[NamedProgram, list[int]] | None = getattr(body, "_parallax_program", None)
    if found is None:
        places = body.graph.find_nodes(op="placeholder")
        used = [k for k, place in enumerate(places) if k == 0 or place.users]

        def fn(*operands: Any) -> Any:
            given: list[Any] = [None] * len(places)
            for place, operand in zip(used, operands, strict=True):
                given[place] = operand
            # As it was traced: a derivative within it would be zero in the forward of a call.
            with torch.enable_grad():
                return body(*given)

        found = NamedProgram(fn, f"parallax_{next(_count)}", recompute), used
        body._parallax_program = found
    return found


def _called(program: NamedProgram, operands: Sequence[Any]) -> tuple[Tensor, ...]:
    """The results of a program: of a call of its graph, where a graph is traced."""
    if get_proxy_mode() is None or not _only_gradients() or _any_distributed(operands):
        return tuple(program.fn(*operands))
    differentiable = torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in operands
    )
    found: Any
    # Within a transform also where nothing is to differentiate: it leaves the level.
    if differentiable or torch._C._are_functorch_transforms_active():
        if _keeps(program, operands):
            wanted = (0, *[k for k in range(1, len(operands)) if operands[k].requires_grad])
            found = _Keeping.apply(_Call(program, wanted), *operands)[:1]  # type: ignore[no-untyped-call]  # it is torch's
        else:
            found = _Recomputing.apply(program, *operands)  # type: ignore[no-untyped-call]  # as above
    else:
        found = _emitted(program, operands)
    return tuple(found)


def _emitted(program: NamedProgram, operands: Sequence[Any]) -> tuple[Tensor, ...]:
    fn: Any = program.fn
    given = told_apart(operands)
    return tuple(invoke_subgraph(fn, program.name_for(given), *given))


def _any_distributed(operands: Sequence[Any]) -> bool:
    """Whether there is a distributed tensor: torch has no rule for them in a call of a graph."""
    tensors = [x for x in operands if isinstance(x, Tensor)]
    return shards.any_distributed(map(functorch.innermost, tensors))


def _only_gradients() -> bool:
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return all(entry.key() == _Grad for entry in stack)


# -- derivatives ----------------------------------------------------------------------------------


def _keeps(program: NamedProgram, operands: Sequence[Any]) -> bool:
    """Whether a call keeps what its derivative needs: if one derivative is taken, and no more."""
    level = functorch.current_level()
    if program.recompute or level > 1 or config.trace_autograd_ops:
        return False
    tensors = [functorch.innermost(x) for x in operands if isinstance(x, Tensor)]
    if len(tensors) < len(operands) or (level and any(x.requires_grad for x in tensors)):
        return False
    # Symbolic sizes would have to be kept, too.
    return all(type(n) is int for x in tensors for n in (*x.shape, *x.stride()))


class _Call:
    """A call that keeps what its derivative needs.

    Attributes:
        program: what is called.
        wanted: the operands that a cotangent is wanted of.
        parts: the two programs, once it is called.
    """

    __slots__ = ("parts", "program", "wanted")

    def __init__(self, program: NamedProgram, wanted: tuple[int, ...]) -> None:
        self.program = program
        self.wanted = wanted
        self.parts: _Parts | None = None


class _Keeping(torch.autograd.Function):
    """A call that autograd sees as one function; its results beyond the first are for backward."""

    @staticmethod
    def forward(call: _Call, *operands: Tensor) -> tuple[Tensor, ...]:
        # No transform runs here, and nothing is recorded.
        given = told_apart(operands)
        call.parts = call.program.parts(given, call.wanted)
        return _emitted(call.parts.forward if call.parts else call.program, given)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.call, *operands = inputs
        parts = ctx.call.parts
        kept = [output[k] for k in parts.kept] if parts else []
        ctx.save_for_backward(*operands, *kept)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        call, cotangent = ctx.call, cotangents[0]
        grads: list[Any] = [None] * len(ctx.needs_input_grad)
        if cotangent is None:
            return tuple(grads)
        # A pullback is called when its level is over; what was kept is in wrappers of the level.
        tensors = [functorch.unwrapped_if_over(x) for x in ctx.saved_tensors]
        count = len(grads) - 1
        if call.parts is None:
            back = call.program.pullback(call.wanted, (0,), count)
            found = _called(back, [*tensors, cotangent])
        else:
            held = [tensors[k] for k in call.parts.held]
            found = _called(call.parts.backward, [*held, *tensors[count:], cotangent])
        for place, grad in zip(call.wanted, found, strict=True):
            grads[place + 1] = grad if ctx.needs_input_grad[place + 1] else None
        return tuple(grads)


class _Recomputing(torch.autograd.Function):
    """A call that autograd sees as one function, at whatever level of ``torch.func.grad``."""

    @staticmethod
    def forward(program: NamedProgram, *operands: Any) -> tuple[Tensor, ...]:
        return _called(program, operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.program = inputs[0]
        # Sizes may be among them, where shapes are symbolic.
        ctx.sizes = [None if isinstance(x, Tensor) else x for x in inputs[1:]]
        ctx.save_for_backward(*[x if isinstance(x, Tensor) else None for x in inputs[1:]])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        pairs = zip(ctx.saved_tensors, ctx.sizes, strict=True)
        operands = [size if x is None else x for x, size in pairs]
        # Always the first operand, too: the first call of all shall have the graph of the others.
        wanted = (0, *[k for k in range(1, len(operands)) if ctx.needs_input_grad[k + 1]])
        given = tuple(k for k, cotangent in enumerate(cotangents) if cotangent is not None)
        program = ctx.program.pullback(wanted, given, len(operands))
        found = _called(program, [*operands, *[cotangents[k] for k in given]])
        grads: list[Any] = [None] * (len(operands) + 1)
        for place, grad in zip(wanted, found, strict=True):
            grads[place + 1] = grad if ctx.needs_input_grad[place + 1] else None
        return tuple(grads)
