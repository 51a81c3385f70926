"""repr and HTML."""

from __future__ import annotations

import html.parser
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import init

from parallax import Buffer, Module, Parameter, tree
from parallax import nn as layers
from parallax.tree.repr import shape_text
from tests.corpus import (
    MLP,
    MODULES,
    Branches,
    Case,
    Dense,
    Gated,
    Holder,
    Many,
    Norm,
    Sequential,
    chain,
)

# -- repr -----------------------------------------------------------------------------------------


class Linear(Module):
    """Prints as ``torch.nn.Linear`` does."""

    in_features: int
    out_features: int
    weight: Parameter

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.in_features, self.out_features = n_in, n_out
        self.weight = Parameter((n_out, n_in), init.ones_)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias=False"


class Block(Module):
    """Two layers."""

    up: Linear
    down: Linear

    def __init__(self, n: int) -> None:
        super().__init__()
        self.up, self.down = Linear(n, 4 * n), Linear(4 * n, n)


class Net(Module):
    """A list of equal blocks and a last one."""

    blocks: tuple[Block, ...]
    head: Linear

    def __init__(self, n: int) -> None:
        super().__init__()
        self.blocks = tuple(Block(4) for _ in range(n))
        self.head = Linear(4, 2)


class TorchBlock(nn.Module):
    """``Block``'s twin."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(n, 4 * n, bias=False), nn.Linear(4 * n, n, bias=False)


class TorchNet(nn.Module):
    """``Net``'s twin."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TorchBlock(4) for _ in range(n)])
        self.head = nn.Linear(4, 2, bias=False)


def test_a_module_prints_as_its_twin_in_torch_does() -> None:
    expected = repr(TorchNet(12)).replace("Torch", "").replace("ModuleList", "tuple")
    assert repr(Net(12).initialize(0)) == expected
    assert "(0-11): 12 x Block(" in expected


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (Dense(), "Dense() (uninitialized)"),
        (Dense().initialize(0), "Dense()"),
        (Norm().initialize(0), "Norm(eps=1e-05)"),
        (
            MLP(),
            """\
MLP(
  (first): Dense() (uninitialized)
  (second): Dense() (uninitialized)
  (activation): tanh
)""",
        ),
        (
            Sequential(Dense(), Dense(), torch.relu, Dense(bias=False)).initialize(0),
            """\
Sequential(
  (layers): tuple(
    (0-1): 2 x Dense()
    (2): relu
    (3): Dense()
  )
)""",
        ),
        (
            Branches("z", "a").initialize(0),
            "Branches(\n  (branches): dict(\n    (z): Dense()\n    (a): Dense()\n  )\n)",
        ),
        (
            Gated().initialize(0),
            "Gated(\n  (gates): Gates(\n    (inner): Dense()\n    (power): 2\n  )\n)",
        ),
        (Holder().initialize(0), "Holder(\n  (pair): Foreign(\n    (0): Dense()\n  )\n)"),
        (Sequential(), "Sequential()"),
    ],
)
def test_repr(module: Any, text: str) -> None:
    assert repr(module) == text


def test_a_module_with_text_and_children_prints_both() -> None:
    class Both(Module):
        inner: Dense
        rate: float
        weight: Parameter

    made = Both(Dense(), 0.5, Parameter((2,), init.ones_))
    lines = ["Both(", "  rate=0.5", "  (inner): Dense() (uninitialized)", ") (uninitialized)"]
    assert repr(made) == "\n".join(lines)


def test_ten_thousand_leaves_print_without_flooding() -> None:
    class Numbered(Module):
        number: int
        weight: Parameter

    made = Sequential(*[Numbered(k, torch.zeros(1)) for k in range(10_000)])
    lines = repr(made).split("\n")
    assert len(lines) <= 400
    assert lines[0] == "Sequential("
    assert lines[-1] == ")"
    assert re.fullmatch(r"  \.\.\. 9,?\d+ more lines", lines[-2])
    alike = Sequential(*[Dense().initialize(0) for _ in range(500)])
    assert "(0-499): 500 x Dense()" in repr(alike)


