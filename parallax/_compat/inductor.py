"""Inductor's options: what a mode means, and code that does not check its inputs again.

torch's configuration is global, and its modes are expanded by a private function. A pass of our
own is the only way to take out checks that ours has made already. Loads inductor when called.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx import Graph
from torch.nn import Parameter

from parallax._compat import functorch

_ROOT = Path(__file__).parents[1]


def mode_options(mode: str, dynamic: bool | None) -> dict[str, Any]:
    """What a ``mode`` of ``torch.compile`` means in inductor's options."""
    from torch._inductor import list_mode_options

    return list_mode_options(mode, dynamic)


def with_pass(
    options: dict[str, Any], stages: Sequence[str], rewrite: Callable[[Graph], None]
) -> dict[str, Any]:
    """Inductor's options with a pass over each graph, after those that a user asks for.

    Args:
        options: a user's, or those with other passes of ours.
        stages: the options that hold passes.
        rewrite: the pass, a function of a module; it changes the graph that it is given.
    """
    from torch._inductor import config

    found = dict(options)
    for stage in stages:
        theirs = options.get(stage, getattr(config, stage))
        if theirs is None:
            theirs = ()
        elif not isinstance(theirs, (list, tuple)):
            theirs = (theirs,)
        found[stage] = (*theirs, _graph_pass(rewrite))
    return found


@functools.cache
def _graph_pass(rewrite: Callable[[Graph], None]) -> Any:
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class Rewrite(CustomGraphPass):
        def __call__(self, graph: Graph) -> None:
            rewrite(graph)

        def uuid(self) -> str | None:
            memory = _shared_memory()
            if memory is None:
                return None  # so torch keeps the graph nowhere
            return f"{rewrite.__module__}.{rewrite.__qualname__} {sources()} {memory}"

    return Rewrite()


def _shared_memory() -> str | None:
    """Which inputs of the graph that dynamo has traced share memory; ``None`` with floats in it.

    Torch's keys of AOTAutograd's cache lack both (2.13 and 2.14). A graph that writes to an input
    is another where a second input has the same memory. A float may become a constant while its
    graph is compiled, with a guard that is not there when the graph is found in the cache.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    graph: Graph
    try:
        graph = InstructionTranslator.current_tx().output.graph
    except AttributeError:
        return "outside of a trace"  # a backward graph, which is compiled when it is first called
    inputs = [node.meta.get("grapharg") for node in graph.find_nodes(op="placeholder")]
    if any([one is not None and one.pass_arg_as_tensor for one in inputs]):
        return None
    groups: dict[int, list[Any]] = {}
    for place, one in enumerate(inputs):
        tensor: Any = None if one is None else one.example
        plain = type(tensor) in (Tensor, Parameter) and not functorch.is_wrapped(tensor)
        if plain and tensor.layout is torch.strided:
            groups.setdefault(tensor.untyped_storage()._cdata, []).append((place, tensor))
    shared = [[(k, *_region(x)) for k, x in group] for group in groups.values() if len(group) > 1]
    return f"shared memory: {shared}"


def _region(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor is in memory that it shares, and what it is a view of."""
    base = tensor if tensor._base is None else tensor._base
    return tensor.storage_offset(), base.storage_offset(), tuple(base.shape), base.stride()


@functools.cache
def sources() -> str:
    """What tells this Parallax from any other, in the keys of torch's caches on disk.

    Graphs hold operators and passes that are Python of ours. Torch's keys have their names, so
    without this a graph of an older Parallax would be found after an update.
    """
    from torch._inductor.custom_graph_pass import get_hash_for_files

    return get_hash_for_files(tuple(map(str, sorted(_ROOT.rglob("*.py"))))).hex()


class NotInCppError(Exception):
    """A graph must be called from Python."""


def is_cpp_failure(error: RuntimeError) -> bool:
    """Whether a graph was not compiled because of its C++, the kernels or what is around them.

    Inductor writes some operators in Python only, ``invoke_subgraph`` among them, and says so by
    many exceptions; all come from one function. The compiler refuses some of what it writes, and
    what was compiled may need what this torch does not have.
    """
    from torch._inductor.exc import CppCompileError, InductorError

    inner = getattr(error, "inner_exception", None)
    if isinstance(inner, NotInCppError):
        return True
    if not isinstance(error, InductorError) or inner is None:
        return False
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(inner.__traceback__)]
    unloaded = isinstance(inner, (ImportError, OSError)) and "_load_library" in names
    return unloaded or isinstance(inner, CppCompileError) or "codegen_with_cpp_wrapper" in names


