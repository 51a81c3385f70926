"""The options of ``parallax.compile``, and those it gives to inductor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._inductor import config, cpu_vec_isa
from torch._inductor.utils import run_and_get_code

import parallax
from parallax._compat import inductor
from parallax.compiler import dynamo
from tests.compiling import make_compiled

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_disable_and_the_other_options_of_torch_compile() -> None:
    def fn(x: Tensor) -> Tensor:
        return x + 1

    assert parallax.compile(fn, disable=True) is fn
    with pytest.raises(TypeError, match="'backends'"):
        make_compiled(fn, backends="eager")
    with pytest.raises(TypeError, match="not both"):
        make_compiled(fn, mode="default", options={})
    with pytest.raises(RuntimeError, match="Unrecognized mode"):
        make_compiled(fn, mode="fast")
    seen: list[str] = []

    def theirs(entries: Any) -> list[bool]:
        seen.extend(entry.guard_type for entry in entries)
        return [True] * len(entries)

    make_compiled(fn, backend="eager", options={"guard_filter_fn": theirs})(torch.ones(2))
    assert "TENSOR_MATCH" in seen


@torch.library.custom_op("parallax_tests::positive", mutates_args=())
def positive(x: Tensor) -> Tensor:
    """Says no in its own words, and describes its result wrongly where asked for 7 rows."""
    if x.sum() < 0:
        raise ArithmeticError("it is negative")
    return x.t().contiguous().t() if x.shape[0] == 7 else x.clone()


@positive.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_inductor_on_the_cpu_gets_options_that_change_no_result() -> None:
    x = torch.ones(3, 3)
    compiled = make_compiled(lambda x: positive(x) + 1)
    expected, (code,) = run_and_get_code(compiled, x)
    assert torch.equal(expected, x + 1)
    assert "aoti" in code
    assert '"input")' not in code  # sizes and strides of inputs are checked before, at once
    assert 'optimize("Og")' in code  # the code around kernels alone, which only calls
    theirs = make_compiled(lambda x: positive(x) + 1, options={"size_asserts": True})
    expected, (code,) = run_and_get_code(theirs, x)
    assert torch.equal(expected, x + 1)
    assert '"input")' in code and 'optimize("Og")' in code
    with pytest.raises(ArithmeticError, match="it is negative"):
        compiled(-x)
    assert torch.equal(compiled(x), x + 1)
    with pytest.raises(RuntimeError, match="expected size"):  # results of kernels are checked
        make_compiled(lambda x: positive(x) + 1)(torch.ones(7, 3))


def test_the_options_given_are_the_last_word() -> None:
    def options(given: dict[str, Any], device: str = "cpu") -> Any:
        settings = dynamo.compile_settings(given)
        items = [torch.ones(1, device=device)]
        return dynamo.settings_for(settings, items, ())["options"]

    assert options({})["cpp_wrapper"] is True
    assert options({})["cpp.vec_isa_ok"] is True
    asked = {"cpp_wrapper": False, "cpp.vec_isa_ok": False, "_post_fusion_custom_pass": None}
    assert options({"options": asked}) == asked
    assert options({"backend": "eager"}) == {}
    assert options({}, "meta") == {}


def test_cpp_that_fails_gives_way_to_python_unless_it_was_asked_for() -> None:
    def spare(given: dict[str, Any]) -> Any:
        settings = dynamo.compile_settings(given)
        chosen = dynamo.settings_for(settings, [torch.ones(1)], ())
        return dynamo.without_risks(chosen, settings)

    asked = {"options": {"max_autotune": True}, "dynamic": True}
    assert not spare(asked)["options"].keys() & {"cpp_wrapper", "cpp.vec_isa_ok"}
    assert spare(asked)["options"]["max_autotune"] is spare(asked)["dynamic"] is True
    assert spare({"options": {"cpp_wrapper": True}})["options"]["cpp_wrapper"] is True
    assert spare({"options": {"cpp_wrapper": True, "cpp.vec_isa_ok": True}}) is None
    assert spare({"backend": "eager"}) is None


def test_what_inductor_writes_in_python_only_is_written_in_python() -> None:
    region = torch.compiler.nested_compile_region(lambda x: x.sin() + 1)
    x = torch.ones(2)
    compiled = make_compiled(lambda x: region(region(x)))
    for _ in range(2):
        torch.testing.assert_close(compiled(x), (x.sin() + 1).sin() + 1)


@pytest.mark.parametrize("loads", [False, True])
def test_vector_units_that_fail_are_tested_as_torch_does(
    loads: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    units = cpu_vec_isa.valid_vec_isa_list()
    if not units:
        pytest.skip("this processor has no vector units")
    header = tmp_path / "header.h"
    header.write_text(
        "extern int missing;\n__attribute__((used)) static int* lost = &missing;"
        if loads
        else "#error no such unit"
    )
    flags = f"{units[0].build_arch_flags()} -include {header}"
    monkeypatch.setattr(units[0], "_arch_flags", flags)
    inductor.have_vectors_tested()
    x = torch.rand(40)
    with config.patch(fx_graph_cache=False), functorch_config.patch(enable_autograd_cache=False):
        torch.testing.assert_close(make_compiled(lambda x: x.exp() + 1)(x), x.exp() + 1)
    assert str(units[0]) not in map(str, cpu_vec_isa.valid_vec_isa_list())
    monkeypatch.undo()
    inductor.have_vectors_tested()
    assert list(map(str, cpu_vec_isa.valid_vec_isa_list())) == list(map(str, units))


def test_mode_is_told_as_options() -> None:
    settings = dynamo.compile_settings({"mode": "reduce-overhead"})
    assert settings["options"] == {"triton.cudagraphs": True}
    assert "mode" not in settings
