"""The operators beneath keys and draws: the same numbers in eager, vmap, grad, jvp and compile.

Each is a ``torch.library.custom_op`` over a stack of keys, so that its rule under ``vmap`` is to
move the mapped dimension to the front. The dispatcher costs some 50 us, so plain eager tensors
are computed past it.

Draws on the CPU fill a tensor from a ``torch.Generator`` whose whole state comes from the key
(MT19937, seeded by SHAKE-128): bulk numbers at native speed. Draws on another device use its own
generator (Philox on CUDA) with a 64-bit seed from the key, so they are other numbers there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax import _compat
from parallax.random import philox
from parallax.random.seeds import Twister

__all__ = ["bits", "check", "fold_in", "fold_in_name", "is_plain", "normal", "permutation",
           "randint", "signed", "split", "uniform"]  # fmt: skip

# The highest word of Philox's counter: no child of one kind is ever one of another.
_SPLIT, _FOLD_INT, _FOLD_NAME, _DEVICE_DRAW = 1, 2, 3, 4
_FEW = 32  # up to so many children are computed by Python integers
_twister = Twister()


def is_plain(data: Any) -> bool:
    """Whether this is an ordinary tensor in eager code, to be computed past the dispatcher."""
    return (
        not _compat.is_compiling()
        and type(data) is Tensor
        and not _compat.is_wrapped(data)
        and not _compat.dispatch_mode_active()
    )


def check(data: Any, by: str, *, single: bool = True) -> None:
    """Checks the leaf of a key.

    Raises:
        TypeError: if it is not an int64 tensor on the CPU.
        ValueError: if it is a stack and ``single``.
    """
    if not isinstance(data, Tensor):
        raise TypeError(f"{by}: a key holds an int64 tensor, got {type(data).__name__}")
    if data.dtype is not torch.int64:
        raise TypeError(
            f"{by}: a key holds int64, got {data.dtype}. Casts of a whole tree must leave keys "
            f"alone, as module.to(dtype) and tree.cast do"
        )
    if data.device.type != "cpu":
        raise TypeError(
            f"{by}: a key lives on the CPU, got {data.device}. Draw on a device by "
            f"random.normal(key, shape, device={str(data.device)!r})"
        )
    if single and data.ndim:
        raise ValueError(
            f"{by}: expected a single key, got a stack of shape {tuple(data.shape)}. Take one, "
            f"keys[0], or map over them: torch.vmap(fn)(keys)"
        )


def signed(value: Any, by: str) -> Any:
    """An int of at most 64 bits as the signed one of the same bits.

    Raises:
        ValueError: if it has more bits.
    """
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"{by}: expected at most 64 bits, got {value}")
        return value - 2**64 if value >= 2**63 else value
    return value


# -- children -------------------------------------------------------------------------------


def split(key: Tensor, n: int) -> Tensor:
    """``n`` children of each key, in a new last dimension."""
    if is_plain(key):
        return _split(key, n)
    return torch.ops.parallax.split(key, n)  # type: ignore[no-any-return]  # a Tensor


def _split(key: Tensor, n: int) -> Tensor:
    if n <= _FEW and key.ndim == 0:
        seed, children = key.item(), []
        for index in range((n + 1) // 2):
            children += philox.halves(seed, index, _SPLIT)  # type: ignore[arg-type]  # an int
        return torch.tensor(children[:n], dtype=torch.int64, device="cpu")
    index = torch.arange((n + 1) // 2, dtype=torch.int64, device="cpu")
    halves = philox.tensor_halves(key.unsqueeze(-1), index, _SPLIT)
    return torch.stack(halves, -1).flatten(-2)[..., :n].contiguous()


def fold_in(key: Tensor, data: Any) -> Tensor:
    """The child of each key that an int, or an int64 tensor without dimensions, names."""
    if not is_plain(key) or (isinstance(data, Tensor) and not is_plain(data)):
        if not isinstance(data, Tensor):
            data = torch.full((), data, dtype=torch.int64, device="cpu")
        return torch.ops.parallax.fold_in(key, data)  # type: ignore[no-any-return]  # a Tensor
    return _fold(key, data, _FOLD_INT)


def fold_in_name(key: Tensor, name: str) -> Tensor:
    """The child of each key that a string names."""
    if not is_plain(key):
        return torch.ops.parallax.fold_in_name(key, name)  # type: ignore[no-any-return]  # a Tensor
    return _fold_name(key, name)


def _fold(key: Tensor, data: Any, domain: int) -> Tensor:
    if key.ndim == 0 and (not isinstance(data, Tensor) or data.ndim == 0):
        child = philox.halves(key.item(), int(data), domain)[0]  # type: ignore[arg-type]  # an int
        return torch.tensor(child, dtype=torch.int64, device="cpu")
    index = torch.as_tensor(data, dtype=torch.int64, device="cpu")
    return philox.tensor_halves(key, index, domain)[0].contiguous()


def _fold_name(key: Tensor, name: str) -> Tensor:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return _fold(key, int.from_bytes(digest, "little", signed=True), _FOLD_NAME)


# -- draws ----------------------------------------------------------------------------------

Fill = Callable[[Tensor, torch.Generator], object]


def _filled(
    key: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device, fill: Fill
) -> Tensor:
    """A new tensor of shape ``(*key.shape, *shape)``, each key's part filled by its generator."""
    # Within vmap torch refuses to fill even a tensor that is not mapped.
    with _compat.outside_transforms():
        out = torch.empty((*key.shape, *shape), dtype=dtype, device=device)
        if device.type == "meta":
            return out
        if key.ndim == 0:
            fill(out, _generator(key.item(), device))  # type: ignore[arg-type]  # an int
            return out
        rows = out.view(key.numel(), *shape)
        for seed, row in zip(key.reshape(-1).tolist(), rows, strict=True):
            fill(row, _generator(seed, device))
        return out


