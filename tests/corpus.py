"""The modules and trees that every test may use: each kind of field, container and tie once.

``MODULES`` parametrises a test over all of them, ``FLOAT`` over those whose leaves are all real
floats (what raw ``torch.func`` differentiates), ``TWINS`` over those with a ``torch.nn`` twin:

    @pytest.mark.parametrize("case", MODULES, ids=str)
    def test_something(case: Case) -> None:
        module = case.make()
"""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init

from parallax import Buffer, Module, Parameter, registry, tree

SIZE = 4


# -- leaves ---------------------------------------------------------------------------------------


class Dense(Module):
    """The ordinary layer, with an optional bias."""

    weight: Parameter
    bias: Parameter | None

    def __init__(self, n_in: int = SIZE, n_out: int = SIZE, bias: bool = True) -> None:
        super().__init__()
        self.weight = Parameter((n_out, n_in), init.xavier_normal_)
        self.bias = Parameter((n_out,), init.normal_) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Scale(Module):
    """One parameter and a generated ``__init__``."""

    by: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x


class Norm(Module):
    """Float and integer buffers beside parameters and a constant."""

    weight: Parameter
    bias: Parameter
    running_mean: Buffer
    running_var: Buffer
    num_batches_tracked: Buffer
    eps: float

    def __init__(self, n: int = SIZE, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = Parameter((n,), init.ones_)
        self.bias = Parameter((n,), init.zeros_)
        self.running_mean = Buffer((n,), init.normal_)
        self.running_var = Buffer((n,), init.ones_)
        self.num_batches_tracked = Buffer((), dtype=torch.int64)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normal = (x - self.running_mean) / torch.sqrt(self.running_var + self.eps)
        return normal * self.weight + self.bias


class Precisions(Module):
    """Leaves of every floating and complex kind."""

    half: Parameter
    brain: Parameter
    single: Parameter
    double: Parameter
    spectrum: Parameter
    flags: Buffer
    counts: Buffer

    def __init__(self) -> None:
        super().__init__()
        self.half = Parameter((2,), init.normal_, dtype=torch.float16)
        self.brain = Parameter((2,), init.normal_, dtype=torch.bfloat16)
        self.single = Parameter((2,), init.normal_, dtype=torch.float32)
        self.double = Parameter((2,), init.normal_, dtype=torch.float64)
        self.spectrum = Parameter((2,), torch.randn, dtype=torch.complex64)
        self.flags = Buffer((2,), init.ones_, dtype=torch.bool)
        self.counts = Buffer((2,), init.ones_, dtype=torch.int32)


class Scalars(Module):
    """Leaves of no dimension and of no element."""

    scalar: Parameter
    empty: Parameter

    def __init__(self) -> None:
        super().__init__()
        self.scalar = Parameter((), init.ones_)
        self.empty = Parameter((0, 3), init.ones_)

    def forward(self, x: Tensor) -> Tensor:
        return self.scalar * x + self.empty.sum()


class Empty(Module):
    """No field at all."""

    def forward(self, x: Tensor) -> Tensor:
        return x


# -- children and containers ----------------------------------------------------------------------


class MLP(Module):
    """Children, and a slot for a module or a function."""

    first: Dense
    second: Dense
    activation: Module | Callable[[Tensor], Tensor]

    def __init__(
        self, activation: Module | Callable[[Tensor], Tensor] = torch.tanh, bias: bool = True
    ) -> None:
        super().__init__()
        self.first = Dense(SIZE, SIZE, bias)
        self.second = Dense(SIZE, SIZE, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)))  # type: ignore[no-any-return]  # a call of a module is Any


class Sequential(Module):
    """Modules and functions in one tuple, called in turn."""

    layers: tuple[Module | Callable[[Tensor], Tensor], ...]

    def __init__(self, *layers: Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Branches(Module):
    """A dict of modules, in an order that is not the alphabet's."""

    branches: dict[str, Dense]

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.branches = {name: Dense() for name in names}

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.branches.values()]).sum(0)


