"""Equal blocks whose leaves are stacked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor
from typing_extensions import TypeVar

from parallax import effects, tree
from parallax._compat import dynamo, functorch, repeat
from parallax._errors.arguments import check_flags, check_module
from parallax.core import notes
from parallax.core.fields import Lazy
from parallax.core.module import Module
from parallax.core.registry import flatten_module, unflatten_module
from parallax.effects import collection
from parallax.func.checkpoint import checkpoint
from parallax.nn.arguments import positive
from parallax.random.initialize import Several
from parallax.tree.arguments import check_trees

__all__ = ["Stack"]

B = TypeVar("B", bound=Module, default=Any)  # the block
One = TypeVar("One", bound=Module)


class Stack(Module, Generic[B]):
    """Equal blocks, one after the other, held as one block whose leaves are stacked.

    It computes what a tuple of blocks computes, with the number of leaves of one block. So every
    method and every optimizer works on few large tensors, and compiling takes as long as for one
    block. Each block has the initial values that it would have in a tuple, its own random numbers,
    and its own effects.

    In compiled code one block is traced and compiled, forward and backward, and called ``count``
    times. Blocks that change the shape or dtype of their input, or that draw from torch's own
    random state, are compiled one by one. A second derivative in compiled code, and the gradient
    for a batch of unknown size, compute each block once more, as ``checkpoint`` does.

    Args:
        block: takes its input to something of the same shape; not initialized, so that each of
            the blocks gets values of its own.
        count: how many blocks.
        checkpoint: compute each block once more in backward, instead of keeping what it computed:
            ``func.checkpoint`` of each.

    Shape:
        - input: what the block takes; further arguments are given to each block
        - output: as the input

    Raises:
        TypeError: if ``block`` is not a module, or ``count`` not an int.
        ValueError: if ``count`` is not positive.

    Example:
        >>> stack = nn.Stack(nn.Residual(nn.Linear(4, 4)), 12).initialize(0)
        >>> stack.block.inner.weight.shape
        torch.Size([12, 4, 4])
        >>> stack(torch.ones(2, 4)).shape
        torch.Size([2, 4])
        >>> stack[3]
        Residual(
          (inner): Linear(in_features=4, out_features=4, bias=True)
        )
    """

    block: B
    count: int
    checkpoint: bool

    __repeats__: ClassVar[bool] = True

    def __init__(self, block: B, count: int, *, checkpoint: bool = False) -> None:
        super().__init__()
        check_module("Stack", block, "block")
        check_flags("Stack", checkpoint=checkpoint)
        positive("Stack", count=count)
        leaves, structure = flatten_module(block)
        pairs = zip(leaves, structure.paths, strict=True)
        several = [_several(leaf, path, count) for leaf, path in pairs]
        self.block = unflatten_module(structure, several, block._rng)
        self.count = count
        self.checkpoint = checkpoint

    @classmethod
    def of(cls, blocks: Sequence[One], *, checkpoint: bool = False) -> Stack[One]:
        """A stack of existing blocks.

        Args:
            blocks: modules that differ only in the values of their leaves.
            checkpoint: as above.

        Raises:
            ValueError: if two differ in anything else; the message names where.

        Example:
            >>> import torch
            >>> from parallax import nn
            >>> blocks = [nn.Linear(2, 2).initialize(seed) for seed in range(3)]
            >>> stack = nn.Stack.of(blocks)
            >>> torch.equal(stack[2].weight, blocks[2].weight)
            True
        """
        several = check_trees("Stack.of", blocks, "blocks", "Stack.of([one, two])")
        stacked = tree.stack(several)
        stack: Any = cls(several[0], len(several), checkpoint=checkpoint).replace(block=stacked)
        return stack  # type: ignore[no-any-return]  # of the class of the blocks

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """What the last block returns, where each is called with what the one before returned."""
        if collection.source_of(self._rng) is not self._rng:
            return self._collected(input, args, kwargs)
        if dynamo.is_compiling() and isinstance(input, Tensor) and not self._is_left_to_torch():
            return self._repeated(input, args, kwargs)
        recompute = self.checkpoint and torch.is_grad_enabled() and self.mode == "train"
        value, blocks = input, self._blocks()
        for block in blocks:
            if recompute:
                value = checkpoint(block)(value, *args, **kwargs)
            else:
                value = block(value, *args, **kwargs)
        return value

    def _is_left_to_torch(self) -> bool:
        """Whether torch's checkpoint decides in compiled code what is computed once more."""
        return self.checkpoint and not functorch.traced_level()

    def _repeated(self, input: Tensor, args: Any, kwargs: Any) -> Any:
        """Calls the blocks as a function that is traced and compiled once."""
        stacked, structure = flatten_module(self.block)
        present = [k for k, leaf in enumerate(stacked) if leaf is not None]
        held_keys = [None if rng is None else rng.key for rng in self._rngs()]
        keys = [key for key in held_keys if key is not None]
        stacks = [stacked[k] for k in present]
        if keys:
            stacks.append(torch.stack(keys))
        rng: Any = self._rng

        def call(value: Tensor, *rows: Tensor) -> Tensor:
            leaves: list[Any] = [None] * len(stacked)
            for k, row in zip(present, rows[: len(present)], strict=True):
                leaves[k] = row
            held = rng.with_key(rows[-1]) if keys else rng
            block = unflatten_module(structure, leaves, held)
            return block(value, *args, **kwargs)  # type: ignore[no-any-return]  # checked by dynamo

        return repeat.repeated(call, input, stacks, self.count, self.checkpoint)

    def _collected(self, input: Any, args: Any, kwargs: Any) -> Any:
        """Calls the blocks, and emits what each of them emits, stacked."""

        def run(block: Any, value: Any) -> Any:
            return block(value, *args, **kwargs)

        call = effects.collect(run)
        value, before, after = input, [], []
        blocks = self._blocks()
        for block in blocks:
            value, changed = call(block, value)
            before.append(_taken(block)[0])
            after.append(_taken(changed)[0])
        _, paths = _taken(self.block)
        for path, old, new in zip(
            paths, zip(*before, strict=True), zip(*after, strict=True), strict=True
        ):
            if any([one is not two for one, two in zip(old, new, strict=True)]):
                _at(self.block, path).emit(**{path[-1]: torch.stack(new)})
        return value

    def _members(self) -> tuple[list[tuple[list[Any], Any]], Callable[..., Any]]:
        """The leaves and the rng of each block, and what builds a block from them."""
        stacked, structure = flatten_module(self.block)
        build = partial(unflatten_module, structure)
        columns = [_unstacked(leaf, self.count) for leaf in stacked]
        leaves = [[column[k] for column in columns] for k in range(self.count)]
        return list(zip(leaves, self._rngs(), strict=True)), build

    def _rngs(self) -> list[Any]:
        """The rng of each block."""
        path = notes.note_of(self).path or ""
        return [_rng_of(self._rng, notes.joined(path, k)) for k in range(self.count)]

    def _blocks(self) -> list[B]:
        members, build = self._members()
        return [build(leaves, rng) for leaves, rng in members]

    @staticmethod
    def __copies__(names: dict[str, Any]) -> list[tuple[str, Any]]:
        return [(f"[{k}]", block) for k, block in enumerate(names.get("blocks", ()))]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[B]:
        return iter(self._blocks())

    def __getitem__(self, index: int) -> B:
        return self._blocks()[index]

    def extra_repr(self) -> str:
        """Empty, as the blocks themselves are shown."""
        return "checkpoint=True" if self.checkpoint else ""

    def __shown__(self) -> list[tuple[str, Any]]:
        label = "0" if self.count == 1 else f"0-{self.count - 1}"
        return [(label, self._blocks()[0])]


