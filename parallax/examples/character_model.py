"""A transformer that writes Parallax, character by character.

It reads a text that every installation has, the sources of `parallax.nn`, and learns to predict
the next character. The training step is one compiled function. The blocks are a `Stack`, which
compiles one of them, so the time to compile does not grow with their number. Sampling takes a key
and a key-value cache for each block; the caches are arguments and results.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import parallax
from parallax import Module, func, nn, optim, random
from parallax.examples._command import command_line, run_quietly
from parallax.examples._progress import progress, waiting

WIDTH, HEADS, BLOCKS = 64, 4, 2
CONTEXT, BATCH, RATE = 64, 32, 3e-3

Caches = tuple[nn.KVCache, ...]


class Text(NamedTuple):
    """A text as numbers."""

    characters: str  # the alphabet; the code of a character is its index
    codes: Tensor


def read() -> Text:
    """The sources of `parallax.nn`, one after the other."""
    files = sorted(resources.files("parallax.nn").iterdir(), key=lambda file: file.name)
    text = "".join(file.read_text() for file in files if file.name.endswith(".py"))
    characters = "".join(sorted(set(text)))
    numbers = {character: number for number, character in enumerate(characters)}
    return Text(characters, torch.tensor([numbers[character] for character in text]))


class Block(Module):
    """Attention and two affine maps, each after a norm and added to its input."""

    norm1: nn.RMSNorm
    attention: nn.MultiheadAttention
    norm2: nn.RMSNorm
    feed: nn.MLP

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width)
        self.attention = nn.MultiheadAttention(
            width, heads, bias=False, batch_first=True, num_kv_heads=heads // 2,
            rotary=nn.RotaryEmbedding(width // heads),
        )  # fmt: skip
        self.norm2 = nn.RMSNorm(width)
        self.feed = nn.MLP((width, 4 * width, width), F.gelu, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """A whole sequence at once."""
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False, is_causal=True)[0]
        output: Tensor = x + self.feed(self.norm2(x))
        return output

    def decode(self, x: Tensor, cache: nn.KVCache) -> tuple[Tensor, nn.KVCache]:
        """The next characters of sequences whose beginning is in the cache."""
        y, cache = self.attention.decode(self.norm1(x), cache)
        x = x + y
        return x + self.feed(self.norm2(x)), cache


class CharacterModel(Module):
    """Scores for the next character after each."""

    embedding: nn.Embedding
    blocks: nn.Stack
    norm: nn.RMSNorm
    head: nn.Linear

    def __init__(
        self, characters: int, width: int = WIDTH, heads: int = HEADS, blocks: int = BLOCKS
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.blocks = nn.Stack(Block(width, heads), blocks)
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, characters, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Scores for the character after each one, ``(batch, length, characters)``."""
        scores: Tensor = self.head(self.norm(self.blocks(self.embedding(codes))))
        return scores

    def empty_caches(self, batch_size: int, max_len: int) -> Caches:
        """Empty caches for `decode`, one for each block."""
        return tuple([block.attention.empty_cache(batch_size, max_len) for block in self.blocks])

    def decode(self, codes: Tensor, caches: Caches) -> tuple[Tensor, Caches]:
        """Scores for what follows ``codes``, after the text in the caches, and the next caches."""
        x, after = self.embedding(codes), []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block.decode(x, cache)  # noqa: PLW2901  # the next cache
            after.append(cache)
        return self.head(self.norm(x)), tuple(after)


def cross_entropy_loss(model: CharacterModel, codes: Tensor) -> Tensor:
    """The mean cross-entropy of the next characters, in nats."""
    return F.cross_entropy(model(codes[:, :-1]).flatten(0, 1), codes[:, 1:].flatten())


def sample_batch(codes: Tensor, key: random.Key, batch: int = BATCH) -> Tensor:
    """Pieces of the text from random positions, ``(batch, CONTEXT + 1)``."""
    starts = random.randint(key, (batch, 1), 0, len(codes) - CONTEXT)
    return codes[starts + torch.arange(CONTEXT + 1)]


class Trained(NamedTuple):
    """A trained model and the course of its training."""

    model: CharacterModel
    losses: list[float]
    seconds: float  # of the steps after the first, which compiles


def train(text: Text, steps: int, seed: int, *, backend: str = "inductor") -> Trained:
    """Train a model on a text; every random number comes from the seed.

    Args:
        text: the training text.
        steps: how many, each on `BATCH` pieces of the text.
        seed: of the initial weights and of the batches.
        backend: of the compiler.
    """
    adam = optim.Adam(lr=RATE)

    @parallax.compile(backend=backend)
    def step(model: CharacterModel, state: Any, codes: Tensor, key: random.Key) -> Any:
        grads, loss = func.grad_and_value(cross_entropy_loss)(model, sample_batch(codes, key))
        return *adam.step(model, grads, state), loss

    key = random.key(seed)
    model = CharacterModel(len(text.characters)).initialize(random.fold_in(key, "model"))
    state, losses, start = adam.init(model), [], time.perf_counter()
    for number in progress(range(steps), steps, "steps"):
        with waiting("compiling the training step", number == 0):
            model, state, loss = step(model, state, text.codes, random.fold_in(key, number))
        if number == 0:
            start = time.perf_counter()
        losses.append(loss.item())
    return Trained(model, losses, time.perf_counter() - start)


def write(
    model: CharacterModel,
    text: Text,
    prompt: str,
    length: int,
    key: random.Key,
    *,
    temperature: float = 0.8,
    backend: str = "eager",
) -> Iterator[str]:
    """Samples characters that continue the prompt, one by one.

    Args:
        model: trained on the text.
        text: for its alphabet.
        prompt: how it begins.
        length: how many characters to write.
        key: the same key writes the same.
        temperature: divides the scores; a low one prefers likely characters.
        backend: of the compiler, which compiles a step once.
    """
    decode = parallax.compile(CharacterModel.decode, backend=backend)
    caches = model.empty_caches(1, len(prompt) + length)
    codes = torch.tensor([[text.characters.index(character) for character in prompt]])
    with torch.no_grad():
        scores, caches = model.decode(codes, caches)
        for number in range(length):
            likely = scores[0, -1] / temperature
            code = random.categorical(random.fold_in(key, number), likely)
            yield text.characters[int(code)]
            scores, caches = decode(model, code.reshape(1, 1), caches)


def main(arguments: Sequence[str] | None = None) -> None:
    """Learn the sources of `parallax.nn`, and write some more of them."""
    asked = command_line(__file__, __doc__).parse_args(arguments)
    steps, length, backend = (3, 20, "eager") if asked.quick else (200, 300, "inductor")
    text = read()
    count, alphabet = len(text.codes), len(text.characters)
    print(f"{count:,} characters, {alphabet} different ones: {math.log(alphabet):.2f} nats each")
    begin = time.perf_counter()
    trained = train(text, steps, asked.seed, backend=backend)
    whole = time.perf_counter() - begin
    last = sum(trained.losses[-20:]) / len(trained.losses[-20:])
    print(f"cross-entropy loss {trained.losses[0]:.2f} nats before, {last:.2f} after {steps} steps")
    print(f"{trained.seconds / (steps - 1) * 1e3:.1f} ms a step, {whole:.0f} s in all")
    print("What it writes after 'class':\n")
    written = write(trained.model, text, "class", length, random.key(asked.seed))
    print("class" + "".join(written))


if __name__ == "__main__":
    sys.exit(run_quietly(main))
