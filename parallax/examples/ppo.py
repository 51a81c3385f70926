"""Proximal policy optimisation on a vectorised CartPole, environment and agent in plain torch.

All environments advance at once, as tensors. What is random is drawn from keys: the same seed
repeats a run exactly.

Source: J. Schulman et al., "Proximal policy optimization algorithms", 2017; the cart and pole by
A. Barto, R. Sutton, C. Anderson, 1983, with the constants of OpenAI Gym's CartPole-v1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from parallax import Module, func, nn, optim, random
from parallax.examples._command import command_line, run_quietly
from parallax.examples._figures import new_figure, save_figure
from parallax.examples._progress import progress

ENVIRONMENTS, STEPS, LIMIT = 64, 128, 500
DISCOUNT, TRACE, CLIP, ENTROPY = 0.99, 0.95, 0.2, 0.01
EPOCHS, BATCHES, RATE, LARGEST_NORM = 4, 8, 2.5e-3, 0.5


class World(NamedTuple):
    """The state of every environment: position, speed, angle, its speed; and the steps so far."""

    state: Tensor
    age: Tensor


def started(key: random.Key) -> World:
    """New episodes."""
    return World(random.uniform(key, (ENVIRONMENTS, 4)) * 0.1 - 0.05, torch.zeros(ENVIRONMENTS))


def advanced(world: World, action: Tensor, key: random.Key) -> tuple[World, Tensor, Tensor]:
    """A step of 0.02 s in every environment.

    Args:
        world: the state.
        action: 0 pushes to the left, 1 to the right.
        key: of the episodes that start where others end.

    Returns:
        The state after it, which episodes the pole ended, and which the limit of steps.
    """
    _, v, angle, spin = world.state.unbind(1)
    force = 20.0 * action - 10.0
    sin, cos = angle.sin(), angle.cos()
    push = (force + 0.05 * spin**2 * sin) / 1.1
    twist = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    pull = push - 0.05 * twist * cos / 1.1
    state = world.state + 0.02 * torch.stack([v, pull, spin, twist], 1)
    fallen = (state[:, 0].abs() > 2.4) | (state[:, 2].abs() > 0.2095)
    late = ~fallen & (world.age + 1 >= LIMIT)
    over, new = fallen | late, started(key)
    return (
        World(torch.where(over[:, None], new.state, state), torch.where(over, 0, world.age + 1)),
        fallen,
        late,
    )


class Agent(Module):
    """A policy and a value function."""

    policy: nn.MLP
    value: nn.MLP

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.MLP((4, 64, 64, 2), torch.tanh)
        self.value = nn.MLP((4, 64, 64, 1), torch.tanh)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probabilities of the actions, and the value."""
        return self.policy(state).log_softmax(-1), self.value(state).squeeze(-1)


class Rollout(NamedTuple):
    """What happened, each of shape (steps, environments) and more."""

    state: Tensor
    action: Tensor
    log_probability: Tensor
    advantage: Tensor
    target: Tensor


def rollout(agent: Agent, world: World, key: random.Key) -> tuple[World, Rollout, float]:
    """Plays, and estimates advantages (GAE); also the mean length of the episodes that ended."""
    rows, lengths = [], []
    with torch.no_grad():
        for step in range(STEPS):
            act, begin = random.split(random.fold_in(key, step))
            log_probabilities, value = agent(world.state)
            action = random.categorical(act, log_probabilities)
            chosen = log_probabilities.gather(1, action[:, None]).squeeze(1)
            after, fallen, late = advanced(world, action, begin)
            lengths.append((world.age + 1)[fallen | late])
            rows.append((world.state, action, chosen, value, fallen, late))
            world = after
        state, action, chosen, value, fallen, late = map(torch.stack, zip(*rows, strict=True))
        following = torch.cat([value[1:], agent(world.state)[1][None]])
        # An episode that met the limit goes on elsewhere: its own value stands for what follows.
        following = torch.where(late, value, following) * ~fallen
        delta = 1 + DISCOUNT * following - value
        advantage, running = torch.zeros_like(delta), torch.zeros(ENVIRONMENTS)
        for step in reversed(range(STEPS)):
            goes_on = ~(fallen | late)[step]
            running = delta[step] + DISCOUNT * TRACE * goes_on * running
            advantage[step] = running
    ended = torch.cat(lengths)
    length = ended.mean().item() if len(ended) else float(LIMIT)
    return world, Rollout(state, action, chosen, advantage, advantage + value), length


def ppo_loss(agent: Agent, seen: Rollout) -> Tensor:
    """The clipped objective, the error of the value, and the entropy."""
    log_probabilities, value = agent(seen.state)
    chosen = log_probabilities.gather(1, seen.action[:, None]).squeeze(1)
    ratio = (chosen - seen.log_probability).exp()
    advantage = (seen.advantage - seen.advantage.mean()) / (seen.advantage.std() + 1e-8)
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    value_loss = 0.5 * (value - seen.target).square().mean()
    return value_loss - objective.mean() - ENTROPY * entropy.mean()


def train(iterations: int, seed: int) -> Iterator[tuple[Agent, float]]:
    """Plays and learns in turn; yields the agent, and the mean length of the episodes before it."""
    key = random.key(seed)
    agent = Agent().initialize(random.fold_in(key, "agent"))
    adam = optim.chain(optim.ClipNorm(LARGEST_NORM), optim.Adam(lr=RATE))
    state, world = adam.init(agent), started(random.fold_in(key, "world"))
    for iteration in range(iterations):
        play, learn = random.split(random.fold_in(key, iteration))
        world, seen, length = rollout(agent, world, play)
        seen = Rollout(*(part.flatten(0, 1) for part in seen))
        for epoch in range(EPOCHS):
            order = random.permutation(random.fold_in(learn, epoch), len(seen.state))
            for batch in order.chunk(BATCHES):
                part = Rollout(*(part[batch] for part in seen))
                agent, state = adam.step(agent, func.grad(ppo_loss)(agent, part), state)
        yield agent, length


def main(arguments: Sequence[str] | None = None) -> None:
    """Learn, and say how long the pole stays up."""
    asked = command_line(__file__, __doc__, "the length of the episodes").parse_args(arguments)
    iterations = 2 if asked.quick else 30
    lengths = [n for _, n in progress(train(iterations, asked.seed), iterations, "iterations")]
    print(f"an episode ends when the pole falls, or after {LIMIT} steps")
    for iteration in sorted({0, iterations // 4, iterations // 2, iterations - 1}):
        bar = "#" * round(lengths[iteration] / 10)
        print(f"iteration {iteration + 1:3}: {lengths[iteration]:5.0f} steps {bar}")
    if asked.picture:
        figure = new_figure(6, 4)
        axes = figure.add_subplot()
        axes.plot(range(1, iterations + 1), lengths)
        axes.set(xlabel="iteration", ylabel="mean length of an episode", ylim=(0, LIMIT * 1.05))
        save_figure(figure, asked.picture)


if __name__ == "__main__":
    sys.exit(run_quietly(main))
