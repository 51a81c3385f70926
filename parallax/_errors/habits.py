"""The names of ``torch.nn.Module`` that a module does not have, and what to write instead.

``__getattr__`` on ``Module`` would slow every read of a field. So each name is an attribute of the
class that only raises an error, which says what to write. A field or method of a user's class with
such a name takes precedence. ``hasattr`` returns false, and ``dir`` omits these names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

__all__ = ["DECLARATIONS", "ELSEWHERE", "HABITS", "Habit", "hint_at_habits", "without_habits"]

_LEAVES = "tree.leaves(module), or tree.select(module, 'parameter').get()"
_NAMED = "tree.named_leaves(module), a dict by path"
_BELOW = "module.modules()"
_MOVE = "module = tree.to(module, device=...)"
_CAST = "module = tree.to(module, dtype=...)"
_GET = "tree.select(module, path).get()"
_HOOK = "self.sow(name=value) in forward, or effects.capture(fn, path) around the call"
_LONGER = (
    "nn.Sequential(*module, layer); for a field, module = module.replace(layers=(*layers, layer))"
)
_FIELD = "in the class body, '{name}: {kind}', and self.{name} = ... in __init__"

_GRADS_FIRST = "grads, value = func.grad_and_value(loss)(module, x); the gradients come first"

HABITS = {
    "parameters": _LEAVES,
    "named_parameters": _NAMED,
    "buffers": "tree.select(module, 'buffer').get()",
    "named_buffers": _NAMED,
    "children": _BELOW,
    "named_children": _BELOW,
    "named_modules": _BELOW,
    "state_dict": "bridge.state_dict(module); for a file, io.save(module, path)",
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
    "register_forward_hook": _HOOK,
    "register_forward_pre_hook": _HOOK,
    "register_full_backward_hook": "effects.perturb(fn), for gradients of intermediate results",
    "apply": "module = tree.map(fn, module) for leaves; "
    "tree.select(module, nn.Linear).apply(fn) for modules",
    "training": "module.mode == 'train'",
    "get_submodule": _GET,
    "get_parameter": _GET,
    "get_buffer": _GET,
    "set_submodule": "module = tree.select(module, path).set(layer)",
    "type": _CAST,
    "to_empty": "module = module.initialize(rng, device=...)",
    "share_memory": "leaf.share_memory_() for leaf in tree.leaves(module)",
    "compile": "compiled = parallax.compile(module)",
}
"""What to write, by name."""

ELSEWHERE = {
    "save": "io.save(module, path)",
    "load": "module = io.load(path, like=module)",
    "item": _GRADS_FIRST,
    "backward": _GRADS_FIRST,
    "append": _LONGER,
    "extend": _LONGER,
    "insert": _LONGER,
    "init": "module = module.initialize(rng)",
    "clone": "module = tree.map(torch.clone, module)",
    "copy": "other = module; nothing changes it",
    "detach": "module = tree.map(torch.detach, module)",
    "device": "tree.leaves(module)[0].device",
    "dtype": "tree.leaves(module)[0].dtype",
}
"""What to write, by names that modules of other libraries have, lists, or tensors."""

DECLARATIONS = {
    "register_buffer": _FIELD.format(name="mean", kind="Buffer"),
    "register_parameter": _FIELD.format(name="weight", kind="Parameter"),
    "register_module": _FIELD.format(name="layer", kind="Module"),
    "add_module": _FIELD.format(name="layer", kind="Module"),
}
"""What to write in a class, by name."""


class Habit:
    """An attribute that raises an ``AttributeError``, which says why, and what to write instead."""

    __slots__ = ("instead", "name", "why")

    def __init__(self, name: str, instead: str, why: str = "modules are immutable trees") -> None:
        self.name = name
        self.instead = instead
        self.why = why

    def __get__(self, value: Any, cls: type) -> NoReturn:
        raise AttributeError(
            f"{cls.__name__} has no attribute {self.name!r}: {self.why}. Write: {self.instead}"
        )


def hint_at_habits(cls: type) -> None:
    """Adds these attributes to a class.

    By ``state_dict`` and ``load_state_dict``, ``torch.distributed.checkpoint`` takes a module for a
    ``Stateful``. It then asks for the state dict, and the error says what to save instead.
    """
    for name, instead in (HABITS | DECLARATIONS | ELSEWHERE).items():
        type.__setattr__(cls, name, Habit(name, instead))


def without_habits(names: Iterable[str], owners: Iterable[Any]) -> list[str]:
    """The names without those that only raise, as the first of the owners has them: dicts."""
    first: dict[str, Any] = {}
    for owner in owners:
        for name in (HABITS.keys() | DECLARATIONS.keys() | ELSEWHERE.keys()) & owner.keys():
            first.setdefault(name, owner[name])
    return [name for name in names if type(first.get(name)) is not Habit]
