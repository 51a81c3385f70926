"""Sharpness-aware steps, Adam for sparse gradients, and rates by depth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import parallax
from parallax import effects, func, optim, random, tree
from parallax import nn as layers
from parallax.optim import absent, schedules
from tests.comparing import same_leaves
from tests.corpus import Norm
from tests.optim.cases import Net, Point, Twin, distance, ones

X = torch.linspace(-1, 1, 12).reshape(4, 3)


def loss(net: Any, x: Tensor = X) -> Any:
    return (net(x) - 0.5).square().mean()


def run(opt: Any, model: Any, count: int) -> tuple[Any, Any]:
    state = opt.init(model)
    for _ in range(count):
        model, state = opt.step(model, func.grad(loss), state)
    return model, state


# -- sharpness-aware -------------------------------------------------------------------------------

SHARP: list[Any] = [
    lambda opt: optim.SAM(opt, rho=0.3),
    lambda opt: optim.ASAM(opt, rho=0.7, eta=0.2),
]


@pytest.mark.parametrize("wrap", SHARP)
def test_sharpness_aware_steps_are_the_published_loop(wrap: Any) -> None:
    model = Net().initialize(0, dtype=torch.float64)
    opt = wrap(optim.SGD(lr=0.1, momentum=0.9))
    params = {k: v.clone().requires_grad_() for k, v in tree.named_leaves(model).items()}
    inner = torch.optim.SGD(list(params.values()), lr=0.1, momentum=0.9)
    x = X.double()

    def backward() -> None:
        inner.zero_grad()
        hidden = torch.tanh(x @ params["first"].T + params["bias"])
        out = params["scale"] * (hidden @ params["second"].T)
        (out - 0.5).square().mean().backward()

    state = opt.init(model)
    for _ in range(4):
        model, state = opt.step(model, lambda m: func.grad(loss)(m, x), state)
        backward()
        with torch.no_grad():
            scale = {
                k: p.abs() + opt.eta if isinstance(opt, optim.ASAM) else torch.ones_like(p)
                for k, p in params.items()
            }
            total = sum([(scale[k] * _grad(p)).square().sum().item() for k, p in params.items()])
            here = {k: p.clone() for k, p in params.items()}
            for k, p in params.items():
                p.add_(opt.rho * scale[k] ** 2 * _grad(p) / total**0.5)
        backward()
        with torch.no_grad():
            for k, p in params.items():
                p.copy_(here[k])
        inner.step()
    for path, leaf in tree.named_leaves(model).items():
        assert torch.allclose(leaf, params[path], rtol=1e-9)


def _grad(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad


def test_a_step_written_out_is_the_step_and_may_collect_effects() -> None:
    opt, model = optim.SAM(optim.Adam(lr=0.1)), Net().initialize(0)
    state = opt.init(model)
    worst = opt.ascend(model, func.grad(loss)(model))
    assert tree.norm(tree.sub(worst, model)).item() == pytest.approx(0.05, rel=1e-3)
    assert loss(worst) > loss(model)
    mine = opt.opt.step(model, func.grad(loss)(worst), state)
    assert same_leaves(mine, opt.step(model, func.grad(loss), state))
    norm, x = Norm().initialize(0), torch.randn(8, 4)
    take = effects.collect(func.grad(lambda net: net(x).square().mean()))
    grads, seen = take(norm.train(0))
    assert type(opt.ascend(seen, grads)) is Norm


def test_sharpness_aware_steps_compile_and_map_over_members() -> None:
    opt, model = optim.SAM(optim.SGD(lr=0.1, momentum=0.9), rho=0.2), Net().initialize(0)
    counter = torch._dynamo.testing.CompileCounter()

    def once(model: Net, state: Any) -> Any:
        return opt.step(model, func.grad(loss), state)

    step = parallax.compile(once, backend=counter)
    end, state = model, opt.init(model)
    for _ in range(2):
        end, state = step(end, state)
    assert counter.frame_count == 1
    for a, b in zip(tree.leaves((end, state)), tree.leaves(run(opt, model, 2)), strict=True):
        assert distance(a, b) <= 1e-6
    members = [Net().initialize(seed) for seed in range(2)]
    many = func.vmap(lambda m: run(opt, m, 2)[0])(tree.stack(members))
    alone = tree.stack([run(opt, m, 2)[0] for m in members])
    for a, b in zip(tree.leaves(many), tree.leaves(alone), strict=True):
        assert distance(a, b) <= 1e-5


def test_both_gradients_of_a_sharpness_aware_step_see_the_same_draws() -> None:
    opt, model, key, drawn = optim.SAM(optim.SGD(lr=0.1)), Net().initialize(0), random.key(0), []

    def closure(net: Net) -> Any:
        drawn.append(random.normal(key, (4, 3)))
        return func.grad(loss)(net, drawn[-1])

    opt.step(model, closure, opt.init(model))
    assert len(drawn) == 2 and torch.equal(*drawn)
    frozen: Any = tree.select(model, "first").freeze()
    after, _ = opt.step(frozen, func.grad(loss), opt.init(frozen))
    assert after.first is frozen.first and not torch.equal(after.second, frozen.second)


def test_bad_calls_of_sharpness_aware_optimizers_are_refused() -> None:
    opt, model = optim.SAM(optim.SGD()), Net().initialize(0)
    state = opt.init(model)
    with pytest.raises(TypeError, match=r"closure must be a function of the model to gradients"):
        opt.step(model, ones(model), state)
    with pytest.raises(TypeError, match=r"closure returned a tuple of 2.*use ascend"):
        opt.step(model, lambda m: func.grad_and_value(loss)(m), state)
    with pytest.raises(ValueError, match=r"optim.SAM.ascend: the gradients: .*the other has a int"):
        opt.step(model, lambda m: 3, state)
    sparse = tree.select(ones(model), "bias").apply(Tensor.to_sparse)
    with pytest.raises(ValueError, match=r"ascend: the gradient of Net.bias is torch.sparse_coo"):
        opt.step(model, lambda m: sparse, state)
    with pytest.raises(ValueError, match="ASAM: rho must be 0 or more, got -1"):
        optim.ASAM(optim.SGD(), rho=-1)
    with pytest.raises(TypeError, match="SAM: opt must be an optimizer"):
        optim.SAM(optim.SGD)


# -- sparse gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"lr": 0.1, "betas": (0.5, 0.8), "eps": 1e-3, "maximize": True}]
)
def test_sparse_adam_has_the_very_bits_of_torch(options: dict[str, Any]) -> None:
    model = layers.Embedding(6, 3, sparse=True).initialize(0)
    twin = Twin(lambda params: torch.optim.SparseAdam(params, **options), model)
    opt = optim.SparseAdam(**options)
    state = opt.init(model)
    for rows in ([0, 2, 2], [1], [2, 5], [], [0, 1, 2, 3]):
        index = torch.tensor(rows, dtype=torch.int64)
        grads = func.grad(lambda m, i: m(i).square().sum())(model, index)
        assert grads.weight.is_sparse
        before = model.weight.clone()
        after, state = opt.step(model, grads, state)
        assert torch.equal(model.weight, before)
        model = after
        twin.step(grads)
        assert torch.equal(model.weight, twin.params["weight"])
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(state.moments[name].weight, twin.state("weight")[name])


def test_what_sparse_adam_cannot_step_is_refused() -> None:
    point, opt = Point(torch.ones(4, 2)), optim.SparseAdam(lr=schedules.StepLR(0.1, 1))
    state, sparse = opt.init(point), Point(torch.eye(4, 2).to_sparse())
    opt.step(point, sparse, state)
    with pytest.raises(ValueError, match=r"a gradient is dense.*rest=optim.Adam\(\)"):
        opt.step(point, ones(point), state)
    with pytest.raises(RuntimeError, match=r"no sparse gradients in compiled code"):
        torch.vmap(lambda p: opt.step(Point(p), Point(p), state)[0].at)(torch.ones(2, 4, 2))
    with pytest.raises(TypeError, match=r"Point.at is complex"):
        opt.init(Point(torch.ones(2, dtype=torch.complex64)))
    with pytest.raises(ValueError, match=r"optim.SparseAdam: Invalid learning rate"):
        optim.SparseAdam(lr=0.0)


# -- rates by depth --------------------------------------------------------------------------------


def test_rates_by_depth_are_groups_of_torch() -> None:
    model = layers.MLP([3, 4, 4, 2]).initialize(0)
    parts = [f"layers.{k}" for k in range(3)]
    groups = optim.layerwise_lr(model, "layers.*", lr=0.1, decay=0.5)
    assert list(groups) == parts
    opt = optim.AdamW(lr=9.0, groups=groups)
    params = {k: v.clone().requires_grad_() for k, v in tree.named_leaves(model).items()}
    theirs = torch.optim.AdamW(
        [
            {"params": [v for k, v in params.items() if k.startswith(f"{part}.")], "lr": lr}
            for part, lr in zip(parts, (0.025, 0.05, 0.1), strict=True)
        ],
        fused=True,
    )
    state = opt.init(model)
    for _ in range(3):
        grads = func.grad(loss)(model)
        for path, grad in tree.named_leaves(grads).items():
            params[path].grad = grad.clone()
        model, state = opt.step(model, grads, state)
        theirs.step()
    for path, leaf in tree.named_leaves(model).items():
        assert torch.equal(leaf, params[path].detach())


def test_rates_by_depth_follow_schedules_and_tensors() -> None:
    model = Net().initialize(0)
    schedule = schedules.ExponentialLR(1.0, 0.5)
    groups = optim.layerwise_lr(model, "first", "bias", "second", lr=schedule, decay=0.1)
    opt = optim.SGD(lr=3.0, groups=groups)
    after, state = opt.step(model, ones(model), opt.init(model))
    after, _ = opt.step(after, ones(model), state)
    for name, rate in {"first": 0.015, "bias": 0.15, "second": 1.5, "scale": 6.0}.items():
        moved = tree.select(model, name).get() - tree.select(after, name).get()
        assert torch.allclose(moved, torch.full_like(moved, rate), rtol=1e-4)
    tensors = optim.layerwise_lr(model, "first", "second", lr=torch.tensor(2.0), decay=0.5)
    assert torch.equal(torch.as_tensor(tensors["first"]["lr"]), torch.tensor(1.0))
    with pytest.raises(LookupError, match=r"layerwise_lr: 'third': "):
        optim.layerwise_lr(model, "third", lr=0.1)
    with pytest.raises(ValueError, match="'first' is in two layers"):
        optim.layerwise_lr(model, "first", "f*", lr=0.1)
    with pytest.raises(ValueError, match=r"name the layers: layerwise_lr\(model, 'embed'"):
        optim.layerwise_lr(model, lr=0.1)
    with pytest.raises(ValueError, match="decay must be above 0, got 0"):
        optim.layerwise_lr(model, "first", lr=0.1, decay=0)


# -- names -----------------------------------------------------------------------------------------


def test_every_name_of_torch_optim_is_here_or_says_what_to_write() -> None:
    rooms: list[tuple[Any, Any]] = [
        (torch.optim, optim),
        (torch.optim.lr_scheduler, schedules),
        (torch.optim.swa_utils, optim),
    ]
    for theirs, mine in rooms:
        missing = [name for name in theirs.__all__ if name not in mine.__all__]
        for name in missing:
            with pytest.raises(AttributeError, match=rf"no attribute '{name}'\. Write: "):
                getattr(mine, name)
    assert [n for n in torch.optim.__all__ if n[0].isupper() and n not in optim.__all__] == []
    assert [n for n in torch.optim.lr_scheduler.__all__ if n not in schedules.__all__] == [
        "LRScheduler"
    ]
    with pytest.raises(AttributeError, match=r"no attribute 'Adma'$"):
        optim.Adma  # type: ignore[attr-defined]  # that is what is tested
    assert absent.instead_of("adamw") == "optim.AdamW"
    assert absent.instead_of("StepLR") == "optim.schedules.StepLR"