class Gates(NamedTuple):
    """A named tuple of a module, a parameter and a constant."""

    inner: Dense
    gain: Parameter
    power: int


class Gated(Module):
    """A named tuple as a child."""

    gates: Gates

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates(Dense(), Parameter((SIZE,), init.ones_), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.gates.gain * self.gates.inner(x) ** self.gates.power  # type: ignore[no-any-return]  # a call of a module is Any


class Nested(Module):
    """Containers in containers, of modules and of parameters."""

    blocks: tuple[dict[str, tuple[Dense, ...]], ...]
    weights: list[list[Parameter]]
    pair: tuple[Dense, Parameter]
    maybe: dict[str, Parameter | None]
    nothing: tuple[Dense, ...]

    def __init__(self) -> None:
        super().__init__()
        self.blocks = ({"a": (Dense(), Dense())}, {"z": (Dense(),), "b": ()})
        self.weights = [[Parameter((SIZE,), init.ones_)], [Parameter((SIZE,), init.ones_)]]
        self.pair = (Dense(bias=False), Parameter((SIZE,), init.ones_))
        self.maybe = {"there": Parameter((SIZE,), init.ones_), "not": None}
        self.nothing = ()

    def forward(self, x: Tensor) -> Tensor:
        for named in self.blocks:
            for block in named.values():
                for layer in block:
                    x = layer(x)
        for row in self.weights:
            for weight in row:
                x = x * weight
        return self.pair[0](x) + self.pair[1]  # type: ignore[no-any-return]  # a call of a module is Any


class Many(Module):
    """A long run of equal children and one of leaves, which generated code loops over."""

    layers: tuple[Dense, ...]
    shifts: tuple[Parameter, ...]

    def __init__(self, n: int = 12) -> None:
        super().__init__()
        self.layers = tuple(Dense() for _ in range(n))
        self.shifts = tuple(Parameter((SIZE,), init.normal_) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            x = torch.tanh(layer(x)) + shift
        return x


class Twig(Module):
    """A class that names itself: a binary tree."""

    weight: Parameter
    left: Twig | None
    right: Twig | None

    def __init__(self, left: Twig | None = None, right: Twig | None = None) -> None:
        super().__init__()
        self.weight = Parameter((SIZE,), init.normal_)
        self.left = left
        self.right = right

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.weight
        if self.left is not None:
            x = self.left(x)
        return x if self.right is None else x + self.right(x)


def chain(depth: int) -> Twig:
    """Modules nested ``depth`` deep."""
    twig = Twig()
    for _ in range(depth - 1):
        twig = Twig(twig)
    return twig


# -- constants ------------------------------------------------------------------------------------


class Padding(enum.Enum):
    """An enum as a constant."""

    ZEROS = "zeros"
    REFLECT = "reflect"


@dataclass(frozen=True)
class Config:
    """A frozen dataclass as a constant."""

    heads: int = 2
    names: tuple[str, ...] = ("q", "k")


def double(x: Tensor) -> Tensor:
    """A function as a constant."""
    return 2 * x


CONSTANTS: dict[str, Any] = {
    "none": None,
    "integer": 3,
    "one": 1,
    "true": True,
    "unit": 1.0,
    "real": 0.1,
    "nan": math.nan,
    "infinity": -math.inf,
    "minus_zero": -0.0,
    "imaginary": 1 - 2j,
    "text": "same",
    "raw": b"\x00\xff",
    "dots": ...,
    "nested": (1, (2.0, ("three", None))),
    "unordered": frozenset({1, 2, 3}),
    "span": range(0, 10, 3),
    "dtype": torch.bfloat16,
    "device": torch.device("cpu"),
    "layout": torch.strided,
    "padding": Padding.REFLECT,
    "config": Config(heads=8),
    "function": double,
    "builtin": torch.relu,
    "part": partial(torch.clamp, min=0.0, max=6.0),
    "cls": dict,
    "size": torch.Size([2, 3]),
}


class Constants(Module):
    """Every kind of constant, beside one leaf."""

    values: tuple[Any, ...]
    weight: Parameter
    rate: float = 0.5
    kind: ClassVar[str] = "shared by all"

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * self.rate


# -- classes --------------------------------------------------------------------------------------

InnerT = TypeVar("InnerT", bound=Module)


class Residual(Module, Generic[InnerT]):
    """A generic module: the TypeVar goes by its bound."""

    inner: InnerT

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)  # type: ignore[no-any-return]  # a call of a module is Any


class Sized(Protocol):
    """A protocol that modules may list as a base."""

    n: int

    def width(self) -> int: ...


class Layer(Module, ABC):
    """An abstract module."""

    n: int

    @abstractmethod
    def width(self) -> int: ...


class Named:
    """A plain mixin with state of the class and a method."""

    prefix = "layer"

    def label(self) -> str:
        return f"{self.prefix} {type(self).__name__}"


class Square(Named, Layer, Sized):
    """A module with an ABC, a protocol and a plain class for bases."""

    weight: Parameter

    def __init__(self, n: int = SIZE) -> None:
        super().__init__(n)
        self.weight = Parameter((n, n), init.eye_)

    def width(self) -> int:
        return self.n

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class ScaledDense(Dense):
    """A child class that adds a field and calls the parent's ``__init__``."""

    scale: Parameter

    def __init__(self, n_in: int = SIZE, n_out: int = SIZE) -> None:
        super().__init__(n_in, n_out)
        self.scale = Parameter((n_out,), init.ones_)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


# -- ties -----------------------------------------------------------------------------------------


class TiedParameter(Module):
    """One tensor in two modules, as an embedding and its decoder share theirs."""

    encoder: Dense
    decoder: Dense

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Dense()
        decoder = Dense()
        self.decoder = decoder.replace(weight=self.encoder.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))  # type: ignore[no-any-return]  # a call of a module is Any


