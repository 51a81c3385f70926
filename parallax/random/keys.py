"""``Key``: 64 random bits as a value, to be used once or split."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor

from parallax._compat import autograd, dynamo, functorch, modes
from parallax.core import registry
from parallax.random import ops
from parallax.random.seeds import digest

__all__ = ["Key", "KeyReusedError", "clone", "consume", "fold_in", "from_state", "key", "reuse",
           "split"]  # fmt: skip

_reusing: ContextVar[bool] = ContextVar("reusing", default=False)


class KeyReusedError(RuntimeError):
    """A key was used a second time, which would repeat its random numbers."""


class Key:
    """64 random bits, or a stack of them: a node of every tree, with one int64 leaf on the CPU.

    A key gives its numbers once: draw from it, or ``split`` it, not both and not twice. A second
    use raises ``KeyReusedError`` in eager code. Exempt are ``random.reuse()`` and recomputation
    in backward; under ``vmap`` and in compiled code nothing is detected.

    Attributes:
        data: the bits, an int64 tensor of any shape on the CPU.

    Example:
        >>> from parallax import random
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
        return len(_rows(self.data))

    def __iter__(self) -> Iterator[Key]:
        return iter([_key(row) for row in _rows(self.data)])

    def __getitem__(self, index: int) -> Key:
        if not isinstance(index, int):
            raise TypeError(f"a stack of keys is indexed by an int, got {index!r}")
        return _key(_rows(self.data)[index])

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


registry.register(Key, lambda k: ((k.data,), None), lambda _, children: _key(children[0]))


_set_data = vars(Key)[
    "data"
].__set__  # half the time of object.__setattr__, and nothing dynamo traces


def _rows(data: Tensor) -> tuple[Tensor, ...]:
    """The keys of a stack; the same tensors each time, so that their marks are found again."""
    if not data.ndim:
        raise TypeError("a single key is no stack: make several of it, random.split(key, n)")
    if not ops.is_plain(data):
        return data.unbind()
    rows: tuple[Tensor, ...] | None = getattr(data, "_rows", None)
    if rows is None:
        rows = data._rows = data.unbind()  # type: ignore[attr-defined]  # kept on the leaf
    return rows


def child_of(data: Tensor, name: str) -> Key:
    """The key that ``fold_in(key, name)`` makes; of a plain key the same leaf each time."""
    # Only plain tensors were given children, so that one with them needs no closer look.
    traced = dynamo.is_compiling() or modes.dispatch_mode_active()
    children: dict[str, Tensor] | None = None if traced else getattr(data, "_children", None)
    if children is None:
        if traced or not ops.is_plain(data):
            return _key(ops.fold_in_name(data, name))
        children = data._children = {}  # type: ignore[attr-defined]  # kept on the leaf
    found = children.get(name)
    if found is None:
        found = children.setdefault(name, ops.fold_in_name(data, name))
    made = object.__new__(Key)
    _set_data(made, found)
    return made


# -- use once -------------------------------------------------------------------------------


class reuse:  # noqa: N801  # called like a function, as torch.no_grad is
    """Within ``with random.reuse():`` keys may be used again; it repeats their numbers.

    For closures that evaluate one loss several times, as line searches do.

    Example:
        >>> from parallax import random
        >>> key = random.key(0)
        >>> with random.reuse():
        ...     bool((random.normal(key, (3,)) == random.normal(key, (3,))).all())
        True
    """

    __slots__ = ("_token",)

    _token: Token[bool] | None

    def __enter__(self) -> None:
        self._token = None if dynamo.is_compiling() else _reusing.set(True)

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _reusing.reset(self._token)


def consume(data: Tensor, by: str) -> None:
    """Marks a key as used, on its leaf tensor: trees are rebuilt around that.

    Only plain eager tensors are marked, and nothing is under ``vmap``, in a recomputation during
    backward, or within ``reuse()``.

    Raises:
        KeyReusedError: if the key was used before.
    """
    if not ops.is_plain(data) or functorch.vmap_active():
        return
    used: str | None = getattr(data, "_used", None)
    if used is None:
        if not _reusing.get() and not autograd.in_backward():
            data._used = by  # type: ignore[attr-defined]  # kept on the leaf
    elif not _reusing.get() and not autograd.in_backward():
        raise KeyReusedError(
            f"{by} was given a key that {used} used already, so its numbers would repeat. Use "
            f"each key once: k1, k2 = random.split(key), or random.fold_in(key, i) for the i-th "
            f"use; to repeat on purpose: random.clone(key)"
        )


# -- making keys ----------------------------------------------------------------------------


