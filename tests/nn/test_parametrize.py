"""Spectral and weight normalisation are those of torch.nn.utils.parametrizations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.nn.utils import parametrizations as typed_parametrizations

from parallax import Module, Parameter, bridge, effects, func, nn, tree
from tests.nn.parity import assert_parity, assert_same, assert_same_start

parametrizations: Any = typed_parametrizations

LAYERS: list[tuple[str, tuple[Any, ...], tuple[int, ...]]] = [
    ("Linear", (3, 2), (5, 3)),
    ("Conv1d", (3, 2, 2), (1, 3, 4)),
    ("Conv2d", (3, 4, 2), (2, 3, 4, 5)),
    ("ConvTranspose2d", (3, 2, 2), (2, 3, 4, 5)),
    ("Conv3d", (1, 2, 1), (1, 1, 2, 3, 2)),
]
every_layer = pytest.mark.parametrize(("name", "sizes", "shape"), LAYERS, ids=str)


def layers(name: str, sizes: tuple[Any, ...], **keywords: Any) -> tuple[Any, Any]:
    return getattr(nn, name)(*sizes, **keywords), getattr(torch_nn, name)(*sizes, **keywords)


@every_layer
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("arguments", [{}, {"n_power_iterations": 3, "eps": 1e-6}, {"dim": -1}])
def test_spectral_norm(
    name: str, sizes: Any, shape: Any, mode: str, arguments: dict[str, Any]
) -> None:
    ours, theirs = layers(name, sizes)
    ours = nn.SpectralNorm(ours, **arguments)
    theirs = parametrizations.spectral_norm(theirs, **arguments)
    assert_parity(ours, theirs, torch.randn(shape), mode=mode, show=False)


@every_layer
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm(name: str, sizes: Any, shape: Any, dim: int | None) -> None:
    ours, theirs = layers(name, sizes)
    ours = nn.WeightNorm(ours, dim=dim)
    theirs = parametrizations.weight_norm(theirs, dim=dim)
    with torch.no_grad():
        theirs.parametrizations.weight.original0.mul_(1.5)
    assert_parity(ours, theirs, torch.randn(shape), show=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    ours, theirs = layers("Linear", (3, 2), dtype=dtype)
    x = torch.randn(5, 3, dtype=dtype)
    spectral = parametrizations.spectral_norm(theirs)
    assert_parity(nn.SpectralNorm(ours), spectral, x, mode="train", show=False)
    if not dtype.is_complex:
        ours, theirs = layers("Linear", (3, 2), dtype=dtype)
        assert_parity(nn.WeightNorm(ours), parametrizations.weight_norm(theirs), x, show=False)


def test_another_parameter_by_its_name_in_the_state_dict() -> None:
    ours, theirs = layers("LSTM", (3, 4))
    ours = nn.WeightNorm(ours, "weight_hh_l0")
    theirs = parametrizations.weight_norm(theirs, "weight_hh_l0")
    assert set(bridge.state_dict(ours.initialize(0))) == set(theirs.state_dict())
    ours = bridge.load_state_dict(ours, theirs.state_dict())
    x = torch.randn(4, 5, 3)
    assert_same(ours(x), theirs(x), 1e-6)
    ours, theirs = layers("Linear", (3, 2))
    theirs = parametrizations.spectral_norm(theirs, "bias")
    assert_parity(nn.SpectralNorm(ours, "bias"), theirs, torch.randn(5, 3), show=False)


@pytest.mark.parametrize(
    ("name", "sizes"), [("Linear", (16, 20)), ("ConvTranspose2d", (16, 20, 2))], ids=str
)
def test_they_start_where_torchs_do(name: str, sizes: Any) -> None:
    assert_same_start(
        lambda: nn.WeightNorm(layers(name, sizes)[0]),
        lambda: parametrizations.weight_norm(layers(name, sizes)[1]),
    )
    layer = nn.WeightNorm(layers(name, sizes)[0]).initialize(0)
    assert_same(layer.weight, layer.original(), 1e-6)
    assert_same_start(
        lambda: nn.SpectralNorm(layers(name, sizes)[0]),
        lambda: parametrizations.spectral_norm(layers(name, sizes)[1]),
    )
    spectral = nn.SpectralNorm(nn.Linear(20, 30)).initialize(0)
    largest = torch.linalg.matrix_norm(spectral.original(), 2)
    assert_same(spectral.original() / spectral.weight, (0 * spectral.weight + largest), 0.02)


def test_a_layer_that_has_values_keeps_them() -> None:
    inner = nn.Linear(3, 2).initialize(0)
    weighted = nn.WeightNorm(inner)
    assert_same(weighted.weight, inner.weight, 1e-6)
    spectral = nn.SpectralNorm(inner).initialize(1)
    assert spectral.original() is inner.weight
    assert spectral.u is not None and torch.allclose(spectral.u.norm(), torch.ones(()))


def test_each_block_of_a_stack_starts_by_its_own_weight() -> None:
    stack = nn.Stack(nn.SpectralNorm(nn.Linear(6, 6)), 3).initialize(0).eval()
    for block in stack:
        largest = torch.linalg.matrix_norm(block.original(), 2)
        assert_same(block.original() / block.weight, 0 * block.weight + largest, 0.05)


class Swapped(Module):
    """Another layer, whose weight stands elsewhere."""

    bias: Parameter
    weight: Parameter


class Net(Module):
    """Two wrapped layers, found by the tree they are in."""

    layers: tuple[Module, ...]

    def __init__(self) -> None:
        super().__init__()
        inner = (nn.Linear(3, 4), nn.Linear(4, 2))
        self.layers = (nn.SpectralNorm(inner[0]), nn.WeightNorm(inner[1]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def loss(net: Net, x: Tensor) -> tuple[Tensor, Net]:
    out, after = effects.collect(Net.forward)(net, x)
    return (out * torch.arange(1.0, 3.0)).sum(), after


def test_nothing_is_written_and_the_vectors_are_emitted() -> None:
    net, x = Net().initialize(0), torch.randn(5, 3)
    before = [leaf.clone() for leaf in tree.leaves(net)]
    after = loss(net, x)[1]
    assert_same(tree.leaves(net), before)
    one: Any = net.layers[0]
    two: Any = after.layers[0]
    assert not torch.equal(one.u, two.u) and not torch.equal(one.v, two.v)
    with pytest.raises(effects.EffectError, match=r"effects\.collect"):
        net(x)
    net.eval()(x)


def test_transforms_and_graphs() -> None:
    net, xs = Net().initialize(0), torch.randn(4, 5, 3)
    step = func.grad(loss, has_aux=True)
    each = [step(net, x) for x in xs]
    mapped = torch.vmap(step, (None, 0))(net, xs)
    expected = [torch.stack(leaves) for leaves in zip(*[tree.leaves(e) for e in each], strict=True)]
    for one, two in zip(tree.leaves(mapped), expected, strict=True):
        assert_same(one.expand_as(two), two, 1e-5)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_same(tree.leaves(compiled(net, xs[0])), tree.leaves(each[0]), 1e-5)
    nets = [Net().initialize(seed) for seed in range(3)]
    ensemble = torch.vmap(step, (0, None))(tree.stack(nets), xs[0])
    apart = [step(net, xs[0]) for net in nets]
    assert_same(tree.leaves(ensemble), tree.leaves(tree.stack(apart)), 1e-5)


def test_forward_derivatives() -> None:
    net, x, along = Net().initialize(0).eval(), torch.randn(5, 3), torch.randn(5, 3)
    found = torch.func.jvp(lambda x: net(x).sum(), (x,), (along,))[1]
    assert_same(found, (torch.func.grad(lambda x: net(x).sum())(x) * along).sum(), 1e-5)


def test_several_uses_make_one_iteration() -> None:
    layer, x = nn.SpectralNorm(nn.Linear(3, 2)).initialize(0), torch.randn(5, 3)

    def twice(layer: Any, x: Tensor) -> Any:
        one, two = layer.split(2)
        return one(x) - two(2 * x)

    after = effects.collect(twice)(layer, x)[1]

    def single(layer: Any, x: Tensor) -> Any:
        return layer(x)

    once = effects.collect(single)(layer, x)[1]
    assert_same(tree.leaves(after), tree.leaves(once))


@pytest.mark.parametrize("wrap", [nn.SpectralNorm, nn.WeightNorm])
def test_what_is_wrong_fails_at_construction(wrap: Any) -> None:
    name = wrap.__name__
    with pytest.raises(
        ValueError, match=rf"{name}\(name=\): Linear has no parameter 'weigth'\. .*w"
    ):
        wrap(nn.Linear(3, 2), "weigth")
    with pytest.raises(TypeError, match=rf"{name}\(layer=\): expected a parallax.Module"):
        wrap(torch_nn.Linear(3, 2))
    with pytest.raises(ValueError, match=rf"{name}\(dim=\): the weight has 2 dimensions, got 2"):
        wrap(nn.Linear(3, 2), dim=2)
    with pytest.raises(TypeError, match=rf"{name}\(dim=\): expected an int"):
        wrap(nn.Linear(3, 2), dim=0.5)
    with pytest.raises(ValueError, match=rf"{name}\(layer=\): 'weight' stands in another place"):
        wrap(nn.Linear(3, 2)).replace(layer=Swapped(torch.zeros(2), torch.zeros(2, 3)))


def test_numbers_out_of_range_fail_at_construction() -> None:
    with pytest.raises(ValueError, match=r"SpectralNorm\(n_power_iterations=\): must be at least"):
        nn.SpectralNorm(nn.Linear(3, 2), n_power_iterations=0)
    with pytest.raises(ValueError, match=r"SpectralNorm\(eps=\): must be at least 0"):
        nn.SpectralNorm(nn.Linear(3, 2), eps=-1)


def test_an_input_that_does_not_fit_names_the_layer() -> None:
    net = Net().initialize(0)
    where = r"^Net.layers.0.layer \(Linear\): expected input of shape \(\*, 3\), got \(4,\)"
    with pytest.raises(ValueError, match=where):
        net.eval()(torch.ones(4))
    with pytest.raises(ValueError, match=where):
        effects.collect(Net.forward)(net.train(0), torch.ones(4))
