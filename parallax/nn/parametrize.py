"""Wrappers that compute a parameter of a layer from others before each call."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from parallax._compat import kernels
from parallax._compat.gradients import WhereRecorded
from parallax.core.fields import Buffer, Lazy, Parameter
from parallax.nn.arguments import between, integer, positive
from parallax.nn.computed import Computed, L, path_of
from parallax.nn.exactness import in_plain_eager_code
from parallax.nn.transposed import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from parallax.random.initialize import Following

__all__ = ["SpectralNorm", "WeightNorm"]


class SpectralNorm(Computed[L]):
    r"""Divides a weight by its largest singular value before each call: :math:`W / \sigma(W)`.

    :math:`\sigma = u^T W v` for two vectors that power iterations move towards the singular
    vectors. In mode ``"train"`` each call makes some iterations and emits the vectors: run it
    inside ``effects.collect``. In mode ``"eval"`` they do not change. Of several uses of the
    layer the last emission counts; all start from the same vectors, so they are equal.

    Args:
        layer: the layer that has the parameter.
        name: the name of the parameter in the layer's state dict.
        n_power_iterations: how many a call in mode ``"train"`` makes.
        eps: the least norm that a vector is divided by.
        dim: the dimension of the outputs, which become the rows of a matrix; by default 1 of a
            transposed convolution, otherwise 0.

    Shape:
        - input, output: the layer's

    Raises:
        EffectError: if nobody collects, in mode ``"train"``.
        TypeError: if ``layer`` is not a module.
        ValueError: if it has no such parameter, or a number is out of range.

    Source: T. Miyato et al., "Spectral Normalization for Generative Adversarial Networks",
    ICLR 2018; numbers and state dict as of ``torch.nn.utils.parametrizations.spectral_norm``.

    Example:
        >>> layer = nn.SpectralNorm(nn.Linear(20, 40)).initialize(0).eval()
        >>> torch.linalg.matrix_norm(layer.weight, 2).round(decimals=1)
        tensor(1.)
    """

    n_power_iterations: int
    eps: float
    dim: int
    u: Buffer | None
    v: Buffer | None

    def __init__(
        self,
        layer: L,
        name: str = "weight",
        n_power_iterations: int = 1,
        eps: float = 1e-12,
        dim: int | None = None,
    ) -> None:
        super().__init__(layer, name)
        positive("SpectralNorm", n_power_iterations=n_power_iterations)
        between("SpectralNorm", 0, eps=eps)
        transposed = isinstance(layer, (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d))
        weight = self.original()
        axis = _dimension("SpectralNorm", int(transposed) if dim is None else dim, weight)
        self.n_power_iterations = n_power_iterations
        self.eps = eps
        self.dim = axis = axis % max(weight.ndim, 1)
        self.u = self.v = None
        if weight.ndim > 1:
            rows, kept = weight.shape[axis], {"dtype": weight.dtype}
            columns = weight.numel() // rows
            others = [path_of(layer, self.place)]
            start = partial(_fill_left_, dim=axis, eps=eps)
            finish = partial(_fill_right_, dim=axis, eps=eps)
            self.u = Buffer((rows,), Following(start, *others), **kept)
            self.v = Buffer((columns,), Following(finish, *others, "u"), **kept)

    @property
    def weight(self) -> Tensor:
        """The weight, normalised with the current vectors."""
        return self._normalised(self.original(), self.u, self.v)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns with the normalised weight."""
        weight, u, v = self.original(), self.u, self.v
        if u is not None and v is not None and self.mode == "train":
            matrix = _matrix(weight.detach(), self.dim)
            for _ in range(self.n_power_iterations):
                u = F.normalize(torch.mv(matrix, v), dim=0, eps=self.eps)
                v = F.normalize(torch.mv(matrix.H, u), dim=0, eps=self.eps)
            self.emit(merge="last", u=u, v=v)
        return self._call(self._normalised(weight, u, v), args, kwargs)

    def _normalised(self, weight: Tensor, u: Any, v: Any) -> Tensor:
        if u is None:  # the largest singular value of a vector is its norm
            return F.normalize(weight, dim=0, eps=self.eps)
        sigma = torch.vdot(u, torch.mv(_matrix(weight, self.dim), v))
        return weight / sigma

    @staticmethod
    def __state_name__(name: str, constants: dict[str, Any]) -> str:
        own = f"parametrizations.{constants['name']}"
        known = {"u": f"{own}.0._u", "v": f"{own}.0._v"}
        known[f"layer.{constants['name']}"] = f"{own}.original"
        return known.get(name) or name.removeprefix("layer.")

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"name={self.name!r}, n_power_iterations={self.n_power_iterations}, eps={self.eps}, "
            f"dim={self.dim}"
        )