def key(seed: int | Tensor) -> Key:
    """The key of a seed.

    Args:
        seed: an int of at most 64 bits, or an integer tensor; of a tensor of several seeds a
            stack of keys.

    Returns:
        The key. All 64 bits count.

    Raises:
        TypeError: if ``seed`` is no integer.
        ValueError: if it does not fit in 64 bits.

    Example:
        >>> from parallax import random
        >>> random.key(42)
        Key(0x000000000000002a)
    """
    if isinstance(seed, Tensor):
        if seed.dtype.is_floating_point or seed.dtype.is_complex or seed.dtype is torch.bool:
            raise TypeError(f"key(seed): a seed is an integer, got a tensor of {seed.dtype}")
        if seed.device.type == "meta":
            raise TypeError("key(seed): a tensor on meta has no number to be a seed")
        return _key(seed.detach().to("cpu", torch.int64, copy=True))
    if not ops.is_int(seed):
        raise TypeError(f"key(seed): a seed is an int, got {seed!r} ({type(seed).__name__})")
    return _key(torch.tensor(ops.signed(seed, "key(seed)"), dtype=torch.int64, device="cpu"))


def from_state(state: torch.Generator | Tensor) -> Key:
    """The key of a generator's state, which is only read.

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
            f"got {type(state).__name__}"
        )
    return key(digest(given))


def split(key: Key, n: int = 2) -> Key:
    """Independent keys from one, which is used up.

    Args:
        key: a single key.
        n: how many, at least one.

    Returns:
        A stack of ``n`` keys: unpack it, index it, or map over it with ``torch.vmap``. The first
        ones do not depend on ``n``.

    Raises:
        KeyReusedError: if the key was used before.
        TypeError: if ``key`` or ``n`` is none.
        ValueError: if ``n`` is less than one.

    Source: Philox4x32-10 (see ``random.philox``); the ``i``-th key is half a block.

    Example:
        >>> from parallax import random
        >>> one, two, three = random.split(random.key(0), 3)
    """
    if not ops.is_int(n):
        raise TypeError(f"split(key, n): n is an int, got {n!r}")
    if n < 1:
        raise ValueError(f"split(key, n): n is at least 1, got {n}")
    data = data_of(key, "split()")
    children = ops.split(data, n)
    consume(data, "split()")
    return _key(children)


def fold_in(key: Key, data: int | str | Tensor) -> Key:
    """The key for the use that ``data`` names. It leaves ``key`` usable for other names.

    Args:
        key: a single key.
        data: an int of at most 64 bits, an integer tensor of no dimensions (a step counter in a
            compiled step), or a string.

    Returns:
        The key; equal data give the same, and an int and its string different ones.

    Raises:
        TypeError: if ``key`` is no key, or ``data`` is none of the above.
        ValueError: if an int does not fit in 64 bits.

    Example:
        >>> from parallax import random
        >>> key = random.key(0)
        >>> noise = [random.normal(random.fold_in(key, step)) for step in range(3)]
    """
    leaf = data_of(key, "fold_in()")
    if isinstance(data, str):
        return _key(ops.fold_in_name(leaf, data))
    if isinstance(data, Tensor):
        if data.dtype.is_floating_point or data.dtype.is_complex or data.ndim:
            raise TypeError(
                f"fold_in(key, data): a tensor must be an integer without dimensions, got "
                f"{data.dtype} of shape {tuple(data.shape)}"
            )
        return _key(ops.fold_in(leaf, data.detach().to("cpu", torch.int64)))
    if not ops.is_int(data):
        raise TypeError(f"fold_in(key, data): data is an int or a string, got {data!r}")
    return _key(ops.fold_in(leaf, ops.signed(data, "fold_in(key, data)")))


def clone(key: Key) -> Key:
    """The same key as if it were unused, to repeat its numbers on purpose.

    Args:
        key: a key or a stack of keys.

    Returns:
        A key of the same bits.

    Raises:
        TypeError: if ``key`` is no key.
    """
    if not isinstance(key, Key):
        raise TypeError(f"clone(key): expected a Key, got {type(key).__name__}")
    return _key(key.data.clone())


def data_of(key: Any, by: str) -> Tensor:
    """The leaf of a single key, checked.

    Raises:
        TypeError: if ``key`` is no key, or its leaf is not int64 on the CPU.
        ValueError: if it is a stack.
    """
    if type(key) is not Key:
        hint = "random.key(seed)" if isinstance(key, int) else "random.from_state(state)"
        raise TypeError(f"{by}: expected a Key, got {type(key).__name__}. Make one: {hint}")
    ops.check(key.data, by)
    return key.data
