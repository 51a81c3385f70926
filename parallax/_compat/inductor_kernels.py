"""Products of small matrices as C++ in the graph, where inductor would call a library.

A library looks at the sizes, packs both matrices and finds a kernel at every call. Here the sizes
are constants of the code, and a matrix is packed only if its rows are not there as vectors. One
thread on Zen 4, against MKL 2024.2: a third of the time at 16 x 16, three quarters at 128 x 128.

Inductor's own kernels for products need constant weights or a benchmark at each compilation.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_small", "product"]

_library = torch.library.Library("parallax", "FRAGMENT")
_library.define("small_product(Tensor left, Tensor right) -> Tensor")
_library.impl("small_product", torch.matmul, "CompositeExplicitAutograd")

_aten = torch.ops.aten

_UNITS = ("AVX2", "AVX512")  # with others it was not measured
_PACKED = 2**14  # entries of the right matrix, which may be copied to the stack, with its margin
_APART = 1024  # bytes between two rows of the left matrix; further apart they evict each other
_ALONE = 2**20  # multiplications that one thread does as fast as many
_SHARED = 2**17  # multiplications that are worth a second thread


def is_small(left: Tensor, right: Tensor) -> bool:
    """Whether this is faster here than in a library; both have two or three dimensions."""
    rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    batch = len(left) if left.dim() == 3 else 1
    return (
        torch.backends.cpu.get_cpu_capability() in _UNITS
        and inner * max(columns, 16) <= _PACKED
        and left.stride(-2) * left.element_size() <= _APART
        and (batch > 1 or rows * inner * columns <= _ALONE)
    )


def product() -> Any:
    """The operator for products of two matrices, or of two batches; inductor knows it then."""
    _register()
    return torch.ops.parallax.small_product.default


@functools.cache
def _register() -> None:
    from torch._inductor import ir, lowering
    from torch._inductor.graph import SubgraphLowering
    from torch._inductor.utils import parallel_num_threads
    from torch._inductor.virtualized import V

    class SmallProduct(ir.ExternKernelOut):
        """A call of the function below; the layouts of its inputs are known when it is written."""

        def codegen(self, wrapper: Any) -> None:
            if not hasattr(wrapper, "parallax_products"):
                wrapper.header.splice(_SOURCE)
                wrapper.parallax_products = True
            inputs: Any = self.inputs
            left, right = inputs
            *batches, rows, inner = left.get_size()
            columns = right.get_size()[-1]
            batch = batches[0] if batches else 1
            kind = {torch.float32: "float", torch.float64: "double"}[self.get_dtype()]
            sizes = [batch, rows, columns, inner, *_strides(left), *_strides(right)]
            many = batch > 1 and batch * rows * columns * inner > _SHARED
            threads = parallel_num_threads() if many else 1
            wrapper.writeline(
                f"parallax_products::product<{', '.join([kind, *map(str, sizes)])}>"
                f"({_pointer(left, kind)}, {_pointer(right, kind)}, "
                f"({kind}*)({self.get_name()}.data_ptr()), {threads});"
            )

    def lower(left: Any, right: Any) -> Any:
        if isinstance(V.graph, SubgraphLowering):  # a branch or a loop, whose header is not written
            name = _aten.bmm if len(left.get_size()) == 3 else _aten.mm
            return lowering.lowerings[name.default](left, right)
        left, right = ir.ExternKernel.realize_input(left), ir.ExternKernel.realize_input(right)
        for one in (left, right):
            one.freeze_layout()
        sizes = [*left.get_size()[:-1], right.get_size()[-1]]
        layout = ir.FixedLayout(left.get_device(), left.get_dtype(), sizes)
        return ir.TensorBox.create(SmallProduct(layout, [left, right]))

    lowering.register_lowering(torch.ops.parallax.small_product.default, type_promotion_kind=None)(
        lower
    )


def _strides(one: Any) -> list[int]:
    """Of the batch, the rows and the columns; a batch of one has none."""
    found = [int(n) for n in one.get_stride()]
    return [0] * (3 - len(found)) + found


def _pointer(one: Any, kind: str) -> str:
    return f"(const {kind}*)({one.get_name()}.data_ptr()) + {int(one.get_layout().offset)}"


# Sums of as many entries as there are vector registers are kept there, while a row of the right
# matrix is multiplied by as many entries of the left one as it takes.
_SOURCE = """
#include <torch/csrc/inductor/cpp_prefix.h>
namespace parallax_products {
template <typename T>
using V = at::vec::Vectorized<T>;

template <typename T>
constexpr int64_t REGISTERS = V<T>::size() * sizeof(T) >= 64 ? 32 : 16;

// A block of the result: rows x vectors. TAIL is how much of the last vector is there, 0 for all.
template <typename T, int ROWS, int VECTORS, int64_t K, int64_t AM, int64_t AK, int64_t BK,
          int64_t CM, int64_t TAIL>
inline __attribute__((always_inline)) void block(const T* a, const T* b, T* c) {
  constexpr int64_t W = V<T>::size();
  V<T> sum[ROWS][VECTORS];
#pragma GCC unroll 32
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sum[r][v] = V<T>(T(0));
  for (int64_t k = 0; k < K; ++k) {
    V<T> right[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v)
      right[v] = TAIL && v == VECTORS - 1 ? V<T>::loadu(b + k * BK + v * W, TAIL)
                                          : V<T>::loadu(b + k * BK + v * W);
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r) {
      V<T> left(a[r * AM + k * AK]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = at::vec::fmadd(left, right[v], sum[r][v]);
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v)
      if (TAIL && v == VECTORS - 1)
        sum[r][v].store(c + r * CM + v * W, TAIL);
      else
        sum[r][v].store(c + r * CM + v * W);
}

template <typename T, int VECTORS, int64_t M, int64_t K, int64_t AM, int64_t AK, int64_t BK,
          int64_t CM, int64_t TAIL>
inline __attribute__((always_inline)) void columns(const T* a, const T* b, T* c) {
  constexpr int64_t MOST = (REGISTERS<T> - 1 - VECTORS) / VECTORS;
  constexpr int64_t PARTS = (M + MOST - 1) / MOST;
  constexpr int64_t ROWS = (M + PARTS - 1) / PARTS;
  constexpr int64_t WHOLE = M / ROWS * ROWS;
  for (int64_t m = 0; m < WHOLE; m += ROWS)
    block<T, ROWS, VECTORS, K, AM, AK, BK, CM, TAIL>(a + m * AM, b, c + m * CM);
  if constexpr (M > WHOLE)
    block<T, M - WHOLE, VECTORS, K, AM, AK, BK, CM, TAIL>(a + WHOLE * AM, b, c + WHOLE * CM);
}

// The columns of the right matrix lie side by side.
template <typename T, int64_t M, int64_t N, int64_t K, int64_t AM, int64_t AK, int64_t BK>
inline void dense(const T* a, const T* b, T* c) {
  constexpr int64_t W = V<T>::size(), VECTORS = (N + W - 1) / W;
  constexpr int64_t WIDEST = REGISTERS<T> == 32 ? 4 : 2;
  constexpr int64_t PARTS = (VECTORS + WIDEST - 1) / WIDEST;
  constexpr int64_t EACH = (VECTORS + PARTS - 1) / PARTS, WIDTH = EACH * W;
  constexpr int64_t WHOLE = N / WIDTH * WIDTH, LEFT = N - WHOLE;
  for (int64_t n = 0; n < WHOLE; n += WIDTH)
    columns<T, EACH, M, K, AM, AK, BK, N, 0>(a, b + n, c + n);
  if constexpr (LEFT > 0)
    columns<T, (LEFT + W - 1) / W, M, K, AM, AK, BK, N, LEFT % W>(a, b + WHOLE, c + WHOLE);
}

// M x K by K x N, with the strides of a (batch, row, column) and of b.
template <typename T, int64_t BATCH, int64_t M, int64_t N, int64_t K, int64_t AB, int64_t AM,
          int64_t AK, int64_t BB, int64_t BK, int64_t BN>
__attribute__((noinline)) void product(const T* a, const T* b, T* c, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < BATCH; ++i) {
    const T* right = b + i * BB;
    if constexpr (BN == 1) {
      dense<T, M, N, K, AM, AK, BK>(a + i * AB, right, c + i * M * N);
    } else {
      constexpr int64_t WIDTH = (N + V<T>::size() - 1) / V<T>::size() * V<T>::size();
      alignas(64) T packed[K * WIDTH];
      if constexpr (BK == 1)
        at::vec::transpose_mxn<T>(right, BN, packed, WIDTH, N, K);
      else
        for (int64_t k = 0; k < K; ++k)
          for (int64_t n = 0; n < N; ++n) packed[k * WIDTH + n] = right[k * BK + n * BN];
      dense<T, M, N, K, AM, AK, WIDTH>(a + i * AB, packed, c + i * M * N);
    }
  }
}
}  // namespace parallax_products
"""
