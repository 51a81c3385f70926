"""Kernels that Python calls, compiled as one library for a graph instead of one for each.

Inductor compiles each kernel by itself: of 0.75 s that the compiler takes for a kernel of 150 lines
0.55 are headers and the linker (torch 2.13). The 20 kernels of a stack of transformer blocks with
AdamW take 18 s like that, and 2.2 s together. A graph's code makes ``Kernels`` in place of
``AsyncCompile``, and nothing else in it changes. Loads inductor.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch._inductor.async_compile import AsyncCompile, get_compile_threads
from torch._inductor.codecache import CppPythonBindingsCodeCache
from torch._inductor.exc import CppCompileError

__all__ = ["Kernels"]

_LARGEST = 100_000  # characters: 2 s of the compiler; the rest is compiled at the same time

_HEADER = "#include <torch/csrc/inductor/cpp_prefix.h>"
_BEGINNING = re.compile(rf'\s*{re.escape(_HEADER)}\s*extern "C"\s+void\s+kernel(?=\()')


class _Kernel(NamedTuple):
    """A kernel until its library is there: the types of its arguments, and its C++ after a name."""

    types: Sequence[str]
    rest: str
    source: str


class _Library(CppPythonBindingsCodeCache):
    entry_function = "parallax_kernels"


class Kernels(AsyncCompile):
    """``AsyncCompile`` which puts kernels together that are one plain function each."""

    def cpp_pybinding(self, argtypes: Sequence[str], source_code: str) -> Any:
        """What stands for a kernel until ``wait``; what is more than a function is left alone."""
        beginning = _BEGINNING.match(source_code)
        rest = source_code[beginning.end() :] if beginning else ""
        if not beginning or "#include" in rest or re.search(r"\bkernel\b", rest):
            return super().cpp_pybinding(argtypes, source_code)  # type: ignore[arg-type]  # it is not written to
        return _Kernel(argtypes, rest, source_code)

    def wait(self, scope: dict[str, Any]) -> None:
        """Compiles and loads the kernels of a module's scope, and puts them there."""
        found = {name: value for name, value in scope.items() if type(value) is _Kernel}
        submit = self.submit if get_compile_threads() > 1 else None
        parts = _parted(list(found.items()))
        libraries: list[Any] = [
            _Library.load_async(_code([kernel for _, kernel in part]), submit_fn=submit)
            for part in parts
        ]
        for part, library in zip(parts, libraries, strict=True):
            try:
                made = library()
            except CppCompileError:  # one may define what another does; torch says what is wrong
                for name, kernel in part:
                    scope[name] = super().cpp_pybinding(kernel.types, kernel.source)  # type: ignore[arg-type]  # as above
                continue
            for k, (name, _) in enumerate(part):
                scope[name] = getattr(made, f"kernel_{k}")
        super().wait(scope)


def _parted(kernels: list[tuple[str, _Kernel]]) -> list[list[tuple[str, _Kernel]]]:
    """The kernels of each library: the same for any number of threads, so it is found again."""
    parts: list[list[tuple[str, _Kernel]]] = []
    size = 0
    for name, kernel in kernels:
        size += len(kernel.rest)
        if not parts or size > _LARGEST:
            parts.append([])
            size = len(kernel.rest)
        parts[-1].append((name, kernel))
    return parts


def _code(kernels: Sequence[_Kernel]) -> str:
    functions = [f"static void kernel_{k}{kernel.rest}" for k, kernel in enumerate(kernels)]
    callers = [_caller(k, kernel.types) for k, kernel in enumerate(kernels)]
    methods = [
        f'{{"kernel_{k}", (PyCFunction)(void*)call_{k}, METH_FASTCALL, ""}},'
        for k in range(len(kernels))
    ]
    module = _MODULE.replace("METHODS", "\n    ".join(methods))
    return "\n".join([_HEADER, *functions, _ARGUMENTS, *callers, module])


def _caller(number: int, types: Sequence[str]) -> str:
    """The function that Python calls, as inductor writes it but for the tuple of arguments."""
    given = [f"argument<{kind.replace('const ', '')}>(args[{k}])" for k, kind in enumerate(types)]
    return f"""
static PyObject* call_{number}(PyObject*, PyObject* const* args, Py_ssize_t count) {{
    try {{
        if (count != {len(types)}) [[unlikely]]
            throw std::runtime_error("requires {len(types)} args");
        kernel_{number}({", ".join(given)});
    }} catch (std::exception const& error) {{
        PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    }} catch (...) {{
        PyErr_SetString(PyExc_RuntimeError, "unhandled error");
        return nullptr;
    }}
    Py_RETURN_NONE;
}}"""


# Torch gives the address of a function of its own in the environment: headers of its are slow.
_ARGUMENTS = """
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <cstdlib>
#include <stdexcept>
#include <type_traits>

static void* (*data_of)(PyObject*);

template <typename T> static inline T argument(PyObject* value) {
    static_assert(std::is_pointer_v<T>, "arg type must be pointer or long");
    return static_cast<T>(data_of(value));
}
template <> inline int64_t argument<int64_t>(PyObject* value) {
    auto found = PyLong_AsSsize_t(value);
    if (found == -1 && PyErr_Occurred()) [[unlikely]]
        throw std::runtime_error("expected int arg");
    return found;
}
template <> inline uintptr_t argument<uintptr_t>(PyObject* value) {
    auto found = PyLong_AsVoidPtr(value);
    if (!found && PyErr_Occurred()) [[unlikely]]
        throw std::runtime_error("expected int arg");
    return reinterpret_cast<uintptr_t>(found);
}
template <> inline float argument<float>(PyObject* value) {
    auto found = PyFloat_AsDouble(value);
    if (found == -1.0 && PyErr_Occurred()) [[unlikely]]
        throw std::runtime_error("expected float arg");
    return static_cast<float>(found);
}
"""

_MODULE = """
static PyMethodDef methods[] = {
    METHODS
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition =
    {PyModuleDef_HEAD_INIT, "parallax_kernels", NULL, -1, methods};

PyMODINIT_FUNC PyInit_parallax_kernels(void) {
    const char* text = std::getenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR");
    auto address = text ? static_cast<uintptr_t>(std::strtoull(text, nullptr, 10)) : 0;
    if (!address) {
        PyErr_SetString(
            PyExc_RuntimeError, "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR must be an address");
        return nullptr;
    }
    data_of = reinterpret_cast<decltype(data_of)>(address);
    PyObject* made = PyModule_Create(&definition);
#ifdef Py_GIL_DISABLED
    if (made)
        PyUnstable_Module_SetGIL(made, Py_MOD_GIL_NOT_USED);
#endif
    return made;
}
"""
