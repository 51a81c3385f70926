"""The names of ``torch.nn.Module`` that a module does not have, and what to write instead.

``__getattr__`` on ``Module`` would slow every read of a field. So each name is an attribute of the
class that only raises an error, which says what to write. A field or method of a user's class with
such a name takes precedence. ``hasattr`` returns false, and ``dir`` omits these names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

__all__ = ["DECLARATIONS", "HABITS", "Habit", "hint_at_habits", "without_habits"]

_LEAVES = "tree.leaves(module), or tree.select(module, 'parameter').get()"
_NAMED = "tree.named_leaves(module), a dict by path"
_BELOW = "module.modules()"
_MOVE = "module = tree.to(module, device=...)"
_CAST = "module = tree.to(module, dtype=...)"
_FIELD = "in the class body, '{name}: {kind}', and self.{name} = ... in __init__"

HABITS = {
    "parameters": _LEAVES,
    "named_parameters": _NAMED,
    "buffers": "tree.select(module, 'buffer').get()",
    "named_buffers": _NAMED,
    "children": _BELOW,
    "named_children": _BELOW,
    "named_modules": _BELOW,
    "state_dict": "bridge.state_dict(module); io.save(module, path) for a file",
    "load_state_dict": "module = bridge.load_state_dict(module, mapping)",
    "to": "module = tree.to(module, device=..., dtype=...)",
    "cuda": _MOVE,
    "cpu": _MOVE,
    "half": _CAST,
    "float": _CAST,
    "double": _CAST,
    "bfloat16": _CAST,
    "requires_grad_": "module = tree.select(module, path).freeze(), or .unfreeze()",
    "zero_grad": "grads = func.grad(loss)(module, x), or module.reset(rng) before backward()",
    "register_forward_hook": "self.sow(name=value) in forward, effects.capture(fn) around the call",
    "apply": "module = tree.map(fn, module)",
    "training": "module.mode == 'train'",
}
"""What to write, by name."""

DECLARATIONS = {
    "register_buffer": _FIELD.format(name="mean", kind="Buffer"),
    "register_parameter": _FIELD.format(name="weight", kind="Parameter"),
    "register_module": _FIELD.format(name="layer", kind="Module"),
    "add_module": _FIELD.format(name="layer", kind="Module"),
}
"""What to write in a class, by name."""


class Habit:
    """An attribute that raises an ``AttributeError``, which says what to write instead."""

    __slots__ = ("instead", "name")

    def __init__(self, name: str, instead: str) -> None:
        self.name = name
        self.instead = instead

    def __get__(self, module: Any, cls: type) -> NoReturn:
        raise AttributeError(
            f"{cls.__name__} has no attribute {self.name!r}: modules are immutable trees. "
            f"Write: {self.instead}"
        )


def hint_at_habits(cls: type) -> None:
    """Adds these attributes to a class.

    ``load_state_dict`` is not among them: ``torch.distributed.checkpoint`` takes an object whose
    class has both this name and ``state_dict`` for a ``Stateful``, without reading them.
    """
    for name, instead in (HABITS | DECLARATIONS).items():
        if name != "load_state_dict":
            type.__setattr__(cls, name, Habit(name, instead))


def without_habits(names: Iterable[str], owners: Iterable[Any]) -> list[str]:
    """The names that ``dir`` shows: all but those that only raise.

    Args:
        names: what ``dir`` would show.
        owners: where they are looked up, in this order: dicts of attributes.
    """
    first: dict[str, Any] = {}
    for owner in owners:
        for name in (HABITS.keys() | DECLARATIONS.keys()) & owner.keys():
            first.setdefault(name, owner[name])
    return [name for name in names if type(first.get(name)) is not Habit]
