"""Every private or version-dependent part of torch and optree that Parallax touches.

Nothing outside this file imports a name that starts with an underscore from torch. When a new
torch release moves something, this is the only file that changes.
"""

# Private modules have no types and are not exported: that is what this file is about.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import CodeType
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

# optree names its global namespace by an object of a mangled name only.
_OPTREE_GLOBAL: Any = vars(optree.registry)["__GLOBAL_NAMESPACE"]

F = TypeVar("F", bound=Callable[..., Any])
Context = Any
KeyPath = Any

is_compiling: Callable[[], bool] = torch.compiler.is_dynamo_compiling
"""True while dynamo traces, which folds the call to a constant; a third of ``is_compiling``'s time.

Not true in a non-strict ``torch.export``, which runs Python as it is and wants the eager path."""


def is_torch_node(cls: type) -> bool:
    """Whether torch's own pytree registry knows ``cls``."""
    return cls in torch_pytree.SUPPORTED_NODES


def is_optree_node(cls: type, namespace: str = "") -> bool:
    """Whether optree's registry knows ``cls`` in ``namespace`` (``""`` is the global one)."""
    return optree.register_pytree_node.get(cls, namespace=namespace) is not None


def register_optree_node(
    cls: type, flatten: Callable[..., Any], unflatten: Callable[..., Any], *, entry: type
) -> None:
    """Registers ``cls`` in optree's global namespace, which every namespace falls back to."""
    optree.register_pytree_node(
        cls, flatten, unflatten, path_entry_type=entry, namespace=_OPTREE_GLOBAL
    )


def unregister_optree_node(cls: type) -> None:
    """Takes back ``register_optree_node``."""
    optree.unregister_pytree_node(cls, namespace=_OPTREE_GLOBAL)


def register_torch_node(
    cls: type,
    flatten: Callable[[Any], tuple[list[Any], Context]],
    unflatten: Callable[[Any, Context], Any],
    flatten_with_keys: Callable[[Any], tuple[list[tuple[KeyPath, Any]], Context]],
    *,
    name: str,
    dump_context: Callable[[Context], Any],
    load_context: Callable[[Any], Context],
) -> None:
    """Registers ``cls`` with ``torch.utils._pytree`` under a serialisable ``name``."""
    torch_pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=name,
        to_dumpable_context=dump_context,
        from_dumpable_context=load_context,
        flatten_with_keys_fn=flatten_with_keys,
    )


def mapping_key(name: str) -> KeyPath:
    """A key-path entry; ``torch.export`` refuses an attribute key with a dot, not a mapping key."""
    return torch_pytree.MappingKey(name)


innermost_transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
"""The innermost ``torch.func`` transform (vmap, grad, jvp, functionalize), ``None`` for none."""


def transform_active() -> bool:
    """Whether a ``torch.func`` transform is running."""
    return innermost_transform() is not None


def vmap_active() -> bool:
    """Whether a ``vmap`` is among the running transforms."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(entry.key() == torch._C._functorch.TransformType.Vmap for entry in stack)


is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether a tensor is a transform's wrapper, at any level."""


def level_of(tensor: Tensor) -> int:
    """The level of the innermost transform a tensor belongs to; 0 for a plain one."""
    level: int = torch._C._functorch.maybe_get_level(tensor)
    return max(level, 0)


def current_level() -> int:
    """How many transforms are running."""
    return torch._C._functorch.maybe_current_level() or 0


