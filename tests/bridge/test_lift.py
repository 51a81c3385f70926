"""Lifted modules: structure, calls, effects, randomness, threads, errors."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from parallax import Module, Parameter, bridge, effects, func, tree


class Block(nn.Module):
    """Parameters, buffers of both kinds, children, plain attributes, methods, properties."""

    scale: Tensor
    mask: Tensor

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.gain = nn.Parameter(torch.randn(width))
        self.fixed = nn.Parameter(torch.randn(width), requires_grad=False)
        self.register_buffer("scale", torch.full((width,), 2.0))
        self.register_buffer("mask", torch.ones(width), persistent=False)
        self.register_parameter("nothing", None)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.gain * self.scale * self.mask + self.fixed  # type: ignore[no-any-return]  # a tensor

    def twice(self, x: Tensor, *, times: int = 2) -> Tensor:
        for _ in range(times):
            x = self(x)
        return x

    @property
    def doubled(self) -> Tensor:
        return self.gain * 2

    @staticmethod
    def plain(x: int) -> int:
        return x + 1


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.heads = nn.ModuleDict({"one": nn.Linear(4, 2), "a-b": nn.Linear(4, 2)})
        self.weights = nn.ParameterList([torch.randn(4), torch.randn(4)])
        self.table = nn.ParameterDict({"k": torch.randn(2)})
        self.absent = None

    def forward(self, x: Tensor, head: str = "one") -> Tensor:
        for block, weight in zip(self.blocks, self.weights, strict=True):
            x = block(x) * weight
        return self.heads[head](x) + self.table["k"]  # type: ignore[no-any-return]  # a tensor


def snapshot(module: nn.Module) -> dict[str, Any]:
    return {
        "state": {
            k: (id(v), v._version, v.clone()) for k, v in module.state_dict(keep_vars=True).items()
        },
        "attributes": {n: dict(vars(m)) for n, m in module.named_modules()},
    }


def unchanged(module: nn.Module, before: dict[str, Any]) -> None:
    for k, v in module.state_dict(keep_vars=True).items():
        identity, version, value = before["state"][k]
        assert id(v) == identity and v._version == version and torch.equal(v, value)
    for name, m in module.named_modules():
        assert vars(m).keys() == before["attributes"][name].keys()
        for key, value in vars(m).items():
            assert value is before["attributes"][name][key]


# -- structure ------------------------------------------------------------------------------------


def test_hierarchy_is_mirrored_by_attribute_index_and_path() -> None:
    model = Model()
    lifted = bridge.lift(model)
    assert torch.equal(lifted.blocks[1].linear.weight, model.blocks[1].linear.weight)  # type: ignore[union-attr, arg-type]  # a tensor
    assert lifted.heads["a-b"].weight.data_ptr() == model.heads["a-b"].weight.data_ptr()  # type: ignore[operator]  # a module
    assert len(lifted.blocks) == 2 and list(lifted.heads) == ["one", "a-b"]
    assert list(lifted.blocks) == [lifted.blocks[0], lifted.blocks[1]]
    assert lifted.blocks[-1] is lifted.blocks[1] and lifted.blocks[:1] == (lifted.blocks[0],)
    assert torch.equal(lifted.weights[0], model.weights[0])
    assert list(bridge.state_dict(lifted)) == list(model.state_dict())
    assert "blocks.0.mask" in dict(tree.named_leaves(lifted))
    assert "blocks.0.mask" not in bridge.state_dict(lifted)
    assert lifted.blocks[0].width == 4 and lifted.absent is None


def test_call_of_model_and_of_parts_equals_the_original() -> None:
    model = Model().requires_grad_(False)
    lifted = bridge.lift(model)
    x = torch.randn(3, 4)
    before = snapshot(model)
    assert torch.equal(lifted(x), model(x))
    assert torch.equal(lifted(x, head="a-b"), model(x, head="a-b"))
    assert torch.equal(lifted.blocks[0](x), model.blocks[0](x))
    assert torch.equal(lifted.heads["one"](x), model.heads["one"](x))
    unchanged(model, before)


def test_methods_properties_and_statics_are_the_originals() -> None:
    block = Block().requires_grad_(False)
    lifted = bridge.lift(block)
    x = torch.randn(4)
    assert torch.equal(lifted.twice(x, times=3), block.twice(x, times=3))
    assert torch.equal(lifted.doubled, block.doubled)
    assert lifted.plain(1) == 2


def test_copy_shares_or_not() -> None:
    linear = nn.Linear(2, 2)
    assert bridge.lift(linear).weight.data_ptr() == linear.weight.data_ptr()
    apart = bridge.lift(linear, copy=True)
    assert apart.weight.data_ptr() != linear.weight.data_ptr()
    assert torch.equal(apart.weight, linear.weight)
    assert not bridge.lift(linear).weight.requires_grad


def test_modes_follow_the_module_and_frozen_parameters_stay_frozen() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    model[1].eval()
    lifted = bridge.lift(model)
    assert (lifted[0].mode, lifted[1].mode) == ("train", "eval")
    x = torch.ones(100)
    assert torch.equal(lifted.eval()(x), x)
    assert not torch.equal(lifted.train()[1](x), x)
    block = bridge.lift(Block())
    grads = func.grad(lambda m: m(torch.ones(4)).sum())(block)
    assert grads.fixed is None and grads.gain is not None and grads.scale is None


def test_two_models_built_alike_fit_together() -> None:
    one, two = bridge.lift(Model()), bridge.lift(Model())
    assert tree.structure(one) == tree.structure(two) and type(one) is type(two)
    mean = tree.map(lambda a, b: (a + b) / 2, one, two)
    assert torch.equal(mean.weights[0], (one.weights[0] + two.weights[0]) / 2)
    with pytest.raises(ValueError, match="do not fit together"):
        tree.map(torch.add, *(bridge.lift(nn.Sequential(f)) for f in (nn.ReLU(), nn.Tanh())))
    with pytest.raises(ValueError, match="do not fit together"):
        tree.map(torch.add, bridge.lift(nn.LeakyReLU(0.1)), bridge.lift(nn.LeakyReLU(0.2)))


def test_models_whose_configurations_only_claim_to_be_equal_are_two() -> None:
    @dataclasses.dataclass
    class Config:
        width: int

    class Configured(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.config = Config(2)
            self.config.kind = kind  # type: ignore[attr-defined]  # what its equality leaves out

        def forward(self, x: Tensor) -> Tensor:
            return getattr(torch, self.config.kind)(x)  # type: ignore[attr-defined, no-any-return]  # as above

    x = torch.tensor(0.5)
    exp, sin, also = (bridge.lift(Configured(kind)) for kind in ("exp", "sin", "sin"))
    assert torch.equal(exp(x), x.exp()) and torch.equal(sin(x), x.sin())
    assert tree.structure(sin) == tree.structure(also)
    assert tree.structure(sin) != tree.structure(exp)


def test_an_ensemble_of_lifted_modules_runs_under_vmap() -> None:
    models = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(3)]
    x = torch.randn(5, 3)
    stacked = tree.stack([bridge.lift(model) for model in models])
    expected = torch.stack([model(x) for model in models])
    torch.testing.assert_close(torch.vmap(lambda m: m(x))(stacked), expected)
    torch.testing.assert_close(func.vmap(lambda m: m(x))(stacked), expected)


def test_names_that_are_verbs_here_or_no_identifiers() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.update = nn.Linear(2, 2)
            self.reset = nn.Linear(2, 2)
            self.mode = nn.Parameter(torch.randn(2))
            self.rng = nn.Linear(2, 2)
            self.add_module("class", nn.Linear(2, 2))
            self.add_module("a b", nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.update(x) + self.reset(x) * self.mode + self.rng(getattr(self, "class")(x))  # type: ignore[no-any-return]  # a tensor

    cell = Cell()
    lifted = bridge.lift(cell)
    x = torch.randn(2)
    torch.testing.assert_close(lifted(x), cell(x))
    assert list(bridge.state_dict(lifted)) == list(cell.state_dict())
    torch.testing.assert_close(lifted["update"](x), cell.update(x))
    torch.testing.assert_close(lifted.mode, cell.mode.detach())
    grads = func.grad(lambda m: m(x).sum())(lifted)
    cell(x).sum().backward()
    torch.testing.assert_close(grads["class"].weight, getattr(cell, "class").weight.grad)


def test_reserved_names_are_refused() -> None:
    model = nn.Module()
    model.register_buffer("_spec", torch.ones(1))
    with pytest.raises(ValueError, match="named '_spec', which is reserved"):
        bridge.lift(model)


def test_ties_are_kept() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    lifted = bridge.lift(model)
    assert lifted[0].weight is lifted[1].weight
    assert len(tree.leaves(lifted)) == 3
    grads = func.grad(lambda m: m(torch.ones(3)).sum())(lifted)
    model(torch.ones(3)).sum().backward()
    torch.testing.assert_close(grads[0].weight, model[0].weight.grad)
    assert list(bridge.state_dict(lifted)) == list(model.state_dict())


def test_a_module_used_twice_is_tied() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    lifted = bridge.lift(model)
    assert len(tree.leaves(lifted)) == 2
    torch.testing.assert_close(lifted(torch.ones(3)), model(torch.ones(3)))


def test_pickle_copy_and_repr() -> None:
    lifted = bridge.lift(Model())
    again = pickle.loads(pickle.dumps(lifted))
    assert type(again) is type(lifted) and tree.equal(again, lifted)
    assert tree.equal(copy.deepcopy(lifted), lifted) and copy.deepcopy(lifted) is not lifted
    assert "Linear(in_features=4, out_features=2, bias=True)" in repr(lifted)


def test_select_by_the_class_that_was_lifted() -> None:
    lifted = bridge.lift(Model())
    chosen = tree.select(lifted, bridge.lifted_type(nn.Linear))
    assert chosen.paths == ("blocks.0.linear", "blocks.1.linear", "heads.one", "heads.a-b")
    assert isinstance(lifted.blocks[0], bridge.lifted_type(Block))
    assert not isinstance(lifted.blocks[0], bridge.lifted_type(nn.Linear))
    with pytest.raises(TypeError, match=r"takes a class of nn.Module"):
        bridge.lifted_type(int)  # type: ignore[arg-type]  # the mistake that is tested


def test_surgery_with_parallax_modules_inside() -> None:
    class Adapter(Module):
        base: Module
        down: Parameter

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + x @ self.down  # type: ignore[no-any-return]  # a tensor

    model = Model()
    lifted = bridge.lift(model)
    x = torch.randn(4)
    changed = tree.select(lifted, "blocks.*.linear").apply(
        lambda base: Adapter(base, torch.zeros(4, 4))
    )
    torch.testing.assert_close(changed(x), model(x))
    grads = func.grad(lambda m: m(x).sum())(changed)
    assert grads.blocks[0].linear.down.abs().sum() > 0
    lowered = bridge.lower(changed)
    torch.testing.assert_close(lowered(x), model(x))
    assert set(dict(lowered.named_parameters())) >= {
        "blocks.0.linear.base.weight",
        "blocks.0.linear.down",
    }
    assert tree.equal(bridge.lift(lowered), changed)


# -- what forward may do --------------------------------------------------------------------------


def test_hooks_are_honoured() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    seen: list[str] = []
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))

    def plus_one(module: nn.Module, args: Any, out: Any) -> Any:
        return out + 1

    model[0].register_forward_hook(plus_one)
    handle = model.register_forward_hook(
        lambda module, args, out: seen.append(type(module).__name__)
    )
    lifted = bridge.lift(model)
    x = torch.randn(2)
    assert torch.equal(lifted(x), model.requires_grad_(False)(x))
    assert seen == ["Sequential", "Sequential"]
    handle.remove()
    lifted(x)
    assert len(seen) == 3  # what was lifted stays as it was


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrizations(norm: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(getattr(parametrizations, norm)(nn.Linear(4, 4)))
    lifted = bridge.lift(model)
    x = torch.randn(3, 4)
    before = snapshot(model)
    out, after = effects.collect(type(lifted).__call__)(lifted, x)
    unchanged(model, before)
    reference = copy.deepcopy(model)
    torch.testing.assert_close(out, reference(x))
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(bridge.state_dict(after)[key], value)
    assert list(bridge.state_dict(lifted)) == list(model.state_dict())
    twin = nn.Sequential(getattr(parametrizations, norm)(nn.Linear(4, 4)))
    if norm != "orthogonal":  # which keeps a random base as a plain attribute
        tree.map(torch.add, bridge.lift(twin), lifted)
    assert parametrize.is_parametrized(bridge.lower(lifted)[0])  # type: ignore[index]  # a Sequential


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_norms_by_hooks(norm: str) -> None:
    model = getattr(nn.utils, norm)(nn.Linear(4, 3)).eval()
    lifted = bridge.lift(model)
    x = torch.randn(2, 4)
    torch.testing.assert_close(lifted(x), model(x))
    grads = func.grad(lambda m: m(x).sum())(lifted)
    model(x).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(dict(tree.named_leaves(grads))[name], parameter.grad)


def test_batch_norm_effects_compose_over_steps() -> None:
    reference = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module = bridge.lift(copy.deepcopy(reference))
    for _ in range(3):
        x = torch.randn(5, 3)
        reference(x)
        _, module = effects.collect(type(module).__call__)(module, x)
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(bridge.state_dict(module)[key], value)


def test_an_effect_nobody_collects_is_an_error() -> None:
    lifted = bridge.lift(nn.BatchNorm1d(2))
    with pytest.raises(effects.EffectError, match="nobody collects"):
        lifted(torch.randn(4, 2))
    assert lifted.eval()(torch.randn(4, 2)).shape == (4, 2)


def test_effects_under_the_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    lifted = bridge.lift(copy.deepcopy(model))
    x = torch.randn(5, 3)

    def loss(module: Any) -> tuple[Tensor, Any]:
        out, after = effects.collect(type(module).__call__)(module, x)
        return (out**3).sum(), after

    grads, after = func.grad(loss, has_aux=True)(lifted)
    raw, raw_after = torch.func.grad(lambda w: loss(_with(lifted, w)), has_aux=True)(
        lifted[0].weight
    )
    (model(x) ** 3).sum().backward()
    torch.testing.assert_close(grads[0].weight, model[0].weight.grad)
    torch.testing.assert_close(raw, model[0].weight.grad)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(bridge.state_dict(after)[key], value)
        if "running" in key:
            torch.testing.assert_close(bridge.state_dict(raw_after)[key], value)


def _with(module: Any, weight: Tensor) -> Any:
    return tree.select(module, "0.weight").set(weight)


def test_buffers_in_inference_mode() -> None:
    lifted = bridge.lift(nn.BatchNorm1d(2))
    x = torch.randn(4, 2)
    with torch.inference_mode():
        _, after = effects.collect(type(lifted).__call__)(lifted, x)
    _, expected = effects.collect(type(lifted).__call__)(lifted, x)
    assert torch.equal(after.running_mean, expected.running_mean)


def test_the_original_is_shown_while_storage_is_shared() -> None:
    model = nn.BatchNorm1d(2)
    lifted = bridge.lift(model).eval()
    lifted(torch.zeros(1, 2))
    model(torch.randn(8, 2) + 3)  # writes into the shared storage, behind a memo if there were one
    torch.testing.assert_close(lifted(torch.zeros(1, 2)), model.eval()(torch.zeros(1, 2)))


def test_a_running_statistic_written_by_a_class_of_ones_own() -> None:
    class Own(nn.Module):
        mean: Tensor
        var: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(2))
            self.register_buffer("var", torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.batch_norm(x, self.mean, self.var, training=self.training)

    own = Own()
    lifted = bridge.lift(own)
    x = torch.randn(4, 2)
    _, after = effects.collect(type(lifted).__call__)(lifted, x)
    assert torch.equal(own.mean, torch.zeros(2))
    own(x)
    torch.testing.assert_close(after.mean, own.mean)
    torch.testing.assert_close(after.var, own.var)


class Forgetful(nn.Module):
    """Writes attributes, containers and a replaced buffer in forward."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.log: list[int] = []
        self.last: Tensor | None = None
        self.inner = nn.Linear(2, 2)
        self.register_buffer("state", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(self.calls)
        last: Tensor = self.inner(x)
        self.last = last
        if self.training:
            self.state = self.state + 1
        return last * self.calls * len(self.log)


def test_attributes_written_by_forward_are_forgotten() -> None:
    model = Forgetful().eval()
    lifted = bridge.lift(model)
    before = snapshot(model)
    x = torch.randn(2)
    first = lifted(x)
    assert torch.equal(lifted(x), first) and torch.equal(lifted(x), first)
    assert lifted.calls == 0 and lifted.log == [] and lifted.last is None
    unchanged(model, before)
    assert model.log == []


def test_a_replaced_buffer_is_an_effect() -> None:
    lifted = bridge.lift(Forgetful())
    _, after = effects.collect(type(lifted).__call__)(lifted, torch.randn(2))
    assert torch.equal(after.state, torch.ones(2)) and torch.equal(lifted.state, torch.zeros(2))


def test_nothing_is_written_when_forward_raises() -> None:
    class Failing(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor, fail: bool) -> Tensor:
            self.count.add_(1)
            x = self.norm(x)
            if fail:
                raise RuntimeError("on purpose")
            return x

    model = Failing()
    lifted = bridge.lift(model)
    before = snapshot(model)
    x = torch.randn(4, 2)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="on purpose"):
            effects.collect(type(lifted).__call__)(lifted, x, True)
    unchanged(model, before)
    _, after = effects.collect(type(lifted).__call__)(lifted, x, False)
    assert after.count == 1 and lifted.count == 0


