"""Where keys may be used again: in blocks of ``reuse()``, and where torch runs a function anew."""

from __future__ import annotations

import weakref
from contextvars import ContextVar

from parallax._compat import autograd, dynamo, in_trace, modes

__all__ = ["is_exempt", "reuse"]


class _Block:
    """One entered block of ``reuse``; its end is told wherever it comes."""

    __slots__ = ("__weakref__", "on")

    def __init__(self) -> None:
        self.on = False


_blocks: ContextVar[tuple[weakref.ref[_Block], ...]] = ContextVar("blocks", default=())


class reuse:  # noqa: N801  # called like a function, as torch.no_grad is
    """Allows keys to be used again inside of ``with random.reuse():``; their numbers repeat.

    For closures that evaluate one loss several times, as line searches do. It holds for the thread
    or task that entered it. Blocks of generators may end in any order: each ends only itself.

    Example:
        >>> from parallax import random
        >>> key = random.key(0)
        >>> with random.reuse():
        ...     bool((random.normal(key, (3,)) == random.normal(key, (3,))).all())
        True
    """

    __slots__ = ("_entered",)

    def __init__(self) -> None:
        self._entered: list[_Block] = []

    def __enter__(self) -> None:
        if dynamo.is_compiling():
            in_trace.at_trace()(in_trace.open_reuse)
            return
        # Other contexts that saw the block know it by a weak reference: an interrupt in between
        # leaves nothing behind.
        block = _Block()
        self._entered.append(block)
        _blocks.set((*[ref for ref in _blocks.get() if _is_on(ref)], weakref.ref(block)))
        block.on = True

    def __exit__(self, *_: object) -> None:
        if dynamo.is_compiling():
            in_trace.at_trace()(in_trace.close_reuse)
            return
        self._entered.pop().on = False
        _blocks.set(tuple([ref for ref in _blocks.get() if _is_on(ref)]))


def _is_on(ref: weakref.ref[_Block]) -> bool:
    block = ref()
    return block is not None and block.on


def is_exempt() -> bool:
    """Whether keys may be used again: in ``reuse()``, or in a recomputation during backward."""
    return (
        any([_is_on(ref) for ref in _blocks.get()])
        or autograd.in_backward()
        or modes.jit_tracing()  # torch runs the function once more, to check
    )
