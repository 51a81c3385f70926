"""``func.per_sample_norms`` and ``func.clipped_grad`` give the numbers of a loop of gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn as t

from parallax import Buffer, Module, Parameter, bridge, effects, func, nn, random, tree

N = 5
RNG = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=RNG, dtype=torch.float64)


LABELS = torch.randint(4, (N,), generator=RNG)
TOKENS = torch.randint(9, (N, 4), generator=RNG)
MANY_TOKENS = torch.randint(9, (N, 40), generator=RNG)


def loop(
    loss: Callable[..., Any], leaves: Sequence[Tensor], data: Sequence[Tensor], max_norm: float
) -> tuple[Tensor, list[Tensor]]:
    """The norms and the clipped sum, by autograd, one sample after the other.

    Args:
        loss: takes the leaves and a sample.
        leaves: where to differentiate.
        data: the samples, stacked.
        max_norm: the largest norm.
    """
    norms, total = [], [torch.zeros_like(leaf) for leaf in leaves]
    for sample in zip(*data, strict=True):
        own = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        grads = torch.autograd.grad(loss(own, *sample), own, materialize_grads=True)
        norms.append(torch.stack([g.pow(2).sum() for g in grads]).sum().sqrt())
        factor = min(1.0, max_norm / float(norms[-1])) if norms[-1] else 1.0
        total = [t + factor * g for t, g in zip(total, grads, strict=True)]
    return torch.stack(norms), total


def check(
    loss: Callable[..., Tensor],
    model: Any,
    data: Sequence[Tensor],
    reference: Callable[..., Tensor],
    **options: Any,
) -> None:
    """Compares with the loop, clipping about half of the samples."""
    leaves = tree.leaves(model)
    norms, _ = loop(reference, leaves, data, 1.0)
    max_norm = float(norms.median())
    _, total = loop(reference, leaves, data, max_norm)
    norms_of: Any = func.per_sample_norms(loss, **options)
    torch.testing.assert_close(norms_of(model, *data), norms)
    clipped_of: Any = func.clipped_grad(loss, max_norm, **options)
    ours = clipped_of(model, *data)
    for a, b in zip(tree.leaves(ours), total, strict=True):
        torch.testing.assert_close(a, b)


def images(*shape: int) -> tuple[Tensor, Tensor]:
    return draw(N, *shape), LABELS


# For each a network of torch, the same of ours, and samples. All matrices have a rule.
NETS: dict[str, tuple[Callable[[], t.Module], Callable[[], Module], tuple[Tensor, ...]]] = {
    "mlp": (
        lambda: t.Sequential(t.Linear(3, 6), t.Tanh(), t.Linear(6, 4, bias=False)),
        lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4, bias=False)),
        images(1, 3),
    ),
    "few vectors": (
        lambda: t.Sequential(t.Linear(30, 40), t.LayerNorm(40), t.Linear(40, 4)),
        lambda: nn.Sequential(nn.Linear(30, 40), nn.LayerNorm(40), nn.Linear(40, 4)),
        images(4, 30),
    ),
    "many vectors": (
        lambda: t.Sequential(t.Linear(3, 6), t.RMSNorm(6), t.Linear(6, 4)),
        lambda: nn.Sequential(nn.Linear(3, 6), nn.RMSNorm(6), nn.Linear(6, 4)),
        images(20, 3),
    ),
    "images": (
        lambda: t.Sequential(
            t.Conv2d(2, 4, 3, stride=2, padding=1), t.GroupNorm(2, 4), t.ReLU(),
            t.Conv2d(4, 6, (3, 2), groups=2, dilation=(1, 2), padding="same"), t.Flatten(),
            t.Linear(6 * 16, 4),
        ),
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4), nn.ReLU(),
            nn.Conv2d(4, 6, (3, 2), groups=2, dilation=(1, 2), padding="same"), nn.Flatten(),
            nn.Linear(6 * 16, 4),
        ),
        images(1, 2, 8, 8),
    ),
    "several images, small kernels": (
        lambda: t.Sequential(
            t.Conv2d(2, 4, 2, padding_mode="reflect", padding=1),
            t.Conv2d(4, 40, 3, padding="valid"),
            t.Conv2d(40, 40, 3, bias=False), t.Flatten(), t.Linear(40, 4),
        ),
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 2, padding_mode="reflect", padding=1),
            nn.Conv2d(4, 40, 3, padding="valid"),
            nn.Conv2d(40, 40, 3, bias=False), nn.Flatten(), nn.Linear(40, 4),
        ),
        images(3, 2, 4, 4),
    ),
    "signals": (
        lambda: t.Sequential(
            t.Conv1d(2, 4, 2, stride=2), t.Conv1d(4, 4, 3), t.Flatten(), t.Linear(8, 4)
        ),
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 2, stride=2), nn.Conv1d(4, 4, 3), nn.Flatten(), nn.Linear(8, 4)
        ),
        images(1, 2, 9),
    ),
    "volumes": (
        lambda: t.Sequential(
            t.Conv3d(2, 3, 2, padding=(1, 0, 0)), t.Conv3d(3, 4, (4, 2, 2)), t.Flatten()
        ),
        lambda: nn.Sequential(
            nn.Conv3d(2, 3, 2, padding=(1, 0, 0)), nn.Conv3d(3, 4, (4, 2, 2)), nn.Flatten()
        ),
        images(1, 2, 3, 3, 3),
    ),
    "tokens": (
        lambda: t.Sequential(t.Embedding(9, 6, padding_idx=2), t.Linear(6, 4)),
        lambda: nn.Sequential(nn.Embedding(9, 6, padding_idx=2), nn.Linear(6, 4)),
        (TOKENS, LABELS),
    ),
    "many tokens": (
        lambda: t.Sequential(t.Embedding(9, 6), t.Linear(6, 4)),
        lambda: nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 4)),
        (MANY_TOKENS, LABELS),
    ),
}  # fmt: skip


def classify(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).mean(0).flatten(), y)


def by_torch(net: t.Module) -> Callable[..., Tensor]:
    names = [name for name, _ in net.named_parameters()]

    def loss(leaves: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        out = torch.func.functional_call(net, dict(zip(names, leaves, strict=True)), (x,))
        return F.cross_entropy(out.mean(0).flatten(), y)

    return loss


def ours_like(net: t.Module, ours: Module) -> Module:
    values = iter([p.detach() for p in net.parameters()])
    return tree.map(lambda _: next(values), ours)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("name", NETS)
def test_layers_with_a_rule(name: str, chunk_size: int | None) -> None:
    make, make_ours, data = NETS[name]
    net = make().double()
    ours = ours_like(net, make_ours().initialize(0))
    for model in (ours, bridge.lift(net)):
        check(classify, model, data, by_torch(net), exact=False, chunk_size=chunk_size)


def test_relu_in_place() -> None:
    net = t.Sequential(
        t.Linear(3, 6), t.ReLU(True), t.Linear(6, 6), t.ReLU(True), t.Linear(6, 4)
    ).double()
    check(classify, bridge.lift(net), images(2, 3), by_torch(net), exact=False)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_attention() -> None:
    net = t.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True).double()
    ours = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True).initialize(0)
    data = images(3, 4)
    check(classify, ours_like(net, ours), data, by_torch(net), exact=False)
    check(classify, bridge.lift(net), data, by_torch(net))


class Tied(Module):
    table: nn.Embedding
    mix: nn.Linear
    head: nn.Linear

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        for _ in range(3):
            x = torch.tanh(self.mix(x))
        return self.head(x)


@pytest.mark.parametrize("tokens", [TOKENS, MANY_TOKENS], ids=["few tokens", "many tokens"])
def test_a_leaf_used_several_times(tokens: Tensor) -> None:
    table = nn.Embedding(9, 6, dtype=torch.float64).initialize(0)
    head = (
        nn.Linear(6, 9, bias=False, dtype=torch.float64).initialize(1).replace(weight=table.weight)
    )
    model = Tied(table, nn.Linear(6, 6, dtype=torch.float64).initialize(2), head)
    assert len(tree.leaves(model)) == 3

    def loss(m: Tied, tokens: Tensor) -> Tensor:
        return F.cross_entropy(m(tokens)[:-1], tokens[1:])

    def by_hand(leaves: list[Tensor], tokens: Tensor) -> Tensor:
        table, weight, bias = leaves
        x = table[tokens]
        for _ in range(3):
            x = torch.tanh(x @ weight.T + bias)
        return F.cross_entropy((x @ table.T)[:-1], tokens[1:])

    check(loss, model, [tokens], by_hand, exact=False)


class Net(Module):
    weight: Parameter
    bias: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.weight, self.bias))


class Counted(Net):
    seen: Buffer


def net() -> Net:
    return Net(draw(4, 3), draw(4))


def hidden(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(x @ w.T + b)


def _inner(slopes: Any, w: Any, x: Tensor) -> Tensor:
    return (slopes(lambda w: F.linear(x, w).pow(3).sum())(w) ** 2).sum()  # type: ignore[no-any-return]


def _written_input(m: Net, x: Tensor) -> Tensor:
    x = x * 1
    h = m(x)
    x += 1
    return (h * x.sum()).sum()


def _not_on_the_tape(m: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = m(x)
    return (m(x) * h).sum()


def _over_rows(m: Net, x: Tensor) -> Tensor:
    return func.vmap(lambda w, b: F.linear(x, w[None], b[None]).sum().sin())(m.weight, m.bias).sum()


def _shared_over_rows(m: Net, x: Tensor) -> Tensor:
    return func.vmap(lambda row: F.linear(row, m.weight, m.bias).sum().sin())(x).sum()


# Losses with uses of the weight that have no rule; the same by hand; whether exact=False refuses.
OTHERS: dict[str, tuple[Any, Any, bool]] = {
    "a penalty": (
        lambda m, x: m(x).sum() + m.weight.pow(3).sum(),
        lambda w, b, x: hidden(w, b, x).sum() + w.pow(3).sum(),
        True,
    ),
    "a transposed weight": (
        lambda m, x: F.linear(m(x), m.weight.T).sum(),
        lambda w, b, x: (hidden(w, b, x) @ w).sum(),
        True,
    ),
    "a part of the weight": (
        lambda m, x: F.linear(x, m.weight[1:], m.bias[1:]).sin().sum(),
        lambda w, b, x: (x @ w.T + b)[:, 1:].sin().sum(),
        True,
    ),
    "a weight for an input": (
        lambda m, x: F.linear(m.weight, m.weight).sin().sum() + m(x).sum(),
        lambda w, b, x: (w @ w.T).sin().sum() + hidden(w, b, x).sum(),
        True,
    ),
    "the weight of a gradient": (
        lambda m, x: _inner(func.grad, m.weight, x) + m.bias.sum(),
        lambda w, b, x: ((3 * (x @ w.T).pow(2)).T @ x).pow(2).sum() + b.sum(),
        True,
    ),
    "vmap over rows of the weight": (
        _over_rows, lambda w, b, x: (x @ w.T + b).sum(0).sin().sum(), True,
    ),
    "vmap over the input": (
        _shared_over_rows, lambda w, b, x: (x @ w.T + b).sum(1).sin().sum(), True,
    ),
    "no_grad inside": (
        _not_on_the_tape, lambda w, b, x: (hidden(w, b, x) * hidden(w, b, x).detach()).sum(), False,
    ),
    "a detached weight": (
        lambda m, x: F.linear(x, m.weight.detach(), m.bias).sin().sum(),
        lambda w, b, x: (x @ w.detach().T + b).sin().sum(),
        False,
    ),
    "a bias alone": (
        lambda m, x: (m.bias * x.sum()).sin().sum(),
        lambda w, b, x: (b * x.sum()).sin().sum(),
        False,
    ),
    "a computed bias": (
        lambda m, x: F.linear(x, m.weight, 2 * m.bias).sin().sum(),
        lambda w, b, x: (x @ w.T + 2 * b).sin().sum(),
        True,
    ),
    "a constant bias": (
        lambda m, x: F.linear(x, m.weight, torch.ones(4, dtype=x.dtype)).sin().sum(),
        lambda w, b, x: (x @ w.T + 1).sin().sum(),
        False,
    ),
    "the weight and bias by name": (
        lambda m, x: F.linear(bias=m.bias, weight=m.weight, input=x).sin().sum(),
        lambda w, b, x: (x @ w.T + b).sin().sum(),
        False,
    ),
    "an output that is written": (
        lambda m, x: F.linear(x, m.weight, m.bias).sin_().mul_(2).sum(),
        lambda w, b, x: (2 * (x @ w.T + b).sin()).sum(),
        False,
    ),
    "an output that nothing needs": (
        lambda m, x: (m(x) * 0).detach().sum() + m(2 * x).sum(),
        lambda w, b, x: hidden(w, b, 2 * x).sum(),
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_uses(name: str) -> None:
    loss, by_hand, refused = OTHERS[name]
    model, x = net(), draw(N, 2, 3)
    check(loss, model, [x], lambda leaves, x: by_hand(*leaves, x))
    strict = func.clipped_grad(loss, 1.0, exact=False)
    if refused:
        with pytest.raises(ValueError, match=r"exact=False"):
            strict(model, x)
    else:
        assert tree.allclose(strict(model, x), func.clipped_grad(loss, 1.0)(model, x))


def test_an_input_that_is_written_afterwards() -> None:
    for transform in (func.per_sample_grad, func.per_sample_norms):
        with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
            transform(_written_input)(net(), draw(N, 2, 3))


def test_frozen_leaves_and_several_arguments() -> None:
    model, scale, x = net(), draw(4), draw(N, 2, 3)

    def loss(scale: Tensor, m: Net, x: Tensor) -> Tensor:
        return (m(x) * scale).sum()

    for path, own in {"weight": "bias", "bias": "weight"}.items():
        frozen = tree.select(model, path).freeze()
        grads = func.clipped_grad(loss, 0.5, argnums=(0, 1), exact=False)(scale, frozen, x)
        fixed = getattr(model, path)

        def by_hand(
            leaves: list[Tensor], x: Tensor, path: str = path, fixed: Tensor = fixed
        ) -> Tensor:
            w, b = (fixed, leaves[1]) if path == "weight" else (leaves[1], fixed)
            return (hidden(w, b, x) * leaves[0]).sum()

        _, total = loop(by_hand, [scale, getattr(model, own)], [x], 0.5)
        assert getattr(grads[1], path) is None
        torch.testing.assert_close(grads[0], total[0])
        torch.testing.assert_close(getattr(grads[1], own), total[1])


def test_in_dims() -> None:
    model, x = net(), draw(2, N, 3)
    by_hand = lambda leaves, x: hidden(leaves[0], leaves[1], x).sum()  # noqa: E731  # short
    data = [x.movedim(1, 0)]
    norms, total = loop(by_hand, [model.weight, model.bias], data, 0.7)
    sums = lambda m, x: m(x).sum()  # noqa: E731  # short
    options: dict[str, Any] = {"in_dims": (None, 1), "exact": False}
    found: Any = (func.per_sample_norms(sums, **options), func.clipped_grad(sums, 0.7, **options))
    torch.testing.assert_close(found[0](model, x), norms)
    ours = found[1](model, x)
    torch.testing.assert_close([ours.weight, ours.bias], total)
    # A model for each sample: the samples' gradients are added all the same.
    stack = tree.stack([model] * N)
    each = func.clipped_grad(sums, 0.7, in_dims=(0, 1))(stack, x)
    torch.testing.assert_close([each.weight, each.bias], total)


def test_aux_effects_and_draws_come_as_from_per_sample_grad() -> None:
    model = Counted(draw(4, 3), draw(4), torch.zeros((), dtype=torch.float64))
    x = draw(N, 2, 3)

    def loss(m: Counted, x: Tensor, key: random.Key, bound: float = 0.0) -> tuple[Tensor, Any]:
        m.emit(seen=x.mean(), merge="mean")
        h = m(x) * random.normal(key, (4,), dtype=torch.float64)
        return h.sum() + bound * m.weight.sum(), {"h": h, "name": "h"}

    for bound, chunk_size in itertools.product((0.0, 1.0), (None, 2)):
        options: Any = {"has_aux": True, "in_dims": (None, 0, 0, None), "chunk_size": chunk_size}
        (_, aux), after = effects.collect(func.clipped_grad(loss, 1.0, **options))(
            model, x, random.split(random.key(0), N), bound
        )
        (_, expected), then = effects.collect(func.per_sample_grad(loss, **options))(
            model, x, random.split(random.key(0), N), bound
        )
        torch.testing.assert_close(aux["h"], expected["h"])
        assert aux["name"] == "h" and not aux["h"].requires_grad
        torch.testing.assert_close(after.seen, then.seen)


def test_inside_of_transforms_and_where_somebody_differentiates() -> None:
    model, x, scale = net(), draw(N, 2, 3), torch.tensor(0.7, dtype=torch.float64)

    def total(scale: Tensor) -> Tensor:
        loss = lambda m, x: (m(x) * scale).sum()  # noqa: E731  # short
        found: Tensor = func.clipped_grad(loss, 1.0)(model, x).weight.pow(2).sum()
        return found

    step = 1e-6
    slope = (total(scale + step) - total(scale - step)) / (2 * step)
    torch.testing.assert_close(func.grad(total)(scale), slope, rtol=1e-6, atol=1e-6)
    leaf = scale.clone().requires_grad_()
    total(leaf).backward()
    torch.testing.assert_close(leaf.grad, slope, rtol=1e-6, atol=1e-6)
    scales = torch.stack([scale, 2 * scale])
    torch.testing.assert_close(func.vmap(total)(scales), torch.stack([total(s) for s in scales]))
    with torch.no_grad():
        torch.testing.assert_close(total(leaf), total(scale))


def test_nothing_is_written_and_no_graph_is_kept() -> None:
    model, x = net(), draw(N, 2, 3)
    before = tree.map(torch.clone, model)
    grads = func.clipped_grad(lambda m, x: m(x).sum(), 1.0)(model, x)
    assert tree.allclose(model, before) and not model.weight.requires_grad
    assert all(not g.requires_grad for g in tree.leaves(grads))


COMPILED = ("a penalty", "a detached weight", "an output that is written")


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled() -> None:
    """In one graph: layers, other uses, draws and effects."""
    net_of_torch = NETS["mlp"][0]().double()
    layers = ours_like(net_of_torch, NETS["mlp"][1]().initialize(0))
    x, samples = draw(N, 2, 3), NETS["mlp"][2]
    model = Counted(draw(4, 3), draw(4), torch.zeros((), dtype=torch.float64))

    def noisy(m: Counted, x: Tensor, key: random.Key) -> tuple[Tensor, Tensor]:
        m.emit(seen=x.mean(), merge="sum")
        h = m(x) * random.normal(key, (4,), dtype=torch.float64)
        return h.sum(), h

    def run(layers: Any, model: Counted, x: Tensor, key: random.Key) -> Any:
        strict: Any = func.clipped_grad(classify, 0.5, exact=False)
        grads = {name: func.clipped_grad(OTHERS[name][0], 0.5)(model, x) for name in COMPILED}
        noise = func.clipped_grad(noisy, 0.5, has_aux=True)
        drawn = effects.collect(noise)(model, x, random.split(key, N))
        return strict(layers, *samples), grads, drawn

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    ours, grads, drawn = compiled(layers, model, x, random.key(0))
    _, total = loop(by_torch(net_of_torch), tree.leaves(layers), samples, 0.5)
    for a, b in zip(tree.leaves(ours), total, strict=True):
        torch.testing.assert_close(a, b)
    for name, grad in grads.items():
        by_hand = OTHERS[name][1]
        one = lambda leaves, x, by_hand=by_hand: by_hand(*leaves, x)  # noqa: E731  # short
        _, total = loop(one, [model.weight, model.bias], [x], 0.5)
        torch.testing.assert_close([grad.weight, grad.bias], total)
    expected = run(layers, model, x, random.key(0))[2]
    for a, b in zip(tree.leaves(drawn), tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_refusal() -> None:
    strict = func.clipped_grad(OTHERS["a penalty"][0], 1.0, exact=False)
    compiled = torch.compile(lambda m, x: strict(m, x), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"Net\.weight is used by an operator without a rule"):
        compiled(net(), draw(N, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_and_autocast(dtype: torch.dtype) -> None:
    model, x = net(), draw(N, 2, 3)
    loss = lambda m, x: m(x).float().sum()  # noqa: E731  # short
    norms, _ = loop(
        lambda leaves, x: hidden(leaves[0], leaves[1], x).sum(), tree.leaves(model), [x], 1.0
    )
    tolerance = 100 * torch.finfo(dtype).eps
    cast = tree.map(lambda leaf: leaf.to(dtype), model)
    found = func.per_sample_norms(loss)(cast, x.to(dtype))
    torch.testing.assert_close(found.double(), norms, rtol=tolerance, atol=tolerance)
    if dtype is torch.bfloat16:
        with torch.autocast("cpu", dtype=dtype):
            found = func.per_sample_norms(loss)(tree.map(torch.Tensor.float, model), x.float())
        torch.testing.assert_close(found.double(), norms, rtol=tolerance, atol=tolerance)


def test_positions_that_cancel() -> None:
    """The sum of the inner products keeps the digits that the gradient has."""
    model = nn.Linear(64, 64, bias=False).initialize(0)
    x, signs = draw(3, 1, 64).float(), torch.tensor([[1.0], [-1.0]])
    x = torch.cat([x, x * (1 + 1e-3)], 1)
    loss = lambda m, x: (m(x) * signs).sum()  # noqa: E731  # short
    found = func.per_sample_norms(loss, exact=False)(model, x)
    exact = (x[:, 0].double() - x[:, 1].double()).norm(dim=1) * 8
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0.0)


def test_a_gradient_of_zero_is_not_scaled() -> None:
    model, x = net(), draw(N, 2, 3)
    zero = func.clipped_grad(lambda m, x: 0 * m(x).sum(), 1.0)(model, x)
    assert all(bool((leaf == 0).all()) for leaf in tree.leaves(zero))


def test_batches_and_sequences_without_entries() -> None:
    """Poisson sampling may draw no example."""
    model = nn.Sequential(nn.Embedding(9, 3), nn.Linear(3, 4)).initialize(0)
    loss = lambda m, tokens: m(tokens).sum()  # noqa: E731  # short
    for shape in ((3, 0), (0, 3)):
        tokens = torch.zeros(shape, dtype=torch.int64)
        assert torch.equal(func.per_sample_norms(loss)(model, tokens), torch.zeros(shape[0]))
        grads = func.clipped_grad(loss, 1.0)(model, tokens)
        assert tree.allclose(grads, tree.map(torch.zeros_like, model))


def test_inference_tensors() -> None:
    with torch.inference_mode():
        model, x = net(), draw(N, 2, 3)
    norms = func.per_sample_norms(lambda m, x: m(x).sum())(model, x)
    loss = lambda leaves, x: hidden(leaves[0], leaves[1], x).sum()  # noqa: E731  # short
    plain = [model.weight.clone(), model.bias.clone()]
    torch.testing.assert_close(norms.clone(), loop(loss, plain, [x.clone()], 1.0)[0])


@pytest.mark.parametrize(
    ("max_norm", "error"),
    [(0, ValueError), (-1.0, ValueError), (float("nan"), ValueError), ("1", TypeError),
     (True, TypeError), (None, TypeError), (torch.tensor(1.0), TypeError)],
)  # fmt: skip
def test_max_norm_is_checked(max_norm: Any, error: type[Exception]) -> None:
    expected = r"func\.clipped_grad\(classify\): max_norm must be .*max_norm=1\.0"
    with pytest.raises(error, match=expected):
        func.clipped_grad(classify, max_norm)


def test_bad_input() -> None:
    model, x = net(), draw(N, 2, 3)
    runs: list[Any] = [func.per_sample_norms, lambda f, **o: func.clipped_grad(f, 1.0, **o)]
    for run in runs:
        with pytest.raises(TypeError, match=r"shape \(2, 4\), and only a scalar has a gradient"):
            run(lambda m, x: m(x))(model, x)
        with pytest.raises(ValueError, match=r"argument 1 has 5 members .* argument 2 has 4"):
            run(lambda m, x, y: m(x).sum() + y)(model, x, torch.ones(4))
        with pytest.raises(TypeError, match=r"exact must be a bool, got 1. Write exact=True"):
            run(lambda m, x: m(x).sum(), exact=1)
    path = r"Net\.weight is used by an operator without a rule .*tree\.select\(module, path\)"
    with pytest.raises(ValueError, match=path):
        func.clipped_grad(OTHERS["a penalty"][0], 1.0, exact=False)(model, x)
    with pytest.raises(ValueError, match=r"per-sample gradients .*inside of a transform"):
        func.vmap(func.per_sample_norms(lambda m, x: m(x).sum(), exact=False), (None, 0))(
            model, x[None]
        )
