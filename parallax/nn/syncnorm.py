"""Batch normalisation by the batch of several processes."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from parallax._compat import shards
from parallax._compat.summing import group_of, name_of, summed_over
from parallax._errors.arguments import shown
from parallax.bridge.lifted import lifted_type
from parallax.core import notes
from parallax.core.module_structure import spec_of
from parallax.core.nodes import is_module
from parallax.nn.batchnorm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from parallax.nn.refusal import refuse
from parallax.tree.select import select

__all__ = ["SyncBatchNorm"]

M = TypeVar("M")
_OURS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)


class SyncBatchNorm(BatchNorm):
    """Normalises each channel over the batches of all processes of a group.

    In mode ``"train"``, mean and variance are those of all examples in all processes, by two
    all-reduces of a number for each channel; every process gets the same running statistics. All
    processes call it, and take the same derivatives: gradients of the input are those of the sum of
    all losses, on the CPU, too. Without a process group it is ``BatchNorm``, and so in ``"eval"``.

    Args:
        process_group: the processes, or a mesh of one dimension, such as ``mesh["dp"]``; by default
            all.

    Shape:
        - input: ``(N, C, *)``, of two to five dimensions; ``N`` may differ from process to process

    Example:
        >>> norm = nn.SyncBatchNorm(2).initialize(0).eval()
        >>> norm(torch.ones(5, 2, 7)).shape
        torch.Size([5, 2, 7])
    """

    shapes: ClassVar[dict[int, str]] = {
        2: "(N, {})", 3: "(N, {}, L)", 4: "(N, {}, H, W)", 5: "(N, {}, D, H, W)",
    }  # fmt: skip

    process_group: str | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, bias=bias, dtype=dtype
        )
        name = name_of(process_group)
        if process_group is not None and name is None:
            raise TypeError(
                f"SyncBatchNorm(process_group=): expected a process group or a mesh of one "
                f"dimension, got {shown(process_group)}. Write process_group=mesh['dp']"
            )
        # Its name, which is data: it can be saved, compared and compiled.
        self.process_group = name

    @classmethod
    def convert_sync_batchnorm(cls, module: M, process_group: Any = None) -> M:
        """The module with a ``SyncBatchNorm`` in the place of every batch norm in it.

        Leaves, modes and frozen marks stay what they are, and so do the names of the state dict.

        Args:
            module: a model, or a batch norm.
            process_group: as for the class.

        Returns:
            The module; a model without batch norms as it is.

        Raises:
            TypeError: if ``module`` is no module, or holds a batch norm of a class of your own or
                of a lifted model; the message names its path.

        Example:
            >>> from parallax import nn
            >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).initialize(0)
            >>> nn.SyncBatchNorm.convert_sync_batchnorm(model)
            Sequential(
              (0): Linear(in_features=4, out_features=3, bias=True)
              (1): SyncBatchNorm(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
            )
        """  # noqa: E501  # what repr prints
        what = f"{cls.__name__}.convert_sync_batchnorm"
        if not is_module(module):
            raise TypeError(f"{what}(module): expected a module, got {shown(module)}")
        torchs = lifted_type(torch.nn.modules.batchnorm._BatchNorm)
        model: Any = module
        every = [part for part in model.modules() if isinstance(part, (BatchNorm, torchs))]
        if not every:
            return module
        norms = select(module, lambda _: every)
        for path, norm in zip(norms.paths, norms.get(), strict=True):
            if isinstance(norm, torchs):
                raise TypeError(
                    f"{what}: {path or 'the module'} is lifted. Convert before: "
                    f"bridge.lift(torch.nn.SyncBatchNorm.convert_sync_batchnorm(original))"
                )
            if type(norm) not in _OURS and type(norm) is not cls:
                raise TypeError(
                    f"{what}: {path or 'the module'} is a {type(norm).__name__}, whose own "
                    f"forward and fields would be lost. Put in what replaces it: "
                    f"tree.select(model, {path!r}).set(...)"
                )
        return norms.apply(lambda norm: cls._of(norm, process_group))

    @classmethod
    def _of(cls, norm: BatchNorm, process_group: Any) -> SyncBatchNorm:
        made = cls(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats,
            process_group,
        )  # fmt: skip
        made = made.replace(**{name: getattr(norm, name) for name in cls.__layout__.children})
        object.__setattr__(made, "_spec", notes.carry_note(spec_of(norm), spec_of(made), ()))
        return made

    def forward(self, input: Tensor) -> Tensor:
        """The input, normalised by the statistics of all processes in training."""
        group = group_of(self.process_group) if self.mode == "train" else None
        if group is None or shards.is_known_distributed(input):  # whose moments are of all
            return super().forward(input)
        given: Any = input
        channels = given.shape[1] if isinstance(given, Tensor) and given.dim() > 1 else None
        if channels != self.num_features or given.dim() not in self.shapes:
            refuse(self, self.expected(), given)
        out, mean, var = self._synced(group, given)
        if self.running_mean is not None:
            before: Any = self.num_batches_tracked
            count = before + 1
            share: Any = 1.0 / count if self.momentum is None else self.momentum
            mean, var = self.stepped((mean.detach(), var.detach()), share)
            self.emit(merge="mean", running_mean=mean, running_var=var)
            self.emit(merge="last", num_batches_tracked=count)
        return out

    def _synced(self, group: str, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and mean and unbiased variance of each channel."""
        others = (0, *range(2, input.dim()))
        shape = (-1, *[1] * (input.dim() - 2))
        wide = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        own = wide.new_full((1,), input.numel() // self.num_features)
        sums = summed_over(group, torch.cat([wide.sum(others), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean.view(shape)
        var = summed_over(group, centred.square().sum(others)) / count
        out = centred * (var + self.eps).rsqrt().view(shape)
        weight: Any = self.weight
        bias: Any = self.bias
        out = out if weight is None else out * weight.view(shape)
        out = out if bias is None else out + bias.view(shape)
        return out.to(input.dtype), mean, var * count / (count - 1).clamp(min=1)
