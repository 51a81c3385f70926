"""What ``forward`` says: ``self.emit`` and ``self.sow``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parallax._compat import autograd, checkpoints, dynamo, functorch
from parallax._errors.arguments import shown
from parallax.core import notes
from parallax.core.fields import Buffer
from parallax.effects.collection import Collecting, Collection, EffectError

__all__ = ["IN_TURN", "RULES", "check", "emit", "latest", "sow"]

RULES = ("last", "mean", "sum")
IN_TURN = "in turn"
"""Not for users: the value was computed from what ``latest`` gave, and takes its place."""


def emit(module: Any, /, *, merge: str | None = None, **buffers: Any) -> None:
    """Records new values for this module's buffers, for ``effects.collect`` to apply.

    Values are validated when they are applied.

    Args:
        module: the module whose method this is.
        merge: how several values for one buffer, from ``split`` copies or from ``vmap``,
            become one: ``"last"``, ``"mean"`` or ``"sum"``; by default they are an error.
        **buffers: tensors by field name, of the buffer's shape, dtype and device. They are
            detached: no gradient flows through a buffer.

    Raises:
        AttributeError: if a name is no field.
        EffectError: outside of ``effects.collect``.
        TypeError: if a field is no buffer, or a value no tensor.
        ValueError: if a value has another shape, dtype or device than the buffer, or ``merge`` is
            no rule.

    Example:
        >>> import torch
        >>> from parallax import Buffer, Module, effects
        >>> class Mean(Module):
        ...     mean: Buffer
        ...     def forward(self, x):
        ...         self.emit(mean=x.mean(0))
        ...         return x - x.mean(0)
        >>> y, module = effects.collect(Mean.forward)(Mean(torch.zeros(1)), torch.ones(2, 1))
        >>> module.mean
        tensor([1.])
    """
    # Only what cannot wait is done here. Between the operators of a network this code is not in the
    # processor's caches, and reading a tensor's shape costs as much as ten lines in a hot loop.
    rng = module._rng
    if type(rng) is not Collecting or rng.collection.emissions is None:
        check(module, "", buffers, merge)
        raise EffectError(
            f"{_call(module, buffers)}: nobody collects the effects of this call. Write: "
            f"out, module = effects.collect(fn)(module, ...); or switch them off: module.eval()"
        )
    collection = rng.collection
    traced = dynamo.is_compiling()
    if not traced and autograd.graph_task() != -1 and _is_recomputed(module, buffers, collection):
        return
    if collection.over:
        raise EffectError(
            f"{_call(module, buffers)}: the call that collected is over; this instance "
            f"was kept from inside it. Use the module that collect() returned"
        )
    if traced:
        _emit_traced(module, buffers, merge, rng.collection.emissions)
        return
    if functorch.innermost_transform() is not None:
        check(module, notes.note_of(module).path or "", buffers, merge)
        _refuse_wrappers(module, buffers, collection, "emit")
    path = notes.note_of(module).path
    rng.collection.emissions.append((path or "", merge, buffers, False))


def _is_recomputed(module: Any, buffers: dict[str, Any], collection: Collection) -> bool:
    address = notes.note_of(module).path or "", buffers.keys()
    earlier = collection.emissions or ()
    return collection.recomputes(any((p, b.keys()) == address for p, _, b, _ in earlier))


def _emit_traced(module: Any, buffers: dict[str, Any], merge: str | None, emissions: Any) -> None:
    path = notes.note_of(module).path or ""
    check(module, path, buffers, merge)
    kept = {name: value.detach() for name, value in buffers.items()}
    checkpoints.open_checkpoint()
    emissions.append((path, merge, kept, False))
    checkpoints.close_checkpoint()


def _call(module: Any, buffers: dict[str, Any]) -> str:
    return f"{type(module).__name__}.emit({', '.join(buffers)})"


def check(module: Any, path: str, buffers: dict[str, Any], merge: str | None) -> None:
    """Checks an emission against the module that made it, which stands at ``path``."""
    for name, value in buffers.items():
        cls = type(module)
        where = f"{cls.__name__}.emit({name}=){f' at {path!r}' if path else ''}"
        if name not in cls.__layout__.fields:
            raise AttributeError(
                f"{where}: {cls.__name__} declares no field {name!r}. Declare it: '{name}: Buffer'"
            )
        kind = cls.__layout__.kinds.get(name)
        if kind is None or kind.leaf is not Buffer:
            raise TypeError(f"{where}: only buffers are emitted. Declare it: '{name}: Buffer'")
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{where}: expected a tensor, got {shown(value)}. Give one of the buffer's shape, "
                f"or leave {name} out where it stays"
            )
        held = getattr(module, name)
        if not isinstance(held, Tensor):
            what = "None" if held is None else "not initialized"
            raise TypeError(f"{where}: the buffer is {what}, so there is nothing to replace")
        if value.shape != held.shape or value.dtype is not held.dtype:
            raise ValueError(
                f"{where}: the buffer has shape {tuple(held.shape)} and {held.dtype}, the value "
                f"{tuple(value.shape)} and {value.dtype}. Reduce it, or cast: "
                f"value.to({held.dtype})"
            )
        if value.device != held.device:
            raise ValueError(
                f"{where}: the buffer is on {held.device}, the value on {value.device}. Move it: "
                f"value.to(self.{name}.device)"
            )
    if merge is not None and merge not in RULES and merge is not IN_TURN:
        where = f"{type(module).__name__}.emit(merge=)"
        raise ValueError(f"{where}: expected one of {RULES} or None, got {shown(merge)}")


def latest(module: Any) -> dict[str, dict[str, Tensor]]:
    """What was emitted so far, the last value for each buffer, while a module is collected.

    Code that updates buffers in turn, as a layer of ``torch.nn`` that is called twice does, begins
    with these instead of its leaves, and emits with ``merge=IN_TURN``. A value of another shape
    than the leaf was emitted outside of a ``vmap`` that maps the module.

    Args:
        module: the module.

    Returns:
        By the path of a module, as in the collection, values by the buffer's name.
    """
    rng = module._rng
    if type(rng) is not Collecting:
        return {}
    collections: list[Collection] = []
    one: Any = rng.collection
    while one is not None:
        collections.append(one)
        one = one.outer
    found: dict[str, dict[str, Tensor]] = {}
    for collection in reversed(collections):
        for path, _, buffers, _ in collection.emissions or ():
            found.setdefault(path, {}).update(buffers)
    return found


def _refuse_wrappers(
    module: Any, values: dict[str, Tensor], collection: Collection, verb: str
) -> None:
    for name, value in values.items():
        if functorch.level_of(value) > collection.level:
            raise EffectError(
                f"{type(module).__name__}.{verb}({name}=): a transform of torch.func would let its "
                f"wrapper escape here. Use the transform of the same name in parallax.func, with "
                f"the module as an argument: it hands effects on. Or collect inside: "
                f"torch.vmap(effects.collect(fn))"
            )


def sow(module: Any, /, **values: Tensor) -> None:
    """Names intermediate results for ``effects.capture``; without a capture it does nothing.

    Args:
        module: the module whose method this is.
        **values: tensors by name; they stay part of the graph.

    Raises:
        TypeError: if a value is no tensor, and somebody captures.

    Example:
        >>> import torch
        >>> from parallax import Module, effects, nn
        >>> class Net(Module):
        ...     hidden: nn.Linear
        ...     out: nn.Linear
        ...     def forward(self, x):
        ...         h = self.hidden(x).relu()
        ...         effects.sow(self, h=h)  # or self.sow(h=h)
        ...         return self.out(h)
        >>> net = Net(nn.Linear(2, 4), nn.Linear(4, 1)).initialize(0)
        >>> y, found = effects.capture(Net.forward)(net, torch.ones(3, 2))
        >>> found["h"].shape
        torch.Size([3, 4])
    """
    rng = module._rng
    if type(rng) is not Collecting or rng.collection.sown is None:
        return
    collection, sown = rng.collection, rng.collection.sown
    path, traced = notes.note_of(module).path or "", dynamo.is_compiling()
    said = all((path, name) in sown for name in values)
    if collection.over or (not traced and autograd.in_backward() and collection.recomputes(said)):
        return
    for name, value in values.items():
        given: Any = value
        if not isinstance(given, Tensor):
            where = f"{type(module).__name__}.sow({name}=)"
            raise TypeError(
                f"{where}: expected a tensor, got {shown(given)}. Make one of it: "
                f"torch.as_tensor(value)"
            )
    if not traced and functorch.transform_active():
        _refuse_wrappers(module, values, collection, "sow")
        if collection.is_apart():
            raise EffectError(
                f"{type(module).__name__}.sow({', '.join(values)}): func.checkpoint within a "
                f"transform has no graph for it, as the module is captured by the function. Pass "
                f"it as an argument: func.checkpoint(fn)(module, x)"
            )
    if traced:
        checkpoints.open_checkpoint()
    for name, value in values.items():
        sown.setdefault((path, name), []).append(value)
    if traced:
        checkpoints.close_checkpoint()
