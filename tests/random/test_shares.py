"""A part of a leaf is drawn as a part of the whole would be."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parallax.random import shares
from parallax.random.shares import Share, drawn_in_pieces, share_of


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "PIECE", 64)


def share(starts: tuple[int, ...], shape: tuple[int, ...]) -> Share:
    return Share(starts, shape, Tensor.clone, Tensor.clone)


SHARES: dict[Any, Any] = {
    (37, 5): [((0, 0), (37, 5)), ((18, 1), (19, 2))],
    (16, 16): [((8, 0), (8, 16)), ((0, 8), (16, 8))],
    (3, 1001): [((1, 500), (1, 501)), ((2, 0), (1, 1))],
    (1000,): [((250,), (250,)), ((999,), (1,))],
    (7, 2, 3): [((0, 0, 0), (1, 2, 3)), ((6, 1, 1), (1, 1, 2))],
}
DTYPES: list[Any] = [(torch.float32,) * 2, (torch.float64,) * 2, (torch.float32, torch.bfloat16)]


def _shifted(tensor: Tensor, generator: Any = None) -> Tensor:
    return tensor.normal_(generator=generator).mul_(3).add_(1).clamp_(-2, 2)


@pytest.mark.parametrize(
    "fill",
    [
        nn.init.uniform_, nn.init.normal_, partial(nn.init.normal_, mean=1.0, std=0.02),
        nn.init.zeros_, nn.init.ones_, partial(nn.init.constant_, val=3.0), _shifted,
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", SHARES)
@pytest.mark.parametrize(("drawn", "final"), DTYPES)
def test_numbers_are_those_of_the_whole(fill: Any, shape: Any, drawn: Any, final: Any) -> None:
    draws = fill not in (nn.init.zeros_, nn.init.ones_) and "constant" not in str(fill)

    def seeded(tensor: Tensor) -> Any:
        return fill(tensor, generator=generator) if draws else fill(tensor)

    for starts, sizes in SHARES[shape]:
        generator = torch.Generator().manual_seed(5)
        whole = seeded(torch.empty(shape, dtype=drawn)).to(final)
        generator = torch.Generator().manual_seed(5)
        found = drawn_in_pieces(seeded, shape, drawn, final, share(starts, sizes))
        assert found is not None
        assert torch.equal(found, share_of(whole, share(starts, sizes)))


def _by_numpy(tensor: Tensor) -> Tensor:
    tensor.normal_()
    tensor.numpy()[:] = np.ones(tensor.shape)
    return tensor.mul_(2)


def _looks(tensor: Tensor) -> Tensor:
    return tensor.normal_().mul_(tensor.max())


@pytest.mark.parametrize(
    "fill",
    [
        nn.init.trunc_normal_, nn.init.orthogonal_, nn.init.eye_, _by_numpy, _looks,
        lambda t: nn.init.trunc_normal_(t).mul_(0.5),  # does nothing on the meta device
        lambda t: t.normal_().uniform_(),  # draws twice
        lambda t: t.mul_(2),  # goes by what was there
        lambda t: t.normal_() + 1,
        lambda t: t[0].normal_(),
        lambda t: t.bernoulli_(0.5),  # draws in blocks
    ],
)  # fmt: skip
def test_what_needs_the_whole_is_not_drawn_in_pieces(fill: Any) -> None:
    kept = share((0, 0), (8, 16))
    assert drawn_in_pieces(fill, (16, 16), torch.float32, torch.float32, kept) is None
