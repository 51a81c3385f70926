"""``lift``: from an ``nn.Module`` to an immutable tree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from parallax._errors.arguments import check_flags, shown
from parallax.bridge.blueprint import Blueprint, attributes_of
from parallax.bridge.changes import require_same_modules
from parallax.bridge.lazies import materialized
from parallax.bridge.lifted import Lifted, class_for
from parallax.bridge.lowered import Lowered
from parallax.bridge.places import flags_of, gathered, structure_in, with_modes
from parallax.bridge.pointers import Detaching, ref_to
from parallax.core.entries import BUFFER, PARAMETER, PLAIN, SLOT, Note, local_of
from parallax.core.nodes import is_module
from parallax.core.registry import unflatten_module
from parallax.core.structure import Structure, structure_of
from parallax.core.ties import find_ties

__all__ = ["lift"]

Path = tuple[str, ...]


def lift(module: nn.Module, *, copy: bool = False, sample: Any = None) -> Any:
    """An immutable module that mirrors an ``nn.Module`` and computes what it computes.

    Leaves have the names of ``state_dict``; buffers that are not persistent are leaves, too.
    Tied tensors stay tied, ``training`` becomes the mode, parameters that do not require grad are
    frozen, hooks and parametrizations work. The original is only read, now and later.

    A call runs the original's own code. In mode ``"train"`` without an rng its stochastic layers
    draw from torch's global generator; with one (``module.train(rng)``) they are a function of it.
    Buffers that a call changes come back as effects: ``effects.collect(fn)(model, x)``. Other
    attributes that a forward writes are forgotten after the call. Two things are shared with
    the original: a parameter that the forward writes into in place, and an attribute that is an
    object of a user's class, such as a configuration.

    Args:
        module: the module.
        copy: whether the leaves are copies; otherwise they share storage with the original, and
            show what is written into that.
        sample: an input (a tuple: its positional arguments) from which lazy modules learn their
            shapes; parameters that need it are initialised by torch's global generator, which is
            left as it was. Without one, they must have been called before.

    Returns:
        The lifted module; of what ``bridge.lower`` made, the Parallax module it was made from.

    Raises:
        TypeError: if it is not an ``nn.Module``, or its code or tensors cannot be reached:
            TorchScript, quantized with packed weights, compiled, data-parallel; or if ``copy`` is
            no bool.
        ValueError: if a lazy parameter has no shape yet, or a module contains itself.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from parallax import bridge
        >>> linear = bridge.lift(nn.Linear(2, 1))
        >>> linear(torch.ones(3, 2)).shape
        torch.Size([3, 1])
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"bridge.lift(module=): expected a torch.nn.Module, got {shown(module)}. "
            f"{'Use it as it is' if is_module(module) else 'Write bridge.lift(nn.Linear(3, 2))'}"
        )
    check_flags("bridge.lift", copy=copy)
    if sample is not None:
        module = materialized(module, sample)
    lifting = _Lifting(module, copy)
    structure, places = lifting.node(module, ())
    if structure.expand is not None:
        places = [places[k] for k in structure.first]
    return unflatten_module(structure, places)


class _Lifting:
    """One walk over a model."""

    def __init__(self, root: nn.Module, copy: bool) -> None:
        self.copy = copy
        self.known: dict[int, Path] = {}
        self.tensors: dict[int, Tensor] = {}
        self.open: set[int] = set()
        self.survey(root, ())
        self.detaching = Detaching(self.known)

    def survey(self, module: nn.Module, path: Path) -> None:
        """Notes where everything is, and refuses what cannot be lifted."""
        if id(module) in self.open:
            raise ValueError(
                f"bridge.lift: {'.'.join(path) or 'the module'} is {type(module).__name__}, which "
                f"contains itself. Take the module out of its own _modules"
            )
        _refuse(module, path)
        self.known.setdefault(id(module), path)
        self.open.add(id(module))
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    _refuse_lazy(module, tensor, (*path, name))
                    self.known.setdefault(id(tensor), (*path, name))
        for name, child in module._modules.items():
            if child is not None:
                self.survey(child, (*path, name))
        self.open.discard(id(module))

    def node(self, module: nn.Module, path: Path) -> tuple[Structure, list[Any]]:
        """The structure of a module, and its leaves, those of ties in each place."""
        lowered = _tree_of(module)
        if lowered is not None:
            structure = with_modes(lowered, flags_of(module, lowered))
            tensors = gathered(module, structure)
            if structure.expand is not None:
                tensors = [tensors[k] for k in structure.expand]
            return _with_frozen(structure, tensors), [self.leaf(tensor) for tensor in tensors]
        cls = type(module)
        parameters, buffers, below = module._parameters, module._buffers, module._modules
        lifted = class_for(
            cls.__name__,
            hasattr(cls, "__len__") and hasattr(cls, "__getitem__"),
            tuple(parameters),
            tuple(buffers),
            tuple(below),
        )
        first = self.known[id(module)]
        twin = None if first == path else ref_to(path, first)
        blueprint = Blueprint(cls, attributes_of(module, path, self.detaching), twin)
        places = [self.leaf(tensor) for tensor in (*parameters.values(), *buffers.values())]
        children: list[Any] = [*(PARAMETER for _ in parameters), *(BUFFER for _ in buffers)]
        for name, child in below.items():
            if child is None:
                children.append(SLOT)
                places.append(None)
            else:
                structure, inner = self.node(child, (*path, name))
                children.append(structure)
                places += inner
        local = local_of(lifted, (blueprint,), ((Blueprint, blueprint),), _note(module))
        if len({id(leaf) for leaf in places if leaf is not None}) == len(places):
            return structure_of(local, tuple(children)), places
        return structure_of(local, tuple(children), find_ties(places)[1]), places

    def leaf(self, tensor: Tensor | None) -> Tensor | None:
        """The leaf of a tensor: without a graph, and the same for the same tensor."""
        if tensor is None:
            return None
        found = self.tensors.get(id(tensor))
        if found is None:
            found = tensor.detach()
            found = self.tensors[id(tensor)] = found.clone() if self.copy else found
        return found


