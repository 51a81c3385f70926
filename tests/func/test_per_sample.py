"""``func.per_sample_grad`` and ``func.ensemble_grad`` give the numbers of a loop of gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallax import Buffer, Module, Parameter, effects, func, tree
from parallax.func import per_sample


class Net(Module):
    weight: Parameter
    scale: Parameter
    shift: Parameter
    seen: Buffer

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.weight))


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> Net:
    rng = torch.Generator().manual_seed(seed)
    weight, scale, shift = (torch.randn(n, generator=rng, dtype=dtype) for n in ((4, 3), 4, 4))
    return Net(weight, 1 + 0.3 * scale, shift, torch.zeros((), dtype=dtype))


X = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

NORMS: dict[str, Any] = {
    "layer norm": lambda m, h: F.layer_norm(h, (4,), m.scale, m.shift),
    "batch norm": lambda m, h: F.batch_norm(h, None, None, m.scale, m.shift, training=True),
    "instance norm": lambda m, h: F.instance_norm(
        torch.stack([h, h.flip(0)]).transpose(1, 2), weight=m.scale, bias=m.shift
    ),
    "group norm": lambda m, h: F.group_norm(h, 1, m.scale, m.shift),
    "rms norm": lambda m, h: F.rms_norm(h, (4,)) * m.scale * m.shift,
    "prelu": lambda m, h: F.prelu(h, m.scale.to(h.dtype)) * m.shift,
    "softmax": lambda m, h: torch.softmax(h * m.scale, -1) * m.shift,
}


def close(ours: Any, loop: list[Any], atol: float = 1e-9) -> None:
    expected = [torch.stack(column) for column in zip(*loop, strict=True)]
    for a, b in zip(tree.leaves(ours), expected, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0.0)


def recorded_grad(loss: Any, m: Net, *data: Tensor) -> list[Tensor]:
    """The gradient by autograd alone."""
    leaves = [leaf.clone().requires_grad_() for leaf in (m.weight, m.scale, m.shift)]
    own = m.replace(weight=leaves[0], scale=leaves[1], shift=leaves[2])
    return list(torch.autograd.grad(loss(own, *data), leaves, materialize_grads=True))


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("inner", ["parallax", "torch"])
@pytest.mark.parametrize("name", NORMS)
def test_a_loss_that_takes_an_inner_gradient(name: str, inner: str, chunk_size: int | None) -> None:
    def penalty(m: Net, x: Tensor, by: str = inner) -> Tensor:
        def loss(w: Tensor, scale: Tensor) -> Tensor:
            own = m.replace(weight=w, scale=scale)
            out: Tensor = NORMS[name](own, own.hidden(x))
            return out.pow(3).mean()

        if by == "autograd":
            slopes = torch.autograd.grad(
                loss(m.weight, m.scale), (m.weight, m.scale), create_graph=True
            )
        else:
            lib: Any = func if by == "parallax" else torch.func
            slopes = lib.grad(loss, (0, 1))(m.weight, m.scale)
        return (slopes[0] ** 2).sum() + (slopes[1] ** 2).sum()

    by_hand = lambda m, x: penalty(m, x, "autograd")  # noqa: E731  # short
    ours = func.per_sample_grad(penalty, chunk_size=chunk_size)(net(), X)
    close(ours, [recorded_grad(by_hand, net(), x) for x in X])
    members = [net(k) for k in range(3)]
    several = func.ensemble_grad(penalty, chunk_size=chunk_size)(tree.stack(members), X[0])
    close(several, [recorded_grad(by_hand, m, X[0]) for m in members])


@pytest.mark.parametrize("largest", [0, per_sample.LARGEST], ids=["by vmap", "by a sum"])
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("name", NORMS)
def test_autocast(
    name: str, chunk_size: int | None, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(per_sample, "LARGEST", largest)

    def loss(m: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out: Tensor = NORMS[name](m, m.hidden(x))
            return (out.float() - 1).pow(2).sum()

    m, x = net(dtype=torch.float32), X.float()
    ours = func.per_sample_grad(loss, chunk_size=chunk_size)(m, x)
    loop = [recorded_grad(loss, m, one) for one in x]
    size = max(float(leaf.abs().max()) for one in loop for leaf in one)
    close(ours, loop, atol=0.02 * size)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 7])
def test_aux_and_effects_come_stacked_from_chunks(chunk_size: int | None) -> None:
    def loss(m: Net, x: Tensor) -> tuple[Tensor, Any]:
        h = m.hidden(x)
        m.emit(seen=h.mean(), merge="mean")
        return (h * m.scale).pow(2).sum(), {"h": h, "name": "h", "shared": m.shift}

    run = effects.collect(lambda m, x: func.per_sample_grad(
        loss, has_aux=True, chunk_size=chunk_size
    )(m, x))  # fmt: skip
    (grads, aux), after = run(net(), X)
    close(grads, [recorded_grad(lambda m, x: (m.hidden(x) * m.scale).pow(2).sum(), net(), x)
                  for x in X])  # fmt: skip
    hidden = torch.stack([net().hidden(x) for x in X])
    torch.testing.assert_close(aux["h"], hidden)
    assert aux["name"] == "h" and not aux["h"].requires_grad
    torch.testing.assert_close(aux["shared"], net().shift.expand(5, 4))
    torch.testing.assert_close(after.seen, hidden.mean())


def test_effects_of_a_loss_that_is_evaluated_again_come_once() -> None:
    def penalty(m: Net, x: Tensor) -> Tensor:
        m.emit(seen=x.mean(), merge="sum")

        def cubes(w: Tensor) -> Tensor:
            return F.layer_norm(x @ w.T, (4,), m.scale, m.shift).pow(3).sum()

        squares: Tensor = func.grad(cubes)(m.weight).pow(2).sum()
        return squares

    _, after = effects.collect(lambda m, x: func.per_sample_grad(penalty)(m, x))(net(), X)
    torch.testing.assert_close(after.seen, X.mean((1, 2)).sum())


def test_inference_tensors() -> None:
    with torch.inference_mode():
        m, x = net(), X.clone()

    def loss(m: Net, x: Tensor) -> Tensor:
        h = m.hidden(x)
        m.emit(seen=h.mean(), merge="mean")
        return (h * m.scale).pow(2).sum()

    plain = lambda m, x: (m.hidden(x) * m.scale).pow(2).sum()  # noqa: E731  # short
    grads, after = effects.collect(lambda m, x: func.per_sample_grad(loss)(m, x))(m, x)
    close(grads, [recorded_grad(plain, net(), one) for one in X])
    torch.testing.assert_close(after.seen, torch.stack([net().hidden(one) for one in X]).mean())


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_torchs_own_draws_are_those_of_vmap_of_grad(
    randomness: str, chunk_size: int | None
) -> None:
    loss: Any = lambda m, x: F.dropout(m.hidden(x), 0.5).pow(2).sum()  # noqa: E731  # short
    torch.manual_seed(3)
    ours = func.per_sample_grad(loss, randomness=randomness, chunk_size=chunk_size)(net(), X)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    weights = net().weight
    by_torch = torch.func.vmap(
        torch.func.grad(lambda w, x: loss(net().replace(weight=w), x)),
        (None, 0), randomness=randomness, chunk_size=chunk_size,
    )(weights, X)  # fmt: skip
    torch.testing.assert_close(ours.weight, by_torch)
    assert torch.equal(state, torch.get_rng_state())
