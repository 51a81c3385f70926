"""What does making a module cost, compared with a frozen dataclass of as many fields?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.harness import Candidate, Question
from parallax import Module, Parameter


def questions(quick: bool) -> Iterator[Question]:
    for count in (4,) if quick else (1, 2, 4, 8, 16):
        yield _construct(count)


def _construct(count: int) -> Question:
    """Compare classes whose fields are parameters and numbers in turn."""
    names = [f"field{i}" for i in range(count)]
    kinds: list[type] = [float if i % 2 else Parameter for i in range(count)]
    values = [float(i) if i % 2 else torch.zeros(2) for i in range(count)]

    def same(plain: object, module: object) -> None:
        assert all(getattr(plain, name) is getattr(module, name) for name in names)

    frozen = dataclasses.make_dataclass("Frozen", zip(names, kinds, strict=True), frozen=True)
    return Question(
        f"construct, {count} fields",
        Candidate("frozen dataclass", lambda: frozen(*values)),
        [
            Candidate("__init__ generated", _maker(names, kinds, values, ""), limit=4.0),
            Candidate("__init__ written", _maker(names, kinds, values, _init(names)), limit=4.0),
        ],
        check=same,
    )


def _maker(
    names: Sequence[str], kinds: Sequence[type], values: Sequence[object], init: str
) -> Callable[[], Module]:
    """Define a module class from source, as a user would write it, and return its maker."""
    fields = [f"    {name}: {kind.__name__}" for name, kind in zip(names, kinds, strict=True)]
    scope: dict[str, Any] = {"__name__": __name__, "Module": Module, "Parameter": Parameter}
    exec("\n".join(["class Made(Module):", *fields, init]), scope)
    made = scope["Made"]
    return lambda: made(*values)


def _init(names: Sequence[str]) -> str:
    lines = [f"    def __init__(self, {', '.join(names)}):", "        super().__init__()"]
    return "\n".join(lines + [f"        self.{name} = {name}" for name in names])
