"""Structures as JSON text: every constant comes back the same, and nothing unnamed gets in."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from parallax.core.constants import constant_key
from parallax.core.module_structure import spec_of
from parallax.tree.encoding import dump, dump_constant, load, load_constant
from tests.corpus import CONSTANTS, MODULES, Case, Config, Gates, Padding


def there_and_back(value: Any) -> Any:
    return load_constant(json.loads(json.dumps(dump_constant(value))))


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_every_structure_of_the_corpus(case: Case) -> None:
    spec = spec_of(case.make())
    assert load(json.loads(json.dumps(dump(spec)))) == spec


@pytest.mark.parametrize("name", CONSTANTS)
def test_every_constant_of_the_corpus(name: str) -> None:
    value = CONSTANTS[name]
    back = there_and_back(value)
    assert type(back) is type(value)
    assert constant_key(back, "") == constant_key(value, "")


constants = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
    | st.sampled_from([torch.float16, torch.device("meta"), Padding.ZEROS, Config(3), len, F.gelu]),
    lambda inner: st.lists(inner).map(tuple) | st.frozensets(inner),
    max_leaves=8,
)


@given(constants)
def test_any_constant(value: Any) -> None:
    assert constant_key(there_and_back(value), "") == constant_key(value, "")


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        F.relu,
        F.gelu,
        torch.Tensor.relu,
        torch.nn.init.zeros_,
        torch.add,
        len,
        int,
        Case,
    ],
)
def test_functions_and_classes_are_found_by_name(function: Any) -> None:
    assert there_and_back(function) is function


def test_named_tuples_and_partials() -> None:
    gates = Gates(1, 2, 3)  # type: ignore[arg-type]  # any values
    assert type(there_and_back(gates)) is Gates and there_and_back(gates) == gates
    part = there_and_back(partial(round, 1.0, ndigits=2))
    assert part.func is round and part.args == (1.0,)
    assert part.keywords == {"ndigits": 2}


def local_function() -> Callable[[int], int]:
    def inner(x: int) -> int:
        return x

    return inner


@pytest.mark.parametrize("value", [lambda x: x, local_function(), object(), [1], {1: 2}])
def test_what_has_no_text_form_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match=r"cannot be written") as error:
        dump_constant(value)
    assert type(value).__name__ in str(error.value) or repr(value) in str(error.value)


@pytest.mark.parametrize(
    "data",
    [{"dataclass": ["os:system", [["a", 1]]]}, {"namedtuple": ["os:system", ["true"]]}],
)
def test_a_file_cannot_have_a_function_called(data: Any) -> None:
    with pytest.raises(TypeError, match="os:system is no"):
        load_constant(data)
