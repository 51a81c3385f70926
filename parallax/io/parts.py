"""What is saved of a tree: its modules, tensors, numbers and strings, each by its path."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from parallax._compat import overrides, shards
from parallax._compat.memory import is_whole
from parallax.bridge.state_dict import loaded, misfit, state_dict
from parallax.core.fields import Lazy, UninitializedError
from parallax.core.nodes import is_module
from parallax.core.registry import NAMESPACE, flatten_module
from parallax.io.header import Node, below, nodes_of
from parallax.io.resuming import as_saved
from parallax.tree.outside import adopt, is_item
from parallax.tree.state_names import names_of

__all__ = [
    "Part", "filled", "named_tensors", "nodes_of_tree", "placed", "require_complete", "take_apart",
    "tensors",
]  # fmt: skip

_CONSTANTS = (bool, int, float, complex, str, type(None))


class Part(NamedTuple):
    """A module, a tensor or a constant in a tree.

    Attributes:
        path: where it stands, dotted; empty for the whole.
        value: what it is.
    """

    path: str
    value: Any

    @property
    def start(self) -> str:
        """What the names of a module's leaves begin with."""
        return f"{self.path}." if self.path else ""


def take_apart(tree: Any, what: str) -> tuple[list[Part], Any]:
    """The parts of a tree, and its structure around them.

    Raises:
        TypeError: if it holds what files cannot.
        ValueError: if the paths of two parts are written alike.
    """
    if is_module(tree):
        return [Part("", tree)], None
    paths, values, spec = optree.tree_flatten_with_path(
        tree, is_leaf=is_item, none_is_leaf=True, namespace=NAMESPACE
    )
    if adopt(values):  # one is of a class that torch's registry knows
        return take_apart(tree, what)
    parts = [Part(".".join(map(str, p)), v) for p, v in zip(paths, values, strict=True)]
    for path, value in parts:
        alone = len(parts) == 1 and not path  # a number alone is a mistake
        constant = _is_constant(value) and not alone
        if not (is_module(value) or isinstance(value, Tensor | Lazy) or constant):
            raise _refusal(what, path, value)
    names = Counter(path for path, _ in parts)
    for path, value in parts:
        inside = is_module(value) and any(name.startswith(f"{path}.") for name in names)
        if names[path] > 1 or inside:
            raise ValueError(
                f"{what}: two parts of the tree are called {path!r}, dots and numbers written "
                f"alike. Rename a key"
            )
    return parts, spec


def _is_constant(value: Any) -> bool:
    return type(value) in _CONSTANTS


def _refusal(what: str, path: str, value: Any) -> TypeError:
    where = f" at {path!r}" if path else ""
    if isinstance(value, torch.nn.Module):
        return TypeError(
            f"{what} takes a parallax.Module, got {type(value).__name__}{where}. "
            f"Lift an nn.Module first: bridge.lift(module)"
        )
    return TypeError(
        f"{what} takes a module, or dicts, lists and tuples of modules, tensors, numbers and "
        f"strings; got {type(value).__name__}{where}. "
        f"Pass such a tree: {{'model': model, 'state': state, 'step': 3}}"
    )


# -- out of a tree --------------------------------------------------------------------------------


def nodes_of_tree(parts: list[Part]) -> list[Node]:
    """Every node of a tree, as a header describes it."""
    found: list[Node] = []
    for path, value in parts:
        if is_module(value):
            found += nodes_of(flatten_module(value)[1], path)
        else:
            kind = "Tensor" if isinstance(value, Tensor | Lazy) else type(value).__name__
            found.append([path, kind, {}])
    return found


