"""Names of ``torch.nn.Module`` are absent, say what to write, and may be fields and methods."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import save

import parallax
from parallax import Module, Parameter
from parallax._errors.habits import DECLARATIONS, ELSEWHERE, HABITS
from tests.corpus import MLP

HINTS = HABITS | DECLARATIONS | ELSEWHERE


@pytest.mark.parametrize("name", sorted(HINTS))
def test_an_absent_name_says_what_to_write(name: str) -> None:
    module: Any = MLP().initialize(0)
    for holder in (module, MLP):
        assert not hasattr(holder, name) and getattr(holder, name, None) is None
        with pytest.raises(AttributeError, match=rf"MLP has no attribute '{name}'.*Write: "):
            getattr(holder, name)
    assert hasattr(torch.nn.Module(), name) == (name not in ELSEWHERE)


@pytest.mark.parametrize("line", sorted(set(HINTS.values())))
def test_what_is_to_be_written_exists(line: str) -> None:
    for room, name in re.findall(r"\b(tree|bridge|io|func|effects)\.(\w+)\(", line):
        assert name in getattr(parallax, room).__all__
    for name in re.findall(r"\b(?:module|self)\.(\w+)\(", line):
        assert callable(getattr(Module, name))
    for name in re.findall(r"\)\.(\w+)\(", line):
        assert callable(getattr(parallax.tree.Selection, name))


def test_dir_and_help_do_not_show_them() -> None:
    module = MLP().initialize(0)
    assert not HINTS.keys() & {*dir(module), *dir(MLP)}
    assert {"first", "forward", "replace"} <= set(dir(module))
    assert not HINTS.keys() & {found.name for found in inspect.classify_class_attrs(MLP)}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_where_torch_takes_it_for_its_own_the_error_says_what_to_save(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match=r"Write: bridge\.state_dict\(module\)"):
        save({"model": MLP().initialize(0)}, checkpoint_id=tmp_path)


class Free(Module):
    """Fields, a method and a property under these names."""

    to: Parameter
    training: bool = True

    def half(self) -> Tensor:
        return self.to / 2

    @property
    def cuda(self) -> str:
        return "a property"


class Below(Free):
    """A child of it."""


@pytest.mark.parametrize("cls", [Free, Below])
def test_fields_and_methods_may_have_these_names(cls: type[Free]) -> None:
    module = cls(torch.ones(2))
    assert module.to.equal(torch.ones(2)) and module.training and module.cuda == "a property"
    assert module.half().equal(torch.full((2,), 0.5))
    assert module.replace(training=False).training is False
    assert {"to", "training", "half", "cuda"} == HABITS.keys() & set(dir(module))
    with pytest.raises(AttributeError, match="no attribute 'parameters'"):
        _ = module.parameters  # type: ignore[attr-defined]  # what is refused
