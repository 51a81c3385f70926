"""The checks find what they are for, name it, and leave a good function alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Buffer, Module, Parameter, debug, func, random
from parallax.debug import ImpureError, NonFiniteError
from tests.compiling import make_compiled


class Log(Module):
    scale: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).log()


class Square(Module):
    total: Buffer

    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Net(Module):
    log: Log
    squares: tuple[Square, ...]

    def forward(self, x: Tensor) -> Tensor:
        x = self.log(x)
        for square in self.squares:
            x = square(x)
        return x


def net() -> Net:
    return Net(Log(torch.ones(3)), (Square(torch.zeros(2)), Square(torch.zeros(2))))


X = torch.tensor([1.0, 2.0, 3.0])


# -- pure -----------------------------------------------------------------------------------


def test_a_pure_function_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    assert torch.equal(debug.pure(Net.forward)(net(), X), net()(X))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert debug.pure(lambda x, *, y: x + y)(1, y=2) == 3


WRITES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "in place": (lambda m: m.log.scale.add_(1), r"args\[0\]\.log\.scale"),
    "through detach": (lambda m: m.log.scale.detach().add_(1), r"args\[0\]\.log\.scale"),
    "through data": (lambda m: m.log.scale.data.add_(1), r"args\[0\]\.log\.scale"),
    "through numpy": (lambda m: m.log.scale.numpy().fill(7), r"args\[0\]\.log\.scale"),
    "a view": (lambda m: m.squares[1].total[0].fill_(3), r"args\[0\]\.squares\.1\.total"),
    "the same value": (lambda m: m.log.scale.copy_(torch.ones(3)), r"args\[0\]\.log\.scale"),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_write_names_the_leaf(name: str) -> None:
    write, path = WRITES[name]
    with pytest.raises(ImpureError, match=path):
        debug.pure(write)(net())


def test_writes_into_tensors_in_pytrees_and_keywords_are_found() -> None:
    with pytest.raises(ImpureError, match=r"args\[1\]\.a\.0"):
        debug.pure(lambda _, d: d["a"][0].zero_())(None, {"a": [torch.ones(1)]})
    with pytest.raises(ImpureError, match="out in place"):
        debug.pure(lambda *, out: out.zero_())(out=torch.ones(1))


def test_inference_tensors_are_compared_by_value() -> None:
    with torch.inference_mode():
        x = torch.ones(2)
        debug.pure(torch.sin)(x)
        with pytest.raises(ImpureError, match=r"args\[0\]"):
            debug.pure(torch.Tensor.zero_)(x)


def test_nan_is_the_same_nan() -> None:
    debug.pure(torch.sin)(torch.full((2,), torch.nan))


def test_moving_the_global_rng_is_impure_and_keys_are_not() -> None:
    with torch.random.fork_rng(devices=[]):
        with pytest.raises(ImpureError, match="random state of the CPU"):
            debug.pure(torch.rand_like)(X)
        with pytest.raises(ImpureError, match="random state"):
            debug.pure(lambda: torch.manual_seed(99))()
    debug.pure(lambda: random.normal(random.key(0), (3,)))()
    debug.pure(lambda m: m.reset(1))(net())


def test_changing_a_module_through_its_dict_is_impure() -> None:
    def mutate(module: Any) -> None:
        module.squares[0].__dict__["total"] = torch.ones(2)

    def extend(module: Any) -> None:
        object.__setattr__(module.log, "extra", 1)

    with pytest.raises(ImpureError, match=r"args\[0\]\.squares\.0\.total"):
        debug.pure(mutate)(net())
    with pytest.raises(ImpureError, match=r"args\[0\]\.log\.extra"):
        debug.pure(extend)(net())


def test_gradients_and_flags_of_a_leaf_are_part_of_it() -> None:
    leaf = torch.ones(2, requires_grad=True)
    backward: Any = lambda x: (2 * x).sum().backward()  # noqa: E731  # no value
    for _ in range(2):  # a first gradient, and one added to it
        with pytest.raises(ImpureError, match=r"wrote into args\[0\]\.grad.*func\.grad"):
            debug.pure(backward)(leaf)
    with pytest.raises(ImpureError, match=r"args\[0\]\.requires_grad"):
        debug.pure(lambda x: x.requires_grad_() * 1)(torch.ones(2))
    debug.pure(lambda m: m.reset(0)(X).sum().backward())(net())


def test_lists_and_dicts_are_looked_at_too() -> None:
    with pytest.raises(ImpureError, match=r"something else in the place args\[0\]\.1"):
        debug.pure(lambda items: items.append(1))([X])
    with pytest.raises(ImpureError, match=r"args\[0\]\.a\.0"):
        debug.pure(lambda d: d["a"].__setitem__(0, X + 1))({"a": [X]})
    with pytest.raises(ImpureError, match=r"args\[0\]\.a"):
        debug.pure(lambda d: d.pop("a"))({"a": X})


def test_a_module_that_is_called_is_given_as_well() -> None:
    class Writes(Module):
        total: Buffer

        def forward(self, x: Tensor) -> Tensor:
            self.total.add_(x)
            return x

    module: Any = Writes(torch.zeros(()))
    for fn in (module, module.forward):
        with pytest.raises(ImpureError, match=r"wrote into self\.total"):
            debug.pure(fn)(torch.ones(()))


def test_it_works_within_transforms() -> None:
    doubled = torch.vmap(debug.pure(lambda x: 2 * x))(X)
    assert torch.equal(doubled, 2 * X)
    assert torch.equal(torch.vmap(debug.deterministic(lambda x: 2 * x))(X), 2 * X)
    assert torch.equal(torch.func.grad(debug.pure(lambda x: (x * x).sum()))(X), 2 * X)
    with pytest.raises(ImpureError, match=r"args\[0\] in place"):
        torch.vmap(debug.pure(lambda x: x.add_(1)))(X.clone())


def test_what_runs_later_cannot_be_checked() -> None:
    def generator(x: Tensor) -> Any:
        yield x

    async def coroutine(x: Tensor) -> Tensor:
        return x

    checks: list[Any] = [debug.pure, debug.deterministic, debug.nans]
    for check in checks:
        for fn in (generator, coroutine):
            with pytest.raises(TypeError, match="when the call is over"):
                check(fn)(X)


# -- deterministic --------------------------------------------------------------------------


def test_deterministic_functions_return_their_first_result() -> None:
    calls = []

    def f(x: Tensor) -> Tensor:
        calls.append(x)
        return x.sin()

    assert torch.equal(debug.deterministic(f)(X), X.sin()) and len(calls) == 2
    assert debug.deterministic(lambda: {"a": [torch.tensor(torch.nan)]})()["a"][0].isnan()


def test_keys_may_be_used_by_both_runs_and_once_more() -> None:
    key = random.key(0)
    drawn = debug.deterministic(lambda key: random.normal(key, (3,)))(key)
    assert torch.equal(drawn, random.normal(key, (3,)))


def test_a_draw_without_a_key_is_found_and_named() -> None:
    with torch.random.fork_rng(devices=[]):
        with pytest.raises(ImpureError, match=r"not deterministic.*at b"):
            debug.deterministic(lambda: {"a": torch.ones(1), "b": torch.rand(1)})()
        with pytest.raises(ImpureError, match="not deterministic"):
            debug.deterministic(lambda: torch.rand(()))()


def test_signed_zeros_and_shapes_differ() -> None:
    values = iter([torch.tensor(0.0), torch.tensor(-0.0), torch.zeros(1), torch.zeros(2)])
    for _ in range(2):
        with pytest.raises(ImpureError):
            debug.deterministic(lambda: next(values))()


# -- nans -----------------------------------------------------------------------------------


def test_finite_functions_are_left_alone() -> None:
    before = sys.getprofile()
    assert torch.equal(debug.nans(Net.forward)(net(), X), net()(X))
    assert sys.getprofile() is before


def test_the_first_module_is_named_even_where_later_ones_fail_too() -> None:
    with pytest.raises(NonFiniteError, match=r"^log \(Log\) returned 1 of 3 numbers"):
        debug.nans(Net.forward)(net(), torch.tensor([0.0, 1.0, 2.0]))


def test_a_module_that_is_called_knows_its_paths() -> None:
    module = net()
    for fn in (module, module.forward):
        with pytest.raises(NonFiniteError, match=r"^log \(Log\)"):
            debug.nans(fn)(torch.tensor([0.0, 1.0, 2.0]))


class Cube(Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


def test_overflow_in_a_later_module() -> None:
    class Cubes(Module):
        cubes: tuple[Cube, ...]

        def forward(self, x: Tensor) -> Tensor:
            for cube in self.cubes:
                x = cube(x)
            return x

    with pytest.raises(NonFiniteError, match=r"^cubes\.1 \(Cube\) returned 2 of 2"):
        debug.nans(Cubes.forward)(Cubes((Cube(), Cube())), torch.full((2,), 1e10))


def test_what_is_infinite_only_inside_a_module_is_its_own_affair() -> None:
    class Masked(Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill(x > 2, -torch.inf).softmax(0)

    debug.nans(Masked.forward)(Masked(), X)


def test_arguments_and_results_are_named() -> None:
    module = net().replace(log=Log(torch.tensor([1.0, torch.nan, 1.0])))
    with pytest.raises(NonFiniteError, match=r"^args\[0\]\.log\.scale, an argument, holds 1 of 3"):
        debug.nans(Net.forward)(module, X)

    def gradient(module: Any, x: Tensor) -> Any:
        prepared = module.reset(0)
        prepared.log.scale.sub(1).abs().sqrt().sum().backward()
        return prepared.grad()

    with pytest.raises(NonFiniteError, match=r"^gradient\(\)\.log\.scale holds 3 of 3"):
        debug.nans(gradient)(net(), X)


def test_it_looks_through_transforms() -> None:
    batch = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]])
    with pytest.raises(NonFiniteError, match=r"^log \(Log\) returned 1 of 6"):
        debug.nans(lambda m, xs: torch.vmap(lambda x: m(x))(xs))(net(), batch)
    with pytest.raises(NonFiniteError, match=r"^log \(Log\)"):
        debug.nans(lambda m, x: torch.func.grad(lambda x: m(x).sum())(x))(net(), batch[1])
    with pytest.raises(NonFiniteError, match=r"^log \(Log\)"):
        debug.nans(lambda m, x: torch.func.jvp(lambda x: m(x), (x,), (x,)))(net(), batch[1])


def test_random_numbers_do_not_change_under_the_check() -> None:
    class Noise(Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + random.normal(self.rng, x.shape)

    class Noises(Module):
        parts: tuple[Noise, ...]

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.parts[0](x) + self.parts[1](x)
            return out

    expected = Noises((Noise(), Noise())).train(random.key(0))(X)
    module = Noises((Noise(), Noise())).train(random.key(0))
    assert torch.equal(debug.nans(Noises.forward)(module, X), expected)


# What is done with a model that takes logarithms of zeros, and what of its output is not finite.
COMPILED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "plain": (lambda m, x: m(x), "2 of 6"),
    "vmap": (lambda m, x: func.vmap(m)(x), "2 of 6"),
    "grad": (lambda m, x: func.grad(lambda m: m(x).sum())(m).log.scale, "2 of 6"),
}


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", COMPILED)
def test_within_compiled_code(name: str) -> None:
    use, message = COMPILED[name]
    good, bad = torch.ones(2, 3), torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    compiled = make_compiled(debug.nans(use), backend="aot_eager")
    torch.testing.assert_close(compiled(net(), good), use(net(), good))
    with pytest.raises(NonFiniteError, match=rf"^log \(Log\) returned {message} numbers"):
        compiled(net(), bad)
    with pytest.raises(NonFiniteError, match=r"^args\[1\], an argument, holds 6 of 6"):
        compiled(net(), torch.nan * good)
