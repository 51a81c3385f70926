"""``checkpoint``: a function that is computed once more for its derivative."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint as torch_checkpoint

from parallax._compat import dynamo, flow, functorch, modes, recompute
from parallax._compat.flow import KeepPolicy
from parallax._compat.keeping import Kept, Policy
from parallax._errors.arguments import answered
from parallax.core.module_structure import spec_of
from parallax.core.nodes import is_module
from parallax.core.notes import joined
from parallax.effects.capturing import each_called, watched
from parallax.effects.collection import apart, root_of
from parallax.effects.selecting import lifted_among, paths_of
from parallax.effects.watches import Watch
from parallax.func.arguments import called, short
from parallax.func.differentiated import filled
from parallax.func.expanding import jets_around
from parallax.func.nesting import Nesting
from parallax.func.repeatable import NowAndLater, Parts, Repeatable
from parallax.func.results import open_tensors
from parallax.func.signatures import P, R

__all__ = ["checkpoint"]


@answered("func.checkpoint", "func.checkpoint(fn, policy=None)(x)")
def checkpoint(
    func: Callable[P, R], *what: str | type, policy: Policy | None = None
) -> Callable[P, R]:
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

    With paths, what is computed once more are calls of parts of the model instead, each for itself:
    ``func.checkpoint(loss, "blocks.*")`` takes the model first, as ``loss`` does. The model stays
    as it is, and so do its gradients and optimizer states.

    Args:
        func: a module, or a function of modules, tensors and anything else; it must compute the
            same when it is called again.
        *what: paths, globs over modules or classes, as in ``effects.capture``; the modules in an
            ``nn.Stack`` are at ``"stack.block"``. None for ``func`` itself.
        policy: which operators are kept all the same, as in
            ``torch.utils.checkpoint.create_selective_checkpoint_contexts``: a list of operators,
            or a function ``policy(context, op, *args, **kwargs)`` to a ``CheckpointPolicy``. Within
            ``vmap`` it sees the operators of the whole batch, such as ``aten.bmm`` for ``mm``.

    Returns:
        A function of the same arguments and result.

    Raises:
        RuntimeError: when called, if, within a transform, a tensor that ``func`` captures is
            differentiated and cannot be followed.
        LookupError: if something in ``what`` selects nothing; near misses are listed.
        TypeError: if ``func`` is no function, or ``policy`` neither a list nor a function; with
            ``what``, when called, if the first argument is no module, or a part is lifted.
        EffectError: when called within a transform, if a module that is not among the arguments
            names an intermediate result by ``sow``, or is captured; with ``what``, if nothing that
            one selects was called.

    Example:
        >>> import torch
        >>> from parallax import func, nn
        >>> block = nn.MLP([2, 8, 2]).initialize(0)
        >>> loss = lambda block, x: func.checkpoint(block)(x).square().sum()
        >>> grads = func.vmap(func.grad(loss), (None, 0))(block, torch.ones(3, 2))
        >>> grads.layers[0].weight.shape
        torch.Size([3, 8, 2])
    """
    name = called("checkpoint", func)
    _check_policy(name, policy)
    keeps = flow.keep_policy(policy)
    return _of_parts(func, what, keeps, name) if what else _checkpointed(func, keeps, name)


def _checkpointed(func: Callable[..., Any], keeps: KeepPolicy, what: str) -> Callable[..., Any]:
    """``checkpoint`` of the function itself."""

    @wraps(func, updated=())
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        traced = dynamo.is_compiling()
        transformed = functorch.traced_level() if traced else functorch.transform_active()
        if not (transformed or traced or modes.tape_is_exact()):
            return func(*args, **kwargs)  # forward mode of torch's own, or inference
        if not torch.is_grad_enabled() or jets_around():
            return func(*args, **kwargs)
        if not transformed:
            return _on_tape(func, args, kwargs, keeps)
        call = Repeatable(func, args, kwargs)
        if traced:
            return _traced(call, keeps)
        if recompute.is_recomputed_here():
            return _within_transforms(call, what, keeps)
        return func(*args, **kwargs)

    return checkpointed


# -- parts of a model ---------------------------------------------------------------------------


