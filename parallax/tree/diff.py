"""``diff``: where two trees differ, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, shards
from parallax._errors.arguments import check_flags
from parallax.core.containers import keys_of, opened
from parallax.core.entries import Note, Static
from parallax.core.fields import Lazy
from parallax.core.module_structure import spec_of
from parallax.core.nodes import is_module
from parallax.core.registry import NAMESPACE
from parallax.tree.align import defined_again
from parallax.tree.arguments import check_number, refuse_torch_module
from parallax.tree.compare import near_arrays, same_other
from parallax.tree.leaves import is_inexact
from parallax.tree.mixing import refuse_mixed
from parallax.tree.outside import is_leaf, join
from parallax.tree.repr import shape_text

__all__ = ["Difference", "Differences", "diff"]

_MAX_LINES = 50
Modes = tuple[str, ...]  # of the two modules around what is compared; empty outside of any


class Difference(NamedTuple):
    """One difference of two trees."""

    path: str
    kind: str  # "class", "only one", "constant", "mode", "frozen", "tie", "shape", "dtype", ...
    first: str
    second: str
    distance: float | None = None  # of values: the largest difference; of integers it is exact

    def __str__(self) -> str:
        told = f"{self.first} and {self.second}" if self.second else self.first
        return f"{self.path or '(the root)'}  {self.kind}: {told}"


class Differences:
    """What ``tree.diff`` returns. It prints as a list, and is true if the trees differ.

    Attributes:
        rows: one for each difference, in the order of the trees: its ``path``, its ``kind``, what
            the ``first`` and the ``second`` tree have there, and of values their ``distance``.
    """

    def __init__(self, rows: list[Difference]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.rows)

    def __repr__(self) -> str:
        if not self.rows:
            return "No differences"
        lines = [f"  {row}" for row in self.rows]
        if len(lines) > _MAX_LINES:
            lines = [*lines[: _MAX_LINES - 1], f"  ... {len(lines) - _MAX_LINES + 1} more"]
        count = f"{len(self.rows)} difference{'s' * (len(self.rows) > 1)}"
        return "\n".join([f"{count} (first and second):", *lines])


def diff(
    one: Any, two: Any, *, rtol: float = 0.0, atol: float = 0.0, equal_nan: bool = False
) -> Differences:
    """Where two trees differ: classes, constants, what one of them lacks, shapes, dtypes, values.

    Where ``tree.equal`` says no, this says why. Modes, frozen marks and ties are compared, too;
    random states are not.

    Args:
        one: a module, or any pytree that holds modules and tensors.
        two: another.
        rtol: the relative tolerance of values, of the leaves of ``two``; integers must be equal.
        atol: the absolute tolerance, of such values, too.
        equal_nan: whether a ``nan`` equals a ``nan``.

    Returns:
        The differences, which print one on a line; as a condition, whether there are any.

    Raises:
        RuntimeError: inside a ``torch.func`` transform or a compiled function, where values are not
            known.
        TypeError: if two leaves of one class cannot be compared.

    Example:
        >>> import torch
        >>> from parallax import nn, tree
        >>> one = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5)).initialize(0)
        >>> two = tree.select(one, "layers.0.bias").set(torch.ones(1))
        >>> two = tree.select(two, "layers.1").set(nn.Dropout(0.1))
        >>> tree.diff(tree.zeros_like(one), tree.zeros_like(two))
        1 difference (first and second):
          layers.1.p  constant: 0.5 and 0.1
        >>> tree.diff({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, 0.5])})
        1 difference (first and second):
          a  values: 1 of 2 differ, by at most 0.5 at [1]: 0 and 0.5
    """
    check_number("tree.diff", "rtol", rtol, 0)
    check_number("tree.diff", "atol", atol, 0)
    check_flags("tree.diff", equal_nan=equal_nan)
    if dynamo.is_compiling() or functorch.transform_active():
        raise RuntimeError(
            "tree.diff looks at values, which are not known inside a transform or a compiled "
            "function. Return the trees and compare them outside, or use tree.equal"
        )
    walk = _Walk(rtol, atol, equal_nan)
    walk.run(one, two)
    return Differences(walk.rows)


class _Walk:
    """A walk through two trees side by side, without recursion, as trees may be deep."""

    def __init__(self, rtol: float, atol: float, equal_nan: bool) -> None:
        self.rows: list[Difference] = []
        self.tolerance = rtol, atol, equal_nan
        self._ahead: list[Difference | tuple[str, Any, Any, Modes]] = []
        self._seen: set[tuple[int, int]] = set()

    def run(self, one: Any, two: Any) -> None:
        self._ahead.append(("", one, two, ()))
        while self._ahead:
            found = self._ahead.pop()
            if isinstance(found, Difference):
                self.rows.append(found)
            else:
                self.compare(*found)

    def tell(self, path: str, kind: str, first: str, second: str = "") -> None:
        self.rows.append(Difference(path, kind, first, second))

    def compare(self, path: str, one: Any, two: Any, modes: Modes) -> None:
        for value in (one, two):
            if isinstance(value, torch.nn.Module):
                refuse_torch_module(value)
        nodes = [is_module(value) or not is_leaf(value) for value in (one, two)]
        if nodes == [False, False]:
            self.compare_leaves(path, one, two)
        elif type(one) is not type(two) or nodes[0] != nodes[1]:
            again = defined_again(type(one), type(two))
            other = "another class of that name" if again else _kind(two)
            self.tell(path, "class", _kind(one), other)
        elif is_module(one):
            self.compare_modules(path, one, two, modes)
        else:
            (mine, kept), (theirs, other) = (_below(node, bool(modes)) for node in (one, two))
            if list(mine) == list(theirs) and kept != other:
                self.tell(path, "constant", *_apart(kept, other))
            self.compare_children(path, mine, theirs, modes)

    def compare_modules(self, path: str, one: Any, two: Any, above: Modes) -> None:
        specs = spec_of(one), spec_of(two)
        layout = type(one).__layout__
        for name, *keys in zip(layout.constants, *[s.local.key for s in specs], strict=True):
            if keys[0] != keys[1]:
                values = repr(getattr(one, name)), repr(getattr(two, name))
                self.tell(join(path, name), "constant", *values)
        modes = _mode_of(specs[0].note), _mode_of(specs[1].note)
        if modes[0] != modes[1] and modes != above:  # what is so for all is told once
            self.tell(path, "mode", *modes)
        if not above:
            self.compare_marks(path, *specs)
        held: list[dict[_Key, Any]] = [{}, {}]
        for name, *entries in zip(layout.children, *[s.children for s in specs], strict=True):
            mine, theirs = getattr(one, name), getattr(two, name)
            if all([type(entry) is not Static for entry in entries]):
                held[0][str, name], held[1][str, name] = mine, theirs
            elif entries[0] != entries[1]:
                self.tell(join(path, name), "constant", _kind(mine), _kind(theirs))
        self.compare_children(path, held[0], held[1], modes)

    def compare_marks(self, path: str, one: Any, two: Any) -> None:
        """The ties and frozen marks of two whole modules, by the paths that both have."""
        marks = [dict(zip(spec.paths, spec.frozen, strict=True)) for spec in (one, two)]
        for name, frozen in marks[0].items():
            if marks[1].get(name, frozen) != frozen:
                words = ["frozen" if m[name] else "not frozen" for m in marks]
                self.tell(join(path, name), "frozen", words[0], words[1])
        ties = [
            {spec.place_paths[a]: spec.place_paths[b] for a, b in spec.ties} for spec in (one, two)
        ]
        places = [set(spec.place_paths) for spec in (one, two)]
        for name in sorted({*ties[0], *ties[1]} & places[0] & places[1]):
            held = [tie.get(name) for tie in ties]
            if held[0] != held[1]:
                words = [f"tied to {join(path, t)}" if t else "not tied" for t in held]
                self.tell(join(path, name), "tie", words[0], words[1])

    def compare_children(
        self, path: str, one: dict[_Key, Any], two: dict[_Key, Any], modes: Modes
    ) -> None:
        below: list[Difference | tuple[str, Any, Any, Modes]] = []
        alone = {key[1]: key[0] for key in two if key not in one}
        for key in [*one, *[key for key in two if key not in one]]:
            where = join(path, key[1])
            if key in one and key in two:
                below.append((where, one[key], two[key], modes))
            elif key in one and key[1] in alone:  # equal in words
                ours, theirs = [f"a key of class {cls.__name__}" for cls in (key[0], alone[key[1]])]
                below.append(Difference(where, "key", ours, theirs))
            elif key in one:
                below.append(Difference(where, "only the first has it", _kind(one[key]), ""))
            elif not any([key[1] == name for _, name in one.keys() - two.keys()]):
                below.append(Difference(where, "only the second has it", _kind(two[key]), ""))
        if [key for key in one if key in two] != [key for key in two if key in one]:
            self.tell(
                path, "order", *[", ".join([name for _, name in keys]) for keys in (one, two)]
            )
        self._ahead += reversed(below)

    def compare_leaves(self, path: str, one: Any, two: Any) -> None:
        pair = id(one), id(two)
        if pair in self._seen or (one is None and two is None):  # a tied leaf is told once
            return
        if isinstance(one, Tensor) and isinstance(two, Tensor):
            self._seen.add(pair)
            self.compare_tensors(path, one, two)
            return
        apart = one is None or two is None or isinstance(one, Tensor) or isinstance(two, Tensor)
        if type(one) in _NUMBERS and type(one) is type(two):
            wide = _NUMBERS[type(one)]
            apart = bool(self.apart(torch.tensor(one, dtype=wide), torch.tensor(two, dtype=wide)))
        elif not apart:
            apart = not same_other(one, two, near_arrays(*self.tolerance))
        if apart:
            self.tell(path, "leaf", _kind(one), _kind(two))

    def compare_tensors(self, path: str, one: Tensor, two: Tensor) -> None:
        for fact in ("dtype", "device"):
            ours, theirs = getattr(one, fact), getattr(two, fact)
            if ours != theirs:
                names = [str(value).removeprefix("torch.") for value in (ours, theirs)]
                self.tell(path, fact, names[0], names[1])
        if one.layout != two.layout:
            self.tell(path, "layout", str(one.layout), str(two.layout))
        if one.shape != two.shape:
            self.tell(path, "shape", str(list(one.shape)), str(list(two.shape)))
            return
        if one.is_meta or two.is_meta or not one.numel():
            return
        try:
            one, two = (_dense(t) for t in (one, two))
            apart = self.apart(one.detach(), two.detach().to(one.device))
        except RuntimeError as error:
            leaves = {"the first tree": [one], "the second": [two]}
            refuse_mixed(error, "tree.diff", [path or "the root"], leaves)
            raise
        if not bool(shards.whole(apart.any())):
            return
        one, two, apart = (shards.whole(tensor) for tensor in (one, two, apart))
        places = apart.nonzero()
        flat = apart.reshape(-1).nonzero()[:, 0].cpu()
        ours, theirs = (t.detach().cpu().reshape(-1)[flat] for t in (one, two))
        worst, distance = _farthest(ours, theirs)
        at = places[worst].tolist()
        size = distance if isinstance(distance, int) else f"{distance:.6g}"
        told = f"{len(places)} of {one.numel()} differ, by at most {size}"
        told += f" at {at}" if at else ""
        values = [_number(tensor[worst].item()) for tensor in (ours, theirs)]
        self.rows.append(Difference(path, "values", f"{told}: {values[0]}", values[1], distance))

    def apart(self, one: Tensor, two: Tensor) -> Tensor:
        """Where the numbers of two tensors of one shape are not near."""
        rtol, atol, equal_nan = self.tolerance
        differ = one != two
        if equal_nan:
            differ &= ~((one != one) & (two != two))  # noqa: PLR0124  # where they are nan
        if (rtol or atol) and (is_inexact(one) or is_inexact(two)):
            wide = torch.complex128 if one.is_complex() or two.is_complex() else torch.float64
            distance = (one.to(wide) - two.to(wide)).abs()
            near = distance.isfinite() & (distance <= atol + rtol * two.to(wide).abs())
            differ &= ~near
        return differ


_NUMBERS = {float: torch.float64, complex: torch.complex128}
_LEAST = -(2**63)


def _dense(tensor: Tensor) -> Tensor:
    if tensor.layout is torch.jagged:
        return tensor.values()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _farthest(ours: Tensor, theirs: Tensor) -> tuple[int, float]:
    """Where two vectors differ most, and by how much; a nan is farthest of all."""
    if is_inexact(ours) or is_inexact(theirs):
        wide = torch.complex128 if ours.is_complex() or theirs.is_complex() else torch.float64
        distances = (ours.to(wide) - theirs.to(wide)).abs()
        worst = int(distances.nan_to_num(nan=float("inf")).argmax())
        return worst, float(distances[worst])
    one, two = _ordered(ours), _ordered(theirs)
    # The difference of the larger and the smaller one is exact as an unsigned number of 64 bits.
    distances = torch.maximum(one, two) - torch.minimum(one, two)
    worst = int((distances ^ _LEAST).argmax())
    return worst, int(distances[worst]) % 2**64


def _ordered(numbers: Tensor) -> Tensor:
    """Integers as int64 with the same order and distances."""
    if numbers.dtype is torch.uint64:
        return numbers.view(torch.int64) ^ _LEAST
    return numbers.to(torch.int64)


def _mode_of(note: Note) -> str:
    return f"{note.mode!r}{', where it stays' if note.stays_eval else ''}"


def _number(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, (float, complex)) else str(value)


_Key = tuple[type, str]
"""The key of a child: its class, for ``1`` and ``True`` are two, and how it reads in a path."""


def _below(node: Any, inside: bool) -> tuple[dict[_Key, Any], Any]:
    """The children of a container by their keys, and what it holds beside them.

    Inside of modules fields have their names.
    """
    held = opened(node) if inside else None
    if held is not None:
        pairs = zip(keys_of(type(node), held[0], len(held[1])), held[1], strict=True)
        return {(type(key), str(key)): child for key, child in pairs}, held[0]
    found = optree.tree_flatten_one_level(node, none_is_leaf=True, namespace=NAMESPACE)
    pairs = zip(found[2], found[0], strict=True)
    return {(type(key), str(key)): child for key, child in pairs}, found[1]


def _apart(one: Any, two: Any) -> tuple[str, str]:
    """Two constants in words; of tuples the first items that differ."""
    while type(one) is type(two) is tuple and len(one) == len(two):
        one, two = next((a, b) for a, b in zip(one, two, strict=True) if a != b)
    return repr(one), repr(two)


def _kind(value: Any) -> str:
    """A node or leaf in a few words."""
    if isinstance(value, (Tensor, Lazy)):
        return shape_text(value)
    if is_module(value) or not is_leaf(value):
        return type(value).__name__
    if value is None:
        return "a hole"
    text = str(getattr(value, "__name__", None) or repr(value))
    return text if len(text) <= 60 else f"a {type(value).__name__}"
