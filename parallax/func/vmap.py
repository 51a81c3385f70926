"""``vmap``: a function of one, called with many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate

import torch
from torch import Tensor

from parallax._compat import checkpoints, dynamo, functorch
from parallax._errors.arguments import answered
from parallax.core.nodes import is_module
from parallax.func.arguments import called, check_chunk_size, check_in_dims, check_randomness, short
from parallax.func.batches import Sizes, are_loaded, give_sizes, sizes_inside, sizes_outside
from parallax.func.differentiated import Moving, filled, path_of
from parallax.func.dims import checked_dim, rng_dim, spread
from parallax.func.nesting import Nesting
from parallax.func.results import open_tensors
from parallax.func.signatures import A, P, R
from parallax.tree import core

__all__ = ["Batch", "run_flat", "vmap"]


@answered("func.vmap", "func.vmap(fn, in_dims=0, out_dims=0)(x)")
def vmap(
    func: Callable[Concatenate[A, P], R],
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: str = "error",
    *,
    chunk_size: int | None = None,
) -> Callable[Concatenate[A, P], R]:
    """``func`` mapped over a dimension of its arguments, as ``torch.func.vmap``.

    Modules may be arguments and results: each of their tensors is mapped, constants and holes pass
    through. A module that holds a stack of keys hands one to each member. Effects of modules that
    are arguments are collected outside, one for each member.

    Args:
        func: takes one member of each mapped argument.
        in_dims: which dimension of the arguments is mapped, ``None`` for what every member shares:
            one int for all, or a tuple with an entry for each positional argument, which is an
            int, ``None``, or a tree of these in the shape of the argument (or a prefix of it).
            Keyword arguments are shared.
        out_dims: where the mapped dimension stands in the results, as an int, ``None`` for what
            is the same for all members, or a tree of these.
        randomness: what torch's own random functions do inside: ``"error"``, ``"same"`` or
            ``"different"``. Draws of ``parallax.random`` follow their keys instead.
        chunk_size: how many members to compute at once; by default all.

    Returns:
        A function of stacked arguments.

    Raises:
        TypeError: when called, if ``in_dims`` is neither int nor tuple, or maps what is no tensor.
        ValueError: when called, if ``in_dims`` or ``out_dims`` does not fit, nothing is mapped, or
            two leaves have different sizes in the mapped dimension; the message names the paths.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, func, tree
        >>> class Scale(Module):
        ...     by: Parameter
        ...     def forward(self, x):
        ...         return self.by * x
        >>> both = tree.stack([Scale(torch.tensor(2.0)), Scale(torch.tensor(3.0))])
        >>> func.vmap(Scale.forward, in_dims=(0, None))(both, torch.ones(()))
        tensor([2., 3.])
    """
    what = called("vmap", func)
    check_in_dims(what, in_dims)
    check_randomness(what, randomness)
    check_chunk_size(what, chunk_size)

    @wraps(func, updated=())
    def mapped(*args: Any, **kwargs: Any) -> Any:
        nesting = Nesting(func, args, kwargs)
        batch = Batch(nesting.args, in_dims, what)
        outs = _Outputs(out_dims, what, batch.size)

        def flat(tensors: Sequence[Tensor]) -> list[Tensor]:
            result = nesting.call(batch.around(tensors))
            return [*outs.take(result), *nesting.emitted()]

        found = run_flat(flat, batch.tensors, batch.dims, batch.size, randomness, chunk_size)
        nesting.relay(found[outs.count :], batch.aside())
        return outs.give(found)

    return mapped


def run_flat(
    flat: Callable[[Sequence[Tensor]], list[Tensor]],
    tensors: Sequence[Tensor],
    dims: Sequence[int],
    size: int,
    randomness: str,
    chunk_size: int | None = None,
) -> Sequence[Tensor]:
    """Maps a function of a list of tensors to another; the mapped dimension comes out first."""
    if size == 0:
        # Torch's rules for vmap do not hold for no members: shapes come out wrong, or they raise.
        found = run_flat(flat, _with_one(tensors, dims), dims, 1, randomness)
        return [tensor.narrow(0, 0, 0) for tensor in found]
    whole = chunk_size is None or chunk_size >= size
    if dynamo.is_compiling() or not whole:
        return _run_by_torch(flat, tensors, dims, randomness, chunk_size)
    if not torch.is_grad_enabled():
        return functorch.run_vmap(flat, tensors, dims, size, randomness)
    # Recomputed in backward, when the vmap is over, a checkpoint would meet tensors of no vmap.
    with checkpoints.without_hooks():
        return functorch.run_vmap(flat, tensors, dims, size, randomness)


def _with_one(tensors: Sequence[Tensor], dims: Sequence[int]) -> list[Tensor]:
    """Tensors of no members, each with one in its place that is used to learn shapes.

    Its numbers are not all equal, so that few derivatives are infinite; integers are zeros, which
    are valid as indices.
    """
    made = []
    for tensor, dim in zip(tensors, dims, strict=True):
        shape = [1 if k == dim else size for k, size in enumerate(tensor.shape)]
        member = tensor.new_zeros(shape)
        if tensor.dtype.is_floating_point:
            ramp = torch.linspace(0.5, 1.5, member.numel(), device=tensor.device)
            member = member + ramp.reshape(shape).to(tensor.dtype)
        made.append(torch.cat([tensor, member], dim))
    return made


def _run_by_torch(
    flat: Callable[[Sequence[Tensor]], list[Tensor]],
    tensors: Sequence[Tensor],
    dims: Sequence[int],
    randomness: str,
    chunk_size: int | None,
) -> Sequence[Tensor]:
    def run(*members: Any) -> Any:
        return tuple(flat(members))

    mapped: Any = torch.func.vmap(run, tuple(dims), 0, randomness, chunk_size=chunk_size)
    if dynamo.is_compiling() or not torch.is_grad_enabled():
        return mapped(*tensors)  # type: ignore[no-any-return]  # a tuple of tensors
    with checkpoints.without_hooks():
        return mapped(*tensors)  # type: ignore[no-any-return]  # as above


_NONE: Mapping[int, Moving] = {}


class Batch:
    """The mapped tensors among the arguments of a call.

    Attributes:
        tensors: the tensors that are mapped.
        dims: the mapped dimension of each.
        size: how many members there are.
        parts: the mapped arguments.
        shared: by their index, the tensors that are mapped as copies of one for all members.
    """

    __slots__ = ("args", "dims", "parts", "shared", "size", "tensors")

    def __init__(
        self, args: tuple[Any, ...], in_dims: Any, what: str, copied: Mapping[int, Moving] = _NONE
    ) -> None:
        self.args = args
        self.parts: list[_Mapped] = []
        self.tensors: list[Tensor] = []
        self.dims: list[Any] = []
        for index, (arg, dim) in enumerate(_pairs(args, in_dims, what)):
            if dim is not None or index in copied:
                part = _Mapped(index, len(self.tensors))
                part.open(arg, dim, what, copied.get(index), self.tensors, self.dims)
                self.parts.append(part)
        pairs = zip(self.tensors, self.dims, strict=True)
        sizes = [tensor.shape[dim] for tensor, dim in pairs if dim is not None]
        if not sizes:
            raise ValueError(
                f"{what}: nothing is mapped, in_dims={in_dims!r} leaves no tensor with a "
                f"dimension. Map at least one argument: in_dims=(0, None)"
            )
        self.size: int = sizes[0]
        for size in sizes:
            if size != self.size:
                raise ValueError(self._uneven(in_dims, what))
        self.shared: dict[int, Tensor] = {}
        if len(sizes) < len(self.dims):
            for k, dim in enumerate(self.dims):
                if dim is None:
                    self.shared[k] = tensor = self.tensors[k]
                    self.tensors[k], self.dims[k] = tensor.expand(self.size, *tensor.shape), 0

    def around(self, tensors: Sequence[Tensor]) -> list[Any]:
        """The arguments around one member of each mapped tensor."""
        args = list(self.args)
        for part in self.parts:
            args[part.index] = part.around(tensors)
        return args

    def aside(self) -> bool:
        """Whether a leaf of a tree is mapped elsewhere than in its first dimension."""
        return any(
            any(self.dims[part.start : part.start + len(part.places)])
            for part in self.parts
            if not isinstance(self.args[part.index], Tensor)
        )

    def _uneven(self, in_dims: Any, what: str) -> str:
        """Names two leaves of different sizes."""
        found: list[tuple[str, int]] = []
        for index, (arg, dims) in enumerate(_pairs(self.args, in_dims, what)):
            leaves = [arg] if isinstance(arg, Tensor) else core.flatten(arg)[0]
            each = spread(dims, arg, f"{what}, in_dims", f"argument {index}")
            for place, (leaf, dim) in enumerate(zip(leaves, each, strict=True)):
                if leaf is not None and dim is not None:
                    found.append((_where(arg, index, place), leaf.shape[dim]))
        first = found[0]
        other = next((entry for entry in found if entry[1] != first[1]), None)
        if other is None:
            return f"{what}: the stack of keys of a module has another size than its leaves"
        lists = [arg for arg in self.args if isinstance(arg, (list, tuple))]
        several = any([is_module(item) for arg in lists for item in arg])
        stacked = "Map several modules as one: tree.stack(models). " if several else ""
        return (
            f"{what}: {first[0]} has {first[1]} members in the mapped dimension and {other[0]} "
            f"has {other[1]}. {stacked}Give None in in_dims for what every member shares"
        )


def _pairs(args: tuple[Any, ...], in_dims: Any, what: str) -> list[tuple[Any, Any]]:
    if not args:
        raise ValueError(f"{what}: called without positional arguments, so nothing is mapped")
    if isinstance(in_dims, int):
        return [(arg, in_dims) for arg in args]
    if len(in_dims) != len(args):
        raise ValueError(
            f"{what}: in_dims has {len(in_dims)} entries and {len(args)} positional arguments were "
            f"given. Write one for each: in_dims={('0',) + ('None',) * (len(args) - 1)}".replace(
                "'", ""
            )
        )
    return list(zip(args, in_dims, strict=True))


def _where(arg: Any, index: int, place: int) -> str:
    path = path_of(arg, place)
    if not path:
        return f"argument {index}"
    return f"{path} (argument {index})"


class _Mapped:
    """An argument of which leaves are mapped.

    Attributes:
        index: which argument it is.
        start: where its tensors start among all that are mapped.
        places: which of its leaves they are.
    """

    __slots__ = ("index", "keyed", "leaves", "places", "sizes", "spec", "start")

    def __init__(self, index: int, start: int) -> None:
        self.index = index
        self.start = start

    def open(
        self, arg: Any, dim: Any, what: str, copied: Moving | None, tensors: list[Any], dims: Any
    ) -> None:
        """Adds the mapped tensors of the argument, with ``None`` for the dimension of a copy."""
        opened = core.opened(arg) if copied is None else (copied.leaves, copied.spec)
        self.leaves, self.spec = opened
        self.keyed: list[int] = []
        self.sizes: Sizes = []
        if dim is None and copied is not None:
            self.places = copied.places
            tensors += copied.values
            dims += [None] * len(copied.values)
            return
        whole = type(dim) is int and dim >= 0
        wanted = () if whole else spread(dim, arg, f"{what}, in_dims", f"argument {self.index}")
        copies = () if copied is None else copied.places
        places: list[int] = []
        for place, leaf in enumerate(self.leaves):
            each: Any = dim if whole else wanted[place]
            if leaf is None or (each is None and place not in copies):
                continue
            if not (isinstance(leaf, Tensor) and type(each) is int and 0 <= each < leaf.dim()):
                each = checked_dim(leaf, each, f"{what}, in_dims", _where(arg, self.index, place))
            places.append(place)
            tensors.append(leaf)
            dims.append(each)
        self.places = places
        if self.spec.outer is not None and are_loaded():
            each_dim = [dim] * len(self.leaves) if whole else list(wanted)
            self.sizes = sizes_inside(arg, each_dim, f"{what}, in_dims")
        for place, rng in enumerate(self.spec.rngs):
            each = rng_dim(rng, dim)
            if each is not None:
                self.keyed.append(place)
                tensors.append(rng.key)
                dims.append(each)

    def around(self, members: Sequence[Tensor]) -> Any:
        """The argument around one member of each of its tensors."""
        stop = self.start + len(self.places)
        values: Any = members[self.start : stop]
        if len(values) < len(self.leaves):
            values = filled(list(self.leaves), self.places, values)
        if not self.keyed:
            tree = self.spec.build(values)
            return give_sizes(tree, self.sizes) if self.sizes else tree
        rngs = list(self.spec.rngs)
        keys = members[stop : stop + len(self.keyed)]
        for place, key in zip(self.keyed, keys, strict=True):
            rngs[place] = rngs[place].with_key(key)
        return give_sizes(self.spec.with_rngs(rngs).build(values), self.sizes)


class _Outputs:
    """What the mapped function returned, and where the mapped dimension goes in it."""

    __slots__ = ("close", "count", "dims", "out_dims", "shared", "size", "sizes", "what")

    def __init__(self, out_dims: Any, what: str, size: int) -> None:
        self.out_dims = out_dims
        self.size = size
        self.sizes: Sizes = []
        self.what = what
        self.dims: list[int | None] = []
        self.shared: list[Tensor] = []

    def take(self, result: Any) -> list[Tensor]:
        """The tensors that have a mapped dimension; keeps the rest."""
        if result is None:
            raise TypeError(f"{self.what}: the function returned nothing. End it with: return ...")
        tensors, self.close = open_tensors(result, self.what)
        if type(self.out_dims) is int:
            self.dims, self.shared = [self.out_dims] * len(tensors), []
            self.count = len(tensors)
            self._note_sizes(result)
            return tensors
        self.dims = self._dims(result, len(tensors))
        self._note_sizes(result)
        self.shared = [t for t, dim in zip(tensors, self.dims, strict=True) if dim is None]
        if not dynamo.is_compiling():
            for tensor in self.shared:
                if functorch.level_of(tensor) == functorch.current_level():
                    raise ValueError(
                        f"{self.what}: out_dims is None for a result that differs between "
                        f"members. Give it a dimension: out_dims=0"
                    )
        mapped = [t for t, dim in zip(tensors, self.dims, strict=True) if dim is not None]
        self.count = len(mapped)
        return mapped

    def _note_sizes(self, result: Any) -> None:
        if are_loaded() and not isinstance(result, Tensor) and not is_module(result):
            what = f"{self.what}, out_dims"
            dims = spread(self.out_dims, result, what, "the result")
            self.sizes = sizes_outside(result, dims, self.size, what)

    def _dims(self, result: Any, count: int) -> list[int | None]:
        dims = self.out_dims
        if dims is None:
            return [None] * count
        if isinstance(result, Tensor):
            if isinstance(dims, tuple) and len(dims) == 1:
                return list(dims)
            raise ValueError(
                f"{self.what}: out_dims={short(dims)} is a {type(dims).__name__}, and the function "
                f"returned one tensor. Give an int or None"
            )
        leaves = core.flatten(result)[0]
        wanted = spread(dims, result, f"{self.what}, out_dims", "the result")
        pairs = zip(leaves, wanted, strict=True)
        return [dim for leaf, dim in pairs for _ in open_tensors(leaf, self.what)[0]]

    def give(self, found: Sequence[Tensor]) -> Any:
        """The result around stacked tensors."""
        stacked, shared = iter(found), iter(self.shared)
        values = []
        for dim in self.dims:
            if dim is None:
                values.append(next(shared))
            else:
                tensor = next(stacked)
                if dim and not -tensor.dim() <= dim < tensor.dim():
                    raise ValueError(
                        f"{self.what}: out_dims={dim} for a result that has "
                        f"{tensor.dim() - 1} dimensions and gets one more. "
                        f"Give one from {-tensor.dim()} to {tensor.dim() - 1}"
                    )
                values.append(tensor if dim == 0 else tensor.movedim(0, dim))
        return give_sizes(self.close(values), self.sizes)
