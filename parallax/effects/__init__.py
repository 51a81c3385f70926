"""Effects: what a module would write into itself, recorded and returned instead.

Inside ``forward`` a module says ``self.emit(running_mean=...)``. ``collect`` runs a function of a
module and returns, beside its result, the module with everything that was emitted in its place:

    out, model = effects.collect(loss)(model, x)

``capture`` returns what happened inside beside the result, ``intervene`` and ``perturb`` put other
values in the place of intermediate results.

A collection is no global state. It travels with the tree, in the place of the rng, so that every
instance that a transform rebuilds has it and other threads do not. An emission is addressed by the
module's path.
"""

from typing import TYPE_CHECKING, Any

from parallax.effects.capturing import capture
from parallax.effects.collecting import collect
from parallax.effects.collection import EffectError
from parallax.effects.emitting import emit, sow
from parallax.effects.intervening import intervene
from parallax.effects.perturbing import perturb
from parallax.effects.watches import Call

__all__ = ["Call", "EffectError", "capture", "collect", "emit", "intervene", "perturb", "sow"]


if not TYPE_CHECKING:  # checkers would accept every name otherwise

    def __getattr__(name: str) -> Any:
        from parallax._errors.absent import no_such_name

        raise no_such_name(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)
