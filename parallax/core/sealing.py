"""The end of construction: fields are checked and frozen, and the module gets its structure.

Defaults and converters are applied, every value is checked against its field's kind, lists and
dicts of children are frozen, and ties are found. From then on the module never changes.

``write_seal`` generates a fast form for the fields that most classes have. It covers leaves that
are tensors, declarations or holes, modules in fields of their own, and constants that are numbers,
strings, functions or classes. Everything else, errors included, is left to ``seal``, so that the
rules and messages are in one place. For four fields it takes 0.5 us, and the general form 5.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import combinations
from typing import Any

from torch import Tensor

from parallax._compat.dynamo import is_compiling
from parallax.core.code import function_of
from parallax.core.field_values import freeze
from parallax.core.fields import MISSING, Buffer, Lazy, Parameter
from parallax.core.layout import Layout
from parallax.core.module_structure import describe, leaves_of, note_of, spec_of
from parallax.core.nodes import reading
from parallax.core.notes import carry_note
from parallax.core.structure import Structure
from parallax.core.ties import find_ties

__all__ = ["seal", "seal_copy", "set_fields", "write_seal"]

_KNOWN_LIMIT = 1024
# Types whose values are equal only if they are the same constant, given their type. Not float:
# 0.0 == -0.0, which generated code excludes; not tuple: (1,) == (True,).
_PLAIN = frozenset(
    {int, str, bool, bytes, float, type(None), type, types.FunctionType, types.BuiltinFunctionType}
)


def seal(layout: Layout, module: Any) -> None:
    """Checks a constructed module and attaches its structure; then it is frozen."""
    set_fields(layout, module, layout.fields)
    describe(layout, module, layout.fields)


def set_fields(layout: Layout, module: Any, names: Iterable[str]) -> None:
    """The part of ``seal`` that can be traced: defaults, converters, and frozen containers."""
    for name in names:
        field = layout.fields[name]
        value = old = getattr(module, name, MISSING)
        if value is MISSING:
            if not field.has_default:
                raise TypeError(_unset(layout, module))
            value = field.make_default()
        if field.converter is not None:
            value = field.converter(value)
        if name in layout.containers:
            value = freeze(value, field.kind.itself(), layout.where[name])
        elif old is not MISSING and field.converter is None:
            continue
        # Spelled out: dynamo takes an alias of it for the __setattr__ of the class.
        object.__setattr__(module, name, value)


def seal_copy(old: Any, fields: Mapping[str, Any]) -> Any:
    """A copy of a module with other values in some fields, and with its note and rng."""
    layout: Layout = type(old).__layout__
    module: Any = object.__new__(type(old))
    # Spelled out: dynamo takes an alias of it for the __setattr__ of the class.
    for name in layout.fields:
        value = fields[name] if name in fields else getattr(old, name)
        object.__setattr__(module, name, value)
    if is_compiling():
        set_fields(layout, module, fields)
        note = note_of(old)
        object.__setattr__(module, "_spec", note._replace(frozen=()))
        carried = bool(note.frozen)
    elif (leaves := _exchanged(layout, old, fields)) is not None:
        object.__setattr__(module, "_spec", spec_of(old))
        object.__setattr__(module, "_leaves", leaves)
        carried = False
    else:
        set_fields(layout, module, fields)
        describe(layout, module, fields, old)
        carried = True
    if carried:
        made = carry_note(spec_of(old), spec_of(module), tuple(fields))
        object.__setattr__(module, "_spec", made)
    if old._rng is not None:
        object.__setattr__(module, "_rng", old._rng)
    return module


def _exchanged(layout: Layout, old: Any, fields: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The leaves of a copy that has the structure of ``old``, as only tensors are exchanged.

    ``None`` if something else may change: a hole, a constant, a tie, or which leaves are frozen.
    """
    structure = spec_of(old)
    if structure.expand is not None or structure.note.frozen:
        return None
    leaves = list(leaves_of(old))
    for name, value in fields.items():
        if type(value) is not Tensor or name not in layout.lone_leaves:
            return None
        place = structure.named[name][1]
        if type(leaves[place]) is not Tensor:
            return None
        leaves[place] = value
    return tuple(leaves) if len({*map(id, leaves)}) == len(leaves) else None


