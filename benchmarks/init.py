"""What does making a module cost, and giving it its first values?

Making it is compared with a frozen dataclass of as many fields. Values are drawn by the same
functions of `torch.nn.init` on both sides, which is nearly all of the time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import init

from benchmarks import peers
from benchmarks.harness import Candidate, Question
from parallax import Module, Parameter, tree


def questions(quick: bool) -> Iterator[Question]:
    for count in (4,) if quick else (1, 2, 4, 8, 16):
        yield _construct(count)
    yield _initialize(10 if quick else 150)


def _construct(count: int) -> Question:
    """Compare classes whose fields are parameters and numbers in turn."""
    names = [f"field{i}" for i in range(count)]
    kinds: list[type] = [float if i % 2 else Parameter for i in range(count)]
    values = [float(i) if i % 2 else torch.zeros(2) for i in range(count)]

    def same(plain: object, module: object) -> None:
        for name in names:
            one, two = getattr(plain, name), getattr(module, name)
            assert one is two or torch.equal(torch.as_tensor(one), torch.as_tensor(two))

    frozen = dataclasses.make_dataclass("Frozen", zip(names, kinds, strict=True), frozen=True)
    plain = _plain(names)
    absent: dict[str, str] = {}
    return Question(
        f"construct, {count} fields",
        Candidate("frozen dataclass", lambda: frozen(*values)),
        [
            Candidate("__init__ generated", _maker(names, kinds, values, ""), limit=4.0),
            Candidate("__init__ written", _maker(names, kinds, values, _written(names)), limit=4.0),
        ],
        peers=_peers(names, kinds, values, absent),
        floor=Candidate("floor: a class with an __init__", lambda: plain(*values)),
        remains="Values are checked, their places recorded, and tied tensors searched for",
        check=same,
        absent=absent,
    )


def _peers(
    names: Sequence[str], kinds: Sequence[type], values: Sequence[object], absent: dict[str, str]
) -> list[Candidate]:
    """The same fields in other libraries' classes."""
    space = {"__annotations__": dict(zip(names, kinds, strict=True)), "__module__": __name__}
    found = peers.equinox("construct", "equinox", absent) if len(names) == 2 else []
    structional = peers.find("structional", absent)
    if structional is not None:
        struct = type(structional.Struct)("Struct", (structional.Struct,), dict(space))
        found.append(Candidate("structional", lambda: struct(*values)))
    tensordict = peers.find("tensordict", absent)
    if tensordict is not None:
        # Numbers stay numbers, as they do elsewhere.
        tensorclass = tensordict.tensorclass(nocast=True)(type("Held", (), dict(space)))
        found.append(Candidate("tensordict", lambda: tensorclass(*values, batch_size=[])))
    return found


def _initialize(blocks: int) -> Question:
    """The values of a transformer: the draws are nearly all of it on either side."""
    declared = Declared(blocks)
    module = declared.initialize(0)
    flat = tree.leaves(module)

    def fill() -> list[Tensor]:
        return [init.normal_(torch.empty_like(leaf)) for leaf in flat]

    def same(made: list[Tensor], ours: Any) -> None:
        assert [leaf.shape for leaf in made] == [leaf.shape for leaf in tree.leaves(ours)]

    reference = Candidate("torch.nn.init on a flat list", fill)
    return Question(
        f"initialize, {len(flat)} leaves of 64 x 64",
        reference,
        [Candidate("initialize", lambda: declared.initialize(0))],
        check=same,
        floor=reference,
        remains="A generator's state, 2,496 bytes, is made for each leaf from its path and the key",
    )


class Weight(Module):
    value: Parameter

    def __init__(self) -> None:
        super().__init__()
        self.value = Parameter((64, 64), init.normal_)


class Declared(Module):
    weights: tuple[Weight, ...]

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weights = tuple(Weight() for _ in range(count))


def _maker(
    names: Sequence[str], kinds: Sequence[type], values: Sequence[object], written: str
) -> Callable[[], Module]:
    """Define a module class from source, as a user would write it, and return its maker."""
    fields = [f"    {name}: {kind.__name__}" for name, kind in zip(names, kinds, strict=True)]
    scope: dict[str, Any] = {"__name__": __name__, "Module": Module, "Parameter": Parameter}
    exec("\n".join(["class Made(Module):", *fields, written]), scope)
    made = scope["Made"]
    return lambda: made(*values)


def _plain(names: Sequence[str]) -> Callable[..., object]:
    """A class of Python's own whose `__init__` assigns so many attributes."""
    lines = [f"    def __init__(self, {', '.join(names)}):"]
    scope: dict[str, Any] = {}
    exec("\n".join(["class Plain:", *lines, *[f"        self.{n} = {n}" for n in names]]), scope)
    return scope["Plain"]  # type: ignore[no-any-return]  # made by the exec above


def _written(names: Sequence[str]) -> str:
    lines = [f"    def __init__(self, {', '.join(names)}):", "        super().__init__()"]
    return "\n".join(lines + [f"        self.{name} = {name}" for name in names])
