"""Functions within transforms that are computed once more for their derivative.

``torch.utils.checkpoint`` is made of saved-tensor hooks, which ``torch.func`` does not take. Here
the function runs on tensors without a graph, and an autograd function, which has its arguments and
what it captured for inputs, hands the results out. Its backward is the vector-Jacobian product of
the function, which is such a call again, so that derivatives of any order keep as little.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import get_device_states, set_device_states

from parallax._compat import functorch
from parallax._compat.keeping import Kept, Policy

__all__ = ["is_recomputed_here", "recomputed"]

_Kind = torch._C._functorch.TransformType
Function = Callable[..., Sequence[Tensor]]


def is_recomputed_here() -> bool:
    """Whether ``recomputed`` may be used: within transforms, all of them in reverse or ``vmap``.

    Forward mode keeps nothing for later.
    """
    kinds = [entry.key() for entry in torch._C._functorch.get_interpreter_stack() or ()]
    return torch.is_grad_enabled() and all(k in (_Kind.Grad, _Kind.Vmap) for k in kinds)


def recomputed(
    function: Function, operands: Sequence[Tensor], what: str, policy: Policy | None = None
) -> list[Tensor]:
    """What a function of tensors returns, of which a derivative computes it once more.

    Args:
        function: returns tensors; it may use others than its operands.
        operands: what it is called with.
        what: what is called, for error messages.
        policy: which results of operators are kept.

    Raises:
        RuntimeError: if a tensor that it captured, and that is differentiated, was used where it
            cannot be seen.
    """
    captures, surroundings = _Captures(operands), _Surroundings(operands)
    kept = None if policy is None else Kept(policy)
    with captures, kept.first() if kept else nullcontext():
        found = list(function(*captures.given))
    surroundings.end()
    places = [k for k, x in enumerate(found) if _is_inexact(x)]
    if any([_is_differentiated(found[k]) for k in places]):
        raise RuntimeError(
            f"{what}: a tensor that the function captures is differentiated, and is itself "
            f"transformed within the function. Pass the tensor, or the module that holds it, as an "
            f"argument: func.checkpoint(fn)(tensor, ...)"
        )
    captured = list(captures.found)
    count = len(operands)

    def again(*values: Tensor) -> list[Tensor]:
        seen = kept.again() if kept else nullcontext()
        with surroundings.restored(), _swapping(captured, values[count:]), seen:
            results = function(*values[:count])
        return [results[k] for k in places]

    attached = _attached(again, [*operands, *captured], [found[k] for k in places])
    for place, tensor in zip(places, attached, strict=True):
        found[place] = tensor
    return found


def _called(function: Function, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """As ``recomputed``, of a function that captures nothing and returns floating tensors."""
    if not is_recomputed_here():
        return function(*operands)
    found = function(*[x.detach() if _is_inexact(x) else x for x in operands])
    return _attached(function, operands, found)


def _attached(
    function: Function, operands: Sequence[Tensor], results: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The results, with the graph that they have as results of the function of the operands."""
    return _Attached.apply(function, len(operands), *operands, *results)  # type: ignore[no-any-return, no-untyped-call]  # it is torch's


