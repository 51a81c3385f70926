"""``LoRA``: a layer one of whose weights has a change of low rank beside it."""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from parallax._compat import dynamo, modes
from parallax._compat.shards import is_mixing
from parallax.bridge.blueprint import Blueprint
from parallax.bridge.lifted import Lifted
from parallax.bridge.pointers import ATOMS
from parallax.core.fields import Parameter
from parallax.core.metaclass import writes_call
from parallax.core.notes import note_of
from parallax.core.registry import flatten_module, unflatten_module
from parallax.nn.arguments import between, positive
from parallax.nn.computed import Computed, L
from parallax.nn.conv import Conv1d, Conv2d, Conv3d
from parallax.nn.dropout import Dropout
from parallax.nn.embedding import Embedding
from parallax.nn.linear import Linear
from parallax.nn.refusal import name_in
from parallax.tree.state_names import names_of

__all__ = ["LoRA"]


class LoRA(Computed[L]):
    r"""A layer whose weight has a change of low rank beside it: :math:`W + s\,BA`.

    :math:`s` is ``alpha / rank``, A is ``(rank, columns)`` and B ``(rows, rank)``, where W is seen
    as a matrix of its first dimension by all others. B is zero at first, so the layer computes what
    it did. ``nn.lora`` puts such modules into a model, and freezes all else.

    Of a ``Linear`` or an ``Embedding`` the product BA is not formed: the input goes through A, then
    B. Of any other layer :math:`W + s\,BA` is computed before each call. Whoever reads the weight
    of the layer (``lora.weight``) gets that, too.

    Args:
        layer: the layer that has the weight, our own or lifted.
        name: the name of the weight in the layer's state dict.
        rank: of the change.
        alpha: the change is multiplied by ``alpha / rank``; by default by 1.
        dropout: the probability with which a number of the input is dropped on its way through A
            and B, in mode ``"train"``; draws from ``self.rng``. Of a ``Linear`` only.

    Shape:
        - input, output: the layer's

    Raises:
        TypeError: if ``layer`` is not a module, or the weight is not of a floating dtype.
        ValueError: if it has no such weight, that is a vector, a number is out of range, or there
            is no input that ``dropout`` could act on.

    Source: E. J. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
    section 4.1; initial values as in the authors' ``loralib``: A of a ``Linear`` is drawn as the
    weight of a new one, A of an ``Embedding`` from a normal distribution.

    Example:
        >>> layer = nn.Linear(20, 40).initialize(0)
        >>> lora = nn.LoRA(layer, rank=2).initialize(1)
        >>> lora.lora_A.shape, lora.lora_B.shape
        (torch.Size([2, 20]), torch.Size([40, 2]))
        >>> torch.equal(lora(torch.ones(5, 20)), layer(torch.ones(5, 20)))
        True
        >>> lora.merged()
        Linear(in_features=20, out_features=40, bias=True)
    """

    form: str
    rank: int
    scale: float
    lora_A: Parameter  # noqa: N815  # as in loralib
    lora_B: Parameter  # noqa: N815  # likewise
    dropout: Dropout | None

    def __init__(
        self,
        layer: L,
        name: str = "weight",
        *,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(layer, name)
        positive("LoRA", rank=rank)
        between("LoRA", 0, **({} if alpha is None else {"alpha": alpha}))
        between("LoRA", 0, 1, dropout=dropout)
        weight = self.original()
        rows, columns = _sizes(layer, name, weight)
        self.form = _form_of(layer, name)
        if dropout and self.form not in _OF_INPUT:
            raise ValueError(
                f"LoRA(dropout={dropout}): {name} of {type(layer).__name__} multiplies no input "
                f"that could be dropped; that of a Linear does. Leave dropout out"
            )
        self.rank = rank
        self.scale = 1.0 if alpha is None else alpha / rank
        # Uniform of variance 1 / (3 fan_in), as torch.nn draws the weight of a new layer.
        uniform = partial(init.kaiming_uniform_, a=sqrt(5))
        start = init.normal_ if self.form == "embedding" else uniform
        self.lora_A = Parameter((rank, *columns), start, dtype=weight.dtype)
        self.lora_B = Parameter((rows, rank), init.zeros_, dtype=weight.dtype)
        self.dropout = Dropout(dropout) if dropout else None

    def __check_init__(self) -> None:
        if _form_of(self.layer, self.name) != self.form:
            raise ValueError(
                f"LoRA(layer=): the new layer is of another kind. Wrap it: "
                f"LoRA(layer, {self.name!r}, rank={self.rank})"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns with the changed weight."""
        try:
            return self._changed(args, kwargs)
        except RuntimeError as error:
            if is_mixing(error) and not hasattr(error, "__notes__"):
                name_in(error, self)
            raise

    def _changed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.form == "weight":
            return self._call(self._weight(), args, kwargs)
        given = (*args, *kwargs.values())
        if len(given) != 1:
            return self.layer(*args, **kwargs)  # which says what it takes
        (x,) = given
        if self.form == "linear" and _is_plain(self.layer):
            layer: Any = self.layer
            out = F.linear(x, layer.weight, layer.bias)
        else:
            out = self.layer(*args, **kwargs)
        if self.form == "embedding":
            return _plus_rows(out, F.embedding(x, self.lora_B), self, x)
        if self.dropout is not None:
            x = self.dropout(x)
        if x.dtype != self.lora_A.dtype:
            x = x.to(self.lora_A.dtype)
        return _plus(out, F.linear(x, self.lora_A), self.lora_B.mT, self.scale)

    def merged(self) -> L:
        """The layer alone, with the change added to its weight, which stays frozen if it was."""
        from parallax.nn.adapting import merge_lora  # it imports this file

        weight, layer = self._weight(), merge_lora(self.layer)
        leaves, structure = flatten_module(layer)
        k = dict(names_of(structure))[self.name]
        leaves = (*leaves[:k], weight, *leaves[k + 1 :])
        made: L = unflatten_module(structure, leaves, layer._rng)
        return made

    def _weight(self) -> Tensor:
        """The changed weight."""
        weight, down, up = self.original(), self.lora_A, self.lora_B
        change = (up @ down.flatten(up.dim() - 1)).to(weight.dtype)
        change = change.mT if self.form == "transposed" else change
        return torch.add(weight, change.reshape(weight.shape), alpha=self.scale)

    def __getattr__(self, name: str) -> Any:
        """What the layer has under that name, with the changed weight."""
        cls: Any = type(self)
        own = name.startswith("__") or name in _OWN or name in cls.__layout__.fields
        if own or hasattr(cls, name):
            raise AttributeError(f"{cls.__name__!r} object has no attribute {name!r}")
        layer: Any = self.layer
        return getattr(layer if _is_constant(layer, name) else self.merged(), name)

    @staticmethod
    def __state_name__(name: str, constants: dict[str, Any]) -> str:
        if name in ("lora_A", "lora_B") and constants["name"] != "weight":
            return f"{constants['name'].replace('.', '_')}_{name}"
        return name.removeprefix("layer.")

    def extra_repr(self) -> str:
        """The arguments."""
        of = "" if self.name == "weight" else f"name={self.name!r}, "
        return f"{of}rank={self.rank}, alpha={self.scale * self.rank:g}"


_OWN = ("_blueprint", "_parts")
"""What tells lifted modules from others; other private names may be read by torch."""

_OF_INPUT = ("linear", "transposed")
"""Forms in which the input itself goes through the change."""


def _form_of(layer: Any, name: str) -> str:
    """How the change is computed: beside the layer where that is the same, else in its weight."""
    structure = flatten_module(layer)[1]
    if name != "weight":
        return "weight"
    if not issubclass(structure.cls, Lifted):
        cls: Any = structure.cls
        if any([writes_call(base) for base in cls.__mro__]):
            return "weight"
        if cls.forward is Embedding.forward:
            return "weight" if layer.max_norm or layer.scale_grad_by_freq else "embedding"
        return "linear" if cls.forward is Linear.forward else "weight"
    blueprint: Blueprint = structure.local.constants[0]
    cls, held = blueprint.cls, blueprint.attributes
    plain = cls.__call__ is torch.nn.Module.__call__
    if not plain or any([held.get(hooks) for hooks in _HOOKS]):
        return "weight"
    if cls.forward is torch.nn.Embedding.forward:
        return "weight" if held["max_norm"] or held["scale_grad_by_freq"] else "embedding"
    if (cls.__module__, cls.__qualname__) == ("transformers.pytorch_utils", "Conv1D"):
        return "transposed"
    return "linear" if cls.forward is torch.nn.Linear.forward else "weight"


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _sizes(layer: Any, name: str, weight: Any) -> tuple[int, tuple[int, ...]]:
    """The sizes of the dimensions that B and A share with a weight."""
    own = type(layer).__name__
    if not weight.is_floating_point():
        raise TypeError(
            f"LoRA(name={name!r}): expected a weight of a floating dtype, and that of {own} is "
            f"{weight.dtype}. Adapt the layer before it is quantized"
        )
    expected = _dims(layer) if name == "weight" else None
    if weight.ndim < 2 or expected not in (None, weight.ndim):
        several = "is one of several that are stacked" if weight.ndim > 2 else "multiplies nothing"
        raise ValueError(
            f"LoRA(name={name!r}): {name} of {own} has the shape {tuple(weight.shape)}, and "
            f"{several}. Give a matrix, such as the weight of a Linear"
        )
    rows, *columns = weight.shape
    if _form_of(layer, name) == "transposed":
        return columns[0], (rows,)
    return rows, tuple(columns)


def _dims(layer: Any) -> int | None:
    """How many dimensions the weight of a layer has, if that is known."""
    if isinstance(layer, (Conv1d, Conv2d, Conv3d)):
        return layer.dims + 2
    return None if _form_of(layer, "weight") == "weight" else 2


def _is_constant(layer: Any, name: str) -> bool:
    """Whether an attribute of a layer cannot depend on the layer's weight."""
    structure = flatten_module(layer)[1]
    if isinstance(layer, Lifted):
        return type(structure.local.constants[0].attributes.get(name, layer)) in ATOMS
    return name in structure.cls.__layout__.constants  # type: ignore[attr-defined]  # of a module


def _is_plain(layer: Any) -> bool:
    """Whether nothing would notice if a lifted ``Linear`` were not called, but its function."""
    if not isinstance(layer, Lifted):
        return False
    note = note_of(layer)
    if note.watched or note.gathered:
        return False
    return dynamo.is_compiling() or not modes.module_calls_watched()


def _plus(out: Tensor, low: Tensor, up: Tensor, scale: float) -> Tensor:
    """``out + scale * low @ up`` in one operator."""
    if low.dtype != out.dtype or out.dim() < 2:
        return torch.add(out, (low @ up).to(out.dtype), alpha=scale)
    if out.dim() == 2:
        return torch.addmm(out, low, up, alpha=scale)
    flat = torch.addmm(out.flatten(0, -2), low.flatten(0, -2), up, alpha=scale)
    return flat.view(out.shape)


def _plus_rows(out: Tensor, rows: Tensor, lora: Any, ids: Tensor) -> Tensor:
    """As ``_plus`` for looked up rows of B, where padding gets no gradient."""
    padding = lora.layer.padding_idx
    if padding is None:
        return _plus(out, rows, lora.lora_A, lora.scale)
    change = rows @ lora.lora_A
    change = torch.where(torch.eq(ids, padding).unsqueeze(-1), change.detach(), change)
    return torch.add(out, change.to(out.dtype), alpha=lora.scale)
