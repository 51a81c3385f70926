"""Every private part of dynamo that ``compile`` touches; ``_compat`` has the rest of torch's."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch._C._dynamo import eval_frame
from torch._C._dynamo.guards import TensorGuards
from torch.autograd import forward_ad
from torch.fx import _symbolic_trace as fx_trace

from parallax._compat import transform_active

__all__ = [
    "compile_flat",
    "compile_settings",
    "is_transforming",
    "recompile_limit",
    "tensor_check",
    "write_detector",
]


def is_transforming() -> bool:
    """Whether operations are not simply run: a transform, dispatch mode or another trace is on."""
    return (
        transform_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or fx_trace.is_fx_symbolic_tracing()
    )


def tensor_check(
    tensors: Sequence[torch.Tensor],
    sizes: Sequence[Sequence[int | None]],
    strides: Sequence[Sequence[int | None]],
) -> Any:
    """Dynamo's own check of the metadata of several tensors at once, in C++.

    ``check(*tensors)`` compares type, dispatch keys, dtype, device, requires_grad under the
    present grad mode, rank, and those sizes and strides that are not ``None``; it is false if a
    tensor comes twice. ``check_verbose(*tensors, tensor_check_names=...)`` says what differs.
    """
    lists: Any = [list(size) for size in sizes], [list(stride) for stride in strides]
    return TensorGuards(*tensors, dynamic_dims_sizes=lists[0], dynamic_dims_strides=lists[1])


def recompile_limit() -> int:
    """How many graphs torch makes for one function."""
    from torch._dynamo import config  # dynamo takes long to import

    return config.recompile_limit


def compile_settings(options: dict[str, Any]) -> dict[str, Any]:
    """The options of ``torch.compile``, checked, with its ``mode`` told as inductor's options.

    torch refuses ``mode`` beside ``options``, and a guard filter is one of the options.
    """
    allowed = inspect.signature(torch.compile).parameters.keys() - {"model"}
    unknown = options.keys() - allowed
    if unknown:
        raise TypeError(
            f"compile() takes the options of torch.compile, not {min(unknown)!r}; "
            f"they are {', '.join(sorted(allowed))}"
        )
    settings = {"fullgraph": True, **options}
    mode = settings.pop("mode", None)
    chosen = settings.get("options")
    if mode is not None and chosen is not None:
        raise TypeError("compile() takes mode= or options=, not both, as torch.compile does")
    if mode is not None:
        from torch._inductor import list_mode_options  # inductor takes long to import

        chosen = list_mode_options(mode, settings.get("dynamic"))
    settings["options"] = dict(chosen or {})
    return settings


_LEAF = re.compile(r"L\['parallax_leaves'\](?:\[(\d+)\])?")
_LEAF_GUARDS = ("TENSOR_MATCH", "TYPE_MATCH", "SEQUENCE_LENGTH")
# What is given to the flat function, and the rooms of Parallax that hold no state.
_OURS = re.compile(
    r"\bG\['(parallax_\w+|__import_parallax_dot_(compiler|constants|fields|frozendict|kinds|layout"
    r"|metaclass|module|nodes|notes|registry|structure|tracing|tree)(_dot_\w+)?)'\]"
    r"|\bSUPPORTED_NODES\b"
)
_LIBRARIES = re.compile(r"G\['__import_(torch|optree|parallax)(_dot_\w+)?'\]|__import__\('torch'\)")
_CODE = (FunctionType, BuiltinFunctionType, ModuleType, type)


def compile_flat(
    flat: FunctionType,
    settings: dict[str, Any],
    is_loose: Callable[[int], bool],
) -> Callable[..., Any]:
    """``torch.compile`` of a flat function, without dynamo's guards on what the caller checks.

    Args:
        flat: takes ``parallax_leaves``, a tuple of tensors, and ``parallax_others``; the globals
            named ``parallax_...`` never change.
        settings: for ``torch.compile``.
        is_loose: whether dynamo shall guard a leaf itself; asked after tracing.
    """
    options = dict(settings["options"])
    theirs = options.pop("guard_filter_fn", None)

    def keep(entries: Sequence[Any]) -> list[bool]:
        kept = [_keeps(entry, is_loose) for entry in entries]
        if theirs is None:
            return kept
        return [mine and other for mine, other in zip(kept, theirs(entries), strict=True)]

    compiled = torch.compile(flat, **{**settings, "options": {**options, "guard_filter_fn": keep}})
    return _direct(flat, compiled)


def _direct(flat: FunctionType, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """``compiled``, with what dynamo made of ``flat`` run past the entry of ``torch.compile``.

    Dynamo's own guards choose what to run, as ever; where none fits, or anything but the ordinary
    is asked of dynamo, ``compiled`` is called. The entry takes as long as a graph of ten operators.
    """
    from torch._dynamo import eval_frame as stances  # dynamo takes long to import

    entries, callback = eval_frame._debug_get_cache_entry_list, eval_frame.get_eval_frame_callback
    code, closure, space = flat.__code__, flat.__closure__, flat.__globals__
    made: dict[Any, FunctionType] = {}
    scope = {
        name: cell.cell_contents for name, cell in zip(code.co_freevars, closure or (), strict=True)
    }

    def run(leaves: tuple[Any, ...], others: tuple[Any, ...]) -> Any:
        if callback() is None and stances._stance.stance == "default":
            given = {**scope, "parallax_leaves": leaves, "parallax_others": others}
            for entry in entries(code):
                if entry.guard_manager.check(given):
                    found = made.get(id(entry.code))
                    if found is None:
                        found = FunctionType(entry.code, space, code.co_name, None, closure)
                        made[id(entry.code)] = found
                    return found(leaves, others)
        return compiled(leaves, others)

    return run


def _keeps(entry: Any, is_loose: Callable[[int], bool]) -> bool:
    """Whether dynamo shall check this guard: all but what is checked elsewhere or cannot change."""
    name = entry.orig_guard.name
    leaf = _LEAF.fullmatch(name)
    if leaf is not None:
        checked = entry.guard_type in _LEAF_GUARDS
        return not checked or (leaf[1] is not None and is_loose(int(leaf[1])))
    if _OURS.search(name):
        return False
    # The very functions, classes and modules that these libraries are made of.
    return not (_LIBRARIES.match(name) and isinstance(entry.value, _CODE))


def write_detector(note: Callable[[], None]) -> tuple[Any, Callable[[Any], None]]:
    """What a traced function calls, and with what, to have ``note`` called if it wrote to an input.

    Call it last. Dynamo traces with stand-ins for tensors, which count what is written into them.
    """
    from torch._dynamo.comptime import comptime  # dynamo takes long to import

    def look(context: Any) -> None:
        values = [
            node.meta.get("example_value") for node in context.graph().find_nodes(op="placeholder")
        ]
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        if any(tensor.is_inference() or tensor._version for tensor in tensors):
            note()

    return comptime, look