def untested_vectors() -> dict[str, Any]:
    """Inductor's options that take the processor's vector units without a test.

    Inductor compiles a library for each of them in an empty cache, 7 s of CPU, and loads each in a
    process of its own in every process, 1 s (torch 2.13 and 2.14), to see whether compiler and
    torch know them. A graph is compiled and loaded, too, and shows the same.
    """
    from torch._inductor import config

    if config.cpp.vec_isa_ok is not None:
        return {}
    _take_extensions()
    return {"cpp.vec_isa_ok": True}


@functools.cache
def _take_extensions() -> None:
    """Has inductor take two extensions of AVX-512 without their own tests, 2 s more of CPU.

    Every compiler of C++20 knows them. Inductor keeps the answers, which no option gives.
    """
    from torch._inductor import config, cpu_vec_isa

    tested = cpu_vec_isa.VecISA.check_build
    taken = {
        cpu_vec_isa.VecAVX512._avx512_bf16_code,
        cpu_vec_isa.VecAVX512VNNI._avx512_vnni_code,
    }

    def check_build(unit: Any, code: str) -> bool:
        return code in taken or tested(unit, code)

    with (
        mock.patch.object(cpu_vec_isa.VecISA, "check_build", check_build),
        config.patch({"cpp.vec_isa_ok": True}),
    ):
        cpu_vec_isa.valid_vec_isa_list()


def have_vectors_tested() -> None:
    """Has inductor test vector units from now on, where a graph failed that took them without."""
    from torch._inductor import cpu_vec_isa

    kept: list[Any] = [cpu_vec_isa.valid_vec_isa_list, cpu_vec_isa.VecISA._VecISA__bool__impl]  # type: ignore[attr-defined]  # its private name
    kept += [kind.__bool__ for kind in {type(unit) for unit in cpu_vec_isa.supported_vec_isa_list}]
    for answer in kept:
        if hasattr(answer, "cache_clear"):
            answer.cache_clear()


def lighter_code(*, asserted: bool) -> dict[str, Any]:
    """Inductor's options for code around kernels that is compiled sooner, and does less.

    In C++ it is one function of thousands of lines, which a compiler takes longer to optimise than
    all kernels: 18 of 20 s for a training step of six transformer blocks, and 7 s if it need not.
    To run it takes as long, as it only calls. In Python, kernels are compiled as one library.

    Args:
        asserted: whether it checks the sizes of its inputs again. What it checks of the results of
            kernels stays: that guards against wrong descriptions of them.
    """
    from torch._inductor import config

    # A pass of the user's own is left alone.
    free = getattr(config, "_post_fusion_custom_pass", "no such option") is None
    return {"_post_fusion_custom_pass": _lighten(asserted)} if free else {}


# A declaration, whose attributes those of the definition are added to. Other compilers ignore it.
_UNOPTIMISED = """
#if defined(__GNUC__) && !defined(__clang__)
void inductor_entry_impl(AtenTensorHandle*, AtenTensorHandle*) __attribute__((optimize("Og")));
#endif
"""

# In Python, before any kernel is defined. The kernels of graphs within the graph are there as well.
_TOGETHER = """
from parallax._compat.kernel_library import Kernels
async_compile = Kernels()
"""


@functools.cache
def _lighten(asserted: bool) -> Any:
    from torch._inductor.custom_graph_pass import CustomSchedulerPass
    from torch._inductor.graph import SubgraphLowering
    from torch._inductor.virtualized import V

    class Lighten(CustomSchedulerPass):
        def __call__(self, nodes: list[Any]) -> list[Any]:
            code = V.graph.wrapper_code
            if not asserted:
                getattr(code, "_pending_input_asserts", {}).clear()
            if V.graph.cpp_wrapper and not V.graph.aot_mode:
                code.header.splice(_UNOPTIMISED)
            elif not V.graph.cpp_wrapper and not isinstance(V.graph, SubgraphLowering):
                code.header.splice(_TOGETHER)
            return nodes

        def uuid(self) -> str:
            return f"parallax.lighter_code {asserted} {_UNOPTIMISED} {_TOGETHER} {sources()}"

        def __reduce__(self) -> Any:  # inductor pickles its options for the key of its cache
            return _lighten, (asserted,)

    return Lighten()
