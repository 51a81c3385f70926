"""Names that a room does not have: the error, with what to write instead.

A room is one of the packages that users import: ``tree``, ``func``, ``nn``, ... Each has a file
``absent`` with the names that people know from other libraries. What is here holds in all rooms.

Nothing here runs when a name exists.
"""

from __future__ import annotations

import dis
import sys
from importlib import import_module
from types import FrameType, ModuleType
from typing import Any, NoReturn

__all__ = ["ANYWHERE", "answer_calls", "line_for", "no_such_name"]

_ROOMS = ("func", "tree", "nn", "optim", "random", "effects", "io", "bridge", "debug")
_IMPORT_FROM = dis.opmap["IMPORT_FROM"]
_IMPORTER = "importlib._bootstrap"  # asks before it looks for a file of that name

_SELECTOR = "a selector such as 'parameter', as in tree.partition(model, 'parameter')"
_CALLBACK = "a plain call in eager code; torch.library.custom_op in compiled code"
_PROCESSES = "a plan, dist.Plan(dist.mesh(dp=2)), from parallax.distributed"
_STATE = "'mean: Buffer' in the class body, self.emit(mean=...) in forward, effects.collect around"
_PICTURE = "print(model), f'{model:shapes}' or tree.summary(model)"

ANYWHERE = {
    # Equinox's and JAX's
    "filter": "tree.partition(model, 'parameter')[0]",
    "filter_checkpoint": "func.checkpoint(fn)",
    "filter_closure_convert": "the function itself; it may close over modules and tensors",
    "filter_grad": "func.grad(loss)",
    "filter_hessian": "func.hessian(fn)",
    "filter_jit": "parallax.compile(fn)",
    "filter_make_jaxpr": "torch.fx.experimental.proxy_tensor.make_fx(fn)",
    "filter_pmap": _PROCESSES,
    "filter_primitive_def": "torch.library.custom_op",
    "filter_pure_callback": _CALLBACK,
    "filter_shard": "plan.apply(model), of parallax.distributed",
    "filter_value_and_grad": "grads, value = func.grad_and_value(loss)(model, x)",
    "closure_convert": "the function itself; it may close over modules and tensors",
    "custom_gradient": "func.custom_vjp",
    "debug_nans": "debug.nans(fn)",
    "device_put": "tree.to(model, device=...)",
    "device_get": "tree.to(model, device='cpu')",
    "error_if": "debug.check(condition, 'message')",
    "branched_error_if": "debug.check(condition, 'message')",
    "inference_mode": "model.eval() for layers; torch.inference_mode() for no gradients",
    "is_array": _SELECTOR,
    "is_array_like": _SELECTOR,
    "is_inexact_array": _SELECTOR,
    "is_inexact_array_like": _SELECTOR,
    "jax": "import torch, and func, tree and random of parallax",
    "jit": "parallax.compile(fn)",
    "jnp": "import torch",
    "lax": "func.scan, func.cond, func.while_loop and func.fori_loop",
    "make_with_state": _STATE,
    "named_parameters": "tree.named_leaves(model)",
    "numpy": "import torch",
    "parameters": "tree.leaves(tree.partition(model, 'parameter')[0])",
    "partial": "functools.partial(fn, model); its tensors are differentiated and compiled",
    "Partial": "functools.partial(fn, model); its tensors are differentiated and compiled",
    "pmap": _PROCESSES,
    "PRNGKey": "random.key(0)",
    "pure_callback": _CALLBACK,
    "remat": "func.checkpoint(fn)",
    "State": _STATE,
    "StateIndex": _STATE,
    "Static": "field(static=True), from parallax",
    "static_field": "field(static=True), from parallax",
    "stop_gradient": "x.detach(); of a tree, tree.map(torch.detach, tree)",
    "switch": "func.cond, one within the other",
    "tree_at": "tree.select(model, lambda m: m.out.weight).set(new)",
    "tree_deserialise_leaves": "io.load(path, like=model)",
    "tree_flatten_one_level": "tree.flatten(model)",
    "tree_inference": "model.eval()",
    "tree_map_with_path": "tree.map_with_path(fn, model)",
    "tree_leaves_with_path": "tree.named_leaves(model)",
    "tree_flatten_with_path": "tree.named_leaves(model)",
    "tree_pformat": _PICTURE,
    "tree_pprint": _PICTURE,
    "tree_serialise_leaves": "io.save(model, path)",
    "tree_util": "tree, from parallax",
    "value_and_grad": "grads, value = func.grad_and_value(loss)(model, x)",
    # Flax's, optax's and TorchOpt's
    "apply_updates": "model, state = opt.step(model, grads, state)",
    "compact": "children as fields, made in __init__",
    "linen": "nn, from parallax",
    "nnx": "Module, and nn for layers, from parallax",
    "Param": "Parameter, from parallax",
    "BatchStat": "Buffer, from parallax",
    "Rngs": "model.initialize(random.key(0)), and model.train(key) for each step",
    "TrainState": "a tuple, (model, state)",
    "Variable": "Buffer, from parallax",
    # torch's
    "manual_seed": "random.key(seed), given to initialize and train",
    "no_grad": "torch.no_grad()",
    "Tensor": "from torch import Tensor",
}
"""What to write instead of a name that other libraries have, whichever room is asked for it."""


