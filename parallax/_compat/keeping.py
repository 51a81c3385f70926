"""Results of operators that are kept, for a function that is computed once more.

On autograd's tape that is torch's selective checkpoint, which takes kept results by their order.
Within transforms the second run may meet operators in another order, or in other numbers: so each
value gets a number for how it was computed, by which operator of which values. Where the number of
a second computation is that of a kept result, it is that result, and the operator does not run.
What has no such number, as what was written in place, is computed.

In a graph that is traced the two runs are traced apart, of other stand-ins for the same operands.
There an operand is known by its place, and what is kept is handed from one graph to the other.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import (
    SAC_IGNORED_OPS,
    CheckpointPolicy,
    SelectiveCheckpointContext,
)
from torch.utils.weak import WeakTensorKeyDictionary

from parallax._compat.operands import memory_of

__all__ = ["Kept", "KeptInGraph", "Policy", "in_graph"]

Policy = Callable[..., Any] | Sequence[Any]
_SAVED = (CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE, True)
_PLAIN = (Tensor, torch.nn.Parameter)


class Kept:
    """What a function computed for the first time, and what of it is kept.

    Args:
        policy: as of ``torch.utils.checkpoint.create_selective_checkpoint_contexts``.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.numbers: dict[Hashable, int] = {}
        self.results: dict[Hashable, Any] = {}
        self.given: list[Tensor] = []  # held, so that no other tensor gets their memory

    def first(self, operands: Sequence[Any] = ()) -> TorchDispatchMode:
        """Around the first run: it keeps results.

        Args:
            operands: what is known by its place.
        """
        return _First(self, operands)

    def again(self, operands: Sequence[Any] = ()) -> TorchDispatchMode:
        """Around another run: it takes the kept results."""
        return _Again(self, operands)

    def is_wanted(self, op: Any, args: Any, kwargs: Any) -> bool:
        """Whether the policy keeps what an operator returns."""
        if not callable(self._policy):
            return op in self._policy
        context = SelectiveCheckpointContext(is_recompute=False)
        return self._policy(context, op, *args, **kwargs) in _SAVED


class KeptInGraph(NamedTuple):
    """What a graph that is traced keeps, without the tensors, which are results of the graph.

    Attributes:
        numbers: of all computations.
        trees: by the number of a computation, the structure of what the operator returned.
        size: how many tensors are kept.
    """

    numbers: dict[Hashable, int]
    trees: dict[Hashable, TreeSpec]
    size: int

    def with_tensors(self, tensors: Sequence[Tensor]) -> Kept:
        """What is kept, for another graph in which these are the tensors."""
        kept, rest = Kept(()), iter(tensors)
        kept.numbers = self.numbers
        kept.results = {
            number: tree_unflatten([next(rest) for _ in range(tree.num_leaves)], tree)
            for number, tree in self.trees.items()
        }
        return kept


def in_graph(kept: Kept, operands: Sequence[Any]) -> tuple[KeptInGraph, list[Tensor]]:
    """What the graph of a first run returns of what is kept: tensors in memory of their own."""
    seen = {memory_of(x) for x in operands if isinstance(x, Tensor)}
    trees: dict[Hashable, TreeSpec] = {}
    tensors: list[Tensor] = []
    for number, results in kept.results.items():
        leaves, tree = tree_flatten(results)
        if not all([isinstance(x, Tensor) for x in leaves]):
            continue  # such as a size
        memory = {memory_of(x) for x in leaves}
        if len(memory) == len(leaves) and not memory & seen:
            seen |= memory
            trees[number] = tree
            tensors += leaves
    return KeptInGraph(kept.numbers, trees, len(tensors)), tensors