transforming: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""As ``transform_active``, and dynamo knows the answer while it traces."""


def constant_in_traces(function: F) -> F:
    """As ``torch.compiler.assume_constant_result``, which loads dynamo to say no more than this."""
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010  # types know no such attribute
    return function


@constant_in_traces
def _repeat() -> Any:
    from parallax._repeat import repeat  # imports dynamo, which runs already

    return repeat


def repeated(
    body: Callable[..., Tensor], value: Tensor, stacks: Sequence[Tensor], times: int
) -> Tensor:
    """Calls ``body(value, *rows)`` for each row of the stacks with the value of the call before.

    Only while dynamo traces; the body is traced and compiled once. It must not keep its value's
    tensor, nor return another shape.
    """
    count = len(stacks)

    def call(value: Tensor, *rows_and_stacks: Tensor) -> Tensor:
        return body(value, *rows_and_stacks[:count])

    firsts = [stack[0] for stack in stacks]
    return _repeat()(call, value, *firsts, *stacks, members=count, times=times)  # type: ignore[no-any-return]  # what the body returns


def dispatch_mode_active() -> bool:
    """Whether operators are being traced or faked (``make_fx``, ``FakeTensorMode``)."""
    return torch._C._len_torch_dispatch_stack() > 0


def module_calls_watched() -> bool:
    """Whether global hooks or ``torch.jit.trace`` watch every call of an ``nn.Module``."""
    module = torch.nn.modules.module
    return bool(
        module._global_forward_pre_hooks
        or module._global_forward_hooks
        or module._global_backward_pre_hooks
        or module._global_backward_hooks
        or torch._C._get_tracing_state()
    )


def run_as_it_is(function: Callable[..., Any]) -> None:
    """Has dynamo run a function, and all it calls, as ordinary Python where it does not trace it.

    As ``torch.compiler.disable``, without loading dynamo or wrapping the function.
    """
    frames = torch._C._dynamo.eval_frame
    skip = frames._FrameAction.SKIP
    code = function.__code__
    frames.set_code_exec_strategy(code, frames._FrameExecStrategy(skip, skip))


graph_task: Callable[[], int] = torch._C._current_graph_task_id
"""The number of the backward that this code runs within; -1 outside of any."""


def in_backward() -> bool:
    """Whether this code runs within autograd's backward, as recomputation does."""
    return graph_task() != -1


