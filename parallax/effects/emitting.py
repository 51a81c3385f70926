"""What ``forward`` says: ``self.emit`` and ``self.sow``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parallax import _compat, notes
from parallax.effects.collection import Collecting, Collection, EffectError, Emission, add
from parallax.fields import Buffer

__all__ = ["emit", "sow"]

_RULES = ("last", "mean", "sum")


def emit(module: Any, buffers: dict[str, Any], merge: str | None) -> None:
    """What ``Module.emit`` does; see there."""
    cls = type(module).__name__
    if merge is not None and merge not in _RULES:
        raise ValueError(f"{cls}.emit(merge=): expected one of {_RULES} or None, got {merge!r}")
    for name, value in buffers.items():
        _check(module, name, value)
    rng = module._rng
    collection = rng.collection if type(rng) is Collecting else None
    if collection is None or collection.emissions is None:
        raise EffectError(
            f"{cls}.emit({', '.join(buffers)}): nobody collects the effects of this call. Write: "
            f"out, module = effects.collect(fn)(module, ...); or switch them off: module.eval()"
        )
    if collection.recomputes():
        return
    if collection.over:
        raise EffectError(
            f"{cls}.emit({', '.join(buffers)}): the call that collected is over; this instance "
            f"was kept from inside it. Use the module that collect() returned"
        )
    path = notes.note_of(module).path or ""
    for name, value in buffers.items():
        where = notes.joined(path, name)
        _refuse_wrapper(value, collection, f"{cls}.emit({name}=)")
        add(collection.emissions, where, Emission(value.detach(), merge))


def _check(module: Any, name: str, value: Any) -> None:
    cls = type(module)
    where = f"{cls.__name__}.emit({name}=)"
    if name not in cls.__layout__.fields:
        raise AttributeError(
            f"{where}: {cls.__name__} declares no field {name!r}. Declare it: '{name}: Buffer'"
        )
    kind = cls.__layout__.kinds.get(name)
    if kind is None or kind.leaf is not Buffer:
        raise TypeError(f"{where}: only buffers are emitted. Declare it: '{name}: Buffer'")
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: expected a tensor, got {type(value).__name__}")
    held = getattr(module, name)
    if not isinstance(held, Tensor):
        what = "None" if held is None else "not initialized"
        raise TypeError(f"{where}: the buffer is {what}, so there is nothing to replace")
    if value.shape != held.shape or value.dtype != held.dtype:
        raise ValueError(
            f"{where}: the buffer has shape {tuple(held.shape)} and {held.dtype}, the value "
            f"{tuple(value.shape)} and {value.dtype}. Reduce it, or cast: value.to({held.dtype})"
        )


def _refuse_wrapper(value: Tensor, collection: Collection, where: str) -> None:
    if not _compat.is_compiling() and _compat.level_of(value) > collection.level:
        raise EffectError(
            f"{where}: a transform of torch.func would let its wrapper escape here. Use the "
            f"transform of the same name in parallax.func, which hands effects on; or collect "
            f"inside: torch.vmap(effects.collect(fn))"
        )


def sow(module: Any, values: dict[str, Any]) -> None:
    """What ``Module.sow`` does; see there."""
    rng = module._rng
    if type(rng) is not Collecting or rng.collection.sown is None:
        return
    collection, sown = rng.collection, rng.collection.sown
    if collection.over or collection.recomputes():
        return
    path = notes.note_of(module).path or ""
    for name, value in values.items():
        where = f"{type(module).__name__}.sow({name}=)"
        if not isinstance(value, Tensor):
            raise TypeError(f"{where}: expected a tensor, got {type(value).__name__}")
        _refuse_wrapper(value, collection, where)
        sown.setdefault(notes.joined(path, name), []).append(value)
