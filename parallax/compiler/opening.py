"""Generated code for what every call of a compiled function does: open arguments, build results.

``pack_call`` and ``build`` walk along tokens; here the walk is written out once per graph. An
opener knows only the arguments its graph was made for: for any others, and whenever it is in doubt,
it returns ``None``, and the caller asks ``pack_call``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from parallax.compiler.packing import ITEM, RNG, Items, Same, build, pack
from parallax.core.code import define
from parallax.core.frozendict import FrozenDict
from parallax.core.registry import unflatten_module
from parallax.core.structure import Structure

__all__ = ["write_builder", "write_opener"]

_WIDEST = 64  # a longer container is left to ``pack`` and ``build``

_DEEPEST = 20  # Python's parser has a limit for brackets within brackets

Opener = Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any, ...] | None]


def write_opener(tokens: tuple[Any, ...], items: Sequence[Any]) -> Opener:
    """Writes what takes the items from the arguments of a call.

    Args:
        tokens: those of ``pack_call``.
        items: of the same call; only their classes are kept.

    Returns:
        ``open(args, kwargs)``: the items, or ``None`` where ``tokens`` may be others.
    """
    n_args, keywords = tokens[0], tokens[1]
    writer = _Opener(tokens[2:], items)
    values = [f"a{k}" for k in range(n_args)]
    writer.refuse(f"len(args) != {n_args}")
    if values:
        writer.line(f"{', '.join(values)}, = args")
    writer.refuse(f"tuple(kwargs) != {writer.bound(keywords)}" if keywords else "kwargs")
    for name in keywords:
        values.append(writer.fresh())
        writer.line(f"{values[-1]} = kwargs[{name!r}]")
    for value in values:
        writer.take(value)
    body = [*writer.lines, f"return ({''.join(part + ', ' for part in writer.parts)})"]
    head = ["def open(args, kwargs):", "  try:"]
    # A module whose leaves were never collected has no such attribute.
    lines = [*head, *["    " + line for line in body], "  except AttributeError: return None"]
    opener: Opener = _made("\n".join(lines), "open", writer.scope)
    return opener


def write_builder(tokens: tuple[Any, ...]) -> Callable[..., Any]:
    """Writes what puts a tree together from items: ``build`` for these tokens.

    It is given the lists and dicts of the arguments, too, if the tokens name one.
    """
    if any([token[0] is Same for token in tokens if type(token) is tuple]):
        return lambda items, met=(): build(iter(tokens), Items(items), [*met])
    writer = _Builder(tokens)
    source = f"def build(items):\n  return {writer.value()}"
    builder: Callable[..., Any] = _made(source, "build", writer.scope)
    return builder


class _Writer:
    """Names for what the code refers to."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {}

    def bound(self, value: Any) -> str:
        """A name for a value."""
        name = f"v{len(self.scope)}"
        self.scope[name] = value
        return name


