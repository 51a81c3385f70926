"""A wrapper that keeps a matrix of a layer orthogonal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from parallax._errors.arguments import check_flags
from parallax.core.fields import Buffer, Lazy
from parallax.nn.arguments import one_of
from parallax.nn.computed import Computed, L, with_leaf
from parallax.nn.precision import widened

__all__ = ["Orthogonal"]


class Orthogonal(Computed[L]):
    r"""Computes a matrix with orthonormal columns, or rows if there are more, before each call.

    :math:`B Q(X)`, where :math:`X` is what is trained, :math:`Q` one of three maps, and :math:`B`
    an orthogonal matrix that stays. At first the matrix is the layer's own, made orthogonal.
    Further dimensions before the last two are a batch of matrices.

    Args:
        orthogonal_map: ``"matrix_exp"`` of a skew-symmetric matrix, ``"cayley"``, its Cayley map,
            or ``"householder"``, a product of reflections, for real matrices. By default
            ``"householder"`` for real matrices that are not square, otherwise ``"matrix_exp"``.
        use_trivialization: whether there is a ``B``. Without, and without reflections, the first
            matrix is a map of the layer's own.

    Raises:
        ValueError: if the parameter is no matrix, or the map does not take it.

    Source: M. Lezcano-Casado, "Trivializations for Gradient-Based Optimization on Manifolds",
    NeurIPS 2019; numbers and state dict as of ``torch.nn.utils.parametrizations.orthogonal``.

    Example:
        >>> layer = nn.Orthogonal(nn.Linear(20, 40)).initialize(0)
        >>> torch.dist(layer.weight.mT @ layer.weight, torch.eye(20)) < 1e-5
        tensor(True)
    """

    orthogonal_map: str
    use_trivialization: bool
    base: Buffer | None

    def __init__(
        self,
        layer: L,
        name: str = "weight",
        orthogonal_map: str | None = None,
        *,
        use_trivialization: bool = True,
    ) -> None:
        super().__init__(layer, name)
        weight: Any = self.original()
        check_flags("Orthogonal", use_trivialization=use_trivialization)
        if weight.dim() < 2:
            raise ValueError(
                f"Orthogonal(name=): {name!r} has shape {tuple(weight.shape)}. Give the name of a "
                f"matrix, or use nn.WeightNorm"
            )
        if orthogonal_map is None:
            square = weight.shape[-1] == weight.shape[-2]
            orthogonal_map = "matrix_exp" if square or weight.is_complex() else "householder"
        choices = ("matrix_exp", "cayley", "householder")
        self.orthogonal_map = one_of("Orthogonal", "orthogonal_map", orthogonal_map, *choices)
        if weight.is_complex() and orthogonal_map == "householder":
            raise ValueError(
                "Orthogonal(orthogonal_map=): 'householder' is for real matrices, and "
                f"{name!r} is complex. Write orthogonal_map='matrix_exp'"
            )
        self.use_trivialization = use_trivialization
        self.base = None
        start = _minus_identity_
        if use_trivialization:
            self.base = _base_of(weight)
        elif orthogonal_map == "householder":
            start = _reflections_
        else:
            return
        self.layer = with_leaf(layer, self.place, _from(start, weight))

    @property
    def weight(self) -> Tensor:
        """The matrix that the layer is called with, whatever its name."""
        whole = self.original()
        given = widened(whole)  # torch has no linear algebra in half precision
        wide = given.shape[-2] < given.shape[-1]
        tall = given.mT if wide else given
        reflect = self.orthogonal_map == "householder"
        found = _reflected(tall) if reflect else _rotated(tall, self.orthogonal_map)
        if self.base is not None:
            found = widened(self.base) @ found
        return (found.mT if wide else found).to(whole.dtype)

    @staticmethod
    def __state_name__(name: str, constants: dict[str, Any]) -> str:
        own = f"parametrizations.{constants['name']}"
        known = {"base": f"{own}.0.base", f"layer.{constants['name']}": f"{own}.original"}
        return known.get(name) or name.removeprefix("layer.")

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"name={self.name!r}, orthogonal_map={self.orthogonal_map!r}, "
            f"use_trivialization={self.use_trivialization}"
        )


def _rotated(tall: Tensor, how: str) -> Tensor:
    """The first columns of a map of the skew-symmetric matrix whose lower part is given."""
    n, k = tall.shape[-2:]
    lower = tall.tril()
    if n != k:
        lower = torch.cat([lower, lower.new_zeros(*lower.shape[:-1], n - k)], -1)
    skew = lower - lower.mH
    if how == "matrix_exp":
        return torch.matrix_exp(skew)[..., :k]
    one = torch.eye(n, dtype=skew.dtype, device=skew.device)
    # The derivatives of the forward derivative of torch.linalg.solve are wrong (2.14).
    found: Tensor = torch.linalg.inv(one - skew / 2) @ (one + skew / 2)
    return found[..., :k]


def _reflected(tall: Tensor) -> Tensor:
    """The first columns of a product of reflections, each by a column below the diagonal.

    The derivatives of the forward derivative of torch.linalg.householder_product are wrong (2.14).
    Source: T. Joffrain and others, "Accumulating Householder Transformations, Revisited", 2006.
    """
    n, k = tall.shape[-2:]
    one = torch.eye(n, k, dtype=tall.dtype, device=tall.device)
    vectors = tall.tril(-1) + one
    products = vectors.mT @ vectors
    halves = products.triu(1) + torch.diag_embed(products.diagonal(dim1=-2, dim2=-1) / 2)
    right = torch.linalg.solve_triangular(halves, vectors[..., :k, :].mT, upper=True)
    # Signs, which torch reads as ints: weight decay would make them zeros.
    signs = torch.where(tall.diagonal(dim1=-2, dim2=-1) < 0, -1, 1).unsqueeze(-2)
    found: Tensor = (one - vectors @ right) * signs
    return found


def _from(start: Callable[[Tensor], None], weight: Any) -> Any:
    """What is trained at first: a declaration of it if the weight is declared."""
    if not isinstance(weight, Lazy):
        made: Tensor = weight.detach().clone()
        start(made)
        return made
    declared, own = weight.copy(), weight.init
    declared.init = start if start is _minus_identity_ else partial(_after_, own=own, start=start)
    declared.owner = weight.owner
    return declared


def _base_of(weight: Any) -> Any:
    """The matrix that stays: the weight made orthogonal, and completed to be square."""
    if not isinstance(weight, Lazy):
        return _completed(weight.detach())
    size = max(weight.shape[-2:])
    fill = partial(_fill_base_, own=weight.init, shape=tuple(weight.shape))
    return Buffer((*weight.shape[:-2], size, size), fill, dtype=weight.dtype)


def _completed(weight: Tensor) -> Tensor:
    tall = widened(weight.mT if weight.shape[-2] < weight.shape[-1] else weight)
    square, upper = torch.linalg.qr(tall, mode="complete")
    signs = upper.diagonal(dim1=-2, dim2=-1).sgn()
    signs = torch.where(signs == 0, torch.ones_like(signs), signs).unsqueeze(-2)
    count = tall.shape[-1]
    return torch.cat([square[..., :count] * signs, square[..., count:]], -1).to(weight.dtype)


def _fill_base_(tensor: Tensor, *, own: Callable[..., Any], shape: tuple[int, ...]) -> None:
    drawn = tensor.new_empty(shape)
    own(drawn)
    tensor.copy_(_completed(drawn))


def _after_(tensor: Tensor, *, own: Callable[..., Any], start: Callable[[Tensor], None]) -> None:
    own(tensor)
    start(tensor)


def _minus_identity_(tensor: Tensor) -> None:
    """Without reflections or rotations. The signs are negative: each reflection turns its axis."""
    tensor.zero_().diagonal(dim1=-2, dim2=-1).fill_(-1)


def _reflections_(tensor: Tensor) -> None:
    """The reflections whose product a matrix is, once it is made orthogonal."""
    wide = tensor.shape[-2] < tensor.shape[-1]
    found, factors = torch.geqrf(widened(tensor.mT if wide else tensor))
    signs = found.diagonal(dim1=-2, dim2=-1)
    signs.copy_(torch.where(factors == 0, -signs.sign(), signs.sign()))
    tensor.copy_(found.mT if wide else found)
