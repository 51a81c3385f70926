"""Modules that communicate while they are called: what ``parallax.distributed`` marks in a tree.

- A part whose leaves are put together: it has the name of the dimension of a mesh along which they
  are cut, which ``fsdp`` says. When the part is called, its leaves are put together by one
  collective, ``forward`` runs on them, and they are gone when it returns; backward puts them
  together once more, and cuts their gradients as the leaves are cut.
- A layer whose own leaves a tensor-parallel rule cuts: it has the names of these dimensions. What
  its call returns is summed along them, where it is a term of a sum; and so are, in backward, the
  gradients of its arguments. Where a rule has a ``sequence``, sums are scattered along it, and what
  is cut along it is gathered when a layer takes it.

The marks change no path and no value, and a leaf that is read without a call of its part is what it
always is, a distributed tensor. Calling is as it was for every class without such an instance: only
the class of a module that is marked gets a ``__call__`` that looks at the marks. What other
forms cost is in the README of the core.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from parallax._compat import sums
from parallax._compat.regathered import Regathered
from parallax.core.module_structure import note_of
from parallax.core.registry import flatten_module, unflatten_module

__all__ = ["communicate_in_calls"]


def communicate_in_calls(cls: Any) -> None:
    """Has calls of a class look at the marks of an instance; once for a class."""
    if "__around__" not in vars(cls):
        cls.__surround__(_communicating)


def _communicating(call: Callable[..., Any]) -> Callable[..., Any]:
    """What calls a module's ``call``, and communicates if the module is marked."""

    def gathered(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = flatten_module(self)
        held = list(leaves)
        places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        with Regathered([leaves[k] for k in places], name) as wholes:
            for k, whole in zip(places, wholes, strict=True):
                held[k] = whole
            module = unflatten_module(structure, held, self._rng)
            return call(module, *args, **kwargs)

    @functools.wraps(call)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        note = note_of(self)
        name, along = note.gathered, note.summed
        if along:
            args = tuple([sums.entering(value, along) for value in args])
            kwargs = {key: sums.entering(value, along) for key, value in kwargs.items()}
        out = gathered(self, name, *args, **kwargs) if name else call(self, *args, **kwargs)
        return sums.leaving(out, along) if along else out

    return called
