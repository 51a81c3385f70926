"""Transformations of gradients before an optimizer."""

from __future__ import annotations

from typing import Any, TypeVar

from parallax.core.module import Module
from parallax.optim.checks import check_state
from parallax.optim.donate import check_donation

__all__ = ["Chain", "Chained", "chain"]

M = TypeVar("M")


class Chained(Module):
    """The states of the parts of a chain: a module, or ``None`` for a part without a state."""

    parts: tuple[Module | None, ...]


class Chain:
    """An optimizer behind transformations of gradients; see ``chain``."""

    def __init__(self, transforms: tuple[Any, ...], opt: Any) -> None:
        self.transforms = transforms
        self.opt = opt

    def init(self, model: Any) -> Chained:
        """The state before the first step.

        Args:
            model: an initialised module.

        Returns:
            The state.
        """
        states = [part.init(model) if hasattr(part, "init") else None for part in self.transforms]
        return Chained((*states, self.opt.init(model)))

    def step(
        self, model: M, grads: Any, state: Chained, *, donate: bool = False
    ) -> tuple[M, Chained]:
        """Transforms the gradients and steps.

        Args:
            model: a module.
            grads: gradients.
            state: what ``init`` or the last ``step`` returned.
            donate: let the optimizer reuse the memory of the model and of its own state.

        Returns:
            The model and the state.

        Raises:
            ValueError: if something does not fit the model.
        """
        check_donation("chain(...).step", donate)
        check_state("chain(...).step", state, Chained)
        states: list[Any] = []
        for part, held in zip(self.transforms, state.parts[:-1], strict=True):
            after = None
            if held is None:
                grads = part(grads)
            else:
                grads, after = part.update(grads, held, model)
            states.append(after)
        model, last = self.opt.step(model, grads, state.parts[-1], donate=donate)
        return model, Chained((*states, last))

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, (*self.transforms, self.opt)))})"


def chain(*parts: Any) -> Chain:
    """An optimizer behind transformations of gradients, which is an optimizer too.

    Args:
        *parts: transformations, and last an optimizer. A transformation is a function from a tree
            of gradients to another. One with a state is an object with ``init(model)``, which
            returns the state as a module, and ``update(grads, state, model)``, which returns the
            new gradients and the new state.

    Returns:
        The optimizer.

    Raises:
        TypeError: if the last part is not an optimizer, or another one is not a transformation.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> opt = optim.chain(optim.ClipNorm(1.0), optim.SGD(lr=1.0))
        >>> point = Point(torch.zeros(2))
        >>> opt.step(point, Point(torch.tensor([3.0, 4.0])), opt.init(point))[0].at
        tensor([-0.6000, -0.8000])
    """
    if not parts or not (hasattr(parts[-1], "step") and hasattr(parts[-1], "init")):
        raise TypeError("chain: the last part must be an optimizer: chain(ClipNorm(1.0), Adam())")
    for part in parts[:-1]:
        if hasattr(part, "step") or not (hasattr(part, "update") or callable(part)):
            raise TypeError(
                f"chain: {part!r} is not a transformation of gradients: a function of them, or an "
                f"object with init(model) and update(grads, state, model)"
            )
    return Chain(parts[:-1], parts[-1])
