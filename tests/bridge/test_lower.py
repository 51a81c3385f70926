"""Lowered modules do what trees do, and all that nn.Modules can."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import Buffer, Module, Parameter, UninitializedError, bridge, func, tree
from parallax import nn as pn


class Dense(Module):
    weight: Parameter
    bias: Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class Norm(Module):
    mean: Buffer
    rate: float = 0.5

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "train":
            self.emit(mean=self.mean + self.rate * (x.detach().mean(0) - self.mean))
        return x - self.mean


class Net(Module):
    layers: tuple[Dense, ...]
    heads: dict[str, Dense]
    norm: Norm

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.heads["out"](self.norm(x))


class Noisy(Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=self.rng) if self.mode == "train" else x


def net() -> Net:
    torch.manual_seed(0)
    layers = tuple(Dense(torch.randn(4, 4), torch.randn(4)) for _ in range(2))  # type: ignore[arg-type]  # a tensor
    return Net(layers, {"out": Dense(torch.randn(2, 4), None)}, Norm(torch.zeros(4)))


def twin() -> nn.Module:
    """The same network by hand."""

    class Twin(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.out = nn.Linear(4, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))  # type: ignore[no-any-return]  # a tensor

    found = Twin()
    leaves = tree.leaves(net())
    for parameter, leaf in zip(found.parameters(), leaves, strict=False):
        parameter.data = leaf.clone()
    return found


def test_names_storage_and_result() -> None:
    module = net()
    lowered = bridge.lower(module)
    names = [
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.weight",
        "layers.1.bias",
        "heads.out.weight",
    ]
    assert [name for name, _ in lowered.named_parameters()] == names
    assert list(lowered.state_dict()) == list(bridge.state_dict(module)) == [*names, "norm.mean"]
    for name, leaf in bridge.state_dict(module).items():
        assert lowered.state_dict()[name].data_ptr() == leaf.data_ptr()
    x = torch.randn(3, 4)
    torch.testing.assert_close(lowered.eval()(x), module.eval()(x))
    torch.testing.assert_close(lowered.layers[0](x), module.layers[0](x))  # type: ignore[operator, index]  # a module
    assert "Net" in repr(lowered)


def test_lift_is_the_inverse() -> None:
    module = net().eval()
    again = bridge.lift(bridge.lower(module))
    assert type(again) is Net and tree.equal(again, module)
    assert again.mode == "eval" and bridge.lift(bridge.lower(net())).mode == "train"
    assert again.layers[0].weight.data_ptr() == module.layers[0].weight.data_ptr()


def test_trains_with_an_optimizer_as_the_same_module_by_hand() -> None:
    lowered, reference = bridge.lower(net()).eval(), twin()
    x, y = torch.randn(6, 4), torch.randn(6, 2)
    for model in (lowered, reference):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    for mine, theirs in zip(lowered.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_effects_are_written_into_buffers_in_training() -> None:
    lowered = bridge.lower(net())
    x = torch.randn(5, 4)
    with torch.no_grad():
        lowered(x)
    written = lowered.get_buffer("norm.mean").clone()
    assert not torch.equal(written, torch.zeros(4))
    lowered.eval()(x)
    assert torch.equal(lowered.get_buffer("norm.mean"), written)


def test_random_layers_follow_torchs_generator_in_training() -> None:
    class Two(Module):
        noisy: Noisy

        def forward(self, x: Tensor) -> Tensor:
            return self.noisy(x)

    lowered = bridge.lower(Two(Noisy()))
    x = torch.zeros(4)
    torch.manual_seed(0)
    one, two = lowered(x), lowered(x)
    torch.manual_seed(0)
    assert torch.equal(lowered(x), one) and not torch.equal(one, two)
    assert torch.equal(lowered.eval()(x), x)


def test_ties_and_frozen_parameters() -> None:
    weight = torch.randn(4, 4)
    module = net().replace(layers=(Dense(weight, None), Dense(weight, None)))
    lowered: Any = bridge.lower(tree.select(module, "heads.out.weight").freeze())
    assert lowered.layers[0].weight is lowered.layers[1].weight
    assert len(list(lowered.parameters())) == 2
    assert not lowered.heads.out.weight.requires_grad
    lowered.eval()(torch.randn(4)).sum().backward()
    grads = func.grad(lambda m: m.eval()(torch.ones(4)).sum())(module)
    assert grads.layers[0].weight.shape == lowered.layers[0].weight.grad.shape
    again = bridge.lift(lowered)
    assert again.layers[0].weight is again.layers[1].weight


def test_deepcopy_and_save() -> None:
    lowered = bridge.lower(net()).eval()
    x = torch.randn(3, 4)
    twin = copy.deepcopy(lowered)
    with torch.no_grad():
        next(twin.parameters()).zero_()
        assert not torch.equal(twin(x), lowered(x))
    file = io.BytesIO()
    torch.save(lowered, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), lowered(x))
    other = bridge.lower(net()).eval()
    other.load_state_dict(twin.state_dict())
    torch.testing.assert_close(other(x), twin(x))


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    lowered = bridge.lower(net()).eval()
    x = torch.randn(3, 4)
    program = torch.export.export(lowered, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), lowered(x))
    assert set(program.state_dict) == set(lowered.state_dict())


def test_functional_call_and_compile_of_a_lowered_module() -> None:
    lowered = bridge.lower(net()).eval()
    x = torch.randn(3, 4)
    zeros = {name: torch.zeros_like(p) for name, p in lowered.named_parameters()}
    out = torch.func.functional_call(lowered, zeros, (x,))
    torch.testing.assert_close(out, torch.zeros(3, 2))
    torch._dynamo.reset()
    compiled = torch.compile(lowered, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), lowered(x))


def test_a_compiled_lowered_module_writes_its_effects() -> None:
    lowered, reference = bridge.lower(net()), bridge.lower(net())
    x = torch.randn(3, 4)
    torch._dynamo.reset()
    out = torch.compile(lowered, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(out, reference(x))
    torch.testing.assert_close(lowered.get_buffer("norm.mean"), reference.get_buffer("norm.mean"))


@pytest.mark.parametrize("compiled", [False, True])
def test_each_module_has_its_own_mode(compiled: bool) -> None:
    lowered: Any = bridge.lower(pn.Sequential(pn.BatchNorm1d(4), pn.Dropout(0.5)).initialize(0))
    torch._dynamo.reset()
    run = torch.compile(lowered, backend="eager", fullgraph=True) if compiled else lowered
    x, mean = torch.rand(40, 4) + 1, lowered[0].running_mean
    lowered.eval()
    lowered[1].train()  # as one does to sample from a network
    torch.manual_seed(0)
    one, two = run(x), run(x)
    torch.manual_seed(0)
    assert torch.equal(run(x), one) and not torch.equal(one, two)
    kept = one != 0
    assert 40 < kept.sum() < 120 and torch.equal(mean, torch.zeros(4))
    torch.testing.assert_close(one[kept], 2 * x[kept] / (1 + 1e-5) ** 0.5)
    lowered.train()
    lowered[1].eval()
    torch.testing.assert_close(run(x), F.batch_norm(x, None, None, training=True))
    torch.testing.assert_close(mean, 0.1 * x.mean(0))


def test_a_network_in_training_is_exported_with_its_draws() -> None:
    lowered, x = bridge.lower(pn.Dropout(0.5)), torch.ones(100)
    program = torch.export.export(lowered, (x,), strict=False).module()
    one, two = program(x), program(x)
    assert not torch.equal(one, two) and set(one.tolist()) == {0.0, 2.0}


def test_a_lifted_module_becomes_its_class_again() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 3)).eval()
    lowered = bridge.lower(bridge.lift(model))
    assert type(lowered) is nn.Sequential and type(lowered[1]) is nn.LSTM
    x = torch.randn(4, 2)
    torch.testing.assert_close(lowered(x), model(x))
    assert lowered[0].weight.data_ptr() == model[0].weight.data_ptr()  # type: ignore[operator]  # a module
    assert lowered[0].weight is not model[0].weight
    lowered(x)[0].sum().backward()
    assert model[0].weight.grad is None and lowered[0].weight.grad is not None
    torch.export.export(copy.deepcopy(lowered[0]), (x,))


def test_a_lifted_part_of_a_tree() -> None:
    class Outer(Module):
        body: Module
        head: Dense

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    outer = Outer(bridge.lift(model), Dense(torch.randn(2, 4), None))
    lowered = bridge.lower(outer)
    x = torch.randn(5, 4)
    lowered(x)
    model(x)
    assert type(lowered.body) is nn.Sequential
    for name, value in model.state_dict().items():
        torch.testing.assert_close(lowered.state_dict()[f"body.{name}"], value)
    assert tree.equal(bridge.lift(lowered).head, outer.head)


def test_mistakes() -> None:
    with pytest.raises(TypeError, match=r"expected a parallax.Module, got a Linear, which is a"):
        bridge.lower(nn.Linear(1, 1))
    with pytest.raises(
        UninitializedError, match=r"Dense.weight is not initialized.*initialize\(rng\)"
    ):
        bridge.lower(Dense(Parameter((1, 1), nn.init.zeros_), None))
    with pytest.raises(TypeError, match=r"Dense.weight is a Parameter of torch.int64"):
        bridge.lower(Dense(torch.ones(1, 1, dtype=torch.int64), None))


# -- data parallel --------------------------------------------------------------------------------


def _train(rank: int, folder: str) -> None:
    meeting = f"file://{folder}/meeting"  # a port could be taken by the time it is used
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    try:
        torch.set_num_threads(1)
        for kind, model in _models().items():
            parallel = nn.parallel.DistributedDataParallel(model)
            x = torch.arange(24.0).view(6, 4).sin()[rank * 3 : rank * 3 + 3]
            parallel(x).square().mean().backward()
            if rank == 0:
                grads = {name: p.grad for name, p in model.named_parameters()}
                torch.save(grads, f"{folder}/{kind}.pt")
        dist.barrier()  # neither leaves while the other is still at work
    finally:
        dist.destroy_process_group()


def _models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    native = bridge.lift(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    return {"tree": bridge.lower(net()).eval(), "native": bridge.lower(native)}


def test_distributed_data_parallel_gives_the_gradients_of_one_process(tmp_path: Path) -> None:
    mp.spawn(_train, args=(str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]  # torch does not say
    for kind, model in _models().items():
        model(torch.arange(24.0).view(6, 4).sin()).square().mean().backward()
        found = torch.load(tmp_path / f"{kind}.pt")
        for name, p in model.named_parameters():
            torch.testing.assert_close(found[name], p.grad)
