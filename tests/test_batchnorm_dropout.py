"""The example of a pure, compiled step, against the same ``nn.Module`` fed the same noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import debug, random, tree
from parallax.examples.batchnorm_dropout import DROP, EPS, MOMENTUM, RATE, ConvNet, train_step

STEPS = 4


class MaskedDropout(nn.Module):
    """Dropout by a mask that is put in before every step."""

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask if self.training else x


class Twin(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels, EPS, MOMENTUM)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * channels, EPS, MOMENTUM)
        self.dropout = MaskedDropout()
        self.dense = nn.Linear(2 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.norm1(self.conv1(x))), 2)
        x = torch.relu(self.norm2(self.conv2(x))).mean((2, 3))
        return self.dense(self.dropout(x))  # type: ignore[no-any-return]  # an nn.Module returns Any


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    one, two = random.split(random.key(7))
    x = random.normal(one, (STEPS, 16, 1, 8, 8))
    y = random.randint(two, (STEPS, 16), 0, 10)
    return list(zip(x, y, strict=True))


def compiled(backend: str) -> Callable[..., Any]:
    return torch.compile(train_step, backend=backend, fullgraph=True)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: train_step, id="eager"),
        pytest.param(lambda: compiled("aot_eager"), id="traced"),
        pytest.param(lambda: compiled("inductor"), id="compiled", marks=pytest.mark.slow),
    ],
)
def test_every_step_is_that_of_the_nn_module_fed_the_same_noise(
    make: Callable[[], Callable[..., Any]], batches: list[tuple[Tensor, Tensor]]
) -> None:
    step = make()
    net = ConvNet().initialize(0)
    twin = Twin()
    state = {name: leaf.clone() for name, leaf in tree.named_leaves(net).items()}
    twin.load_state_dict(state, strict=False)
    optimizer = torch.optim.SGD(twin.parameters(), lr=RATE)
    key = random.key(3)
    for k, (x, y) in enumerate(batches):
        of_step = random.fold_in(key, k)
        twin.dropout.mask = random.dropout_mask(
            random.fold_in(random.clone(of_step), "dropout"), (16, 16), DROP
        )
        expected: Any = F.cross_entropy(twin(x), y)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        net, value = step(net, of_step, x, y)
        torch.testing.assert_close(value, expected.detach())
        held = tree.named_leaves(net)
        for name, theirs in twin.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(held[name], theirs, msg=f"step {k}: {name}")
    twin.eval()
    torch.testing.assert_close(net.eval()(batches[0][0]), twin(batches[0][0]))


def test_the_step_is_pure_and_the_compiled_one_repeats_itself(
    batches: list[tuple[Tensor, Tensor]],
) -> None:
    net = ConvNet().initialize(0)
    one, value = debug.pure(train_step)(net, random.key(0), *batches[0])
    _, again = train_step(net, random.key(0), *batches[0])
    assert torch.equal(value, again)
    assert not torch.equal(one.norm1.running_mean, net.norm1.running_mean)
    debug.deterministic(train_step)(net, random.key(0), *batches[0])
    debug.nans(train_step)(net, random.key(0), *batches[0])