class _Opener(_Writer):
    """Writes the checks of an opener, and collects the parts of its result."""

    def __init__(self, tokens: Sequence[Any], items: Sequence[Any]) -> None:
        super().__init__()
        self.tokens = tokens
        self.items = items
        self.at = 0  # in tokens
        self.item = 0
        self.lines: list[str] = []
        self.parts: list[str] = []
        self.names = 0

    def line(self, text: str) -> None:
        self.lines.append(text)

    def refuse(self, condition: str) -> None:
        self.line(f"if {condition}: return None")

    def fresh(self) -> str:
        self.names += 1
        return f"b{self.names}"

    def take(self, value: str) -> None:
        """Checks and takes apart what the code calls ``value``."""
        start, token = self.at, self.tokens[self.at]
        self.at += 1
        if token is ITEM:
            self.refuse(f"type({value}) is not {self.bound(type(self.items[self.item]))}")
            self.parts.append(value)
            self.item += 1
        elif token is RNG or type(token) is Structure:
            self._module(value, token)
        elif token[0] in (tuple, list) or hasattr(token[0], "_fields"):
            self._container(value, token, range(token[1]), start)
        elif token[0] in (dict, FrozenDict):
            self._container(value, token, token[1], start)
        else:
            self._rest(value, start)

    def _module(self, value: str, token: Any) -> None:
        rng = token is RNG
        if rng:
            token = self.tokens[self.at]
            self.at += 1
        structure = self.bound(token)
        self.refuse(f"type({value}) is not {self.bound(token.shape.cls)}")
        self.refuse(f"{value}._spec is not {structure}")
        self.refuse(f"{value}._rng is {'' if rng else 'not '}None")
        self.parts += [f"{value}._rng"] * rng + [f"*{value}._leaves"]
        self.item += len(token.first) + rng

    def _container(self, value: str, token: Any, keys: Sequence[Any], start: int) -> None:
        self.refuse(f"type({value}) is not {self.bound(token[0])} or len({value}) != {len(keys)}")
        if len(keys) > _WIDEST:
            self._rest(value, start)
            return
        names = [self.fresh() for _ in keys]
        if keys and token[0] in (dict, FrozenDict):
            # The same objects, as literals are: 1 and True are equal, and a str may be an enum's.
            found = [self.fresh() for _ in keys]
            self.line(f"{', '.join(found)}, = {value}")
            for one, key in zip(found, keys, strict=True):
                self.refuse(f"{one} is not {self.bound(key)}")
            value = f"{value}.values()"
        if names:
            self.line(f"{', '.join(names)}, = {value}")
        for name in names:
            self.take(name)

    def _rest(self, value: str, start: int) -> None:
        """What starts at a token, as ``pack`` takes it apart."""
        self.at = _end(self.tokens, start)
        spanned = self.tokens[start : self.at]
        found, spelled = self.fresh(), self.fresh()
        self.line(f"{found}, {spelled} = [], []")
        self.line(f"{self.bound(pack)}({value}, {found}, {spelled})")
        self.refuse(f"tuple({spelled}) != {self.bound(spanned)}")
        self.parts.append(f"*{found}")
        self.item += _count(spanned)


class _Builder(_Writer):
    """Writes an expression that builds what tokens say."""

    def __init__(self, tokens: Sequence[Any]) -> None:
        super().__init__()
        self.tokens = tokens
        self.at = 0
        self.item = 0

    def value(self, depth: int = 0) -> str:
        """The expression for the next value."""
        start, token = self.at, self.tokens[self.at]
        self.at += 1
        if token is ITEM:
            self.item += 1
            return f"items[{self.item - 1}]"
        if token is RNG or type(token) is Structure:
            return self._module(token)
        cls: Any = token[0]
        n = token[1] if type(token[1]) is int else len(token[1])
        known = cls in (tuple, list, dict, FrozenDict) or hasattr(cls, "_fields")
        if not known or n > _WIDEST or depth > _DEEPEST:
            return self._rest(start)
        values = [self.value(depth + 1) for _ in range(n)]
        if cls is dict or cls is FrozenDict:
            pairs = zip(token[1], values, strict=True)
            shown = f"{{{', '.join(f'{self.bound(key)}: {value}' for key, value in pairs)}}}"
            return shown if cls is dict else f"{self.bound(cls)}({shown})"
        inside = "".join(f"{value}, " for value in values)
        if cls is tuple or cls is list:
            return f"({inside})" if cls is tuple else f"[{inside}]"
        return f"{self.bound(cls)}({inside})"

    def _module(self, token: Any) -> str:
        rng = "None"
        if token is RNG:
            rng, token = f"items[{self.item}]", self.tokens[self.at]
            self.at += 1
            self.item += 1
        first, self.item = self.item, self.item + len(token.first)
        make = self.bound(unflatten_module)
        return f"{make}({self.bound(token)}, items[{first}:{self.item}], {rng})"

    def _rest(self, start: int) -> str:
        self.at = _end(self.tokens, start)
        spanned, first = self.tokens[start : self.at], self.item
        self.item += _count(spanned)
        taken = f"{self.bound(Items)}(items[{first}:{self.item}])"
        return f"{self.bound(build)}(iter({self.bound(spanned)}), {taken})"


def _end(tokens: Sequence[Any], start: int) -> int:
    """The index after the value whose first token is at ``start``."""
    left, at = 1, start
    while left:
        token = tokens[at]
        at += 1
        if token is RNG:
            continue
        left -= 1
        if token is not ITEM and type(token) is not Structure:
            left += token[1] if type(token[1]) is int else len(token[1])
    return at


def _count(tokens: Sequence[Any]) -> int:
    """How many items tokens stand for."""
    return sum(
        len(token.first) if type(token) is Structure else token is ITEM or token is RNG
        for token in tokens
    )


def _made(source: str, name: str, scope: dict[str, Any]) -> Any:
    return define(source, dict(scope), [name])[0]
