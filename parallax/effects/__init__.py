"""Effects: what a module would write into itself, recorded and returned instead.

Inside ``forward`` a module says ``self.emit(running_mean=...)``. ``collect`` runs a function of a
module and returns, beside its result, the module with everything that was emitted in its place:

    out, model = effects.collect(loss)(model, x)

A collection is no global state. It travels with the tree, in the place of the rng, so that every
instance that a transform rebuilds has it and other threads do not. An emission is addressed by the
module's path.
"""

from parallax.effects.collecting import capture, collect
from parallax.effects.collection import EffectError
from parallax.effects.emitting import emit, sow

__all__ = ["EffectError", "capture", "collect", "emit", "sow"]


def __dir__() -> list[str]:
    return sorted(__all__)
