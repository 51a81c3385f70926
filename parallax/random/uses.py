"""What is known of the use of a key, and the error of a second use."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

__all__ = ["KeyReusedError", "Mark"]

_MOST_CHILDREN = 4096  # a key that is folded into once for each step forgets the oldest steps


class KeyReusedError(RuntimeError):
    """A key was used a second time, which would repeat its random numbers.

    Example:
        >>> from parallax import random
        >>> key = random.key(0)
        >>> noise = random.normal(key, (2,))
        >>> random.uniform(key, (2,))
        Traceback (most recent call last):
        parallax.random.uses.KeyReusedError: uniform() was given a key that normal() used already...
    """


class Mark:
    """What is known of the use of one key, or of a stack of keys.

    Attributes:
        by: what used it; of a stack, what used all of it at once.
        path: the path of the module whose key it is.
        above: the mark of the stack that it is a row of, and which row.
        children: the marks of the keys that were folded from it.
        rows: the marks of a stack's rows.
        place: where it was used: in which chunk of a ``vmap``, or where in a trace.
        loop: the loop in a trace that would repeat it.
    """

    __slots__ = ("above", "by", "children", "index", "loop", "path", "place", "rows")

    by: str | None
    path: str | None
    children: dict[Hashable, Mark] | None
    rows: dict[int, Mark] | None

    def __init__(self, above: Mark | None = None, index: int = 0) -> None:
        self.by = self.path = self.children = self.rows = None
        self.above = above
        self.index = index
        self.place: Any = None
        self.loop: str | None = None

    def child(self, name: Hashable) -> Mark:
        """The mark of the key that is folded from this one by a name, the same each time."""
        if self.above is not None:
            return self.above.child(name).row(self.index)
        children = self.children
        if children is None:
            children = self.children = {}
        found = children.get(name)
        if found is None:
            if len(children) >= _MOST_CHILDREN:
                children.pop(next(iter(children)), None)
            found = Mark()
            if self.rows is not None:  # those that stand for themselves have children of their own
                found.rows = {
                    k: row.child(name) for k, row in self.rows.items() if row.above is not self
                }
            found = children.setdefault(name, found)
        return found

    def row(self, index: int) -> Mark:
        """The mark of a row of this stack, the same each time."""
        if self.rows is None:
            self.rows = {}
        return self.rows.get(index) or self.rows.setdefault(index, Mark(self, index))

    def user(self) -> str | None:
        """What used this key, the stack it is in, or a row of it."""
        if self.by is not None:
            return self.by
        if self.above is not None:
            found = next((mark.by for mark in self._above() if mark.by is not None), None)
            if found is not None:
                return found
        return None if self.rows is None else self._user_below()

    def _above(self) -> Iterator[Mark]:
        mark = self.above
        while mark is not None:
            yield mark
            mark = mark.above

    def _user_below(self) -> str | None:
        for row in (self.rows or {}).values():
            found = row.by or row._user_below()
            if found is not None:
                return found
        return None

    def use(self, by: str) -> None:
        """Notes the use; rows that stand in another stack, too, are told."""
        self.by = by
        if self.rows is not None:
            for row in self.rows.values():
                row.use(by)

    def error(self, by: str, used: str) -> KeyReusedError:
        """What a second use raises."""
        if self.path is None:
            return KeyReusedError(
                f"{by} was given a key that {used} used already, so its numbers would repeat. Use "
                f"each key once: k1, k2 = random.split(key), or random.fold_in(key, i) for the "
                f"i-th use; to repeat on purpose: random.clone(key)"
            )
        path, _, copy = self.path.partition("#")
        copied = f", copy {copy}," if copy else ""
        return KeyReusedError(
            f"{path or 'the root module'}{copied} was given the key that it has drawn from already "
            f"({by} after {used}), so its numbers would repeat. A module that is called n times "
            f"draws from n keys: use one copy for each call, {_spelled(path)}.split(n), or one "
            f"layer for each place. A tree that is called again needs another rng: "
            f"module.train(rng) or module.reset(rng), with random.split or random.fold_in for a "
            f"key. Within a module: random.fold_in(self.rng, i) for the i-th draw; to repeat on "
            f"purpose: random.clone(key) or random.reuse()"
        )

    def __deepcopy__(self, memo: Any) -> Mark:
        return self  # a copy of a key gives the same numbers

    def __reduce__(self) -> Any:
        # Marks are not saved. Torch pickles what lies on a tensor, and reads it back with
        # weights_only if it is of a class it knows.
        return bytearray, ()


def _spelled(path: str) -> str:
    """How the module is written in the one that holds it, from its path."""
    parts = path.split(".")
    names = [k for k, part in enumerate(parts) if not part.isdecimal()]
    last = parts[names[-1] :] if names else parts
    if not path:
        return "module"
    return "self" + "".join([f"[{part}]" if part.isdecimal() else f".{part}" for part in last])