def test_references_within_the_model_lead_to_the_leaves() -> None:
    class Pointing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.layers = [self.linear]
            self.weights = [self.linear.weight]
            self.apply_it = self.linear.forward
            self.__dict__["hidden"] = self.linear

        def forward(self, x: Tensor) -> Tensor:
            assert self.hidden is self.linear and self.weights[0] is self.linear.weight
            return self.layers[0](x) + self.apply_it(x) + self.weights[0].sum()  # type: ignore[no-any-return]  # a tensor

    model = Pointing()
    lifted = bridge.lift(model)
    x = torch.randn(2)
    torch.testing.assert_close(lifted(x), model(x))
    doubled = tree.map(lambda t: t * 2, lifted)
    torch.testing.assert_close(doubled(x), 2 * model(x))
    assert lifted.hidden is lifted.linear and lifted.weights[0] is lifted.linear.weight


def test_embedding_with_max_norm_does_not_scale_the_weight() -> None:
    model = nn.Embedding(4, 3, max_norm=0.5)
    lifted = bridge.lift(model)
    ids = torch.tensor([1, 2])
    before = model.weight.detach().clone()
    out = lifted(ids)
    assert torch.equal(model.weight, before) and torch.equal(lifted.weight, before)
    torch.testing.assert_close(out, model(ids).detach())