class TiedModule(Module):
    """One module in two fields, in a tuple, and apart."""

    one: Dense
    other: Dense
    several: tuple[Dense, ...]
    apart: Dense

    def __init__(self) -> None:
        super().__init__()
        self.one = Dense()
        self.other = self.one
        self.several = (self.one, Dense())
        self.apart = Dense()

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.one, self.other, *self.several, self.apart):
            x = torch.tanh(layer(x))
        return x


# -- a class of someone else ----------------------------------------------------------------------


class Foreign:
    """A class that knows nothing of modules, registered below."""

    def __init__(self, left: Any, right: Any, tag: str) -> None:
        self.left, self.right, self.tag = left, right, tag


registry.register(
    Foreign,
    lambda pair: ((pair.left, pair.right), pair.tag),
    lambda tag, children: Foreign(children[0], children[1], tag),
    name="tests.Foreign",
)


class Holder(Module):
    """A registered class as a child, with a module and a tensor inside."""

    pair: Foreign

    def __init__(self) -> None:
        super().__init__()
        self.pair = Foreign(Dense(), Parameter((SIZE,), init.ones_), "tag")

    def forward(self, x: Tensor) -> Tensor:
        return self.pair.left(x) + self.pair.right  # type: ignore[no-any-return]  # a Foreign holds anything


# -- the twins in torch.nn ------------------------------------------------------------------------


class _MLP(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(SIZE, SIZE, bias)
        self.second = nn.Linear(SIZE, SIZE, bias)

    def forward(self, x: Tensor) -> Any:
        return self.second(torch.tanh(self.first(x)))


class _Sequential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, SIZE))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


class _Branches(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({name: nn.Linear(SIZE, SIZE) for name in names})

    def forward(self, x: Tensor) -> Any:
        return torch.stack([branch(x) for branch in self.branches.values()]).sum(0)


class _Many(nn.Module):
    def __init__(self, n: int = 12) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(SIZE, SIZE) for _ in range(n)])
        self.shifts = nn.ParameterList([torch.zeros(SIZE) for _ in range(n)])

    def forward(self, x: Tensor) -> Any:
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            x = torch.tanh(layer(x)) + shift
        return x


