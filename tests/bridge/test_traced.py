"""Lifted modules under torch.compile and torch.func's raw transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrizations

import parallax
import parallax.nn as pnn
from parallax import Module, Parameter, bridge, effects, func, random, tree


def compiled(fn: Any, backend: str = "eager") -> Any:
    torch._dynamo.reset()
    return torch.compile(fn, backend=backend, fullgraph=True)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 2)))


def test_a_call_is_one_graph_for_all_trees_of_a_structure() -> None:
    lifted, x = bridge.lift(model()), torch.randn(5, 3)
    counter = CompileCounter()
    torch._dynamo.reset()
    call = torch.compile(lambda m, x: m(x), backend=counter, fullgraph=True)
    for k in range(3):
        module = tree.map(lambda t, k=k: t + k, lifted)
        torch.testing.assert_close(call(module, x), module(x))
    assert counter.frame_count == 1


def test_a_whole_step_is_one_graph() -> None:
    lifted, x = bridge.lift(model()), torch.randn(5, 3)

    def step(module: Any, x: Tensor) -> Any:
        grads = torch.func.grad(lambda m: m(x).square().mean())(module)
        return module.update(lambda p, g: p - 0.1 * g, grads)

    expected = step(lifted, x)
    after = compiled(step, "aot_eager")(lifted, x)
    for mine, theirs in zip(tree.leaves(after), tree.leaves(expected), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_effects_come_back() -> None:
    lifted = bridge.lift(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    x = torch.randn(5, 3)

    def call(module: Any, x: Tensor) -> Any:
        return effects.collect(type(lifted).__call__)(module, x)

    (out, after), (expected, then) = compiled(call)(lifted, x), call(lifted, x)
    torch.testing.assert_close(out, expected)
    for mine, theirs in zip(tree.leaves(after), tree.leaves(then), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_effects_of_a_parametrization_come_back() -> None:
    lifted = bridge.lift(parametrizations.spectral_norm(nn.Linear(3, 4)))
    x = torch.randn(5, 3)

    def call(module: Any, x: Tensor) -> Any:
        return effects.collect(type(lifted).__call__)(module, x)

    (out, after), (expected, then) = compiled(call)(lifted, x), call(lifted, x)
    torch.testing.assert_close(out, expected)
    for mine, theirs in zip(tree.leaves(after), tree.leaves(then), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_parallax_module_inside() -> None:
    class Adapter(Module):
        base: Module
        delta: Parameter

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.delta  # type: ignore[no-any-return]  # a tensor

    lifted, x = bridge.lift(model()), torch.randn(5, 3)
    changed = tree.select(lifted, "2.0").apply(lambda base: Adapter(base, torch.ones(2)))
    torch.testing.assert_close(compiled(lambda m, x: m(x))(changed, x), lifted(x) + 1)


class Calling(nn.Module):
    """A layer, and a function after it."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))  # type: ignore[no-any-return]  # a tensor


def encoder(dropout: float) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, dropout, batch_first=True)


def attention(dropout: float) -> nn.Module:
    return Calling(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=dropout))


def test_an_rng_that_nothing_draws_from_changes_nothing(fresh_dynamo: None) -> None:
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3))
    sources = [
        Calling(torch.tanh),
        nn.Sequential(nn.Dropout(0.0)),
        encoder(0.0),
        attention(0.0),
        norm,
    ]
    models = [bridge.lift(source) for source in sources]

    def call(models: Any, x: Tensor, key: Any) -> Any:
        def run(model: Any, x: Tensor) -> Tensor:
            return model(x)  # type: ignore[no-any-return]  # a tensor

        models = [model.train(part) for model, part in zip(models, random.split(key, 5))]  # noqa: B905  # dynamo traces no strict=
        outs = [effects.collect(run)(model, x) for model in models]
        grads = func.grad(lambda m: m(x).square().sum())(models[0])
        return outs, grads, models[1].eval()(x)

    x = torch.randn(2, 3, 4)
    outs, grads, evaluated = parallax.compile(call)(models, x, random.key(0))
    for source, (out, _) in zip(sources, outs, strict=True):
        torch.testing.assert_close(out, source(x))
    torch.testing.assert_close(bridge.state_dict(outs[4][1]), dict(norm.state_dict()))
    torch.testing.assert_close(evaluated, x)
    sources[0](x).square().sum().backward()
    for name, p in sources[0].named_parameters():
        torch.testing.assert_close(bridge.state_dict(grads)[name], p.grad)


