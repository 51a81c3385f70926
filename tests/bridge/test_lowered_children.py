"""What is done to the modules below a lowered one acts as on torch's, or is refused."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.nn.utils import parametrize, prune

from parallax import Module, Parameter, bridge, nn

X = torch.randn(5, 4)


class Gated(Module):
    """Calls its parts, reads their tensors and constants, and has them in containers."""

    norm: nn.BatchNorm1d
    layers: tuple[nn.Linear, ...]
    heads: dict[str, nn.Linear]
    act: Module
    scale: Parameter
    rate: float = 0.5

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        for layer in self.layers:
            hidden = self.act(layer(hidden))
        width = self.layers[0].out_features
        return x + self.rate * self.heads["a"](hidden) * self.scale / width + self.layers[0].weight


class Net(Module):
    blocks: tuple[Gated, ...]
    head: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x[:4])
        return self.head(x)  # type: ignore[no-any-return]  # a tensor


class TorchGated(torch_nn.Module):
    """The same by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch_nn.BatchNorm1d(4)
        self.layers = torch_nn.ModuleList([torch_nn.Linear(4, 4), torch_nn.Linear(4, 4)])
        self.heads = torch_nn.ModuleDict({"a": torch_nn.Linear(4, 4)})
        self.act = torch_nn.ReLU()
        self.scale = torch_nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Any:
        hidden = self.norm(x)
        for layer in self.layers:
            hidden = self.act(layer(hidden))
        first: Any = self.layers[0]
        return x + 0.5 * self.heads["a"](hidden) * self.scale / 4 + first.weight


class TorchNet(torch_nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch_nn.ModuleList([TorchGated(), TorchGated()])
        self.head = torch_nn.Sequential(torch_nn.Linear(4, 4), torch_nn.Tanh(), torch_nn.Dropout())

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x[:4])
        return self.head(x)


def gated() -> Gated:
    scale: Any = Parameter((4,), torch_nn.init.ones_)
    layers = (nn.Linear(4, 4), nn.Linear(4, 4))
    return Gated(nn.BatchNorm1d(4), layers, {"a": nn.Linear(4, 4)}, nn.ReLU(), scale)


def both() -> tuple[Any, Any]:
    """A lowered model, and torch's with the same parameters."""
    tail = nn.Sequential(nn.Linear(4, 4), torch.tanh, nn.Dropout(0.5))
    model, reference = bridge.lower(Net((gated(), gated()), tail).initialize(0)), TorchNet()
    reference.load_state_dict(model.state_dict())
    return model, reference


def run(model: Any) -> Tensor:
    """One training step's output, with the draws that torch would make."""
    torch.manual_seed(0)
    out: Tensor = model(X)
    out.square().sum().backward()
    return out


def assert_alike(model: Any, reference: Any) -> None:
    torch.testing.assert_close(run(model), run(reference))
    for (name, mine), (other, theirs) in zip(
        model.named_parameters(), reference.named_parameters(), strict=True
    ):
        assert name == other
        torch.testing.assert_close(mine.grad, theirs.grad)
    for (name, mine), (other, theirs) in zip(
        model.named_buffers(), reference.named_buffers(), strict=True
    ):
        assert name == other
        torch.testing.assert_close(mine, theirs)


def test_modules_names_results_gradients_and_statistics_are_torchs() -> None:
    model, reference = both()
    assert [name for name, _ in model.named_modules()] == [
        name for name, _ in reference.named_modules()
    ]
    assert list(model.state_dict()) == list(reference.state_dict())
    for (name, mine), (_, theirs) in zip(
        list(model.named_modules())[1:], list(reference.named_modules())[1:], strict=True
    ):
        if type(theirs) not in (TorchGated, torch_nn.Tanh):  # torch.tanh is a function here
            assert isinstance(mine, type(theirs)), name
    assert_alike(model, reference)
    assert_alike(model.eval(), reference.eval())


