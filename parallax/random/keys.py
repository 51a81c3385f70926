"""``Key``: 64 random bits as a value, to be used once or split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, modes
from parallax._errors.arguments import shown
from parallax.core import registry
from parallax.random import marks, ops
from parallax.random.marks import consume
from parallax.random.seeds import digest
from parallax.random.uses import Mark

__all__ = ["Key", "child_of", "clone", "data_of", "fold_in", "from_state", "key",
           "rows_of", "split"]  # fmt: skip


class Key:
    """64 random bits, or a stack of them: a node of every tree, with one int64 leaf on the CPU.

    A key gives its numbers once: draw from it, or ``split`` it, not both and not twice. A second
    use raises ``KeyReusedError``; in compiled code it is found while the code is traced, and costs
    nothing when it runs. Exempt are ``random.reuse()`` and recomputation in backward.

    Attributes:
        data: the bits, an int64 tensor of any shape on the CPU.

    Example:
        >>> from parallax import random
        >>> random.split(random.key(0), 3).shape
        torch.Size([3])
        >>> one, two = random.split(random.key(0))
        >>> random.normal(one, (2,))
        tensor([-1.7837,  0.6137])
    """

    __slots__ = ("data",)

    data: Tensor

    def __init__(self, data: Tensor) -> None:
        ops.check(data, "Key()", single=False)
        object.__setattr__(self, "data", data)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"cannot set Key.{name}: keys are immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"cannot delete Key.{name}: keys are immutable")

    @property
    def shape(self) -> torch.Size:
        """The shape of the stack; ``()`` for a single key."""
        return self.data.shape

    def __len__(self) -> int:
        return len(rows_of(self.data))

    def __iter__(self) -> Iterator[Key]:
        return iter([_key(row) for row in rows_of(self.data)])

    def __getitem__(self, index: int) -> Key:
        if not isinstance(index, int):
            raise TypeError(f"a stack of keys is indexed by an int, got {index!r}")
        return _key(rows_of(self.data)[index])

    def __repr__(self) -> str:
        if type(self.data) is Tensor and self.data.ndim == 0 and not functorch.transform_active():
            return f"Key(0x{int(self.data) % 2**64:016x})"
        return f"Key(shape={tuple(getattr(self.data, 'shape', ()))})"

    def __reduce__(self) -> Any:
        return _key, (self.data,)


def _key(data: Any) -> Key:
    """A key around ``data``, unchecked: what unflattening makes may hold anything."""
    made = object.__new__(Key)
    object.__setattr__(made, "data", data)
    return made


def _flatten(key: Key) -> tuple[tuple[Tensor], None]:
    marks.note(key.data)
    return (key.data,), None


def _unflatten(_: None, children: Any) -> Key:
    (data,) = children
    marks.adopt(data)
    return _key(data)


registry.register(Key, _flatten, _unflatten)


_set_data = vars(Key)[
    "data"
].__set__  # half the time of object.__setattr__, and nothing dynamo traces


def rows_of(data: Tensor) -> tuple[Tensor, ...]:
    """The keys of a stack; the same tensors each time, so that their marks are found again."""
    if not data.ndim:
        raise TypeError("a single key is not a stack: make several of it, random.split(key, n)")
    if dynamo.is_compiling():
        return data.unbind()
    rows: tuple[Tensor, ...] | None = getattr(data, "_rows", None)
    if rows is None or not ops.is_plain(data):
        rows = data.unbind()
        marks.part(data, rows)
        if ops.is_plain(data):
            data._rows = rows  # type: ignore[attr-defined]  # kept on the leaf
    return rows


def child_of(data: Tensor, name: str) -> Key:
    """The key that ``fold_in(key, name)`` makes; of a plain key the same leaf each time.

    It is the key of the module at the path that ``name`` is, which errors name.
    """
    # Only plain tensors were given children, so that one with them needs no closer look.
    traced = dynamo.is_compiling() or modes.dispatch_mode_active()
    children: dict[str, Tensor] | None = None if traced else getattr(data, "_children", None)
    if children is None:
        if traced or not ops.is_plain(data):
            return _key(_child(data, name))
        children = data._children = {}  # type: ignore[attr-defined]  # kept on the leaf
    found = children.get(name)
    if found is None:
        with functorch.outside_transforms():  # in whose wrappers it would be kept
            found = children.setdefault(name, _child(data, name))
    made = object.__new__(Key)
    _set_data(made, found)
    return made


def _child(data: Tensor, name: str) -> Tensor:
    child = ops.fold_in_name(data, name)
    marks.link(child, data, name, path=name)
    return child


# -- making keys ----------------------------------------------------------------------------


def key(seed: int | Tensor) -> Key:
    """A key made from a seed.

    Args:
        seed: an int of at most 64 bits, or an integer tensor; of a tensor of several seeds a
            stack of keys.

    Returns:
        The key. All 64 bits count.

    Raises:
        TypeError: if ``seed`` is not an integer.
        ValueError: if it does not fit in 64 bits.

    Example:
        >>> from parallax import random
        >>> random.key(42)
        Key(0x000000000000002a)
    """
    if isinstance(seed, Tensor):
        if seed.dtype.is_floating_point or seed.dtype.is_complex or seed.dtype is torch.bool:
            raise TypeError(
                f"key(seed): a seed is an integer, got a tensor of {seed.dtype}. "
                f"Convert: seed.long()"
            )
        if seed.device.type == "meta":
            raise TypeError("key(seed): a tensor on meta has no number to be a seed. Write key(0)")
        return _key(seed.detach().to("cpu", torch.int64, copy=True))
    if not ops.is_int(seed):
        raise TypeError(f"key(seed): a seed is an int, got {shown(seed)}. Write random.key(0)")
    data = torch.tensor(ops.signed(seed, "key(seed)"), dtype=torch.int64, device="cpu")
    # Where a trace has a symbol for a number, that has no attributes.
    return _key(data) if dynamo.is_compiling() else _marked(data, getattr(seed, "mark", None))


def _marked(data: Tensor, mark: Any) -> Key:
    """A key of the mark that a module's seed, generator or state has, if it has one."""
    if type(mark) is Mark:
        marks.put(data, mark)
    return _key(data)


