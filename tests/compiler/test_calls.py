"""Calls in threads, calls that fail, and calls with keys, effects and ``parallax.func``."""

from __future__ import annotations

import random as stdlib_random
import re
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Buffer, Module, Parameter, effects, func, nn, random, tree
from tests.comparing import assert_close_trees
from tests.compiler.programs import net, start, step
from tests.compiling import graphs, make_compiled
from tests.corpus import SIZE, Scale

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


# -- threads, failures, purity ---------------------------------------------------------------------


def test_threads_get_their_own_results() -> None:
    compiled = make_compiled(step, backend="eager")
    x, y = torch.randn(5, SIZE), torch.randn(5, 2)
    wrong: list[int] = []

    def work(seed: int) -> None:
        model = net(seed)
        if seed % 2:
            model = model.eval()
        expected = step(model, start(model), x, y)
        for _ in range(5):
            try:
                assert_close_trees(compiled(model, start(model), x, y), expected)
            except BaseException:
                wrong.append(seed)
                raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert graphs() == 2


def test_a_failed_call_leaves_nothing_behind() -> None:
    def fn(x: Tensor) -> Tensor:
        if FLAG[0]:
            raise ValueError("not now")
        return x + 1

    compiled, x = make_compiled(fn, backend="eager"), torch.ones(2)
    FLAG[0] = True
    with pytest.raises(Exception, match="not now"):
        compiled(x)
    FLAG[0] = False
    assert torch.equal(compiled(x), x + 1)


FLAG = [False]


def test_modules_are_initialized_outside_of_compiled_code() -> None:
    with pytest.raises(Exception, match=r"Write model = model.initialize\(rng\) before"):
        make_compiled(lambda x: nn.Linear(2, 2).initialize(0)(x), backend="eager")(torch.ones(2))


def test_a_graph_that_fails_in_no_grad_leaves_the_grad_mode() -> None:
    def fn(x: Tensor) -> Any:
        with torch.no_grad():
            return torch.linalg.cholesky(x)

    with pytest.raises(RuntimeError, match="cholesky"):
        make_compiled(fn, backend="eager")(-torch.eye(2))
    assert torch.is_grad_enabled()


class Classifier(Module):
    """A module in a module."""

    body: nn.Sequential

    def forward(self, x: Tensor) -> Any:
        return self.body(x).sum()


@pytest.mark.parametrize("donate", [(), ("model",)], ids=["kept", "donated"])
def test_inputs_that_do_not_fit_are_told_by_the_path_of_the_layer(donate: tuple[str, ...]) -> None:
    """Dynamo computes shapes by torch's kernels, and raises an error of its own if they refuse."""

    def step(model: Classifier, x: Tensor) -> Any:
        return tree.sub(model, func.grad(lambda model: model(x))(model))

    model = Classifier(nn.Sequential(nn.Linear(4, 3), nn.ReLU())).initialize(0)
    compiled = make_compiled(step, backend="eager", donate=donate)
    path = re.escape(
        "Classifier.body.layers.0 (Linear): expected input of shape (*, 4), got (2, 5)"
    )
    with pytest.raises(ValueError, match=path):
        compiled(model, torch.ones(2, 5))
    after = tree.sub(model, func.grad(lambda model: model(torch.ones(2, 4)))(model))
    assert_close_trees(compiled(model, torch.ones(2, 4)), after)


def test_errors_of_the_function_come_as_they_are() -> None:
    """Dynamo raises one of its own in their place."""

    def refused(model: Any) -> None:
        raise KeyError("my own")

    model = nn.Sequential(nn.BatchNorm1d(2)).initialize(0)
    calls: dict[Any, tuple[type[Exception], str]] = {
        refused: (KeyError, "my own"),
        lambda model: tree.select(model, "layers.9").get(): (LookupError, "Near misses: layers.0"),
        lambda model: model(torch.ones(3, 2)): (effects.EffectError, "nobody collects"),
        lambda model: model.state_dict(): (AttributeError, "Write: bridge.state_dict"),
    }
    for call, (kind, text) in calls.items():
        with pytest.raises(kind, match=text):
            make_compiled(call, backend="eager")(model)


