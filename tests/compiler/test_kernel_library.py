"""Kernels that Python calls are compiled together, and compute what each computes by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.exc import CppCompileError
from torch._inductor.utils import fresh_cache, run_and_get_code

from parallax._compat import kernel_library
from parallax._compat.kernel_library import Kernels
from parallax.nn import Linear, Residual, Stack
from tests.compiling import make_compiled

pytestmark = [pytest.mark.usefixtures("fresh_dynamo"), pytest.mark.usefixtures("empty_cache")]

_PYTHON = {"cpp_wrapper": False}


@pytest.fixture
def empty_cache(tmp_path: Path) -> Iterator[None]:
    with fresh_cache(dir=str(tmp_path)):
        yield


def _three(x: Tensor) -> Tensor:
    return ((x.exp() @ x).sin() @ x).softmax(-1)


def _libraries(folder: Path) -> int:
    return len(list(folder.rglob("*.main.so")))


def _source(body: str, arguments: str = "float* out", behind: str = "") -> str:
    return (
        "\n#include <torch/csrc/inductor/cpp_prefix.h>\n"
        f'extern "C"  void  kernel({arguments})\n{{\n{body}\n}}\n{behind}'
    )


def _scope(*kernels: tuple[list[str], str]) -> dict[str, Any]:
    """The kernels of a module, each by its number."""
    made = Kernels()
    scope = {f"cpp_{k}": made.cpp_pybinding(*kernel) for k, kernel in enumerate(kernels)}
    made.wait(scope)
    return scope


def test_kernels_of_a_graph_are_one_library(tmp_path: Path) -> None:
    x = torch.rand(40, 40)
    found, (code,) = run_and_get_code(make_compiled(_three, options=_PYTHON), x)
    assert code.count("cpp_pybinding") >= 3
    assert _libraries(tmp_path) == 1
    torch.testing.assert_close(found, _three(x))


def test_many_kernels_are_libraries_of_some_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_library, "_LARGEST", 1)
    x = torch.rand(40, 40)
    found, (code,) = run_and_get_code(make_compiled(_three, options=_PYTHON), x)
    assert _libraries(tmp_path) == code.count("cpp_pybinding") >= 3
    torch.testing.assert_close(found, _three(x))


def test_graphs_in_a_graph_have_their_kernels_in_the_library_of_all(tmp_path: Path) -> None:
    stack: Any = Stack(Residual(Linear(8, 8)), 3).initialize(0)
    x = torch.rand(4, 8)
    compiled = make_compiled(lambda stack, x: stack(x.sin()).exp())
    torch.testing.assert_close(compiled(stack, x), stack(x.sin()).exp())
    assert _libraries(tmp_path) == 1


def test_sizes_and_numbers_reach_the_kernels(tmp_path: Path) -> None:
    compiled = make_compiled(
        lambda x, k: (x * k).sum(0) + x.shape[0], dynamic=True, options=_PYTHON
    )
    for size, k in ((5, 0.5), (9, 0.25), (40, 3.5)):
        x = torch.rand(size, 3)
        torch.testing.assert_close(compiled(x, k), (x * k).sum(0) + size)
    out = torch.zeros(3)
    body = "out[0] = size; out[1] = x; out[2] = address;"
    types = ["float*", "const int64_t", "float", "uintptr_t"]
    arguments = "float* out, const int64_t size, float x, uintptr_t address"
    kernel = _scope((types, _source(body, arguments)))["cpp_0"]
    kernel(out, 2**20, 0.5, 2**21)
    assert out.tolist() == [2**20, 0.5, 2**21]
    for wrong in ((out, "2", 0.5, 1), (out, 2, None, 1), (out, 2, 0.5, ""), (out, 2, 0.5)):
        with pytest.raises(RuntimeError, match=r"expected|requires"):
            kernel(*wrong)


def test_an_error_of_a_kernel_is_raised() -> None:
    x, rows = torch.rand(6, 3), torch.tensor([1, 7])
    compiled = make_compiled(lambda x, rows: x[rows].exp(), options=_PYTHON)
    with pytest.raises((RuntimeError, IndexError), match=r"out of (bounds|range)"):
        compiled(x, rows)
    torch.testing.assert_close(compiled(x, rows - 2), x[rows - 2].exp())
    body = 'throw std::runtime_error("the kernel says no");'
    with pytest.raises(RuntimeError, match="the kernel says no"):
        _scope((["float*"], _source(body)))["cpp_0"](torch.zeros(1))


def test_kernels_that_cannot_be_together_are_compiled_by_themselves(tmp_path: Path) -> None:
    own = "static int once() { return 1; }"
    scope = _scope(
        *[(["float*"], _source(f"out[0] = {k};", behind=own)) for k in (1, 2)],
        (["float*"], "#include <cmath>" + _source("out[0] = 3;")),
    )
    for k, kernel in enumerate(scope.values(), start=1):
        out = torch.zeros(1)
        kernel(out)
        assert out.item() == k
    assert _libraries(tmp_path) == 3


def test_code_that_does_not_compile_is_an_error_as_in_torch() -> None:
    with pytest.raises(CppCompileError, match="not_declared"):
        _scope((["float*"], _source("out[0] = not_declared;")))
