"""The state of an optimizer: a module whose moments are modules of the model's skeleton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from parallax.core.fields import Buffer
from parallax.core.module import Module
from parallax.core.registry import flatten_module, unflatten_module
from parallax.optim.saved import Constants, Tensors, below, constant, shaped
from parallax.tree.align import align

__all__ = ["NEVER", "Contents", "State", "around", "kept_for"]

NEVER = -1
"""The clock of a leaf that was never stepped."""


class State(Module):
    """What an optimizer remembers between steps; ``Optimizer.init`` makes it.

    A leaf that gets no gradient keeps its moments and its count of steps, as a parameter of
    ``torch.optim`` does. Leaves of equal counts share one; nearly always that is ``step``.

    Attributes:
        step: how many steps were made, a tensor of no dimension.
        moments: per name, as in ``torch.optim``'s state dict, a module of the model's skeleton with
            holes where nothing is stepped.
        clocks: the step counts of the leaves that missed a step.
        numbers: per name what the optimizer keeps for all leaves together; most keep nothing.
        clock_of: per unique leaf of the model which count is its own: 0 is ``step``, ``k`` is
            ``clocks[k - 1]``, -1 is none.
        labels: per unique leaf the index of its group; 0 for the optimizer's own parameters.
        sizes: per unique leaf its shape; ``None`` for what is not a tensor.
        optimizer: the name of the optimizer's class.

    Example:
        >>> from parallax import nn, optim
        >>> state = optim.Adam().init(nn.Linear(2, 1).initialize(0))
        >>> state.step, list(state.moments), state.moments["exp_avg"].weight
        (tensor(0.), ['exp_avg', 'exp_avg_sq'], tensor([[0., 0.]]))
    """

    step: Buffer
    if TYPE_CHECKING:
        moments: dict[str, Any]  # of the model's class, which no annotation can say
    else:
        moments: dict[str, Module]
    clocks: tuple[Buffer, ...]
    numbers: dict[str, Buffer]
    clock_of: tuple[int, ...]
    labels: tuple[int, ...]
    sizes: tuple[tuple[int, ...] | None, ...]
    optimizer: str

    def __as_saved__(self, constants: Constants, tensors: Tensors) -> State:
        clock_of = constant(constants, "", "clock_of")
        if len(clock_of) != len(self.clock_of):  # of another model; the loader reports it
            return self
        count = sum(name.startswith("clocks.") for name in tensors)
        clocks: Any = tuple([torch.zeros_like(self.step) for _ in range(count)])
        moments = {
            name: shaped(tree, below(tensors, f"moments.{name}"), _device(tree, self.step))
            for name, tree in self.moments.items()
        }
        kept: Any = self.numbers
        return State(
            self.step, moments, clocks, kept, clock_of, self.labels, self.sizes, self.optimizer
        )

    def extra_repr(self) -> str:
        """The optimizer and how many leaves it steps."""
        stepped = sum(clock != NEVER for clock in self.clock_of)
        return f"{self.optimizer}, step={self.step}, leaves={stepped}"


def _device(tree: Any, step: Tensor) -> torch.device:
    leaves = [leaf for leaf in flatten_module(tree)[0] if leaf is not None]
    return leaves[0].device if leaves else step.device


_CLOCK_OF = State.__layout__.constants.index("clock_of")


class Contents:
    """The contents of a state, in the order of the model's leaves.

    Attributes:
        step: how many steps were made.
        moments: per name one tensor or hole per unique leaf of the model.
        clocks: the step counts of the leaves that missed a step.
        clock_of: per leaf which of these, as in the state.
        numbers: per name what is kept for all leaves together.
    """

    __slots__ = ("_part", "_whole", "clock_of", "clocks", "moments", "numbers", "state", "step")

    def __init__(self, state: State, part: Any, what: str) -> None:
        self.state = state
        self._part = part
        self._whole: Any = None
        leaves, spec = flatten_module(state)
        # As the structure has it: of a field's numbers dynamo may make symbols.
        self.clock_of: tuple[int, ...] = spec.local.constants[_CLOCK_OF]
        if self._read_whole(state, part, leaves, spec):
            return
        self.step: Tensor = state.step
        self.clocks: Sequence[Tensor] = state.clocks
        self.numbers: Mapping[str, Tensor] = state.numbers
        self.moments: dict[str, Sequence[Any]] = {}
        for name, tree in state.moments.items():
            self.moments[name] = kept_for(part, tree, name, what)
        count = part.n_leaves
        if len(self.clock_of) != count:
            raise ValueError(
                f"{what}: the state was made for another model, of {len(self.clock_of)} leaves; "
                f"this one has {count}. Make one for this model: state = opt.init(model)"
            )

    def _read_whole(self, state: State, part: Any, leaves: Sequence[Any], spec: Any) -> bool:
        """Reads the leaves kept on the state, by three slices; false if they do not fit."""
        trees, n = spec.children[1], part.n_leaves
        skeleton = part.skeleton
        clocks, first = len(state.clocks), 1 + n * len(trees.children)
        if len(leaves) != first + clocks + len(state.numbers) or len(self.clock_of) != n:
            return False
        if not all([tree is skeleton or tree.skeleton == skeleton for tree in trees.children]):
            return False
        self._whole = spec
        self.step = leaves[0]
        self.moments = {
            name: leaves[1 + k * n : 1 + k * n + n] for k, name in enumerate(trees.keys())
        }
        self.clocks = leaves[first : first + clocks] if clocks else ()
        self.numbers = state.numbers
        return True

    def close(
        self,
        step: Tensor,
        moments: dict[str, list[Any]],
        clocks: Sequence[Tensor],
        clock_of: tuple[int, ...],
        numbers: Mapping[str, Tensor],
    ) -> State:
        """A state like this one with other contents."""
        state = self.state
        if self._whole is not None and clock_of is self.clock_of:
            leaves = [step]
            for column in moments.values():
                leaves += column
            leaves += clocks
            leaves += numbers.values()
            return unflatten_module(self._whole, leaves)  # type: ignore[no-any-return]  # a State
        made = {name: around(state.moments[name], column) for name, column in moments.items()}
        others: Any = tuple(clocks)
        kept: Any = dict(numbers)
        return State(step, made, others, kept, clock_of, state.labels, state.sizes, state.optimizer)


def kept_for(part: Any, tree: Any, name: str, what: str) -> Sequence[Any]:
    """The leaves of a tree that a state keeps, one per unique leaf of a model.

    Args:
        part: the structure of the model.
        tree: what is kept, a module of its skeleton.
        name: what the state calls it.
        what: the function that is called, for error messages.

    Raises:
        ValueError: if the tree is of another model.
    """
    try:
        return align(part, tree)
    except ValueError as error:
        raise ValueError(
            f"{what}: the state was made for another model: in its {name}, {error}. "
            f"Make one for this model: state = opt.init(model)"
        ) from None


def around(module: Any, leaves: list[Any]) -> Any:
    """A module of the skeleton of another around other leaves."""
    return unflatten_module(flatten_module(module)[1].skeleton, leaves)
