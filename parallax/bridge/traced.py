"""Calling a lifted module while dynamo traces.

There ``torch.func.functional_call`` does the work, which dynamo knows. It runs a template: an
``nn.Module`` tree without tensors, built outside of the trace. What a template is built from,
the *signature*, is nothing but numbers, names and flags, so that is all dynamo has to guard.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from parallax import effects
from parallax._compat import dynamo
from parallax.bridge.blueprint import BY_NUMBER
from parallax.bridge.buffers import NORMS
from parallax.bridge.pointers import resolved
from parallax.bridge.skeleton import Shell, empty_node
from parallax.core import notes
from parallax.core.module import Module

__all__ = ["call"]

Signature = tuple[Any, ...]


class _Templates:
    """Templates as attributes: dynamo looks attributes up when it comes to them."""


_templates = _Templates()
_names: dict[Signature, str] = {}


def call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As ``running.call`` of the module itself."""
    if effects.source_of(module._rng) is not None:
        raise RuntimeError(
            "a lifted nn.Module draws from torch's global generator, which compiled code cannot "
            "seed with the tree's rng. Call it without: module.eval(); or leave the rng out of it"
        )
    tensors: dict[str, Any] = {}
    buffers: list[tuple[Any, str, str]] = []
    shells: list[tuple[str, Any]] = []
    name = _template(_taken(module, "", tensors, buffers, shells))
    template = getattr(_templates, name)
    before = dict(tensors)
    for path, inner in shells:
        template.get_submodule(path).inner = inner
    out = torch.func.functional_call(template, tensors, args, kwargs, tie_weights=False)
    for path, _ in shells:
        template.get_submodule(path).inner = None
    collecting = module._rng is not None  # there is no rng, so this is a collection
    for owner, name, path in buffers:
        now = tensors[path]
        if now is not before[path] or _is_written(owner, collecting):
            Module.emit(owner, **{name: now})
    return out


def _taken(
    module: Any,
    prefix: str,
    tensors: dict[str, Any],
    buffers: list[tuple[Any, str, str]],
    shells: list[tuple[str, Any]],
) -> Signature:
    """Takes a module apart into tensors by path, and returns its signature."""
    if not hasattr(module, "_parts"):
        shells.append((prefix[:-1], module))
        return ()
    if module._blueprint.linked:
        raise RuntimeError(
            "a lifted nn.Module has an attribute that points at tensors of the model, which "
            "compiled code cannot follow. Call it outside of the compiled function"
        )
    _, _, own, transient, below = module._parts
    for name in own:
        tensors[prefix + name] = getattr(module, name)
    for name in transient:
        value = getattr(module, name)
        tensors[prefix + name] = value if value is None else value.clone()
        if value is not None:
            buffers.append((module, name, prefix + name))
    inner = []
    for name in below:
        child = getattr(module, name)
        inner.append(
            None if child is None else _taken(child, f"{prefix}{name}.", tensors, buffers, shells)
        )
    mode = notes.note_of(module).mode
    return (module._blueprint.number, mode, own, transient, below, tuple(inner))


def _is_written(owner: Any, collecting: bool) -> bool:
    """Whether a module in training writes its buffers in place, which a trace does not show.

    Layers of torch that normalize do; others are taken to if somebody collects: what they did
    not write is emitted as it was.
    """
    if notes.note_of(owner).mode != "train":
        return False
    cls = owner._blueprint.cls
    if issubclass(cls, NORMS):
        return bool(owner._blueprint.attributes["track_running_stats"])
    return collecting and not cls.__module__.startswith("torch.nn.modules")


@dynamo.constant_in_traces
def _template(signature: Signature) -> str:
    """The name under which the ``nn.Module`` of a signature is found among the templates."""
    name = _names.get(signature)
    if name is None:
        at: dict[tuple[str, ...], Any] = {}
        template = _built(signature, (), at)
        _furnish(signature, (), at)
        name = _names[signature] = f"template{len(_names)}"
        setattr(_templates, name, template)
    return name


def _built(signature: Signature, path: tuple[str, ...], at: dict[Any, Any]) -> nn.Module:
    if not signature:
        at[path] = Shell()
        return at[path]  # type: ignore[no-any-return]  # the shell
    number, mode, parameters, buffers, children, inner = signature
    node = at[path] = empty_node(BY_NUMBER[number], mode)
    vars(node)["_parameters"].update(dict.fromkeys(parameters))
    vars(node)["_buffers"].update(dict.fromkeys(buffers))
    for name, child in zip(children, inner, strict=True):
        vars(node)["_modules"][name] = None if child is None else _built(child, (*path, name), at)
    return node  # type: ignore[no-any-return]  # an nn.Module


def _furnish(signature: Signature, path: tuple[str, ...], at: dict[Any, Any]) -> None:
    if not signature:
        return

    def follow(ref: Any) -> Any:
        target = (*path[: len(path) - ref.up], *ref.down)
        return None if ref.up > len(path) else at.get(target)

    for name, value in BY_NUMBER[signature[0]].attributes.items():
        vars(at[path])[name] = resolved(value, follow)
    for name, child in zip(signature[4], signature[5], strict=True):
        if child is not None:
            _furnish(child, (*path, name), at)
