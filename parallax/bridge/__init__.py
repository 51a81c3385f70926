"""From ``torch.nn`` and back: lift an ``nn.Module`` to a tree, lower a tree, state dicts."""

from typing import TYPE_CHECKING, Any

from parallax.bridge.lift import lift
from parallax.bridge.lifted import Lifted, lifted_type
from parallax.bridge.lower import lower
from parallax.bridge.lowered import Lowered
from parallax.bridge.state_dict import load_state_dict, state_dict

__all__ = [
    "Lifted",
    "Lowered",
    "lift",
    "lifted_type",
    "load_state_dict",
    "lower",
    "state_dict",
]


if not TYPE_CHECKING:  # checkers would accept every name otherwise

    def __getattr__(name: str) -> Any:
        from parallax._errors.absent import no_such_name

        raise no_such_name(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)
