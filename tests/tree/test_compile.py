"""Every public function of ``tree`` means the same in eager and in one compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported

from parallax import Buffer, Module, Parameter, tree
from tests.corpus import SIZE, Dense, TiedParameter


class Counted(Module):
    """A parameter and an integer buffer."""

    weight: Parameter
    count: Buffer


class Everything(Module):
    """Ties, holes, integer buffers, containers and a constant in one module."""

    tied: TiedParameter
    norm: Counted
    bare: Dense
    layers: tuple[Dense, ...]
    named: dict[str, Parameter]
    double: Buffer
    rate: float = 0.5


def make(seed: int) -> Everything:
    module = Everything(
        TiedParameter(),
        Counted(
            Parameter((SIZE,), torch.nn.init.normal_),
            Buffer((), torch.nn.init.ones_, dtype=torch.int64),
        ),
        Dense(bias=False),
        (Dense(), Dense()),
        {"z": Parameter((SIZE,), torch.nn.init.normal_)},
        Buffer((2,), torch.nn.init.normal_, dtype=torch.float64),
    ).initialize(seed)
    return tree.select(module, "bare").freeze()


def unravelled(m: Any) -> Any:
    flat, unravel = tree.ravel(m)
    return flat, unravel(2 * flat)


def selection(m: Any, *what: Any) -> Any:
    chosen = tree.select(m, *what)
    return chosen.paths, chosen.count(), chosen.get(), chosen.apply(lambda x: 2 * x)


def halves(m: Any) -> Any:
    one, two, rest = tree.partition(m, "**.bias", Buffer)
    return one, two, rest, tree.combine(one, two, rest)


def untied(m: Any) -> Any:
    return m.replace(tied=m.tied.replace(encoder=tree.map(torch.neg, m.tied.encoder)))


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda m, o: tree.add(m, o, alpha=0.5),
    "add_tensor": lambda m, o: tree.add(m, o, alpha=o.double[0]),
    "allclose": lambda m, o: (tree.allclose(m, o), tree.allclose(m, m), tree.allclose(m, o.bare)),
    "combine": lambda m, o: halves(m),
    "equal": lambda m, o: (tree.equal(m, o), tree.equal(m, m), tree.equal(m, o.bare)),
    "flatten": lambda m, o: tree.flatten(m)[0],
    "leaves": lambda m, o: tree.leaves(m),
    "lerp": lambda m, o: tree.lerp(m, o, 0.25),
    "lerp_tensor": lambda m, o: tree.lerp(m, o, o.double[0]),
    "map": lambda m, o: tree.map(lambda a, b: a - b, m, o),
    "map_outside": lambda m, o: tree.map(torch.add, {"m": m, "t": (o.double, None)},
                                         {"m": o, "t": (o.double, None)}),
    "map_with_path": lambda m, o: tree.map_with_path(lambda path, x: x * len(path), m),
    "named_leaves": lambda m, o: tree.named_leaves([m, {"o": o}]),
    "nbytes": lambda m, o: tree.nbytes(m),
    "norm": lambda m, o: (tree.norm(m), tree.norm(m, 1), tree.norm(m, float("inf"))),
    "partition": lambda m, o: tree.partition(m, "trainable", lambda path, x: x.ndim == 0),
    "ravel": lambda m, o: unravelled(m),
    "scale": lambda m, o: (tree.scale(m, 0.5), tree.scale(m, o.double[0])),
    "select_path": lambda m, o: selection(m, "tied.decoder.weight"),
    "select_glob": lambda m, o: selection(m, "**.bias", "layers.?.w*"),
    "select_role": lambda m, o: selection(m, "frozen"),
    "select_type": lambda m, o: (tree.select(m, Dense).paths, tree.select(m, Parameter).count()),
    "select_lambda": lambda m, o: selection(m, lambda m: (m.norm.weight, m.layers[1].bias)),
    "select_predicate": lambda m, o: selection(m, lambda path, x: x.ndim == 2),
    "select_set": lambda m, o: tree.select(m, "layers.0").set(o.layers[1]),
    "select_tied": lambda m, o: tree.select(m, "bare").set(m.tied.decoder),
    "select_freeze": lambda m, o: tree.select(m, "layers", "tied.decoder.weight").freeze(),
    "select_unfreeze": lambda m, o: tree.select(m, "frozen").unfreeze(),
    "size": lambda m, o: tree.size([m, m.bare]),
    "stack": lambda m, o: tree.stack([m, o]),
    "structure": lambda m, o: tree.structure(m) == tree.structure(o),
    "sub": lambda m, o: (tree.sub(m, o), tree.sub(m, o, alpha=o.double[1])),
    "tie": lambda m, o: tree.tie(m, untied(o)),
    "to": lambda m, o: tree.to(m, dtype=torch.float64),
    "to_device": lambda m, o: tree.to({"m": m, "t": o.double}, "cpu", torch.float32),
    "unflatten": lambda m, o: tree.unflatten(tree.structure(m), tree.flatten(o)[0]),
    "unstack": lambda m, o: tree.unstack(tree.map(lambda x: x.expand(3, *x.shape), m)),
    "update": lambda m, o: tree.update(lambda p, g: p - g, m, o),
    "vdot": lambda m, o: tree.vdot(m, o),
    "zeros_like": lambda m, o: tree.zeros_like(m),
}  # fmt: skip

ELSEWHERE = {
    "Selection": "what select returns",
    "TreeSpec": "what structure returns",
    "diff": "looks at values, and is refused in compiled code: test_diff",
    "masks": "data, made before anything is compiled: test_masks",
    "summary": "text, for people",
}


def test_the_table_has_every_public_function() -> None:
    named = {name.split("_")[0] for name in CALLS} | set(CALLS) | set(ELSEWHERE)
    assert set(tree.__all__) <= named


@pytest.mark.parametrize("name", CALLS)
def test_compiled_equals_eager(name: str) -> None:
    torch.compiler.reset()
    m, o = make(0), make(1)
    compiled = torch.compile(CALLS[name], backend="eager", fullgraph=True)
    same(compiled(m, o), CALLS[name](m, o))


def test_dicts_may_have_another_order_as_in_eager() -> None:
    one = {"model": make(0), "x": torch.ones(2), "l": [torch.zeros(1), torch.ones(1)]}
    two = {"l": [torch.ones(1), torch.ones(1)], "x": torch.ones(2), "model": make(1)}

    def both(a: Any, b: Any) -> Any:
        return tree.add(a, b), tree.equal(a, b), tree.equal(a, dict(reversed(a.items())))

    torch._dynamo.reset()
    same(torch.compile(both, backend="eager", fullgraph=True)(one, two), both(one, two))
    assert both(one, two)[1:] == (False, True)
    for other in ({**two, "l": torch.ones(1)}, {**two, "l": [torch.ones(1)]}, {"x": torch.ones(2)}):
        with pytest.raises((ValueError, Unsupported), match="fit together"):
            torch.compile(tree.add, backend="eager", fullgraph=True)(one, other)


def same(a: Any, b: Any) -> None:
    """Equal in values, structure, ties, modes and frozen marks."""
    if isinstance(b, Module):
        assert type(a) is type(b)
        assert tree.structure(a) == tree.structure(b)
        same(tree.flatten(a)[0], tree.flatten(b)[0])
    elif isinstance(b, dict):
        assert list(a) == list(b)
        same(list(a.values()), list(b.values()))
    elif isinstance(b, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(b, Tensor):
        torch.testing.assert_close(a, b)
    elif isinstance(b, bool):
        assert bool(a) is b
    else:
        assert a == b
