"""What ``forward`` says: ``self.emit`` and ``self.sow``."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from parallax import _compat, notes
from parallax.effects.collection import Collecting, Collection, EffectError, add
from parallax.fields import Buffer

__all__ = ["emit", "sow"]

_RULES = ("last", "mean", "sum")


def emit(module: Any, buffers: dict[str, Any], merge: str | None) -> None:
    """What ``Module.emit`` does; see there."""
    kinds = type(module).__layout__.kinds
    for name, value in buffers.items():
        kind, held = kinds.get(name), getattr(module, name, None)
        if (
            kind is None
            or kind.leaf is not Buffer
            or not isinstance(value, Tensor)
            or not isinstance(held, Tensor)
            or value.shape != held.shape
            or value.dtype != held.dtype
        ):
            _refuse(module, name, value)
    if merge is not None and merge not in _RULES:
        where = f"{type(module).__name__}.emit(merge=)"
        raise ValueError(f"{where}: expected one of {_RULES} or None, got {merge!r}")
    rng = module._rng
    if type(rng) is not Collecting or rng.collection.emissions is None:
        raise EffectError(
            f"{_call(module, buffers)}: nobody collects the effects of this call. Write: "
            f"out, module = effects.collect(fn)(module, ...); or switch them off: module.eval()"
        )
    collection: Collection = rng.collection
    emissions: Any = collection.emissions
    if collection.recomputes():
        return
    if collection.over:
        raise EffectError(
            f"{_call(module, buffers)}: the call that collected is over; this instance "
            f"was kept from inside it. Use the module that collect() returned"
        )
    if not _compat.is_compiling() and _compat.transform_active():
        _refuse_wrappers(module, buffers, collection, "emit")
    path = notes.note_of(module).path or ""
    for name, value in buffers.items():
        kept = value.detach() if value.requires_grad else value
        address = path, name
        if address in emissions:
            add(emissions, address, kept, merge)
        else:
            emissions[address] = merge, [kept]


def _call(module: Any, buffers: dict[str, Any]) -> str:
    return f"{type(module).__name__}.emit({', '.join(buffers)})"


def _refuse(module: Any, name: str, value: Any) -> NoReturn:
    """Says why a value cannot be emitted."""
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
    raise ValueError(
        f"{where}: the buffer has shape {tuple(held.shape)} and {held.dtype}, the value "
        f"{tuple(value.shape)} and {value.dtype}. Reduce it, or cast: value.to({held.dtype})"
    )


def _refuse_wrappers(
    module: Any, values: dict[str, Tensor], collection: Collection, verb: str
) -> None:
    for name, value in values.items():
        if _compat.level_of(value) > collection.level:
            raise EffectError(
                f"{type(module).__name__}.{verb}({name}=): a transform of torch.func would let its "
                f"wrapper escape here. Use the transform of the same name in parallax.func, which "
                f"hands effects on; or collect inside: torch.vmap(effects.collect(fn))"
            )


def sow(module: Any, values: dict[str, Any]) -> None:
    """What ``Module.sow`` does; see there."""
    rng = module._rng
    if type(rng) is not Collecting or rng.collection.sown is None:
        return
    collection, sown = rng.collection, rng.collection.sown
    if collection.over or collection.recomputes():
        return
    for name, value in values.items():
        if not isinstance(value, Tensor):
            where = f"{type(module).__name__}.sow({name}=)"
            raise TypeError(f"{where}: expected a tensor, got {type(value).__name__}")
    if not _compat.is_compiling() and _compat.transform_active():
        _refuse_wrappers(module, values, collection, "sow")
    path = notes.note_of(module).path or ""
    for name, value in values.items():
        sown.setdefault((path, name), []).append(value)
