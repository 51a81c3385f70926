"""Sharpness-aware minimisation: gradients of the worst model nearby."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax import random
from parallax._compat import dynamo
from parallax._errors.arguments import answered, shown
from parallax.core.module import Module
from parallax.core.nodes import is_module
from parallax.core.registry import unflatten_module
from parallax.optim.arguments import check_at_least, check_kind, check_optimizer
from parallax.optim.checks import check_layouts, gather, open_model
from parallax.optim.derivatives import is_differentiable, recorded
from parallax.optim.donate import check_donation
from parallax.optim.formula import closed, opened
from parallax.optim.habits import check_given, hint_at_habits

__all__ = ["ASAM", "SAM"]

M = TypeVar("M", bound=Module)
S = TypeVar("S")
_TINY = 1e-12  # added to the norm, so that a gradient of zero moves nothing


@hint_at_habits
class SAM:
    """An optimizer that steps by the gradient of the worst model within a distance of ``rho``.

    Sharpness-aware minimisation, as Foret et al. 2021: the model climbs by ``rho`` along its
    gradient, and the gradient there steps the model from where it was. Its ``step`` takes a
    function of a model to gradients, which it calls twice; both draw the same random numbers.
    Its state is that of ``opt``. Clip inside: ``SAM(chain(ClipNorm(1.0), opt))``.

    Args:
        opt: the optimizer that steps.
        rho: how far away the worst model is looked for.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, func, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> def loss(point):
        ...     return point.at.square().sum()
        >>> opt, point = optim.SAM(optim.SGD(lr=0.1), rho=0.5), Point(torch.tensor([1.0]))
        >>> state = opt.init(point)
        >>> point, state = opt.step(point, func.grad(loss), state)
        >>> opt.ascend(Point(torch.tensor([1.0])), func.grad(loss)(point)).at
        tensor([1.5000])
        >>> point.at  # 1 - 0.1 * 2 * (1 + 0.5)
        tensor([0.7000])
    """

    @answered("optim.SAM", "optim.SAM(opt, rho=0.05)")
    def __init__(self, opt: Any, rho: float = 0.05) -> None:
        self._name = type(self).__name__
        check_optimizer(self._name, "opt", opt)
        check_kind(self._name, "rho", rho, "float", 0.05)
        check_at_least(self._name, "rho", rho, 0)
        self.opt = opt
        self.rho = rho

    @property
    def _differentiable(self) -> bool:
        return is_differentiable(self.opt)

    def init(self, model: Any) -> Module:
        """The state before the first step.

        Args:
            model: an initialised module.

        Returns:
            The state of the optimizer inside.
        """
        state: Module = self.opt.init(model)
        return state

    def ascend(self, model: M, grads: Any) -> M:
        """The worst model nearby, for steps that are written out.

        Such a step can keep the loss and collect effects: take gradients of the model, ascend, take
        gradients there, and step ``model`` by them with the optimizer inside.

        Args:
            model: a module.
            grads: its gradients.

        Returns:
            The model further up; frozen leaves, buffers and leaves without a gradient stay.

        Raises:
            ValueError: if the gradients do not fit the model.
        """
        what = f"optim.{self._name}.ascend"
        leaves, part = open_model(what, model)
        chosen, given = gather(what, model, leaves, part, grads)
        if not dynamo.is_compiling():  # where there are none
            check_layouts(what, model, chosen, given, takes_sparse=False)
        made = list(leaves)
        with recorded(self._differentiable):
            scales = [self._scale(opened(leaves[k])) for k in chosen]
            slopes = [opened(given[k]) * s for k, s in zip(chosen, scales, strict=True)]
            if slopes:
                factor = self.rho / (_norm(slopes) + _TINY)
                for k, scale, slope in zip(chosen, scales, slopes, strict=True):
                    move = scale * slope * factor.to(slope.device)
                    made[k] = closed(opened(leaves[k]) + move, leaves[k])
        return unflatten_module(part, made, model._rng)  # type: ignore[no-any-return]  # of its class

    def step(
        self, model: M, closure: Callable[[M], Any], state: S, donate: bool = False
    ) -> tuple[M, S]:
        """One step.

        Args:
            model: a module.
            closure: a function of a model to its gradients, such as
                ``lambda model: func.grad(loss)(model, x, y)``.
            state: what ``init`` or the last ``step`` returned.
            donate: let the optimizer inside reuse the memory of the model and its state.

        Returns:
            The model and the state.

        Raises:
            TypeError: if ``closure`` is not such a function.
            ValueError: if something does not fit the model.
        """
        what = f"optim.{self._name}.step"
        check_donation(what, donate, self._differentiable)
        check_given(what, state, "closure")
        open_model(what, model)
        given: Any = closure
        if not callable(given) or is_module(given):
            raise TypeError(
                f"{what}: closure must be a function of the model to gradients, got "
                f"{shown(closure)}. Write opt.step(model, lambda model: func.grad(loss)(model, x, "
                f"y), state)"
            )
        worst = self.ascend(model, _gradients(what, closure, model))
        with random.reuse():  # the same draws as before
            grads = _gradients(what, closure, worst)
        made: tuple[M, S] = self.opt.step(model, grads, state, donate=donate)
        return made

    def _scale(self, param: Tensor) -> Any:
        """What distances from a leaf are measured in."""
        return 1.0

    def __repr__(self) -> str:
        return f"{self._name}({self.opt!r}, rho={self.rho})"


class ASAM(SAM):
    """``SAM`` with distances relative to the size of each weight, so that scaling changes nothing.

    Adaptive sharpness-aware minimisation, as Kwon et al. 2021.

    Args:
        opt: the optimizer that steps.
        rho: how far away the worst model is looked for, relative to the weights.
        eta: added to the magnitudes of the weights.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, func, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> opt, point = optim.ASAM(optim.SGD(lr=0.1), rho=0.5, eta=0.0), Point(torch.tensor([2.0]))
        >>> grads = func.grad(lambda point: point.at.square().sum())
        >>> opt.step(point, grads, opt.init(point))[0].at  # 2 - 0.1 * 2 * (2 + 0.5 * 2)
        tensor([1.4000])
    """

    @answered("optim.ASAM", "optim.ASAM(opt, rho=0.5, eta=0.01)")
    def __init__(self, opt: Any, rho: float = 0.5, eta: float = 0.01) -> None:
        super().__init__(opt, rho)
        check_kind("ASAM", "eta", eta, "float", 0.01)
        check_at_least("ASAM", "eta", eta, 0)
        self.eta = eta

    def _scale(self, param: Tensor) -> Any:
        return param.abs() + self.eta

    def __repr__(self) -> str:
        return f"ASAM({self.opt!r}, rho={self.rho}, eta={self.eta})"


def _gradients(what: str, closure: Any, model: Any) -> Any:
    grads = closure(model)
    if isinstance(grads, tuple):
        raise TypeError(
            f"{what}: closure returned a tuple of {len(grads)}, and gradients alone are wanted. "
            f"Write lambda model: func.grad(loss)(model, x, y); to keep the loss, or what has_aux "
            f"returns, use ascend"
        )
    return grads


def _norm(slopes: list[Tensor]) -> Tensor:
    """The norm of all of them together, on the device of the first."""
    norms = [torch.linalg.vector_norm(slope).to(slopes[0].device) for slope in slopes]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm
