"""``func.vmap``: ensembles, batches, dimensions, what passes through, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parallax import Buffer, Module, Parameter, UninitializedError, effects, func, nn, random, tree
from tests.func.nets import Twice, X, loss, net

MEMBERS = [Twice(net(k), net(k + 10)) for k in range(4)]
STACK = tree.stack(MEMBERS)
BATCH = torch.stack([X, X + 1, X - 1, 2 * X])


def looped(fn: Any, *columns: Any) -> Tensor:
    return torch.stack([fn(*row) for row in zip(*columns, strict=True)])


def test_an_ensemble_calls_every_member() -> None:
    torch.testing.assert_close(
        func.vmap(Twice.forward, (0, None))(STACK, X), looped(lambda m: m(X), MEMBERS)
    )
    torch.testing.assert_close(
        func.vmap(Twice.forward)(STACK, BATCH), looped(lambda m, x: m(x), MEMBERS, BATCH)
    )


def test_a_module_itself_is_mapped_over_data() -> None:
    torch.testing.assert_close(func.vmap(MEMBERS[0])(BATCH), looped(MEMBERS[0], BATCH))


def test_in_dims_may_be_an_int_a_prefix_or_a_module() -> None:
    expected = looped(lambda m: m(X), MEMBERS)
    fn = lambda d, x: d["net"](x)  # noqa: E731  # short
    for dims in (0, {"net": 0}, {"net": tree.map(lambda leaf: 0, STACK)}):
        torch.testing.assert_close(func.vmap(fn, (dims, None))({"net": STACK}, X), expected)
    last = tree.map(lambda leaf: leaf.movedim(0, -1), STACK)
    torch.testing.assert_close(func.vmap(Twice.forward, (-1, None))(last, X), expected)


def test_a_module_shaped_in_dims_maps_some_leaves_only() -> None:
    shared = MEMBERS[0]
    mixed = shared.replace(first=STACK.first)
    dims = tree.unflatten(tree.structure(mixed), [
        0 if path.startswith("first") else None for path in tree.structure(mixed).paths
    ])  # fmt: skip
    found = func.vmap(Twice.forward, (dims, None))(mixed, X)
    torch.testing.assert_close(found, looped(lambda m: shared.replace(first=m.first)(X), MEMBERS))


def test_modules_holes_and_constants_come_out() -> None:
    model = Twice(net(0, bias=False), net(1))
    stack = tree.stack([model, model])
    out = func.vmap(
        lambda m, x: {"net": m.update(lambda p: p + 1), "y": m(x), "n": 3, "none": None}, (0, None)
    )(stack, X)
    assert out["n"] == 3 and out["none"] is None and out["net"].first.bias is None
    torch.testing.assert_close(out["net"].first.weight[1], model.first.weight + 1)
    assert out["net"].first.steps.shape == (2,)


def test_out_dims() -> None:
    for dim in (0, 1, -1):
        ours = func.vmap(lambda x: x.T, out_dims=dim)(BATCH)
        torch.testing.assert_close(ours, torch.func.vmap(lambda x: x.T, out_dims=dim)(BATCH))
    fn = lambda x, k: {"a": x, "b": (x[0], k)}  # noqa: E731  # short
    k = torch.tensor(3.0)
    dims: Any = {"a": 1, "b": (0, None)}
    ours = func.vmap(fn, (0, None), dims)(BATCH, k)
    assert ours["b"][1] is k
    torch.testing.assert_close(ours, torch.func.vmap(fn, (0, None), dims)(BATCH, k))
    with pytest.raises(ValueError, match="out_dims is None for a result that differs"):
        func.vmap(lambda x: x, out_dims=None)(BATCH)
    with pytest.raises(ValueError, match=r"out_dims: the result has the entries \['a', 'b'\]"):
        func.vmap(fn, (0, None), {"a": 0})(BATCH, k)


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 9])
def test_chunks(chunk_size: int) -> None:
    found = func.vmap(Twice.forward, chunk_size=chunk_size)(STACK, BATCH)
    torch.testing.assert_close(found, looped(lambda m, x: m(x), MEMBERS, BATCH))


class Seen(Module):
    total: Buffer

    def forward(self, x: Tensor) -> Tensor:
        self.emit(total=x.sum(), merge="sum")
        return 2 * x


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_effects_come_out_of_chunks(chunk_size: int | None) -> None:
    mapped = func.vmap(lambda m, x: m(x), (None, 0), chunk_size=chunk_size)
    _, after = effects.collect(mapped)(Seen(torch.zeros((), dtype=X.dtype)), BATCH)
    torch.testing.assert_close(after.total, BATCH.sum())


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_what_is_captured_comes_out_of_chunks(chunk_size: int) -> None:
    module = MEMBERS[0]
    mapped = func.vmap(lambda m, x: m(x), (None, 0), chunk_size=chunk_size)
    out, found = effects.capture(mapped, "first")(module, BATCH)
    torch.testing.assert_close(found["first"], torch.stack([module.first(x) for x in BATCH]))
    torch.testing.assert_close(out, torch.stack([module(x) for x in BATCH]))


def test_randomness_flags_are_torchs() -> None:
    fn = lambda x: x + torch.randn(())  # noqa: E731  # short
    with pytest.raises(RuntimeError, match="randomness"):
        func.vmap(fn)(torch.zeros(3))
    assert len(func.vmap(fn, randomness="same")(torch.zeros(3)).unique()) == 1
    assert len(func.vmap(fn, randomness="different")(torch.zeros(3)).unique()) == 3


class Noisy(Module):
    w: Parameter

    def forward(self) -> Tensor:
        return self.w * random.normal(self.rng, (3,))


def test_a_stack_of_keys_gives_each_member_its_own() -> None:
    keys = random.split(random.key(0), 4)
    members = [Noisy(torch.ones(3)).train(k) for k in keys]
    expected = torch.stack([m() for m in members])
    stacked = tree.stack([m.train(random.clone(k)) for m, k in zip(members, keys, strict=True)])
    torch.testing.assert_close(func.vmap(Noisy.forward)(stacked), expected)
    shared = tree.stack([Noisy(torch.ones(3))] * 2).train(random.key(0))
    same = func.vmap(Noisy.forward)(shared)
    torch.testing.assert_close(same[0], same[1])


def test_keyword_arguments_are_shared() -> None:
    assert func.vmap(lambda x, k: x * k)(torch.ones(2), k=3.0).tolist() == [3.0, 3.0]


def test_nested_with_gradients_both_ways() -> None:
    grads = func.vmap(func.grad(loss), (0, None))(STACK, X)
    expected = tree.stack([func.grad(loss)(m) for m in MEMBERS])
    assert tree.allclose(grads, expected)
    outer = func.grad(lambda s: func.vmap(loss, (0, None))(s, X).sum())(STACK)
    assert tree.allclose(outer, expected)
    twice = func.vmap(lambda m: func.vmap(lambda x: m(x))(BATCH))(STACK)
    torch.testing.assert_close(twice, torch.func.vmap(lambda m: torch.func.vmap(m)(BATCH))(STACK))


def test_ties_stay() -> None:
    shared = [net(k) for k in range(3)]
    stack = tree.stack([Twice(n, n) for n in shared])
    out = func.vmap(lambda m: func.grad(loss)(m))(stack)
    assert out.first.weight is out.second.weight
    torch.testing.assert_close(
        out.first.weight[2], func.grad(loss)(Twice(shared[2], shared[2])).first.weight
    )


def test_mapping_is_per_member_for_a_loop_of_any_kind() -> None:
    once = torch.func.vmap(lambda m, x: m(x))(STACK, BATCH)  # the raw transform knows modules too
    torch.testing.assert_close(func.vmap(Twice.forward)(STACK, BATCH), once)


class Counting(Module):
    w: Parameter
    seen: Buffer

    def forward(self, x: Tensor) -> Tensor:
        self.emit(seen=self.seen + (self.w * x).sum(), merge="mean")
        return self.w * x


def test_effects_come_out_of_every_transform() -> None:
    model = Counting(torch.tensor(2.0), torch.tensor(0.0))
    xs = torch.tensor([1.0, 3.0])
    _, after = effects.collect(lambda m: func.vmap(lambda m, x: m(x), (None, 0))(m, xs))(model)
    assert after.seen.item() == 4.0
    runs: dict[str, Any] = {
        "grad": lambda m: func.grad(lambda m: m(xs[0]))(m),
        "vmap of grad": lambda m: func.vmap(func.grad(lambda m, x: m(x)), (None, 0))(m, xs[:1]),
        "grad of grad": lambda m: func.grad(lambda m: func.grad(lambda m: m(xs[0]))(m).w * m.w)(m),
        "raw": lambda m: func.vmap(lambda m, x: func.jacrev(lambda m: m(x))(m), (None, 0))(
            m, xs[:1]
        ),
        "jvp": lambda m: func.jvp(lambda m: m(xs[0]), (m,), (m,)),
        "jacfwd": lambda m: func.jacfwd(lambda m: m(xs[0]))(m),
        "linearize": lambda m: func.linearize(lambda m: m(xs[0]), m)[0],
        "hvp": lambda m: func.hvp(lambda m: m(xs[0]), (m,), (m,)),
        "per sample": lambda m: func.per_sample_grad(lambda m, x: m(x))(m, xs[:1]),
        "the module itself": lambda m: func.vmap(m)(xs[:1]),
        "a method": lambda m: func.vmap(m.forward)(xs[:1]),
    }
    for name, run in runs.items():
        _, after = effects.collect(run)(model)
        assert after.seen.item() == 2.0, name
    members = tree.stack([model, model.replace(w=torch.tensor(5.0))])
    _, after = effects.collect(lambda m: func.vmap(lambda m, x: m(x), (0, None))(m, xs[0]))(members)
    assert after.seen.tolist() == [2.0, 5.0]


# -- bad input ------------------------------------------------------------------------------------


def test_different_sizes_name_two_paths() -> None:
    with pytest.raises(
        ValueError, match=r"Twice.first.weight \(argument 0\) has 4 members .* argument 1 has 2"
    ):
        func.vmap(Twice.forward)(STACK, X)
    uneven = STACK.replace(second=tree.map(lambda leaf: leaf[:3], STACK.second))
    with pytest.raises(
        ValueError, match=r"Twice.first.weight .* has 4 .*Twice.second.weight .* has 3"
    ):
        func.vmap(Twice.forward, (0, None))(uneven, X)


def test_in_dims_that_do_not_fit_name_the_path() -> None:
    with pytest.raises(ValueError, match=r"in_dims has 1 entries and 2 .*in_dims=\(0, None\)"):
        func.vmap(Twice.forward, (0,))(STACK, X)
    with pytest.raises(TypeError, match="in_dims must be an int or a tuple"):
        func.vmap(Twice.forward, [0, None])(STACK, X)
    with pytest.raises(ValueError, match=r"argument 0\['net'\] is a Twice and is given \(0, 0\)"):
        func.vmap(lambda d: d, ({"net": (0, 0)},))({"net": STACK})
    with pytest.raises(
        ValueError, match=r"argument 0 has the entries \['a'\] and is given dimensions for \['b'\]"
    ):
        func.vmap(lambda d: d, ({"b": 0},))({"a": X})
    with pytest.raises(ValueError, match="nothing is mapped"):
        func.vmap(Twice.forward, (None, None))(STACK, X)
    with pytest.raises(
        ValueError, match=r"Twice.first.scale \(argument 0\) has shape \(\) and no dimension 0"
    ):
        func.vmap(Twice.forward, (0, None))(MEMBERS[0], X)
    with pytest.raises(TypeError, match="argument 1 is a float, and only tensors are mapped"):
        func.vmap(lambda x, k: x)(X, 2.0)
    mapped: Any = func.vmap(lambda *_: X)
    with pytest.raises(ValueError, match="without positional arguments"):
        mapped()
    with pytest.raises(TypeError, match="is given 'a'"):
        func.vmap(lambda m: m, (tree.map(lambda leaf: "a", STACK),))(STACK)


def test_out_dims_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"out_dims=3 .* 1 dimensions .* from -2 to 1"):
        func.vmap(lambda x: x, out_dims=3)(torch.ones(2, 3))


def test_nothing_returned_and_nothing_initialised() -> None:
    with pytest.raises(TypeError, match="returned nothing"):
        func.vmap(lambda x: None)(X)
    lazy = Noisy(Parameter((3,), torch.nn.init.zeros_))
    with pytest.raises(UninitializedError, match=r"Noisy.w .* is not initialized"):
        func.vmap(Noisy.forward)(lazy)


# -- many gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["by the sum", "by vmap of grad"])
def test_per_sample_gradients(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "by vmap of grad":
        monkeypatch.setattr("parallax.func.per_sample.LARGEST", -1)
    fn = lambda m, x: (loss(m, x), {"x": x, "n": 1})  # noqa: E731  # short
    member: Any = MEMBERS[0]
    grads, aux = func.per_sample_grad(fn, has_aux=True)(member, BATCH)
    assert tree.allclose(grads, tree.stack([func.grad(loss)(MEMBERS[0], x) for x in BATCH]))
    assert grads.first.scale is None and aux["n"] == 1
    torch.testing.assert_close(aux["x"], BATCH)
    assert not any(leaf.requires_grad for leaf in tree.leaves(grads))
    chunked = func.per_sample_grad(loss, chunk_size=3)(MEMBERS[0], BATCH)
    assert tree.allclose(chunked, grads)
    one, two = func.per_sample_grad(lambda a, m, x: loss(m, x) * a, argnums=(1, 0))(
        torch.tensor(2.0, dtype=torch.float64), MEMBERS[0], BATCH
    )
    assert tree.allclose(one, tree.map(lambda g: 2 * g, grads))
    torch.testing.assert_close(two, looped(lambda x: loss(MEMBERS[0], x), BATCH))


@pytest.mark.parametrize("way", ["by the sum", "by vmap of grad"])
def test_ensemble_gradients(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "by vmap of grad":
        monkeypatch.setattr("parallax.func.per_sample.LARGEST", -1)
    expected = tree.stack([func.grad(loss)(m, X) for m in MEMBERS])
    assert tree.allclose(func.ensemble_grad(loss)(STACK, X), expected)
    each = tree.stack([func.grad(loss)(m, x) for m, x in zip(MEMBERS, BATCH, strict=True)])
    assert tree.allclose(func.ensemble_grad(loss, in_dims=(0, 0))(STACK, BATCH), each)
    last = tree.map(lambda leaf: leaf.movedim(0, -1), STACK)
    assert tree.allclose(func.ensemble_grad(loss, in_dims=(-1, None))(last, X), expected)
    dims = tree.map(lambda leaf: 0, STACK)
    assert tree.allclose(func.ensemble_grad(loss, in_dims=(dims, None))(STACK, X), expected)


@pytest.mark.parametrize("way", ["by the sum", "by vmap of grad"])
def test_ensemble_gradients_of_members_that_share_some_leaves(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "by vmap of grad":
        monkeypatch.setattr("parallax.func.per_sample.LARGEST", -1)
    weights = torch.stack([net(0).weight, net(1).weight])
    members = net(2).replace(weight=weights.movedim(0, 1))
    dims = tree.unflatten(tree.structure(members), [1, None, None, None])
    grads = func.ensemble_grad(loss, in_dims=(dims,))(members)
    expected = [func.grad(loss)(members.replace(weight=weight)) for weight in weights]
    assert tree.allclose(grads, tree.stack(expected))


def test_many_gradients_nest_and_keep_the_graphs_of_others() -> None:
    c = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    grads = func.per_sample_grad(lambda m, x: loss(m, x) * c**2)(MEMBERS[0], BATCH)
    total: Any = sum(g.sum() for g in tree.leaves(grads))
    (slope,) = torch.autograd.grad(total, c)
    whole = func.per_sample_grad(loss)(MEMBERS[0], BATCH)
    torch.testing.assert_close(slope, 2 * c.detach() * sum(g.sum() for g in tree.leaves(whole)))
    inside = func.grad(
        lambda m: sum(g.pow(2).sum() for g in tree.leaves(func.per_sample_grad(loss)(m, BATCH)))
    )(MEMBERS[0])
    expected = func.grad(
        lambda m: sum(g.pow(2).sum() for x in BATCH for g in tree.leaves(func.grad(loss)(m, x)))
    )(MEMBERS[0])
    assert tree.allclose(inside, expected)
    mapped = torch.func.vmap(
        lambda s: func.per_sample_grad(lambda m, x: s * loss(m, x))(MEMBERS[0], BATCH).first.weight
    )(torch.tensor([1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(mapped[1], 2 * whole.first.weight)


def test_many_gradients_refuse_as_grad_and_vmap_do() -> None:
    with pytest.raises(TypeError, match="only a scalar has a gradient"):
        func.per_sample_grad(lambda m, x: m(x))(MEMBERS[0], BATCH)
    with pytest.raises(ValueError, match=r"has 4 members .* argument 1 has 2"):
        func.ensemble_grad(loss, in_dims=(0, 0))(STACK, X)
    with pytest.raises(ValueError, match="no trainable leaf"):
        func.per_sample_grad(loss)(tree.select(MEMBERS[0], "**").freeze(), BATCH)


def test_a_mapped_checkpoint_is_refused_with_the_remedy() -> None:
    fn = lambda m, x: checkpoint(lambda y: loss(m, y), x, use_reentrant=False)  # noqa: E731
    for run in (
        func.per_sample_grad(fn),
        func.vmap(func.grad(fn), (None, 0)),
        func.vmap(fn, (None, 0)),
    ):
        with pytest.raises(
            RuntimeError, match=r"checkpoint cannot run inside a torch.func transform"
        ):
            run(MEMBERS[0].reset(0), BATCH)
    with torch.no_grad():
        assert len(func.vmap(fn, (None, 0))(MEMBERS[0], BATCH)) == 4


def under_a_checkpoint(fn: Any, w: Tensor) -> Any:
    return checkpoint(fn, w, use_reentrant=False)


def with_what_is_saved_on_the_cpu(fn: Any, w: Tensor) -> Any:
    with torch.autograd.graph.save_on_cpu():
        return fn(w)


TRANSFORMED: dict[str, tuple[Any, Any]] = {
    "vmap": (lambda f, w: func.vmap(f, (None, 0))(w, X), lambda f, w: [f(w, x) for x in X]),
    "chunks": (
        lambda f, w: func.vmap(f, (None, 0), chunk_size=1)(w, X),
        lambda f, w: [f(w, x) for x in X],
    ),
    "per_sample_grad": (
        lambda f, w: func.per_sample_grad(f)(w, X),
        lambda f, w: [recorded_grad(f, w, x) for x in X],
    ),
    "ensemble_grad": (
        lambda f, w: func.ensemble_grad(f)(torch.stack([w, 2 * w]), X[0]),
        lambda f, w: [recorded_grad(f, v, X[0]) for v in (w, 2 * w)],
    ),
    "vmap of grad": (
        lambda f, w: func.vmap(func.grad(f), (None, 0))(w, X),
        lambda f, w: [recorded_grad(f, w, x) for x in X],
    ),
    "jacrev": (
        lambda f, w: func.jacrev(f)(w, X[0]),
        lambda f, w: list(recorded_grad(f, w, X[0])),
    ),
    "jacfwd": (
        lambda f, w: func.jacfwd(f)(w, X[0]),
        lambda f, w: list(recorded_grad(f, w, X[0])),
    ),
}


def recorded_grad(f: Any, w: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(f(w, x), w, create_graph=True)[0]


@pytest.mark.parametrize("around", [under_a_checkpoint, with_what_is_saved_on_the_cpu])
@pytest.mark.parametrize("name", TRANSFORMED)
def test_saved_tensor_hooks_around_a_transform(around: Any, name: str) -> None:
    f = lambda w, x: (torch.tanh(x @ w) @ w).sin().sum()  # noqa: E731  # short
    w = net().weight.clone().requires_grad_()
    ours, by_hand = TRANSFORMED[name]
    out, expected = around(lambda w: ours(f, w), w), torch.stack(by_hand(f, w))
    torch.testing.assert_close(out, expected)
    (slope,) = torch.autograd.grad(out.square().sum(), w)
    torch.testing.assert_close(slope, torch.autograd.grad(expected.square().sum(), w)[0])
    # and the switch stands as before, also where something is refused inside
    with pytest.raises(ZeroDivisionError):
        around(lambda w: ours(lambda w, x: 1 / 0, w), w)
    under_a_checkpoint(torch.sin, w).sum().backward()


def test_a_list_of_models_is_told_to_be_stacked() -> None:
    models = [nn.MLP([3, 4, 2]).initialize(seed) for seed in range(2)]
    with pytest.raises(ValueError, match=r"as one: tree\.stack\(models\)"):
        func.vmap(lambda models, x: models[0](x), (0, None))(models, X)
