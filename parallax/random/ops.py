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
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, modes
from parallax._errors.arguments import shown
from parallax.random import philox
from parallax.random.seeds import Twister

__all__ = ["bits", "check", "exponential", "fold_in", "fold_in_name", "gumbel", "is_int",
           "is_plain", "normal", "permutation", "randint", "signed", "split",
           "uniform"]  # fmt: skip

P = ParamSpec("P")
# The highest word of Philox's counter: no child of one kind is ever one of another.
_SPLIT, _FOLD_INT, _FOLD_NAME, _DEVICE_DRAW = 1, 2, 3, 4
_LAST = torch.iinfo(torch.int64).max
_NARROW = 2**16  # ranges up to this width need no correction
_STEP = 2.0**-24  # between two uniform numbers of single precision
_HALF_STEP = 2.0**-54  # half of what is between two of double precision
_COARSE = 2.0**-10  # shares that are nearer to zero or one get more bits
_FEW = 32  # up to this many children are computed with Python integers
_twister = Twister()


def is_plain(data: Any) -> bool:
    """Whether this is an ordinary tensor in eager code, to be computed past the dispatcher."""
    return (
        not dynamo.is_compiling()
        and type(data) is Tensor
        and not functorch.is_wrapped(data)
        and not modes.dispatch_mode_active()
    )


