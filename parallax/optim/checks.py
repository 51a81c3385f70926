"""Which leaves are stepped, and whether the gradients fit them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from parallax._compat import dynamo, in_trace
from parallax.core.fields import Lazy, UninitializedError
from parallax.core.nodes import is_module
from parallax.core.registry import flatten_module
from parallax.optim.habits import check_given
from parallax.tree import core
from parallax.tree.align import align

__all__ = [
    "check_layouts", "check_leaf", "check_sizes", "check_state", "gather", "open_initialized",
    "open_model", "paths_of", "refuse_sparse", "refuse_uninitialized", "size_of",
]  # fmt: skip


def open_model(what: str, model: Any) -> tuple[Sequence[Any], Any]:
    """The leaves and the structure of a module.

    Raises:
        TypeError: if it is not a module.
    """
    if not is_module(model):
        check_given(what, model)
        kind = "None" if model is None else f"a {type(model).__name__}"
        raise TypeError(
            f"{what} takes a module, got {kind}. Hold what is trained in one: "
            f"class Both(Module): first: Encoder; second: Decoder"
        )
    return flatten_module(model)


def open_initialized(what: str, model: Any) -> tuple[Sequence[Any], Any]:
    """As ``open_model``, where all leaves must have values.

    Raises:
        UninitializedError: if a leaf has none.
    """
    leaves, part = open_model(what, model)
    for k, leaf in enumerate(leaves):
        if isinstance(leaf, Lazy):
            refuse_uninitialized(what, model, k)
    return leaves, part


def refuse_uninitialized(what: str, model: Any, k: int) -> NoReturn:
    """Raises the error of a leaf that has no value, by its index."""
    raise UninitializedError(
        f"{what}: {type(model).__name__}.{paths_of(model)[k]} is not initialized. "
        f"Initialize first: model = model.initialize(rng)"
    )


def gather(
    what: str,
    model: Any,
    leaves: Sequence[Any],
    part: Any,
    grads: Any,
    name: str = "the gradients",
) -> tuple[Sequence[int], Sequence[Any]]:
    """Decides which leaves are stepped.

    Returns:
        Their indices, and all gradients in the order of the leaves.

    Raises:
        ValueError: if the gradients have another skeleton, or one has another shape or dtype; the
            message names the first path.
    """
    try:
        given = align(part, grads)
    except ValueError as error:
        raise ValueError(f"{what}: {name}: {error}") from None
    trainable = part.trainable
    if dynamo.is_compiling():
        in_trace.at_trace()(_choose)
        found = in_trace.replied()
        if found is not None:
            return found, given
    rows = enumerate(zip(leaves, given, trainable, strict=True))
    chosen = [k for k, (a, b, t) in rows if t and a is not None and b is not None]
    for k in chosen:
        _check_pair(what, model, k, leaves[k], given[k])
    return chosen, given


def _choose(context: Any) -> None:
    """Answers ``gather`` from its locals: which leaves are stepped; ``None`` in doubt.

    To trace the questions to each leaf takes many times as long.
    """
    leaves, given = in_trace.items(context, "leaves"), in_trace.items(context, "given")
    trainable = in_trace.constant(context, "trainable")
    rows = enumerate(zip(leaves, given, trainable, strict=True))
    chosen = [k for k, (a, b, t) in rows if t and a is not None and b is not None]
    fit = all([_fit(leaves[k], given[k]) for k in chosen])
    in_trace.reply(context, tuple(chosen) if fit else None)


def _fit(leaf: Any, grad: Any) -> bool:
    """Whether a leaf and its gradient are known to be of the same sizes and dtype."""
    if not (isinstance(leaf, Tensor) and isinstance(grad, Tensor)):
        return False
    fixed = all([type(size) is int for size in (*leaf.shape, *grad.shape)])
    return fixed and leaf.shape == grad.shape and leaf.dtype is grad.dtype


def check_sizes(
    what: str, model: Any, leaves: Sequence[Any], chosen: Sequence[int], sizes: Any
) -> None:
    """Raises if the leaves to be stepped are of other sizes than those the state was made for."""
    for k in chosen:
        if leaves[k].shape != sizes[k]:
            path = f"{type(model).__name__}.{paths_of(model)[k]}"
            raise ValueError(
                f"{what}: the state was made for another model: there {path} has shape "
                f"{sizes[k]}, here {tuple(leaves[k].shape)}. "
                f"Make one for this model: state = opt.init(model)"
            )


def check_state(what: str, state: Any, cls: type, make: str = "opt.init(model)") -> None:
    """Raises unless a state is of its class."""
    if type(state) is not cls:
        is_module(state)  # which raises if it was donated
        check_given(what, state)
        kind = "None" if state is None else f"a {type(state).__name__}"
        order = make == "opt.init(model)"
        last = "; and give it last: opt.step(model, grads, state)" if order else ""
        raise TypeError(
            f"{what}: the state must be what init returned, got {kind}. Make one: state = {make}"
            f"{last}"
        )


def check_layouts(
    what: str, model: Any, chosen: Sequence[int], given: Sequence[Any], takes_sparse: bool
) -> None:
    """Raises for a sparse gradient where the step has no kernel for one."""
    for k in chosen:
        layout = given[k].layout
        if layout not in _DENSE and not (takes_sparse and layout is torch.sparse_coo):
            path = f"{type(model).__name__}.{paths_of(model)[k]}"
            raise ValueError(
                f"{what}: the gradient of {path} is {layout}. "
                f"Make it dense first: grads = tree.map(Tensor.to_dense, grads)"
            )


def refuse_sparse(what: str, grads: Any) -> None:
    """Raises for a tree with a sparse gradient."""
    found, spec = core.opened(grads)
    sparse = [isinstance(g, Tensor) and g.layout is torch.sparse_coo for g in found]
    if any(sparse):
        path = spec.paths[sparse.index(True)]
        raise ValueError(
            f"{what}: the gradient of {path or 'the tensor'} is sparse, and would not stay so. "
            f"Make it dense first: grads = tree.map(Tensor.to_dense, grads). Or give its leaf to "
            f"another optimizer: optim.Split({{{path!r}: optim.SparseAdam()}}, rest=...)"
        )


_DENSE = (torch.strided, torch.jagged)


def check_leaf(what: str, path: str, leaf: Tensor) -> None:
    """Raises for a leaf that no optimizer steps."""
    if leaf.layout not in _DENSE or (leaf.is_nested and leaf.layout is torch.strided):
        kind = "a nested tensor" if leaf.is_nested else leaf.layout
        raise TypeError(
            f"{what}: {path} is {kind}, for which torch has no optimizer. Make it dense: "
            f"leaf.to_padded_tensor(0.0) of nested tensors, leaf.to_dense() of sparse ones"
        )
    if not (leaf.is_floating_point() or leaf.is_complex()):
        raise TypeError(
            f"{what}: {path} is {leaf.dtype}, and only floating-point or complex tensors have "
            f"gradients. Make it a Buffer, or cast it: leaf.float()"
        )


def size_of(leaf: Any) -> tuple[int, ...] | None:
    """The shape of a leaf; ``None`` if it has none."""
    if not isinstance(leaf, Tensor) or (leaf.is_nested and leaf.layout is torch.strided):
        return None
    return tuple(leaf.shape)


def _check_pair(what: str, model: Any, k: int, leaf: Any, grad: Any) -> None:
    tensors = isinstance(leaf, Tensor) and isinstance(grad, Tensor)
    if tensors and grad.shape == leaf.shape and grad.dtype is leaf.dtype:
        return  # before the path, which takes long to trace
    path = f"{type(model).__name__}.{paths_of(model)[k]}"
    if not isinstance(leaf, Tensor):
        raise TypeError(f"{what}: {path} holds {leaf!r}, which is not a tensor")
    if not isinstance(grad, Tensor):
        raise TypeError(f"{what}: the gradient of {path} is a {type(grad).__name__}, not a tensor")
    if grad.shape != leaf.shape:
        raise ValueError(
            f"{what}: {path} has shape {tuple(leaf.shape)} and its gradient has {tuple(grad.shape)}"
        )
    raise ValueError(
        f"{what}: {path} is {leaf.dtype} and its gradient is {grad.dtype}. "
        f"Cast them first: grads = tree.map(lambda g, p: g.to(p.dtype), grads, model)"
    )


def paths_of(model: Any) -> list[str]:
    """The dotted path of every unique leaf of a module."""
    return list(flatten_module(model)[1].paths)