def from_state(state: torch.Generator | Tensor) -> Key:
    """A key made from a generator's state, which is only read.

    Args:
        state: a ``torch.Generator``, or what its ``get_state()`` returns, a ByteTensor.

    Returns:
        A key that depends on every byte of the state.

    Raises:
        TypeError: if ``state`` is neither.

    Example:
        >>> import torch
        >>> from parallax import random
        >>> random.from_state(torch.Generator().manual_seed(0))
        Key(0x7f7204b3c4385fbf)
    """
    given: Any = state.get_state() if isinstance(state, torch.Generator) else state
    if not isinstance(given, Tensor) or given.dtype is not torch.uint8 or given.ndim != 1:
        raise TypeError(
            f"from_state(state): expected a torch.Generator or its get_state(), "
            f"got {shown(state)}. Of a number make a key: random.key(0)"
        )
    mark = getattr(state, "_mark" if isinstance(state, Tensor) else "mark", None)
    return _marked(key(digest(given)).data, mark)


def split(key: Key, n: int = 2) -> Key:
    """Splits a key into independent keys; the key is used up.

    Args:
        key: a single key.
        n: how many, at least one.

    Returns:
        A stack of ``n`` keys: unpack it, index it, or map over it with ``torch.vmap``. The first
        ones do not depend on ``n``.

    Raises:
        KeyReusedError: if the key was used before.
        TypeError: if ``key`` is not a key, or ``n`` not an int.
        ValueError: if ``n`` is less than one.

    Source: Philox4x32-10 (see ``random.philox``); the ``i``-th key is half a block.

    Example:
        >>> from parallax import random
        >>> one, two, three = random.split(random.key(0), 3)
    """
    if not ops.is_int(n):
        raise TypeError(
            f"split(key, n): n is an int, got {shown(n)}. Write one, two = split(key, 2)"
        )
    if n < 1:
        raise ValueError(f"split(key, n): n is at least 1, got {n}. Write split(key, 2)")
    data = data_of(key, "split()")
    children = ops.split(data, n)
    consume(data, "split()")
    return _key(children)


def fold_in(key: Key, data: int | str | Tensor) -> Key:
    """A key derived from ``key`` and an int or string; ``key`` stays usable for others.

    Args:
        key: a single key.
        data: an int of at most 64 bits, an integer tensor of no dimensions (a step counter in a
            compiled step), or a string.

    Returns:
        The key; equal data give the same, and an int and its string different ones.

    Raises:
        TypeError: if ``key`` is not a key, or ``data`` not one of these.
        ValueError: if an int does not fit in 64 bits.

    Example:
        >>> from parallax import random
        >>> key = random.key(0)
        >>> noise = [random.normal(random.fold_in(key, step)) for step in range(3)]
    """
    leaf = data_of(key, "fold_in()")
    if isinstance(data, str):
        return _folded(ops.fold_in_name(leaf, data), leaf, data)
    if isinstance(data, Tensor):
        if data.dtype.is_floating_point or data.dtype.is_complex or data.ndim:
            raise TypeError(
                f"fold_in(key, data): a tensor must be an integer without dimensions, got "
                f"{data.dtype} of shape {tuple(data.shape)}. Write fold_in(key, 0)"
            )
        data = data.detach().to("cpu", torch.int64)
        return _folded(ops.fold_in(leaf, data), leaf, data)
    if not ops.is_int(data):
        raise TypeError(
            f"fold_in(key, data): data is an int or a string, got {shown(data)}. "
            f"Write fold_in(key, 0)"
        )
    data = ops.signed(data, "fold_in(key, data)")
    return _folded(ops.fold_in(leaf, data), leaf, data)


def _folded(child: Tensor, parent: Tensor, name: Any) -> Key:
    marks.link(child, parent, name)
    return _key(child)


def clone(key: Key) -> Key:
    """An unused copy of a key, to repeat its numbers on purpose.

    Args:
        key: a key or a stack of keys.

    Returns:
        A key of the same bits.

    Raises:
        TypeError: if ``key`` is not a key.

    Example:
        >>> from parallax import random
        >>> key = random.key(0)
        >>> first = random.normal(random.clone(key), (3,))
        >>> bool((random.normal(key, (3,)) == first).all())
        True
    """
    if not isinstance(key, Key):
        raise TypeError(f"clone(key): expected a Key, got {shown(key)}. Make one: random.key(0)")
    data = key.data.clone()
    marks.renew(data)
    return _key(data)


def data_of(key: Any, by: str) -> Tensor:
    """The leaf of a single key, checked.

    Raises:
        TypeError: if ``key`` is not a key, or its leaf is not int64 on the CPU.
        ValueError: if it is a stack.
    """
    if type(key) is not Key:
        state = isinstance(key, Tensor | torch.Generator)
        hint = "random.from_state(state)" if state else "random.key(seed)"
        raise TypeError(
            f"{by}: the first argument must be a Key, got {shown(key)}. Make one: {hint}"
        )
    ops.check(key.data, by)
    return key.data
