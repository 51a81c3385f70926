"""Optimizers whose step is one call of torch's kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from parallax.optim.hyper import Hyper, by_name
from parallax.optim.kernel import ByKernel
from parallax.optim.lists import How, Lists

__all__ = ["Direct"]


class Direct(ByKernel):
    """An optimizer whose kernel takes columns of moments and the hyper-parameters by name."""

    _function: ClassVar[Callable[..., None]]
    _columns: ClassVar[tuple[str, ...]]  # the moments, in the order that the kernel takes them

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return self._columns

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        moments = [at[name] for name in self._columns]
        self._function(
            at.params, at.grads, *moments, at.steps(how),
            has_complex=at.complex, **by_name(h), **how.several,
        )  # fmt: skip
        return at