DRAWING = {
    "dropout in Dropout": nn.Dropout(0.5),
    "alpha_dropout in AlphaDropout": nn.AlphaDropout(0.5),
    "rrelu in RReLU": nn.RReLU(),
    "rand_like": Calling(lambda x: x + torch.rand_like(x)),
    "randn": Calling(lambda x: x + torch.randn(4)),
    "bernoulli_": Calling(lambda x: x * torch.empty(4).bernoulli_(0.5)),
    "randperm": Calling(lambda x: x[..., torch.randperm(4)]),
    "gumbel_softmax": Calling(F.gumbel_softmax),
    "multi_head_attention_forward in MultiheadAttention": encoder(0.1),
    "scaled_dot_product_attention": attention(0.1),
}


def test_a_draw_with_an_rng_is_refused_by_name(fresh_dynamo: None) -> None:
    for name, source in DRAWING.items():
        torch._dynamo.reset()
        with pytest.raises(Exception, match=rf"draws by {name}.*compiled code cannot seed"):
            compiled(lambda m, x: m(x))(bridge.lift(source.train()).train(0), torch.randn(2, 3, 4))


def test_what_the_refusal_says_to_write_runs(fresh_dynamo: None) -> None:
    source = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    model: Any = bridge.lift(source)
    model = tree.select(model, bridge.lifted_type(nn.Dropout)).apply(lambda old: pnn.Dropout(old.p))

    def call(model: Any, x: Tensor, key: Any) -> Any:
        return model.train(key)(x)

    x, key = torch.ones(8, 4), random.key(1)
    out = parallax.compile(call, backend="eager")(model, x, random.clone(key))
    torch.testing.assert_close(out, call(model, x, key))
    assert 0 < int((out == 0).sum()) < out.numel()


def test_raw_transforms_agree_with_functional_call() -> None:
    original = model()
    lifted, x = bridge.lift(original), torch.randn(5, 3)
    weights = {name: p.detach() for name, p in original.named_parameters()}

    def reference(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(original, weights, (x,)).square().sum()  # type: ignore[no-any-return]  # a tensor

    def mine(module: Any, x: Tensor) -> Tensor:
        return module(x).square().sum()  # type: ignore[no-any-return]  # a tensor

    grad, reference_grad = torch.func.grad(mine), torch.func.grad(reference)

    def norm(module: Any, x: Tensor) -> Tensor:
        return torch.stack([(g**2).sum() for g in tree.leaves(grad(module, x))]).sum()

    def reference_norm(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.stack([(g**2).sum() for g in reference_grad(weights, x).values()]).sum()

    pairs = [
        (grad, reference_grad),
        (torch.vmap(grad, (None, 0)), torch.vmap(reference_grad, (None, 0))),
        (torch.func.grad(norm), torch.func.grad(reference_norm)),
    ]
    for transform, expected in pairs:
        found = bridge.state_dict(transform(lifted, x))
        for name, value in expected(weights, x).items():
            torch.testing.assert_close(found[name], value)
    tangents = tree.map(torch.ones_like, lifted)
    ones = {name: torch.ones_like(value) for name, value in weights.items()}
    out: Any = torch.func.jvp(lambda m: mine(m, x), (lifted,), (tangents,))
    expected_out: Any = torch.func.jvp(lambda w: reference(w, x), (weights,), (ones,))
    torch.testing.assert_close(out[1], expected_out[1])


class Pointing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.through: Any = lambda x: self.linear(x)
        self.weights = [self.linear.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.through(x) + self.weights[0].sum()  # type: ignore[no-any-return]  # a tensor


def test_an_attribute_that_points_at_tensors_is_refused_in_one_graph_and_run_outside_of_it() -> (
    None
):
    lifted, x = bridge.lift(Pointing()), torch.randn(2, 3)
    with pytest.raises(Exception, match="points at tensors of the model, which compiled code"):
        compiled(lambda m, x: m(x))(lifted, x)
    torch._dynamo.reset()
    broken = torch.compile(lambda m, x: m(x) * 2, backend="eager")
    torch.testing.assert_close(broken(lifted, x), lifted(x) * 2)


def test_a_recurrent_layer_runs_outside_of_the_graph() -> None:
    lifted, x = bridge.lift(nn.LSTM(3, 2)), torch.randn(4, 3)
    torch._dynamo.reset()
    call = torch.compile(lambda m, x: m(x)[0], backend="eager")
    torch.testing.assert_close(call(lifted, x), lifted(x)[0])


def test_a_function_around_a_module_finds_the_leaves() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.through: Any = lambda x: self.linear(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.through(x)  # type: ignore[no-any-return]  # a tensor

    lifted, x = bridge.lift(Around()), torch.randn(2, 3)
    zeros = tree.map(torch.zeros_like, lifted)
    call = compiled(lambda m, x: m(x))
    torch.testing.assert_close(call(lifted, x), lifted(x))
    torch.testing.assert_close(call(zeros, x), torch.zeros(2, 3))
