"""The operators whose per-sample gradients are known as factors, watched while a function runs.

A call ``F.linear(x, weight, bias)`` with a leaf for a weight is made with all samples at once, and
its given and the place of its output in autograd's graph are kept. Any other use of a leaf is left
alone: it gets a copy of the leaf for each sample, and autograd does the rest. So nothing has to be
known about a function, and a use that is not recognised is exact all the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from parallax._compat import functorch
from parallax.func.outer import Outer

__all__ = ["Found", "TogetherMode", "TracedMode", "UseMode"]


class Use(ABC):
    """A call of an operator with leaves for its weight and bias.

    Attributes:
        weight: its weight, as the function passed it.
        bias: its bias, or ``None``.
    """

    weight: Any
    bias: Any = None

    @abstractmethod
    def flat(self, given: Tensor) -> Tensor:
        """The input of all samples, as the operator is to get it."""

    @abstractmethod
    def run(self, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The operator on what ``flat`` gives."""

    @abstractmethod
    def flat_output(self, output: Tensor) -> Tensor:
        """The output of all samples, or its gradient, as ``run`` gives it."""

    @abstractmethod
    def sizes(self, given: Tensor, output: Tensor) -> Sequence[int]:
        """The shape of the output of all samples.

        Args:
            given: the input of all samples, before ``flat``.
            output: what ``run`` gave.
        """

    @abstractmethod
    def gradient(self, given: Tensor, output: Tensor, samples: int) -> tuple[Outer, Tensor | None]:
        """The per-sample gradients of the weight and, if there is one, of the bias.

        Args:
            given: the input, as ``flat`` gave it.
            output: the gradient with respect to what ``run`` gave.
            samples: how many there are.
        """


