"""Whatever the arguments and the input: torch's numbers where torch has any, an error where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch import nn as torch_nn

from parallax import bridge, nn
from tests.nn.parity import assert_same

DIMS = st.integers(1, 3)
MODES = st.sampled_from(["zeros", "reflect", "replicate", "circular"])
PADDINGS = st.one_of(st.integers(-1, 3), st.sampled_from(["same", "valid", "full"]))


def sizes(least: int, most: int) -> st.SearchStrategy[Any]:
    """An int for all dimensions, or as many as there may be; ``cut`` leaves one for each."""
    numbers = st.integers(least, most)
    return st.one_of(numbers, st.tuples(*[numbers] * 6))


def cut(size: Any, dims: int) -> Any:
    return size[:dims] if isinstance(size, tuple) else size


SHAPES = st.lists(st.integers(0, 6), min_size=1, max_size=5)


def assert_as_torch(name: str, arguments: tuple[Any, ...], shape: list[int]) -> None:
    """Both give the same numbers, or both refuse: at construction or when called."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    theirs = _result(lambda: getattr(torch_nn, name)(*arguments), x)
    ours = _result(lambda: _ours(name, arguments, theirs.layer), x)
    assert (ours.error is None) == (theirs.error is None), (ours.error, theirs.error)
    if ours.error is None:
        assert_same(ours.output, theirs.output)
    else:
        notes = getattr(ours.error, "__notes__", [])
        assert name in "\n".join([str(ours.error), *notes])


class Result(NamedTuple):
    layer: Any = None
    output: Any = None
    error: Exception | None = None


def _result(make: Callable[[], Any], x: Tensor) -> Result:
    layer = None
    try:
        layer = make()
        return Result(layer, layer(x))
    except (
        ArithmeticError,
        AssertionError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        return Result(layer, error=error)


def _ours(name: str, arguments: tuple[Any, ...], theirs: torch_nn.Module | None) -> Any:
    layer = getattr(nn, name)(*arguments)
    state = theirs.state_dict() if theirs is not None else {}
    return bridge.load_state_dict(layer, state) if state else layer


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@given(
    DIMS,
    st.integers(0, 4),
    st.integers(1, 4),
    sizes(1, 3),
    sizes(1, 3),
    PADDINGS,
    sizes(1, 2),
    st.integers(0, 2),
    MODES,
    SHAPES,
)
def test_convolutions(
    dims: int, channels: int, out: int, kernel: Any, stride: Any, padding: Any, dilation: Any,
    groups: int, mode: str, shape: list[int],
) -> None:  # fmt: skip
    kernel, stride, dilation = [cut(size, dims) for size in (kernel, stride, dilation)]
    arguments = (channels, out, kernel, stride, padding, dilation, groups, True, mode)
    assert_as_torch(f"Conv{dims}d", arguments, shape)
    shape = [2, channels, *shape[:dims]]
    assert_as_torch(f"Conv{dims}d", arguments, shape)


@given(DIMS, sizes(1, 3), st.none() | sizes(1, 3), sizes(-1, 2), sizes(1, 2), st.booleans(), SHAPES)
def test_pools(
    dims: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, shape: list[int]
) -> None:
    kernel, stride, padding = [cut(size, dims) for size in (kernel, stride, padding)]
    dilation = cut(dilation, dims)
    assert_as_torch(f"MaxPool{dims}d", (kernel, stride, padding, dilation, False, ceil), shape)
    assert_as_torch(f"AvgPool{dims}d", (kernel, stride, padding, ceil), shape)


@given(
    DIMS,
    sizes(-4, 4),
    st.sampled_from(["Constant", "Reflection", "Replication", "Circular"]),
    SHAPES,
)
def test_paddings(dims: int, padding: Any, kind: str, shape: list[int]) -> None:
    if kind == "Circular" and min(padding if isinstance(padding, tuple) else (padding,)) < 0:
        return  # torch returns memory as it was, for some of these: test_mirroring
    value = (0.5,) if kind == "Constant" else ()
    assert_as_torch(f"{kind}Pad{dims}d", (cut(padding, 2 * dims), *value), shape)
