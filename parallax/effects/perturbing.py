"""``perturb``: intermediate results as arguments, to differentiate with respect to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate

from torch import Tensor
from typing_extensions import ParamSpec, TypeVar

from parallax._errors.arguments import answered, check_function, shown
from parallax.core import notes
from parallax.effects.capturing import each_called, watched
from parallax.effects.collection import EffectError, root_of
from parallax.effects.running import rng_of
from parallax.effects.selecting import paths_of
from parallax.effects.watches import Change

__all__ = ["perturb"]

M = TypeVar("M", bound=Any, default=Any)
P = ParamSpec("P", default=...)
R = TypeVar("R", default=Any)


@answered(
    "effects.perturb",
    "effects.perturb(fn)(model, {'blocks.0': zeros}, x), where fn takes model and x",
)
def perturb(
    fn: Callable[Concatenate[M, P], R],
) -> Callable[Concatenate[M, Mapping[str, object], P], R]:
    """A function that adds perturbations to modules' outputs: to differentiate with respect to.

    The gradient with respect to an intermediate result is the gradient with respect to a
    perturbation of zeros. It is exact and of any order, and can be mapped and compiled.

    Args:
        fn: takes a module first, such as a loss.

    Returns:
        A function of a module, the perturbations and the other arguments of ``fn``. The
        perturbations are a dict as ``effects.capture`` of these modules returns it: by path, a
        tree like the output, or a tuple with one for each call. Where it has ``None``, and where
        the output is no floating or complex tensor, nothing is added.

    Raises:
        EffectError: if a module with a perturbation was not called, or not as often as it has
            perturbations; or if a checkpoint calls it again and which call it is cannot be told.
        LookupError: if there is no module at a path.
        TypeError: if ``fn`` is not a function, the perturbations no dict, or the first argument
            not a module.
        ValueError: if a perturbation has another structure than the output, or a tensor in it
            another shape.

    Example:
        >>> import torch
        >>> from parallax import effects, func, nn, tree
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).initialize(0)
        >>> def loss(net, x):
        ...     return net(x).sum()
        >>> x = torch.ones(4, 2)
        >>> _, found = effects.capture(loss, "layers.1")(net, x)
        >>> zeros = tree.zeros_like(found)
        >>> grads = func.grad(effects.perturb(loss), argnums=1)(net, zeros, x)
        >>> bool((grads["layers.1"] == net[2].weight.expand(4, 3)).all())
        True
    """
    check_function("effects.perturb", fn, "effects.perturb(loss)(model, {'blocks.0': zeros}, x)")

    @wraps(fn)
    def perturbed(
        module: M, perturbations: Mapping[str, object], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        rng_of(module, "perturb")
        if not isinstance(perturbations, Mapping):
            raise TypeError(
                f"effects.perturb: the second argument is a dict of perturbations by path, got "
                f"{shown(perturbations)}. Write {{'blocks.0': torch.zeros(shape)}}"
            )
        # What is no perturbation at all needs no call: capture has None for what was not called.
        given = {path: delta for path, delta in perturbations.items() if delta is not None}
        paths = [paths_of(module, path, "effects.perturb") for path in given]
        root = root_of(module)
        added = {notes.joined(root, path): _Added(path, delta) for path, delta in given.items()}
        watch = Change(tuple(added), lambda path, count, out: added[path].to(out, count))
        out, _ = watched(fn, module, watch, paths, args, kwargs)
        each_called(watch, module, tuple(given), paths, "effects.perturb")
        for path, one in added.items():
            one.check(len(watch.calls[path]))
        return out  # type: ignore[no-any-return]  # what fn returns

    return perturbed


class _Added:
    """What is added to the outputs of one module."""

    def __init__(self, path: str, delta: Any) -> None:
        self.path = path
        self.delta = delta
        self.each = False  # whether there is one perturbation for each call

    def to(self, out: Any, count: int | None) -> Any:
        """The output of the call that ``count`` came before, perturbed."""
        from parallax.tree import core  # which stands on modules, and they on this

        leaves, spec = core.opened(out)
        delta = self.delta
        added, own = core.opened(delta)
        if own != spec:
            if not isinstance(delta, tuple):
                raise self._misfit(out, delta)
            self.each = True
            if count is None and len(delta) > 1:
                raise EffectError(
                    f"effects.perturb: a checkpoint calls {self.path!r} once more in backward, and "
                    f"which of its {len(delta)} calls that is cannot be told. Take the checkpoint "
                    f"away, or hold one module per call"
                )
            if (count or 0) >= len(delta):
                raise self._miscount(f"more than {len(delta)} times")
            delta = delta[count or 0]
            added, own = core.opened(delta)
            if own != spec:
                raise self._misfit(out, delta)
        elif count:
            raise self._miscount("several times")
        return spec.build([self._sum(a, b) for a, b in zip(leaves, added, strict=True)])

    def _sum(self, value: Any, delta: Any) -> Any:
        if delta is None or not isinstance(value, Tensor):
            return value
        if not (value.is_floating_point() or value.is_complex()):
            return value
        if not isinstance(delta, Tensor) or delta.shape != value.shape:
            raise self._misfit(value, delta)
        return value + delta

    def check(self, count: int) -> None:
        """Raises if there were fewer calls than perturbations."""
        if self.each and count < len(self.delta):
            raise self._miscount(f"{count} time{'s' * (count > 1)}")

    def _misfit(self, out: Any, delta: Any) -> ValueError:
        return ValueError(
            f"effects.perturb: the output of {self.path!r} is {shown(out)}, and the perturbation "
            f"{shown(delta)}. Give zeros like it: _, found = effects.capture(fn, {self.path!r})"
            f"(model, ...); zeros = tree.zeros_like(found)"
        )

    def _miscount(self, times: str) -> EffectError:
        held = len(self.delta) if self.each else 1
        return EffectError(
            f"effects.perturb: {self.path!r} has {held} perturbation{'s' * (held > 1)} and was "
            f"called {times}. Give a tuple with one for each call, as effects.capture returns them"
        )
