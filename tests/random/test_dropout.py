"""The original's ``Dropout`` in its second form, with keys, within the original's network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import random, tree

EXAMPLE = (Path(__file__).parents[1] / "original.txt").read_text()
HEAD, LOOP = EXAMPLE.split("for i in range(10):")
BY_STATE = """\
        state = self.rng

        # Pretend torch is pure.
        torch.random.set_rng_state(self.rng)
        out = torch.nn.functional.dropout(input, p=self.rate,
                                          training=self.mode == "train")
        #
        return out
"""
BY_KEY = """\
        if self.mode != "train":
            return input
        return input * random.dropout_mask(self.rng, input.shape, self.rate)
"""


@pytest.fixture
def space() -> dict[str, Any]:
    assert EXAMPLE.count(BY_STATE) == 1
    source = HEAD.replace(BY_STATE, BY_KEY).replace("torch.random.get_rng_state()", "random.key(0)")
    space: dict[str, Any] = {"random": random, "__name__": "second_form"}
    exec(compile(source, "second_form.py", "exec"), space)
    return space


def test_the_loop_runs_with_keys_and_leaves_the_global_state_alone(space: dict[str, Any]) -> None:
    before = torch.random.get_rng_state()
    loop = LOOP.replace("torch.random.get_rng_state()", "random.fold_in(random.key(1), i)")
    exec(compile(f"for i in range(10):{loop}", "second_form.py", "exec"), space)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(leaf.isfinite().all() for leaf in tree.leaves(space["layer"]))


def test_a_step_is_that_of_plain_tensors_with_the_same_mask(space: dict[str, Any]) -> None:
    x, step = torch.linspace(-1, 1, 5), random.key(9)
    layer = space["layer"].reset(step)
    layer(x).backward()
    weights = {
        path: leaf.detach().clone().requires_grad_()
        for path, leaf in tree.named_leaves(space["layer"]).items()
    }

    def dense(name: str, x: Tensor) -> Any:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    mask = random.dropout_mask(random.fold_in(random.clone(step), "dropout"), (10,), 0.2)
    h = torch.tanh(dense("dense1", x)) * mask
    h = torch.tanh(dense("dense2", torch.tanh(dense("dense2", h))))
    out: Any = torch.sigmoid(dense("dense3", torch.tanh(h)))
    out.backward()
    grads = tree.named_leaves(layer.grad())
    for path, weight in weights.items():
        torch.testing.assert_close(grads[path], weight.grad)


def test_a_step_uses_its_keys_up_and_eval_uses_none(space: dict[str, Any]) -> None:
    layer = space["layer"].reset(random.key(9))
    layer(torch.zeros(5))
    with pytest.raises(random.KeyReusedError, match="split"):
        layer(torch.zeros(5))
    still = layer.eval()
    assert torch.equal(still(torch.zeros(5)), still(torch.zeros(5)))
