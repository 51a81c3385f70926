"""``torch.compile`` as ``compile`` uses it: its options, its guards, and calls past its entry."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch.autograd import set_detect_anomaly

from parallax._compat import (
    dynamo,
    functions,
    inductor,
    inductor_faults,
    inductor_products,
    inductor_scalars,
    regathering,
    shards,
)
from parallax._compat.artifacts import Keeper
from parallax.compiler.guards import Guards
from parallax.compiler.outside import Outside
from parallax.core.structure import Structure
from parallax.func.underivable import refuse_what_has_no_derivative

__all__ = ["compile_flat", "compile_settings", "settings_for", "without_risks"]


def compile_settings(options: dict[str, Any]) -> dict[str, Any]:
    """The checked options of ``torch.compile``; its ``mode`` becomes options of inductor.

    torch refuses ``mode`` beside ``options``, and a guard filter is one of the options.
    """
    allowed = inspect.signature(torch.compile).parameters.keys() - {"model"}
    unknown = options.keys() - allowed
    if unknown:
        raise TypeError(
            f"compile() takes the options of torch.compile, not {min(unknown)!r}; "
            f"they are {', '.join(sorted(allowed))}"
        )
    settings = {"fullgraph": True, "backend": "inductor", **options}
    mode = settings.pop("mode", None)
    chosen = settings.get("options")
    if mode is not None and chosen is not None:
        raise TypeError("compile() takes mode= or options=, not both, as torch.compile does")
    if mode is not None:
        chosen = inductor.mode_options(mode, settings.get("dynamic"))
    settings["options"] = dict(chosen or {})
    return settings


def settings_for(
    settings: dict[str, Any], items: Sequence[Any], tokens: Sequence[Any]
) -> dict[str, Any]:
    """The settings with the default options for a graph of these items.

    What inductor writes around its kernels is Python unless it is asked for C++; for a small step
    on the CPU C++ takes two thirds of the time, to run and to compile. Sizes and strides of inputs
    are checked before the graph is called, for all at once. Vector units are not tested before
    they are used.
    """
    options = settings["options"]
    if settings["backend"] == "inductor" and _gathers(tokens):
        options = regathering.regathered(options)
        settings = {**settings, "options": options}
    devices = {item.device.type for item in items if isinstance(item, torch.Tensor)}
    if settings["backend"] != "inductor" or devices != {"cpu"}:
        return settings
    # In C++ inductor cannot call a graph from a graph, as which repeated blocks are compiled; and
    # the meshes of distributed results, which are results of a graph in torch 2.14, come as None.
    in_python = _repeats(tokens) or shards.any_distributed(items)
    defaults: dict[str, Any] = {} if in_python else {"cpp_wrapper": True}
    if "cpp.vec_isa_ok" not in options:
        defaults |= inductor.untested_vectors()
    defaults |= inductor.lighter_code(asserted="size_asserts" in options)
    return {**settings, "options": {**defaults, **options}}


def without_risks(chosen: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any] | None:
    """The settings chosen, without what may fail; ``None`` where none of it was our own choice."""
    own = chosen["options"].keys() - settings["options"].keys()
    if own.isdisjoint(_RISKS):
        return None
    options = {name: value for name, value in chosen["options"].items() if name not in _RISKS & own}
    return {**chosen, "options": options}


_RISKS = {"cpp_wrapper", "cpp.vec_isa_ok"}


def _gathers(tokens: Sequence[Any]) -> bool:
    """Whether calls of a module among the arguments put its leaves together."""
    structures = [token for token in tokens if type(token) is Structure]
    return any([node.note.gathered for one in structures for node in one.nodes()])


def _repeats(tokens: Sequence[Any]) -> bool:
    """Whether a module among the arguments is compiled as a graph that is called several times."""
    structures = [token for token in tokens if type(token) is Structure]
    return any(hasattr(node.cls, "__repeats__") for one in structures for node in one.nodes())


def compile_flat(
    flat: FunctionType,
    settings: dict[str, Any],
    guards: Guards,
    outside: Outside,
    keeper: Keeper | None = None,
) -> Callable[..., Any]:
    """``torch.compile`` of a flat function, without dynamo's guards on what the caller checks.

    Args:
        flat: takes ``parallax_leaves``, a tuple of tensors, and ``parallax_others``.
        settings: for ``torch.compile``.
        guards: chooses among the guards of every trace.
        outside: is told what every trace reads from globals.
        keeper: compiles graphs that can be saved, where that is asked for.
    """
    options = dict(settings["options"])
    if settings["backend"] == "inductor":
        options = inductor_scalars.with_kept_numbers(inductor_faults.mended(options))
        options = inductor_products.with_fast_products(options)
    theirs = options.pop("guard_filter_fn", None)

    def keep(entries: Sequence[Any]) -> list[bool]:
        outside.add(entries)
        dynamo.forget_views_of_arrays(entries)
        kept = guards.keep(entries)
        if theirs is None:
            return kept
        return [mine and other for mine, other in zip(kept, theirs(entries), strict=True)]

    if keeper is not None:  # dynamo does not look at the options of a backend of ours
        settings = {**settings, "backend": keeper.backend(settings["backend"], options)}
        options = {}
    functions.keep_backwards()
    refuse_what_has_no_derivative()  # the graph may be called within a derivative, later
    compiled = torch.compile(flat, **{**settings, "options": {**options, "guard_filter_fn": keep}})
    return _direct(flat, compiled)


def _direct(flat: FunctionType, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Calls what dynamo made of ``flat`` directly, without the entry of ``torch.compile``.

    Dynamo's own guards choose what to run, as always. Where none fits, or where dynamo is in any
    special mode, ``compiled`` is called. The entry takes as long as a graph of ten operators.
    """
    entries, ordinary = dynamo.compiled_entries, dynamo.plain_frames()
    code, closure, space = flat.__code__, flat.__closure__, flat.__globals__
    made: dict[Any, FunctionType] = {}
    scope = {
        name: cell.cell_contents for name, cell in zip(code.co_freevars, closure or (), strict=True)
    }

    def run(leaves: tuple[Any, ...], others: tuple[Any, ...]) -> Any:
        if ordinary():
            given = {**scope, "parallax_leaves": leaves, "parallax_others": others}
            for entry in entries(code):
                if entry.guard_manager.check(given):
                    found = made.get(id(entry.code))
                    if found is None:
                        found = FunctionType(entry.code, space, code.co_name, None, closure)
                        made[id(entry.code)] = found
                    return found(leaves, others)
        # Anomaly mode looks for nan, and fails in a trace, where there are no numbers to look at.
        with dynamo.guarded_closures(), set_detect_anomaly(False):
            return compiled(leaves, others)

    return run
