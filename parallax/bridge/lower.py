"""``lower``: from an immutable tree to an ``nn.Module`` that shares its tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from parallax import _compat, effects, random
from parallax.bridge.blueprint import Blueprint
from parallax.bridge.skeleton import Skeleton
from parallax.fields import Lazy, UninitializedError
from parallax.nodes import is_module
from parallax.registry import flatten_module, unflatten_module
from parallax.structure import Leaf, Structure

__all__ = ["Lowered", "gathered", "lower", "with_modes"]

Tensors = Callable[[int], Tensor | None]


class _Kept:
    """What never changes about a lowered node, so that copies share it.

    Attributes:
        structure: the structure of the tree.
        slots: for every place of a leaf the names that lead to it, the last one's own.
        outline: a tree without leaves, which dynamo builds others from.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        walk = structure.walk()
        self.slots = tuple([tuple(map(str, path)) for path, node in walk if type(node) is Leaf])
        self.outline: Any = None
        if hasattr(structure.cls, "__layout__"):
            self.outline = unflatten_module(structure, [None] * len(structure.first))

    def __deepcopy__(self, memo: Any) -> _Kept:
        return self


class Lowered(nn.Module):
    """One node of a Parallax tree as an ``nn.Module``: what ``bridge.lower`` returns.

    ``forward`` builds the tree around the registered tensors and runs it. In training mode it is
    given an rng from torch's global generator, and effects are written into the buffers, as layers
    of ``torch.nn`` do.
    """

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self._kept = _Kept(structure)
        note = structure.local.note
        self.training = note.mode == "train"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the tree."""
        if _compat.is_compiling():
            return self._traced(args, kwargs)
        structure = with_modes(self, self._kept.structure)
        leaves = gathered(self, structure)
        cls: Any = structure.cls
        if not self.training:
            return cls.__call__(unflatten_module(structure, leaves), *args, **kwargs)
        module = unflatten_module(structure, leaves, _drawn_source())
        out, after = effects.collect(cls.__call__)(module, *args, **kwargs)
        _write(leaves, flatten_module(after)[0])
        return out

    def _traced(self, args: Any, kwargs: Any) -> Any:
        """As ``forward`` while dynamo traces; the mode is that of this node for all below it."""
        leaves = _places(self, self._kept.slots)
        module = self._kept.outline.__make__(iter(leaves), None)
        if not self.training:
            return module.eval()(*args, **kwargs)
        out, after = effects.collect(_call)(module.train(), *args, **kwargs)
        written: list[Any] = []
        after.__take__(written)
        _write(leaves, written)
        return out

    def __getitem__(self, key: Any) -> Any:
        name = str(key)
        for home in (self._modules, self._parameters, self._buffers):
            if name in home:
                return home[name]
        raise KeyError(f"{self._kept.structure.cls.__name__} has no {key!r}")

    def extra_repr(self) -> str:
        """The class that was lowered, and its constants."""
        structure = self._kept.structure
        layout = getattr(structure.cls, "__layout__", None)
        names = () if layout is None else layout.constants
        pairs = zip(names, structure.local.constants, strict=False)
        return ", ".join([structure.cls.__name__, *(f"{name}={value!r}" for name, value in pairs)])


def lower(module: Any) -> nn.Module:
    """An ``nn.Module`` with the parameters and buffers of a tree, under the same dotted names.

    It shares storage with the tree: training it with ``torch.optim`` writes into the tree's
    leaves (``bridge.lower(copy.deepcopy(module))`` does not). Ties stay; frozen parameters do not
    require grad. A lifted module becomes an instance of its original class. ``bridge.lift`` is the
    inverse.

    Args:
        module: the module.

    Returns:
        The ``nn.Module``: for ``torch.export``, optimizers, data-parallel wrappers, hubs.

    Raises:
        TypeError: if it is no module, or a parameter can require no grad.
        UninitializedError: if a leaf has no value yet.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, bridge
        >>> class Scale(Module):
        ...     by: Parameter
        ...     def forward(self, x):
        ...         return self.by * x
        >>> scale = bridge.lower(Scale(torch.tensor(2.0)))
        >>> [name for name, _ in scale.named_parameters()]
        ['by']
        >>> scale(torch.tensor(3.0))
        tensor(6., grad_fn=<MulBackward0>)
    """
    if not is_module(module):
        raise TypeError(
            f"bridge.lower() takes a parallax.Module, got {type(module).__name__}"
            + (", which is lowered already" if isinstance(module, nn.Module) else "")
        )
    leaves, structure = flatten_module(module)
    tensors: list[Tensor | None] = []
    parts = zip(leaves, structure.paths, structure.roles, structure.trainable, strict=True)
    for leaf, path, role, train in parts:
        where = f"{type(module).__name__}.{path}"
        if isinstance(leaf, Lazy):
            raise UninitializedError(
                f"{where} is not initialized, so there is nothing to lower. "
                f"Initialize first: module = module.initialize(rng)"
            )
        tensors.append(_registered(leaf, role, train, where))
    expand = structure.expand or range(structure.n_places)
    return _lowered(structure, lambda place: tensors[expand[place]])


def _registered(leaf: Any, role: str, train: bool, where: str) -> Tensor | None:
    if not isinstance(leaf, Tensor) or role != "parameter":
        return leaf.detach() if isinstance(leaf, Tensor) else leaf
    if train and not (leaf.is_floating_point() or leaf.is_complex()):
        raise TypeError(
            f"{where} is a Parameter of {leaf.dtype}, which torch cannot train. "
            f"Freeze it, or declare it a Buffer"
        )
    return nn.Parameter(leaf.detach(), requires_grad=train)


def _lowered(structure: Structure, tensors: Tensors) -> nn.Module:
    """The ``nn.Module`` of a structure around the tensors of its places."""
    if _is_lifted(structure):
        return _native(structure, tensors)
    node = Lowered(structure)
    parts = zip(structure.keys(), structure.children, structure.starts(), strict=True)
    for key, child, start in parts:
        name = str(key)
        if type(child) is Structure:
            node._modules[name] = _lowered(child, _shifted(tensors, start))
        elif type(child) is Leaf:
            _register(node, name, child, tensors(start))
    return node


def _shifted(tensors: Tensors, start: int) -> Tensors:
    return lambda place: tensors(start + place)


def _register(node: nn.Module, name: str, leaf: Leaf, tensor: Tensor | None) -> None:
    if leaf.role == "parameter":
        node._parameters[name] = tensor  # type: ignore[assignment]  # a Parameter, or a hole
    else:
        node._buffers[name] = tensor


def _is_lifted(structure: Structure) -> bool:
    constants = structure.local.constants
    return bool(constants) and type(constants[0]) is Blueprint


def _native(structure: Structure, tensors: Tensors) -> nn.Module:
    """The original's own classes around the tensors."""
    skeleton = Skeleton(structure)
    starts = dict(_starts(structure))
    for path, shell in skeleton.shells:
        node, start = starts[path]
        del shell
        skeleton.at(path[:-1])._modules[path[-1]] = _lowered(node, _shifted(tensors, start))
    first = structure.first
    for index, home, name in skeleton.parameters:
        home[name] = tensors(first[index])
    for slot in skeleton.buffers.slots:
        slot.home[slot.name] = tensors(first[slot.index])
    for link in skeleton.links:
        link.bind()
    return skeleton.root  # type: ignore[no-any-return]  # an nn.Module