def _of_parts(
    func: Callable[..., Any], what: tuple[Any, ...], keeps: KeepPolicy, name: str
) -> Callable[..., Any]:
    """``func``, which calls some modules of its first argument so that they are checkpointed."""

    @wraps(func, updated=())
    def checkpointed(module: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not is_module(module):
            raise TypeError(
                f"{name}: with {what[0]!r} the first argument must be a module, got "
                f"{short(module)}. Write func.checkpoint(loss, 'blocks.*')(model, x)"
            )
        paths = [paths_of(module, one, name) for one in what]
        flat = tuple([path for found in paths for path in found])
        lifted = lifted_among(spec_of(module), flat)
        if lifted is not None:
            raise TypeError(
                f"{name}: {lifted!r} is a lifted nn.Module, whose calls are its own. Checkpoint "
                f"what calls it: func.checkpoint(fn)(module, x)"
            )
        root = root_of(module)
        watch = _Parts([joined(root, path) for path in flat], keeps, name)
        out, _ = watched(func, module, watch, paths, args, kwargs)
        each_called(watch, module, what, paths, name)
        return out

    return checkpointed


class _Parts(Watch):
    """Checkpoints the calls of some modules."""

    surrounds = True

    def __init__(
        self, paths: Iterable[str], keeps: KeepPolicy, name: str, outer: Any = None
    ) -> None:
        super().__init__(paths, outer)
        self.keeps = keeps
        self.name = name

    def within(self) -> Watch:
        """What stands in for this watch within a transform."""
        return _Parts(self.paths, self.keeps, self.name, self)

    def around(self, path: str, call: Callable[..., Any], collection: Any) -> Callable[..., Any]:
        """What makes the call in place of ``call``."""
        self.note(path, None, collection, dynamo.is_compiling())
        return _checkpointed(call, self.keeps, self.name)


# -- the function itself ------------------------------------------------------------------------


def _check_policy(what: str, policy: Any) -> None:
    if not (policy is None or callable(policy) or isinstance(policy, list)):
        raise TypeError(
            f"{what}: policy must be a list of operators or a function, got {short(policy)}. "
            f"Write policy=[torch.ops.aten.mm.default] to keep what these compute"
        )
    known = (type(None), list, FunctionType, partial)
    if dynamo.is_compiling() and not isinstance(policy, known):
        raise TypeError(
            f"{what}: in compiled code policy must be a list of operators or a plain function, got "
            f"{short(policy)}. Write it outside: checkpointed = func.checkpoint(fn, policy=policy)"
        )


def _options(keeps: KeepPolicy) -> dict[str, Any]:
    """What ``torch.utils.checkpoint`` is given beside the call."""
    if keeps.policy is None:
        return {}
    given = keeps.policy
    policy = list(given) if isinstance(given, tuple) else given
    if dynamo.is_compiling():
        contexts = torch_checkpoint.create_selective_checkpoint_contexts
        return {"context_fn": partial(contexts, policy)}

    def kept_results() -> tuple[Any, Any]:  # torch's can be taken once
        kept = Kept(policy)
        return kept.first(), kept.again()

    return {"context_fn": kept_results}


def _on_tape(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], keeps: KeepPolicy
) -> Any:
    """As torch does it, in compiled code by the partitioner of its graph."""
    options = _options(keeps)
    places = [k for k, arg in enumerate(args) if type(arg) is Tensor]
    others = len(args) - len(places) - sum([is_module(arg) for arg in args])
    if kwargs or others or not places or dynamo.is_compiling():
        call = Repeatable(func, args, kwargs)
        return torch_checkpoint.checkpoint(call, *call.tensors, use_reentrant=False, **options)
    # The usual case, with less: torch looks at all that it is given, and modules stay as they are.
    function = NowAndLater(func)

    def run(*tensors: Tensor) -> Any:
        return function(*filled(list(args), places, tensors))

    tensors = [args[place] for place in places]
    return torch_checkpoint.checkpoint(run, *tensors, use_reentrant=False, **options)


def _within_transforms(call: Repeatable, what: str, keeps: KeepPolicy) -> Any:
    """By an autograd function, which transforms take."""
    first: list[tuple[Nesting, Callable[[Sequence[Any]], Any], int]] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        function, args, kwargs = call.opened(tensors)
        nesting = Nesting(function, args, kwargs, 0)
        out = nesting.func(*nesting.args, **nesting.kwargs)
        found, close = open_tensors(out, what)
        if not first:
            first.append((nesting, close, len(found)))
        return [*found, *nesting.emitted()]

    # It is called again within backward, where keys may be used again.
    with apart():
        found = recompute.recomputed(flat, call.tensors, what, keeps.policy)
    nesting, close, count = first[0]
    nesting.relay(found[count:])
    return close(found[:count])


def _traced(call: Repeatable, keeps: KeepPolicy) -> Any:
    """By an operator, while dynamo traces a transform."""

    def body(*tensors: Tensor) -> tuple[Any, Any]:
        function, args, kwargs = call.opened(tensors)
        nesting = Nesting(function, args, kwargs, 0)
        out = Parts(nesting.func(*nesting.args, **nesting.kwargs))
        found = [*out.tensors, *nesting.emitted()]
        return tuple([tensor.clone() for tensor in found]), (out, nesting)

    found, (out, nesting) = flow.checkpoint(body, call.tensors, keeps)
    count = len(out.tensors)
    nesting.relay(found[count:])
    return out.build(found[:count])
