"""Lifting: what a tree mirrors, what fits together, what cannot be lifted."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallax import Module, bridge, func, tree
from tests.bridge.models import Block, Model


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


def test_copy_shares_or_not() -> None:
    linear = nn.Linear(2, 2)
    assert bridge.lift(linear).weight.data_ptr() == linear.weight.data_ptr()
    apart = bridge.lift(linear, copy=True)
    assert apart.weight.data_ptr() != linear.weight.data_ptr()
    assert torch.equal(apart.weight, linear.weight)
    assert not bridge.lift(linear).weight.requires_grad


def test_lifting_makes_no_second_copy_of_any_weight() -> None:
    model = Model()
    lifted = bridge.lift(model)
    lifted(torch.randn(4))
    theirs = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert {leaf.data_ptr() for leaf in tree.leaves(lifted) if leaf is not None} == theirs


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


def test_lifted_classes_do_not_accumulate() -> None:
    first = type(bridge.lift(nn.Linear(2, 3)))
    assert first is type(bridge.lift(nn.Linear(4, 5)))
    assert type(bridge.lift(Block())) is type(bridge.lift(Block()))


def test_things_that_are_no_modules() -> None:
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got 3"):
        bridge.lift(3)  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got a Linear"):
        bridge.lift(bridge.lift(nn.Linear(1, 1)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_torchscript() -> None:
    with pytest.raises(
        TypeError, match="the module is RecursiveScriptModule, a TorchScript module"
    ):
        bridge.lift(torch.jit.script(nn.Linear(1, 1)))
    traced: Any = torch.jit.trace(nn.ReLU(), torch.ones(1))
    holder = nn.Sequential(nn.Sequential(traced))
    with pytest.raises(TypeError, match=r"0.0 is .*TorchScript"):
        bridge.lift(holder)


def test_attributes_in_slots_are_out_of_sight() -> None:
    class Slotted(nn.Linear):
        __slots__ = ("scale",)

    with pytest.raises(TypeError, match="0 is Slotted, whose class keeps 'scale' in __slots__"):
        bridge.lift(nn.Sequential(Slotted(1, 1)))


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


def test_a_module_compiled_in_place_is_lifted_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).requires_grad_(False)
    model.compile(backend="eager")
    lifted, x = bridge.lift(model), torch.randn(2)
    assert torch.equal(lifted(x), model[0](x))
    zeros = tree.map(torch.zeros_like, lifted)
    assert torch.equal(zeros(x), torch.zeros(2))
    assert torch.equal(bridge.lower(zeros)(x), torch.zeros(2))


def test_a_torch_module_in_a_field_is_refused_with_the_line_that_lifts_it() -> None:
    class Constant(Module):
        rate: float

    class Child(Module):
        body: Module

    hint = r"bridge.lift\(...\) of it"
    with pytest.raises(TypeError, match=f"Constant.rate was given Linear.*{hint}"):
        Constant(nn.Linear(1, 1))  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(TypeError, match=f"Child.body was given Linear.*{hint}"):
        Child(nn.Linear(1, 1))  # type: ignore[arg-type]  # as above
    linear = nn.Linear(1, 1)
    held: Any = Child(bridge.lift(linear)).body
    assert torch.equal(held.weight, linear.weight)


def test_a_torch_module_as_an_annotation_is_refused_with_the_line_that_lifts_it() -> None:
    def declare() -> type:
        class Annotated(Module):
            body: nn.Linear

        return Annotated

    with pytest.raises(TypeError, match=r"a mutable torch.nn.Module.*bridge.lift\(...\) of it"):
        declare()


def test_classes_of_lifted_modules_are_freed() -> None:
    def define() -> weakref.ref[type]:
        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = torch.nn.Linear(2, 2)

            def forward(self, x: Tensor) -> Any:
                return self.linear(x)

        bridge.lift(Net())(torch.ones(1, 2))
        return weakref.ref(Net)

    classes = [define() for _ in range(60)]
    gc.collect()
    assert sum(ref() is not None for ref in classes) <= 20