def every_hook(model: Any, seen: list[Any]) -> None:
    """Puts hooks of all kinds on children; some change what passes by."""

    def note(kind: str, values: Any) -> None:
        seen.append((kind, [v.detach().clone() for v in values if v is not None]))

    def pre(_: Any, args: Any) -> Any:
        note("pre", args)
        return (args[0] + 1,)

    def after(_: Any, args: Any, out: Any) -> Any:
        note("forward", (*args, out))
        return out * 2

    block = model.blocks[1]
    block.layers[0].register_forward_pre_hook(pre)
    block.layers[0].register_forward_hook(after)
    block.norm.register_forward_hook(after)
    block.register_forward_hook(after)
    model.head[1].register_forward_hook(after)
    block.layers[1].register_full_backward_pre_hook(lambda _, out: note("backward pre", out))
    block.heads["a"].register_full_backward_hook(lambda _, given, out: note("backward", out))


def test_hooks_on_children_run_as_torchs_do() -> None:
    model, reference = both()
    mine: list[Any] = []
    theirs: list[Any] = []
    every_hook(model, mine)
    every_hook(reference, theirs)
    assert_alike(model, reference)
    assert len(mine) == len(theirs) == 7
    for one, two in zip(mine, theirs, strict=True):
        assert one[0] == two[0]
        torch.testing.assert_close(one[1], two[1])


def test_hooks_run_in_compiled_code(fresh_dynamo: None) -> None:
    model, reference = both()
    for net in (model.eval(), reference.eval()):
        net.blocks[1].layers[0].register_forward_hook(lambda m, args, out: out * 2)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), reference(X))


@pytest.mark.slow
def test_it_trains_on_the_default_backend_as_torchs_does(fresh_dynamo: None) -> None:
    model, reference = both()
    for net in (model, reference):
        net.head[2].p = 0.0  # inductor draws other numbers
        net.blocks[0].layers[1].register_forward_hook(lambda m, args, out: out * 2)
    torch.testing.assert_close(run(torch.compile(model, fullgraph=True)), run(reference))
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    for mine, theirs in zip(model.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_child_that_is_called_twice_runs_its_hooks_twice() -> None:
    class Twice(Module):
        layer: nn.Linear

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    model: Any = bridge.lower(Twice(nn.Linear(4, 4)).initialize(0))
    seen: list[Any] = []
    model.layer.register_forward_hook(lambda *_: seen.append(1))
    model(X)
    assert len(seen) == 2


def test_a_module_in_the_place_of_a_child_is_called() -> None:
    class Adapter(torch_nn.Module):
        def __init__(self, base: torch_nn.Linear) -> None:
            super().__init__()
            self.base, self.weight = base, base.weight
            self.down = torch_nn.Linear(4, 4, bias=False)
            torch_nn.init.constant_(self.down.weight, 0.1)
            self.out_features = base.out_features

        def forward(self, x: Tensor) -> Any:
            return self.base(x) + self.down(x)

    model, reference = both()
    for net in (model, reference):
        net.blocks[0].layers[0] = Adapter(net.blocks[0].layers[0])
        net.head[1] = torch_nn.Sigmoid()
        net.blocks[1].act = torch_nn.Tanh()
    assert_alike(model, reference)
    with pytest.raises(TypeError, match=r"'blocks\.0\.layers\.0' of a lowered Net is a Adapter"):
        bridge.lift(model)


def test_a_forward_of_a_child_is_called() -> None:
    model, reference = both()
    for net in (model, reference):
        net.blocks[0].forward = lambda x: x * 3
    torch.testing.assert_close(run(model), run(reference))


class Optional(Module):
    norm: Module | None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)


def test_a_child_that_is_none() -> None:
    model: Any = bridge.lower(Optional(nn.LayerNorm(4).initialize(0)))
    assert not torch.equal(model(X), X)
    model.norm = None
    assert torch.equal(model(X), X)
    model = bridge.lower(Optional(None))
    assert model.norm is None and torch.equal(model(X), X)
    model.norm = torch_nn.Tanh()
    assert torch.equal(model(X), X.tanh())
    del model.norm
    with pytest.raises(RuntimeError, match="Optional: 'norm' was taken out of what"):
        model(X)
    model.norm = None
    assert torch.equal(model(X), X)


