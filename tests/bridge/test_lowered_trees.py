"""Code of a lowered tree that takes its parts apart, or asks what they are, gets trees."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn

from parallax import Buffer, Module, Parameter, bridge, func, nn, random, tree

X = torch.randn(5, 4)


class Ensemble(Module):
    """Takes parts apart in every way."""

    members: nn.Linear
    drop: nn.Dropout
    norm: nn.BatchNorm1d

    def forward(self, x: Tensor) -> Tensor:
        several = func.vmap(lambda m, x: m(x), in_dims=(0, None))(self.members, x)
        one, two = self.drop.split(2)
        first = self.members.replace(in_features=4)
        total: Tensor = several.sum(0) + one(x) - two(x) + first.weight.sum()
        return total + self.norm.split(1)[0](x) + tree.norm(self.members)


def ensemble() -> Ensemble:
    members = tree.stack([nn.Linear(4, 4).initialize(seed) for seed in range(3)])
    return Ensemble(members, nn.Dropout(0.5), nn.BatchNorm1d(4).initialize(0))


def test_parts_that_are_taken_apart_are_trees_of_the_tensors_of_now() -> None:
    module: Any = ensemble().eval()
    model: Any = bridge.lower(module, copy=True)
    torch.testing.assert_close(model(X), module(X))
    with torch.no_grad():
        model.members.weight.mul_(2)
    twice = module.replace(members=module.members.replace(weight=2 * module.members.weight))
    torch.testing.assert_close(model(X), twice(X))
    torch.manual_seed(0)
    one, two = model.train()(X), model(X)
    assert not torch.equal(one, two)
    torch.testing.assert_close(model.norm.running_mean, (1 - 0.9**2) * X.mean(0))
    assert model.norm.num_batches_tracked == 2


@pytest.mark.parametrize("what", ["a hook", "another module", "a forward"])
def test_what_would_be_ignored_in_them_is_refused(what: str) -> None:
    model: Any = bridge.lower(ensemble().eval(), copy=True)
    if what == "a hook":
        model.members.register_forward_hook(lambda *_: None)
        message = "the lowered module 'members' has a forward hook. The forward above it takes it"
    elif what == "a forward":
        model.members.forward = lambda x: x
        message = "the lowered module 'members' has a forward of its own"
    else:
        model.drop = torch_nn.Identity()
        message = "'Identity' object has no attribute 'split'"
    with pytest.raises((RuntimeError, AttributeError), match=message):
        model(X)


def test_a_hook_inside_of_a_stack_is_refused() -> None:
    model: Any = bridge.lower(nn.Stack(nn.Sequential(nn.Linear(4, 4)), 2).initialize(0))
    want = model(X)
    handle = model.block[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"the lowered module 'block\.0' has a forward hook"):
        model(X)
    handle.remove()
    assert torch.equal(model(X), want)


def test_a_hook_below_a_layer_that_is_computed_is_refused() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model: Any = bridge.lower(nn.WeightNorm(inner, "0.weight").initialize(0))
    want = model(X)
    model.get_submodule("1").register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="the lowered module '1' has a forward hook"):
        model(X)
    assert want.shape == (5, 4)


def test_hooks_that_a_lifted_part_had_run_and_so_do_new_ones() -> None:
    source = torch_nn.Linear(4, 4)
    hook: Any = lambda m, args, out: out * 2  # noqa: E731  # short
    source.register_forward_hook(hook)
    model: Any = bridge.lower(nn.Sequential(bridge.lift(source)).eval())
    assert torch.equal(model(X), source(X))
    model[0].register_forward_hook(lambda m, args, out: out + 1)
    assert torch.equal(model(X), source(X) + 1)


class Method(Module):
    inner: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        inner: Any = self.inner
        assert isinstance(inner, nn.Sequential) and len(inner) == 3
        assert self.inner[0].in_features == 4 and self.mode == self.inner.mode
        made = type(self)(nn.Sequential(nn.Identity()))
        assert type(made) is Method
        for layer in self.inner:
            x = layer(x)
        return self.twice(x)

    def twice(self, x: Tensor) -> Tensor:
        once: Tensor = self.inner(x)
        return 2 * once


def test_methods_and_constants_of_parts_are_the_trees() -> None:
    module = Method(nn.Sequential(nn.Linear(4, 4), torch.tanh, nn.Tanh())).initialize(0)
    model: Any = bridge.lower(module)
    torch.testing.assert_close(model(X), module(X))
    seen: list[int] = []
    for layer in model.inner:
        layer.register_forward_hook(lambda *_: seen.append(1))
    model(X)
    assert len(seen) == 6


def test_a_class_that_is_known_by_its_subclasses_meets_no_others() -> None:
    known: list[str] = []

    class Base(Module):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            known.append(cls.__name__)

    class Leaf(Base):
        scale: Parameter

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    assert torch.equal(bridge.lower(Leaf(torch.ones(4)))(X), X)
    assert known == ["Leaf"]


def test_a_copy_shares_no_storage() -> None:
    module: Any = nn.Sequential(nn.Linear(4, 4)).initialize(0)
    model: Any = bridge.lower(module, copy=True)
    weight = module[0].weight.clone()
    torch.testing.assert_close(model(X), module(X))
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(module[0].weight, weight)


def test_lowering_leaves_the_generator_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 2), nn.LayerNorm(4)).initialize(0)
    before = torch.get_rng_state()
    bridge.lower(module)
    assert torch.equal(torch.get_rng_state(), before)


class Counting(Module):
    count: Buffer
    scale: Parameter

    def forward(self, x: Tensor) -> Tensor:
        self.emit(merge="last", count=self.count + 1)
        return x * self.scale


class Pair(Module):
    one: Counting
    two: Counting

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


def test_tied_tensors_stay_tied_when_the_model_is_converted() -> None:
    count, scale = torch.zeros(()), torch.ones(())
    pair = Pair(Counting(count, scale), Counting(count, scale))
    for tied in (pair, nn.Sequential(pair.one, pair.two, torch.tanh)):
        model: Any = bridge.lower(tied, copy=True).to(torch.float64)
        one, two = (model.one, model.two) if tied is pair else (model[0], model[1])
        assert one.count is two.count and one.scale is two.scale
        assert len(list(model.buffers())) == 1
        model(torch.ones((), dtype=torch.float64))
        assert two.count == 2  # as modules of torch do, each writes when it is called


def test_random_numbers_are_those_of_torchs_layers() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.AlphaDropout(0.5)).train(random.key(0))
    reference = torch_nn.Sequential(torch_nn.Dropout(0.5), torch_nn.AlphaDropout(0.5))
    outs = []
    for net in (bridge.lower(module), reference):
        torch.manual_seed(0)
        outs.append(net(X))
    assert torch.equal(*outs)


class Energy(Module):
    """Differentiates a part by its input, which is not taken apart."""

    inner: Module

    def forward(self, x: Tensor) -> Tensor:
        one: Tensor = torch.func.grad(lambda x: self.inner(x).square().sum())(x)
        two: Tensor = func.grad(lambda x: self.inner(x).square().sum())(x)
        return one + two


class Noisy(Module):
    scale: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + torch.randn(x.shape, generator=self.rng)


def test_parts_are_called_within_transforms() -> None:
    model: Any = bridge.lower(Energy(nn.Linear(4, 4).initialize(0)))
    weight, bias = model.inner.weight, model.inner.bias
    torch.testing.assert_close(model(X), 4 * (X @ weight.T + bias) @ weight)
    seen: list[int] = []
    model.inner.register_forward_hook(lambda *_: seen.append(1))
    model(X)
    assert len(seen) == 2
    noisy = bridge.lower(Energy(Noisy(torch.ones(4))))
    torch.manual_seed(0)
    one, two = noisy(X), noisy(X)
    torch.manual_seed(0)
    assert torch.equal(noisy(X), one) and not torch.equal(one, two)


class Widened(torch_nn.Linear):
    def twice(self, x: Tensor) -> Tensor:
        once: Tensor = self(x)
        return 2 * once


class Around(Module):
    body: Module

    def forward(self, x: Tensor) -> Tensor:
        body: Any = self.body
        assert body[0].in_features == 4
        for layer in body:
            x = layer(x)
        out: Tensor = x + body[1].weight.sum() + body(x)
        return out


def test_lifted_parts_are_called_and_read() -> None:
    source = torch_nn.Sequential(torch_nn.Linear(4, 4), torch_nn.LayerNorm(4))
    module = Around(bridge.lift(source))
    model: Any = bridge.lower(module)
    want = source(X)
    want = want + source[1].weight.sum() + source(want)  # type: ignore[operator]  # a tensor
    torch.testing.assert_close(model(X), want)
    seen: list[int] = []
    model.body[1].register_forward_hook(lambda *_: seen.append(1))
    model(X)
    assert len(seen) == 2
    assert tree.equal(bridge.lift(bridge.lower(module)), module)


class Doubled(Module):
    body: Module

    def forward(self, x: Tensor) -> Tensor:
        body: Any = self.body
        out: Tensor = body.twice(x) + body.in_features
        return out


def test_a_method_of_a_lifted_part_takes_it_apart() -> None:
    source = Widened(4, 4)
    model: Any = bridge.lower(Doubled(bridge.lift(source)))
    torch.testing.assert_close(model(X), source.twice(X) + 4)
    model.body.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="the lowered module 'body' has a forward hook"):
        model(X)


class Pairs(NamedTuple):
    left: nn.Linear
    right: nn.Linear


class Containers(Module):
    pair: Pairs
    grid: tuple[tuple[nn.Linear, ...], ...]
    scales: tuple[Parameter, ...]
    named: dict[str, Parameter]

    def forward(self, x: Tensor) -> Tensor:
        x = self.pair.left(x) + self.pair.right(x)
        for row in self.grid:
            for layer in row:
                x = layer(x)
        for scale in self.scales:
            x = x * scale
        return x + self.named["shift"]


def test_containers_of_all_kinds() -> None:
    def ones() -> Any:
        return Parameter((4,), torch_nn.init.ones_)

    def linear() -> nn.Linear:
        return nn.Linear(4, 4)

    pair, grid = Pairs(linear(), linear()), ((linear(), linear()), (linear(),))
    module = Containers(pair, grid, (ones(), ones()), {"shift": ones()}).initialize(0)
    model: Any = bridge.lower(module)
    torch.testing.assert_close(model(X), module(X))
    assert list(model.state_dict()) == list(bridge.state_dict(module))
    assert len(model.grid) == 2 and isinstance(model.grid[0], torch_nn.ModuleList)
    assert [scale.shape for scale in model.scales] == [(4,), (4,)]
    seen: list[int] = []
    model.pair.right.register_forward_hook(lambda *_: seen.append(1))
    model.grid[0][1].register_forward_hook(lambda *_: seen.append(2))
    model(X)
    assert seen == [1, 2]
    assert tree.equal(bridge.lift(bridge.lower(module)), module)
