"""The declarations of fields: ``Parameter``, ``Buffer`` and ``field``.

Before ``initialize`` a parameter is a *declaration*: a shape, a dtype and an initializer. It
allocates nothing, and an attempt to compute with it raises an error that says what to initialise.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict, TypeVar, Unpack, overload

import torch
from torch import Tensor

from parallax._compat.opaque import constant_while_tracing
from parallax._errors.arguments import check_dtype, check_flags, check_function, shown
from parallax.core.nodes import is_module

__all__ = ["MISSING", "Buffer", "Field", "Lazy", "Parameter", "UninitializedError", "field"]

T = TypeVar("T")
Initializer = Callable[..., Any]
Sizes = int | Sequence[int]


class UninitializedError(RuntimeError):
    """A parameter or buffer was used before ``initialize`` gave it a value.

    Example:
        >>> from parallax import UninitializedError, nn
        >>> linear = nn.Linear(3, 2)  # declares shapes; its parameters have no values yet
        >>> try:
        ...     linear.weight.sum()
        ... except UninitializedError:
        ...     print("initialize it first:", linear.initialize(0).weight.shape)
        initialize it first: torch.Size([2, 3])
    """


@constant_while_tracing
class _Missing:
    """The value of a default that was not given."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()


def _shape_of(shape: Any, role: str) -> torch.Size:
    if isinstance(shape, Tensor):
        raise TypeError(
            f"{role}(tensor): a tensor is a value already; "
            f"assign it as it is: self.name = tensor. "
            f"{role}(shape, init) declares one that initialize() will fill."
        )
    sizes = (shape,) if isinstance(shape, int) else shape
    try:
        size = torch.Size(operator.index(n) for n in sizes)
    except TypeError:
        raise TypeError(
            f"{role}(shape, init): shape must be ints, got {shown(shape)}. "
            f"Write {role}((3, 2), torch.nn.init.zeros_)"
        ) from None
    if any(n < 0 for n in size):
        raise ValueError(
            f"{role}(shape, init): sizes must not be negative, got {tuple(size)}. "
            f"Write {role}((3, 2), torch.nn.init.zeros_)"
        )
    return size


# What a declaration answers as the tensor will.
_KNOWN = frozenset({"dim", "is_complex", "is_floating_point", "ndim", "numel", "size"})


