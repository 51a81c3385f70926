"""The loss of sequences of scores against shorter sequences of labels."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo, kernels
from parallax._compat.gradients import WhereRecorded
from parallax._errors.arguments import check_flags, shown
from parallax.func.scan import scan
from parallax.nn.arguments import at_least, is_int
from parallax.nn.exactness import can_be_read, in_plain_eager_code, kernel_has_derivatives
from parallax.nn.loss import Loss, reduced, require_floating
from parallax.nn.precision import widened
from parallax.nn.refusal import name_in, refuse, require_tensor, where

__all__ = ["CTCLoss"]

Lengths = Tensor | tuple[int, ...]
_LOWEST = -1e30  # instead of minus infinity, whose derivatives are NaN


class CTCLoss(Loss):
    """Minus the log-probability of a sequence of labels, however its labels are spread over time.

    Each step names a label or a blank; repetitions and then blanks are left out. The gradient is
    that of the log-probabilities as they are given. Torch's is that only where they come from
    ``log_softmax``, after which the two are the same.

    Args:
        blank: the number of the blank.
        reduction: ``"mean"`` of the losses, each divided by the length of its labels, ``"sum"``,
            or ``"none"``.
        zero_infinity: whether a loss is zero where there are too few steps for the labels, and the
            loss infinite.

    Shape:
        - log_probs: ``(T, N, C)`` or ``(T, C)``: log-probabilities, as of ``LogSoftmax``
        - targets: ``(N, S)`` or ``(S)``, or the labels of all sequences, one after the other
        - input_lengths, target_lengths: ``(N)`` or ``()``, tensors or tuples of ints: how many
          steps and labels count
        - output: ``()``, or ``(N)`` with ``reduction="none"``

    Source: A. Graves and others, "Connectionist Temporal Classification", ICML 2006, section 4.1.

    Example:
        >>> log_probs = torch.zeros(4, 1, 3).log_softmax(-1)
        >>> loss = nn.CTCLoss(reduction="none")(log_probs, torch.tensor([[1, 2]]), (4,), (2,))
        >>> ((-loss).exp() * 3**4).round()  # the ways to spread two labels over four steps
        tensor([15.])
    """

    blank: int
    zero_infinity: bool

    def __init__(
        self, blank: int = 0, reduction: str = "mean", zero_infinity: bool = False
    ) -> None:
        super().__init__(reduction=reduction)
        at_least("CTCLoss", 0, blank=blank)
        check_flags("CTCLoss", zero_infinity=zero_infinity)
        self.blank = blank
        self.zero_infinity = zero_infinity

    def forward(
        self, log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any
    ) -> Tensor:
        """The loss of the log-probabilities against the labels."""
        self._check(log_probs, targets)
        one = log_probs.dim() == 2
        given = log_probs[:, None] if one else log_probs
        count = given.shape[1]
        steps = self._lengths("input_lengths", input_lengths, count)
        labels = self._lengths("target_lengths", target_lengths, count)
        if isinstance(steps, Tensor) != isinstance(
            labels, Tensor
        ):  # the kernel takes two of a kind
            steps, labels = _tensor(steps, targets), _tensor(labels, targets)
        if one and targets.dim() == 1:
            targets = targets[None]
        self._check_values(given, targets, steps, labels)
        try:
            losses = self._losses(widened(given), targets, steps, labels)
        except (IndexError, RuntimeError, TypeError) as error:
            name_in(error, self)
            raise
        if self.reduction == "mean":
            found = (losses / _tensor(labels, losses).clamp(min=1)).mean()
        else:
            found = reduced(losses[0] if one else losses, self.reduction)
        return found.to(log_probs.dtype)

    def _losses(self, log_probs: Tensor, targets: Tensor, steps: Any, labels: Any) -> Tensor:
        """The loss of each sequence."""
        # Dynamo does not follow the kernel, whose results depend on lengths.
        if dynamo.is_compiling() or not kernel_has_derivatives(log_probs):
            found = self._by_operators(log_probs, targets, steps, labels)
            return self._without_infinity(found)
        if targets.dtype not in (torch.int32, torch.int64):
            targets = targets.long()
        losses: Tensor = kernels.ctc_loss(
            log_probs, targets, steps, labels, self.blank, self.zero_infinity
        )[0]
        if losses.requires_grad:
            if in_plain_eager_code():
                self._watch(losses, targets, steps, labels)
            # The kernel's gradient has that of the sum of all probabilities added to it.
            losses = losses + self._nothing(log_probs, steps, losses.detach())
        return self._without_infinity(losses)

    def _without_infinity(self, losses: Tensor) -> Tensor:
        return torch.where(losses == inf, 0.0, losses) if self.zero_infinity else losses

    def _nothing(self, log_probs: Tensor, steps: Any, losses: Tensor) -> Tensor:
        """Zeros, whose gradient is minus the probabilities."""
        sums = self._sums(log_probs, steps)
        if self.zero_infinity:
            sums = torch.where(losses == inf, 0.0, sums)
        return sums.detach() - sums

    def _sums(self, log_probs: Tensor, steps: Any) -> Tensor:
        """The sum of all probabilities of each sequence."""
        counted = _before(len(log_probs), _tensor(steps, log_probs))
        return torch.where(counted, log_probs.exp().sum(-1), 0.0).sum(0)

    def _watch(self, losses: Tensor, targets: Tensor, steps: Any, labels: Any) -> None:
        """Waits on the kernel's output, whose gradient has no derivative."""

        def rule(node: Any) -> Any:
            def again(log_probs: Tensor) -> Tensor:
                losses = self._by_operators(log_probs, targets, steps, labels)
                return losses - self._nothing(log_probs, steps, losses.detach())

            return (node._saved_log_probs,), again

        # With lengths as ints, and as tensors.
        WhereRecorded(dict.fromkeys(["CtcLossBackward0", "CtcLossBackward1"], rule)).watch(losses)

    def _by_operators(self, log_probs: Tensor, targets: Tensor, steps: Any, labels: Any) -> Tensor:
        """The loss of each sequence, in operators whose derivatives are right at every order."""
        steps, labels = _tensor(steps, log_probs), _tensor(labels, log_probs)
        own = _padded(targets, labels, self.blank)
        blanks = torch.full_like(own, self.blank)
        # A blank before each label, and one at the end.
        path = torch.cat([torch.stack([blanks, own], -1).flatten(1), blanks[:, :1]], 1)
        other = path[:, 2:] != path[:, :-2]
        skips = torch.where(other & (path[:, 2:] != self.blank), 0.0, _LOWEST).to(log_probs.dtype)
        floor = log_probs.new_full((), _LOWEST)
        scores = log_probs.clamp(min=_LOWEST)
        index = path.expand(len(log_probs), *path.shape)
        scores = scores.gather(-1, index)
        begins = torch.arange(path.shape[1], device=path.device) < 2
        state = torch.where(begins, scores[0], floor)
        counted = _before(len(log_probs), steps)
        lowest = torch.zeros_like(state[:, :2]) + floor

        def step(state: Tensor, row: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[()]]:
            before = torch.cat([lowest[:, :1], state[:, :-1]], 1)
            skipped = torch.cat([lowest, state[:, :-2] + skips], 1)
            moved = torch.stack([state, before, skipped]).logsumexp(0) + row[0]
            return torch.where(row[1], moved.clamp(min=_LOWEST), state), ()

        if len(log_probs) > 1:
            state = scan(step, state, (scores[1:], counted[1:, :, None]))[0]
        last = 2 * labels[:, None] - torch.tensor([0, 1], device=labels.device)
        ends = torch.where(last < 0, floor, state.gather(1, last.clamp(min=0)))
        none = torch.eq(steps, 0)
        losses = torch.where(none, 0.0, -ends.logsumexp(1))
        impossible = torch.where(none, labels > 0, losses > -_LOWEST / 2)
        if self.zero_infinity:
            return torch.where(impossible, inf, losses)
        # The gradient is NaN, as the kernel's: that of the root of zero times anything.
        zero = torch.where(impossible, 0 * self._sums(log_probs, steps), 1.0).sqrt()
        return torch.where(impossible, inf + zero, losses)

    def _check(self, log_probs: Any, targets: Any) -> None:
        if not isinstance(log_probs, Tensor) or log_probs.dim() not in (2, 3):
            refuse(self, "(T, N, C) or (T, C)", log_probs, "log_probs")
        require_floating(self, log_probs, "log_probs")
        if 0 in log_probs.shape:
            raise ValueError(
                f"{where(self)}: expected log_probs of a step, a sequence and a class at least, "
                f"got {tuple(log_probs.shape)}. Leave empty batches out"
            )
        require_tensor(self, targets, "targets")
        if (
            targets.is_floating_point()
            or targets.dtype is torch.bool
            or targets.dim() not in (1, 2)
        ):
            raise TypeError(
                f"{where(self)}: targets must hold labels, of shape (N, S) or (S), got "
                f"{targets.dtype} of shape {tuple(targets.shape)}. Write targets.long()"
            )
        if self.blank >= log_probs.shape[-1]:
            raise ValueError(
                f"{where(self)}: log_probs have {log_probs.shape[-1]} classes, of which none is "
                f"blank={self.blank}. Write blank=0, or give log_probs of more classes"
            )

    def _lengths(self, name: str, given: Any, count: int) -> Any:
        """Lengths as the kernel takes them, one for each sequence."""
        if isinstance(given, int) and not isinstance(given, bool):
            given = (given,)
        if isinstance(given, Tensor):
            given = given.reshape(1) if given.dim() == 0 else given
            whole = not (given.is_floating_point() or given.is_complex())
            whole = whole and given.dtype is not torch.bool
            fits = whole and tuple(given.shape) == (count,)
        else:
            several: Any = given if isinstance(given, (tuple, list)) else ()
            fits = len(several) == count and all([is_int(n) for n in several])
        if not fits:
            raise TypeError(
                f"{where(self)}: {name} must be {count} ints, one for each sequence, got "
                f"{_described(given)}. Give a tensor of ints of shape ({count},), or a tuple"
            )
        return given

    def _check_values(self, log_probs: Tensor, targets: Tensor, steps: Any, labels: Any) -> None:
        """Raises if lengths or labels are out of range, where they can be read."""
        flat = targets.dim() == 1
        if not flat and len(targets) != log_probs.shape[1]:
            raise ValueError(
                f"{where(self)}: expected targets of {log_probs.shape[1]} sequences, got "
                f"{tuple(targets.shape)}. Give a row for each"
            )
        most = targets.shape[-1]
        self._check_range("input_lengths", steps, len(log_probs), "steps of log_probs")
        read = self._check_range("target_lengths", labels, most, "labels of targets")
        if read is None:
            return
        if flat and sum(read) != most:
            raise ValueError(
                f"{where(self)}: the target_lengths of targets one after the other must add up to "
                f"their {most} labels, got {sum(read)}. Give lengths that do"
            )
        if not can_be_read(targets) or not targets.numel():
            return
        wrong = torch.lt(targets, 0) | torch.ge(targets, log_probs.shape[-1])
        if not flat:
            places = torch.arange(most, device=targets.device)
            wrong = wrong & (places < torch.tensor(read, device=targets.device)[:, None])
        if bool(wrong.any()):
            raise ValueError(
                f"{where(self)}: expected labels from 0 to {log_probs.shape[-1] - 1}, got "
                f"{int(targets[wrong][0])}. Give log_probs of more classes, or other targets"
            )

    def _check_range(self, name: str, lengths: Any, most: int, what: str) -> list[int] | None:
        """Lengths that can be read; raises if one is out of range."""
        if isinstance(lengths, Tensor) and not can_be_read(lengths):
            return None
        read: list[int] = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
        for length in read:
            if not 0 <= length <= most:
                raise ValueError(
                    f"{where(self)}: {name} must be from 0 to {most}, the number of {what}, got "
                    f"{length}. Give lengths that fit"
                )
        return read


def _described(given: Any) -> str:
    of = f" of {given.dtype}" if isinstance(given, Tensor) else ""
    return shown(given) + of


def _tensor(lengths: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(lengths, device=like.device)


def _before(count: int, lengths: Tensor) -> Tensor:
    """Which of so many steps count, of each sequence: ``(count, N)``."""
    return torch.arange(count, device=lengths.device)[:, None] < lengths


def _padded(targets: Tensor, lengths: Tensor, blank: int) -> Tensor:
    """The labels of each sequence in a row, and blanks after them."""
    places = torch.arange(targets.shape[-1], device=targets.device)
    if targets.dim() == 1:
        starts = lengths.cumsum(0) - lengths
        index = (starts[:, None] + places).clamp(max=max(len(targets) - 1, 0))
        targets = targets[index] if len(targets) else targets.expand(len(lengths), 0)
    return torch.where(places < lengths[:, None], targets.long(), blank)