def differentiating() -> bool:
    """Whether a transform that differentiates (grad, jvp) is running, at whatever depth."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(interpreter.key() in _DIFFERENTIATING for interpreter in stack)


_DIFFERENTIATING = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)


def forward_level_active() -> bool:
    """Whether ``torch.autograd.forward_ad.dual_level`` is entered."""
    return torch.autograd.forward_ad._current_level >= 0


def tape_is_exact() -> bool:
    """Whether no transform, trace, dual level or inference mode is active; one call for all."""
    return not (
        is_compiling()
        or _peek() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch.is_inference_mode_enabled()
    )


_peek: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack


def is_inference_refusal(error: RuntimeError) -> bool:
    """Whether autograd met a tensor that was made in inference mode."""
    return str(error).startswith(
        (
            "Inference tensors cannot be saved for backward",
            "Setting requires_grad=True on inference tensor outside InferenceMode",
        )
    )


def is_hook_refusal(error: RuntimeError) -> bool:
    """Whether ``torch.func`` met saved-tensor hooks, which is how checkpointing is done."""
    return "don't yet support saved tensor hooks" in str(error)


NO_CHECKPOINT = (
    "torch.utils.checkpoint cannot run inside a torch.func transform (vmap, jacrev, hessian, a "
    "nested func.grad) nor in a compiled func.grad: torch.func takes no saved-tensor hooks. Call "
    "func.grad in eager mode with no transform around it, where it runs on autograd's tape and "
    "checkpoints work; or call the module without checkpoint here"
)


def refuse_traced_checkpoint() -> None:
    """Stops the trace if a checkpoint was recorded inside a derivative.

    Such a graph fails when it runs, and leaves ordinary checkpointing switched off in the process.
    """
    from torch._dynamo.comptime import comptime

    comptime(_find_traced_checkpoint)


def _find_traced_checkpoint(context: Any) -> None:
    depth = 0
    for node in context.graph().nodes:
        name = str(getattr(node.target, "__name__", node.target))
        if name.endswith("saved_tensors_hooks_disable"):
            depth += 1
        elif name.endswith("saved_tensors_hooks_enable"):
            depth -= 1
        elif depth > 0 and "checkpoint" in name:
            raise RuntimeError(NO_CHECKPOINT)


def open_checkpoint() -> None:
    """While dynamo traces a checkpoint: what runs in it may now add to a list outside of it.

    Dynamo refuses that, as eager code would add again when it computes the checkpoint again. Who
    asks for this does not do so in eager code either. Torch's configuration can only allow it to
    all code at once.
    """
    from torch._dynamo.comptime import comptime

    comptime(_open_checkpoint)


def close_checkpoint() -> None:
    """Undoes ``open_checkpoint``."""
    from torch._dynamo.comptime import comptime

    comptime(_close_checkpoint)


def _open_checkpoint(context: Any) -> None:
    tracer = context._i_will_not_complain_if_bc_breaks_InstructionTranslator().output.current_tracer
    if "checkpoint" in str(tracer.source_target):
        tracer.allowed_before = tracer.allow_side_effects_in_hop
        tracer.allow_side_effects_in_hop = True
        # Then every tensor that is computed within is handed out, too.
        tracer.traced_with_externally_visible_side_effects = True


def _close_checkpoint(context: Any) -> None:
    tracer = context._i_will_not_complain_if_bc_breaks_InstructionTranslator().output.current_tracer
    if "checkpoint" in str(tracer.source_target):
        tracer.allow_side_effects_in_hop = tracer.allowed_before


outside_transforms: Callable[[], AbstractContextManager[object]] = torch._C._DisableFuncTorch
"""Within ``with outside_transforms():`` operators on plain tensors pass ``torch.func`` by."""


_run_backward: Callable[..., Any] = torch.autograd.Variable._execution_engine.run_backward


def backward(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    inputs: Sequence[Tensor],
    retain_graph: bool,
    create_graph: bool,
) -> list[Tensor]:
    """As ``torch.autograd.grad``, with zeros for the inputs that nothing depends on.

    What that function does in Python before it calls the engine costs as much as four operators.
    """
    found: Sequence[Tensor | None]
    if any([type(x) is not Tensor for x in outputs]):
        found = torch.autograd.grad(
            outputs, inputs, cotangents, retain_graph=retain_graph, create_graph=create_graph,
            allow_unused=True,
        )  # fmt: skip
    else:
        # The function in between hands the context on to the threads of other devices.
        run = _run_backward if outputs[0].is_cpu else torch.autograd.graph._engine_run_backward
        found = run(
            tuple(outputs), tuple(cotangents), retain_graph, create_graph, tuple(inputs),
            allow_unreachable=True, accumulate_grad=False,
        )  # fmt: skip
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def accumulated(output: Tensor, cotangent: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """As ``backward`` for a graph that ends at these fresh leaves and at no other.

    Accumulating is cheaper than handing gradients out (by one in a hundred for 150 leaves), and
    each leaf gets a tensor of its own: none is shared, and none is an expanded number.
    """
    if type(output) is Tensor and output.is_cpu:
        _run_backward(
            (output,), (cotangent,), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
    else:
        torch.autograd.backward(output, cotangent)
    found = [leaf.grad for leaf in leaves]
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


# torch's functions of lists of tensors, and the copy of such a list into one vector.
foreach_add: Callable[..., Any] = torch._foreach_add
foreach_sub: Callable[..., Any] = torch._foreach_sub
foreach_mul: Callable[..., Any] = torch._foreach_mul
foreach_lerp: Callable[..., Any] = torch._foreach_lerp
foreach_norm: Callable[..., Any] = torch._foreach_norm
foreach_clone: Callable[..., Any] = torch._foreach_clone
fused_adam: Callable[..., Any] = torch._fused_adam_
fused_adamw: Callable[..., Any] = torch._fused_adamw_
fused_sgd: Callable[..., Any] = torch._fused_sgd_
disabled_torch_function: Any = torch._C._disabled_torch_function_impl
adafactor: Callable[..., None] = torch.optim._adafactor.adafactor
muon: Callable[..., None] = torch.optim._muon.muon
weight_norm: Callable[[Tensor, Tensor, int], Tensor] = torch._weight_norm
flatten_dense: Callable[[list[Tensor]], Tensor] = torch._C._nn.flatten_dense_tensors


AccumulateGrad: type = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]  # made in C++
"""The node of autograd's graph that stands for a leaf, its ``variable``."""


def run_vmap(
    fn: Callable[[list[Tensor]], Sequence[Tensor]],
    tensors: Sequence[Tensor],
    dims: Sequence[int],
    size: int,
    randomness: str,
) -> list[Tensor]:
    """``torch.func.vmap`` of a function of a list to a list, without its handling of pytrees.

    That costs more than all the rest for a small model. Eager only.

    Args:
        fn: takes one member of each tensor; its results get the mapped dimension in front.
        tensors: what is mapped.
        dims: the mapped dimension of each, not negative.
        size: how many members there are.
        randomness: ``"error"``, ``"same"`` or ``"different"``.
    """
    torch._functorch.predispatch.lazy_load_decompositions()
    functorch = torch._C._functorch
    level = functorch._vmap_increment_nesting(size, randomness)
    try:
        add = functorch._add_batch_dim
        outs = fn([add(t, dim, level) for t, dim in zip(tensors, dims, strict=True)])
        remove = functorch._remove_batch_dim
        return [remove(t, level, size, 0) for t in outs]
    finally:
        functorch._vmap_decrement_nesting()