class _Linear(Use):
    def __init__(self, input: Any, weight: Any, bias: Any = None) -> None:
        self.given, self.weight, self.bias = input, weight, bias

    def flat(self, given: Tensor) -> Tensor:
        return given.reshape(-1, given.shape[-1])

    def flat_output(self, output: Tensor) -> Tensor:
        return self.flat(output)

    def run(self, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(given, weight, bias)

    def sizes(self, given: Tensor, output: Tensor) -> Sequence[int]:
        return (*given.shape[:-1], output.shape[-1])

    def gradient(self, given: Tensor, output: Tensor, samples: int) -> tuple[Outer, Tensor | None]:
        count = output.shape[0] // max(samples, 1)
        left = output.reshape(samples, 1, count, output.shape[-1])
        right = given.view(samples, 1, count, given.shape[-1])
        return Outer(left, right), None if self.bias is None else left.sum((1, 2))


class _Conv(Use):
    convolve: ClassVar[Callable[..., Tensor]]
    dims: ClassVar[int]

    def __init__(
        self, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> None:  # fmt: skip
        self.given, self.weight, self.bias = input, weight, bias
        self.stride, self.dilation = self._each(stride), self._each(dilation)
        self.padding, self.groups = padding, groups

    def _each(self, size: Any) -> tuple[int, ...]:
        sizes = (size,) if isinstance(size, int) else tuple(size)
        return sizes * self.dims if len(sizes) == 1 else sizes

    def flat(self, given: Tensor) -> Tensor:
        return given.reshape(-1, *given.shape[-self.dims - 1 :])

    def flat_output(self, output: Tensor) -> Tensor:
        return self.flat(output)

    def run(self, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.convolve(
            given, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )

    def sizes(self, given: Tensor, output: Tensor) -> Sequence[int]:
        return (*given.shape[: -self.dims - 1], *output.shape[1:])

    def gradient(self, given: Tensor, output: Tensor, samples: int) -> tuple[Outer, Tensor | None]:
        windows = self._windows(given, output.shape[2:])
        # (samples, images of each, groups, channels of the group, positions)
        shape = (samples, output.shape[0] // max(samples, 1), self.groups)
        left = output.reshape(*shape, output.shape[1] // self.groups, windows.shape[2])
        right = windows.view(*shape, windows.shape[1] // self.groups, windows.shape[2])
        bias = None if self.bias is None else left.sum((1, 4)).flatten(1)
        return Outer(_positions_inside(left), _positions_inside(right)), bias

    def _windows(self, given: Tensor, out: Sequence[int]) -> Tensor:
        """What each element of the kernel is laid on: ``(N, channels * kernel, positions)``."""
        kernel = self.weight.shape[2:]
        sides: list[int] = []
        for padded in reversed(self._padding(kernel)):
            sides += padded
        if any(sides):
            given = F.pad(given, sides)
        given = given.contiguous()
        steps = given.stride()[2:]
        inner = [step * d for step, d in zip(steps, self.dilation, strict=True)]
        outer = [step * s for step, s in zip(steps, self.stride, strict=True)]
        count, channels = given.shape[:2]
        windows = given.as_strided(
            (count, channels, *kernel, *out), (*given.stride()[:2], *inner, *outer)
        )
        return windows.reshape(count, channels * kernel.numel(), prod(out))

    def _padding(self, kernel: Sequence[int]) -> list[tuple[int, int]]:
        """How much is put before and after each dimension."""
        if self.padding == "same":
            spans = [d * (k - 1) for d, k in zip(self.dilation, kernel, strict=True)]
            return [(span // 2, span - span // 2) for span in spans]
        sizes = (0,) * self.dims if self.padding == "valid" else self._each(self.padding)
        return [(size, size) for size in sizes]


def _positions_inside(factor: Tensor) -> Tensor:
    """``(samples, groups, positions of all images, channels)``."""
    if factor.shape[1] == 1:  # without a copy
        return factor[:, 0].mT
    return factor.permute(0, 2, 1, 4, 3).flatten(2, 3)


class _Conv1d(_Conv):
    convolve = staticmethod(F.conv1d)
    dims = 1


class _Conv2d(_Conv):
    convolve = staticmethod(F.conv2d)
    dims = 2


class _Conv3d(_Conv):
    convolve = staticmethod(F.conv3d)
    dims = 3


class _Embedding(Use):
    def __init__(
        self, input: Any, weight: Any, padding_idx: int | None = None, max_norm: Any = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
    ) -> None:  # fmt: skip
        if max_norm is not None or scale_grad_by_freq or sparse:
            raise TypeError("F.embedding has a rule for its plain form only")
        self.given, self.weight = input, weight
        self.padding_idx = padding_idx

    def flat(self, given: Tensor) -> Tensor:
        return given.reshape(-1)

    def flat_output(self, output: Tensor) -> Tensor:
        return output.reshape(-1, output.shape[-1])

    def run(self, given: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.embedding(given, weight)

    def sizes(self, given: Tensor, output: Tensor) -> Sequence[int]:
        return (*given.shape, output.shape[-1])

    def gradient(self, given: Tensor, output: Tensor, samples: int) -> tuple[Outer, Tensor | None]:
        if self.padding_idx is not None:
            padding = self.padding_idx % self.weight.shape[-2]
            output = output.masked_fill((given == padding).unsqueeze(1), 0)
        count = output.shape[0] // max(samples, 1)
        rows = given.view(samples, count).long()
        return Outer(rows, output.reshape(samples, 1, count, output.shape[-1])), None


_KINDS: Mapping[Any, type[Any]] = {
    F.linear: _Linear,
    F.conv1d: _Conv1d,
    F.conv2d: _Conv2d,
    F.conv3d: _Conv3d,
    F.embedding: _Embedding,
}

# Their scale and shift are as large as what they are applied to; so are their gradients.
_SCALED = {F.layer_norm, F.rms_norm, F.group_norm, F.instance_norm, F.batch_norm}


class Found:
    """A call whose rule is known.

    Attributes:
        use: what was called.
        weight: which leaf its weight is.
        bias: which leaf its bias is, if it is one.
        given: the input.
        output: what stands for the output, to be differentiated with respect to.
    """

    __slots__ = ("bias", "given", "output", "use", "weight")

    def __init__(self, use: Use, weight: int, bias: int | None, given: Tensor, output: Any) -> None:
        self.use, self.weight, self.bias = use, weight, bias
        self.given, self.output = given, output


class UseMode(TorchFunctionMode, ABC):
    """Notes the calls whose rule is known, and makes them with the leaves themselves.

    Args:
        members: what the function gets for each leaf.
        shared: the leaf itself, of those that all samples share, to be differentiated.

    Attributes:
        found: the calls.
        scaled: the leaves that were the scale or shift of a norm.
    """

    def __init__(self, members: Sequence[Tensor], shared: Sequence[Tensor | None]) -> None:
        super().__init__()
        # A tensor is found in a dict by its identity.
        self.places = {m: k for k, m in enumerate(members) if shared[k] is not None}
        self.shared = shared
        self.level = functorch.traced_level()
        self.found: list[Found] = []
        self.scaled: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = _KINDS.get(func)
        if kind is not None:
            output = self._known(kind, args, kwargs)
            if output is not None:
                return output
        elif func in _SCALED:
            places = [self._place(arg) for arg in [*args, *kwargs.values()]]
            self.scaled.update([place for place in places if place is not None])
        return func(*args, **kwargs)

    def _place(self, value: Any) -> int | None:
        return self.places.get(value) if isinstance(value, Tensor) else None

    def _known(self, kind: type[Any], args: Any, kwargs: Any) -> Tensor | None:
        """The output of a call with a rule, ``None`` for any other."""
        try:
            use = kind(*args, **kwargs)
        except TypeError:  # a form without a rule, or a wrong call, which torch refuses
            return None
        place, bias_place = self._place(use.weight), self._place(use.bias)
        weight = None if place is None else self.shared[place]
        if place is None or weight is None or not self._is_plain(use.given):
            return None
        given: Tensor = use.given
        if given.dtype != weight.dtype and given.is_floating_point():
            return None
        bias = use.bias if bias_place is None else self.shared[bias_place]
        if bias_place is None and bias is not None and not self._is_constant(bias):
            return None
        use.weight, use.bias = weight, None if bias_place is None else bias
        return self._called(use, place, bias_place, bias)

    def _is_plain(self, given: Any) -> bool:
        """Whether an input belongs to our transform, and to nothing inside of it."""
        return (
            isinstance(given, Tensor)
            and self.level == functorch.traced_level()
            and torch.is_grad_enabled()
            and not torch.is_autocast_enabled(given.device.type)
        )

    @abstractmethod
    def _is_constant(self, bias: Any) -> bool:
        """Whether a bias that is no leaf depends on none."""

    @abstractmethod
    def _called(
        self, use: Any, place: int, bias_place: int | None, bias: Tensor | None
    ) -> Tensor | None:
        """The output of a call, which is noted."""


class TogetherMode(UseMode):
    """Makes the calls with all samples at once, within one ``vmap`` on the tape."""

    def __init__(self, members: Sequence[Tensor], shared: Sequence[Tensor | None]) -> None:
        super().__init__(members, shared)
        self.versions: list[int] = []

    @property
    def written(self) -> bool:
        """Whether an input was written in place after its call."""
        pairs = zip(self.found, self.versions, strict=True)
        return any([found.given._version != version for found, version in pairs])

    def _is_plain(self, given: Any) -> bool:
        return (
            functorch.is_mapped(given)
            and functorch.level_of(given) == self.level
            and super()._is_plain(given)
        )

    def _is_constant(self, bias: Any) -> bool:
        return not (functorch.is_wrapped(bias) or bias.requires_grad)

    def _called(
        self, use: Any, place: int, bias_place: int | None, bias: Tensor | None
    ) -> Tensor | None:
        whole = functorch.with_members_first(use.given)
        flat = use.flat(whole)
        if flat.is_inference():
            return None
        output = use.run(flat, use.weight, bias)
        # The output itself may be written in place, as nn.ReLU(inplace=True) does.
        edge = torch.autograd.graph.get_gradient_edge(output)
        self.found.append(Found(use, place, bias_place, flat.detach(), edge))
        self.versions.append(flat._version)
        return functorch.as_mapped(output.view(use.sizes(whole, output)), self.level)


class TracedMode(UseMode):
    """Makes the calls for one sample, within ``torch.func.vjp`` in a trace."""

    def _is_constant(self, bias: Any) -> bool:
        return not bias.requires_grad

    def _called(
        self, use: Any, place: int, bias_place: int | None, bias: Tensor | None
    ) -> Tensor | None:
        output: Tensor = use.run(use.given, use.weight, bias)
        # What is noted is not written, whatever happens to input and output.
        self.found.append(Found(use, place, bias_place, use.given.clone(), output))
        return output.clone()
