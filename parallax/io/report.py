"""``report``: what of a file would be loaded, and what does not fit, without loading it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from parallax._errors.arguments import check_flags, check_function, shown
from parallax.bridge.state_dict import misfit
from parallax.core.fields import Lazy
from parallax.core.nodes import is_module
from parallax.core.registry import flatten_module
from parallax.io.header import below, difference
from parallax.io.parts import Part, constant_misfit, nodes_of_tree, take_apart
from parallax.io.reading import named, read_file
from parallax.io.resuming import as_saved
from parallax.tree.state_names import names_of

__all__ = ["Convert", "Report", "converted", "report"]

Convert = Callable[[str, Tensor], tuple[str, Tensor] | None]
"""From a name and a tensor of a file to those of the model; ``None`` leaves it out."""
_MOST = 10


@dataclass(frozen=True, repr=False)
class Report:
    """What of a file fits a tree: what ``io.report`` returns. Printing it shows all.

    Attributes:
        file: the name of the file.
        loaded: the names that are in the file and in the tree, and fit.
        missing: the names of the tree that are not in the file.
        unexpected: the names of the file that are not in the tree.
        misfits: why a value does not fit, by name: another shape or dtype, or a constant of another
            class.
        renamed: by name in the file, what ``convert`` called it.
        left_out: the names in the file for which ``convert`` returned ``None``.
        structure: where the structure that was saved is another one; ``None`` where it is the same,
            or the file does not say.

    Example:
        >>> import tempfile
        >>> from parallax import io, nn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     io.save(nn.Linear(2, 1).initialize(0), f"{folder}/old.pt")
        ...     found = io.report(f"{folder}/old.pt", like=nn.Linear(2, 1, bias=False))
        >>> found.fits, found.unexpected
        (False, ('bias',))
    """

    file: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: Mapping[str, str]
    renamed: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    structure: str | None = None

    @property
    def fits(self) -> bool:
        """Whether all names, shapes and dtypes fit, so that nothing is left out or kept."""
        return not (self.missing or self.unexpected or self.misfits)

    def __repr__(self) -> str:
        count = len(self.loaded)
        lines = [f"Report of {self.file}: {count} value{'s' * (count != 1)} fit"]
        lines += _listed("missing in the file", self.missing)
        lines += _listed("unexpected in the file", self.unexpected)
        lines += _listed("misfits", tuple(self.misfits.values()))
        pairs = tuple([f"{old} -> {new}" for old, new in self.renamed.items()])
        lines += _listed("renamed", pairs)
        lines += _listed("left out", self.left_out)
        if self.structure is not None:
            lines.append(f"  another structure: {self.structure}")
        return "\n".join(lines)


def _listed(heading: str, names: tuple[str, ...]) -> list[str]:
    if not names:
        return []
    more = [f"    ... and {len(names) - _MOST} more"] if len(names) > _MOST else []
    return [f"  {heading} ({len(names)}):", *[f"    {name}" for name in names[:_MOST]], *more]


def report(path: Any, like: Any, *, convert: Convert | None = None, cast: bool = False) -> Report:
    """What of a file would be loaded into a tree, and what does not fit. Nothing is loaded.

    ``io.load`` with the same arguments loads it; with ``strict=False`` it keeps what is missing,
    and ignores what is unexpected. What is listed as a misfit has to be converted or left out.

    Args:
        path: the file, or a binary file object, which is read to its end.
        like: a module or tree, as of ``io.load``.
        convert: as of ``io.load``.
        cast: as of ``io.load``.

    Returns:
        The report.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if ``convert`` is no function, or returns something else.
        ValueError: if the file is no checkpoint, or ``convert`` gives two tensors one name.

    Example:
        >>> import tempfile
        >>> from parallax import io, nn
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     io.save({"encoder": model.initialize(0)}, f"{folder}/old.pt")
        ...     io.report(
        ...         f"{folder}/old.pt",
        ...         like=nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5)),
        ...         convert=lambda name, value: (name.removeprefix("encoder."), value),
        ...     ).misfits.keys()
        dict_keys(['1.weight', '1.bias'])
    """
    check_flags("io.report", cast=cast)
    parts, _ = take_apart(like, "report(like=)")
    header, held = read_file(path)
    found, renamed, left_out = converted(held, convert, "io.report")
    values = header.get("values", {})
    loaded: list[str] = []
    missing: list[str] = []
    misfits: dict[str, str] = {}
    known: set[str] = set()
    for part in parts:
        constant = not (is_module(part.value) or isinstance(part.value, Tensor | Lazy))
        for names, leaf in [((part.path,), None)] if constant else _leaves(part, header, found):
            there = [name for name in names if name in (values if constant else found)]
            known.update(there)
            if not there:
                missing.append(names[0])
                continue
            wrong = {
                n: constant_misfit(n, part.value, values[n])
                if constant
                else misfit(n, found[n], leaf, cast)
                for n in there
            }
            misfits |= {name: why.strip() for name, why in wrong.items() if why is not None}
            loaded += [name for name in there if name not in misfits]
    others = [name for name in (*found, *values) if name not in known]
    # Where names are converted, the structure that was saved is another one anyway.
    structure = None if convert else difference(header, nodes_of_tree(parts))
    return Report(
        named(path), tuple(loaded), tuple(missing), tuple(others), misfits, renamed,
        tuple(left_out), structure,
    )  # fmt: skip


def _leaves(
    part: Part, header: Mapping[str, Any], held: Mapping[str, Tensor]
) -> list[tuple[tuple[str, ...], Any]]:
    """The names of each leaf of a part, several of a tied one, and the leaf."""
    if not is_module(part.value):
        return [((part.path,), part.value)]
    start = part.start
    mine = {n.removeprefix(start): value for n, value in held.items() if n.startswith(start)}
    like = as_saved(part.value, below(dict(header), part.path), mine)
    leaves, structure = flatten_module(like)
    names: dict[int, list[str]] = {}
    for name, k in names_of(structure):
        if leaves[k] is not None:
            names.setdefault(k, []).append(start + name)
    return [(tuple(several), leaves[k]) for k, several in names.items()]


def converted(
    held: Mapping[str, Tensor], convert: Convert | None, what: str
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """The tensors of a file as ``convert`` gives them, what it renamed, and what it left out.

    Raises:
        TypeError: if it is no function, or returns something else.
        ValueError: if it gives two tensors one name.
    """
    if convert is None:
        return dict(held), {}, []
    example = "lambda name, value: (name.removeprefix('module.'), value)"
    check_function(what, convert, example, "convert")
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    left_out: list[str] = []
    for name, value in held.items():
        pair: Any = convert(name, value)
        if pair is None:
            left_out.append(name)
            continue
        if not isinstance(pair, tuple) or [*map(_kind, pair)] != [str, Tensor]:
            raise TypeError(
                f"{what}(convert=): for {name!r} it returned {shown(pair)}, expected a name and a "
                f"tensor, or None to leave it out. Write {example}"
            )
        new = pair[0]
        if new in found:
            raise ValueError(
                f"{what}(convert=): it calls both {origin[new]!r} and {name!r} {new!r}. Leave one "
                f"out (return None), or give it another name"
            )
        found[new], origin[new] = pair[1], name
    renamed = {old: new for new, old in origin.items() if old != new}
    return found, renamed, left_out


def _kind(value: Any) -> type:
    return Tensor if isinstance(value, Tensor) else type(value)
