"""The header of a file: what was saved, so that a file of something else is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parallax.bridge.blueprint import Blueprint
from parallax.core.structure import Structure
from parallax.tree.encoding import dump_constant

__all__ = ["HEADER", "Node", "below", "difference", "dump_header", "load_header", "nodes_of",
           "readable_header", "show", "unreadable"]  # fmt: skip

Node = list[Any]
"""A node of a tree: its dotted path, the name of its class, and its constants as JSON."""
_VERSION = 1
HEADER = "parallax"
"""Under which name a file keeps its header."""
_PLAIN = (int, float, bool, str)


def dump_header(
    nodes: list[Node], metadata: Mapping[str, Any] | None, values: Mapping[str, Any] | None = None
) -> str:
    """The header as JSON.

    Args:
        nodes: those of the tree.
        metadata: what the user wants to keep.
        values: what is in the tree and no tensor, by path.

    Raises:
        TypeError: if the metadata has no JSON form.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(
            f"save(metadata=) takes a dict, got {type(metadata).__name__}. "
            f"Write metadata={{'step': 3}}"
        )
    try:
        extra = json.dumps(dict(metadata or {}))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"save(metadata=): {error}. Give strings, numbers, lists and dicts of them"
        ) from None
    header = {"version": _VERSION, "fingerprint": _fingerprint(nodes), "nodes": nodes}
    if values:
        header["values"] = dict(values)
    return json.dumps({**header, "metadata": json.loads(extra)})


def load_header(text: Any) -> dict[str, Any]:
    """The header of a file; an empty one for a file that Parallax did not write.

    Raises:
        ValueError: if it is no header.
    """
    if text is None:
        return {"metadata": {}}
    try:
        header = json.loads(text) if isinstance(text, str) else text
        return _checked(header)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None


def _checked(header: Any) -> dict[str, Any]:
    if not isinstance(header, dict):
        raise ValueError("its header was not written by Parallax")
    if header.get("version") != _VERSION:
        raise ValueError(
            f"its header has version {header.get('version')}, this release reads {_VERSION}"
        )
    if not (
        isinstance(header.get("metadata"), dict)
        and isinstance(header.get("values", {}), dict)
        and isinstance(header.get("fingerprint"), str)
        and isinstance(header.get("nodes"), list)
        and all(map(_is_node, header["nodes"]))
        and header["fingerprint"] == _fingerprint(header["nodes"])
    ):
        raise ValueError("its header is damaged")
    return header


def _is_node(node: Any) -> bool:
    if not isinstance(node, list) or list(map(type, node)) != [str, str, dict]:
        return False
    return all(type(value) is str for value in node[2].values())


def below(header: dict[str, Any], path: str) -> dict[str, Any]:
    """The header of the part of a tree that stands at a path."""
    if "nodes" not in header or not path:
        return header
    start = f"{path}."
    nodes = [
        [name.removeprefix(start) if name != path else "", cls, constants]
        for name, cls, constants in header["nodes"]
        if name == path or name.startswith(start)
    ]
    return {**header, "nodes": nodes}


def difference(header: dict[str, Any], mine: list[Node]) -> str | None:
    """Where the tree that was saved differs from another; ``None`` if nowhere."""
    if "nodes" not in header:
        return None
    if header["fingerprint"] == _fingerprint(mine):
        return None
    for saved, known in zip(header["nodes"], mine, strict=False):
        if saved != known:
            where = f"at {saved[0]!r}" if saved[0] else "at the root"
            if saved[0] != known[0]:
                where = f"after that, where it has {saved[0]!r} and this module {known[0]!r}"
            return f"{where} the file has {show(saved)}, this module {show(known)}"
    return f"the file has {len(header['nodes'])} nodes, this module {len(mine)}"


def show(node: Node) -> str:
    """A node in an error message: its class and its constants."""
    constants = ", ".join(f"{name}={value}" for name, value in node[2].items())
    return f"{node[1]}({constants})"


def _fingerprint(nodes: list[Any]) -> str:
    return hashlib.sha256(json.dumps(nodes).encode()).hexdigest()


def nodes_of(structure: Structure, path: str = "") -> list[Node]:
    """Every node of a module that stands at a path.

    Only names: a class that moved to another file still fits.
    """
    found = []
    start = (path,) if path else ()
    for inner, _, node in structure.walk():
        if type(node) is Structure:
            layout = getattr(node.cls, "__layout__", None)
            names = ("keys",) if layout is None else layout.constants
            values = node.local.constants
            constants: dict[str, str] = {}
            for name, value in zip(names, values, strict=False):
                constants |= _described(name, value)
            found.append([".".join(map(str, (*start, *inner))), node.cls.__name__, constants])
    return found


def _described(name: str, value: Any) -> dict[str, str]:
    if type(value) is Blueprint:
        attributes = sorted(value.attributes.items())
        return {k: repr(v) for k, v in attributes if type(v) in _PLAIN and not k.startswith("_")}
    try:
        return {name: json.dumps(dump_constant(value))}
    except TypeError:  # such as a lambda: then its kind must do
        return {name: type(value).__name__}


def readable_header(text: Any, source: Path | str) -> dict[str, Any]:
    """The header that a file holds; ``source`` is how errors call it."""
    try:
        return load_header(text)
    except ValueError as error:
        raise unreadable(source, error) from error


def unreadable(source: Path | str, error: Exception | str) -> ValueError:
    """The error for a file that is not a checkpoint."""
    return ValueError(f"{source} is truncated or no checkpoint: {error}. Nothing was loaded")
