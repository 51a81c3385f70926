"""Calling a lifted module while dynamo traces.

There ``torch.func.functional_call`` does the work, which dynamo knows. It runs a template: an
``nn.Module`` tree without tensors, built outside of the trace. What a template is built from,
the *signature*, is nothing but names and flags, so that is all dynamo has to guard.

Each call in a trace has a template to itself, and what it writes into the template's attributes is
dropped at the end of the call. So no call sees another one, in whatever graph. What else a forward
writes into, such as an object of a class of its own or a global, is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from parallax._compat import dynamo, functorch, writes
from parallax.bridge import running
from parallax.bridge.blueprint import BY_NUMBER, stand_for_one
from parallax.bridge.buffers import NORMS
from parallax.bridge.pointers import resolved
from parallax.bridge.skeleton import Shell, empty_node, hook
from parallax.bridge.undoing import containers
from parallax.core import notes
from parallax.core.module import Module
from parallax.core.module_structure import spec_of
from parallax.effects import collection, emitting
from parallax.effects.collection import Collecting

__all__ = ["call"]

Path = tuple[str, ...]
Signature = tuple[Any, ...]


class _Templates:
    """Templates as attributes: dynamo looks attributes up when it comes to them."""


_templates = _Templates()
_names: dict[tuple[Signature, bool], str] = {}


def call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As ``running.call`` of the module itself."""
    if not dynamo.is_compiling() or _is_root():  # where the graph broke: the call as a whole
        return running.call(module, None, args, kwargs)
    taken = _Taken(module)
    name, *again = _template(taken.node(module, "")).split("\n")
    template = getattr(_templates, name)
    tensors = {path: tensor for path, tensor in taken.tensors.items() if path not in again}
    copies = {path: tensors[path] for _, _, path, _ in taken.buffers if path in tensors}
    _begin()
    for path, inner in taken.shells:
        template.get_submodule(path).inner = inner
    for number, (path, lifted) in enumerate(taken.watched):
        setattr(template.get_submodule(path), f"watched_{number}", lifted)
    out = torch.func.functional_call(template, tensors, args, kwargs, tie_weights=False)
    drawn = "" if collection.source_of(module._rng) is None else _drawn()
    if drawn:
        raise RuntimeError(
            f"a lifted nn.Module draws by {drawn} from torch's global generator, which compiled "
            f"code cannot seed with the tree's rng. Put layers of parallax.nn in their place, "
            f"tree.select(model, bridge.lifted_type(nn.Dropout)).apply(lambda old: "
            f"parallax.nn.Dropout(old.p)); or call it without an rng: module.eval()"
        )
    elsewhere, *written = _end(name).split("\n")
    if elsewhere:
        raise RuntimeError(
            f"a lifted nn.Module writes into {elsewhere} when it is called. What a call writes "
            f"into attributes of its modules is forgotten, but this is not theirs alone, and "
            f"compiled code would carry it on. Hold it in a buffer, which comes back as an effect, "
            f"or call the module outside of the compiled function"
        )
    _emit(taken.buffers, copies, tensors, written)
    return out


class _Taken:
    """A module taken apart.

    Attributes:
        tensors: by path.
        buffers: owner, name, path, and whether the value is one that an earlier call emitted.
        shells: the Parallax modules in it, by path.
        watched: the lifted modules in it that are watched, by path.
    """

    def __init__(self, module: Any) -> None:
        self.tensors: dict[str, Any] = {}
        self.buffers: list[tuple[Any, str, str, bool]] = []
        self.shells: list[tuple[str, Any]] = []
        self.watched: list[tuple[str, Any]] = []
        self.indices = spec_of(module).expand
        self.place = 0
        self.copies: dict[int, Any] = {}
        self.latest = emitting.latest(module)

    def node(self, module: Any, prefix: str) -> Signature:
        """Takes a module and what is below it; returns its signature."""
        if not hasattr(module, "_parts"):
            self.shells.append((prefix[:-1], module))
            if self.indices is not None:
                self.place += spec_of(module).n_places
            return ()
        if module._blueprint.linked:
            raise RuntimeError(
                "a lifted nn.Module has an attribute that points at tensors of the model, which "
                "compiled code cannot follow. Call it outside of the compiled function"
            )
        note = notes.note_of(module)
        if note.watched:
            self.watched.append((prefix[:-1], module))
        _, _, own, transient, below = module._parts
        first = self.place
        for name in own:
            self.tensors[prefix + name] = getattr(module, name)
            self.place += 1
        for name in transient:
            self.buffer(module, name, prefix + name)
            self.place += 1
        indices = () if self.indices is None else self.indices[first : self.place]
        inner = []
        for name in below:
            child = getattr(module, name)
            if child is None:
                self.place += 1
            inner.append(None if child is None else self.node(child, f"{prefix}{name}."))
        parts = (own, transient, below, indices, tuple(inner))
        return (module._blueprint.number, note.mode, *parts, note.watched)

    def buffer(self, module: Any, name: str, path: str) -> None:
        """Takes a private copy of a buffer, one for all places of a tied one."""
        index = self.place if self.indices is None else self.indices[self.place]
        value = getattr(module, name)
        if value is not None:
            later: Any = self.latest.get(notes.note_of(module).path or "", {}).get(name)
            goes_on = later is not None and later.shape == value.shape
            if goes_on or index not in self.copies:
                start: Any = later if goes_on else value
                self.copies[index] = start.clone()
            value = self.copies[index]
            self.buffers.append((module, name, path, goes_on))
        self.tensors[path] = value


