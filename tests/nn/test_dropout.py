"""Dropout is torch's in distribution, and a pure function of the key."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn

from parallax import Module, effects, func, nn, random, tree
from tests.nn.parity import assert_same

SHAPES = [
    ("Dropout", (5, 3)),
    ("Dropout1d", (2, 3, 7)),
    ("Dropout1d", (3, 7)),
    ("Dropout2d", (2, 3, 5, 4)),
    ("Dropout3d", (2, 3, 1, 5, 2)),
    ("Dropout3d", (3, 1, 5, 2)),
    ("AlphaDropout", (5, 3)),
    ("FeatureAlphaDropout", (2, 3, 7)),
    ("FeatureAlphaDropout", (5, 3)),
]
every_shape = pytest.mark.parametrize(("name", "shape"), SHAPES, ids=str)


def drop(name: str, p: float, seed: int) -> Any:
    return getattr(nn, name)(p).train(random.key(seed))


@every_shape
def test_in_eval_it_is_the_identity(name: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    layer = getattr(nn, name)(0.5)
    assert repr(layer) == repr(getattr(torch_nn, name)(0.5))
    assert layer.eval()(x) is x
    assert getattr(nn, name)(0.0).train()(x) is x


@every_shape
@pytest.mark.parametrize("p", [0.2, 0.5, 1.0])
def test_the_values_are_torchs_and_dropped_as_often(
    name: str, shape: tuple[int, ...], p: float
) -> None:
    x = torch.ones((400, *shape[1:]) if name in ("Dropout", "AlphaDropout") else shape)
    theirs = getattr(torch_nn, name)(p)
    torch.manual_seed(0)
    expected = torch.stack([theirs(x) for _ in range(400)])
    found = torch.stack([drop(name, p, seed)(x) for seed in range(400)])
    torch.testing.assert_close(found.unique(), expected.unique(), rtol=1e-6, atol=1e-6)
    # Which fraction is dropped: channels are dropped whole, so the draws are the independent ones.
    draws = 400 * (x.numel() if name in ("Dropout", "AlphaDropout") else x[..., 0].numel() / 5)
    least = found.unique()[0]
    share = (found == least).double().mean()
    assert abs(share - p) < 5 * (p * (1 - p) / draws) ** 0.5 + 1e-12


@pytest.mark.parametrize("p", [0.2, 0.5])
@pytest.mark.parametrize("name", ["AlphaDropout", "FeatureAlphaDropout"])
def test_alpha_dropout_keeps_mean_and_variance(name: str, p: float) -> None:
    out = drop(name, p, 0)(torch.randn(300, 300, generator=torch.Generator().manual_seed(0)))
    assert abs(out.mean()) < 0.02 and abs(out.std() - 1) < 0.02


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("Dropout1d", (2, 3, 7), (2,)),
        ("Dropout1d", (3, 7), (1,)),
        ("Dropout2d", (2, 3, 5, 4), (2, 3)),
        ("Dropout3d", (2, 3, 1, 5, 2), (2, 3, 4)),
        ("Dropout3d", (3, 1, 5, 2), (1, 2, 3)),
        ("FeatureAlphaDropout", (2, 3, 5, 4), (2, 3)),
    ],
)
def test_channels_are_dropped_whole_and_one_by_one(
    name: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    outs = torch.stack([drop(name, 0.5, seed)(torch.ones(shape)) for seed in range(64)])
    moved = [axis + 1 for axis in axes]
    assert torch.equal(outs.amax(moved), outs.amin(moved))
    channels = outs.amax(moved).flatten(1) > 0
    # Every channel of every example is kept and dropped by itself: all pairs differ somewhere.
    pairs = channels.shape[1]
    assert all((channels[:, i] != channels[:, j]).any() for i in range(pairs) for j in range(i))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["Dropout", "AlphaDropout"])
def test_the_dtype_stays(name: str, dtype: torch.dtype) -> None:
    assert drop(name, 0.5, 0)(torch.ones(3, dtype=dtype)).dtype is dtype


def test_complex_numbers_are_dropped_whole() -> None:
    x = torch.randn(50, dtype=torch.complex64)
    out = drop("Dropout", 0.5, 0)(x)
    assert torch.equal(out.real != 0, out.imag != 0) and out.dtype is torch.complex64
    assert_same(out[out != 0], 2 * x[out != 0], 1e-6)


@every_shape
def test_gradients_are_the_mask(name: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(drop(name, 0.5, 1)(x).sum(), x)
    ones, zeros = torch.ones_like(x), torch.zeros_like(x)
    slope = drop(name, 0.5, 1)(ones) - drop(name, 0.5, 1)(zeros)
    assert_same(grad, slope, 1e-12)


@every_shape
def test_it_is_a_function_of_the_key(name: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(100, *shape[1:])
    before = torch.random.get_rng_state()
    one, again, other = (drop(name, 0.5, seed)(x) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "rng", [3, torch.Generator().manual_seed(3), torch.Generator().manual_seed(3).get_state()]
)
def test_any_form_of_rng_will_do(rng: Any) -> None:
    x = torch.ones(1000)
    out = nn.Dropout(0.5).train(rng)(x)
    with random.reuse():  # a generator is known again, as a key is
        assert torch.equal(out, nn.Dropout(0.5).train(rng)(x))
    assert 400 < (out == 0).sum() < 600


class Net(Module):
    """Two dropouts, which do not drop alike."""

    first: nn.Dropout
    second: nn.Dropout

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


def test_two_layers_of_a_tree_drop_differently() -> None:
    one, two = Net(nn.Dropout(0.5), nn.Dropout(0.5)).train(random.key(0))(torch.ones(50))
    assert not torch.equal(one, two)


@every_shape
def test_mapped_keys_drop_as_in_a_loop(name: str, shape: tuple[int, ...]) -> None:
    layer, x = getattr(nn, name)(0.5), torch.randn(4, *shape)
    keys = random.split(random.key(0), 4)

    def run(key: random.Key, x: Tensor) -> Any:
        return layer.train(key)(x)

    looped = torch.stack([run(random.clone(keys[k]), x[k]) for k in range(4)])
    assert torch.equal(torch.vmap(run)(keys, x), looped)
    ensemble = tree.stack([layer.train(random.clone(keys[k])) for k in range(4)])
    assert torch.equal(func.vmap(lambda m, x: m(x))(ensemble, x), looped)


def test_examples_meet_one_mask_if_the_key_is_not_mapped() -> None:
    out = func.vmap(lambda m, x: m(x), in_dims=(None, 0))(drop("Dropout", 0.5, 0), torch.ones(4, 9))
    assert (out == out[0]).all()


@every_shape
def test_compiled_it_drops_the_same(name: str, shape: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    x = torch.randn(shape)
    compiled = torch.compile(lambda m, x: m(x), fullgraph=True, backend="aot_eager")
    assert_same(compiled(drop(name, 0.5, 3), x), drop(name, 0.5, 3)(x), 1e-6)


def test_training_without_an_rng_says_what_to_write() -> None:
    with pytest.raises(
        RuntimeError, match=r"Dropout\.rng: no random state .* module\.train\(rng\)"
    ):
        nn.Dropout(0.5).train()(torch.ones(3))


def test_a_key_is_used_once() -> None:
    layer = drop("Dropout", 0.5, 0)
    layer(torch.ones(3))
    with pytest.raises(random.KeyReusedError):
        layer(torch.ones(3))
    one, two = drop("Dropout", 0.5, 0).split(2)
    assert not torch.equal(one(torch.ones(50)), two(torch.ones(50)))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("Dropout1d", (3,), r"\(N, C, L\) or \(C, L\), got \(3,\)"),
        ("Dropout2d", (3, 4, 4), r"\(N, C, H, W\), got \(3, 4, 4\)"),
        ("Dropout3d", (4, 4), r"\(N, C, D, H, W\) or \(C, D, H, W\), got \(4, 4\)"),
        ("FeatureAlphaDropout", (4,), r"\(N, C, \*\), got \(4,\)"),
    ],
)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_misfit_names_the_shape(
    name: str, shape: tuple[int, ...], expected: str, mode: str
) -> None:
    layer = drop(name, 0.5, 0) if mode == "train" else getattr(nn, name)(0.5).eval()
    with pytest.raises(ValueError, match=rf"^{name}: expected input of shape {expected}$"):
        layer(torch.ones(shape))


@pytest.mark.parametrize("name", ["Dropout", "Dropout1d", "AlphaDropout", "FeatureAlphaDropout"])
def test_what_is_no_tensor_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: input must be a tensor, got list"):
        drop(name, 0.5, 0)([1.0])


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_what_is_no_probability_fails_at_construction(p: float) -> None:
    with pytest.raises(ValueError, match=r"^Dropout2d\(p=\): must be at least 0 and at most 1"):
        nn.Dropout2d(p)
    with pytest.raises(TypeError, match=r"^AlphaDropout\(p=\): expected a number, got '0.5'"):
        nn.AlphaDropout("0.5")  # type: ignore[arg-type]  # on purpose


def test_a_layer_trains_with_it() -> None:
    model = Net(nn.Dropout(0.5), nn.Dropout(0.0)).train(random.key(1))
    out, after = effects.collect(Net.forward)(model, torch.ones(20))
    assert (out[0] == 0).any() and after.first.p == 0.5
