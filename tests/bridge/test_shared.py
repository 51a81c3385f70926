"""One nn.Module in two places, or called twice: buffers are written in turn, as torch does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import parallax
from parallax import Module, bridge, effects, func, tree

spectral_norm: Any = torch.nn.utils.spectral_norm


class Average(nn.Module):
    """Replaces its buffer, and counts in an attribute; a child writes into its own."""

    mean: Tensor

    def __init__(self, counting: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.inner = nn.Sequential(nn.BatchNorm1d(4))
        self.counting = counting
        self.n = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.counting:
            self.n += 1
        self.mean = self.mean * 0.5 + x.mean() * (self.n + 1)
        return self.inner(x) + self.mean  # type: ignore[no-any-return]  # a tensor


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm1d(4),
    "cumulative batch norm": lambda: nn.BatchNorm1d(4, momentum=None),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "spectral norm by a hook": lambda: spectral_norm(nn.Linear(4, 4)),
    "replaced buffer": Average,
}
# torch's own BatchNorm with momentum=None needs a number from a tensor, which no graph has.
COMPILED = [name for name in LAYERS if name != "cumulative batch norm"]
each = pytest.mark.parametrize("name", LAYERS)


def in_two_places(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Linear(4, 4), nn.Sequential(nn.ReLU(), layer), layer).train()


def collected(model: Any, x: Tensor) -> Any:
    return effects.collect(lambda model, x: model(x))(model, x)


def differentiated(model: Any, x: Tensor) -> Any:
    def loss(model: Any) -> Any:
        out = model(x)
        return out.sum(), out

    (_, out), after = effects.collect(func.grad(loss, has_aux=True))(model)
    return out, after


def same(source: nn.Module, want: Any, found: Any, prefix: str = "") -> None:
    out, after = found
    torch.testing.assert_close(out, want)
    state = bridge.state_dict(after)
    for name, value in source.state_dict().items():
        torch.testing.assert_close(state[prefix + name], value, msg=name)


@each
@pytest.mark.parametrize("call", [collected, differentiated])
def test_a_module_in_several_places(name: str, call: Any) -> None:
    torch.manual_seed(0)
    source, x = in_two_places(LAYERS[name]()), torch.randn(5, 4)
    model = bridge.lift(copy.deepcopy(source))
    found = call(model, x)
    same(source, source(x), found)


def test_it_is_one_object_with_one_python_state() -> None:
    source, x = in_two_places(Average(counting=True)), torch.randn(5, 4)
    model = bridge.lift(copy.deepcopy(source))
    found = collected(model, x)
    same(source, source(x), found)
    lowered: Any = bridge.lower(model)
    assert lowered[0] is lowered[3] is lowered[2][1]


def test_what_was_put_in_its_place_is_another_one() -> None:
    act = nn.Dropout(0.0)
    model = bridge.lift(nn.Sequential(act, act).train())
    changed = tree.select(model, "0").set(bridge.lift(nn.Dropout(1.0)))
    assert torch.equal(changed(torch.ones(3)), torch.zeros(3))
    changed = tree.select(model, "1").set(bridge.lift(nn.Dropout(1.0)))
    assert torch.equal(changed(torch.ones(3)), torch.zeros(3))


def test_blocks_that_share_a_module_stack() -> None:
    act = nn.ReLU()
    model = bridge.lift(nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), act) for _ in range(2)]))
    x = torch.randn(3, 2)
    out = func.vmap(lambda block: block(x))(tree.stack([model[0], model[1]]))
    torch.testing.assert_close(out, torch.stack([model[0](x), model[1](x)]))


def test_compiled_it_is_the_same(fresh_dynamo: None) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    sources = [in_two_places(LAYERS[name]()) for name in COMPILED]
    sources.append(in_two_places(Average(counting=True)))
    models = [bridge.lift(copy.deepcopy(source)) for source in sources]

    def call(models: Any, x: Tensor) -> Any:
        return [collected(model, x) for model in models], differentiated(models[0], x)

    found, first = parallax.compile(call, backend="aot_eager")(models, x)
    wants = [source(x) for source in sources]
    for source, want, pair in zip(sources, wants, found, strict=True):
        same(source, want, pair)
    same(sources[0], wants[0], first)


class Siamese(Module):
    net: Module

    def forward(self, one: Tensor, two: Tensor) -> Any:
        return self.net(one), self.net(two)


def twice(model: Any, one: Tensor, two: Tensor) -> Any:
    return effects.collect(lambda model: model(one, two))(model)


def twice_within_a_gradient(model: Any, one: Tensor, two: Tensor) -> Any:
    def loss(model: Any) -> Any:
        outs = model(one, two)
        return outs[0].sum() + outs[1].sum(), outs

    (_, outs), after = effects.collect(func.grad(loss, has_aux=True))(model)
    return outs, after


def once_within_a_transform(model: Any, one: Tensor, two: Tensor) -> Any:
    def both(model: Any) -> Any:
        out = func.vjp(model.net.__class__.__call__, model.net, one)[0]
        return out, model.net(two)

    return effects.collect(both)(model)


@each
@pytest.mark.parametrize("call", [twice, twice_within_a_gradient, once_within_a_transform])
def test_a_lifted_module_that_is_called_twice(name: str, call: Any) -> None:
    torch.manual_seed(0)
    source = nn.Sequential(nn.Linear(4, 4), LAYERS[name]()).train()
    model = Siamese(bridge.lift(copy.deepcopy(source)))
    one, two = torch.randn(5, 4), torch.randn(6, 4)
    found = call(model, one, two)
    same(source, (source(one), source(two)), found, "net.")


def test_compiled_calls_go_on_from_each_other(fresh_dynamo: None) -> None:
    torch.manual_seed(0)
    one, two = torch.randn(5, 4), torch.randn(6, 4)
    sources = [nn.Sequential(nn.Linear(4, 4), LAYERS[name]()).train() for name in COMPILED]
    models = [Siamese(bridge.lift(copy.deepcopy(source))) for source in sources]

    def call(models: Any, one: Tensor, two: Tensor) -> Any:
        plain = [twice(model, one, two) for model in models]
        return plain, twice_within_a_gradient(models[0], one, two)

    found, first = parallax.compile(call, backend="aot_eager")(models, one, two)
    wants = [(source(one), source(two)) for source in sources]
    for source, want, pair in zip(sources, wants, found, strict=True):
        same(source, want, pair, "net.")
    same(sources[0], wants[0], first, "net.")


def test_each_member_of_an_ensemble_goes_on_from_its_own() -> None:
    torch.manual_seed(0)
    sources = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train() for _ in range(3)]
    members = tree.stack([Siamese(bridge.lift(copy.deepcopy(source))) for source in sources])
    one, two = torch.randn(5, 4), torch.randn(6, 4)

    def call(members: Any) -> Any:
        return func.vmap(lambda member: member(one, two))(members)

    out, after = effects.collect(call)(members)
    for k, (source, member) in enumerate(zip(sources, tree.unstack(after), strict=True)):
        want = source(one), source(two)
        same(source, want, ((out[0][k], out[1][k]), member), "net.")


def test_what_was_emitted_outside_of_a_vmap_over_members_is_refused() -> None:
    members = tree.stack([Siamese(bridge.lift(nn.BatchNorm1d(4))) for _ in range(3)])
    one = torch.randn(5, 4)

    def call(members: Any) -> Any:
        func.vmap(lambda member: member.net(one))(members)
        return func.vmap(lambda member: member.net(one))(members)

    with pytest.raises(effects.EffectError, match=r"two effects for 'net\.running_mean'"):
        effects.collect(call)(members)


def test_a_count_of_batches_is_written_under_vmap() -> None:
    members = tree.stack([bridge.lift(nn.BatchNorm1d(4)) for _ in range(3)])
    x = torch.randn(5, 4)
    after = effects.collect(func.vmap(lambda member: member(x)))(members)[1]
    assert after.num_batches_tracked.tolist() == [1, 1, 1]