def _emit(buffers: Any, copies: Any, tensors: Any, written: list[str]) -> None:
    """Emits the buffers that the call has changed."""
    told: list[Any] = []
    for owner, name, path, goes_on in buffers:
        now = tensors.get(path)
        if now is None or any([now is other for other in told]):
            continue
        if now is not copies[path] or path in written or _may_be_written(owner, now):
            Module.emit(owner, merge=emitting.IN_TURN if goes_on else None, **{name: now})
            told.append(now)


def _may_be_written(owner: Any, value: Any) -> bool:
    """Whether a buffer may be written in a way that counts no version, as by ``F.batch_norm``.

    What was not is emitted as it was, where somebody collects.
    """
    if notes.note_of(owner).mode != "train":
        return False
    cls = owner._blueprint.cls
    if issubclass(cls, NORMS):
        return bool(owner._blueprint.attributes["track_running_stats"])
    return (
        type(owner._rng) is Collecting
        and not cls.__module__.startswith("torch.nn.modules")
        and value.dim() == 1
        and value.is_floating_point()
    )


# -- what runs for real while dynamo traces -------------------------------------------------------


@dynamo.constant_in_traces
def _is_root() -> bool:
    return writes.is_root(call.__code__)


@dynamo.constant_in_traces
def _drawn() -> str:
    return writes.drawn()


@dynamo.constant_in_traces
def _begin() -> None:
    writes.begin()


@dynamo.constant_in_traces
def _end(name: str) -> str:
    """Forgets what was written into a template.

    Returns:
        What else was written into, and the paths of the copies that were; one a line.
    """
    foreign = getattr(_templates, f"{name}_foreign")
    elsewhere = writes.end(_owned(getattr(_templates, name), foreign), "out")
    return "\n".join([elsewhere, *writes.written_tensors("copies")])


def _owned(template: nn.Module, foreign: set[int]) -> Iterator[Any]:
    """The modules of a template and the containers that are theirs alone."""
    for node in template.modules():
        yield node
        yield from _own(vars(node).values(), foreign)


def _own(values: Any, foreign: set[int]) -> Iterator[Any]:
    for value in values:
        yield from containers([value], foreign)
        if hasattr(value, "__dict__") and id(value) not in foreign:
            yield value


@dynamo.constant_in_traces
def _template(signature: Signature) -> str:
    """The name under which an ``nn.Module`` of a signature is found among the templates.

    After it, one a line, come the paths of tensors that it holds elsewhere, those of a module that
    stands in several places.
    """
    in_steps = functorch.transform_active()
    label = _names.setdefault((signature, in_steps), f"template{len(_names)}")
    name = f"{label}_{writes.use_number(label)}"
    if not hasattr(_templates, name):
        building = _Building(signature)
        if in_steps:
            _compute_in_steps(building.at.values())
        setattr(_templates, name, building.at[()])
        setattr(_templates, f"{name}_again", building.again)
        setattr(_templates, f"{name}_foreign", building.foreign)
    return "\n".join([name, *getattr(_templates, f"{name}_again")])


def _compute_in_steps(nodes: Iterable[nn.Module]) -> None:
    """Has layers of a transformer compute in eval mode as they do in training.

    As ``overrides.attention_in_steps``, which dynamo does not see.
    """
    for node in nodes:
        if isinstance(node, nn.TransformerEncoder):
            node.use_nested_tensor = False
        if isinstance(node, nn.TransformerEncoderLayer):
            node.activation_relu_or_gelu = 0