def _several(leaf: Any, path: str, count: int) -> Any:
    """The leaf of all blocks, from that of one."""
    if isinstance(leaf, Lazy):
        several = Several(leaf, ("block", path), count)
        return type(leaf)((count, *leaf.shape), several, dtype=leaf.dtype)
    return None if leaf is None else leaf.expand(count, *leaf.shape).clone()


def _unstacked(leaf: Any, count: int) -> Sequence[Any]:
    """The leaf of each block, from that of all."""
    if leaf is None:
        return [None] * count
    if isinstance(leaf, Lazy):
        several: Any = leaf.init
        return [several.member] * count
    return leaf.unbind(0)  # type: ignore[no-any-return]  # a tuple of tensors


def _rng_of(rng: Any, name: str) -> Any:
    """The rng of one block, from that of the stack."""
    source = collection.source_of(rng)
    return rng if source is None else collection.with_source(rng, source.child(name))


def _taken(module: Any) -> tuple[list[Any], list[tuple[str, ...]]]:
    """The leaves of a module, and the path of each."""
    found, structure = flatten_module(module)
    return list(found), [tuple(path.split(".")) for path in structure.paths]


def _at(module: Any, path: tuple[str, ...]) -> Any:
    """The module that a path's last part belongs to."""
    for name in path[:-1]:
        if isinstance(module, tuple):
            module = module[int(name)]
        else:
            module = module[name] if isinstance(module, dict) else getattr(module, name)
    return module
