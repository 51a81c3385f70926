"""repr, the summary table and HTML."""

from __future__ import annotations

import html.parser
import io
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import init

from parallax import Buffer, Module, Parameter, tree
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
    TiedParameter,
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
    assert len(tree.summary(deep).rows) == 200


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_every_module_prints_in_every_way(case: Case) -> None:
    for module in (case.declare(), case.make()):
        assert type(module).__name__ in repr(module)
        assert str(len(tree.leaves(module))) in str(tree.summary(module))
        assert type(module).__name__ in module._repr_html_()


# -- summary ------------------------------------------------------------------------------------


def test_the_table_of_a_module() -> None:
    module = tree.select(Sequential(Dense(), Norm()).initialize(0), "layers.0.bias").freeze()
    expected = """\
path                          class  shape   dtype    count  bytes  trainable
-----------------------------------------------------------------------------
layers.0.weight               Dense  (4, 4)  float32     16     64  yes
layers.0.bias                 Dense  (4,)    float32      4     16  no
layers.1.weight               Norm   (4,)    float32      4     16  yes
layers.1.bias                 Norm   (4,)    float32      4     16  yes
layers.1.running_mean         Norm   (4,)    float32      4     16  no
layers.1.running_var          Norm   (4,)    float32      4     16  no
layers.1.num_batches_tracked  Norm   ()      int64        1      8  no
-----------------------------------------------------------------------------
total: 7 leaves                                          37    152  24"""
    assert str(tree.summary(module)) == expected
    assert repr(tree.summary(module)) == expected


@pytest.mark.parametrize("width", [100, 77, 76, 60, 50, 40, 30, 20, 12])
def test_a_table_in_a_narrow_terminal(width: int) -> None:
    summary = tree.summary(Sequential(Dense(), Norm()).initialize(0))
    lines = f"{summary:{width}}".split("\n")
    assert max(map(len, lines)) <= width and len(lines) == 11
    if width >= 77:
        assert lines == str(summary).split("\n")
    if width >= 40:
        assert "layers.1.num_batches_tracked" in lines[8]
    assert "count" in lines[0] and lines[2].split()[0].endswith("ht") and " 16" in lines[2]


def test_what_is_no_width() -> None:
    summary = tree.summary(Dense())
    assert f"{summary}" == format(summary) == str(summary)
    with pytest.raises(ValueError, match=r"by its width in characters, got '>60'.*summary:60"):
        format(summary, ">60")


def test_the_table_of_a_declaration_says_what_it_will_be() -> None:
    text = str(tree.summary(Dense(1000, 1000)))
    assert "weight           Dense  (1000, 1000)  float32 (uninitialized)  1,000,000" in text
    assert "4,004,000" in text


def test_totals_are_torch_s_and_a_tie_counts_once() -> None:
    module = TiedParameter().initialize(0)
    twin = next(case for case in MODULES if case.name == "tied_parameter").twin(module)
    summary = tree.summary(module)
    assert summary.count == sum(p.numel() for p in twin.parameters())
    assert summary.trainable == summary.count
    assert summary.nbytes == 4 * summary.count
    assert [row.path for row in summary.rows] == list(tree.named_leaves(module))


def test_a_long_table_is_cut_in_the_middle_and_its_totals_are_whole() -> None:
    module = Many(1_000).initialize(0)
    summary = tree.summary(module)
    lines = str(summary).split("\n")
    assert len(lines) == 205
    assert "... 2,800 more leaves" in lines[102]
    assert len(summary.rows) == 3_000
    assert "total: 3,000 leaves" in lines[-1]
    assert len(str(tree.summary(module, max_rows=10)).split("\n")) == 15


def test_only_modules_have_a_summary() -> None:
    with pytest.raises(TypeError, match="expected a module, got dict"):
        tree.summary({"a": 1})


def test_rich_prints_the_same_table() -> None:
    from rich.console import Console

    class Marked(Module):
        named: dict[str, Parameter]

    summary = tree.summary(Marked({"[red]": Parameter((2,), init.ones_)}))
    out = io.StringIO()
    Console(file=out, width=120).print(summary)
    text = out.getvalue()
    for cell in ("named.[red]", "Marked", "(2,)", "float32", "trainable", "total: 1 leaves"):
        assert cell in text


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
