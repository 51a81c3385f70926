"""Compares a layer with the layer of torch.nn that it is named after."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as torch_pytree

from parallax import Module, bridge, effects, func
from parallax import nn as parallax_nn


def both(name: str, *arguments: Any, **keywords: Any) -> tuple[Module, nn.Module]:
    """Our layer and torch's, by their common name, with the same arguments."""
    torch.manual_seed(0)
    ours: Module = getattr(parallax_nn, name)(*arguments, **keywords)
    return ours, getattr(nn, name)(*arguments, **keywords)


def assert_same(ours: Any, theirs: Any, tolerance: float = 0.0) -> None:
    """Every tensor equals its counterpart: in every bit, or within a relative tolerance."""
    left, right = _tensors(ours), _tensors(theirs)
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        assert one.dtype == two.dtype and one.shape == two.shape
        if tolerance:
            torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(one, two) or torch.equal(one.nan_to_num(), two.nan_to_num())


def assert_parity(
    ours: Module,
    theirs: nn.Module,
    *inputs: Any,
    tolerance: float = 0.0,
    mode: str = "eval",
    show: bool = True,
    **keywords: Any,
) -> Module:
    """Names, repr, outputs, gradients and effects are those of the layer of torch.nn.

    Args:
        ours: as constructed, not initialized.
        theirs: constructed with the same arguments.
        *inputs: of the call; the floating ones are differentiated, too.
        tolerance: 0 where the same kernel runs.
        mode: of both.
        show: whether the two are shown alike.
        **keywords: of the call.

    Returns:
        Our layer with the parameters of theirs.
    """
    theirs = copy.deepcopy(theirs).train(mode == "train")
    # Torch takes other kernels where weights need no gradient, as ours do outside of func.grad.
    frozen = copy.deepcopy(theirs).requires_grad_(False)
    if show:
        assert repr(ours.initialize(0)) == repr(theirs)
    assert set(bridge.state_dict(ours.initialize(0))) == set(theirs.state_dict())
    layer = bridge.load_state_dict(ours, theirs.state_dict())
    layer = layer.train() if mode == "train" else layer.eval()

    def loss(module: Module, inputs: Any) -> tuple[Tensor, Any]:
        def call(module: Module) -> Any:
            return module(*inputs, **keywords)

        out, after = effects.collect(call)(module)
        return _total(out), (out, after)

    wanted = torch_pytree.tree_map(_differentiable, inputs)
    expected = theirs(*wanted, **keywords)
    parameters = dict(theirs.named_parameters())
    if _total(expected).requires_grad:
        _total(expected).backward()
        given = torch_pytree.tree_map(_differentiable, inputs)
        if parameters:
            grads, (out, after) = func.grad(loss, has_aux=True)(layer, inputs)
            found = bridge.state_dict(grads)
            for name, parameter in parameters.items():
                reference = parameter.grad
                assert_same(
                    found[name],
                    torch.zeros_like(parameter) if reference is None else reference,
                    tolerance,
                )
            assert_same(out, expected, tolerance)
            for name, buffer in theirs.named_buffers():
                assert_same(bridge.state_dict(after)[name], buffer, tolerance)
        total, (out, _) = loss(layer, given)
        wanted = torch_pytree.tree_map(_differentiable, inputs)
        expected = frozen(*wanted, **keywords)
        if total.requires_grad:
            total.backward()
            _total(expected).backward()
        for one, two in zip(_tensors(given), _tensors(wanted), strict=True):
            assert (one.grad is None) == (two.grad is None)
            if one.grad is not None:
                assert_same(one.grad, two.grad, tolerance)
    else:
        out = loss(layer, inputs)[1][0]
    assert_same(out, expected, tolerance)
    return layer


def assert_starts_alike(name: str, *arguments: Any, **keywords: Any) -> None:
    """``assert_same_start`` of the layer that both have under one name."""
    assert_same_start(
        lambda: getattr(parallax_nn, name)(*arguments, **keywords),
        lambda: getattr(nn, name)(*arguments, **keywords),
    )


def assert_same_start(ours: Callable[[], Module], theirs: Callable[[], nn.Module]) -> None:
    """Every parameter is drawn from torch's distribution: a two-sample Kolmogorov-Smirnov test.

    Both sides are pooled over enough draws; the threshold of the statistic is that of a
    probability of 1e-6 if the distributions are the same. The seeds are fixed.
    """
    counts = {name: p.numel() for name, p in theirs().state_dict().items()}
    draws = 1 + 4000 // min([n for n in counts.values() if n] or [4000])
    torch.manual_seed(0)
    left = [bridge.state_dict(ours().initialize(seed)) for seed in range(draws)]
    right = [theirs().state_dict() for _ in range(draws)]
    for name in counts:
        one = torch.cat([state[name].flatten() for state in left]).double()
        two = torch.cat([state[name].flatten() for state in right]).double()
        _assert_one_distribution(name, one, two)


def _assert_one_distribution(name: str, one: Tensor, two: Tensor) -> None:
    if one.unique().numel() <= 2 or two.unique().numel() <= 2:  # constants
        assert torch.equal(one.unique(), two.unique()), name
        return
    every = torch.cat([one, two]).sort().values
    cdfs = [torch.searchsorted(x.sort().values, every, right=True) / x.numel() for x in (one, two)]
    distance = (cdfs[0] - cdfs[1]).abs().max()
    scale = (one.numel() * two.numel() / (one.numel() + two.numel())) ** 0.5
    assert distance * scale < 2.7, f"{name}: another distribution"


def _differentiable(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    floating = value.is_floating_point() or value.is_complex()
    return value.detach().clone().requires_grad_(floating)


def _total(value: Any) -> Tensor:
    """A loss that weighs every element differently, so that transposed gradients show."""
    total = torch.zeros((), dtype=torch.float64)
    for tensor in _tensors(value):
        if tensor.is_floating_point() or tensor.is_complex():
            wide = torch.complex128 if tensor.is_complex() else torch.float64
            weights = torch.linspace(0.5, 1.5, tensor.numel(), dtype=torch.float64)
            total = total + (tensor.to(wide).flatten() * weights).abs().sum()
    return total


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch_pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
