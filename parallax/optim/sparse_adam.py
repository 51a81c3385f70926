"""Adam for sparse gradients."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, kernels
from parallax.optim.donate import check_donation
from parallax.optim.habits import hint_at_habits
from parallax.optim.hyper import Hyper, Number
from parallax.optim.kernel import ByKernel
from parallax.optim.lists import How, Lists
from parallax.optim.state import State
from parallax.tree.donated import mark

__all__ = ["SparseAdam"]

M = TypeVar("M")


@hint_at_habits
class SparseAdam(ByKernel):
    """Adam that moves only the rows that a sparse gradient has, and only their averages.

    As ``torch.optim.SparseAdam``, and its kernel. Such gradients come from
    ``nn.Embedding(..., sparse=True)``; give the other leaves to another optimizer with ``Split``.
    For eager code, where torch has sparse gradients.

    Example:
        >>> import torch
        >>> from parallax import func, nn, optim
        >>> table = nn.Embedding(4, 2, sparse=True).initialize(0)
        >>> opt = optim.SparseAdam(lr=0.1)
        >>> grads = func.grad(lambda table: table(torch.tensor([1, 3])).sum())(table)
        >>> stepped, state = opt.step(table, grads, opt.init(table))
        >>> (stepped.weight != table.weight).any(1)
        tensor([False,  True, False,  True])
    """

    _torch = torch.optim.SparseAdam
    _takes_sparse = True

    lr: Number = 1e-3
    betas: tuple[Any, Any] = (0.9, 0.999)
    eps: Number = 1e-8
    _: KW_ONLY
    maximize: bool = False

    def step(self, model: M, grads: Any, state: State, donate: bool = False) -> tuple[M, State]:
        """One step; see ``Optimizer.step``.

        Args:
            model: a module.
            grads: sparse gradients and holes.
            state: what ``init`` or the last ``step`` returned.
            donate: give away ``model`` and ``state``, as in other optimizers' ``step``. It works on
                copies all the same.

        Returns:
            The model and the state after the step.

        Raises:
            ValueError: if a gradient is dense, or something does not fit the model.
            RuntimeError: in compiled code or under a transform.
        """
        what = "optim.SparseAdam.step"
        if dynamo.is_compiling() or functorch.transform_active():
            raise RuntimeError(
                f"{what}: torch has no sparse gradients in compiled code and under torch.func. "
                f"Write nn.Embedding(..., sparse=False) and optim.Adam there"
            )
        donated = check_donation(what, donate)
        made = super().step(model, grads, state)
        if donated:
            mark(model)
            mark(state)
        return made

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _check_leaf(self, path: str, param: Tensor) -> None:
        if param.is_complex():
            raise TypeError(
                f"optim.SparseAdam: {path} is complex, for which torch has no such kernel. Give it "
                f"to another optimizer: optim.Split({{condition: optim.Adam()}}, rest=...)"
            )

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        if not all([grad.is_sparse for grad in at.grads]):
            raise ValueError(
                "optim.SparseAdam.step: a gradient is dense. Give dense ones to another optimizer: "
                "optim.Split({'embedding': optim.SparseAdam()}, rest=optim.Adam())"
            )
        ages = [int(clock) + 1 for clock in at.clocks]
        beta1, beta2 = h["betas"]
        kernels.sparse_adam(
            at.params, at.grads, at["exp_avg"], at["exp_avg_sq"], [ages[k] for k in at.clock_of],
            eps=h["eps"], beta1=beta1, beta2=beta2, lr=h["lr"], maximize=h["maximize"],
        )  # fmt: skip
        return at