class without_hooks:  # noqa: N801  # called like a function, as torch.no_grad is
    """Refuses saved-tensor hooks, and so checkpoints, as ``disable_saved_tensors_hooks`` does.

    That is a generator, which costs a small model some per cent.
    """

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        autograd = torch._C._autograd
        self._before = autograd._saved_tensors_hooks_get_disabled_error_message()
        autograd._saved_tensors_hooks_disable(NO_CHECKPOINT)

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            torch._C._autograd._saved_tensors_hooks_enable()
        else:
            torch._C._autograd._saved_tensors_hooks_disable(self._before)


# -- dynamo and inductor, which take long to import ---------------------------------------------


def is_transforming() -> bool:
    """Whether operations are not simply run: a transform, dispatch mode or another trace is on."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch.fx._symbolic_trace.is_fx_symbolic_tracing()
    )


def tensor_check(
    tensors: Sequence[Tensor],
    sizes: Sequence[Sequence[int | None]],
    strides: Sequence[Sequence[int | None]],
) -> Any:
    """Dynamo's own check of the metadata of several tensors at once, in C++.

    ``check(*tensors)`` compares type, dispatch keys, dtype, device, requires_grad under the
    present grad mode, rank, and those sizes and strides that are not ``None``; it is false if a
    tensor comes twice. ``check_verbose(*tensors, tensor_check_names=...)`` says what differs.
    """
    lists: Any = [list(size) for size in sizes], [list(stride) for stride in strides]
    return torch._C._dynamo.guards.TensorGuards(
        *tensors, dynamic_dims_sizes=lists[0], dynamic_dims_strides=lists[1]
    )


def recompile_limit() -> int:
    """How many graphs torch makes for one function."""
    from torch._dynamo import config

    return config.recompile_limit


def mode_options(mode: str, dynamic: bool | None) -> dict[str, Any]:
    """What a ``mode`` of ``torch.compile`` means in inductor's options."""
    from torch._inductor import list_mode_options

    return list_mode_options(mode, dynamic)


compiled_entries: Callable[[CodeType], Sequence[Any]] = (
    torch._C._dynamo.eval_frame._debug_get_cache_entry_list
)
"""What dynamo has made of a code object: entries of a guard and a code."""


def plain_frames() -> Callable[[], bool]:
    """A function that tells whether nothing but ordinary running is asked of dynamo."""
    from torch._dynamo import eval_frame

    callback = torch._C._dynamo.eval_frame.get_eval_frame_callback
    return lambda: callback() is None and eval_frame._stance.stance == "default"


def trace_reporter(note: Callable[[bool, frozenset[str]], None]) -> tuple[Any, Any]:
    """What a traced function calls, and with what, to have ``note`` told what it did.

    Call it last. ``note`` gets whether an input was written to, for dynamo traces with stand-ins
    for tensors, which count that; and the names of globals and attributes in the code it traced.
    """
    from torch._dynamo.comptime import comptime

    def look(context: Any) -> None:
        values = [
            node.meta.get("example_value") for node in context.graph().find_nodes(op="placeholder")
        ]
        tensors = [value for value in values if isinstance(value, Tensor)]
        codes = torch._guards.TracingContext.get_traced_code() or ()
        note(
            any([tensor.is_inference() or tensor._version for tensor in tensors]),
            frozenset([name for code in codes for name in code.co_names]),
        )

    return comptime, look


def is_backend_failure(error: RuntimeError) -> bool:
    """Whether the compiler behind dynamo could not compile a graph."""
    from torch._dynamo.exc import BackendCompilerFailed

    return isinstance(error, BackendCompilerFailed)


def unasserted_inputs() -> dict[str, Any]:
    """Inductor's options for code that does not check the sizes of its inputs again.

    What it checks of the results of kernels stays: that guards against wrong descriptions of them.
    """
    from torch._inductor import config

    # A pass of the user's own is left alone.
    free = getattr(config, "_post_fusion_custom_pass", "no such option") is None
    return {"_post_fusion_custom_pass": _unassert()} if free else {}


@functools.cache
def _unassert() -> Any:
    from torch._inductor.custom_graph_pass import CustomSchedulerPass
    from torch._inductor.virtualized import V

    class Unassert(CustomSchedulerPass):
        def __call__(self, nodes: list[Any]) -> list[Any]:
            getattr(V.graph.wrapper_code, "_pending_input_asserts", {}).clear()
            return nodes

        def uuid(self) -> str:
            return "parallax.unasserted_inputs"

        def __reduce__(self) -> Any:  # inductor pickles its options for the key of its cache
            return _unassert, ()

    return Unassert()
