"""to, zeros_like, size and nbytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallax import Module, random, tree
from parallax.core.fields import UninitializedError
from parallax.random import Key
from tests.corpus import MLP, MODULES, TWINS, Case, Dense, Norm, Precisions


@pytest.mark.parametrize("case", TWINS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_cast_is_torch_s(case: Case, dtype: torch.dtype) -> None:
    module = case.make()
    expected = case.twin(module).to(dtype).state_dict()
    made = tree.named_leaves(tree.to(module, dtype=dtype))
    for path, leaf in made.items():
        assert torch.equal(leaf, expected[path])
        assert leaf.dtype == expected[path].dtype


def test_complex_leaves_keep_their_imaginary_part() -> None:
    made = tree.to(Precisions().initialize(0), dtype=torch.float64)
    assert made.spectrum.dtype == torch.complex128
    assert made.half.dtype == made.single.dtype == torch.float64
    assert made.flags.dtype == torch.bool
    assert made.counts.dtype == torch.int32


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_everything_moves_and_a_tree_that_fits_is_shared(case: Case) -> None:
    module = case.make()
    moved = tree.to(module, "meta")
    assert {leaf.device.type for leaf in tree.leaves(moved)} <= {"meta"}
    assert tree.structure(moved) == tree.structure(module)
    same = tree.to(module, "cpu")
    assert all(a is b for a, b in zip(tree.leaves(same), tree.leaves(module), strict=True))


class Noisy(Module):
    """A key as a field."""

    key: Key
    inner: Dense


def test_keys_neither_move_nor_change() -> None:
    module = Noisy(random.key(0), Dense()).initialize(0)
    moved: Any = tree.to({"m": module, "k": random.key(1)}, "meta", torch.float64)
    assert moved["m"].key.data is module.key.data
    assert moved["k"].data.device.type == "cpu"
    assert moved["m"].inner.weight.device.type == "meta"
    assert tree.zeros_like(module).key.data is module.key.data
    assert tree.scale(module, 2).key.data is module.key.data


def test_declarations_are_cast_but_not_moved() -> None:
    declared = tree.to(Norm(), dtype=torch.float64)
    module = declared.initialize(0)
    assert module.weight.dtype == torch.float64
    assert module.num_batches_tracked.dtype == torch.int64
    with pytest.raises(UninitializedError, match=r"Norm.weight .*initialize\(rng, device='meta'\)"):
        tree.to(Norm(), "meta")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"dtype": "float32"}, TypeError, "expected a floating or complex dtype .*'float32'"),
        ({"dtype": torch.int32}, TypeError, "integer leaves are never cast"),
        ({"device": "nowhere"}, ValueError, "got 'nowhere', and there is no such device here"),
        ({"device": torch.float16}, TypeError, r"write tree.to\(tree, dtype=torch.float16\)"),
        ({"device": "cuda:99"}, ValueError, "no such device here"),
    ],
)
def test_unknown_dtypes_and_devices_are_refused(arguments: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        tree.to(Dense().initialize(0), **arguments)


def test_a_cast_is_differentiable() -> None:
    def loss(module: Any) -> Any:
        return tree.norm(tree.to(module, dtype=torch.float64))

    module = Dense().initialize(0)
    grads: Any = torch.func.grad(loss)(module)
    assert grads.weight.dtype == torch.float32
    torch.testing.assert_close(tree.norm(grads), torch.tensor(1.0))


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_zeros_have_the_shapes_and_dtypes_of_the_leaves(case: Case) -> None:
    module = case.make()
    zeros = tree.zeros_like(module)
    for path, leaf in tree.named_leaves(module).items():
        zero = tree.named_leaves(zeros)[path]
        if leaf.is_floating_point() or leaf.is_complex():
            assert torch.equal(zero, torch.zeros_like(leaf))
        else:
            assert zero is leaf


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_size_and_bytes_are_the_sums_over_torch_s_parameters_and_buffers(case: Case) -> None:
    module = case.make()
    twin = case.twin(module)
    held = [*twin.parameters(), *twin.buffers()]
    assert tree.size(module) == sum(leaf.numel() for leaf in held)
    assert tree.nbytes(module) == sum(leaf.numel() * leaf.element_size() for leaf in held)
    assert tree.size(case.declare()) == tree.size(module)
    assert tree.nbytes(case.declare()) == tree.nbytes(module)


def test_leaves_that_are_no_tensors_count_nothing() -> None:
    assert tree.size({"a": 3, "b": None, "m": MLP(bias=False)}) == 32