def check(data: Any, by: str, *, single: bool = True) -> None:
    """Checks the leaf of a key.

    Raises:
        TypeError: if it is not an int64 tensor on the CPU.
        ValueError: if it is a stack and ``single``.
    """
    if not isinstance(data, Tensor):
        raise TypeError(
            f"{by}: a key holds an int64 tensor, got {shown(data)}. Make one: random.key(seed)"
        )
    if data.dtype is not torch.int64:
        raise TypeError(
            f"{by}: a key holds int64, got {data.dtype}. Cast a tree by "
            f"tree.to(tree, dtype=...), which leaves keys as they are"
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


def is_int(value: Any) -> bool:
    """Whether this is an int, or stands for one while a graph is traced; ``True`` is not."""
    return not isinstance(value, bool) and isinstance(value, (int, torch.SymInt))


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


# -- registration ---------------------------------------------------------------------------


def _operator(
    schema: str, fake: Callable[..., Tensor]
) -> Callable[[Callable[Concatenate[Tensor, P], Tensor]], Callable[Concatenate[Tensor, P], Tensor]]:
    """Makes a function of a stack of keys an operator, passed by for plain tensors."""

    def define(
        run: Callable[Concatenate[Tensor, P], Tensor],
    ) -> Callable[Concatenate[Tensor, P], Tensor]:
        name = run.__name__
        op = torch.library.custom_op(f"parallax::{name}", run, mutates_args=(), schema=schema)
        op.register_fake(fake)
        dispatch = getattr(torch.ops.parallax, name)
        op.register_vmap(lambda _, dims, key, *rest: (dispatch(_front(key, dims[0]), *rest), 0))

        @wraps(run)
        def call(key: Tensor, *args: P.args, **kwargs: P.kwargs) -> Tensor:
            if is_plain(key):
                return run(key, *args, **kwargs)
            return dispatch(key, *args, **kwargs)  # type: ignore[no-any-return]  # a Tensor

        return call  # type: ignore[return-value]  # mypy insists on the name of `key`

    return define


def _front(tensor: Tensor, dim: int | None) -> Tensor:
    return tensor if dim is None else tensor.movedim(dim, 0)


def _shaped(key: Tensor, shape: Sequence[int], *options: Any) -> Tensor:
    *_, dtype, device = options
    return key.new_empty((*key.shape, *shape), dtype=dtype, device=device)


def _words(key: Tensor, n: int, device: torch.device) -> Tensor:
    return key.new_empty((*key.shape, n), device=device)


# -- children -------------------------------------------------------------------------------


@_operator("(Tensor key, SymInt n) -> Tensor", lambda key, n: key.new_empty((*key.shape, n)))
def split(key: Tensor, n: int) -> Tensor:
    """``n`` children of each key, in a new last dimension."""
    if n <= _FEW and key.ndim == 0:
        seed = int(key.item())
        children: list[int] = []
        for block in range((n + 1) // 2):
            children += philox.halves(seed, block, _SPLIT)
        return torch.tensor(children[:n], dtype=torch.int64, device="cpu")
    index = torch.arange((n + 1) // 2, dtype=torch.int64, device="cpu")
    halves = philox.tensor_halves(key.unsqueeze(-1), index, _SPLIT)
    return torch.stack(halves, -1).flatten(-2)[..., :n].contiguous()


def fold_in(key: Tensor, data: Any) -> Tensor:
    """The child of each key that an int, or an int64 tensor without dimensions, names."""
    if is_plain(key) and (not isinstance(data, Tensor) or is_plain(data)):
        return _fold(key, data, _FOLD_INT)
    if not isinstance(data, Tensor):
        data = torch.full((), data, dtype=torch.int64, device="cpu")
    return torch.ops.parallax.fold_in(key, data)  # type: ignore[no-any-return]  # a Tensor


@_operator("(Tensor key, str name) -> Tensor", lambda key, name: torch.empty_like(key))
def fold_in_name(key: Tensor, name: str) -> Tensor:
    """The child of each key that a string names."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return _fold(key, int.from_bytes(digest, "little", signed=True), _FOLD_NAME)


def _fold(key: Tensor, data: Any, domain: int) -> Tensor:
    if key.ndim == 0 and (not isinstance(data, Tensor) or data.ndim == 0):
        child = philox.halves(int(key.item()), int(data), domain)[0]
        return torch.tensor(child, dtype=torch.int64, device="cpu")
    index = torch.as_tensor(data, dtype=torch.int64, device="cpu")
    return philox.tensor_halves(key, index, domain)[0].contiguous()


@torch.library.custom_op(
    "parallax::fold_in", mutates_args=(), schema="(Tensor key, Tensor data) -> Tensor"
)
def _fold_in(key: Tensor, data: Tensor) -> Tensor:
    return _fold(key, data, _FOLD_INT)


@_fold_in.register_fake
def _(key: Tensor, data: Tensor) -> Tensor:
    return torch.empty_like(key + data)  # they broadcast


@_fold_in.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], key: Tensor, data: Tensor) -> tuple[Tensor, int]:
    pairs = list(zip((key, data), in_dims, strict=True))
    most = max(tensor.ndim - (dim is not None) for tensor, dim in pairs)
    aligned = []
    for tensor, dim in pairs:
        front = _front(tensor, dim)
        mapped, rest = front.shape[: dim is not None], front.shape[dim is not None :]
        aligned.append(front.reshape((*mapped, *(1,) * (most - len(rest)), *rest)))
    return _fold_in(*aligned), 0


# -- draws ----------------------------------------------------------------------------------

_DRAW = "(Tensor key, SymInt[] shape, ScalarType dtype, Device device) -> Tensor"
_WORDS = "(Tensor key, SymInt n, Device device) -> Tensor"


@_operator(_DRAW, _shaped)
def normal(key: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal numbers."""
    return _filled(key, shape, dtype, device, lambda out, g: out.normal_(generator=g))


@_operator(_DRAW, _shaped)
def uniform(key: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers from the uniform distribution on [0, 1)."""
    return _filled(key, shape, dtype, device, lambda out, g: out.uniform_(generator=g))


@_operator(
    "(Tensor key, SymInt[] shape, SymInt low, SymInt last, ScalarType dtype, Device device)"
    " -> Tensor",
    _shaped,
)
def randint(  # the arguments of the operator
    key: Tensor,
    shape: Sequence[int],
    low: int,
    last: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Integers from ``low`` to ``last``, which may be the largest there is."""
    return _filled(key, shape, dtype, device, lambda out, g: _fill_between(out, low, last, g))


def _fill_between(out: Tensor, low: int, last: int, generator: torch.Generator) -> None:
    """Fills a tensor with integers, all of them equally likely.

    Torch takes random words modulo the width. That is exact for powers of two, and makes some
    numbers likelier than others by width / 2**32 or / 2**64 otherwise, which is too little to be
    seen in narrow ranges. In wide ones a word is drawn again if it is above the last multiple.
    """
    width = last - low + 1
    if width <= _NARROW or width & (width - 1) == 0:
        high = None if last == _LAST else last + 1
        out.random_(low, high, generator=generator)
        return
    words = torch.empty_like(out, dtype=torch.int64).view(-1)
    if width > _LAST:  # more than half of all words
        _fill_until(words, lambda x: (x >= low) & (x <= last), -_LAST - 1, generator)
        out.view(-1).copy_(words)
    else:
        limit = (_LAST + 1) // width * width
        _fill_until(words, lambda x: x < limit, 0, generator)
        out.view(-1).copy_(words.fmod_(width).add_(low))


def _fill_until(
    words: Tensor, accept: Callable[[Tensor], Tensor], low: int, generator: torch.Generator
) -> None:
    """Fills a tensor with words of at least ``low``, each drawn again until it is accepted."""
    words.random_(low, None, generator=generator)
    accepted = accept(words)
    if accepted.all():  # the usual case, and much faster than to look for the others
        return
    again = accepted.logical_not_().nonzero().view(-1)
    while again.numel():
        fresh = torch.empty_like(again).random_(low, None, generator=generator)
        words[again] = fresh
        again = again[~accept(fresh)]


@_operator(_DRAW, _shaped)
def exponential(
    key: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Numbers from the exponential distribution of rate one, of single or double precision."""
    return _filled(key, shape, dtype, device, lambda out, g: _fill_by_inverse(out, g, _waiting))


@_operator(_DRAW, _shaped)
def gumbel(key: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers from the standard Gumbel distribution, of single or double precision."""
    return _filled(key, shape, dtype, device, lambda out, g: _fill_by_inverse(out, g, _extreme))


def _waiting(share: Tensor, rest: Tensor | None = None) -> Tensor:
    """The waiting time that a share is shorter than; overwrites its arguments."""
    return share.neg_().log1p_().neg_() if rest is None else rest.log_().neg_()


def _extreme(share: Tensor, rest: Tensor | None = None) -> Tensor:
    """The extreme value that a share is less than; overwrites its arguments."""
    return (share.log_() if rest is None else rest.neg_().log1p_()).neg_().log_().neg_()


def _fill_by_inverse(
    out: Tensor, generator: torch.Generator, inverse: Callable[..., Tensor]
) -> None:
    """Fills a tensor by the inverse of a distribution function, at uniform shares of one.

    A share is a multiple of 2**-24 in single precision. Near zero and one that is too coarse: the
    tails would end, and have steps. There more bits are drawn, of the share or of what is left.

    Args:
        out: a tensor of single or double precision.
        generator: fills it.
        inverse: of a share, or of what is left to one beside it.
    """
    share = out.uniform_(generator=generator).view(-1)
    if out.dtype is torch.float64:
        inverse(share.clamp_min_(_HALF_STEP))
        return
    places = ((share - 0.5).abs_() >= 0.5 - _COARSE).nonzero().view(-1)
    coarse = share[places].double()
    more = torch.empty_like(coarse).uniform_(generator=generator)
    more.add_(_HALF_STEP).mul_(_STEP)  # within a step, never zero
    low, high = inverse(coarse + more), inverse(coarse, 1 - _STEP - coarse + more)
    inverse(share)
    share[places] = torch.where(coarse < 0.5, low, high).to(share.dtype)


@_operator(_WORDS, _words)
def bits(key: Tensor, n: int, device: torch.device) -> Tensor:
    """``n`` int64 words of random bits."""
    low = -(2**63)
    return _filled(
        key, (n,), torch.int64, device, lambda out, g: out.random_(low, None, generator=g)
    )


@_operator(_WORDS, _words)
def permutation(key: Tensor, n: int, device: torch.device) -> Tensor:
    """The integers below ``n`` in random order, int64."""
    return _filled(
        key, (n,), torch.int64, device, lambda out, g: torch.randperm(n, generator=g, out=out)
    )


def _filled(
    key: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    fill: Callable[[Tensor, torch.Generator], object],
) -> Tensor:
    """A new tensor of shape ``(*key.shape, *shape)``, each key's part filled by its generator."""
    # Within vmap torch refuses to fill even a tensor that is not mapped.
    with functorch.outside_transforms():
        out = torch.empty((*key.shape, *shape), dtype=dtype, device=device)
        if device.type == "meta":
            return out
        if key.ndim == 0:
            fill(out, _generator(int(key.item()), device))
            return out
        rows = out.view(key.numel(), *shape)
        for seed, row in zip(key.reshape(-1).tolist(), rows, strict=True):
            fill(row, _generator(seed, device))
        return out


def _generator(seed: int, device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return _twister.seeded(seed)
    own = philox.halves(seed, 0, _DEVICE_DRAW)[0] % 2**63
    return torch.Generator(device=device).manual_seed(own)
