"""What cannot be emitted, and where, is an error that names the class and the field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Buffer, Module, Parameter, effects, func, tree
from parallax.effects import EffectError
from tests.effects.models import (
    Stack,
    forward,
    net,
    norm,
)


class Emits(Module):
    """Emits what it is called with."""

    parameter: Parameter
    buffer: Buffer
    hole: Buffer | None
    buffers: tuple[Buffer, ...]
    constant: int

    def forward(self, merge: Any = None, **values: Any) -> None:
        self.emit(merge=merge, **values)


def call(module: Any, /, **values: Any) -> None:
    module(**values)


def emits() -> Any:
    cls: Any = Emits
    return cls(torch.zeros(2), torch.zeros(2), None, (torch.zeros(2),), 1)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"nothing": torch.zeros(2)}, AttributeError, "declares no field 'nothing'.*nothing: Buffer"),
    ({"parameter": torch.zeros(2)}, TypeError, "only buffers.*parameter: Buffer"),
    ({"constant": torch.zeros(2)}, TypeError, "only buffers"),
    ({"buffers": torch.zeros(2)}, TypeError, "only buffers"),
    ({"buffer": 1.0}, TypeError, "expected a tensor, got 1.0"),
    ({"hole": torch.zeros(2)}, TypeError, "the buffer is None"),
    ({"buffer": torch.zeros(3)}, ValueError, r"shape \(2,\).*\(3,\)"),
    ({"buffer": torch.zeros(2, dtype=torch.float64)}, ValueError, r"float32.*float64"),
    (
        {"buffer": torch.zeros(2, device="meta")},
        ValueError,
        r"the buffer is on cpu, the value on meta\. Move it: value.to\(self.buffer.device\)",
    ),
    ({"buffer": torch.zeros(2), "merge": "median"}, ValueError, "merge.*median"),
]


@pytest.mark.parametrize(("values", "error", "message"), BAD)
def test_bad_effects_name_the_class_and_the_field(
    values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        effects.collect(call)(emits(), **values)
    assert "Emits.emit(" in str(caught.value)
    with pytest.raises(error, match=message):
        emits()(**values)


def test_an_effect_that_nobody_collects_is_an_error(x: Tensor) -> None:
    with pytest.raises(EffectError, match=r"effects\.collect\(fn\)"):
        norm()(x)
    with pytest.raises(EffectError, match="nobody collects"):
        effects.capture(forward)(norm(), x)


def test_an_uninitialized_buffer_has_nothing_to_replace() -> None:
    declaring: Any = Emits
    declared = declaring(torch.zeros(2), Buffer((2,), torch.nn.init.zeros_), None, (), 1)
    with pytest.raises(TypeError, match="not initialized"):
        effects.collect(call)(declared, buffer=torch.zeros(2))


def test_an_effect_of_a_module_put_in_during_the_call_is_foreign(x: Tensor) -> None:
    foreign = Stack((norm(), norm(), norm()))

    def inside(module: Any, x: Tensor) -> Tensor:
        bigger = tree.map(lambda leaf: leaf, foreign)
        object.__setattr__(bigger.layers[2], "_rng", module._rng)
        object.__setattr__(bigger.layers[2], "_spec", with_path(bigger.layers[2], "layers.2"))
        return bigger.layers[2](x)  # type: ignore[no-any-return]  # a Tensor

    with pytest.raises(EffectError, match=r"layers\.2.*no such leaf"):
        effects.collect(inside)(net(), x)


def with_path(module: Any, path: str) -> Any:
    return module._spec.renote(lambda _, node: node.local.note._replace(path=path))


@pytest.mark.parametrize("wrap", [effects.collect, effects.capture])
@pytest.mark.parametrize("first", [3, None, torch.zeros(1), [norm()]])
def test_the_first_argument_is_a_module(wrap: Any, first: Any) -> None:
    with pytest.raises(TypeError, match="first argument is a module"):
        wrap(lambda m: m)(first)


def test_generators_and_coroutines_would_run_too_late() -> None:
    def generator(module: Any) -> Iterator[int]:
        yield 1

    async def coroutine(module: Any) -> int:
        return 1

    async def stream(module: Any) -> Any:
        yield 1

    for fn in (generator, coroutine, stream):
        with pytest.raises(TypeError, match="call is over"):
            effects.collect(fn)(norm())


def test_fields_may_not_be_called_emit_or_sow() -> None:
    for name in ("emit", "sow"):
        with pytest.raises(TypeError, match=name):
            type("Bad", (Module,), {"__annotations__": {name: Buffer}})


def test_the_error_names_the_place_of_the_module() -> None:
    def inside(module: Any) -> None:
        module.layers[1].layers[0](buffer=torch.zeros(3))

    with pytest.raises(ValueError, match=r"Emits\.emit\(buffer=\) at 'layers\.1\.layers\.0'"):
        effects.collect(inside)(Stack((emits(), Stack((emits(),)))))


@pytest.mark.parametrize(("values", "error", "message"), BAD)
def test_bad_effects_are_refused_within_transforms_too(
    values: dict[str, Any], error: type[Exception], message: str
) -> None:
    def inside(module: Any, scale: Tensor) -> Tensor:
        mapped = {
            name: value * scale.to(value) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        module(**mapped)
        return scale

    def over_scales(module: Any, scales: Tensor) -> Any:
        return func.vmap(inside, in_dims=(None, 0))(module, scales)

    with pytest.raises(error, match=message):
        effects.collect(over_scales)(emits(), torch.ones(2))
