"""The generated fast path of sealing: one straight check for the fields that most classes have.

It covers leaves that are tensors, declarations or holes, modules in fields of their own, and
constants that are numbers, strings, functions or classes. Whatever it does not recognise, an
error included, it leaves to ``layout.seal``, so that meaning and messages live in one place. For
four fields it takes 0.5 us where the general path takes 5.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from parallax.core.fields import Buffer, Lazy, Parameter
from parallax.core.layout import Layout, leaves_of, seal
from parallax.core.nodes import reading
from parallax.core.structure import Structure

__all__ = ["write_seal"]

_KNOWN_LIMIT = 1024
# Types whose values are equal only if they are the same constant, given their type. Not float:
# 0.0 == -0.0, which generated code excludes; not tuple: (1,) == (True,).
_PLAIN = frozenset(
    {int, str, bool, bytes, float, type(None), type, types.FunctionType, types.BuiltinFunctionType}
)


def write_seal(layout: Layout) -> Callable[[Any], None]:
    """A function that seals a constructed instance of the layout's class.

    Args:
        layout: the resolved fields.

    Returns:
        The generated function, or the general ``seal`` for a class it does not suit.
    """
    kinds = layout.kinds
    simple = all(kind.flat and kind.leaf in (Parameter, Buffer, None) for kind in kinds.values())
    if not simple or any(field.converter for field in layout.fields.values()):
        return partial(seal, layout)
    names = list(layout.fields)
    values = [f"v{index}" for index in range(len(names))]
    leaves = [
        v for v, name in zip(values, names, strict=True) if name in kinds and kinds[name].leaf
    ]
    modules = [
        v for v, name in zip(values, names, strict=True) if name in kinds and kinds[name].child
    ]
    constants = [v for v, name in zip(values, names, strict=True) if name not in kinds]
    scope: dict[str, Any] = {
        "Lazy": Lazy, "Tensor": Tensor, "known": layout.sealed, "layout": layout,
        "leaves_of": leaves_of, "learn": _learn, "slow": partial(seal, layout),
        "Structure": Structure,
    }  # fmt: skip
    lines = ["def seal(module):"]
    if names:
        reads = [
            f"        {v} = {reading('module', name)}"
            for v, name in zip(values, names, strict=True)
        ]
        lines += ["    try:", *reads, "    except AttributeError:", "        return slow(module)"]
    for value, name in zip(values, names, strict=True):
        if name in kinds and kinds[name].leaf:
            lines += _leaf_check(value, name, layout, scope)
    lines += _module_checks(modules) + _tie_check(leaves, modules)
    # The entry's structure holds its children's, so that their ids stay theirs.
    parts = [*(f"type({v})" for v in constants), *constants, *(f"id(s{v})" for v in modules)]
    key = f"({''.join(f'{part}, ' for part in parts)})"
    lines += [
        f"    try: found = known[{key}]",
        "    except (KeyError, TypeError): found = None",  # new, or not hashable
        f"    if found is None: return learn(layout, known, {key}, {len(constants)}, module)",
        "    object.__setattr__(module, '_spec', found)",
    ]
    exec("\n".join(lines), scope)
    return scope.pop("seal")  # type: ignore[no-any-return]  # made by the exec above


def _leaf_check(value: str, name: str, layout: Layout, scope: dict[str, Any]) -> list[str]:
    """Lines that let a tensor, the right declaration or an allowed hole pass."""
    kind = layout.kinds[name]
    scope[f"L{value}"] = kind.leaf
    owner = f"{layout.cls.__name__}.{name}"
    other = f"elif {value} is not None:" if kind.optional else "else:"
    return [
        f"    t{value} = type({value})",
        f"    if t{value} is not Tensor:",
        f"        if t{value} is L{value}:",
        f"            if not {value}.owner: {value}.owner = {owner!r}",
        f"        {other} return slow(module)",
    ]


def _module_checks(modules: list[str]) -> list[str]:
    """Lines that let modules without ties of their own pass, and bind what they hold."""
    lines = []
    for v in modules:
        lines += [
            f"    s{v} = getattr({v}, '_spec', None)",
            f"    if type(s{v}) is not Structure or s{v}.expand is not None: return slow(module)",
            f"    l{v} = leaves_of({v})",
        ]
    return lines


def _tie_check(leaves: list[str], modules: list[str]) -> list[str]:
    """Lines that leave a module with one tensor in two places to the general path."""
    if modules:
        ids = ", ".join(
            [*(f"*map(id, l{v})" for v in modules), *(f"id({leaf})" for leaf in leaves)]
        )
        total = " + ".join([*(f"len(l{v})" for v in modules), str(len(leaves))])
        return [f"    if len({{{ids}}}) < {total}: return slow(module)"]
    if len(leaves) < 2:  # one leaf is tied to nothing
        return []
    if len(leaves) <= 3:  # at most three comparisons
        pairs = [f"{a} is {b}" for k, a in enumerate(leaves) for b in leaves[k + 1 :]]
        return [f"    if {' or '.join(pairs)}: return slow(module)"]
    ids = ", ".join(f"id({leaf})" for leaf in leaves)
    return [f"    if len({{{ids}}}) < {len(leaves)}: return slow(module)"]


def _learn(layout: Layout, known: dict[Any, Structure], key: Any, n: int, module: Any) -> None:
    """Seals by the general path, and remembers the structure if the key says what it is.

    The key begins with the types of ``n`` constants, then come these. What is not remembered is
    never found, so the generated code need not look at them.
    """
    seal(layout, module)
    if n and not _PLAIN.issuperset(key[:n]):
        return
    values = key[n : 2 * n]
    if any([type(value) is float and not value for value in values]):
        return
    if any([type(value) is types.FunctionType and value.__closure__ for value in values]):
        return  # what a closure captures would stay alive
    if len(known) >= _KNOWN_LIMIT:
        known.clear()
    known[key] = module._spec