def _unset(layout: Layout, module: Any) -> str:
    cls = layout.cls.__name__
    missing = [
        name
        for name, field in layout.fields.items()
        if not field.has_default and getattr(module, name, MISSING) is MISSING
    ]
    lines = "; ".join(f"self.{name} = ..." for name in missing)
    return (
        f"{cls}.{missing[0]} was never set. Every declared field needs a value by the end of "
        f"{cls}.__init__: write {lines} there, or give a default: field(default=...)"
    )


def write_seal(layout: Layout) -> Callable[[Any], None]:
    """A generated function that seals an instance; ``seal`` for a class that it does not cover."""
    kinds = layout.kinds
    simple = all(kind.flat and kind.leaf in (Parameter, Buffer, None) for kind in kinds.values())
    if not simple or any(field.converter for field in layout.fields.values()):
        return partial(seal, layout)
    scope: dict[str, Any] = {
        "Lazy": Lazy, "Tensor": Tensor, "known": layout.sealed, "layout": layout,
        "find_ties": find_ties, "leaves_of": leaves_of, "learn": _learn,
        "slow": partial(seal, layout), "Structure": Structure,
    }  # fmt: skip
    leaves, modules, constants, reads, checks = [], [], [], [], []
    for index, name in enumerate(layout.fields):
        v, kind = f"v{index}", kinds.get(name)
        reads.append(f"    {v} = {reading('module', name)}")
        if kind is None:
            constants.append(v)
        elif kind.leaf is None:
            modules.append(v)
            checks += [  # it has no ties of its own
                f"s{v} = getattr({v}, '_spec', None)",
                f"if type(s{v}) is not Structure or s{v}.expand is not None: return slow(module)",
                f"l{v} = leaves_of({v})",
            ]
        else:
            leaves.append(v)
            scope[f"L{v}"] = kind.leaf
            checks += [  # it is a tensor, the right declaration or an allowed hole
                f"t = type({v})",
                "if t is not Tensor:",
                f"    if t is L{v}:",
                f"        if not {v}.owner: {v}.owner = {layout.where[name]!r}",
                f"    {f'elif {v} is not None:' if kind.optional else 'else:'} return slow(module)",
            ]
    # The entry keeps the children's structures alive, so that their ids stay unique.
    parts = [*(f"type({v})" for v in constants), *constants, *(f"id(s{v})" for v in modules)]
    key = f"({''.join(f'{part}, ' for part in parts)})"
    lines = [
        *("try:", *(reads or ["    pass"]), "except AttributeError: return slow(module)"),
        *(*checks, *_tie_check(leaves, modules)),
        f"try: found = known[{key}]",
        "except (KeyError, TypeError): found = None",  # new, or not hashable
        f"if found is None: return learn(layout, known, {key}, {len(constants)}, module)",
        "object.__setattr__(module, '_spec', found)",
    ]
    return function_of("seal(module)", lines, scope)  # type: ignore[no-any-return]  # it is one


def _tie_check(leaves: list[str], modules: list[str]) -> list[str]:
    """Lines that call the general path for a module with one tensor in two places."""
    if not modules and len(leaves) <= 3:  # at most three comparisons, a tenth of construction
        same = " or ".join([f"{a} is {b}" for a, b in combinations(leaves, 2)]) or "False"
    else:
        ids = [*(f"*map(id, l{v})" for v in modules), *(f"id({leaf})" for leaf in leaves)]
        total = " + ".join([*(f"len(l{v})" for v in modules), str(len(leaves))])
        same = f"len({{{', '.join(ids)}}}) < {total}"
    every = "".join([*(f"*l{v}, " for v in modules), *(f"{leaf}, " for leaf in leaves)])
    # Holes are one object, and no tie.
    return [f"if ({same}) and find_ties(({every}))[1]: return slow(module)"]


def _learn(layout: Layout, known: dict[Any, Structure], key: Any, n: int, module: Any) -> None:
    """Seals by the general path, and remembers the structure if the key says what it is.

    The key begins with the types of the ``n`` constants, and their values follow. A structure that
    is not remembered is never found, so the generated code need not check the types.
    """
    seal(layout, module)
    if n and not _PLAIN.issuperset(key[:n]):
        return
    values = key[n : 2 * n]
    if any([type(value) is float and not value for value in values]):
        return
    if any([type(value) is types.FunctionType and value.__closure__ for value in values]):
        return  # it would keep alive what a closure captures
    if len(known) >= _KNOWN_LIMIT:
        known.clear()
    known[key] = module._spec
