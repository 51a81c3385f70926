"""What a kernel works on: parameters, gradients and moments as lists, and how it is to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, kernels
from parallax.tree.memory import PLAIN

__all__ = ["How", "Lists", "joined", "put", "some"]


class How(NamedTuple):
    """Which of torch's kernels to call, in the words of ``torch.optim``."""

    foreach: bool | None = None
    fused: bool | None = None
    capturable: bool = False
    differentiable: bool = False

    @property
    def several(self) -> dict[str, Any]:
        """The arguments of a kernel that has no fused form."""
        return {
            "foreach": self.foreach,
            "capturable": self.capturable,
            "differentiable": self.differentiable,
        }


class Lists:
    """The leaves of one group that are stepped together, as lists in the same order.

    Attributes:
        params: the parameters, overwritten by the kernel.
        grads: the gradients, only read.
        moments: per name the moments, overwritten by the kernel.
        clocks: step counts, each a tensor of no dimension; only read.
        clock_of: per leaf the index of its step count in ``clocks``.
        known: what was found out about dtypes, devices and layouts. It is the same in the next
            step, so it is computed once for a run of steps; see ``Plan``.
    """

    __slots__ = ("clock_of", "clocks", "grads", "known", "moments", "params")

    def __init__(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        moments: dict[str, list[Any]],
        clocks: list[Tensor],
        clock_of: list[int],
        known: dict[Any, bool] | None = None,
    ) -> None:
        self.params = params
        self.grads = grads
        self.moments = moments
        self.clocks = clocks
        self.clock_of = clock_of
        self.known = {} if known is None else known

    def __getitem__(self, name: str) -> list[Any]:
        return self.moments.get(name, [])

    def _once(self, what: Any, find: Callable[[], bool]) -> bool:
        found = self.known.get(what)
        if found is None:
            found = self.known[what] = find()
        return found

    @property
    def complex(self) -> bool:
        """Whether any parameter is complex."""
        return self._once("complex", lambda: any([p.is_complex() for p in self.params]))

    def written(self) -> list[Any]:
        """What a step writes: the parameters and the moments, ``None`` for one that is missing."""
        return joined([self.params, *self.moments.values()])

    def resolved(self) -> Lists:
        """The same lists without lazily conjugated gradients, which kernels do not take."""
        if not self.complex:
            return self
        return self._with(self.params, [grad.resolve_conj() for grad in self.grads], self.moments)

    def full(self) -> bool:
        """Whether no moment is missing."""
        what = ("full", *self.moments)
        if what in self.known:
            return True
        if any([m is None for column in self.moments.values() for m in column]):
            return False  # for now
        self.known[what] = True
        return True

    def filled(self, fresh: Callable[[str, Tensor], Tensor | None]) -> Lists:
        """The same lists, with missing moments filled in by ``fresh``."""
        moments = {
            name: [
                fresh(name, p) if m is None else m for p, m in zip(self.params, column, strict=True)
            ]
            for name, column in self.moments.items()
        }
        return self._with(self.params, self.grads, moments)

    def begun(self, name: str, fresh: Callable[[str, Tensor], Any]) -> Lists:
        """The same lists, with new moments for leaves that missed all steps before this one."""
        if not any(self.clock_of):  # all have the clock of leaves that missed none
            return self
        column = list(self.moments[name])
        for k, clock in enumerate(self.clock_of):
            if clock != 0:
                age, new = self.clocks[clock], fresh(name, self.params[k])
                column[k] = torch.where(age.to(column[k].device) == 0, new, column[k])
        return self._with(self.params, self.grads, {**self.moments, name: column})

    def each(self, change: Callable[[list[Any]], list[Any]]) -> Lists:
        """Lists of other tensors, which are known as little as new ones."""
        moments = {name: change(column) for name, column in self.moments.items()}
        params, grads = change(self.params), change(self.grads)
        return Lists(params, grads, moments, self.clocks, self.clock_of)

    def _with(self, params: list[Any], grads: list[Any], moments: dict[str, list[Any]]) -> Lists:
        return Lists(params, grads, moments, self.clocks, self.clock_of, self.known)

    def steps(self, how: How) -> list[Tensor]:
        """The step count of each leaf in a tensor of its own, for kernels that count in place."""
        if how.fused:
            pairs = zip(self.clock_of, self.params, strict=True)
            return [self.clocks[k].to(p.device, copy=True) for k, p in pairs]
        # Where tensors stand for Python's numbers they are as wide: 1 - 0.999**step would lose four
        # digits. The kernels over lists count in tensors of single precision in torch too.
        single = how.foreach is not False or self.clocks[0].device.type == "mps"
        wide = torch.float32 if single else torch.float64
        ages = [self.clocks[k].to(wide, copy=True) for k in self.clock_of]
        if not how.capturable:
            return ages
        return [age.to(p.device) for age, p in zip(ages, self.params, strict=True)]

    def steps_after(self) -> list[Tensor]:
        """The step count of each leaf after this step, for kernels that only read it."""
        device = self.params[0].device
        clocks = [(clock + 1).to(device) for clock in self.clocks]
        if len(clocks) == 1:
            return clocks * len(self.clock_of)
        return [clocks[k] for k in self.clock_of]

    def private(self) -> Lists:
        """The same numbers in memory of their own."""
        columns = [self.params, *self.moments.values()]
        n = len(self.params)
        if self.full():
            copies = self._clone(joined(columns))
            made: list[Any] = [copies[k * n : k * n + n] for k in range(len(columns))]
        else:
            left = iter(self._clone([t for column in columns for t in column if t is not None]))
            made = [[None if t is None else next(left) for t in column] for column in columns]
        moments = dict(zip(self.moments, made[1:], strict=True))
        return self._with(made[0], self.grads, moments)

    def plain(self) -> bool:
        """Whether all are dense tensors of torch's own class, which its fast kernels assume."""
        return self._once("plain", self._is_plain)

    def _is_plain(self) -> bool:
        tensors = [*self.params, *self.grads]
        for column in self.moments.values():
            tensors += [moment for moment in column if moment is not None]
        return all(map(_is_plain, tensors))

    def _clone(self, tensors: list[Tensor]) -> list[Tensor]:
        traced = dynamo.is_compiling() or functorch.transform_active()
        if traced or torch.is_grad_enabled() or not self.plain():
            return [tensor.clone() for tensor in tensors]
        return list(kernels.foreach_clone(tensors))

    def uniform(self) -> bool:
        """Whether all parameters are of one dtype and on one device."""
        return self._once("uniform", lambda: len({(p.dtype, p.device) for p in self.params}) == 1)

    def on_meta(self) -> bool:
        """Whether a parameter has no numbers, so that a kernel cannot read any."""
        return self._once("meta", lambda: any([p.is_meta for p in self.params]))

    def fusable(self, devices: tuple[str, ...]) -> bool:
        """Whether torch has a fused kernel for all parameters, given the devices that have one."""
        return self.plain() and self._once(devices, lambda: self._is_fusable(devices))

    def has_halves_on_cpu(self) -> bool:
        """Whether a parameter on the CPU is of less than single precision."""
        return self._once(
            "halves",
            lambda: any([p.dtype.itemsize < 4 and p.device.type == "cpu" for p in self.params]),
        )

    def _is_fusable(self, devices: tuple[str, ...]) -> bool:
        for k, param in enumerate(self.params):
            if not (param.dtype.is_floating_point and param.device.type in devices):
                return False
            for moment in [column[k] for column in self.moments.values()]:
                if moment is not None and (
                    moment.dtype is not param.dtype or moment.device != param.device
                ):
                    return False
        return True

    def in_order(self) -> Lists:
        """The same lists, with gradients and moments in the memory layout of the parameters.

        The fused kernels ignore strides.
        """
        what = ("in order", *self.moments)
        if what in self.known:
            return self
        others = [self.grads, *self.moments.values()]
        sizes = [param.shape for param in self.params]
        for name, column in self.moments.items():
            if [moment.shape for moment in column] != sizes:
                raise ValueError(
                    f"the state's {name} has leaves of other shapes than the model's; "
                    f"make a state for this model: state = opt.init(model)"
                )
        if all([t.is_contiguous() for column in (self.params, *others) for t in column]):
            self.known[what] = True
            return self
        grads, *moments = [
            [_like(p, t) for p, t in zip(self.params, column, strict=True)] for column in others
        ]
        return self._with(self.params, grads, dict(zip(self.moments, moments, strict=True)))

    def with_dense_gradients(self) -> Lists:
        """The same lists with dense gradients instead of sparse ones."""
        if not any([grad.is_sparse for grad in self.grads]):
            return self
        grads = [grad.to_dense() if grad.is_sparse else grad for grad in self.grads]
        return self._with(self.params, grads, self.moments)

    def pick(self, indices: list[int]) -> Lists:
        """Some of the entries."""
        moments = {name: [column[k] for k in indices] for name, column in self.moments.items()}
        params, grads = [self.params[k] for k in indices], [self.grads[k] for k in indices]
        return Lists(params, grads, moments, self.clocks, [self.clock_of[k] for k in indices])

    def put(self, part: Lists, indices: list[int]) -> None:
        """Puts entries that ``pick`` gave, and a kernel wrote, in their places."""
        for j, k in enumerate(indices):
            self.params[k] = part.params[j]
            for name, column in part.moments.items():
                self.moments[name][k] = column[j]


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in PLAIN
        and tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_conj() or tensor.is_neg())
    )


def _like(param: Tensor, tensor: Tensor) -> Tensor:
    if tensor.stride() == param.stride():
        return tensor
    return torch.empty_like(param).copy_(tensor)


def joined(columns: Iterable[Iterable[Any]]) -> list[Any]:
    """All entries of several columns. A trace takes no longer for a long one."""
    found: list[Any] = []
    for column in columns:
        found += column
    return found


def some(column: Sequence[Any], members: Sequence[int]) -> list[Any]:
    """The entries at some indices, in order."""
    if len(members) == len(column):  # indices in order, hence all
        return list(column)
    return [column[k] for k in members]


def put(column: list[Any], members: Sequence[int], values: list[Any]) -> None:
    """Puts values at some indices, in order."""
    if len(members) == len(column):
        column[:] = values
        return
    for k, value in zip(members, values, strict=True):
        column[k] = value
