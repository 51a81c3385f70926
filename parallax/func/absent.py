"""Names of transforms that are not here, and what to write instead."""

from __future__ import annotations

__all__ = ["INSTEAD"]

INSTEAD = {
    "rearrange": "torch.func.rearrange(tensor, pattern), for the leaves of a tree by tree.map",
    "functionalize": "parallax.compile(fn); or torch.func.functionalize(fn), of tensors",
    "debug_unwrap": "torch.func.debug_unwrap(tensor)",
    "replace_all_batch_norm_modules_": "effects.collect(fn); running statistics are effects, "
    "which transforms take",
    # of functorch and torch.autograd.functional
    "combine_state_for_ensemble": "tree.stack(models); then func.vmap(lambda model: model(x))",
    "jacobian": "func.jacrev(fn), or func.jacobian_matrix(fn) as one matrix",
    "make_functional": "the model itself; it is a function of its leaves",
    "make_functional_with_buffers": "effects.collect(lambda model, x: model(x))(model, x)",
    "vhp": "func.hvp; a hessian is symmetric",
    # of JAX, jaxopt and optimistix
    "cg": "func.root(fn, init, linear_solve='cg')",
    "fold": "func.scan(step, start, xs)",
    "for_loop": "func.fori_loop(lower, upper, fn, init)",
    "gmres": "func.root(fn, init, linear_solve=gmres), with a function of yours",
    "map": "func.vmap(fn, chunk_size=...), or tree.map for leaves",
    "minimize": "func.argmin(loss, init)",
    "per_example_grad": "func.per_sample_grad(loss)",
    "per_sample_gradients": "func.per_sample_grad(loss)",
    "tape": "func.grad(loss), or model.reset(rng), loss.backward() and model.grad()",
    "stack": "tree.stack(models)",
    "vectorize": "func.vmap(fn)",
}
"""What to write instead of a name."""
