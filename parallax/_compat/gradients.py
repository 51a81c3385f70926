"""Another gradient for a kernel's output wherever a graph of the gradient is recorded.

Many of torch's kernels have a first derivative only, or one after which the derivatives are wrong.
Nobody knows at the time of a call how many will be asked for. What is known in backward is whether
a graph is recorded there (``create_graph=True``): if not, nothing can follow. So a hook waits on
the output, which costs a kernel of a few numbers one part in a hundred. Where a graph is recorded,
it has the inputs taken from the kernel's node, the output computed again by operators that have
every derivative, and that gradient put in the place of the kernel's.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from parallax._compat import functorch

__all__ = ["AsItIsError", "Rule", "WhereRecorded", "have_replaced", "read"]

T = TypeVar("T")
Rule = Callable[[Any], tuple[Sequence[Tensor | None], Callable[..., Any]]]
"""Takes the node of a kernel to the inputs of its gradients, in their order, and a function of
these that computes the output, or a tuple of outputs. An input that the node does not keep may be
any tensor of its shape, if the gradient does not depend on its value."""


class AsItIsError(Exception):
    """A function of torch is to be called as it is, with these arguments."""


# What torch puts behind a kernel: the kernel's node is the one before.
_AFTERWARDS = frozenset(["SliceBackward0", "SqueezeBackward1", "ToCopyBackward0", "ViewBackward0"])


class _Hooks(dict[int, Callable[[Tensor], None]]):
    """Hooks of one tensor, to which a user may add: torch's handles refer to them weakly."""

    __slots__ = ("__weakref__",)


class WhereRecorded:
    """Has the gradient of a kernel computed by a rule wherever a graph of it is recorded.

    Args:
        rules: by the name of the kernel's node; a kernel of another name keeps its gradient.
    """

    __slots__ = ("_hooks", "rules")

    def __init__(self, rules: dict[str, Rule]) -> None:
        self.rules = rules
        # Handles count from 0.
        self._hooks = {-1: self._before}

    def watch(self, output: Tensor) -> Tensor:
        """Waits on a kernel's output.

        Eager only. As ``output.register_hook`` at a third of its cost.
        """
        node: Any = output.grad_fn
        if node is not None:
            output._backward_hooks = _Hooks(self._hooks)  # type: ignore[assignment]  # a dict
            node._register_hook_dict(output)
        return output

    def _before(self, _: Tensor) -> None:
        """Runs in backward, before the node whose output is watched."""
        if torch.is_grad_enabled():
            node = _running()
            while node is not None and node.name() in _AFTERWARDS:
                node = node.next_functions[0][0]
            rule = None if node is None else self.rules.get(node.name())
            if rule is not None:
                _replace_once(node, rule)

    # Saved without a warning, with a tensor that waits.
    _before.__torch_unserializable__ = True  # type: ignore[attr-defined]  # what torch looks for


def _running() -> Any:
    """The node whose hooks run."""
    return torch._C._current_autograd_node()


def have_replaced(nodes: Collection[Any], rules: Mapping[str, Rule]) -> None:
    """Has the gradients of some nodes computed by rules wherever a graph of them is recorded.

    Args:
        nodes: of autograd's graph, before it goes backward.
        rules: by the names of nodes; those of another name keep their gradients.
    """
    kinds = {kind: rules[kind.__name__] for kind in set(map(type, nodes)) if kind.__name__ in rules}
    for node in nodes if kinds else ():
        rule = kinds.get(type(node))
        if rule is not None and _LASTING not in node.metadata:
            node.metadata[_LASTING] = True
            node.register_hook(partial(_replaced, rule))


_LASTING, _ONCE = "parallax_replaced", "parallax_replaced_once"


def _replace_once(node: Any, rule: Rule) -> None:
    """Has the gradients of a node replaced when it runs next."""

    def after(
        grads: tuple[Tensor | None, ...], cotangents: tuple[Tensor | None, ...]
    ) -> tuple[Tensor | None, ...] | None:
        handle.remove()
        _running().metadata.pop(_ONCE, None)
        return _replacement(rule, grads, cotangents)

    node.metadata[_ONCE] = True
    handle = node.register_hook(after)


def _replaced(
    rule: Rule, grads: tuple[Tensor | None, ...], cotangents: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...] | None:
    """Runs after a node, in each backward."""
    if _ONCE in _running().metadata:  # by the rule of a layer
        return None
    return _replacement(rule, grads, cotangents)


def _replacement(
    rule: Rule, grads: tuple[Tensor | None, ...], cotangents: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...] | None:
    """Other gradients of the node that has just run, if a graph of them is recorded."""
    reached = [k for k, cotangent in enumerate(cotangents) if cotangent is not None]
    if not torch.is_grad_enabled() or not reached:
        return None
    node = _running()  # held by this function, it would hold itself
    wanted = [k for k, grad in enumerate(grads) if grad is not None]
    if not wanted:
        return None
    given, whole = read(node, rule)
    wanting = [x for x in cotangents if x is not None]

    def function(*inputs: Tensor | None) -> Sequence[Tensor]:
        outs = whole(*inputs)
        outs = (outs,) if isinstance(outs, Tensor) else outs
        pairs = zip(reached, wanting, strict=True)
        return [outs[k].reshape(cotangent.shape) for k, cotangent in pairs]

    with torch.autocast(wanting[0].device.type, enabled=False):
        pull = _by_transform if functorch.transform_active() else _by_tape
        try:
            found = pull(function, given, wanted, wanting)
        except AsItIsError:
            return None
    replaced = list(grads)
    for k, grad in zip(wanted, found, strict=True):
        replaced[k] = grad
    return tuple(replaced)


def _by_tape(
    function: Callable[..., Sequence[Tensor]], given: Sequence[Tensor | None],
    wanted: Sequence[int], cotangents: Sequence[Tensor],
) -> Sequence[Tensor]:  # fmt: skip
    inputs = [None if x is None else x.view_as(x) for x in given]
    sources = [_tracked(inputs[k]) for k in wanted]
    for k, source in zip(wanted, sources, strict=True):
        inputs[k] = source
    return torch.autograd.grad(
        function(*inputs), sources, cotangents, create_graph=True, materialize_grads=True
    )


def _by_transform(
    function: Callable[..., Sequence[Tensor]], given: Sequence[Tensor | None],
    wanted: Sequence[int], cotangents: Sequence[Tensor],
) -> Sequence[Tensor]:  # fmt: skip
    """Within transforms."""

    def moved(*sources: Tensor) -> Sequence[Tensor]:
        inputs = list(given)
        for k, source in zip(wanted, sources, strict=True):
            inputs[k] = source
        return function(*inputs)

    found: Any = torch.func.vjp(moved, *[given[k] for k in wanted])
    return found[1]([functorch.unwrapped_if_over(x) for x in cotangents])  # type: ignore[no-any-return]  # one for each


def _tracked(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_()


def read(node: Any, rule: Callable[[Any], T]) -> T:
    """What a function makes of a node; a checkpoint gives its saved tensors once in a backward."""
    try:
        return rule(node)
    except CheckpointError:
        found: list[T] = []
        start = torch.zeros((), requires_grad=True)
        end: Tensor = _InBackward.apply(start, lambda: found.append(rule(node)))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.autograd.grad(end, start)
        return found[0]


class _InBackward(torch.autograd.Function):
    """Runs a function in a backward of its own."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, run: Callable[[], None]) -> Tensor:
        ctx.run = run
        return start.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.run()
        return grads[0], None
