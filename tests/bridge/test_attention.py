"""Attention layers of torch in eval mode, which have a fused way without derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import parallax
from parallax import bridge, func, tree

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]
HIDDEN = torch.tensor([[0, 0, 1], [0, 1, 1], [0, 0, 1], [0, 1, 1]], dtype=torch.bool)
SEEN = (~HIDDEN).double().unsqueeze(-1)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2).double().eval()


def attention() -> nn.Module:
    return nn.MultiheadAttention(6, 2, batch_first=True).double().eval()


def encoded(model: Any, x: Tensor) -> Tensor:
    out: Tensor = model(x, src_key_padding_mask=HIDDEN)
    return out * SEEN


def attended(model: Any, x: Tensor) -> Tensor:
    out: Tensor = model(x, x, x, key_padding_mask=HIDDEN, need_weights=False)[0]
    return out * SEEN


KINDS = pytest.mark.parametrize(
    ("make", "run"), [(encoder, encoded), (attention, attended)], ids=["encoder", "attention"]
)


def sample() -> Tensor:
    return torch.randn(4, 3, 6, dtype=torch.float64)


@KINDS
def test_an_ensemble_and_a_batch_under_vmap(make: Any, run: Any) -> None:
    torch.manual_seed(0)
    nets, x = [make(), make()], sample()
    lifted = [bridge.lift(net) for net in nets]
    out = func.vmap(lambda model: run(model, x))(tree.stack(lifted))
    torch.testing.assert_close(out, torch.stack([run(net, x) for net in nets]))
    xs = torch.stack([x, 2 * x])
    out = func.vmap(lambda x: run(lifted[0], x))(xs)
    torch.testing.assert_close(out, torch.stack([run(nets[0], x) for x in xs]))


@KINDS
def test_derivatives_are_those_of_torch(make: Any, run: Any) -> None:
    torch.manual_seed(1)
    net, xs = make(), torch.stack([sample(), sample()])
    lifted = bridge.lift(net)

    def loss(model: Any, x: Tensor) -> Tensor:
        out: Tensor = run(model, x).sin().sum()
        return out

    wanted = []
    for x in xs:
        net.zero_grad()
        loss(net, x).backward()
        wanted.append({name: p.grad.clone() for name, p in net.named_parameters()})
    per_sample = dict(tree.named_leaves(func.per_sample_grad(loss)(lifted, xs)))
    compiled = parallax.compile(func.grad(loss), backend="eager")(lifted, xs[0])
    for name, leaf in tree.named_leaves(compiled).items():
        torch.testing.assert_close(leaf, wanted[0][name])
        torch.testing.assert_close(per_sample[name], torch.stack([w[name] for w in wanted]))

    x, v, step = xs[0], torch.randn_like(xs[0]), 1e-6
    slope = (loss(net, x + step * v) - loss(net, x - step * v)) / (2 * step)
    _, along = func.jvp(lambda x: loss(lifted, x), (x,), (v,))
    torch.testing.assert_close(along, slope.detach(), rtol=1e-6, atol=1e-8)


def test_plain_eager_calls_have_the_bits_of_torch() -> None:
    net, x = encoder(), sample()
    with torch.no_grad():
        assert torch.equal(encoded(bridge.lift(net), x), encoded(net, x))