def no_such_name(room: str, name: str) -> Exception:
    """The error for a name that a room does not have; ``__getattr__`` of the room raises it.

    ``from parallax.nn import ModuleList`` would lose the text of an ``AttributeError``, so that
    there it is an ``ImportError``.

    Args:
        room: the full name of the package.
        name: what it does not have.

    Example:
        >>> no_such_name("parallax.optim", "adamw")
        AttributeError("module 'parallax.optim' has no attribute 'adamw'. Write: optim.AdamW")
    """
    text = f"module {room!r} has no attribute {name!r}"
    caller = sys._getframe(2)
    # While a file of that name is loaded, an import looks here first, and then finds the file.
    loading = caller.f_globals.get("__name__") == _IMPORTER or f"{room}.{name}" in sys.modules
    line = None if name.startswith("_") or loading else line_for(room, name) or _elsewhere(name)
    if line is None:
        return AttributeError(text)
    text += f". Write: {line}"
    return ImportError(text) if _imports(caller) else AttributeError(text)


def line_for(room: str, name: str) -> str | None:
    """What to write instead of a name: what the room itself says, or what holds in all rooms.

    Example:
        >>> line_for("parallax.optim", "sgd")
        'optim.SGD'
        >>> line_for("parallax.optim", "sdg")
    """
    package, _, rest = room.partition(".")
    if not rest:
        return ANYWHERE.get(name)
    its_own = import_module(f"{package}.{rest.split('.')[0]}.absent")
    instead_of = getattr(its_own, "instead_of", its_own.INSTEAD.get)
    return instead_of(name) or ANYWHERE.get(name)


def _elsewhere(name: str) -> str | None:
    """Where other rooms have a name: also ``map`` for ``tree_map``, ``jvp`` for ``filter_jvp``."""
    short = name.removeprefix("tree_").removeprefix("filter_")
    places = [
        f"{room}.{short}" for room in _ROOMS if short in import_module(f"parallax.{room}").__all__
    ]
    return " or ".join(places) or None


def _imports(frame: FrameType) -> bool:
    """Whether a frame is at a statement ``from room import name``."""
    return frame.f_code.co_code[frame.f_lasti] == _IMPORT_FROM


class _File(ModuleType):
    """A file whose name is nearly that of a function or class, which is called by mistake."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        room, name = self.__name__.rsplit(".", 1)
        line = line_for(room, name)
        if line is None:
            raise TypeError(f"{self.__name__} is a file, which cannot be called")
        whole = f"{line}(...)" if line.replace(".", "").isidentifier() else line
        raise TypeError(f"{self.__name__} is a file. Write: {whole}")


def answer_calls(room: str, names: dict[str, Any]) -> None:
    """Has files such as ``optim.sgd`` say what to write when they are called.

    Otherwise ``optim.sgd(0.1)`` would say that a module is not callable. In all else they are the
    files they were.

    Args:
        room: the full name of the package.
        names: its ``globals()``.
    """
    for name in names.keys() - set(names["__all__"]):  # what is public is found as it is
        value = names[name]
        if type(value) is ModuleType and value.__name__ == f"{room}.{name}":
            value.__class__ = _File
