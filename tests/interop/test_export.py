"""``torch.export``, its files, and ahead-of-time compilation, with modules in and modules out."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as torch_pytree

from parallax import tree
from tests.comparing import assert_close_trees
from tests.corpus import (
    FLOAT,
    MLP,
    Branches,
    Case,
    Dense,
    Nested,
    Norm,
    TiedModule,
    TiedParameter,
    example_input,
)

INPUT = example_input()
EXPORTED = [case for case in FLOAT if case.name not in ("empty", "chain")]
_NAMES = {"mlp", "no_biases", "branches", "gated", "nested", "tied_parameter", "foreign"}
SAVED = [case for case in EXPORTED if case.name in _NAMES]


class Forward(nn.Module):
    """What ``torch.export`` exports is an ``nn.Module``; the model is its argument."""

    def forward(self, module: Any, x: Tensor) -> Any:
        return module(x)


class Step(nn.Module):
    """A module in, a module out."""

    def forward(self, module: Any, x: Tensor) -> Any:
        shift = module(x).mean()
        return torch_pytree.tree_map(lambda leaf: leaf - shift, module), {"loss": shift}


def saved(program: Any) -> Any:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    logging.disable(logging.WARNING)  # torch logs that the example inputs are no plain tensors
    try:
        return torch.export.load(buffer)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("case", EXPORTED, ids=str)
def test_a_module_is_an_input(case: Case) -> None:
    program = torch.export.export(Forward(), (case.make(), INPUT))
    other = case.make(1)
    torch.testing.assert_close(program.module()(other, INPUT), other(INPUT))


@pytest.mark.parametrize("case", EXPORTED, ids=str)
def test_a_module_is_an_output(case: Case) -> None:
    program = torch.export.export(Step(), (case.make(), INPUT))
    other = case.make(1)
    (got, extra), (expected, expected_extra) = program.module()(other, INPUT), Step()(other, INPUT)
    assert_close_trees(got, expected)
    torch.testing.assert_close(extra, expected_extra)


@pytest.mark.parametrize("case", SAVED, ids=str)
def test_a_program_is_saved_and_loaded(case: Case) -> None:
    program = saved(torch.export.export(Step(), (case.make(), INPUT)))
    other = case.make(1)
    assert_close_trees(program.module()(other, INPUT)[0], Step()(other, INPUT)[0])


@pytest.mark.parametrize("cls", [TiedParameter, TiedModule])
def test_ties_are_one_input(cls: Any) -> None:
    program = torch.export.export(Forward(), (cls().initialize(0), INPUT))
    unique = len(tree.leaves(cls().initialize(0)))
    assert len(program.graph_signature.user_inputs) == unique + 1
    out = torch.export.export(Step(), (cls().initialize(0), INPUT)).module()
    got = out(cls().initialize(1), INPUT)[0]
    one, other = ("encoder", "decoder") if cls is TiedParameter else ("one", "other")
    assert getattr(got, one).weight is getattr(got, other).weight


def test_inputs_are_named_by_their_paths() -> None:
    program = torch.export.export(Forward(), (MLP().initialize(0), INPUT))
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    assert names[0].startswith("module") and "first" in names[0] and "weight" in names[0]


def test_buffers_of_every_dtype_are_inputs() -> None:
    program = saved(torch.export.export(Forward(), (Norm().initialize(0), INPUT)))
    other = Norm().initialize(1)
    torch.testing.assert_close(program.module()(other, INPUT), other(INPUT))


def test_a_module_of_another_structure_is_refused() -> None:
    program = torch.export.export(Forward(), (Norm().initialize(0), INPUT)).module()
    with pytest.raises(Exception, match="exported input tree spec"):
        program(Norm(eps=1.0).initialize(0), INPUT)


def test_dynamic_shapes() -> None:
    """To torch.export a node of a class that is not its own is the list of its leaves."""
    module = Branches("z", "a").initialize(0)
    shapes: Any = [{} for _ in tree.leaves(module)]
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(Forward(), (module, INPUT), dynamic_shapes=(shapes, batch))
    x = torch.randn(7, INPUT.shape[1])
    torch.testing.assert_close(program.module()(module, x), module(x))


def test_loading_in_another_process(tmp_path: Path) -> None:
    """The structure in the file names classes; importing them is all the other side does."""
    path = tmp_path / "program.pt2"
    module = Nested().initialize(0)
    torch.export.save(torch.export.export(Step(), (module, INPUT)), path)
    torch.save(Step()(module, INPUT)[0].pair[1], tmp_path / "expected.pt")
    script = f"""
import torch
from tests.corpus import Nested, example_input
from parallax import tree
program = torch.export.load({str(path)!r}).module()
got, _ = program(Nested().initialize(0), example_input())
assert type(got) is Nested
torch.testing.assert_close(got.pair[1], torch.load({str(tmp_path / "expected.pt")!r}))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the C++ toolchain's own
def test_ahead_of_time_compilation(tmp_path: Path) -> None:
    module = TiedParameter().initialize(0)
    program = torch.export.export(Forward(), (module, INPUT))
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2")
    )
    run = torch._inductor.aoti_load_package(path)
    other = TiedParameter().initialize(1)
    torch.testing.assert_close(run(other, INPUT), other(INPUT))


def test_the_model_of_a_closed_over_module_is_constant() -> None:
    module = Dense().initialize(0)

    class Closed(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return module(x)

    program = torch.export.export(Closed(), (INPUT,))
    torch.testing.assert_close(program.module()(INPUT), module(INPUT))
