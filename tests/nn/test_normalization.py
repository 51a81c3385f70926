"""Normalisation within an example is torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn

import parallax
from parallax import Module, func, nn
from tests.nn.parity import assert_parity, assert_same_start

REAL = [torch.float32, torch.float64, torch.bfloat16]
every_real = pytest.mark.parametrize("dtype", REAL, ids=str)


@every_real
@pytest.mark.parametrize(
    "arguments",
    [{}, {"eps": 0.1}, {"bias": False}, {"elementwise_affine": False}],
    ids=str,
)
@pytest.mark.parametrize(
    ("size", "shape"), [(3, (5, 3)), ((5, 3), (5, 3)), ([1], (2, 7, 1)), (3, (0, 3))], ids=str
)
def test_layer_norm(
    size: Any, shape: tuple[int, ...], arguments: dict[str, Any], dtype: torch.dtype
) -> None:
    ours = nn.LayerNorm(size, dtype=dtype, **arguments)
    theirs = torch_nn.LayerNorm(size, dtype=dtype, **arguments)
    assert_parity(ours, theirs, torch.randn(shape, dtype=dtype))


@pytest.mark.parametrize("dtype", [*REAL, torch.complex64], ids=str)
@pytest.mark.parametrize("arguments", [{}, {"eps": 0.1}, {"elementwise_affine": False}], ids=str)
@pytest.mark.parametrize(
    ("size", "shape"), [(3, (5, 3)), ((5, 3), (5, 3)), (1, (2, 7, 1)), (3, (0, 3))], ids=str
)
def test_rms_norm(
    size: Any, shape: tuple[int, ...], arguments: dict[str, Any], dtype: torch.dtype
) -> None:
    ours = nn.RMSNorm(size, dtype=dtype, **arguments)
    theirs = torch_nn.RMSNorm(size, dtype=dtype, **arguments)
    assert_parity(ours, theirs, torch.randn(shape, dtype=dtype))


@every_real
@pytest.mark.parametrize("arguments", [{}, {"eps": 0.1}, {"bias": False}, {"affine": False}])
@pytest.mark.parametrize("shape", [(5, 6), (2, 6, 1), (1, 6, 3, 5)], ids=str)
def test_group_norm(shape: tuple[int, ...], arguments: dict[str, Any], dtype: torch.dtype) -> None:
    ours = nn.GroupNorm(3, 6, dtype=dtype, **arguments)
    theirs = torch_nn.GroupNorm(3, 6, dtype=dtype, **arguments)
    assert_parity(ours, theirs, torch.randn(shape, dtype=dtype))


@every_real
@pytest.mark.parametrize("arguments", [(1,), (2, 0.5), (5, 1e-2, 0.5, 2.0), (9,)], ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 3), (1, 6, 3, 5), (2, 5, 1, 3, 2), (0, 6, 3)], ids=str)
def test_local_response_norm(
    shape: tuple[int, ...], arguments: tuple[Any, ...], dtype: torch.dtype
) -> None:
    ours, theirs = nn.LocalResponseNorm(*arguments), torch_nn.LocalResponseNorm(*arguments)
    assert repr(ours) == repr(theirs)
    x = torch.randn(shape, dtype=dtype).requires_grad_()
    # torch's pools only three-dimensional inputs of low precision.
    low = dtype is torch.bfloat16 and len(shape) > 3
    out, expected = ours(x), theirs(x.flatten(2)).view(shape) if low else theirs(x)
    assert torch.equal(out, expected)
    grads = [torch.autograd.grad((y * y).sum(), x)[0] for y in (out, expected)]
    assert torch.equal(*grads)


def test_they_start_where_torchs_do() -> None:
    assert_same_start(lambda: nn.LayerNorm(5), lambda: torch_nn.LayerNorm(5))
    assert_same_start(lambda: nn.RMSNorm(5), lambda: torch_nn.RMSNorm(5))
    assert_same_start(lambda: nn.GroupNorm(2, 6), lambda: torch_nn.GroupNorm(2, 6))


def derivatives(layer: Any, x: Tensor, along: Tensor) -> Any:
    """Forward derivatives of first and second order, mapped and of a gradient."""

    def loss(x: Tensor) -> Any:
        return layer(x).pow(3).sum()

    def derivative(x: Tensor) -> Any:
        return func.jvp(layer, (x,), (along,))[1]

    both = torch.stack([x, along])
    return (
        derivative(x),
        func.jvp(derivative, (x,), (along,))[1],
        func.jvp(func.grad(loss), (x,), (along,))[1],
        func.vmap(derivative)(both)[1],
        func.jacfwd(layer)(x),
    )


def differences(layer: Any, x: Tensor, along: Tensor) -> Any:
    """As ``derivatives``, of a layer of torch's."""
    h = 1e-4

    def derivative(x: Tensor) -> Any:
        return (layer(x + h * along) - layer(x - h * along)) / (2 * h)

    def gradient(x: Tensor) -> Any:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(layer(x).pow(3).sum(), x)[0]

    second = (layer(x + h * along) - 2 * layer(x) + layer(x - h * along)) / h**2
    of_gradient = (gradient(x + h * along) - gradient(x - h * along)) / (2 * h)
    jacobian = torch.autograd.functional.jacobian(layer, x)
    return derivative(x), second, of_gradient, derivative(along), jacobian


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("LayerNorm", (5,)),
        ("GroupNorm", (2, 4)),
        pytest.param("RMSNorm", (5,), marks=pytest.mark.slow),
        pytest.param("BatchNorm1d", (4, 1e-5, 0.1, True, False), marks=pytest.mark.slow),
        pytest.param("InstanceNorm1d", (4, 1e-5, 0.1, True), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_forward_derivatives_in_compiled_code(name: str, arguments: Any) -> None:
    """Also at a view, here a row of another tensor."""
    x, along = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    ours = getattr(nn, name)(*arguments, dtype=torch.float64).initialize(0)
    theirs = getattr(torch_nn, name)(*arguments, dtype=torch.float64)
    found = parallax.compile(derivatives, backend="aot_eager")(ours, x, along)
    torch.testing.assert_close(found, differences(theirs, x, along), rtol=1e-5, atol=1e-5)


class Net(Module):
    """Holds a layer, so that an error has a path to name."""

    layers: tuple[Module, ...]

    def forward(self, x: Any) -> Any:
        return self.layers[0](x)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.LayerNorm((5, 3)), (3, 5), r"\(\*, 5, 3\), got \(3, 5\)"),
        (nn.LayerNorm(3, elementwise_affine=False), (4,), r"\(\*, 3\), got \(4,\)"),
        (nn.RMSNorm(3), (2, 4), r"\(\*, 3\), got \(2, 4\)"),
        (nn.RMSNorm(3, elementwise_affine=False), (2, 1), r"\(\*, 3\), got \(2, 1\)"),
        (nn.GroupNorm(2, 4), (4,), r"\(N, 4, \*\), got \(4,\)"),
        (nn.GroupNorm(2, 4), (5, 8, 2), r"\(N, 4, \*\), got \(5, 8, 2\)"),
        (nn.GroupNorm(2, 4, affine=False), (5, 8, 2), r"\(N, 4, \*\), got \(5, 8, 2\)"),
        (nn.GroupNorm(2, 4, affine=False), (5,), r"\(N, 4, \*\), got \(5,\)"),
        (nn.LocalResponseNorm(2), (5, 8), r"\(N, C, \*\) with at least .*, got \(5, 8\)"),
    ],
    ids=repr,
)
def test_a_misfit_names_the_path_and_the_shape(
    layer: Module, shape: tuple[int, ...], expected: str
) -> None:
    net = Net((layer,))
    if list(layer.modules()) and getattr(layer, "weight", None) is not None:
        net = net.initialize(0)
    name = type(layer).__name__
    with pytest.raises(
        ValueError, match=rf"^Net\.layers\.0 \({name}\): expected input of shape {expected}$"
    ):
        net(torch.ones(shape))
    with pytest.raises(TypeError, match=r"input must be a tensor, got list"):
        net([1.0])