class _Numbering(TorchDispatchMode):
    """Gives each value the number of its computation."""

    supports_higher_order_operators = True

    def __init__(self, kept: Kept, operands: Sequence[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # it is torch's
        self.kept = kept
        self._operands = operands

    def __enter__(self) -> Any:
        self._names: Any = WeakTensorKeyDictionary()
        self._writes: dict[int | None, Any] = {}  # the last write in place into each memory
        self._drawn: Hashable = None  # how the last random numbers were drawn
        for k, x in enumerate(self._operands):
            if isinstance(x, Tensor):  # with its shape, as it may be that of all members
                self._give(x, ("operand", k, str(x.shape), x.dtype))
        return super().__enter__()  # type: ignore[no-untyped-call]  # as above

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(op, HigherOrderOperator):  # its results have no numbers
            return op(*args, **kwargs)
        self._sure = True
        key: Hashable = (op, self._name(args), self._name(tuple(sorted(kwargs.items()))))
        if op in _SAME and self._sure:
            result = op(*args, **kwargs)
            self._give(result, self._name_of_tensor(args[0]))
            return result
        draws, writes = torch.Tag.nondeterministic_seeded in op.tags, op._schema.is_mutable
        if draws:  # its result depends on all that was drawn before
            key = self._drawn = (key, self._drawn)
        number = self.number(key) if self._sure else object()
        always = draws or writes  # for what it does beside its result
        results = op(*args, **kwargs) if always else self.run(number, op, args, kwargs)
        if writes:
            self._write(number, op, args, kwargs)
        for k, tensor in enumerate(_tensors(results)):
            self._give(tensor, (number, k))
        return results

    def number(self, key: Hashable) -> Hashable:
        """The number of a computation."""
        raise NotImplementedError

    def run(self, number: Hashable, op: Any, args: Any, kwargs: Any) -> Any:
        """What the operator returns."""
        raise NotImplementedError

    def _name(self, value: Any) -> Hashable:
        """What is equal for equal values only."""
        if isinstance(value, Tensor):
            return self._name_of_tensor(value)
        if isinstance(value, (tuple, list)):
            return tuple([self._name(item) for item in value])
        if value is None or isinstance(value, (bool, int, float, complex, str)):
            return type(value), repr(value)
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return type(value), str(value)
        known = (torch.dtype, torch.device, torch.layout, torch.memory_format)
        return value if isinstance(value, known) else self._unknown()

    def _unknown(self) -> Hashable:
        self._sure = False
        return object()

    def _name_of_tensor(self, x: Tensor) -> Hashable:
        memory, given = _memory(x), self._names.get(x)
        if given is not None:
            name, write = given
            # Since it got its name, another tensor of the same memory may have been written.
            return name if write is self._writes.get(memory) else self._unknown()
        if type(x) not in _PLAIN or x.layout is not torch.strided or x.is_inference():
            return self._unknown()
        if memory in self._writes:
            return self._unknown()
        self.kept.given.append(x)
        where = (memory, x.storage_offset(), x.shape, x.stride(), x._version)
        name = (where, x.dtype, x.device, x.is_conj(), x.is_neg())
        self._give(x, name)
        return name

    def _give(self, x: Tensor, name: Hashable) -> None:
        self._names[x] = (name, self._writes.get(_memory(x)))

    def _write(self, number: Hashable, op: Any, args: Any, kwargs: Any) -> None:
        """Notes what an operator wrote: such a tensor has a new name, and its aliases have none."""
        changes_data = torch.Tag.inplace_view not in op.tags  # and not its shape alone
        for argument, value in _arguments(op, args, kwargs):
            for k, x in enumerate(_tensors(value) if argument.is_write else ()):
                if changes_data:
                    self._writes[_memory(x)] = object()
                self._give(x, (number, argument.name, k))


_SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
"""What gives a tensor as it is; one run of a function may have them where the other has none."""


class _First(_Numbering):
    """Keeps what the policy wants."""

    def number(self, key: Hashable) -> Hashable:
        return self.kept.numbers.setdefault(key, len(self.kept.numbers))

    def run(self, number: Hashable, op: Any, args: Any, kwargs: Any) -> Any:
        results = op(*args, **kwargs)
        if op not in SAC_IGNORED_OPS and self._sure and self.kept.is_wanted(op, args, kwargs):
            self.kept.results[number] = _detached(results)
            self._since[number] = [self._writes.get(_memory(x)) for x in _tensors(results)]
        return results

    def __enter__(self) -> Any:
        self._since: dict[Hashable, list[Any]] = {}
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # as above
        for number, since in self._since.items():  # what was written after it was kept
            now = [self._writes.get(_memory(x)) for x in _tensors(self.kept.results[number])]
            if any([one is not two for one, two in zip(now, since, strict=True)]):
                del self.kept.results[number]


class _Again(_Numbering):
    """Takes what was kept."""

    def number(self, key: Hashable) -> Hashable:
        return self.kept.numbers.get(key, object())

    def run(self, number: Hashable, op: Any, args: Any, kwargs: Any) -> Any:
        if number in self.kept.results:
            return _detached(self.kept.results[number])
        return op(*args, **kwargs)


def _arguments(op: Any, args: Any, kwargs: Any) -> list[tuple[Any, Any]]:
    """The arguments of an operator in its schema, and what was given for each."""
    arguments = op._schema.arguments
    given = list(zip(arguments, args, strict=False))
    return given + [(a, kwargs[a.name]) for a in arguments[len(args) :] if a.name in kwargs]


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in what an operator takes or returns."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return [x for x in values if isinstance(x, Tensor)]


def _memory(x: Tensor) -> int | None:
    if x.layout is not torch.strided:
        return None
    storage = x.untyped_storage()
    # What stands for a tensor in a trace has no data, and one storage for one memory.
    return storage.data_ptr() if type(x) in _PLAIN else storage._cdata


def _detached(results: Any) -> Any:
    """The results as other tensors, so that autograd's marks on these are not kept."""
    if isinstance(results, (tuple, list)):
        return type(results)([_detached(x) for x in results])
    return results.detach() if isinstance(results, Tensor) else results