def test_a_skeleton_somebody_holds_is_left_to_them() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Any:
            return lambda: self.linear(x)

        def steps(self, x: Tensor) -> Iterator[Tensor]:
            for _ in range(3):
                x = self.linear(x)
                yield x

    model = Lazy()
    lifted = bridge.lift(model)
    x = torch.randn(2)
    later = lifted(x)
    other = tree.map(torch.zeros_like, lifted)
    assert torch.equal(other(x)(), torch.zeros(2))
    torch.testing.assert_close(later(), model.linear(x))
    steps = lifted.steps(x)
    next(steps)
    other(x)
    torch.testing.assert_close(next(steps), model.linear(model.linear(x)))


def test_checkpoint_recomputes_with_the_leaves_of_its_call() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            return checkpoint(lambda y: self.linear(y).tanh(), x, use_reentrant=False)

    model = Checkpointed()
    lifted = bridge.lift(model)
    x = torch.randn(3)
    out = lifted.reset(0)
    grads = func.grad(lambda m: m(x).sum())(lifted)
    first = out(x).sum()
    tree.map(torch.zeros_like, lifted)(x)  # another call between forward and backward
    first.backward()
    model(x).sum().backward()
    torch.testing.assert_close(grads.linear.weight, model.linear.weight.grad)
    torch.testing.assert_close(out.grad().linear.weight, model.linear.weight.grad)