def test_parametrizations_and_pruning_of_a_child() -> None:
    class Doubled(torch_nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    model, reference = both()
    for net in (model, reference):
        parametrize.register_parametrization(net.blocks[0].layers[0], "weight", Doubled())
        prune.l1_unstructured(net.blocks[1].layers[0], "weight", 0.5)
        parametrize.register_parametrization(net.blocks[1], "scale", Doubled())
    assert_alike(model, reference)
    assert (model.blocks[1].layers[0].weight == 0).sum() == 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantization() -> None:
    model, reference = both()
    quantized: list[Any] = [
        torch.ao.quantization.quantize_dynamic(net.head.eval(), {torch_nn.Linear})
        for net in (model, reference)
    ]
    assert type(quantized[0][0]).__module__ == "torch.ao.nn.quantized.dynamic.modules.linear"
    torch.testing.assert_close(quantized[0](X), quantized[1](X))


def test_batch_norms_are_converted_to_synchronised_ones() -> None:
    convert: Any = torch_nn.SyncBatchNorm.convert_sync_batchnorm
    model, reference = map(convert, both())
    assert type(model.blocks[1].norm) is torch_nn.SyncBatchNorm
    assert_alike(model.eval(), reference.eval())  # torch trains them on accelerators only

    class Own(nn.BatchNorm1d, init=False):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as in the base
            return 2 * super().forward(input)

    class Holder(Module):
        norms: tuple[Own, ...]

        def forward(self, x: Tensor) -> Tensor:
            return self.norms[0](x)

    own: Any = bridge.lower(Holder((Own(4),)).initialize(0))
    torch.testing.assert_close(
        own(X), 2 * torch.nn.functional.batch_norm(X, None, None, training=True)
    )
    with pytest.raises(TypeError, match=r"Holder\.norms\.0 is no torch\.nn\.BatchNorm, so torch"):
        torch_nn.SyncBatchNorm.convert_sync_batchnorm(own)


def test_copies_pickles_and_conversions_keep_the_children() -> None:
    model, _ = both()
    model.eval()
    want = model(X)
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)]
    for other in others:
        assert torch.equal(other(X), want)
        assert isinstance(other.blocks[0].norm, torch_nn.BatchNorm1d)
        assert type(other.head[0]) is torch_nn.Linear
    assert others[0].blocks[0].scale is not model.blocks[0].scale
    torch.testing.assert_close(others[0].double()(X.double()).float(), want)
    names: list[str] = []
    model.apply(lambda module: names.append(type(module).__name__))
    assert names.count("Linear") == 7


def test_many_threads_call_one_model() -> None:
    model, _ = both()
    model.eval()
    want, wrong = model(X), []

    def call() -> None:
        wrong.extend([1 for _ in range(20) if not torch.equal(model(X), want)])

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Nested(Module):
    inner: Module

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]  # a tensor


def test_a_deep_model_runs_as_deep_as_a_tree_may_be() -> None:
    model: Any = nn.Linear(4, 2).initialize(0)
    for _ in range(180):
        model = Nested(model)
    lowered = bridge.lower(model)
    assert torch.equal(lowered(X), model(X))
    lowered(X).sum().backward()
    assert next(lowered.parameters()).grad is not None


def test_a_tracer_sees_the_calls_of_children() -> None:
    seen: list[Any] = []
    call: Any = torch_nn.Module.__call__

    def noted(self: Any, *args: Any) -> Any:
        seen.append(self)
        return call(self, *args)

    lowered = bridge.lower(Nested(nn.Linear(4, 2)).initialize(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_nn.Module, "__call__", noted)
        lowered(X)
    assert seen == [lowered, lowered.inner]
