"""Whether two trees hold the same values."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, shards
from parallax._errors.arguments import check_flags
from parallax.core.fields import Lazy
from parallax.tree import core
from parallax.tree.arguments import check_number, refuse_torch_module
from parallax.tree.leaves import is_inexact
from parallax.tree.mixing import refuse_rows
from parallax.tree.repr import shape_text

__all__ = ["allclose", "equal", "near_arrays", "same_other"]


def equal(one: Any, two: Any) -> Any:
    """Whether two trees have one skeleton and equal leaves: shape, dtype, device, layout, numbers.

    NumPy arrays and numbers are compared so, too, and equal no tensor; other leaves by ``==``.
    Modes, frozen marks and random states are not compared. As in ``torch.equal``, a ``nan``
    equals nothing.

    Args:
        one: a module, or any pytree that holds modules and tensors.
        two: another.

    Returns:
        A bool; inside a ``torch.func`` transform or a compiled function, where values are not
        known, a bool tensor of no dimension.

    Raises:
        TypeError: if two leaves of one class cannot be compared.
        ValueError: if a plain leaf stands beside a distributed one.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> tree.equal({"a": torch.ones(2)}, {"a": torch.ones(2)})
        True
    """
    return _compare("tree.equal", one, two, lambda a, b: a == b, lambda a, b: a == b)


def allclose(
    one: Any, two: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Any:
    """Whether two trees have one skeleton and nearly equal leaves, as ``torch.allclose`` says.

    Integer leaves must be equal; so must leaves that are no numbers, as ``tree.equal`` says.

    Args:
        one: a module, or any pytree that holds modules and tensors.
        two: another; its leaves have the same shapes and dtypes.
        rtol: the relative tolerance, of the leaves of ``two``.
        atol: the absolute tolerance.
        equal_nan: whether a ``nan`` equals a ``nan``.

    Returns:
        A bool; inside a ``torch.func`` transform or a compiled function a bool tensor.

    Raises:
        TypeError: if two leaves of one class cannot be compared.
        ValueError: if a plain leaf stands beside a distributed one, or a tolerance is negative.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> tree.allclose({"a": torch.ones(2)}, {"a": torch.ones(2) + 1e-7})
        True
    """
    check_number("tree.allclose", "rtol", rtol, 0)
    check_number("tree.allclose", "atol", atol, 0)
    check_flags("tree.allclose", equal_nan=equal_nan)

    def close(a: Tensor, b: Tensor) -> Tensor:
        if not is_inexact(a):
            return a == b
        if a.itemsize == 1:  # torch has no arithmetic for these
            a, b = a.float(), b.float()
        # The formula of torch.isclose, which vmap has no rule for.
        distance = (a - b).abs()
        near = (a == b) | (distance.isfinite() & (distance <= atol + (rtol * b).abs()))
        return near | (a.isnan() & b.isnan()) if equal_nan else near

    return _compare("tree.allclose", one, two, close, near_arrays(rtol, atol, equal_nan))


def near_arrays(rtol: float, atol: float, equal_nan: bool) -> Callable[[Any, Any], Any]:
    """Says where two arrays of NumPy are near; of integers, where they are equal."""

    def near(a: Any, b: Any) -> Any:
        if a.dtype.kind not in "fc":
            return a == b
        return sys.modules["numpy"].isclose(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan)

    return near


def _compare(
    what: str,
    one: Any,
    two: Any,
    same: Callable[[Tensor, Tensor], Tensor],
    same_arrays: Callable[[Any, Any], Any],
) -> Any:
    """Whether all leaves are ``same``; in eager the first difference ends it."""
    for tree in (one, two):
        if isinstance(tree, torch.nn.Module):
            refuse_torch_module(tree)
    try:
        spec, found, (others,) = core.columns(one, [two])
    except ValueError:
        return False
    for part, _, item in core.beside(spec, one, two):
        if part is not None and core.expand_of(part) != core.expand_of(
            core.structure(item).parts[0]
        ):
            return False  # equal, but not tied alike
    unknown = dynamo.is_compiling() or functorch.transform_active()
    verdicts: list[Tensor] = []
    for k, (a, b) in enumerate(zip(found, others, strict=True)):
        if type(a) in (float, complex) and type(a) is type(b):
            dtype = torch.float64 if type(a) is float else torch.complex128
            a, b = torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype)  # noqa: PLW2901
        elif unknown and _is_array(a) and _is_array(b):
            a, b = torch.tensor(a), torch.tensor(b)  # noqa: PLW2901  # dynamo has tensors for them
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if any([getattr(a, fact) != getattr(b, fact) for fact in _FACTS]):
                return False
            try:
                verdict = same(*_dense(a, b)).all()
                if not (unknown or shards.whole(verdict)):
                    return False
            except RuntimeError as error:
                refuse_rows(error, what, spec.paths, found, others)
                raise TypeError(
                    _incomparable(what, spec.paths[k] or "the tensor", a, error)
                ) from error
            if unknown:
                verdicts.append(verdict)
        elif not same_other(a, b, same_arrays):
            return False
    return shards.all_true(verdicts) if verdicts else True


_FACTS = ("shape", "dtype", "device", "layout")


def _dense(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors of one layout as dense ones; the entries alone of sparse ones where they can."""
    if a.layout in (torch.strided, torch.jagged):
        return a, b
    if a.layout is torch.sparse_coo:
        a, b = a.coalesce(), b.coalesce()
        if a.indices().shape == b.indices().shape and bool((a.indices() == b.indices()).all()):
            return a.values(), b.values()
    return a.to_dense(), b.to_dense()


def _incomparable(what: str, path: str, leaf: Tensor, error: RuntimeError) -> str:
    if leaf.is_meta:
        told = "is on the device meta, and has no values. Compare what is known: tree.diff"
    else:
        reason = str(error).split(". ", maxsplit=1)[0].splitlines()[0]
        told = f"is {shape_text(leaf)}, of which torch compares no values: {reason}"
    return f"{what}: {path} {told}"


def same_other(a: Any, b: Any, same_arrays: Callable[[Any, Any], Any]) -> bool:
    """Whether two leaves of which one is not a tensor are the same."""
    if _is_array(a) and _is_array(b):
        return a.shape == b.shape and a.dtype == b.dtype and bool(same_arrays(a, b).all())
    if isinstance(a, Lazy) and type(a) is type(b):
        return a is b or (a.shape == b.shape and a.dtype == b.dtype and a.init == b.init)
    if a is None or b is None or isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if type(a) is not type(b):
        return False
    try:
        return bool(a == b)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"two leaves of class {type(a).__name__} cannot be compared: {error}. "
            f"Hold tensors instead: torch.as_tensor(...)"
        ) from error


def _is_array(leaf: Any) -> bool:
    """Whether a leaf is an array or a number of NumPy's; who holds one has imported NumPy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(leaf, (numpy.ndarray, numpy.generic))