def test_calls_within_calls() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor, inner: Any = None) -> Tensor:
            y = self.linear(x)
            return y + inner(x) + self.linear(x) if inner is not None else y  # type: ignore[no-any-return]  # a tensor

    model = Outer()
    lifted = bridge.lift(model)
    other = tree.map(lambda t: t + 1, lifted)
    x = torch.randn(2)
    expected = 2 * model.linear(x) + other(x)
    torch.testing.assert_close(lifted(x, inner=other), expected)


def test_no_weights_stay_behind_after_a_call() -> None:
    import gc
    import weakref

    lifted = bridge.lift(nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)), copy=True)
    alive = [weakref.ref(leaf) for leaf in tree.leaves(lifted)]
    lifted[0](torch.randn(2))
    lifted(torch.randn(3, 2))
    del lifted
    gc.collect()
    assert all(ref() is None for ref in alive)


def test_many_threads_at_once() -> None:
    model = Model().requires_grad_(False)
    lifted = bridge.lift(model)
    trees = [tree.map(lambda t, k=k: t * (1 + 0.1 * k), lifted) for k in range(4)]
    x = torch.randn(3, 4)
    expected = [module(x) for module in trees]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(30):
            wrong.extend([] if torch.equal(trees[k](x), expected[k]) else [k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_parameters_method_within_forward_sees_the_leaves() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.to(next(self.parameters()).dtype)) + len(self.state_dict())  # type: ignore[no-any-return]  # a tensor

    lifted = tree.to(bridge.lift(Asking()), dtype=torch.float64)
    assert lifted(torch.randn(2)).dtype is torch.float64


# -- randomness -----------------------------------------------------------------------------------


def test_with_an_rng_dropout_is_a_function_of_it() -> None:
    lifted = bridge.lift(nn.Sequential(nn.Linear(20, 20), nn.Dropout(0.5)))
    x = torch.randn(20)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, two, three = lifted.train(1), lifted.train(1), lifted.train(2)
    assert torch.equal(one(x), two(x)) and torch.equal(one(x), one(x))
    assert not torch.equal(one(x), three(x))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one[1](x), three[1](x))


