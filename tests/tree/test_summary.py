"""The summary table: of leaves, and of what a call computes."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import init
from torch.utils.flop_counter import FlopCounterMode

from parallax import Module, Parameter, func, nn, random, tree
from tests.corpus import MODULES, Case, Dense, Many, Norm, Sequential, TiedParameter, chain
from tests.effects.nets import Block, Net, Pair, hooked, nets

# -- leaves ---------------------------------------------------------------------------------------


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
    numbers = {"count", "bytes"}
    for column in summary.__rich__().columns:
        assert column.justify == ("right" if column.header in numbers else "left")


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_every_module_has_a_table(case: Case) -> None:
    for module in (case.declare(), case.make()):
        assert str(len(tree.leaves(module))) in str(tree.summary(module))


def test_a_module_two_hundred_deep_has_a_table() -> None:
    assert len(tree.summary(chain(200).initialize(0)).rows) == 200


# -- a call ---------------------------------------------------------------------------------------


def kept_bytes(module: torch.nn.Module, x: Tensor) -> int:
    """The bytes that autograd keeps of a real call, beside parameters, buffers and the input."""
    apart = [*module.parameters(), *module.buffers(), x]
    seen = {tensor.untyped_storage().data_ptr(): tensor for tensor in apart}
    found = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal found
        if tensor.untyped_storage().data_ptr() not in seen:
            seen[tensor.untyped_storage().data_ptr()] = tensor
            found += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return found


@pytest.mark.parametrize("which", ["ours", "uninitialized", "lifted"])
def test_a_call_costs_what_torch_counts(which: str) -> None:
    ours, lifted, theirs = nets()
    blocks = tuple([Block(nn.Linear(4, 4), nn.Tanh()) for _ in range(2)])
    declared = Net(blocks, Pair(nn.Linear(4, 3), nn.Linear(4, 3)), nn.Linear(4, 4))
    module: Any = {"ours": ours, "lifted": lifted, "uninitialized": declared}[which]
    x = torch.randn(5, 4)
    found = tree.summary(module, x.to("meta") if which != "lifted" else x)
    with FlopCounterMode(display=False) as counter:
        theirs(x)
    counts = {path: sum(flops.values()) for path, flops in counter.get_flop_counts().items()}
    calls = hooked(theirs, x)
    rows = {row.path: row for row in found.rows}
    assert [path for path in rows if path != "blocks"] == [
        path for path, _ in theirs.named_modules() if path not in ("", "blocks")
    ]
    for path, part in theirs.named_modules():
        if path and path != "blocks":
            assert rows[path].calls == len(calls.get(path, ())), path
            assert rows[path].flops == counts.get(f"TorchNet.{path}", 0), path
            assert rows[path].parameters == sum(p.numel() for p in part.parameters()), path
    assert found.total.flops == counts["Global"]
    assert found.total.parameters == sum(p.numel() for p in theirs.parameters())
    assert found.total.activations == kept_bytes(theirs, x)
    assert rows["pair"].output == "(5, 3), (5, 3)" and rows["unused"].output == ""


def test_what_each_module_keeps_by_hand() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    found = tree.summary(net, torch.empty(16, 3, device="meta"))
    assert (
        str(found)
        == """\
path               class   output   parameters  FLOPs  activations
------------------------------------------------------------------
layers.0           Linear  (16, 8)          32    768            0
layers.1           Tanh    (16, 8)           0      0          512
layers.2           Linear  (16, 1)           9    256            0
------------------------------------------------------------------
total: Sequential          (16, 1)          41  1,024          512"""
    )
    assert max(map(len, f"{found:40}".split("\n"))) <= 40
    frozen = tree.select(net, "parameter").freeze()
    assert tree.summary(frozen, torch.empty(16, 3)).total.activations == 0


def test_effects_draws_and_derivatives_within_a_call() -> None:
    key = random.key(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).initialize(0)
    found = tree.summary(net.train(key), torch.randn(6, 3))
    assert [row.output for row in found.rows] == ["(6, 4)"] * 3
    norm: Any = net.layers[1]
    assert norm.num_batches_tracked == 0
    random.normal(key, ())  # it was not used up

    class Slope(Module):
        inner: nn.Linear

        def forward(self, x: Tensor) -> Any:
            return func.vmap(func.grad(lambda x: self.inner(x).sum()))(x)

    slope = tree.summary(Slope(nn.Linear(3, 1)), torch.randn(5, 3))
    assert slope.total.output == "(5, 3)" and slope.rows[0].calls == 1


def test_a_model_that_draws_needs_no_key() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    found = tree.summary(net, torch.ones(4, 2)).total
    assert found.output == "(4, 3)"
    assert found == tree.summary(net.initialize(0).train(1), torch.ones(4, 2)).total


def test_a_call_by_name_and_one_that_looks_at_numbers() -> None:
    class Clipped(Module):
        inner: nn.Linear

        def forward(self, x: Tensor, *, limit: float) -> Any:
            return x.clamp(max=limit) if limit else x * float(x.sum())

    net = Clipped(nn.Linear(3, 1))
    assert tree.summary(net, torch.ones(2, 3), kwargs={"limit": 1.0}).total.output == "(2, 3)"
    with pytest.raises(RuntimeError, match=r"tree\.summary: the function looks at numbers"):
        tree.summary(net, torch.ones(2, 3), kwargs={"limit": 0.0})
