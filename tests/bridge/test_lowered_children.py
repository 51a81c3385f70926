"""What is done to the modules below a lowered one acts, or is refused; nothing is passed by."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn as torch_nn

from parallax import Buffer, Module, Parameter, bridge, effects, nn

X = torch.randn(3, 2)


def lowered() -> Any:
    return bridge.lower(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).initialize(0).eval())


def doubled(module: Any, args: Any, out: Any) -> Any:
    return out * 2


def nothing(*_: Any) -> None:
    return None


REGISTER = {
    "a forward hook": "register_forward_hook",
    "a forward pre-hook": "register_forward_pre_hook",
    "a backward hook": "register_full_backward_hook",
    "a backward pre-hook": "register_full_backward_pre_hook",
}


@pytest.mark.parametrize("what", REGISTER)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_hook_on_a_child_is_refused(what: str, compiled: bool, fresh_dynamo: None) -> None:
    model = lowered()
    want = model(X)
    handle = getattr(model[0], REGISTER[what])(nothing)
    call = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    with pytest.raises(Exception, match=rf"the module '0' has {what}"):
        call(X)
    handle.remove()
    assert torch.equal(model(X), want)


def test_a_hook_on_the_whole_runs() -> None:
    model = lowered()
    want = model(X)
    model.register_forward_hook(doubled)
    assert torch.equal(model(X), want * 2)


def test_a_child_that_is_called_itself_runs_its_hooks() -> None:
    model = lowered()
    want = model[0](X)
    model[0].register_forward_hook(lambda module, args, out: out + 1)
    assert torch.equal(model[0](X), want + 1)


def test_another_module_or_forward_in_the_place_of_a_child_is_refused() -> None:
    model = lowered()
    model[0].forward = nothing
    with pytest.raises(RuntimeError, match="'0' has a forward of its own"):
        model(X)
    model = lowered()
    setattr(model, "1", torch_nn.Identity())
    with pytest.raises(RuntimeError, match="'1' is a Identity now"):
        model(X)


def test_hooks_that_a_lifted_part_had_run() -> None:
    source = torch_nn.Linear(2, 2)
    source.register_forward_hook(doubled)
    model: Any = bridge.lower(nn.Sequential(bridge.lift(source)).eval())
    assert torch.equal(model(X), source(X))
    model[0].register_forward_hook(nothing)
    with pytest.raises(RuntimeError, match="'0' has a forward hook"):
        model(X)


def test_a_conversion_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Sequential\.1 is no torch\.nn\.BatchNorm.*bridge\.lift"):
        torch_nn.SyncBatchNorm.convert_sync_batchnorm(lowered())
    plain = bridge.lower(nn.Sequential(nn.Linear(2, 2)).initialize(0))
    assert torch_nn.SyncBatchNorm.convert_sync_batchnorm(plain) is plain
    native: Any = bridge.lower(bridge.lift(torch_nn.Sequential(torch_nn.BatchNorm1d(2))))
    native = torch_nn.SyncBatchNorm.convert_sync_batchnorm(native)
    assert type(native[0]) is torch_nn.SyncBatchNorm


def test_a_copy_shares_no_storage() -> None:
    module: Any = nn.Sequential(nn.Linear(2, 2)).initialize(0)
    model: Any = bridge.lower(module, copy=True)
    weight = module[0].weight.clone()
    torch.testing.assert_close(model(X), module(X))
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(module[0].weight, weight)
    model = copy.deepcopy(bridge.lower(module))
    assert torch.equal(model(X), module(X))


class Counting(Module):
    count: Buffer
    scale: Parameter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.emit(merge="last", count=self.count + 1)
        return x * self.scale


class Pair(Module):
    one: Counting
    two: Counting

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x))


def test_tied_buffers_stay_tied_when_the_model_is_converted() -> None:
    count, scale = torch.zeros(()), torch.ones(())
    pair = Pair(Counting(count, scale), Counting(count, scale))
    model: Any = bridge.lower(pair, copy=True).to(torch.float64)
    assert model.one.count is model.two.count and model.one.scale is model.two.scale
    assert [name for name, _ in model.named_buffers()] == ["one.count"]
    model(torch.ones((), dtype=torch.float64))
    after = effects.collect(lambda module, x: module(x))(pair, torch.ones(()))[1]
    assert model.two.count == after.two.count == 1
