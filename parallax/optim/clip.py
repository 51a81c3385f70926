"""Gradient clipping: by norm, by value, and per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, shards
from parallax.optim.arguments import check_at_least, check_kind
from parallax.optim.checks import refuse_sparse
from parallax.tree import core
from parallax.tree.arithmetic import scale

__all__ = ["ClipNorm", "ClipValue", "clip_grad_norm", "clip_grad_value", "clip_per_sample"]

T = TypeVar("T")
_TINY = 1e-6  # what torch adds to a norm before it divides


def clip_grad_norm(
    grads: T, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> tuple[T, Tensor]:
    """Gradients scaled down so that their total norm is at most ``max_norm``.

    The pure form of ``torch.nn.utils.clip_grad_norm_``, with its numbers.

    Args:
        grads: a tree of gradients; holes stay.
        max_norm: the largest norm.
        norm_type: the order of the norm; ``float("inf")`` for the largest magnitude.
        error_if_nonfinite: refuse gradients that are not finite. Reads the norm, so it is for
            eager code.

    Returns:
        The gradients, and their total norm before clipping, a tensor of no dimension.

    Raises:
        FloatingPointError: with ``error_if_nonfinite``, if the norm is nan or infinite; the
            message names the first leaf.

    Example:
        >>> import torch
        >>> from parallax import optim
        >>> optim.clip_grad_norm({"a": torch.tensor([3.0, 4.0])}, max_norm=1.0)
        ({'a': tensor([0.6000, 0.8000])}, tensor(5.))
    """
    _check_norm("clip_grad_norm", max_norm, norm_type, error_if_nonfinite)
    leaves = [_values(leaf) for leaf in _tensors("clip_grad_norm", grads)]
    norm = shards.summed(_total_norm(leaves, norm_type))
    if error_if_nonfinite and not bool(norm.isfinite()):
        raise FloatingPointError(_nonfinite(grads, norm))
    factor = torch.clamp(max_norm / (norm + _TINY), max=1.0)
    wider = any([leaf.ndim == 0 and leaf.dtype is not factor.dtype for leaf in leaves])
    if len({leaf.device for leaf in leaves}) == 1 and not (wider or _any_sparse(grads)):
        return scale(grads, factor), norm
    return core.map(lambda g: (g * factor.to(g.device)).to(g.dtype), grads), norm


def _total_norm(leaves: list[Any], norm_type: float) -> Tensor:
    """The norm of all gradients by torch's formula; unlike torch's function, differentiable."""
    foreach = False if dynamo.is_compiling() or functorch.transform_active() else None
    if foreach is None and not any([leaf.requires_grad for leaf in leaves]):
        return torch.nn.utils.get_total_norm(leaves, norm_type, foreach=foreach)
    norms = [torch.linalg.vector_norm(leaf, norm_type) for leaf in leaves]
    if not norms:
        return torch.tensor(0.0)
    alike = torch.stack([norm.to(norms[0].device) for norm in norms])
    total: Tensor = torch.linalg.vector_norm(alike, norm_type)
    return total


def _values(grad: Tensor) -> Tensor:
    """The entries that are not zero of a sparse gradient; a dense one as it is."""
    return grad.coalesce().values() if grad.layout is torch.sparse_coo else grad


def _any_sparse(grads: Any) -> bool:
    return any([leaf.layout is torch.sparse_coo for leaf in core.leaves(grads)])


def _check_norm(what: str, max_norm: Any, norm_type: Any, error_if_nonfinite: Any) -> None:
    _check_bound(what, "max_norm", max_norm)
    check_kind(what, "norm_type", norm_type, "float", 2.0)
    check_kind(what, "error_if_nonfinite", error_if_nonfinite, "bool", True)


def _tensors(what: str, grads: Any) -> list[Tensor]:
    """The gradients.

    Raises:
        TypeError: if it is not a tree of tensors.
    """
    leaves = core.leaves(grads)
    wrong = next((leaf for leaf in leaves if not isinstance(leaf, Tensor)), None)
    if grads is None or wrong is not None:
        raise TypeError(
            f"{what} takes a tree of gradients, got {'None' if grads is None else 'one with a '}"
            f"{'' if grads is None else type(wrong).__name__}. "
            f"Pass what func.grad returns: grads = func.grad(loss)(model)"
        )
    return leaves


def _check_bound(what: str, name: str, value: Any) -> None:
    check_kind(what, name, value, "float", 1.0)
    check_at_least(what, name, value, 0, strictly=True)


def _nonfinite(grads: Any, norm: Tensor) -> str:
    found, spec = core.opened(grads)
    for path, leaf in zip(spec.paths, found, strict=True):
        if leaf is not None and not bool(shards.whole(leaf.isfinite().all())):
            kind = "nan" if bool(shards.whole(leaf.isnan().any())) else "infinite"
            return (
                f"clip_grad_norm: the gradient of {path or 'the tensor'} has {kind} entries. "
                f"Lower the learning rate or scale the loss; to clip regardless, leave out "
                f"error_if_nonfinite"
            )
    return f"clip_grad_norm: the norm is {norm.item()}, though every gradient is finite"


def clip_grad_value(grads: T, clip_value: float) -> T:
    """Gradients with every entry between ``-clip_value`` and ``clip_value``.

    The pure form of ``torch.nn.utils.clip_grad_value_``.

    Args:
        grads: a tree of gradients; holes stay.
        clip_value: the largest magnitude.

    Returns:
        The gradients.

    Example:
        >>> import torch
        >>> from parallax import optim
        >>> optim.clip_grad_value({"a": torch.tensor([-5.0, 0.5])}, 1.0)
        {'a': tensor([-1.0000,  0.5000])}
    """
    _check_bound("clip_grad_value", "clip_value", clip_value)
    _tensors("clip_grad_value", grads)
    refuse_sparse("clip_grad_value", grads)
    return core.map(lambda g: g.clamp(-clip_value, clip_value).to(g.dtype), grads)


def clip_per_sample(grads: T, max_norm: float) -> T:
    """Per-sample gradients, each scaled down so that its norm is at most ``max_norm``.

    What differentially private training does before it averages (Abadi et al. 2016).

    Args:
        grads: a tree whose leaves have the shape ``(batch, ...)``, as ``func.per_sample_grad``
            returns it.
        max_norm: the largest norm of one sample's gradient.

    Returns:
        A tree of the same shapes.

    Raises:
        ValueError: if a leaf has no leading dimension, or the leading sizes differ.

    Example:
        >>> import torch
        >>> from parallax import optim
        >>> grads = {"weight": torch.tensor([[6.0, 8.0], [0.3, 0.4]])}  # of two samples
        >>> optim.clip_per_sample(grads, max_norm=5.0)["weight"]
        tensor([[3.0000, 4.0000], [0.3000, 0.4000]])
    """
    _check_bound("clip_per_sample", "max_norm", max_norm)
    leaves = _tensors("clip_per_sample", grads)
    sizes = {leaf.shape[:1] for leaf in leaves}
    if len(sizes) != 1 or torch.Size([]) in sizes:
        raise ValueError(
            f"clip_per_sample takes gradients of shape (batch, ...) with one size of batch, "
            f"got leading sizes {sorted(tuple(size) for size in sizes)}"
        )
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in _matrices(leaves)])
    norm = torch.linalg.vector_norm(norms, dim=0)
    factor = torch.clamp(max_norm / (norm + _TINY), max=1.0)
    return core.map(lambda g: g * factor.to(g.dtype).view(-1, *[1] * (g.ndim - 1)), grads)


def _matrices(leaves: list[Tensor]) -> list[Tensor]:
    return [leaf.unsqueeze(1) if leaf.ndim == 1 else leaf for leaf in leaves]


@dataclass(frozen=True)
class ClipNorm:
    """``clip_grad_norm`` as a part of ``chain``.

    Args:
        max_norm: the largest norm.
        norm_type: the order of the norm.
        error_if_nonfinite: refuse gradients that are not finite.

    Example:
        >>> import torch
        >>> from parallax import optim
        >>> optim.ClipNorm(1.0)({"a": torch.tensor([3.0, 4.0])})
        {'a': tensor([0.6000, 0.8000])}
        >>> opt = optim.chain(optim.ClipNorm(1.0), optim.Adam())  # clips before each step
    """

    max_norm: float
    norm_type: float = 2.0
    error_if_nonfinite: bool = False

    def __post_init__(self) -> None:
        _check_norm("ClipNorm", self.max_norm, self.norm_type, self.error_if_nonfinite)

    def __call__(self, grads: T) -> T:
        """The clipped gradients."""
        return clip_grad_norm(grads, self.max_norm, self.norm_type, self.error_if_nonfinite)[0]


@dataclass(frozen=True)
class ClipValue:
    """``clip_grad_value`` as a part of ``chain``.

    Args:
        clip_value: the largest magnitude.

    Example:
        >>> import torch
        >>> from parallax import optim
        >>> optim.ClipValue(1.0)({"a": torch.tensor([3.0, -0.5])})
        {'a': tensor([ 1.0000, -0.5000])}
        >>> opt = optim.chain(optim.ClipValue(1.0), optim.SGD())  # clips before each step
    """

    clip_value: float

    def __post_init__(self) -> None:
        _check_bound("ClipValue", "clip_value", self.clip_value)

    def __call__(self, grads: T) -> T:
        """The clipped gradients."""
        return clip_grad_value(grads, self.clip_value)
