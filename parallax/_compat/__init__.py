"""Every private or version-dependent part of torch and optree that Parallax touches.

Nothing outside this folder imports a name that starts with an underscore from torch. When a new
torch release moves something, only files in here change. Each file is imported by its name, as in
``from parallax._compat import dynamo``, and each name has one home:

- ``registries``: how classes become nodes of torch's and optree's pytrees.
- ``functorch``: the running ``torch.func`` transforms, their levels and wrappers; a lean ``vmap``.
- ``modes``: whether anything else stands between an operator and its plain run.
- ``autograd``: the engine that runs a backward, and its error messages.
- ``checkpoints``: where ``torch.utils.checkpoint`` is refused, and what it may do in a trace.
- ``kernels``: functions of lists of tensors, fused optimizer steps, other operators.
- ``shards``: distributed tensors, and values placed as one.
- ``elementwise``: what an in-place function does to each element.
- ``buckets``: several distributed tensors in one collective; ``collectives``: with derivatives.
- ``sums``: those that tensor parallelism waits for, computed where a layer ends.
- ``regathered`` and ``regathering``: what was gathered is gathered again in backward, on the tape
  and in compiled graphs.
- ``sharding_rules``: what torch's distributed tensors lack.
- ``dynamo``: what a trace is, what it found, how code is hidden from it, its guards and caches.
- ``in_trace``: what a local stands for while dynamo traces, and where the trace is.
- ``inductor``: its options; ``inductor_...``: what its graphs are rewritten to, and why.
- ``flow``: loops and branches that are traced once; ``flow_operator``, ``flow_programs`` and
  ``flow_branches`` are how. ``rule_operator``: derivatives that somebody has written.
- ``recompute``: functions that are computed once more for their derivative within transforms;
  ``flow_recompute``: in compiled code; ``drawing``: whether they draw, and must not be.
- ``repeat``: one traced function that is called many times; ``repeat_operator`` is how, and
  ``partition`` what it keeps for backward.

Importing them loads neither dynamo nor inductor, but for those that are called ``..._operator``.
"""
