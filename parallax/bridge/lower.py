"""``lower``: from an immutable tree to an ``nn.Module`` that shares its tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from parallax import effects
from parallax._compat import dynamo, functorch
from parallax._compat.opaque import real
from parallax.bridge.blueprint import Blueprint
from parallax.bridge.changes import Look, look_of, refuse_changes, refuse_conversion
from parallax.bridge.signatures import LoweredMeta, class_with_forward_of
from parallax.bridge.skeleton import Skeleton
from parallax.bridge.states import names_of, names_within, transient
from parallax.core.arguments import check_flags, check_module
from parallax.core.entries import Leaf
from parallax.core.fields import Lazy, UninitializedError
from parallax.core.registry import flatten_module, unflatten_module
from parallax.core.structure import Structure
from parallax.random.sources import GlobalSource

__all__ = ["Lowered", "flags_of", "gathered", "lower", "with_modes"]

Tensors = Callable[[int], Tensor | None]
MODES = {True: "train", False: "eval"}


class _Kept:
    """What never changes about a lowered node, so that copies share it.

    Attributes:
        structure: the structure of the tree.
        modules: every ``nn.Module`` below the node, after those above it, as the index of the one
            that holds it and its name there; the node itself has index 0 and is not among them.
        slots: for every place of a leaf the index of the module that holds it, and its name there.
        hosts: for every module of the tree its path, and the index of what has its mode.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        places, begins = names_within(structure)
        known: dict[str, int] = {"": 0}
        modules: list[tuple[int, str]] = []

        def index_of(begin: str) -> int:
            if begin not in known:
                above, name = _parted(begin[:-1])
                modules.append((index_of(above), name))
                known[begin] = len(modules)
            return known[begin]

        walk = [(path, node) for path, node in structure.walk() if type(node) is Structure]
        indices = [index_of(begin) for begin in begins]
        self.hosts = tuple(
            [
                (".".join(map(str, path)), index)
                for (path, node), index in zip(walk, indices, strict=True)
                if hasattr(node.cls, "__layout__")
            ]
        )
        self.slots = tuple([(index_of(begin), name) for begin, name in map(_parted, places)])
        self.modules = tuple(modules)

    def __deepcopy__(self, memo: Any) -> _Kept:
        return self


def _parted(path: str) -> tuple[str, str]:
    """What a name in a state dict begins with, and the name there."""
    above, dot, name = path.rpartition(".")
    return above + dot, name


class Lowered(nn.Module, metaclass=LoweredMeta):
    """One node of a Parallax tree as an ``nn.Module``: what ``bridge.lower`` returns.

    ``forward`` has the arguments of the tree's. It builds the tree around the registered tensors
    and runs it. In training mode it is given an rng from torch's global generator, and effects are
    written into the buffers, as layers of ``torch.nn`` do.

    The modules below it hold its tensors and modes. They run by themselves when they are called,
    and are not called when this one is: what is put on them, such as a hook, or in their place, is
    refused at the next call.

    Example:
        >>> import torch
        >>> from parallax import bridge, nn
        >>> model = bridge.lower(nn.Linear(3, 2).initialize(0))
        >>> isinstance(model, bridge.Lowered) and isinstance(model, torch.nn.Module)
        True
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> model(torch.ones(4, 3)).sum().backward()
        >>> opt.step()
    """

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self._kept = _Kept(structure)
        self._made: tuple[Look, ...] = ()  # how the modules below look, once they are there
        self.training = structure.local.note.mode == "train"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the tree."""
        names = [name for _, name in self._kept.modules]
        refuse_changes(self._kept.structure.cls.__name__, _modules(self)[1:], names, self._made)
        flags = flags_of(self)
        structure = with_modes(flags, self._kept.structure)
        leaves = gathered(self, structure)
        if True not in flags:
            return unflatten_module(structure, leaves)(*args, **kwargs)
        module = unflatten_module(structure, leaves, _drawn_source())
        out, after = effects.collect(_call)(module, *args, **kwargs)
        _write(leaves, flatten_module(after)[0])
        return out

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As ``nn.Module.add_module``."""
        if module is not None and self._modules.get(name) is module and isinstance(module, Lowered):
            refuse_conversion(self._kept.structure.cls.__name__, name, module)
        super().add_module(name, module)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As ``nn.Module._apply``, which makes a tensor in two places two."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        expand = self._kept.structure.expand
        if expand is not None:
            nodes, first = _modules(self), self._kept.structure.first
            for k, (index, name) in zip(expand, self._kept.slots, strict=True):
                tables = nodes[index]._buffers, nodes[index]._parameters
                for table in tables:
                    if name in table:
                        source, origin = self._kept.slots[first[k]]
                        table[name] = _held(nodes[source], origin)
        return self

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


