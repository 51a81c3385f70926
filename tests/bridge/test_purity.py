"""What a forward writes into Python objects is not seen by another call, eager or compiled."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import parallax
from parallax import bridge

X = torch.ones(1, 2)
calls = 0
table: list[int] = []


class Settings:
    """An object of a class of one's own, which a lifted module does not copy."""

    def __init__(self) -> None:
        self.calls = 0
        self.log: list[int] = []


class Knowing:
    """An object that leads to a part of the model, and so is made anew."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.calls = 0


class Layer(nn.Sequential):
    """A child with an attribute."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__(*parts)
        self.hits = 0


class Writer(nn.Module):
    """Holds whatever a forward may write into; ``write`` returns how often it has seen that."""

    shared: ClassVar[list[int]] = []
    counted: Any = 0

    def __init__(self, write: Callable[[Any], Any]) -> None:
        super().__init__()
        self.write = write
        self.n = 0
        self.first = True
        self.log: list[int] = []
        self.recent: deque[int] = deque([0], maxlen=3)
        self.tally = Counter({"a": 1})
        self.marks: dict[int, int] = {}
        self.seen: set[int] = set()
        self.nested: dict[str, list[int]] = {"a": [0]}
        self.settings = Settings()
        self.layer = Layer(nn.Linear(2, 2))
        self.knowing = Knowing(self.layer)
        self.back: Any = None

    def forward(self, x: Tensor) -> Tensor:
        factor = self.write(self)
        return self.layer(x) * factor  # type: ignore[no-any-return]  # a tensor


def attribute(m: Any) -> Any:
    m.n += 1
    return m.n


def flag(m: Any) -> Any:
    factor = 1.0 if m.first else 100.0
    m.first = False
    return factor


def append(m: Any) -> Any:
    m.log.append(1)
    return len(m.log)


def replace(m: Any) -> Any:
    m.log = [*m.log, 1]
    return len(m.log)


def in_dict(m: Any) -> Any:
    m.marks[len(m.marks)] = 1
    return len(m.marks)


def in_set(m: Any) -> Any:
    m.seen.add(len(m.seen))
    return len(m.seen)


def nested(m: Any) -> Any:
    m.nested["a"].append(0)
    m.nested["a"][0] += 1
    return m.nested["a"][0]


def of_a_child(m: Any) -> Any:
    m.layer.hits += 1
    return m.layer.hits


def by_instance_dict(m: Any) -> Any:
    m.__dict__["n"] = m.__dict__["n"] + 1
    return m.n


def new_name(m: Any) -> Any:
    factor = 2.0 if hasattr(m, "fresh") else 1.0
    setattr(m, "fresh", factor)  # noqa: B010  # as written by those who do not know the name
    return factor


def new_tensor(m: Any) -> Any:
    factor = 2.0 if m.back is not None else 1.0
    m.back = m.layer[0].weight * 2
    return factor


def new_child(m: Any) -> Any:
    factor = 2.0 if "extra" in m._modules else 1.0
    m.add_module("extra", m.layer)
    return factor


def new_buffer(m: Any) -> Any:
    factor = 2.0 if "extra" in m._buffers else 1.0
    m.register_buffer("extra", torch.ones(2))
    return factor


def deleted(m: Any) -> Any:
    if not hasattr(m, "first"):
        return 2.0
    del m.first
    return 1.0


def in_deque(m: Any) -> Any:
    m.recent.append(1)
    return len(m.recent)


def in_counter(m: Any) -> Any:
    m.tally["a"] += 1
    return m.tally["a"]


def of_what_knows_the_model(m: Any) -> Any:
    m.knowing.calls += 1
    return m.knowing.calls


OWN = [attribute, flag, append, replace, in_dict, in_set, nested, of_a_child, by_instance_dict,
       new_name, new_tensor, new_child, new_buffer, deleted, in_deque, in_counter,
       of_what_knows_the_model]  # fmt: skip


def of_settings(m: Any) -> Any:
    m.settings.calls += 1
    return m.settings.calls


def in_a_list_of_settings(m: Any) -> Any:
    m.settings.log.append(1)
    return len(m.settings.log)


def of_the_class(m: Any) -> Any:
    type(m).counted += 1
    return type(m).counted


def in_a_list_of_the_class(m: Any) -> Any:
    m.shared.append(1)
    return len(m.shared)


def of_the_globals(m: Any) -> Any:
    global calls  # noqa: PLW0603  # as some do
    calls += 1
    return calls


def in_a_list_of_the_globals(m: Any) -> Any:
    table.append(1)
    return len(table)


FOREIGN = [
    (of_settings, "Settings.calls"),
    (in_a_list_of_settings, "'log'"),
    (of_the_class, "Writer.counted"),
    (in_a_list_of_the_class, "'shared'"),
    (of_the_globals, "the global 'calls'"),
    (in_a_list_of_the_globals, "'table'"),
]


@pytest.fixture(autouse=True)
def nothing_counted() -> None:
    globals()["calls"] = Writer.counted = 0
    table.clear()
    Writer.shared.clear()