def _tree_of(module: nn.Module) -> Structure | None:
    """What a module was lowered from, if it is still as it was; of a lifted one that is itself."""
    structure: Structure | None = structure_in(module)
    if structure is None or issubclass(structure.cls, Lifted):
        return None
    try:
        require_same_modules(module, structure)
    except (RuntimeError, TypeError):
        if isinstance(module, Lowered):  # the code of the tree is not that of an nn.Module
            raise
        return None
    return structure


def _note(module: nn.Module) -> Note:
    frozen = tuple(
        [
            k
            for k, p in enumerate(module._parameters.values())
            if p is not None and not p.requires_grad
        ]
    )
    if module.training and not frozen:
        return PLAIN
    return Note(mode="train" if module.training else "eval", frozen=frozen)


def _with_frozen(structure: Structure, tensors: list[Tensor | None]) -> Structure:
    """The structure with those parameters frozen that do not require grad."""
    starts = {path: start for path, start, _ in structure.walk()}
    still = {
        k for k, tensor in enumerate(tensors) if tensor is not None and not tensor.requires_grad
    }

    def note(path: Path, node: Structure) -> Note:
        frozen = tuple([k for k in _own_parameters(node, 0) if starts[path] + k in still])
        return node.local.note._replace(frozen=frozen)

    return structure.renote(note)


def _own_parameters(node: Structure, start: int) -> list[int]:
    """The offsets of a module's own parameters, those in its containers among them."""
    found: list[int] = []
    for _, offset, child in node.below:
        if child is PARAMETER:
            found.append(start + offset)
        elif type(child) is Structure and not hasattr(child.cls, "__layout__"):
            found += _own_parameters(child, start + offset)
    return found


# -- what cannot be lifted ------------------------------------------------------------------------


def _refuse(module: nn.Module, path: Path) -> None:
    where = ".".join(path) or "the module"
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f"bridge.lift: {where} is {name}, a TorchScript module, whose code is not Python. "
            f"Lift the nn.Module it was made from"
        )
    slots = [slot for cls in type(module).__mro__ for slot in vars(cls).get("__slots__", ())]
    if slots:
        raise TypeError(
            f"bridge.lift: {where} is {name}, whose class keeps {slots[0]!r} in __slots__, out of "
            f"sight. Leave __slots__ out of the class; an nn.Module has a __dict__ in any case"
        )
    wrapper = _WRAPPERS.get(name)
    if wrapper is not None and not path and type(module).__module__.startswith("torch."):
        raise TypeError(f"bridge.lift: {name} wraps a module. Lift what is inside: {wrapper}")
    if any(isinstance(value, torch.ScriptObject) for value in vars(module).values()):
        raise TypeError(
            f"bridge.lift: {where} is {name}, a quantized module with packed weights, which are no "
            f"tensors. Lift the float module, or dequantize it first"
        )


_WRAPPERS = {
    "DataParallel": "bridge.lift(model.module)",
    "DistributedDataParallel": "bridge.lift(model.module)",
    "FullyShardedDataParallel": "bridge.lift(model.module)",
    "OptimizedModule": "bridge.lift(model._orig_mod)",
}


def _refuse_lazy(module: nn.Module, tensor: Tensor, path: Path) -> None:
    if is_lazy(tensor):
        raise ValueError(
            f"bridge.lift: {'.'.join(path)} of {type(module).__name__} is not initialized: a lazy "
            f"module learns its shapes from its first input. Give it one: "
            f"bridge.lift(model, sample=x)"
        )
