"""What a child field takes, and what the error says of anything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Buffer, Module, Parameter, random
from tests.corpus import Dense


class Leaf(Module):
    w: Parameter


class Optional(Module):
    w: Parameter | None


class Child(Module):
    child: Module


class Several(Module):
    several: tuple[Module, ...]


class Two(Module):
    two: tuple[Module, Module]


class Deep(Module):
    deep: tuple[tuple[Module, ...], ...]


class Named(Module):
    named: dict[str, Module]


class Function(Module):
    act: Module | Callable[[Tensor], Tensor]


DENSE = Dense()


@pytest.mark.parametrize(
    ("cls", "value", "line"),
    [
        (Leaf, None, "Leaf.w got None. Write 'w: ... | None' to allow it."),
        (
            Leaf,
            1.0,
            "was given float. Assign a tensor, or declare one: self.w = Parameter(shape, init)",
        ),
        (
            Leaf,
            Buffer((2,)),
            "a Buffer declaration. Write 'w: Buffer', or assign Parameter(shape, init).",
        ),
        (Optional, DENSE, "Optional.w is a Parameter and was given Dense."),
        (Child, None, "Child.child got None. Write 'child: ... | None' to allow it."),
        (Child, torch.nn.ReLU(), "Child.child was given ReLU, a mutable torch.nn.Module."),
        (
            Child,
            [DENSE],
            "Child.child holds one module and got a list. Write 'child: tuple[Module, ...]'.",
        ),
        (
            Child,
            {"a": DENSE},
            "Child.child holds one module and got a dict. Write 'child: dict[str, Module]'.",
        ),
        (
            Child,
            torch.tanh,
            "which is no parallax.Module. Assign a module, or write 'child: Module | Callable'",
        ),
        (Child, 3, "or write 'child: Module | int' to allow such a value too."),
        (Child, torch.ones(1), "or write 'child: Module | Parameter' to allow such a value too."),
        (Several, DENSE, "was given Dense. Assign a tuple or list, also for one item."),
        (Several, [DENSE, 3], "Several.several[1] is a child and was given int"),
        (Two, (DENSE,), "Two.two is a tuple of 2 items, got 1"),
        (Named, DENSE, "Named.named holds a dict and was given Dense. Assign a dict, also for one"),
        (Named, {"a": None}, "Named.named['a'] got None. Write 'named: ... | None' to allow it."),
        (Function, [DENSE], "a list that holds a module"),
        (Function, torch.ones(1), "Function.act is declared as a constant and was given a tensor"),
        (Function, Parameter((2,), torch.nn.init.zeros_), "a Parameter declaration"),
        (Leaf, random.key(0), "Leaf.w is a Parameter and was given Key."),
        (Deep, [[DENSE], [3]], "Deep.deep[1][0] is a child and was given int"),
        (Deep, {"a": DENSE}, "Deep.deep holds a tuple or list and was given dict"),
    ],
)
def test_an_error_names_the_field_and_the_line_to_write(cls: Any, value: Any, line: str) -> None:
    with pytest.raises(TypeError, match=re.escape(line)):
        cls(value)


@pytest.mark.parametrize(("key", "instead"), [("a.b", "'a_b'"), ("", "'_'"), (".", "'_'")])
def test_a_key_that_makes_paths_ambiguous_is_refused(key: str, instead: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"Write another key, such as {instead}")):
        Named({key: DENSE})
    with pytest.raises(ValueError, match=re.escape("has the key '1'")):
        Named({1: DENSE, "1": DENSE})  # type: ignore[dict-item]  # what is refused


def test_what_is_allowed_is_taken_as_it_is() -> None:
    assert Optional(None).w is None and Child(DENSE).child is DENSE
    assert Function(torch.tanh).act is torch.tanh and Function(DENSE).act is DENSE
    assert Several([DENSE]).several == (DENSE,) and Two([DENSE, DENSE]).two == (DENSE, DENSE)  # type: ignore[arg-type]  # lists are frozen
    assert dict(Named({"a": DENSE}).named) == {"a": DENSE}


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Named({"a.b": DENSE}), "has the key 'a.b'"),
        (lambda: Two([DENSE]), "Two.two is a tuple of 2 items, got 1"),  # type: ignore[arg-type]  # what is refused
    ],
)
def test_a_container_that_does_not_fit_is_refused_in_compiled_code(
    make: Callable[[], Module], line: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(line)):
        torch.compile(make, backend="eager")()