def test_modules_two_hundred_deep_print() -> None:
    deep = chain(200).initialize(0)
    assert repr(deep).count("Twig") == 200
    assert deep._repr_html_().count("<b>Twig</b>") == 200


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_every_module_prints_in_every_way(case: Case) -> None:
    for module in (case.declare(), case.make()):
        assert type(module).__name__ in repr(module)
        assert type(module).__name__ in module._repr_html_()


# -- HTML ---------------------------------------------------------------------------------------


class Checker(html.parser.HTMLParser):
    """Finds tags that do not close, and anything that would be loaded or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.seen.add(tag)
        assert {name for name, _ in attrs} <= {"style", "open"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_html_is_well_formed_and_loads_nothing(case: Case) -> None:
    checker = Checker()
    checker.feed(case.make()._repr_html_())
    assert checker.open == []
    assert checker.seen <= {"div", "details", "summary", "b", "span"}


def test_html_folds_and_escapes() -> None:
    class Sly(Module):
        named: dict[str, Parameter]
        text: str
        stat: Buffer | None

    made = Sly({"<script>": Parameter((2,), init.ones_)}, "<b>&", None).initialize(0)._repr_html_()
    assert "<script>" not in made
    assert "&lt;script&gt;: float32[2]" in made
    assert "&lt;b&gt;&amp;" in made
    assert made.count("<details") == 2
    assert "<details open>" in made


def test_html_of_a_large_module_is_cut() -> None:
    made = Many(1_000).initialize(0)._repr_html_()
    assert len(made) < 500_000
    assert "<div>...</div>" in made
    checker = Checker()
    checker.feed(made)
    assert checker.open == []


def test_what_is_frozen_is_told_once() -> None:
    net = layers.Sequential(layers.Sequential(layers.Linear(2, 2)), layers.Linear(2, 2))
    inner, outer = "in_features=2, out_features=2, bias=True", tree.select(net, "layers.0").freeze()
    assert repr(outer) == (
        f"Sequential(\n  (0): Sequential(\n    (0): Linear({inner}) (uninitialized)\n  ) (frozen)\n"
        f"  (1): Linear({inner}) (uninitialized)\n)"
    )
    assert "(frozen)" not in repr(tree.select(net, "**.bias").freeze())
    assert "(frozen)" not in repr(tree.select(outer, "layers.0").unfreeze())


def test_shapes_are_shown_where_asked_for() -> None:
    embedding = layers.Embedding(4, 2, dtype=torch.bfloat16)
    net = layers.Sequential(layers.Linear(2, 3), layers.ReLU(), embedding)
    assert f"{net.initialize(0):shapes}" == (
        "Sequential(\n"
        "  (0): Linear(\n"
        "    in_features=2, out_features=3, bias=True\n"
        "    (weight): f32[3,2]\n"
        "    (bias): f32[3]\n"
        "  )\n"
        "  (1): ReLU()\n"
        "  (2): Embedding(\n"
        "    4, 2\n"
        "    (weight): bf16[4,2]\n"
        "  )\n"
        ")"
    )
    assert "(weight): f32[3,2] uninitialized" in f"{net:shapes}"
    assert f"{net}" == repr(net) and "f32" not in repr(net)
    with pytest.raises(ValueError, match=r"as it is or with shapes, got '>20'. Write"):
        f"{net:>20}"


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        (torch.float64, "f64[]"), (torch.int8, "i8[]"), (torch.uint8, "u8[]"),
        (torch.bool, "bool[]"), (torch.complex64, "c64[]"), (torch.float16, "f16[]"),
        (torch.float8_e5m2, "float8_e5m2[]"),
    ],
)  # fmt: skip
def test_dtypes_in_short(dtype: torch.dtype, text: str) -> None:
    assert shape_text(torch.empty((), dtype=dtype)) == text


def test_html_says_what_is_frozen_and_counts_nothing_where_nothing_is_held() -> None:
    net = layers.Sequential(layers.Linear(2, 3), layers.ReLU()).initialize(0)
    both = layers.Sequential(net, layers.Linear(3, 1)).initialize(0)
    made = tree.select(both, "layers.0").freeze()._repr_html_()
    assert "9 numbers (frozen)</span>" in made and "<b>ReLU</b>()</div>" in made
    assert made.count("(frozen)") == 1 and " 0 numbers" not in made
