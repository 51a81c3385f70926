"""Every example runs from its command line; those of derivatives agree with ``torch.func``."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, func, random
from parallax.examples import (
    __main__,
    diffusion,
    ensemble,
    laplace,
    load_digits,
    maml,
    ntk,
    per_sample_gradients,
    pinn,
    ppo,
    sharpness,
)
from parallax.examples.__main__ import examples

COMPARED = [per_sample_gradients, ensemble, maml, ntk, sharpness]
PNG = b"\x89PNG\r\n\x1a\n"
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@pytest.mark.parametrize("example", COMPARED, ids=lambda e: e.__name__.rsplit(".", 1)[-1])
def test_both_ways_agree_and_ours_is_shorter(example: ModuleType) -> None:
    ours, *_, theirs = example.compare()
    torch.testing.assert_close(ours.result, theirs.result, rtol=1e-3, atol=1e-5)
    assert ours.lines < theirs.lines
    assert ours.seconds > 0 and "lines" in str(ours)


@pytest.mark.parametrize("name", sorted(examples()))
def test_it_runs_quickly_and_draws_where_asked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example = importlib.import_module(f"parallax.examples.{name}")
    with pytest.raises(SystemExit) as stopped:
        example.main(["--help"])
    described = capsys.readouterr().out
    assert stopped.value.code == 0 and "--quick" in described
    with torch.compiler.set_stance("force_eager"):
        example.main(["--quick"] + ["--picture", "drawn.png"] * ("--picture" in described))
    assert capsys.readouterr().out.count("\n") >= 1
    drawn = Path("drawn.png").read_bytes() if "--picture" in described else PNG
    assert drawn.startswith(PNG)
    assert len(list(tmp_path.iterdir())) == ("--picture" in described)  # and nothing else


def test_the_list_of_examples(capsys: pytest.CaptureFixture[str]) -> None:
    __main__.main()
    said = capsys.readouterr().out
    for name, sentence in examples().items():
        assert f"\n  {name} " in said and sentence.endswith((".", "?"))
        assert importlib.import_module(f"parallax.examples.{name}").__doc__
    assert {"pinn", "diffusion", "ppo", "lora", "laplace"} <= examples().keys()
    assert not [name for name in examples() if name.startswith("_")]


def test_private_training_learns_and_clips() -> None:
    net, accuracy = per_sample_gradients.train(30, 0)
    assert accuracy > 0.7
    x = torch.randn(8, 64) * 100
    grads = per_sample_gradients.clipped(net, x, torch.zeros(8, dtype=torch.long))
    norm = sum((g**2).sum() for g in (grads.first.weight, grads.first.bias, grads.second.weight))
    assert norm <= per_sample_gradients.CLIP**2


def test_an_ensemble_is_better_than_its_members() -> None:
    digits = load_digits()
    shares = ensemble.probabilities(ensemble.train(40), digits.test_x)
    one = (shares.argmax(-1) == digits.test_y).double().mean()
    read = shares.mean(0).argmax(-1)
    together = (read == digits.test_y).double().mean()
    assert together > one > 0.8
    torch.testing.assert_close(shares.sum(-1), torch.ones(16, len(digits.test_x)))
    unsure = ensemble.disagreement(shares)
    assert unsure[read != digits.test_y].mean() > unsure[read == digits.test_y].mean()


def test_learning_to_learn_helps() -> None:
    tasks = maml.sample_tasks(random.key(1), 100)
    before = maml.meta_loss(maml.Net().initialize(0), *tasks)
    assert maml.meta_loss(maml.train(60, 0), *tasks) < 0.8 * before


def test_kernel_without_jacobians_is_the_kernel() -> None:
    one, products, _ = ntk.compare()
    torch.testing.assert_close(one.result, products.result, rtol=1e-3, atol=1e-4)


def test_sharpness_is_the_largest_eigenvalue() -> None:
    net = per_sample_gradients.Net(2).initialize(0)
    # Power iteration wants a gap below the largest eigenvalue, which other numbers may not have.
    x, y = torch.randn(16, 64, generator=torch.Generator().manual_seed(3)), torch.arange(16) % 10
    found = sharpness.sharpness(net, x, y)
    matrix = func.hessian_matrix(lambda net: sharpness.loss(net, x, y))(net)
    largest = torch.linalg.eigvalsh(matrix).abs().max()
    torch.testing.assert_close(found.abs(), largest, rtol=1e-3, atol=0.0)


def test_the_residual_is_zero_for_the_solution_and_training_approaches_it() -> None:
    class Exact(Module):
        """What the network has to learn: the solution, without what holds by construction."""

        def forward(self, tx: Tensor) -> Tensor:
            t, x = tx
            initial = torch.sin(torch.pi * x)
            out: Tensor = (pinn.solution(t, x) - initial) / (t * x * (1 - x))
            return out[None]

    t, x = torch.rand(2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inner = 0.1 + 0.8 * x
    exact_net: Any = Exact()
    assert pinn.residual_loss(exact_net, 0.1 + t, inner) < 1e-20
    *_, (net, _) = pinn.train(60, 0)
    found, exact = pinn.field(net, 9)
    assert (found - exact).abs().max() < 0.2
    assert (found[0] - exact[0]).abs().max() < 1e-6  # by construction


def test_a_step_of_the_cart_is_gyms() -> None:
    """Numbers of CartPole-v1, by its equations written out for one environment."""
    state = torch.tensor([[0.1, -0.2, 0.05, 0.3]]).expand(ppo.ENVIRONMENTS, 4)
    world = ppo.World(state, torch.zeros(ppo.ENVIRONMENTS))
    after, fallen, late = ppo.advanced(world, torch.ones(ppo.ENVIRONMENTS), random.key(0))
    x, v, angle, spin = state[0].tolist()
    sin, cos = math.sin(angle), math.cos(angle)
    push = (10 + 0.05 * spin**2 * sin) / 1.1
    twist = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    pull = push - 0.05 * twist * cos / 1.1
    expected = [x + 0.02 * v, v + 0.02 * pull, angle + 0.02 * spin, spin + 0.02 * twist]
    torch.testing.assert_close(after.state[0], torch.tensor(expected))
    assert not fallen.any() and not late.any() and bool((after.age == 1).all())
    tilted = ppo.World(state * torch.tensor([1.0, 1.0, 5.0, 1.0]), world.age)
    after, fallen, _ = ppo.advanced(tilted, torch.ones(ppo.ENVIRONMENTS), random.key(0))
    assert fallen.all() and bool((after.age == 0).all()) and after.state.abs().max() <= 0.05


def test_an_agent_learns_to_balance() -> None:
    lengths = [length for _, length in ppo.train(4, 0)]
    assert lengths[-1] > 2 * lengths[0]


def test_laplace_is_less_sure_where_no_data_is() -> None:
    x, y = laplace.sample_data(random.key(0))
    assert len(x) == 80 and x.abs().min() >= 1
    net = laplace.train(x, y, steps=100, seed=0)
    _, std = laplace.laplace(net, x, torch.tensor([[2.0], [0.0]]))
    assert std[1] > 2 * std[0]


def test_noise_is_mixed_in_and_the_loss_of_a_denoiser_falls() -> None:
    images, noise = torch.ones(2, 3), torch.zeros(2, 3)
    mixed = diffusion.mixed(images, noise, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(mixed, torch.tensor([[1.0] * 3, [0.0] * 3]))
    with torch.compiler.set_stance("force_eager"):
        _, first = diffusion.train(1, 0, backend="eager")
        net, loss = diffusion.train(80, 0, backend="eager")
    assert loss < 0.8 * first
    drawn = diffusion.sample(net, torch.arange(3), random.key(0), steps=3)
    assert drawn.shape == (3, 64) and drawn.min() >= 0 and drawn.max() <= 1
    assert drawn.equal(diffusion.sample(net, torch.arange(3), random.key(0), steps=3))