class WeightNorm(Computed[L]):
    r"""Computes a weight from a magnitude and a direction before each call: :math:`g v / \|v\|`.

    Args:
        layer: the layer that has the parameter; it holds the direction, v, in its place.
        name: the name of the parameter in the layer's state dict.
        dim: the dimension each of whose slices has a magnitude of its own; ``None`` for one
            magnitude.

    Shape:
        - input, output: the layer's

    Raises:
        TypeError: if ``layer`` is not a module.
        ValueError: if it has no such parameter, or that has no such dimension.

    Source: T. Salimans, D. Kingma, "Weight Normalization", NeurIPS 2016; numbers and state dict as
    of ``torch.nn.utils.parametrizations.weight_norm``.

    Example:
        >>> layer = nn.WeightNorm(nn.Linear(20, 40)).initialize(0)
        >>> torch.allclose(layer.weight, layer.layer.weight)
        True
        >>> layer(torch.ones(5, 20)).shape
        torch.Size([5, 40])
    """

    dim: int | None
    magnitude: Parameter

    def __init__(self, layer: L, name: str = "weight", dim: int | None = 0) -> None:
        super().__init__(layer, name)
        direction: Any = self.original()
        self.dim = None if dim is None else _dimension("WeightNorm", dim, direction)
        if self.dim is not None:
            self.dim %= max(direction.ndim, 1)
        if isinstance(direction, Lazy):
            sizes = enumerate(direction.shape)
            shape = [size if axis == self.dim else 1 for axis, size in sizes]
            start = Following(partial(_fill_norm_, dim=self.dim), path_of(layer, self.place))
            self.magnitude = Parameter(() if dim is None else shape, start, dtype=direction.dtype)
        else:
            self.magnitude = _norm(direction.detach(), self.dim)

    @property
    def weight(self) -> Tensor:
        """The weight that the layer is called with."""
        direction: Tensor = self.original()
        dim = self.dim
        if in_plain_eager_code():
            whole = -1 if dim is None else dim
            return _weight_norm_watched(kernels.weight_norm(direction, self.magnitude, whole))
        return _scaled(direction, self.magnitude, dim)

    @staticmethod
    def __state_name__(name: str, constants: dict[str, Any]) -> str:
        own = f"parametrizations.{constants['name']}"
        known = {"magnitude": f"{own}.original0", f"layer.{constants['name']}": f"{own}.original1"}
        return known.get(name) or name.removeprefix("layer.")

    def extra_repr(self) -> str:
        """The arguments."""
        return f"name={self.name!r}, dim={self.dim}"


def _scaled(direction: Tensor, magnitude: Tensor, dim: int | None) -> Tensor:
    """A weight of this norm, in operators whose derivatives are right at every order."""
    others = [axis for axis in range(direction.dim()) if axis != dim]
    if not others:
        return direction * (magnitude / direction.abs())
    # The forward derivative of vector_norm writes to what its own derivative needs.
    squares = (direction * direction.conj()).real if direction.is_complex() else direction.square()
    return direction * (magnitude / squares.sum(others, keepdim=dim is not None).sqrt())


def _weight_norm_rule(node: Any) -> Any:
    dim: int = node._saved_dim
    return (node._saved_v, node._saved_g), partial(_scaled, dim=dim)


# Torch's second derivative treats the norms as constants (2.13).
_weight_norm_watched = WhereRecorded({"WeightNormInterfaceBackward0": _weight_norm_rule}).watch


def _dimension(layer: str, dim: Any, weight: Any) -> int:
    """Raises unless a weight has this dimension."""
    integer(layer, dim=dim)
    if not -weight.ndim <= dim < max(weight.ndim, 1):
        raise ValueError(f"{layer}(dim=): the weight has {weight.ndim} dimensions, got {dim}")
    return int(dim)


def _matrix(weight: Tensor, dim: int) -> Tensor:
    """A weight as a matrix whose rows are its slices along ``dim``."""
    return (weight.movedim(dim, 0) if dim else weight).flatten(1)


def _norm(weight: Tensor, dim: int | None) -> Tensor:
    """The norm of each slice along ``dim``, or of the whole."""
    others = [axis for axis in range(weight.dim()) if axis != dim]
    if not others:
        return weight.abs()
    norm: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=dim is not None)
    return norm


def _fill_norm_(tensor: Tensor, weight: Tensor, *, dim: int | None) -> None:
    tensor.copy_(_norm(weight, dim))


def _fill_left_(tensor: Tensor, weight: Tensor, *, dim: int, eps: float) -> None:
    """Near the left singular vector: torch makes 15 iterations from a random one."""
    matrix = _matrix(weight, dim)
    v = F.normalize(init.normal_(weight.new_empty(matrix.shape[1])), dim=0, eps=eps)
    for turn in range(15):
        if turn:
            v = F.normalize(torch.mv(matrix.H, tensor), dim=0, eps=eps)
        tensor.copy_(F.normalize(torch.mv(matrix, v), dim=0, eps=eps))


def _fill_right_(tensor: Tensor, weight: Tensor, left: Tensor, *, dim: int, eps: float) -> None:
    """The right singular vector that belongs to the left one."""
    tensor.copy_(F.normalize(torch.mv(_matrix(weight, dim).H, left), dim=0, eps=eps))