class Lazy:
    """A declared leaf without a value: the base of ``Parameter`` and ``Buffer`` at run time."""

    __slots__ = ("__weakref__", "_dtype", "_shape", "init", "owner")

    def __init__(
        self,
        shape: Sizes,
        init: Initializer = MISSING,  # checkers require it; left out, it is an error below
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        role = type(self).__name__
        self._shape = _shape_of(shape, role)
        if not callable(init):
            raise TypeError(
                f"{role}(shape, init): init must be an initializer such as torch.nn.init.zeros_, "
                f"{'none was given' if init is MISSING else f'got {init!r}'}. "
                f"Write: {role}(shape, torch.nn.init.zeros_)"
            )
        if dtype is not None:
            check_dtype(role, dtype)
        self.init = init
        self._dtype = dtype
        self.owner = ""

    @property
    def shape(self) -> torch.Size:
        """The shape the tensor will have."""
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the tensor will have unless ``initialize(dtype=)`` says otherwise."""
        return self._dtype or torch.get_default_dtype()

    def copy(self) -> Lazy:
        """A copy of the declaration, so that two fields with one default are not tied."""
        return type(self)(self._shape, self.init, dtype=self._dtype)

    def refuse(self, *_: Any) -> NoReturn:
        """Raises the error of every computation with a declaration."""
        name = self.owner or f"a {type(self).__name__} of shape {tuple(self._shape)}"
        module = name.split(".")[0] if self.owner else "the module"
        raise UninitializedError(
            f"{name} is not initialized: it is declared with shape {tuple(self._shape)} and has "
            f"no value yet. Initialize the tree that holds this {module} first: "
            f"module = module.initialize(rng)"
        )

    def __eq__(self, other: object) -> bool:
        # With a value it is a computation; between declarations, as in a list's `in`, identity.
        if isinstance(other, (Tensor, int, float, complex)):
            self.refuse()
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        dtype = f", dtype={self._dtype}" if self._dtype else ""
        return f"{type(self).__name__}({tuple(self._shape)}{dtype}, uninitialized)"

    def __reduce__(self) -> Any:
        return _restore_lazy, (type(self), tuple(self._shape), self.init, self._dtype, self.owner)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for leaf in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(leaf, Lazy):
                    leaf.refuse()
        raise UninitializedError(f"{func} was given an uninitialized parameter")

    def __getattr__(self, name: str) -> Any:
        if name in _KNOWN:
            return getattr(torch.empty(self._shape, dtype=self.dtype, device="meta"), name)
        # Only what a tensor has is a computation; anything else is an ordinary missing attribute.
        if not name.startswith("_") and hasattr(Tensor, name):
            self.refuse()
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")


def _restore_lazy(
    cls: type[Lazy], shape: tuple[int, ...], init: Initializer, dtype: Any, owner: str
) -> Lazy:
    lazy = cls(shape, init, dtype=dtype)
    lazy.owner = owner
    return lazy


_BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift divmod"
_OTHERS = """
    lt le gt ge len iter getitem setitem contains neg pos abs invert bool float int complex index
    round array
"""
for _name in (*_BINARY.split(), *("r" + _name for _name in _BINARY.split()), *_OTHERS.split()):
    setattr(Lazy, f"__{_name}__", Lazy.refuse)


if TYPE_CHECKING:

    class _Declared(Tensor):
        """A declared leaf as type checkers see it: a tensor to read, and to assign."""

        def __init__(
            self, shape: Sizes, init: Initializer, *, dtype: torch.dtype | None = None
        ) -> None: ...
        @overload
        def __get__(self, obj: None, owner: Any) -> _Declared: ...
        @overload
        def __get__(self, obj: object, owner: Any) -> Tensor: ...
        def __get__(self, obj: Any, owner: Any) -> Any: ...
        def __set__(self, obj: Any, value: Tensor | None) -> None: ...

else:
    _Declared = Lazy


class Parameter(_Declared):
    """A trained leaf of a module: an annotation, and the declaration of a value to come.

    Args:
        shape: the sizes of the tensor, an int or a sequence of ints.
        init: fills the tensor at ``initialize``: any in-place function of ``torch.nn.init``,
            or any ``(shape, ...) -> Tensor`` function. It is given ``generator=`` if it
            takes one, and runs under a forked global RNG otherwise.
        dtype: the dtype of the tensor; by default torch's default dtype.

    Raises:
        TypeError: if ``shape`` is not made of ints or ``init`` is not callable.
        ValueError: if a size is negative.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter
        >>> class Scale(Module):
        ...     weight: Parameter
        ...     def __init__(self, n):
        ...         super().__init__()
        ...         self.weight = Parameter((n,), torch.nn.init.ones_)
        ...     def forward(self, x):
        ...         return self.weight * x
        >>> Scale(3).weight
        Parameter((3,), uninitialized)
        >>> weight = Scale(3).weight  # answers as the tensor will
        >>> weight.shape, weight.size(0), weight.ndim, weight.dim(), weight.numel()
        (torch.Size([3]), 3, 1, 1, 3)
        >>> weight.dtype, weight.is_floating_point(), weight.is_complex()
        (torch.float32, True, False)
        >>> Scale(3).initialize(0)(torch.ones(3))
        tensor([1., 1., 1.])
    """

    __slots__ = ()


class Buffer(_Declared):
    """A tensor leaf that is never trained, such as a running mean.

    Args:
        shape: as in ``Parameter``, which raises the same errors.
        init: as in ``Parameter``; zeros by default.
        dtype: as in ``Parameter``.

    Example:
        >>> import torch
        >>> from parallax import Buffer
        >>> count = Buffer((), dtype=torch.int64)
        >>> count
        Buffer((), dtype=torch.int64, uninitialized)
        >>> count.shape, count.size(), count.ndim, count.dim(), count.numel()
        (torch.Size([]), torch.Size([]), 0, 0, 1)
        >>> count.dtype, count.is_floating_point(), count.is_complex()
        (torch.int64, False, False)
    """

    __slots__ = ()

    def __init__(
        self,
        shape: Sizes,
        init: Initializer = torch.nn.init.zeros_,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, init, dtype=dtype)


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Field:
    """How one field was declared: its default, converter and place in the constructor."""

    default: Any = MISSING
    default_factory: Any = MISSING
    init: bool = True
    kw_only: bool | None = None
    converter: Callable[[Any], Any] | None = None
    static: bool = False
    name: str = ""
    owner: type = object
    annotation: Any = None
    hint: Any = None  # the annotation, evaluated
    kind: Any = None

    def __post_init__(self) -> None:
        if self.default is not MISSING and self.default_factory is not MISSING:
            raise TypeError("field(): give either default or default_factory, not both")

    @property
    def has_default(self) -> bool:
        """Whether the field may be left out."""
        return self.default is not MISSING or self.default_factory is not MISSING

    def make_default(self) -> Any:
        """A fresh default: leaves and modules are copied, so that no two fields are tied."""
        return self.default_factory() if self.default is MISSING else _fresh(self.default)


def _fresh(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, Lazy):
        return value.copy()
    if is_module(value):
        return copy.deepcopy(value)
    if type(value) is tuple or type(value) is list:
        return type(value)([_fresh(item) for item in value])
    return {key: _fresh(item) for key, item in value.items()} if type(value) is dict else value


class _Options(TypedDict, total=False):
    init: bool
    kw_only: bool
    converter: Callable[[Any], Any] | None
    static: bool


@overload  # a leaf, of which checkers see more than a Tensor; or without a default
def field(*, default: Tensor = ..., **options: Unpack[_Options]) -> Any: ...
@overload
def field(*, default: T, **options: Unpack[_Options]) -> T: ...
@overload
def field(*, default_factory: Callable[[], T], **options: Unpack[_Options]) -> T: ...
def field(
    *,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    init: bool = True,
    kw_only: bool | None = None,
    converter: Callable[[Any], Any] | None = None,
    static: bool = False,
) -> Any:
    """Declares a field with a default, a converter or other options.

    Args:
        default: the value when none is given; a tensor is copied for every instance.
        default_factory: called without arguments for every instance that needs a default.
        init: whether the generated ``__init__`` takes the field.
        kw_only: whether it takes it by keyword only; by default what the class says.
        converter: applied once to the value, at the end of construction.
        static: the field is a constant, part of the structure, whatever the annotation allows.

    Returns:
        A marker that the class turns into a field.

    Raises:
        TypeError: if both ``default`` and ``default_factory`` are given, or another argument is
            not a function or not a bool, as above.

    Example:
        >>> from parallax import Module, field
        >>> class Window(Module):
        ...     sizes: tuple[int, ...] = field(default=(3, 3), converter=tuple)
        >>> Window([5, 5]).sizes
        (5, 5)
    """
    check_flags("field", init=init, static=static)
    if kw_only is not None:
        check_flags("field", kw_only=kw_only)
    if converter is not None:
        check_function("field", converter, "field(converter=tuple)", "converter")
    if default_factory is not MISSING:
        check_function("field", default_factory, "field(default_factory=dict)", "default_factory")
    return Field(
        default=default,
        default_factory=default_factory,
        init=init,
        kw_only=kw_only,
        converter=converter,
        static=static,
    )
