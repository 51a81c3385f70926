"""``trace_counts``: how often were functions compiled, and why again?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType, TracebackType
from typing import Any

import torch

from parallax._compat.dynamo import Trace, TraceLog
from parallax._errors.arguments import check_function
from parallax.compiler.recompiling import FUNCTIONS, CompiledFunction
from parallax.debug.calls import name_of

__all__ = ["trace_counts"]

_TORCH = str(Path(torch.__file__).parent)


class trace_counts:  # noqa: N801  # called like a function, as torch.no_grad is
    """Counts the graphs that functions are compiled to within a block, to test that it is one.

    ``counts[step]`` is the number for a function that ``parallax.compile`` or ``torch.compile``
    returned; with ``torch.compile`` a graph break makes one more. All threads are counted.
    ``print(counts)`` lists every function with the reasons.

    Example:
        >>> import torch, parallax
        >>> from parallax import debug
        >>> step = parallax.compile(lambda x: 2 * x, backend="eager")
        >>> with debug.trace_counts() as counts:
        ...     for size in (3, 3, 4):
        ...         _ = step(torch.ones(size))
        >>> counts[step]
        2
        >>> counts.reasons(step)
        ["tensor 'x' size mismatch at index 0. expected 3, actual 4"]
    """

    def __enter__(self) -> trace_counts:
        """Begins to count."""
        self._log = TraceLog()
        self._made = {function: len(function.made) for function in FUNCTIONS.values()}
        self._found: list[Trace] | None = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends; the numbers stay."""
        self._found = self._traces()
        self._log.end()

    def __getitem__(self, fn: Callable[..., Any]) -> int:
        """How many graphs of a function were compiled so far."""
        return len(self._of(fn))

    def reasons(self, fn: Callable[..., Any]) -> list[str]:
        """Why a function was compiled again.

        Args:
            fn: what ``parallax.compile`` or ``torch.compile`` returned.

        Returns:
            For each graph but the function's first, what an earlier one did not fit: which tensor
            had another size, say, or which constant of a module changed.

        Raises:
            LookupError: if the function is not compiled.
        """
        return [reason for reason in self._of(fn) if reason]

    def __repr__(self) -> str:
        """Every function that was compiled, how often, and why."""
        reasons: dict[str, list[str]] = {}
        for trace in self._traces():
            reasons.setdefault(_place(trace), []).append(trace.reason)
        lines = []
        for place, found in reasons.items():
            lines.append(f"{place}: {len(found)} graph{'s' * (len(found) > 1)}")
            lines += [f"  again: {reason}" for reason in found if reason]
        return "\n".join(lines) or "nothing was compiled"

    def _of(self, fn: Callable[..., Any]) -> list[str]:
        """The reason for each graph of a function."""
        check_function("debug.trace_counts", fn, "counts[step], where step is compiled")
        chain = _chain(fn)
        functions = _functions(chain)
        if functions:
            names = {made.name for function in functions for made in function.made}
            return [trace.reason for trace in self._traces() if trace.name in names]
        code = getattr(chain[-1], "__code__", None)
        if code is None or code.co_filename.startswith(_TORCH):
            raise LookupError(
                f"debug.trace_counts: {name_of(chain[-1])} is not written in Python, or in torch, "
                f"and is not counted for itself. Compile a function that calls it"
            )
        found = [trace.reason for trace in self._traces() if _is_of(trace, code)]
        if not found and not any([hasattr(one, "_torchdynamo_orig_callable") for one in chain]):
            raise LookupError(
                f"debug.trace_counts: {name_of(fn)} is not compiled. Give what compile returned: "
                f"step = parallax.compile(step), then counts[step]"
            )
        return found

    def _traces(self) -> list[Trace]:
        """The traces so far, with the reasons of ``parallax.compile`` for its own."""
        if self._found is not None:
            return self._found
        whys: dict[str, list[str]] = {}
        for function in FUNCTIONS.values():
            for made in function.made[self._made.get(function, 0) :]:
                whys.setdefault(made.name, []).append(made.why)
        found = []
        for trace in self._log.traces():
            ours = whys.get(trace.name) if not trace.reason else None
            found.append(trace._replace(reason=ours.pop(0)) if ours else trace)
        return found


def _functions(chain: list[Any]) -> list[CompiledFunction]:
    """What ``parallax.compile`` has made of a function, the outermost; or of what it is around."""
    outer = [FUNCTIONS[one] for one in chain if isinstance(one, FunctionType) and one in FUNCTIONS]
    return outer[:1] or [function for function in FUNCTIONS.values() if function.fn in chain]


def _chain(fn: Any) -> list[Any]:
    """A function and what it is made around, down to the code that is compiled."""
    chain: list[Any] = []
    while fn is not None and fn not in chain:
        chain.append(fn)
        parts = (getattr(fn, name, None) for name in _AROUND)
        fn = next((part for part in parts if part is not None), None)
        if isinstance(fn, torch.nn.Module):
            fn = type(fn).forward
    return chain


# What holds the function inside: of functools, of torch.compile, of methods.
_AROUND = ("func", "_torchdynamo_orig_callable", "_orig_mod", "__wrapped__", "__func__")


def _is_of(trace: Trace, code: CodeType) -> bool:
    """Whether a trace is of a function's code, or goes on after a graph break in it."""
    if trace.file != code.co_filename:
        return False
    if trace.name == code.co_name:
        return trace.line == code.co_firstlineno
    lines = [line for _, _, line in code.co_lines() if line is not None]
    resumed = trace.name.startswith(f"torch_dynamo_resume_in_{code.co_name}_at_")
    return resumed and min(lines) <= trace.line <= max(lines)


def _place(trace: Trace) -> str:
    """What a trace is of, and where that is written."""
    for function in FUNCTIONS.values():
        if any(made.name == trace.name for made in function.made):
            code = getattr(function.fn, "__code__", None)
            place = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
            return f"{name_of(function.fn)}{place}"
    return f"{trace.name} ({trace.file}:{trace.line})"