def test_a_group_of_one_value_has_no_statistics() -> None:
    with pytest.raises(ValueError, match=r"^GroupNorm: expected more than one value per group"):
        nn.GroupNorm(4, 4, affine=False)(torch.ones(1, 4, 1))


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("LayerNorm", (0,), ValueError, r"LayerNorm\(normalized_shape=\): .* at least 1"),
        ("LayerNorm", ([],), ValueError, r"LayerNorm\(normalized_shape=\)"),
        ("LayerNorm", (2.0,), TypeError, r"LayerNorm\(normalized_shape=\): .* int or ints"),
        (
            "LayerNorm",
            (
                2,
                "x",
            ),
            TypeError,
            r"LayerNorm\(eps=\): expected a number",
        ),
        ("RMSNorm", ("ab",), TypeError, r"RMSNorm\(normalized_shape=\)"),
        (
            "RMSNorm",
            (
                2,
                -1.0,
            ),
            ValueError,
            r"RMSNorm\(eps=\)",
        ),
        (
            "GroupNorm",
            (
                3,
                4,
            ),
            ValueError,
            r"GroupNorm\(num_channels=\): .* into 3 groups",
        ),
        (
            "GroupNorm",
            (
                0,
                4,
            ),
            ValueError,
            r"GroupNorm\(num_groups=\): must be at least 1",
        ),
        ("LocalResponseNorm", (0,), ValueError, r"LocalResponseNorm\(size=\)"),
        (
            "LocalResponseNorm",
            (
                2,
                "a",
            ),
            TypeError,
            r"LocalResponseNorm\(alpha=\)",
        ),
    ],
)
def test_arguments_out_of_range_fail_at_construction(
    name: str, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(nn, name)(*arguments)
