"""The character model learns, and writes the same whatever way it looks at the past."""

from __future__ import annotations

import math

import pytest
import torch

from parallax import random
from parallax.examples import character_model
from parallax.examples.character_model import CharacterModel, read, train, write


def test_it_learns_the_sources() -> None:
    text = read()
    assert "class Stack(Module" in "".join(text.characters[code] for code in text.codes)
    trained = train(text, 12, 0, backend="eager")
    assert abs(trained.losses[0] - math.log(len(text.characters))) < 1
    assert trained.losses[-1] < trained.losses[0] - 0.3
    with torch.compiler.set_stance("force_eager"):
        again = train(text, 2, 0)
    torch.testing.assert_close(again.losses, trained.losses[:2])


def test_what_it_writes_follows_the_key_and_the_scores() -> None:
    text = read()
    model = CharacterModel(len(text.characters)).initialize(0)
    key = random.key(3)
    written = "".join(write(model, text, "class ", 8, key))
    assert written == "".join(write(model, text, "class ", 8, random.key(3)))
    assert written != "".join(write(model, text, "class ", 8, random.key(4)))
    # The same, from the whole sequence each time.
    codes = [text.characters.index(character) for character in "class "]
    for number in range(8):
        scores = model(torch.tensor([codes]))[0, -1] / 0.8
        codes.append(int(random.categorical(random.fold_in(random.key(3), number), scores)))
    assert written == "".join(text.characters[code] for code in codes[6:])


def test_main_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.compiler.set_stance("force_eager"):
        character_model.main(["--quick"])
    said = capsys.readouterr().out
    assert "nats before" in said and "ms a step" in said and "\n\nclass" in said