def test_the_global_generator_is_restored_when_forward_raises() -> None:
    lifted = bridge.lift(nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))).train(0)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shapes"):
        lifted(torch.randn(3))
    torch.manual_seed(0)
    del state


def test_without_an_rng_torch_decides() -> None:
    model = nn.Dropout(0.5)
    lifted = bridge.lift(model)
    x = torch.randn(20)
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    assert torch.equal(lifted(x), expected)


def test_a_key_per_example_is_refused() -> None:
    from parallax import random

    lifted = bridge.lift(nn.Dropout(0.5))
    keys = random.split(random.key(0), 3)
    x = torch.randn(4)
    with pytest.raises(RuntimeError, match="cannot be seeded with a key per example"):
        func.vmap(lambda key: lifted.train(key)(x), randomness="different")(keys)


# -- what cannot be lifted ------------------------------------------------------------------------


def test_lazy_modules() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU())
    with pytest.raises(
        ValueError, match=r"0.weight of LazyLinear is not initialized.*model\(sample\)"
    ):
        bridge.lift(model)
    model(torch.randn(2, 4))
    torch.testing.assert_close(bridge.lift(model)(torch.ones(4)), model(torch.ones(4)))


def test_things_that_are_no_modules() -> None:
    with pytest.raises(TypeError, match=r"takes a torch.nn.Module, got int"):
        bridge.lift(3)  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(TypeError, match=r"takes a torch.nn.Module, got Linear"):
        bridge.lift(bridge.lift(nn.Linear(1, 1)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript() -> None:
    with pytest.raises(
        TypeError, match="the module is RecursiveScriptModule, a TorchScript module"
    ):
        bridge.lift(torch.jit.script(nn.Linear(1, 1)))
    traced: Any = torch.jit.trace(nn.ReLU(), torch.ones(1))
    holder = nn.Sequential(nn.Sequential(traced))
    with pytest.raises(TypeError, match=r"0.0 is .*TorchScript"):
        bridge.lift(holder)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_modules() -> None:
    from torch.ao.quantization import quantize_dynamic

    try:
        model = quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear}, dtype=torch.qint8)
    except RuntimeError:  # no quantized engine in this build
        return
    with pytest.raises(TypeError, match=r"quantized|packed"):
        bridge.lift(model)


