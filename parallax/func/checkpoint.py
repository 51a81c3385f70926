"""``checkpoint``: a function that is computed once more for its derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint as torch_checkpoint

from parallax._compat import dynamo, flow, functorch, modes, recompute
from parallax.effects.collection import apart
from parallax.func.arguments import called, short
from parallax.func.nesting import Nesting
from parallax.func.repeatable import Parts, Repeatable
from parallax.func.results import open_tensors
from parallax.func.signatures import P, R

__all__ = ["checkpoint"]

Policy = Callable[..., Any] | Sequence[Any]


def checkpoint(func: Callable[P, R], *, policy: Policy | None = None) -> Callable[P, R]:
    """A function that computes ``func``, and computes it once more for a derivative.

    What ``func`` computes on the way is not kept for backward, which saves memory and costs time.
    As ``torch.utils.checkpoint`` on autograd's tape, and the same within ``func.grad``, ``vmap``,
    ``per_sample_grad``, derivatives of derivatives and compiled gradients, where torch has none.
    In forward mode, which keeps nothing, ``func`` is simply called.

    Values and derivatives are those of ``func``. The second time it draws the same random numbers,
    by keys as well as by torch's own generators, emits no effects, and sees autocast and the
    variables that it takes from around as they were. Tensors that it captures get their gradients.

    In compiled code what draws from torch's own generators within a transform, or emits an effect
    of a module that is not among the arguments, is kept and not computed again.

    Args:
        func: a module, or a function of modules, tensors and anything else; it must compute the
            same when it is called again.
        policy: which operators are kept all the same, as in
            ``torch.utils.checkpoint.create_selective_checkpoint_contexts``: a list of operators,
            or a function ``policy(context, op, *args, **kwargs)`` to a ``CheckpointPolicy``. Not
            within transforms.

    Returns:
        A function of the same arguments and result.

    Raises:
        RuntimeError: when called, if ``policy`` is given within a transform; or if, within one, a
            tensor that ``func`` captures is differentiated and cannot be followed.
        TypeError: if ``func`` is no function, or ``policy`` neither a list nor a function.
        EffectError: when called within a transform, if a module that is not among the arguments
            names an intermediate result by ``sow``.

    Example:
        >>> import torch
        >>> from parallax import func, nn
        >>> block = nn.MLP([2, 8, 2]).initialize(0)
        >>> loss = lambda block, x: func.checkpoint(block)(x).square().sum()
        >>> grads = func.vmap(func.grad(loss), (None, 0))(block, torch.ones(3, 2))
        >>> grads.layers[0].weight.shape
        torch.Size([3, 8, 2])
    """
    what = called("checkpoint", func)
    options = _options(what, policy)

    @wraps(func, updated=())
    def checkpointed(*args: P.args, **kwargs: P.kwargs) -> R:
        traced = dynamo.is_compiling()
        transformed = functorch.traced_level() if traced else functorch.transform_active()
        if not (transformed or traced or modes.tape_is_exact()):
            return func(*args, **kwargs)  # forward mode of torch's own, or inference
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        call = Repeatable(func, args, kwargs)
        found: Any
        if not transformed:
            found = _on_tape(call, options)
        elif options:
            raise RuntimeError(_no_policy(what))
        elif traced:
            found = _traced(call, what)
        elif recompute.is_recomputed_here():
            found = _within_transforms(call, what)
        else:
            found = func(*args, **kwargs)
        return found  # type: ignore[no-any-return]  # what the function returns

    return checkpointed


def _options(what: str, policy: Any) -> dict[str, Any]:
    """What ``torch.utils.checkpoint`` is given beside the call."""
    if policy is None:
        return {}
    if not (callable(policy) or isinstance(policy, list)):
        raise TypeError(
            f"{what}: policy must be a list of operators or a function, got {short(policy)}. "
            f"Write policy=[torch.ops.aten.mm.default] to keep what these compute"
        )
    contexts = torch_checkpoint.create_selective_checkpoint_contexts
    return {"context_fn": partial(contexts, policy)}


def _no_policy(what: str) -> str:
    return (
        f"{what}: policy= needs autograd's tape, and here a transform runs (func.vmap, a nested or "
        f"compiled func.grad, jacrev, jvp). Leave policy out here; or take func.grad in eager code "
        f"with no transform around it, or around the compiled function: func.grad(compiled)"
    )


def _on_tape(call: Repeatable, options: dict[str, Any]) -> Any:
    """As torch does it, in compiled code by the partitioner of its graph."""
    run = call if dynamo.is_compiling() else call.twice()
    return torch_checkpoint.checkpoint(run, *call.tensors, use_reentrant=False, **options)


def _within_transforms(call: Repeatable, what: str) -> Any:
    """By an autograd function, which transforms take."""
    run = call.twice()
    first: list[tuple[Nesting, Callable[[Sequence[Any]], Any], int]] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        function, args, kwargs = run.opened(tensors)
        nesting = Nesting(function, args, kwargs, 0)
        out = nesting.func(*nesting.args, **nesting.kwargs)
        found, close = open_tensors(out, what)
        if not first:
            first.append((nesting, close, len(found)))
        return [*found, *nesting.emitted()]

    # It is called again within backward, where keys may be used again.
    with apart():
        found = recompute.recomputed(flat, call.tensors, what)
    nesting, close, count = first[0]
    nesting.relay(found[count:])
    return close(found[:count])


def _traced(call: Repeatable, what: str) -> Any:
    """By an operator, while dynamo traces a transform."""

    def body(*tensors: Tensor) -> tuple[Any, Any]:
        function, args, kwargs = call.opened(tensors)
        nesting = Nesting(function, args, kwargs, 0)
        out = Parts(nesting.func(*nesting.args, **nesting.kwargs))
        found = [*out.tensors, *nesting.emitted()]
        return tuple([tensor.clone() for tensor in found]), (out, nesting)

    found, (out, nesting) = flow.recomputed(body, call.tensors)
    count = len(out.tensors)
    nesting.relay(found[count:])
    return out.build(found[:count])
