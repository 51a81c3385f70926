"""What do low-rank adapters cost in a lifted DistilBERT, beside peft's and ones written by hand?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness import Candidate, Question
from parallax import bridge, func, nn, optim, tree

RANK = 8


class _Adapted(torch.nn.Module):
    """A layer of torch's with an adapter, as one writes it by hand."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = torch.nn.Parameter(torch.randn(RANK, layer.in_features))
        self.up = torch.nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out + (x @ self.down.mT) @ self.up.mT


def questions(quick: bool) -> Iterator[Question]:
    absent: dict[str, str] = {}
    transformers = peers.find("transformers", absent)
    if transformers is None:
        return
    small = {"dim": 32, "hidden_dim": 64, "n_heads": 2, "n_layers": 2, "vocab_size": 100}
    config = transformers.DistilBertConfig(**(small if quick else {}))
    config.dropout = config.attention_dropout = 0.0
    model = transformers.DistilBertModel(config).eval().requires_grad_(False)
    tokens = torch.randint(0, config.vocab_size, (2, 16 if quick else 64))
    ours = nn.lora(bridge.lift(model), "**.q_lin", "**.v_lin", rank=RANK).initialize(0).eval()
    ways = {"nn.Module by hand": _by_hand(model)}
    peft = peers.find("peft", absent)
    if peft is not None:
        to = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q_lin", "v_lin"])
        ways["peft"] = peft.get_peft_model(copy.deepcopy(model), to).eval()
    first, *others = ways.items()
    yield Question(
        "the outputs of a DistilBERT with adapters of its queries and values",
        Candidate(first[0], lambda: _out(first[1], tokens)),
        [Candidate("nn.lora(bridge.lift(model))", lambda: _out(ours, tokens), limit=1.0)],
        peers=[Candidate(name, lambda it=it: _out(it, tokens)) for name, it in others],
        check=torch.testing.assert_close,
        context=torch.no_grad,
        absent=absent,
    )
    yield Question(
        "a step of AdamW on these adapters",
        Candidate(first[0], _step(first[1], tokens)),
        [Candidate("nn.lora(bridge.lift(model))", _our_step(ours, tokens), limit=1.0)],
        peers=[Candidate(name, _step(it, tokens)) for name, it in others],
        absent=absent,
        most_rounds=15,
    )


def _by_hand(model: Any) -> torch.nn.Module:
    made = copy.deepcopy(model)
    for block in made.transformer.layer:
        for name in ("q_lin", "v_lin"):
            setattr(block.attention, name, _Adapted(getattr(block.attention, name)))
    return made  # type: ignore[no-any-return]  # of transformers, which has no types


def _out(model: Any, tokens: Tensor) -> Any:
    return model(input_ids=tokens).last_hidden_state


def _loss(model: Any, tokens: Tensor) -> Any:
    return _out(model, tokens).square().mean()


def _step(model: torch.nn.Module, tokens: Tensor) -> Callable[[], Any]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)

    def step() -> Any:
        optimizer.zero_grad()
        loss = _loss(model, tokens)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _our_step(model: Any, tokens: Tensor) -> Callable[[], Any]:
    opt = optim.AdamW(1e-4)
    model = tree.map(torch.clone, model)
    state = opt.init(model)

    def step() -> Any:
        nonlocal model, state
        grads, loss = func.grad_and_value(_loss)(model, tokens)
        model, state = opt.step(model, grads, state)
        return loss

    return step