def _generator(seed: int, device: torch.device) -> torch.Generator:
    if device.type != "cpu":
        own = philox.halves(seed, 0, _DEVICE_DRAW)[0] % 2**63
        return torch.Generator(device=device).manual_seed(own)
    return _twister.seeded(seed)


def normal(key: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal numbers."""
    if is_plain(key):
        return _normal(key, shape, dtype, device)
    return torch.ops.parallax.normal(key, shape, dtype, device)  # type: ignore[no-any-return]  # a Tensor


def _normal(key: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return _filled(key, shape, dtype, device, lambda out, g: out.normal_(generator=g))


def uniform(key: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers from the uniform distribution on [0, 1)."""
    if is_plain(key):
        return _uniform(key, shape, dtype, device)
    return torch.ops.parallax.uniform(key, shape, dtype, device)  # type: ignore[no-any-return]  # a Tensor


def _uniform(key: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return _filled(key, shape, dtype, device, lambda out, g: out.uniform_(generator=g))


def bits(key: Tensor, n: int, device: torch.device) -> Tensor:
    """``n`` int64 words of random bits."""
    if is_plain(key):
        return _bits(key, n, device)
    return torch.ops.parallax.bits(key, n, device)  # type: ignore[no-any-return]  # a Tensor


def _bits(key: Tensor, n: int, device: torch.device) -> Tensor:
    fill: Fill = lambda out, g: out.random_(-(2**63), None, generator=g)  # noqa: E731
    return _filled(key, (n,), torch.int64, device, fill)


def randint(
    key: Tensor,
    shape: Sequence[int],
    low: int,
    high: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Integers from ``low`` up to and without ``high``."""
    if is_plain(key):
        return _randint(key, shape, low, high, dtype, device)
    return torch.ops.parallax.randint(key, shape, low, high, dtype, device)  # type: ignore[no-any-return]  # a Tensor


def _randint(
    key: Tensor,
    shape: Sequence[int],
    low: int,
    high: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    fill: Fill = lambda out, g: out.random_(low, high, generator=g)  # noqa: E731
    return _filled(key, shape, dtype, device, fill)


def permutation(key: Tensor, n: int, device: torch.device) -> Tensor:
    """The integers below ``n`` in random order, int64."""
    if is_plain(key):
        return _permutation(key, n, device)
    return torch.ops.parallax.permutation(key, n, device)  # type: ignore[no-any-return]  # a Tensor


def _permutation(key: Tensor, n: int, device: torch.device) -> Tensor:
    fill: Fill = lambda out, g: torch.randperm(n, generator=g, out=out)  # noqa: E731
    return _filled(key, (n,), torch.int64, device, fill)


# -- registration ---------------------------------------------------------------------------


def _front(tensor: Tensor, dim: int | None) -> Tensor:
    return tensor if dim is None else tensor.movedim(dim, 0)


def _define(
    name: str, run: Callable[..., Tensor], schema: str, fake: Callable[..., Tensor]
) -> None:
    """Registers an operator whose only tensor is a key: ``run`` takes stacks of keys as it is."""
    op = torch.library.custom_op(f"parallax::{name}", run, mutates_args=(), schema=schema)
    op.register_fake(fake)

    def vmap(_: Any, in_dims: tuple[Any, ...], key: Tensor, *rest: Any) -> tuple[Tensor, int]:
        return op(_front(key, in_dims[0]), *rest), 0

    op.register_vmap(vmap)


def _shaped(key: Tensor, shape: Sequence[int], dtype: torch.dtype, device: Any) -> Tensor:
    return key.new_empty((*key.shape, *shape), dtype=dtype, device=device)


_define("split", _split, "(Tensor key, SymInt n) -> Tensor",
        lambda key, n: key.new_empty((*key.shape, n)))  # fmt: skip
_define("fold_in_name", _fold_name, "(Tensor key, str name) -> Tensor",
        lambda key, name: torch.empty_like(key))  # fmt: skip
_define("normal", _normal, "(Tensor key, SymInt[] shape, ScalarType dtype, Device device) -> Tensor",
        _shaped)  # fmt: skip
_define("uniform", _uniform,
        "(Tensor key, SymInt[] shape, ScalarType dtype, Device device) -> Tensor", _shaped)  # fmt: skip
_define("bits", _bits, "(Tensor key, SymInt n, Device device) -> Tensor",
        lambda key, n, device: _shaped(key, (n,), torch.int64, device))  # fmt: skip
_define("randint", _randint,
        "(Tensor key, SymInt[] shape, int low, int high, ScalarType dtype, Device device) -> Tensor",
        lambda key, shape, low, high, dtype, device: _shaped(key, shape, dtype, device))  # fmt: skip
_define("permutation", _permutation, "(Tensor key, SymInt n, Device device) -> Tensor",
        lambda key, n, device: _shaped(key, (n,), torch.int64, device))  # fmt: skip


@torch.library.custom_op(
    "parallax::fold_in", mutates_args=(), schema="(Tensor key, Tensor data) -> Tensor"
)
def _fold_in_op(key: Tensor, data: Tensor) -> Tensor:
    return _fold(key, data, _FOLD_INT)


@_fold_in_op.register_fake
def _(key: Tensor, data: Tensor) -> Tensor:
    return key.new_empty(torch.broadcast_shapes(key.shape, data.shape))


@_fold_in_op.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, int | None], key: Tensor, data: Tensor
) -> tuple[Tensor, int]:
    ranks = [t.ndim - (d is not None) for t, d in zip((key, data), in_dims, strict=True)]
    aligned = []
    for tensor, dim, rank in zip((key, data), in_dims, ranks, strict=True):
        front = _front(tensor, dim)
        missing = (1,) * (max(ranks) - rank)
        lead = front.shape[: dim is not None]
        aligned.append(front.reshape((*lead, *missing, *front.shape[len(lead) :])))
    return _fold_in_op(*aligned), 0