def pair(write: Callable[[Any], Any]) -> tuple[list[Any], list[Tensor]]:
    """Two lifted models of a class, and what they compute."""
    torch.manual_seed(0)
    sources = [Writer(write), Writer(write)]
    return [bridge.lift(s) for s in sources], [s.layer(X) * 1.0 for s in sources]


def compiled(fn: Any, way: str) -> Any:
    if way == "parallax":
        return parallax.compile(fn, backend="eager")
    return torch.compile(fn, backend="eager", fullgraph=way == "torch, one graph")


@pytest.mark.parametrize("write", OWN, ids=lambda write: write.__name__)
def test_an_eager_call_forgets_what_it_wrote(write: Any) -> None:
    models, _ = pair(write)
    expected = [write(Writer(write)) * model.layer(X) for model in models]
    for k in (0, 0, 1, 0, 1):
        torch.testing.assert_close(models[k](X), expected[k], rtol=0, atol=0)


@pytest.mark.parametrize("way", ["parallax", "torch, one graph", "torch"])
def test_compiled_calls_do_not_see_what_others_wrote(way: str, fresh_dynamo: None) -> None:
    models = [pair(write)[0][0] for write in OWN]
    expected = [
        write(Writer(write)) * model.layer(X) for write, model in zip(OWN, models, strict=True)
    ]

    def twice(models: list[Any], x: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(model(x), model(x)) for model in models]

    call = compiled(twice, way)
    for _ in range(2):
        for write, outs, wanted in zip(OWN, call(models, X), expected, strict=True):
            assert torch.equal(outs[0], wanted) and torch.equal(outs[1], wanted), write.__name__


@pytest.mark.parametrize("way", ["parallax", "torch, one graph"])
def test_neither_do_other_models_and_other_functions(way: str, fresh_dynamo: None) -> None:
    for number in range(2):
        call = compiled(lambda model, x, number=number: model(x) + number, way)
        for write in (flag, append):
            models, _ = pair(write)
            for k in (0, 1, 0):
                wanted = write(Writer(write)) * models[k].layer(X) + number
                assert torch.equal(call(models[k], X), wanted), write.__name__


@pytest.mark.parametrize("way", ["parallax", "torch, one graph"])
def test_a_graph_of_what_others_see_is_refused_by_name(way: str, fresh_dynamo: None) -> None:
    for write, name in FOREIGN:
        torch._dynamo.reset()
        models, _ = pair(write)
        with pytest.raises(Exception, match="when it is called") as caught:
            compiled(lambda model, x: model(x), way)(models[0], X)
        assert f"writes into {name} when" in str(caught.value).replace("\\'", "'")
        assert not calls and not Writer.counted and not table and not Writer.shared
        assert not models[0].settings.calls and not models[0].settings.log


def test_an_argument_that_a_forward_writes_into_is_written_into(fresh_dynamo: None) -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor, cache: list[Tensor]) -> Tensor:
            cache.append(x)
            return self.layer(x)  # type: ignore[no-any-return]  # a tensor

    lifted, cache = bridge.lift(Cached()), list[Tensor]()
    call = torch.compile(lambda m, x, c: m(x, c), backend="eager", fullgraph=True)
    torch.testing.assert_close(call(lifted, X, cache), lifted(X, []))
    assert len(cache) == 1


class Telling(nn.Module):
    """Returns containers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Any] = []
        self.nested = [1, [2]]

    def forward(self, x: Tensor) -> Any:
        self.log.append(x)
        return self.log, self.nested[1]


@pytest.mark.parametrize("way", ["eager", "parallax", "torch, one graph"])
def test_a_container_that_is_returned_belongs_to_the_caller(way: str, fresh_dynamo: None) -> None:
    lifted = bridge.lift(Telling())
    call = lifted if way == "eager" else lambda x: compiled(lambda m, x: m(x), way)(lifted, x)
    for _ in range(2):
        log, inner = call(X)
        assert len(log) == 1 and torch.equal(log[0], X) and inner == [2]
        inner.append(3)


def test_models_keep_their_own_objects_when_the_mode_changes() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.settings = Settings()

        def forward(self, x: Tensor) -> Tensor:
            return x * self.settings.calls

    sources = [Scaled(), Scaled()]
    models = [bridge.lift(source).eval() for source in sources]
    sources[1].settings.calls = 5
    assert [model(X).tolist() for model in models] == [[[0.0, 0.0]], [[5.0, 5.0]]]


def test_a_call_that_breaks_the_graph_runs_as_a_whole(fresh_dynamo: None) -> None:
    def write(m: Any) -> Any:
        m.n += 1
        torch._dynamo.graph_break()
        m.n += 1
        return m.n

    models, _ = pair(write)
    call = torch.compile(lambda model, x: model(x) * 1.0, backend="eager")
    for k in (0, 1, 0):
        torch.testing.assert_close(call(models[k], X), models[k].layer(X) * 2)
