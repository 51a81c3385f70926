"""How trees are flattened and built: generated code, a function for each shape.

A ``Shape`` is the classes of a tree alone: no constants, no notes. It is interned, so the twelve
equal blocks of a transformer share one, and its code is written once.

Why generate (150 leaves, 112 modules, CPython 3.11; ratios to optree mapping a plain nested dict):
optree calling one generated function per class rebuilds in 0.31, this code in 0.27. Both write
into ``o.__dict__``, whose keys CPython shares among the objects of a class: three quarters of the
time and of the memory that a dict of its own takes for each. In return an attribute of such an
object is read in 15 ns instead of 6; a forward reads a few for each module, and takes 1.007 of the
time for it when it is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from parallax.core.code import function_of
from parallax.core.constants import identity_key
from parallax.core.containers import write_built, write_opened
from parallax.core.nodes import NODES, dict_of, reading

if TYPE_CHECKING:
    from parallax.core.structure import Structure

__all__ = ["LEAF", "STATIC", "Shape", "shape_of", "write_traced"]

_INLINE_NODES = 12  # a child with at most so many nodes is inlined
_UNROLL = 8  # longer runs of equal children are looped over


class _Childless(NamedTuple):
    """What stands in the place of a shape and has none."""

    n_leaves: int
    n_nodes: int = 0


LEAF: Any = _Childless(1)
STATIC: Any = _Childless(0)
"""A constant in the place of a child."""

_shapes: WeakValueDictionary[Any, Shape] = WeakValueDictionary()


def shape_of(cls: type, keys: tuple[Any, ...] | None, children: tuple[Any, ...]) -> Shape:
    """The interned shape of a class, the keys of a ``FrozenDict``, and the shapes of children."""
    name = (cls, identity_key(keys), tuple(map(id, children)))
    found = _shapes.get(name)
    if found is None:
        found = _shapes[name] = Shape(cls, keys, children)
    return found


class Shape:
    """The classes of a tree, and the code for trees of these classes.

    ``build(leaves, i, plan, j)`` reads leaves from index ``i`` and nodes from index ``j``: for a
    module ``plan[j]`` is its structure and its constants, for another node its constants.
    ``build_with_rng`` takes an rng after that, which every module holds. ``collect(tree)`` returns
    the leaves, tied ones in each place. ``modules(tree)`` returns the modules, parents first, and
    reads nothing of them but their dict. Each is written when it is first used.
    """

    build: Callable[..., Any]
    build_with_rng: Callable[..., Any]
    collect: Callable[..., tuple[Any, ...]]
    modules: Callable[..., tuple[Any, ...]]

    def __init__(self, cls: type, keys: tuple[Any, ...] | None, children: tuple[Any, ...]) -> None:
        self.cls = cls
        self.keys = keys
        self.children = children
        self.n_leaves: int = sum([child.n_leaves for child in children])
        self.n_nodes: int = 1 + sum([child.n_nodes for child in children])

    def __getattr__(self, which: str) -> Any:
        if which not in Shape.__annotations__:
            raise AttributeError(which)
        # Inner shapes first and without recursion, so that deep trees need no deep stack.
        order, stack = [], [self]
        while stack:
            shape = stack.pop()
            order.append(shape)
            stack += [child for child in shape.children if child.n_nodes > _INLINE_NODES]
        for shape in reversed(order):
            if which not in vars(shape):
                setattr(shape, which, _Writer(shape, which).function())
        return vars(self)[which]


def write_traced(structure: Structure, which: str) -> Callable[..., Any]:
    """Writes ``build``, ``build_with_rng`` or ``collect`` of one structure, for dynamo to trace.

    It takes or returns the unique leaves. Dynamo spends about 50 us on every bytecode, and much
    more on a call, so everything is written in one function, constants included. A constant that is
    not a literal is a global of the function. Dynamo has a name for it, and so guards what it
    holds.
    """
    return _Writer(structure.shape, which, structure).function()


class _Writer:
    """Writes one function of one shape, or of one structure for dynamo."""

    def __init__(self, shape: Shape, which: str, structure: Structure | None = None) -> None:
        self.shape = shape
        self.which = which
        self.structure = structure
        self.inline = _INLINE_NODES if structure is None else shape.n_nodes
        self.unroll = _UNROLL if structure is None else shape.n_leaves + shape.n_nodes
        self.rng = which == "build_with_rng"
        self.lines: list[str] = []
        self.names: dict[str, Any] = {}
        self.known: dict[int, str] = {}
        self.count = 0

    def function(self) -> Callable[..., Any]:
        if self.which in ("collect", "modules"):
            parts = self.parts(self.shape, "tree")
            if self.structure is not None and self.structure.expand is not None:
                parts = [parts[place] for place in self.structure.first]
            body = [*self.lines, f"return ({''.join(part + ', ' for part in parts)})"]
            head = "generated(tree)"
        else:
            result = self.value(self.shape, 0, 0, outermost=True)
            body = [*self.lines, f"return {result}"]
            given = "L" if self.structure is not None else "L, i, N, j"
            head = f"generated({given}{', R' if self.rng else ''})"
        return function_of(head, body, self.names)  # type: ignore[no-any-return]  # it is one

    def bound(self, value: Any) -> str:
        """The name of a global of the function that is this object."""
        name = self.known.get(id(value))
        if name is None:
            name = self.known[id(value)] = f"parallax_{len(self.known)}"
            self.names[name] = value
        return name

    def leaf(self, i: int) -> str:
        if self.structure is None:
            return f"L[{_at('i', i)}]"
        return f"L[{i if self.structure.expand is None else self.structure.expand[i]}]"

    def given(self, j: int, k: int | None = None) -> str:
        """What the plan holds for node ``j``, or the ``k``-th part of it."""
        if self.structure is None:
            return f"N[{_at('j', j)}]{'' if k is None else f'[{k}]'}"
        parts = self.structure.plan[j]
        return self.literal(tuple(parts) if k is None else parts[k], unfold=k is None)

    def literal(self, value: Any, *, unfold: bool = False) -> str:
        if unfold or (type(value) is tuple and _is_literal(value)):
            return f"({''.join(self.literal(part) + ', ' for part in value)})"
        return repr(value) if _is_literal(value) else self.bound(value)

    # -- build --------------------------------------------------------------------------------

    def value(self, shape: Any, i: int, j: int, *, outermost: bool = False) -> str:
        """An expression for the value of ``shape`` from leaf ``i`` and node ``j``."""
        if shape is LEAF:
            return self.leaf(i)
        if shape.n_nodes > self.inline and not outermost:
            return self.call(shape, _at("i", i), _at("j", j))
        if hasattr(shape.cls, "__layout__"):
            return self.module(shape, i, j)
        values = self.children(shape, i, j)
        if shape.cls is tuple and isinstance(values, str):
            return values
        items = [f"*{values}"] if isinstance(values, str) else values
        constant = self.given(j, 0) if shape.cls in NODES else self.literal(shape.keys or ())
        inner = "".join(item + ", " for item in items)
        return write_built(shape.cls, self.bound, constant, inner)

    def module(self, shape: Any, i: int, j: int) -> str:
        layout, node = shape.cls.__layout__, j
        named = dict(zip(layout.children, shape.children, strict=True))
        # Neither leaves nor nodes: the structure, and constants, also those in a child's place.
        given = ["_spec", *layout.constants]
        given += [name for name, child in named.items() if child is STATIC]
        held, j = [], j + 1
        for name, child in named.items():
            if child is not STATIC:
                held.append((name, self.value(child, i, j)))
                i, j = i + child.n_leaves, j + child.n_nodes
        if self.rng:
            held.append(("_rng", "R"))
        module = self.bind(f"{self.bound(object.__new__)}({self.bound(shape.cls)})")
        if self.structure is not None:  # all attributes by one call, which is less for dynamo
            held[:0] = zip(given, map(self.literal, self.structure.plan[node]), strict=True)
            attributes = ", ".join([f"{name!r}: {value}" for name, value in held])
            put = f"{self.bound(object)}.__setattr__({module}, '__dict__', {{{attributes}}})"
            self.lines.append(put)
            return module
        made = self.bind(f"{module}.__dict__")
        targets = "".join([f"{made}[{name!r}], " for name in given])
        self.lines.append(f"{targets} = {self.given(node)}")
        self.lines += [f"{made}[{name!r}] = {value}" for name, value in held]
        return module

    def children(self, shape: Shape, i: int, j: int) -> str | list[str]:
        """An expression per child, or one expression for a tuple of them all."""
        node, j = j, j + 1
        kinds = set(shape.children)
        if len(shape.children) > self.unroll and len(kinds) == 1 and STATIC not in kinds:
            child = shape.children[0]
            if child is LEAF:
                return f"tuple(L[{_at('i', i)}:{_at('i', i + len(shape.children))}])"
            call = self.call(
                child, f"{_at('i', i)}+k*{child.n_leaves}", f"{_at('j', j)}+k*{child.n_nodes}"
            )
            return f"tuple([{call} for k in range({len(shape.children)})])"
        values = []
        for index, child in enumerate(shape.children):
            if child is STATIC:
                values.append(self.given(node, index))
                continue
            values.append(self.value(child, i, j))
            i, j = i + child.n_leaves, j + child.n_nodes
        return values

    def call(self, shape: Shape, i: str, j: str) -> str:
        function = self.bound(getattr(shape, self.which))
        return f"{function}(L, {i}, N, {j}{', R' if self.rng else ''})"

    # -- collect ------------------------------------------------------------------------------

    def parts(self, shape: Shape, source: str) -> list[str]:
        """Expressions (some starred) for the leaves or modules of the value named ``source``."""
        names: list[str]
        parts: list[str] = []
        modules = self.which == "modules"
        if hasattr(shape.cls, "__layout__"):
            names = list(shape.cls.__layout__.children)
            if modules:
                parts.append(source)
                names = [f"{self.bound(dict_of)}({source})[{name!r}]" for name in names]
            else:
                names = [reading(source, name) for name in names]
        else:
            opened = write_opened(shape.cls, self.bound, source)
            bound = source if opened == source else self.bind(opened)
            kinds = set(shape.children)
            if len(shape.children) > self.unroll and len(kinds) == 1 and STATIC not in kinds:
                if shape.children[0] is LEAF:
                    return [] if modules else [f"*{bound}"]
                collect = self.bound(getattr(shape.children[0], self.which))
                return [f"*[leaf for child in {bound} for leaf in {collect}(child)]"]
            names = [f"{bound}[{index}]" for index in range(len(shape.children))]
        for name, child in zip(names, shape.children, strict=True):
            if child is LEAF:
                parts += [] if modules else [name]
            elif child is not STATIC and child.n_nodes > self.inline:
                parts.append(f"*{self.bound(getattr(child, self.which))}({name})")
            elif child is not STATIC:
                parts += self.parts(child, self.bind(name))
        return parts

    def bind(self, expression: str) -> str:
        """The name of a new local that holds the value of an expression."""
        self.count += 1
        name = f"v{self.count}"
        self.lines.append(f"{name} = {expression}")
        return name


def _is_literal(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_literal, value))
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (int, bool, str)


def _at(base: str, offset: int) -> str:
    return f"{base}+{offset}" if offset else base
