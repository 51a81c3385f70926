"""What watched modules are to user's code: instances, fields, verbs, copies, classes."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from abc import abstractmethod
from typing import Any, Protocol, cast

import pytest
import torch
from torch import Tensor

from parallax import Module, effects, func, nn, optim, tree
from tests.effects.nets import loss, nets


def call(module: Any, x: Any) -> Any:
    return module(x)


class Computes(Protocol):
    @abstractmethod
    def forward(self, x: Any) -> Any: ...


class Scale(Module):
    by: float

    def forward(self, x: Any) -> Any:
        return self.by * x


class Announced(Scale):
    """Of a class that hears of its subclasses."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise AssertionError("a subclass was announced")


class OfNumbers(Module, Computes):
    """Of a class with an abstract protocol."""

    by: float

    def forward(self, x: Any) -> Any:
        return self.by * x


class Shifted(Scale):
    """Calls the forward of its base."""

    def forward(self, x: Any) -> Any:
        return super().forward(x) + 1


class Holder(Module):
    inner: Module
    again: Module

    def forward(self, x: Any) -> Any:
        assert type(self.inner).__name__ in repr(self.inner)
        return self.again(self.inner(x))


def holder(inner: Any) -> Any:
    return Holder(inner, inner)


def test_one_module_in_two_places_is_captured_in_each() -> None:
    linear = nn.Linear(2, 2).initialize(0)
    x = torch.ones(1, 2)
    _, found = effects.capture(call, "*")(holder(linear), x)
    torch.testing.assert_close(found, {"inner": linear(x), "again": linear(linear(x))})
    assert list(effects.capture(call, "again")(holder(linear), x)[1]) == ["again"]


def test_an_inherited_forward_is_one_call_and_subclasses_are_not_announced() -> None:
    assert effects.capture(call, "*")(holder(Shifted(2.0)), 1.0)[1] == {"inner": 3.0, "again": 7.0}
    for inner in (Announced(2.0), OfNumbers(2.0)):
        _, found = effects.capture(call, "*")(holder(inner), 1.0)
        assert found == {"inner": 2.0, "again": 4.0}


def test_forward_by_its_name_is_a_call() -> None:
    class ByName(Holder):
        def forward(self, x: Any) -> Any:
            return type(self.inner).forward(self.inner, self.again.forward(x))

    found = effects.capture(call, "*")(ByName(Scale(2.0), Scale(3.0)), 1.0)[1]
    assert found == {"again": 3.0, "inner": 6.0}


def test_a_written_call_is_captured_around_its_forward_and_both_may_be_set_later() -> None:
    class Later(Module):
        def forward(self, x: Any) -> Any:
            return x + 1

    run, patched = effects.capture(call, "again"), cast(Any, Later)
    assert run(holder(Later()), 1.0)[1] == {"again": 3.0}
    patched.forward = lambda self, x: x + 2
    assert run(holder(Later()), 1.0)[1] == {"again": 5.0}
    patched.__call__ = lambda self, x: 10 * self.forward(x)
    assert run(holder(Later()), 1.0)[1] == {"again": 320.0}


def test_state_from_outside_fits_and_what_comes_out_is_plain() -> None:
    net, _, _ = nets()
    x = torch.ones(3, 4)
    opt = optim.Adam(lr=0.1)
    state = opt.init(net)

    def step(net: Any, x: Tensor) -> Any:
        made = net.replace(unused=nn.Linear(4, 4).initialize(0))
        return opt.step(net, func.grad(loss)(net, x), state), made, copy.deepcopy(net.pair)

    ((after, _), made, pair), found = effects.capture(step, "blocks.0", "pair", inputs=True)(net, x)
    (expected, _), _, _ = step(net, x)
    assert tree.equal(after, expected) and len(found["blocks.0"]) == 2
    for module, whole in ((after.pair, net.pair), (made.pair, net.pair), (pair, net.pair)):
        assert type(module) is type(whole)
        assert not effects.capture(type(module).forward)(module, x)[1]
    assert tree.equal(tree.map(torch.add, net, after), tree.map(torch.add, net, expected))


def test_a_module_as_an_argument_of_a_watched_one_is_plain_in_the_record() -> None:
    class Applies(Module):
        def forward(self, module: Any, x: Any) -> Any:
            return module(x), module

    class Outer(Module):
        applies: Applies
        scale: Scale

        def forward(self, x: Any) -> Any:
            return self.applies(self.scale, x)[0]

    _, found = effects.capture(call, "*", inputs=True)(Outer(Applies(), Scale(2.0)), 3.0)
    assert found["scale"].output == 6.0
    for module in (found["applies"].args[0], found["applies"].output[1]):
        assert type(module) is Scale and module._rng is None


def test_copies_and_pickles_within_a_capture() -> None:
    class Copies(Module):
        inner: Scale

        def forward(self, x: Any) -> Any:
            return copy.copy(self.inner)(x), pickle.loads(pickle.dumps(self.inner))

    (out, loaded), found = effects.capture(call, "inner")(Copies(Scale(2.0)), 3.0)
    assert out == found["inner"] == 6.0
    assert type(loaded) is Scale and loaded(1.0) == 2.0


def test_splits_of_one_module_and_blocks_of_a_stack_are_calls_of_one_path() -> None:
    class Splits(Module):
        inner: Scale

        def forward(self, x: Any) -> Any:
            one, two = self.inner.split(2)
            return two(one(x))

    assert effects.capture(call, "inner")(Splits(Scale(2.0)), 1.0)[1] == {"inner": (2.0, 4.0)}
    blocks = [nn.Linear(3, 3).initialize(seed) for seed in range(3)]
    x = torch.ones(2, 3)
    _, found = effects.capture(call, "block")(nn.Stack.of(blocks), x)
    expected = []
    for block in blocks:
        x = block(x)
        expected.append(x)
    torch.testing.assert_close(found["block"], tuple(expected))


def test_classes_select_subclasses_and_captures_nest() -> None:
    net = Holder(Shifted(2.0), Scale(3.0))
    assert effects.capture(call, Shifted)(net, 1.0)[1] == {"inner": 3.0}
    assert effects.capture(call, Scale)(net, 1.0)[1] == {"inner": 3.0, "again": 9.0}
    (out, inner), outer = effects.capture(effects.capture(call, "inner"), "*")(net, 1.0)
    assert (out, inner, outer) == (9.0, {"inner": 3.0}, {"inner": 3.0, "again": 9.0})


def test_a_capture_within_a_module_has_paths_from_there() -> None:
    class Inside(Module):
        holder: Holder

        def forward(self, x: Any) -> Any:
            return effects.capture(Holder.forward, "*")(self.holder, x)

    (_, inside), found = effects.capture(call, "holder.inner")(Inside(holder(Scale(2.0))), 1.0)
    assert inside == {"inner": 2.0, "again": 4.0} and found == {"holder.inner": 2.0}


def test_other_calls_of_a_class_are_as_they_were() -> None:
    net = holder(Scale(2.0))
    effects.capture(call, "*")(net, 1.0)
    assert type(net.inner) is Scale and Scale.__call__ is Scale.forward
    assert "watching" not in "".join(vars(Scale))


@pytest.mark.slow
def test_classes_that_were_watched_are_freed() -> None:
    def watched() -> Any:
        class Fresh(Module):
            def forward(self, x: Any) -> Any:
                return x

        assert effects.capture(call, Fresh)(Fresh(), 1.0)[1] == {"": 1.0}
        return weakref.ref(Fresh)

    refs = []
    for _ in range(40):
        refs.append(watched())
        gc.collect()
    assert sum(ref() is not None for ref in refs) < 20
