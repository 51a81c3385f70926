"""Names for operations on trees that are not here, and what to write instead."""

from __future__ import annotations

__all__ = ["INSTEAD"]

_AT = "tree.select(model, path)"
_CAST = "tree.to(model, dtype=...)"
_DRAWN = (
    "tree.map_with_path(lambda path, g: random.normal(random.fold_in(key, path), g.shape), grads)"
)

INSTEAD = {
    "all": "all([bool(x.all()) for x in tree.leaves(model)])",
    "any": "any([bool(x.any()) for x in tree.leaves(model)])",
    "apply": f"{_AT}.apply(fn), or tree.map(fn, model)",
    "astype": _CAST,
    "at": f"{_AT}.set(new)",
    "cast": _CAST,
    "cat": "tree.map(lambda *leaves: torch.cat(leaves), first, second)",
    "clone": "tree.map(torch.clone, model)",
    "concat": "tree.map(lambda *leaves: torch.cat(leaves), first, second)",
    "concatenate": "tree.map(lambda *leaves: torch.cat(leaves), first, second)",
    "copy": "tree.map(torch.clone, model); the tree itself needs no copy, as nothing changes it",
    "count": "tree.size(model) for numbers, len(tree.leaves(model)) for tensors",
    "detach": "tree.map(torch.detach, model)",
    "device": "tree.leaves(model)[0].device",
    "div": "tree.scale(model, 1 / number), or tree.map(torch.div, first, second)",
    "dot": "tree.vdot(first, second)",
    "double": _CAST,
    "dtype": "tree.leaves(model)[0].dtype",
    "flatten_with_path": "tree.named_leaves(model)",
    "float": _CAST,
    "freeze": f"{_AT}.freeze()",
    "full_like": "tree.map(lambda x: torch.full_like(x, value), model)",
    "get": f"{_AT}.get()",
    "global_norm": "tree.norm(grads)",
    "half": _CAST,
    "inference": "model.eval()",
    "index": "tree.map(lambda x: x[index], model)",
    "insert": f"{_AT}.insert_before(layer), or insert_after",
    "is_leaf": "isinstance(x, torch.Tensor)",
    "isfinite": "all([bool(x.isfinite().all()) for x in tree.leaves(model)])",
    "isnan": "any([bool(x.isnan().any()) for x in tree.leaves(model)])",
    "l2_norm": "tree.norm(grads)",
    "leaves_with_path": "tree.named_leaves(model)",
    "max": "max([float(x.max()) for x in tree.leaves(model)])",
    "mean": "tree.ravel(model)[0].mean(); of several models, "
    "tree.map(lambda *leaves: sum(leaves) / len(leaves), *models)",
    "mul": "tree.scale(model, number), or tree.map(torch.mul, first, second)",
    "multimap": "tree.map(fn, first, second)",
    "named_parameters": "tree.named_leaves(model)",
    "neg": "tree.scale(model, -1)",
    "negative": "tree.scale(model, -1)",
    "normal_like": _DRAWN,
    "numel": "tree.size(model)",
    "ones_like": "tree.map(torch.ones_like, model)",
    "parameters": "tree.leaves(tree.partition(model, 'parameter')[0])",
    "paths": "list(tree.named_leaves(model))",
    "pprint": "print(model), f'{model:shapes}' or tree.summary(model)",
    "random_like": _DRAWN,
    "random_normal": _DRAWN,
    "reduce": "functools.reduce(fn, tree.leaves(model))",
    "register": "registry.register(cls, flatten, unflatten), from parallax",
    "replace": "model.replace(field=...) or tree.select(model, path).set(new)",
    "scalar_mul": "tree.scale(model, number)",
    "serialise": "io.save(model, path)",
    "set": f"{_AT}.set(new)",
    "shape": "f'{model:shapes}', or tree.map(lambda x: x.shape, model)",
    "slice": "tree.map(lambda x: x[index], model)",
    "sum": "sum([x.sum() for x in tree.leaves(model)])",
    "transpose": "tree.unstack(model), and tree.stack(models)",
    "unfreeze": f"{_AT}.unfreeze()",
    "where": "tree.map(lambda a, b: torch.where(condition, a, b), first, second)",
    "zeros": "tree.zeros_like(model)",
}
"""What to write instead of a name."""