def test_compiled_modules() -> None:
    compiled: Any = torch.compile(nn.Linear(1, 1), backend="eager")
    with pytest.raises(TypeError, match=r"OptimizedModule wraps a module.*model._orig_mod"):
        bridge.lift(compiled)


def test_a_module_that_contains_itself() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    model[0].add_module("back", model)
    with pytest.raises(ValueError, match="contains itself"):
        bridge.lift(model)


def test_what_belongs_to_mutable_modules_says_what_to_write() -> None:
    lifted = bridge.lift(nn.Linear(1, 1))
    for name, instead in {
        "parameters": r"tree.leaves\(module\)",
        "state_dict": r"bridge.state_dict\(module\)",
        "to": r"tree.to\(module",
        "register_buffer": "Lower it first",
    }.items():
        with pytest.raises(AttributeError, match=instead):
            getattr(lifted, name)
    with pytest.raises(AttributeError, match="writes into parameters"):
        _ = lifted.reset_parameters
    with pytest.raises(AttributeError, match="lifted Linear has no attribute 'wieght'"):
        _ = lifted.wieght
    with pytest.raises(KeyError, match="wieght"):
        lifted["wieght"]
    with pytest.raises(TypeError, match=r"bridge.lift makes"):
        type(lifted)()


def test_lifted_classes_do_not_accumulate() -> None:
    first = type(bridge.lift(nn.Linear(2, 3)))
    assert first is type(bridge.lift(nn.Linear(4, 5)))
    assert type(bridge.lift(Block())) is type(bridge.lift(Block()))


def test_lifting_makes_no_second_copy_of_any_weight() -> None:
    model = Model()
    lifted = bridge.lift(model)
    lifted(torch.randn(4))
    theirs = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert {leaf.data_ptr() for leaf in tree.leaves(lifted) if leaf is not None} == theirs