class _TiedParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(SIZE, SIZE)
        self.decoder = nn.Linear(SIZE, SIZE)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Any:
        return self.decoder(torch.tanh(self.encoder(x)))


class _TiedModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(SIZE, SIZE)
        self.other = self.one
        self.several = nn.ModuleList([self.one, nn.Linear(SIZE, SIZE)])
        self.apart = nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Any:
        for layer in (self.one, self.other, *self.several, self.apart):
            x = torch.tanh(layer(x))
        return x


# -- the list -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One module of the corpus.

    Attributes:
        name: what pytest shows.
        declare: makes the module, uninitialised.
        make_twin: makes its twin in ``torch.nn``, of equal names and shapes.
        real: whether every leaf is a real float and the module can be called.
        tied: whether one leaf stands in two places.
        change: what is done to the module after ``initialize``.
    """

    name: str
    declare: Callable[[], Module]
    make_twin: Callable[[], nn.Module] | None = None
    real: bool = True
    tied: bool = False
    change: Callable[[Any], Any] = field(default=lambda module: module)

    def make(self, seed: int = 0) -> Any:
        """The module with values."""
        declared = self.declare()
        lazy = tree.leaves(declared)
        return self.change(declared.initialize(seed) if lazy else declared)

    def twin(self, module: Module) -> nn.Module:
        """The ``torch.nn`` module that holds copies of ``module``'s leaves."""
        assert self.make_twin is not None
        made, leaves = self.make_twin(), tree.named_leaves(module)
        targets = dict(made.named_parameters()) | dict(made.named_buffers())
        assert set(targets) == set(leaves)
        with torch.no_grad():
            for path, target in targets.items():
                target.copy_(leaves[path])
        return made.eval()

    def __str__(self) -> str:
        return self.name


def example_input(seed: int = 0) -> Tensor:
    """A batch that every module of the corpus with a ``forward`` takes."""
    return torch.randn(3, SIZE, generator=torch.Generator().manual_seed(seed))


def _constants() -> Module:
    return Constants(tuple(CONSTANTS.values()), Parameter((SIZE,), init.ones_))


MODULES: list[Case] = [
    Case("dense", Dense, lambda: nn.Linear(SIZE, SIZE)),
    Case("no_bias", partial(Dense, bias=False), lambda: nn.Linear(SIZE, SIZE, bias=False)),
    Case("scale", lambda: Scale(Parameter((SIZE,), init.ones_))),
    Case("scalars", Scalars),
    Case("norm", Norm, lambda: nn.BatchNorm1d(SIZE), real=False),
    Case("precisions", Precisions, real=False),
    Case("empty", Empty, nn.Identity),
    Case("mlp", MLP, _MLP),
    Case("mlp_of_modules", lambda: MLP(Scale(Parameter((SIZE,), init.ones_)))),
    Case("no_biases", partial(MLP, bias=False), partial(_MLP, bias=False)),
    Case("sequential", lambda: Sequential(Dense(), torch.relu, Dense()), _Sequential),
    Case("branches", lambda: Branches("z", "a", "m"), lambda: _Branches("z", "a", "m")),
    Case("gated", Gated),
    Case("nested", Nested),
    Case("many", Many, _Many),
    Case("twig", lambda: Twig(Twig(right=Twig()), Twig())),
    Case("chain", lambda: chain(40)),
    Case("constants", _constants),
    Case("generic", lambda: Residual(Residual(Dense()))),
    Case("square", Square),
    Case("scaled_dense", ScaledDense),
    Case("tied_parameter", TiedParameter, _TiedParameter, tied=True),
    Case("tied_module", TiedModule, _TiedModule, tied=True),
    Case("foreign", Holder),
    Case("in_eval", MLP, _MLP, change=lambda module: module.eval()),
    Case(
        "with_rng", lambda: Sequential(Dense(), torch.relu), change=lambda module: module.train(3)
    ),
]

FLOAT = [case for case in MODULES if case.real]
TWINS = [case for case in MODULES if case.make_twin is not None]
TIED = [case for case in MODULES if case.tied]