class _Attached(torch.autograd.Function):
    """The results as they are; backward is the vector-Jacobian product of the function."""

    @staticmethod
    def forward(function: Function, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple([x.clone() for x in tensors[count:]])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.function, ctx.count = inputs[:2]
        ctx.save_for_backward(*inputs[2 : 2 + ctx.count])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        # A pullback is called when its level is over; what was saved is in wrappers of the level.
        operands = [functorch.unwrapped_if_over(x) for x in ctx.saved_tensors]
        needed = ctx.needs_input_grad[2:]
        wanted = [k for k, x in enumerate(operands) if needed[k] and _is_inexact(x)]
        given = [k for k, cotangent in enumerate(cotangents) if cotangent is not None]
        pullback = _pullback(ctx.function, len(operands), wanted, given)
        found = _called(pullback, [*operands, *[cotangents[k] for k in given]])
        grads: list[Any] = [None] * (2 + ctx.count + len(cotangents))
        for place, grad in zip(wanted, found, strict=True):
            grads[2 + place] = grad
        return tuple(grads)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        function, count, *tensors = inputs
        pairs = list(zip(tensors, in_dims[2:], strict=True))
        moved = [x if dim is None else x.movedim(dim, 0) for x, dim in pairs]
        dims = tuple([None if dim is None else 0 for _, dim in pairs])
        mapped = _mapped(function, dims[:count], dims[count:], info)
        return tuple(_attached(mapped, moved[:count], moved[count:])), dims[count:]


def _pullback(
    function: Function, count: int, wanted: Sequence[int], given: Sequence[int]
) -> Function:
    """The function of the operands and some cotangents to the cotangents of some operands."""

    def back(*inputs: Tensor) -> Sequence[Tensor]:
        operands = list(inputs[:count])

        def moving(*values: Tensor) -> list[Tensor]:
            for place, value in zip(wanted, values, strict=True):
                operands[place] = value
            results = function(*operands)
            return [results[k] for k in given]

        pull: Any = torch.func.vjp(moving, *[operands[k] for k in wanted])[1]
        return pull(list(inputs[count:]))  # type: ignore[no-any-return]  # a tuple of tensors

    return back


def _mapped(
    function: Function, dims: tuple[int | None, ...], out_dims: tuple[int | None, ...], info: Any
) -> Function:
    """The function of all members, which come first; also where they differ by chance alone."""

    def mapped(*operands: Tensor) -> Sequence[Tensor]:
        def member(_: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            return tuple(function(*given))

        transform: Any = torch.func.vmap
        each = transform(member, (0, *dims), out_dims, info.randomness)
        return each(torch.empty(info.batch_size, 0), *operands)  # type: ignore[no-any-return]  # a tuple of tensors

    return mapped


def _is_inexact(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _is_differentiated(x: Tensor) -> bool:
    """Whether a tensor has a graph, at whatever level."""
    while not x.requires_grad:
        if not functorch.is_wrapped(x):
            return False
        x = torch._C._functorch.get_unwrapped(x)
    return True


# -- what a function captures -------------------------------------------------------------------


class _Captures(TorchFunctionMode):
    """Finds the tensors that a function uses beside its operands, and detaches them.

    Only such are looked for that belong to a transform or have a graph.

    Attributes:
        given: the operands without a graph.
        found: the captured tensors.
    """

    def __init__(self, operands: Sequence[Tensor]) -> None:
        super().__init__()
        self.level = functorch.current_level()
        self.given = [x.detach() if _is_inexact(x) else x for x in operands]
        self.found: list[Tensor] = []
        self._bare: dict[int, Tensor] = {}
        # Held, so that no other tensor gets the same number.
        self._made = {id(x): x for x in self.given}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [self._without_graph(arg) for arg in args]
        kwargs = {name: self._without_graph(arg) for name, arg in (kwargs or {}).items()}
        result = func(*args, **kwargs)
        self._note(result)
        return result

    def _without_graph(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._bare_of(value)
        if type(value) in (tuple, list):
            return type(value)([self._without_graph(x) for x in value])
        return value

    def _bare_of(self, x: Tensor) -> Tensor:
        if not (functorch.is_wrapped(x) or x.requires_grad):
            return x
        bare = self._bare.get(id(x))
        if bare is not None:
            return bare
        if id(x) in self._made or hasattr(x, "_parallax_made") or self._is_deeper(x):
            return x
        self.found.append(x)
        bare = self._bare[id(x)] = x.detach() if _is_inexact(x) else x
        self._made[id(bare)] = bare
        return bare

    def _is_deeper(self, x: Tensor) -> bool:
        """Whether a tensor belongs to a transform that the function began."""
        return functorch.level_of(x) > self.level

    def _note(self, result: Any) -> None:
        """Marks what the function computed."""
        if isinstance(result, Tensor):
            if functorch.is_wrapped(result):
                result._parallax_made = True  # type: ignore[attr-defined]  # a mark of ours
        elif isinstance(result, (tuple, list)):
            for part in result:
                self._note(part)


class _Swapping(TorchFunctionMode):
    """Puts others in the place of some tensors, wherever a function uses them."""

    def __init__(self, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        super().__init__()
        self._others = {id(x): other for x, other in zip(tensors, others, strict=True)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [self._swapped(arg) for arg in args]
        return func(*args, **{name: self._swapped(arg) for name, arg in (kwargs or {}).items()})

    def _swapped(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._others.get(id(value), value)
        if type(value) in (tuple, list):
            return type(value)([self._swapped(x) for x in value])
        return value


def _swapping(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Any:
    return _Swapping(tensors, others) if tensors else ExitStack()


# -- what is around a function ------------------------------------------------------------------


class _Surroundings:
    """Torch's random states and autocast as they were, for a function that is called again."""

    __slots__ = ("_autocast", "_devices", "_state", "_states")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        kinds = {"cpu", *[x.device.type for x in tensors]}
        self._autocast = {kind: _autocast_of(kind) for kind in kinds}
        self._state: Tensor | None = torch.get_rng_state()
        self._devices, self._states = get_device_states(*tensors)

    def end(self) -> None:
        """The function was called; where it drew nothing of torch's, the states are forgotten."""
        if self._devices or self._state is None:
            return
        with functorch.outside_transforms():
            if torch.equal(self._state, torch.get_rng_state()):
                self._state = None

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within it they are what they were; afterwards what they have been before."""
        with ExitStack() as stack:
            for kind, (enabled, dtype, cached) in self._autocast.items():
                if _autocast_of(kind) != (enabled, dtype, cached):
                    stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=cached))
            if self._state is not None:
                stack.enter_context(torch.random.fork_rng(self._devices))
                torch.set_rng_state(self._state)
                set_device_states(self._devices, self._states)
            yield


def _autocast_of(kind: str) -> tuple[bool, torch.dtype, bool]:
    try:
        enabled = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind)
    except RuntimeError:  # a device without autocast
        return False, torch.float32, False
    return enabled, dtype, torch.is_autocast_cache_enabled()