class _Building:
    """Builds the template of a signature.

    Attributes:
        at: the modules by path.
        again: the paths of the tensors in a place where a module stands again.
    """

    def __init__(self, signature: Signature) -> None:
        self.at: dict[Path, Any] = {}
        self.again: list[str] = []
        self.later: set[Path] = set()
        self.signatures: dict[Path, Signature] = {}
        self.foreign: set[int] = set()
        self.build(signature, ())
        self.furnish(signature, ())
        names: dict[int, list[str]] = {}
        for number, place in enumerate(_watched(signature)):
            names.setdefault(id(self.at[place]), []).append(f"watched_{number}")
        for node in {id(node): node for node in self.at.values()}.values():
            if id(node) in names:
                hook(node, _telling(tuple(names[id(node)])))

    def build(self, signature: Signature, path: Path) -> Any:
        """The module of a signature, without attributes."""
        if not signature:
            self.at[path] = Shell()
            return self.at[path]
        number, mode, parameters, buffers, children, _, inner, _ = signature
        self.signatures[path] = signature
        first = self.first_place(signature, path)
        if first is not None:
            self.later.add(path)
            self.again += [".".join((*path, *name)) for name in _tensors(signature)]
            below = {p[len(first) :]: n for p, n in self.at.items() if p[: len(first)] == first}
            self.at |= {path + rest: node for rest, node in below.items()}
            return self.at[path]
        node = self.at[path] = empty_node(BY_NUMBER[number], mode)
        vars(node)["_parameters"].update(dict.fromkeys(parameters))
        vars(node)["_buffers"].update(dict.fromkeys(buffers))
        for name, child in zip(children, inner, strict=True):
            made = None if child is None else self.build(child, (*path, name))
            vars(node)["_modules"][name] = made
        return node

    def first_place(self, signature: Signature, path: Path) -> Path | None:
        """Where the module at a path stands first, if it is one that stands in several places."""
        ref = BY_NUMBER[signature[0]].twin
        if ref is None or ref.up > len(path):
            return None
        first = (*path[: len(path) - ref.up], *ref.down)
        there = self.signatures.get(first)
        return first if there and _stand_for_one(there, first, signature, path, 0) else None

    def furnish(self, signature: Signature, path: Path) -> None:
        """Gives the modules their attributes, which may point at other modules."""
        if not signature or path in self.later:
            return

        def follow(ref: Any) -> Any:
            target = (*path[: len(path) - ref.up], *ref.down)
            return None if ref.up > len(path) else self.at.get(target)

        node = self.at[path]
        self.foreign.update(BY_NUMBER[signature[0]].objects)
        for name, value in BY_NUMBER[signature[0]].attributes.items():
            vars(node)[name] = resolved(value, follow)
        for name, child in zip(signature[4], signature[6], strict=True):
            if child is not None:
                self.furnish(child, (*path, name))


def _telling(names: tuple[str, ...]) -> Any:
    """A hook that tells of a call; attributes hold the lifted module, one for each place."""

    def returned(node: Any, args: Any, kwargs: Any, out: Any) -> Any:
        places = tuple([getattr(node, name) for name in names])
        watcher = places[0]._rng
        return watcher.returned(places, args, kwargs, out) if type(watcher) is Collecting else out

    return returned


def _tensors(signature: Signature) -> Iterator[Path]:
    """The paths of the tensors of a signature."""
    if not signature:
        return
    yield from [(name,) for name in (*signature[2], *signature[3])]
    for name, child in zip(signature[4], signature[6], strict=True):
        if child is not None:
            yield from [(name, *rest) for rest in _tensors(child)]


def _watched(signature: Signature) -> Iterator[Path]:
    """The paths of the modules of a signature that are watched, as ``_Taken`` comes to them."""
    if not signature:
        return
    if signature[7]:
        yield ()
    for name, child in zip(signature[4], signature[6], strict=True):
        if child is not None:
            yield from [(name, *rest) for rest in _watched(child)]


def _stand_for_one(one: Signature, at: Path, two: Signature, there: Path, depth: int) -> bool:
    """As the function of that name of ``skeleton``, for signatures."""
    if not one or not two or one[1:6] != two[1:6]:
        return False
    return stand_for_one(BY_NUMBER[one[0]], at, BY_NUMBER[two[0]], there, depth) and all(
        a is b or (a and b and _stand_for_one(a, (*at, name), b, (*there, name), depth + 1))
        for name, a, b in zip(one[4], one[6], two[6], strict=True)
    )