def tensors(parts: list[Part]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a file holds of a tree: tensors by name, and constants by path as JSON has them.

    Raises:
        TypeError: if a tensor is distributed over processes.
        UninitializedError: if a leaf has no value yet.
    """
    found, constants = named_tensors(parts, _once)
    return {name: _compact(name, tensor) for name, tensor in found.items()}, constants


def named_tensors(
    parts: list[Part], of_module: Callable[[Any], dict[str, Tensor]] = state_dict
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a tree by name, and its constants by path as JSON has them.

    Args:
        parts: those of the tree.
        of_module: the tensors of a module by name.

    Raises:
        UninitializedError: if a leaf has no value yet.
    """
    found: dict[str, Tensor] = {}
    constants: dict[str, Any] = {}
    for part in parts:
        path, value = part
        if is_module(value):
            found |= {part.start + name: tensor for name, tensor in of_module(value).items()}
        elif isinstance(value, Lazy):
            raise UninitializedError(f"{path} is not initialized, so there is nothing to save")
        elif isinstance(value, Tensor):
            found[path] = value.detach()
        elif isinstance(value, complex):
            constants[path] = [value.real, value.imag]
        else:
            constants[path] = value
    return found, constants


def _once(module: Any) -> dict[str, Tensor]:
    """The state dict with each tied leaf under its first name only."""
    held = state_dict(module)
    seen: set[int] = set()
    found = {}
    for name, index in names_of(flatten_module(module)[1]):
        if name in held and index not in seen:
            seen.add(index)
            found[name] = held[name]
    return found


def _compact(name: str, tensor: Tensor) -> Tensor:
    """The tensor without what else its storage holds."""
    if shards.is_distributed(tensor):
        raise TypeError(
            f"save: {name} is a DTensor, {shards.placement_of(tensor)}, and a file would hold the "
            f"part of one process. Save it with all of them: io.save_distributed(model, 'folder')"
        )
    if tensor.is_meta:
        raise ValueError("save: a leaf is on the meta device and has no value. Initialize first")
    if tensor.is_nested:
        raise TypeError(
            f"save: {name} is a nested tensor, which has no shape to load it by. "
            f"Save its parts: list({name}.unbind())"
        )
    tensor = overrides.without_class(tensor)  # a class is code, which is not loaded
    if tensor.layout != torch.strided:
        return tensor
    tensor = tensor.resolve_conj().resolve_neg()  # what is in memory is what is meant
    if tensor.is_contiguous() and is_whole(tensor):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


# -- into a tree ----------------------------------------------------------------------------------


def filled(
    parts: list[Part],
    header: Mapping[str, Any],
    held: Mapping[str, Tensor],
    strict: bool,
    cast: bool,
) -> list[Any]:
    """The parts with the values of a file.

    Raises:
        RuntimeError: if names, shapes or dtypes do not fit; all of them are listed.
        ValueError: if a constant is damaged.
    """
    made: list[Any] = []
    problems: list[str] = []
    values = header.get("values", {})
    rest = dict.fromkeys(held)
    for part in parts:
        path, value = part
        if is_module(value):
            mine = {n.removeprefix(part.start): held[n] for n in rest if n.startswith(part.start)}
            rest = {name: None for name in rest if not name.startswith(part.start)}
            try:
                like = as_saved(value, below(dict(header), path), mine)
                made.append(loaded(like, mine, strict, cast, placed))
            except RecursionError:
                raise
            except RuntimeError as error:
                problems.append(f"in {path}: {error}" if path else str(error))
        elif isinstance(value, Tensor | Lazy):
            rest.pop(path, None)
            problem = None
            if path in held:
                problem = misfit(path, held[path], value, cast)
                made.append(placed(held[path], value) if problem is None else None)
            else:
                problem = f'Missing key(s) in checkpoint: "{path}". ' if strict else None
                made.append(value)
            problems += [] if problem is None else [problem]
        elif path in values:
            problem = constant_misfit(path, value, values[path])
            if problem is not None:
                raise ValueError(problem)
            made.append(complex(*values[path]) if type(value) is complex else values[path])
        else:
            problems += [f"{path} is not in the checkpoint."] if strict else []
            made.append(value)
    if rest and strict:
        problems.append(f"Unexpected key(s) in checkpoint: {', '.join(map(repr, rest))}. ")
    if problems:
        raise RuntimeError("\n\t".join(problems))
    return made


def constant_misfit(path: str, like: Any, value: Any) -> str | None:
    """Why a constant of a file cannot take the place of another; ``None`` if it can."""
    kind = type(like)
    if kind is complex and isinstance(value, list) and list(map(type, value)) == [float, float]:
        return None
    if type(value) is kind:
        return None
    return f"{path} is {value!r} in the checkpoint, where this tree has a {kind.__name__}"


def placed(value: Tensor, leaf: Any) -> Tensor:
    """A value where the leaf is that it replaces; as it is if that is nowhere yet."""
    value = shards.placed_as(value.detach(), leaf)  # a Parameter of torch may have been saved
    if isinstance(leaf, Tensor) and not leaf.is_meta:
        return value.to(device=leaf.device, dtype=leaf.dtype)
    return value.to(dtype=leaf.dtype)


def require_complete(tree: Any, path: str | os.PathLike[str]) -> None:
    """Refuses a module, or a part of a tree, of which a part has no value.

    Raises:
        ValueError: naming the leaves.
    """
    if is_module(tree):
        leaves, structure = flatten_module(tree)
        pairs: Any = zip(structure.paths, leaves, strict=True)
    else:
        pairs = [("a tensor", tree)]
    lacking = [
        name
        for name, leaf in pairs
        if isinstance(leaf, Lazy) or (isinstance(leaf, Tensor) and leaf.is_meta)
    ]
    if lacking:
        raise ValueError(
            f"{os.fspath(path)} has no value for {', '.join(lacking[:5])}"
            f"{', ...' if len(lacking) > 5 else ''}, and like= lacks it too. "
            f"Pass an initialized module as like= (buffers that are not persistent are in no file)"
        )