SEEN = torch.zeros(4)


def test_a_call_that_shows_an_error_changes_nothing() -> None:
    """The function is called once more for it; random states and tensors stay as they are."""

    def noted(model: Any, x: Tensor) -> Any:
        SEEN.add_(1)
        SEEN[:2].mul_(2)
        return model(x)

    def drawing(model: Any, x: Tensor) -> Any:
        y = torch.zeros(5)
        y[1:].add_(torch.tensor([1.0]).mul_(2))  # its own tensors it may write into
        torch.rand(7)
        if not torch.compiler.is_compiling():
            stdlib_random.random()
        return model(x + y)

    model = nn.Sequential(nn.Linear(4, 3)).initialize(0)
    states = torch.get_rng_state(), stdlib_random.getstate()
    for call, kind, text in (
        (drawing, ValueError, re.escape("layers.0 (Linear): expected input of shape (*, 4)")),
        (noted, Exception, "shape|size"),
    ):
        with pytest.raises(kind, match=text):
            make_compiled(call, backend="eager")(model, torch.ones(2, 5))
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1] == stdlib_random.getstate()
    assert torch.equal(SEEN, torch.zeros(4))


def test_nothing_given_is_changed_or_kept_alive() -> None:
    compiled = make_compiled(lambda scale: tree.map(torch.neg, scale), backend="aot_eager")
    scale = Scale(torch.ones(2))
    leaf = weakref.ref(scale.by)
    before = scale.by._version, torch.get_rng_state()
    compiled(scale)
    assert scale.by._version == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert not vars(scale.by)
    del scale
    assert leaf() is None


# -- with the rest of Parallax ---------------------------------------------------------------------


class Noise(Module):
    """Draws, and counts its calls by an effect."""

    by: Parameter
    calls: Buffer

    def forward(self, x: Tensor) -> Tensor:
        self.emit(calls=self.calls + 1)
        return x * self.by * random.normal(self.rng, x.shape)


def test_a_key_is_an_input_of_the_graph() -> None:
    module, x = Noise(torch.ones(3), torch.zeros(())), torch.ones(3)

    def call(module: Any, x: Tensor) -> Any:
        return module(x)

    run = effects.collect(call)
    compiled = make_compiled(run, backend="aot_eager")
    for seed in range(4):
        given = module.train(random.key(seed))
        (y, after), (expected, expected_after) = compiled(given, x), run(given, x)
        torch.testing.assert_close(y, expected)
        assert_close_trees(after, expected_after)
        assert after.calls == 1
    assert graphs() == 1


@pytest.mark.parametrize("again", [False, True])
def test_a_gradient_compiles_while_anomaly_mode_is_on(again: bool) -> None:
    def total(x: Tensor) -> Tensor:
        return x.sin().sum()

    compiled, x = make_compiled(func.grad(total), backend="eager"), torch.randn(3)
    with torch.autograd.set_detect_anomaly(True):
        assert_close_trees(compiled(x), x.cos())
        assert torch.is_anomaly_enabled()
        assert_close_trees(compiled(x[:2] if again else x), x[:2].cos() if again else x.cos())


def test_parallax_func_inside_and_around() -> None:
    def loss(model: Any, x: Tensor) -> Any:
        return model(x).square().mean()

    model, x = net(), torch.randn(5, SIZE)
    inside = make_compiled(lambda model, x: func.grad_and_value(loss)(model, x), backend="eager")
    around = func.grad_and_value(make_compiled(loss, backend="aot_eager"))
    expected = func.grad_and_value(loss)(model, x)
    for _ in range(2):
        assert_close_trees(inside(model, x), expected)
        assert_close_trees(around(model, x), expected)
