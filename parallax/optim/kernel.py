"""How leaves are advanced by torch's kernels: in eager code, traced, vmapped and differentiated."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from parallax._compat import dynamo, functorch
from parallax.optim import operator, vmapped
from parallax.optim.by_group import ByGroup
from parallax.optim.hyper import Hyper, beside, plain, resolved
from parallax.optim.lists import How, Lists
from parallax.optim.scalars import (
    Composed,
    Unread,
    are_shared,
    as_plain,
    counting,
    multiplied,
    spread,
)

__all__ = ["ByKernel"]


class ByKernel(ByGroup):
    """An optimizer whose steps are those of a kernel of torch."""

    _fused_on: ClassVar[tuple[str, ...]] = ()  # types of devices with a fused kernel
    _fused_halves: ClassVar[bool] = True  # whether that is right for float16 and bfloat16
    _scales_sums: ClassVar[bool] = True  # adds multiples of gradients, by alpha

    @abstractmethod
    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        """Steps private lists in place by torch's kernel.

        Returns:
            The same lists if all tensors are written in place, and others if any is a new one.
        """

    def _advance(self, at: Lists, h: Hyper, step: Tensor, donate: bool) -> Lists:
        """Steps lists, in private memory unless ``donate``."""
        if dynamo.is_compiling():
            return self._traced(at, resolved(h, step))
        if self._differentiable:
            return self._with_graph(at, resolved(h, step))
        if functorch.transform_active():
            if functorch.vmap_active():
                return self._vmapped(at, h, step)
            return self._run(at, plain(resolved(h, int(step))), How(False, False))
        return self._eager(at, h, step, donate)

    def _traced(self, at: Lists, h: Hyper) -> Lists:
        if not self._differentiable:
            if operator.fits(self, at, h):
                return operator.step(self, at, h)
            full = self._full(at, h)  # asked for late: a trace takes long to look at each moment
            if full is not at and operator.fits(self, full, h):
                return operator.step(self, full, h)
            at = full
        # Inductor forgets alpha where it meets add(product of matrices, other, alpha=alpha), or the
        # two the other way round (torch 2.13, 2.14). The kernels write such sums of gradients; two
        # signs between hide the product, and cost no pass over memory.
        if self._scales_sums:
            at.grads = [grad.neg().neg() for grad in at.grads]
        how = How(False, False, "capturable" in h, self._differentiable)
        if not functorch.traced_level():
            return self._run(at, h, how)
        # A kernel that writes what all members share has room for one of them.
        if functorch.vmap_in_trace() and are_shared(at.written(), _read(at, h)):
            at, h = self._spread(at, h)
        with Composed():
            return self._run(at, h, how)

    def _run(self, at: Lists, h: Hyper, how: How, donate: bool = False) -> Lists:
        """Fills in missing moments and calls the kernel."""
        at = self._full(at, h).resolved()
        return self._kernel(at if donate else at.private(), h, how)

    def _eager(self, at: Lists, h: Hyper, step: Tensor, donate: bool = False) -> Lists:
        h = h if self._fixed else plain(resolved(h, step))
        foreach, fused = h.get("foreach"), h.get("fused")
        if fused or (foreach is None and fused is None):
            fused = self._fuses(at, bool(fused))
        capturable = bool(h.get("capturable")) and at.params[0].device.type != "cpu"
        return self._run(at, h, How(foreach, bool(fused), capturable), donate)

    def _fuses(self, at: Lists, asked: bool) -> bool:
        """Whether lists are stepped by a fused kernel.

        Raises:
            TypeError: if one is asked for and there is none for a parameter.
        """
        if not self._fused_on:
            return False
        if asked:
            for param in at.params:
                if not (param.is_floating_point() and param.device.type in self._fused_on):
                    raise TypeError(
                        f"optim.{type(self).__name__}: fused=True steps floating-point leaves on "
                        f"{', '.join(self._fused_on)}; got one of {param.dtype} on {param.device}. "
                        f"Leave fused out"
                    )
        elif not at.fusable(self._fused_on):
            return False
        return self._fused_halves or not at.has_halves_on_cpu()

    def _with_graph(self, at: Lists, h: Hyper) -> Lists:
        at = self._full(at, h).private()
        if not functorch.vmap_active():
            return self._recorded(at, h)
        for device in dict.fromkeys([param.device for param in at.params]):
            members = [k for k, param in enumerate(at.params) if param.device == device]
            part = at.pick(members)
            near = beside(h, part.params[0])
            part.clocks = [clock.to(device) for clock in part.clocks]
            before = part.moments
            part.moments = {name: _on(column, device) for name, column in before.items()}
            done = self._recorded(*self._spread(part, near))
            for name, column in before.items():
                if device.type != "meta":  # whose numbers are nowhere
                    done.moments[name] = _like(done.moments[name], column)
            at.put(done, members)
        return at

    def _recorded(self, at: Lists, h: Hyper) -> Lists:
        # A decay that requires grad is added to the gradients in place.
        at.grads = [grad.clone() for grad in at.grads]
        at = at.each(multiplied)
        h = {name: counting(value) for name, value in h.items()}
        with Unread():
            at = self._run(at, h, How(False, False, False, True), donate=True)
        return at.each(as_plain)

    def _vmapped(self, at: Lists, h: Hyper, step: Tensor) -> Lists:
        filled: list[tuple[str, int]] = []

        def member(arguments: Any) -> list[Tensor]:
            params, grads, moments, clocks, h, step = arguments
            done = self._eager(Lists(params, grads, moments, clocks, at.clock_of), h, step)
            filled[:] = [
                (name, k) for name, column in done.moments.items()
                for k, moment in enumerate(column) if moment is not None
            ]  # fmt: skip
            return [*done.params, *[done.moments[name][k] for name, k in filled]]

        flat = vmapped.call(member, (at.params, at.grads, at.moments, at.clocks, h, step))
        count = len(at.params)
        moments: dict[str, list[Any]] = {name: [None] * count for name in at.moments}
        for (name, k), moment in zip(filled, flat[count:], strict=True):
            moments[name][k] = moment
        return Lists(flat[:count], at.grads, moments, at.clocks, at.clock_of)

    def _spread(self, at: Lists, h: Hyper) -> tuple[Lists, Hyper]:
        over = [*at.written(), *_read(at, h)]

        def wide(value: Any) -> Any:
            if type(value) is tuple:
                return tuple([wide(item) for item in value])
            return spread([value], over)[0] if isinstance(value, Tensor) else value

        return at.each(lambda tensors: spread(tensors, over)), {k: wide(v) for k, v in h.items()}


def _read(at: Lists, h: Hyper) -> list[Any]:
    """What a step reads and does not write."""
    numbers = [n for value in h.values() for n in (value if type(value) is tuple else (value,))]
    return [*at.grads, *at.clocks, *numbers]


def _on(column: list[Any], device: Any) -> list[Any]:
    return [None if moment is None else moment.to(device) for moment in column]


def _like(column: list[Any], before: list[Any]) -> list[Any]:
    """Moments where they were before, such as numbers on the CPU; new ones where they are."""
    return [
        m if m is None or b is None else m.to(b.device) for m, b in zip(column, before, strict=True)
    ]