def _starts(structure: Structure) -> list[tuple[tuple[Any, ...], tuple[Structure, int]]]:
    """Every node's path, with the node and the place its leaves start at."""
    paths = [path for path, node in structure.walk() if type(node) is Structure]
    nodes = [(node, start) for start, node in structure.nodes_with_start()]
    return list(zip(paths, nodes, strict=True))


# -- reading a lowered module back ----------------------------------------------------------------


def gathered(root: nn.Module, structure: Structure) -> list[Tensor | None]:
    """The unique leaves of a structure, from the modules they are registered with."""
    assert isinstance(root, Lowered)
    places = _places(root, root._kept.slots)
    return places if structure.expand is None else [places[k] for k in structure.first]


def _places(root: nn.Module, slots: tuple[tuple[str, ...], ...]) -> list[Tensor | None]:
    places: list[Any] = []
    for slot in slots:
        node: Any = root
        for name in slot[:-1]:
            node = node._modules[name]
        name = slot[-1]
        if name in node._parameters:
            places.append(node._parameters[name])
        elif name in node._buffers:
            places.append(node._buffers[name])
        else:  # a child that is not there
            places.append(getattr(node, name, None))
    return places


def _write(leaves: list[Tensor | None], written: Any) -> None:
    """Writes effects into the buffers that they are for."""
    with torch.no_grad():
        for leaf, new in zip(leaves, written):  # noqa: B905  # dynamo traces no strict=
            if new is not leaf and leaf is not None:
                leaf.copy_(new)


def _call(module: Any, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)


def with_modes(root: nn.Module, structure: Structure) -> Structure:
    """The structure with the modes that the ``training`` flags say."""
    flags: list[bool] = []
    _flags(root, structure, flags)
    marks = tuple(flags)
    variants: Any = structure.variants
    found = variants.get(("training", marks))
    if found is None:
        found = structure.renote(
            lambda index, node: node.local.note._replace(mode="train" if marks[index] else "eval")
        )
        variants["training", marks] = found
    return found  # type: ignore[no-any-return]  # a structure


def _flags(node: nn.Module, structure: Structure, flags: list[bool]) -> None:
    flags.append(node.training)
    for key, child in zip(structure.keys(), structure.children, strict=True):
        if type(child) is Structure:
            below = node._modules[str(key)]
            assert below is not None
            _flags(below, child, flags)


def _drawn_source() -> Any:
    """An rng from torch's global generator; none where a draw would be recorded."""
    if _compat.is_compiling() or _compat.dispatch_mode_active() or _compat.transform_active():
        return None
    seed = int(torch.randint(2**62, ()))
    return random.source_of(torch.Generator().manual_seed(seed))
