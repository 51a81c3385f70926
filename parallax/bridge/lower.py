"""``lower``: from an immutable tree to an ``nn.Module`` that shares its tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from parallax._errors.arguments import check_flags, check_module
from parallax.bridge.blueprint import STRUCTURE, Blueprint
from parallax.bridge.holders import container_of, hold_functions
from parallax.bridge.lowered import Lowered, lowered_as
from parallax.bridge.mirrors import layer_of, mirror_of, runs_our_code
from parallax.bridge.places import parted
from parallax.bridge.signatures import class_with_forward_of
from parallax.bridge.skeleton import Skeleton
from parallax.core.entries import Leaf
from parallax.core.fields import Lazy, UninitializedError
from parallax.core.registry import flatten_module
from parallax.core.structure import Structure
from parallax.tree.state_names import names_of, names_within, unsaved

__all__ = ["lower"]

Tensors = Callable[[int], Tensor | None]


def lower(module: Any, *, copy: bool = False) -> nn.Module:
    """An ``nn.Module`` with the parameters and buffers of a tree.

    They have the names that ``bridge.state_dict`` gives them, so a checkpoint of the ``torch.nn``
    model with these names loads. It shares storage with the tree, unless ``copy``: training it with
    ``torch.optim`` writes into the tree's leaves. Ties stay; frozen parameters do not require grad;
    a part that stays in eval is in eval until ``train`` of the ``nn.Module`` is called.
    A lifted module becomes an instance of its original class, a layer that ``torch.nn`` has, too,
    an instance of torch's. Others become a ``Lowered``, whose call runs the code of the tree: where
    that calls a child, the child's ``nn.Module`` is called, with its hooks, whatever stands there
    now. ``bridge.lift`` is the inverse.

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
    return _lowered(structure, lambda place: tensors[structure.leaf_at[place]])


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
    skipped = unsaved(structure)
    made: dict[str, nn.Module] = {"": _made(structure, tensors, 0)}
    nodes = [(start, node) for _, start, node in structure.walk() if type(node) is Structure]
    index = 0
    while index < len(nodes):
        start, node = nodes[index]
        begin = begins[index]
        own = names[start : start + node.n_places]
        if begin not in made:
            if _is_lifted(node) and own == [begin + name for name in names_within(node)[0]]:
                native = _native(node, _shifted(tensors, start))
                vars(native)[STRUCTURE] = node
                _put(made, begin, native, True)
                index += node.shape.n_nodes
                continue
            _put(made, begin, _made(node, tensors, start), hasattr(node.cls, "__layout__"))
        for _, offset, child in node.below:
            if type(child) is Leaf:
                place = start + offset
                above, name = parted(names[place])
                if above not in made:
                    _put(made, above, nn.Module(), False)
                _register(made[above], name, child, tensors(place), place not in skipped)
        index += 1
    return made[""]


def _made(node: Structure, tensors: Tensors, start: int) -> nn.Module:
    """The ``nn.Module`` of one node, without its tensors and the modules below."""
    if not hasattr(node.cls, "__layout__"):
        return container_of(node)
    own = [tensors(place) for place in range(start, start + node.n_places)]
    made = mirror_of(node, own)
    if made is None:
        made = class_with_forward_of(Lowered, node.cls)()
    elif type(made) is not nn.Sequential and runs_our_code(node):
        layer: Any = type(made)
        made.__class__ = class_with_forward_of(lowered_as(layer), node.cls)
    if layer_of(node.cls) is nn.Sequential:
        hold_functions(made, node)
    made.training = node.local.note.mode == "train"
    vars(made)[STRUCTURE] = node
    return made


def _put(made: dict[str, nn.Module], begin: str, module: nn.Module, has_mode: bool) -> None:
    """Registers a module under a dotted name, with plain modules above it where needed."""
    above, name = parted(begin[:-1])
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
    if leaf.role == "slot" and tensor is None:  # the place of a module
        home._modules[name] = None
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
    walk = structure.walk()
    return [(path, (node, start)) for path, start, node in walk if type(node) is Structure]
