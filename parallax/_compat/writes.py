"""What code that dynamo traces writes into objects that were there before the trace.

Dynamo keeps such writes beside the graph and makes them after it has run. Here they are looked at
while it traces: those into objects that only one call uses are dropped, others are told. All of
this runs in functions that are constant in traces.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterable
from types import CodeType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parallax._compat.functorch import version_of

__all__ = ["begin", "drawn", "end", "is_root", "use_number", "written_tensors"]

Written = dict[tuple[int, str], Any]


class _Watch:
    """What is kept for one trace, as an attribute of what dynamo has for it."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.begun: list[Written] = []
        self.nodes: list[set[str]] = []


def _output() -> Any:
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return InstructionTranslator.current_tx().output


def _watch(output: Any) -> _Watch:
    watch: _Watch = vars(output).setdefault("_parallax_watch", _Watch())
    return watch


def use_number(of: str) -> int:
    """How often this was asked of the same before, in this trace."""
    counts = _watch(_output()).counts
    counts[of] = counts.get(of, -1) + 1
    return counts[of]


def is_root(code: CodeType) -> bool:
    """Whether dynamo's trace began with this code, instead of coming to it from a caller."""
    return _output().root_tx.f_code is code


def written_tensors(name: str) -> list[str]:
    """The keys of a dict of tensors, a local of the caller, that were written into."""
    found = []
    for key, variable in _output().current_tx.symbolic_locals[name].realize().items.items():
        value = variable.as_proxy().node.meta["example_value"] if variable.is_tensor() else None
        if value is not None and not value.is_inference() and version_of(value):
            found.append(key.vt.as_python_constant())
    return found


def drawn() -> str:
    """What draws from torch's global generators since ``begin``, as ``"dropout in Dropout"``.

    Every operation that may is run once more, on dynamo's stand-ins for tensors, to see whether
    one that is random comes of it: dropout with probability 0 and attention without do not draw.
    """
    output = _output()
    known = _watch(output).nodes[-1]
    for node in output.graph.nodes:
        name = str(getattr(node.target, "__name__", node.target))
        if node.name not in known and any(part in name for part in _MAY_DRAW) and _draws(node):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            return f"{name} in {stack[-1][1].__name__}" if stack else name
    return ""


_MAY_DRAW = ("attention", "bernoulli", "binomial", "cauchy", "dropout", "exponential", "fractional",
             "geometric", "gumbel", "multinomial", "normal", "poisson", "rand", "rrelu", "rnn",
             "lstm", "gru", "uniform")  # fmt: skip


class _Draws(TorchDispatchMode):
    """Notes whether an operation draws."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        silent = "dropout_p" in names and not given.get("dropout_p", 0)
        if torch.Tag.nondeterministic_seeded in func.tags and not silent:
            self.found = True
        return func(*args, **(kwargs or {}))


def _draws(node: Any) -> bool:
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta["example_value"])
    noting = _Draws()  # type: ignore[no-untyped-call]  # torch's
    try:
        with _output().fake_mode, noting:
            if node.op == "call_method":
                getattr(args[0], node.target)(*args[1:], **kwargs)
            else:
                node.target(*args, **kwargs)
    except Exception:  # whatever it is, it cannot be said that it does not draw
        return True
    return noting.found


def begin() -> None:
    """From here on writes are looked at; calls nest."""
    output = _output()
    _watch(output).begun.append(_written(output.side_effects))
    _watch(output).nodes.append({node.name for node in output.graph.nodes})


def end(own: Iterable[Any], result: str) -> str:
    """Drops what was written since ``begin`` into certain objects.

    Args:
        own: the objects. Containers among them go on as new ones, which may be returned.
        result: the caller's name for what may hold some of them.

    Returns:
        What was written into another object that is not reached by an argument, such as
        ``"Config.calls"``; ``""`` if nothing was.
    """
    from torch._dynamo.variables import LazyVariableTracker

    output = _output()
    effects, before = output.side_effects, _watch(output).begun.pop()
    _watch(output).nodes.pop()
    names = output.current_tx.symbolic_locals
    names[result] = LazyVariableTracker.realize_all(names[result])
    ids = {id(item) for item in own}
    for key in [key for key in effects.id_to_variable if key in ids]:
        variable = effects.id_to_variable.pop(key)
        effects.store_attr_mutations.pop(variable, None)
        effects.attr_mutation_kinds.pop(variable, None)
        _make_new(variable)
    variables = {id(var): var for var in effects.id_to_variable.values()}
    for (address, name), value in _written(effects).items():
        if before.get((address, name)) != value and not _is_argument(variables.get(address)):
            return _told(variables[address], name)
    return ""


def _make_new(variable: Any) -> None:
    """A container goes on as one that the traced code made."""
    from torch._dynamo.variables.base import ValueMutationExisting, ValueMutationNew

    if isinstance(variable.mutation_type, ValueMutationExisting):
        variable.source = None
        variable.mutation_type = ValueMutationNew()


def _written(effects: Any) -> Written:
    """The writes into objects that were there before, by the object's variable and a name."""
    from torch._dynamo.variables.base import AttributeMutationExisting, ValueMutationExisting

    found: Written = {}
    for variable in effects.id_to_variable.values():
        kind = variable.mutation_type
        if isinstance(kind, AttributeMutationExisting):
            for name, value in effects.store_attr_mutations.get(variable, {}).items():
                found[id(variable), name] = id(value)
        elif isinstance(kind, ValueMutationExisting) and kind.is_modified:
            items: Any = getattr(variable, "items", ())
            parts = items.values() if isinstance(items, dict) else items
            found[id(variable), ""] = tuple(map(id, parts))
    return found


def _is_argument(variable: Any) -> bool:
    """Whether a variable is reached by an argument of the function that is compiled."""
    from torch._dynamo.source import LocalSource
    from torch._dynamo.variables import CellVariable

    source: Any = getattr(variable, "source", None)
    while hasattr(source, "base"):
        source = source.base
    return isinstance(source, LocalSource) and not isinstance(variable, CellVariable)


def _told(variable: Any, name: str) -> str:
    """What a user calls the place that was written into."""
    from torch._dynamo.variables import CellVariable, NewGlobalVariable, PythonModuleVariable

    value = getattr(variable, "value", None)
    if isinstance(variable, CellVariable):
        return f"the variable {variable.local_name or name!r} of an outer function"
    if isinstance(variable, (NewGlobalVariable, PythonModuleVariable)):
        return f"the global {name!r}"
    if name and value is not None:
        return f"{(value if isinstance(value, type) else type(value)).__name__}.{name}"
    source = variable.source
    while source is not None:
        for part in ("member", "global_name", "index"):
            found = getattr(source, part, None)
            if isinstance(found, str):
                return repr(found)
        source = getattr(source, "base", None)
    return repr(name)
