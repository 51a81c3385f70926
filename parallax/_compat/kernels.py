"""Functions of lists of tensors, fused optimizer steps, and other operators without a public name.

These are what ``torch.optim`` and ``torch.nn`` themselves call; their public forms write to their
parameters or keep them on an object, which immutable modules cannot use.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# torch's functions of lists of tensors, and the copy of such a list into one vector.
foreach_add: Callable[..., Any] = torch._foreach_add
foreach_sub: Callable[..., Any] = torch._foreach_sub
foreach_mul: Callable[..., Any] = torch._foreach_mul
foreach_lerp: Callable[..., Any] = torch._foreach_lerp
foreach_norm: Callable[..., Any] = torch._foreach_norm
foreach_clone: Callable[..., Any] = torch._foreach_clone
foreach_copy_: Callable[..., Any] = torch._foreach_copy_
fused_adam: Callable[..., Any] = torch._fused_adam_
fused_adamw: Callable[..., Any] = torch._fused_adamw_
fused_sgd: Callable[..., Any] = torch._fused_sgd_
disabled_torch_function: Any = torch._C._disabled_torch_function_impl
adafactor: Callable[..., None] = torch.optim._adafactor.adafactor
sparse_adam: Callable[..., None] = torch.optim._functional.sparse_adam
muon: Callable[..., None] = torch.optim._muon.muon
weight_norm: Callable[[Tensor, Tensor, int], Tensor] = torch._weight_norm
is_dense: Callable[[Tensor], bool] = torch.ops.aten.is_non_overlapping_and_dense
attention_by_operators: Callable[..., tuple[Tensor, Tensor]] = (
    torch._scaled_dot_product_attention_math
)
ctc_loss: Callable[..., tuple[Tensor, Tensor]] = torch._ctc_loss
flatten_dense: Callable[[list[Tensor]], Tensor] = torch._C._nn.flatten_dense_tensors