def lower(module: Any, *, copy: bool = False) -> nn.Module:
    """An ``nn.Module`` with the parameters and buffers of a tree.

    They have the names that ``bridge.state_dict`` gives them, so a checkpoint of the ``torch.nn``
    model with these names loads. It shares storage with the tree, unless ``copy``: training it with
    ``torch.optim`` writes into the tree's leaves. Ties stay; frozen parameters do not require grad.
    A lifted module becomes an instance of its original class. ``bridge.lift`` is the inverse. A
    call runs the tree, and does not call the modules that the ``nn.Module`` consists of: hooks on
    those are refused; ``effects.capture`` returns what is in between.

    Args:
        module: the module.
        copy: whether the tensors are copies.

    Returns:
        The ``nn.Module``: for ``torch.export``, optimizers, data-parallel wrappers, hubs.

    Raises:
        TypeError: if it is no module, or a parameter's dtype cannot require grad.
        UninitializedError: if a leaf has no value yet.
        ValueError: if two leaves have the same name.

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
    if isinstance(module, nn.Module):
        raise TypeError(
            f"bridge.lower(module=): expected a parallax.Module, got a {type(module).__name__}, "
            f"which is a torch.nn.Module already. Use it as it is"
        )
    check_module("bridge.lower", module)
    check_flags("bridge.lower", copy=copy)
    leaves, structure = flatten_module(module)
    names_of(structure)  # raises unless they are distinct
    tensors: list[Tensor | None] = []
    parts = zip(leaves, structure.paths, structure.roles, structure.trainable, strict=True)
    for leaf, path, role, train in parts:
        where = f"{type(module).__name__}.{path}"
        if isinstance(leaf, Lazy):
            raise UninitializedError(
                f"{where} is not initialized, so there is nothing to lower. "
                f"Initialize first: module = module.initialize(rng)"
            )
        if copy and isinstance(leaf, Tensor):
            leaf = leaf.detach().clone()  # noqa: PLW2901  # the same leaf, elsewhere
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
    names, begins = names_within(structure)
    skipped = transient(structure)
    made: dict[str, nn.Module] = {"": class_with_forward_of(Lowered, structure.cls)(structure)}
    nodes = list(structure.nodes_with_start())
    index = 0
    while index < len(nodes):
        start, node = nodes[index]
        begin = begins[index]
        own = names[start : start + node.n_places]
        if begin not in made:
            if _is_lifted(node) and own == [begin + name for name in names_within(node)[0]]:
                _put(made, begin, _native(node, _shifted(tensors, start)), True)
                index += node.shape.n_nodes
                continue
            lowered = class_with_forward_of(Lowered, node.cls)(node)
            _put(made, begin, lowered, hasattr(node.cls, "__layout__"))
        for child, offset in zip(node.children, node.starts(), strict=True):
            if type(child) is Leaf:
                place = start + offset
                above, name = _parted(names[place])
                if above not in made:
                    _put(made, above, nn.Module(), False)
                _register(made[above], name, child, tensors(place), place not in skipped)
        index += 1
    for module in made.values():
        if isinstance(module, Lowered):
            module._made = tuple([look_of(node) for node in _modules(module)[1:]])
    return made[""]


def _put(made: dict[str, nn.Module], begin: str, module: nn.Module, has_mode: bool) -> None:
    """Registers a module under a dotted name, with plain modules above it where needed."""
    above, name = _parted(begin[:-1])
    if above not in made:
        _put(made, above, nn.Module(), False)
    made[begin] = made[above]._modules[name] = module
    if not has_mode:
        module.training = made[above].training


def _shifted(tensors: Tensors, start: int) -> Tensors:
    return lambda place: tensors(start + place)


def _register(
    home: nn.Module, name: str, leaf: Leaf, tensor: Tensor | None, persistent: bool
) -> None:
    if leaf.role == "parameter":
        home._parameters[name] = tensor  # type: ignore[assignment]  # a Parameter, or a hole
        return
    home._buffers[name] = tensor
    if not persistent:
        home._non_persistent_buffers_set.add(name)


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


def gathered(root: Lowered, structure: Structure) -> list[Tensor | None]:
    """The unique leaves of a structure, from the modules they are registered with."""
    places = _places(root)
    return places if structure.expand is None else [places[k] for k in structure.first]


def _places(root: Lowered) -> list[Tensor | None]:
    nodes = _modules(root)
    return [_held(nodes[index], name) for index, name in root._kept.slots]


def _modules(root: Lowered) -> list[Any]:
    """The modules that a lowered module consists of, as ``_Kept`` has them."""
    nodes: list[Any] = [root]
    for above, name in root._kept.modules:
        nodes.append(nodes[above]._modules[name])
    return nodes


def _held(node: Any, name: str) -> Any:
    if name in node._parameters:
        return node._parameters[name]
    if name in node._buffers:
        return node._buffers[name]
    # A child that is not there, or what a parametrization computes.
    return None if name in node._modules else getattr(node, name)


def _write(leaves: list[Tensor | None], written: Any) -> None:
    """Writes effects into the buffers that they are for."""
    changed = [(leaf, new) for leaf, new in zip(leaves, written, strict=True) if new is not leaf]
    if changed:  # torch.export cannot save an empty block of no_grad
        with torch.no_grad():
            for leaf, new in changed:
                if leaf is not None:
                    leaf.copy_(new)


def _call(module: Any, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)


def flags_of(root: Lowered) -> tuple[bool, ...]:
    """For every module of the tree, in preorder, whether it is in training."""
    nodes = _modules(root)
    return tuple([nodes[index].training for _, index in root._kept.hosts])


@real
def with_modes(flags: tuple[bool, ...], structure: Structure) -> Structure:
    """The structure with its modules in training or not."""
    variants: Any = structure.variants
    found = variants.get(("training", flags))
    if found is None:
        nodes = enumerate(structure.nodes())
        modules = [k for k, node in nodes if hasattr(node.cls, "__layout__")]
        own = {k: MODES[flag] for k, flag in zip(modules, flags, strict=True)}
        found = structure.renote(lambda k, node: node.note._replace(mode=own[k]))
        variants["training", flags] = found
    return found  # type: ignore[no-any-return]  # a structure


def _drawn_source() -> Any:
    """An rng from torch's global generator; none under a transform, which may not draw."""
    if not dynamo.is_compiling() and functorch.transform_active():
        return None
    return GlobalSource()
