"""Leaves of every kind: not dense, in shared memory, of half precision, sparse, distributed.

The right numbers are those of ``torch.optim`` over dense copies, one leaf after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from parallax import Buffer, Module, Parameter, func, nn, optim, tree
from parallax.optim import DonatedError
from tests.optim.cases import FIRST, HAS_FUSED, OPTIONS, Options, label, make


class Two(Module):
    """Two leaves, which may be tensors of different kinds."""

    one: Parameter
    two: Parameter


class Sub(Tensor):
    """A subclass of Tensor."""


def line(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape).to(dtype)


def of_numpy() -> tuple[Tensor, Tensor]:
    array = np.linspace(-1, 1, 32, dtype=np.float32)
    return torch.from_numpy(array[:16]).view(4, 4), torch.from_numpy(array[8:24]).view(4, 4)


def of_inference() -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        return line(4, 4), line(4, 4)


# What both leaves are, and for the first few a tensor around them that must stay as it is.
BASES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "expanded": lambda b: (b[:4].expand(4, 4), b[4:8].reshape(4, 1).expand(4, 4)),
    "slices": lambda b: (b[:16].view(4, 4), b[20:36].view(4, 4)),
    "columns": lambda b: (b.view(8, 12)[:4, :4], b.view(8, 12)[:4, 6:10]),
    "overlapping": lambda b: (b[:16].view(4, 4), b[8:24].view(4, 4)),
    "windows": lambda b: (b.as_strided((4, 4), (2, 1)), b.as_strided((4, 4), (1, 4), 3)),
    "diagonals": lambda b: (b[:64].view(4, 4, 4).diagonal(), b[:64].view(4, 4, 4).diagonal(1)),
    "transposed slices": lambda b: (b[:16].view(4, 4).T, b[16:32].view(4, 4).T),
    "whole, and held by others": lambda b: (b.view(8, 12), b.view(12, 8).T),
}
KINDS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "transposed": lambda: (line(4, 3).T, line(4, 4).T),
    "numpy": of_numpy,
    "dtypes": lambda: (line(4, 4), line(4, 4, dtype=torch.float64)),
    "halves": lambda: (line(4, 8, dtype=torch.bfloat16), line(4, 8, dtype=torch.float16)),
    "conjugate": lambda: ((line(4, 4) * (1 + 2j)).conj(), line(4, 4)),
    "negative": lambda: ((line(4, 4) * (1 + 2j)).conj().imag, line(4, 4)),
    "empty": lambda: (torch.zeros(0, 4), line(4, 4)),
    "subclass": lambda: (line(4, 4).as_subclass(Sub), line(4, 4)),
    "inference": of_inference,
    "shared with processes": lambda: (line(4, 4).share_memory_(), line(4, 4)),
}
OF_BASE = [(name, options) for name, options in OPTIONS if name not in ("Muon", "Adafactor")]


def slopes(leaves: Any) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        yield [torch.randn(p.shape, generator=generator).to(p.dtype) for p in leaves]


def expected(name: str, options: Options, leaves: Any) -> list[Tensor]:
    """What torch makes of dense copies."""
    copies = [p.detach().clone(memory_format=torch.contiguous_format) for p in leaves]
    params = [torch.nn.Parameter(p.as_subclass(Tensor)) for p in copies]
    theirs = getattr(torch.optim, name)(params, **options)
    for grads in slopes(leaves):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        theirs.step()
    return [param.detach() for param in params]


def stepped(name: str, options: Options, leaves: Any, donate: bool) -> list[Tensor]:
    opt, model = make(name, options), Two(*leaves)
    state = opt.init(model)
    for grads in slopes(leaves):
        model, state = opt.step(model, Two(*grads), state, donate=donate)
    return [leaf.as_subclass(Tensor) for leaf in (model.one, model.two)]


def assert_close(mine: list[Tensor], theirs: list[Tensor]) -> None:
    for one, two in zip(mine, theirs, strict=True):
        rough = 2e-2 if two.dtype.itemsize < 4 else 1e-5
        assert torch.allclose(one, two, rtol=rough, atol=rough), (one - two).abs().max()


@pytest.mark.parametrize("take", BASES.values(), ids=list(BASES))
@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_a_donated_step_writes_no_memory_that_others_use(
    name: str, options: Options, take: Any
) -> None:
    base = line(96)
    theirs = expected(name, options, take(line(96)))
    assert_close(stepped(name, options, take(base), donate=True), theirs)
    assert torch.equal(base, line(96))


def steps(name: str, kind: str) -> bool:
    """Whether torch has the optimizer for leaves of a kind."""
    return (name, kind) not in (
        ("Muon", "conjugate"), ("Adafactor", "conjugate"), ("Adafactor", "empty")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "of"),
    [(name, options, kind) for kind in KINDS for name, options in FIRST if steps(name, kind)],
    ids=label,
)
def test_leaves_of_every_kind_are_stepped_as_dense_ones(
    name: str, options: Options, of: str
) -> None:
    kind = KINDS[of]
    theirs = expected(name, options, kind())
    for donate in (False, True):
        assert_close(stepped(name, options, kind(), donate), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("take", [*BASES, *KINDS])
@pytest.mark.parametrize(("name", "options"), OF_BASE, ids=label)
def test_every_option_steps_leaves_of_every_kind(name: str, options: Options, take: str) -> None:
    def kind() -> Any:
        return BASES[take](line(96)) if take in BASES else KINDS[take]()

    theirs = expected(name, options, kind())
    for donate in (False, True):
        for foreach in (None, True):
            given = {**options, "foreach": foreach}
            assert_close(stepped(name, given, kind(), donate), theirs)


@pytest.mark.parametrize("options", [o for n, o in OPTIONS if n == "SGD"], ids=label)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_take_no_fused_kernel_that_is_wrong(dtype: torch.dtype, options: Options) -> None:
    # torch's for SGD on the CPU is: it turns the sign of every second vector.
    leaves = line(64, dtype=dtype), line(3, dtype=dtype)
    theirs = expected("SGD", {**options, "foreach": False}, leaves)
    for fused in (None, True):
        assert_close(stepped("SGD", {**options, "fused": fused}, leaves, False), theirs)


def test_an_empty_leaf_changes_nothing_for_the_others() -> None:
    # torch's Adafactor divides by the number of its elements.
    alone, beside = optim.Adafactor(lr=0.1), Two(torch.zeros(0, 4), line(4, 4))
    theirs = expected("Adafactor", {"lr": 0.1}, [line(4, 4)])
    model: Any = Two(torch.zeros(0, 4), line(4, 4))
    state = alone.init(model)
    for (grad,) in slopes([line(4, 4)]):
        model, state = alone.step(model, Two(torch.zeros(0, 4), grad), state)
    assert torch.allclose(model.two, theirs[0]) and model.one.shape == beside.one.shape


# -- memory that is shared within a step ----------------------------------------------------------

GRADIENTS: dict[str, Callable[[Any], Any]] = {
    "the parameters": lambda m: m,
    "each other's parameters": lambda m: Two(m.two.T, m.one.T),
    "a row of the other": lambda m: Two(m.two.expand(4, 4), m.two),
    "views of the other": lambda m: Two(m.one.T, m.one[:, 0].unsqueeze(0)),
}


@pytest.mark.parametrize("first", [True, False], ids=["at first", "later"])
@pytest.mark.parametrize("view", GRADIENTS.values(), ids=list(GRADIENTS))
@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_gradients_may_lie_in_the_memory_of_the_model(
    name: str, options: Options, view: Any, first: bool
) -> None:
    square = view is GRADIENTS["each other's parameters"]
    model = Two(line(4, 4), line(*((4, 4) if square else (1, 4))) * 2)
    kept, opt = tree.map(torch.clone, model), make(name, options)
    state, other = opt.init(model), opt.init(kept)
    for k in range(4):
        plain = k < 2 and not first
        grads = tree.map(torch.ones_like, model) if plain else view(model)
        copies = tree.map(torch.ones_like, kept) if plain else tree.map(torch.clone, view(kept))
        model, state = opt.step(model, grads, state, donate=True)
        kept, other = opt.step(kept, copies, other)
    for mine, theirs in zip(tree.leaves(model), tree.leaves(kept), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_leaves_that_are_not_stepped_keep_their_values_though_they_share_memory() -> None:
    class Net(Module):
        weight: Parameter
        frozen: Parameter
        buffer: Buffer

    memory = line(4, 4)
    net: Any = tree.select(
        Net(memory, memory[0], memory.T), lambda path, _: path == "frozen"
    ).freeze()
    before = net.frozen.clone(), net.buffer.clone()
    opt = optim.AdamW(lr=0.1)
    state = opt.init(net)
    for _ in range(3):
        net, state = opt.step(net, tree.map(torch.ones_like, net), state, donate=True)
    assert torch.equal(net.frozen, before[0]) and torch.equal(net.buffer, before[1])
    assert not torch.equal(net.weight, line(4, 4))


def test_moments_that_share_memory_are_parted() -> None:
    opt, model = optim.AdamW(lr=0.1), Two(line(4, 4), line(4, 4))
    zeros = torch.zeros(4, 4)
    moments: Any = {name: Two(zeros, zeros.view(16).view(4, 4)) for name in opt.init(model).moments}
    state, kept, other = opt.init(model).replace(moments=moments), model, opt.init(model)
    mine = tree.map(torch.clone, model)
    for grads in slopes(tree.leaves(model)):
        mine, state = opt.step(mine, Two(*grads), state, donate=True)
        kept, other = opt.step(kept, Two(*grads), other)
    assert_close(tree.leaves((mine, state)), tree.leaves((kept, other)))
    assert torch.equal(zeros, torch.zeros(4, 4))


def test_a_rate_may_lie_in_the_memory_of_the_model() -> None:
    rates = torch.tensor([0.1, 0.2])
    model = Two(rates, line(3))
    opt = optim.AdamW(lr=rates[0])
    other = optim.AdamW(lr=0.1)
    expected_model, _ = other.step(model, model, other.init(model))
    model, _ = opt.step(model, model, opt.init(model), donate=True)
    assert torch.allclose(model.one, expected_model.one)
    assert torch.equal(rates, torch.tensor([0.1, 0.2]))


def test_own_memory_is_reused_from_the_second_step_on() -> None:
    base = line(96)
    model, opt = Two(base[:4].expand(4, 4), base[8:24].view(4, 4)), optim.AdamW()
    state = opt.init(model)
    places = []
    for grads in slopes(tree.leaves(model)):
        model, state = opt.step(model, Two(*grads), state, donate=True)
        places.append([leaf.data_ptr() for leaf in tree.leaves((model, state.moments))])
    assert places[0] == places[1] == places[2]


@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_a_donated_run_knows_the_memory_it_writes(name: str, options: Options) -> None:
    opt, model = make(name, options), Two(line(4, 4), line(2, 4))
    state = opt.init(model)
    for grads in slopes(tree.leaves(model)):
        model, state = opt.step(model, Two(*grads), state, donate=True)
        memory: Any = vars(state)["_plans"][2]
        leaves = [*tree.leaves(model), *tree.leaves(state.moments)]
        assert memory.is_of(tree.leaves(model))
        assert not any([memory.is_apart_from([leaf]) for leaf in leaves])
        assert memory.is_apart_from(grads)


def test_a_kernel_that_fails_half_way_leaves_no_half_stepped_model() -> None:
    class Failing(Sub):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is Tensor.addcdiv_:
                raise RuntimeError("no such kernel")
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]  # torch's

    model, opt = Two(line(4, 4), line(4, 4).as_subclass(Failing)), optim.Adam()
    state = opt.init(model)
    with pytest.raises(RuntimeError, match="no such kernel"):
        opt.step(model, tree.map(torch.ones_like, model), state, donate=True)
    with pytest.raises(DonatedError):
        model.train(1)
    with pytest.raises(DonatedError):
        tree.leaves(state)


# -- sparse gradients -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's kernel of Adagrad
@pytest.mark.parametrize("uncoalesced", [False, True])
@pytest.mark.parametrize(
    ("name", "options"), [o for o in OPTIONS if o[0] in ("SGD", "Adagrad")], ids=label
)
def test_sparse_gradients_give_the_numbers_of_dense_ones(
    name: str, options: Options, uncoalesced: bool
) -> None:
    words = torch.tensor([1, 1, 3])
    model: Any = nn.Embedding(5, 2, sparse=True).initialize(0)
    weight = torch.nn.Parameter(model.weight.clone())
    opt, theirs = make(name, options), getattr(torch.optim, name)([weight], **options)
    state = opt.init(model)
    for _ in range(3):
        theirs.zero_grad()
        F.embedding(words, weight).pow(2).sum().backward()
        theirs.step()
        grads = func.grad(lambda model: model(words).pow(2).sum())(model)
        assert grads.weight.is_sparse
        if not uncoalesced:
            grads = tree.map(lambda g: g.coalesce(), grads)
        model, state = opt.step(model, grads, state)
    assert torch.allclose(model.weight, weight, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, _ in FIRST if n not in ("SGD", "Adagrad")])
def test_other_optimizers_refuse_sparse_gradients_by_name(name: str) -> None:
    model, opt = Two(line(4, 4), line(4, 4)), make(name, {})
    grads = Two(line(4, 4).to_sparse(), line(4, 4))
    with pytest.raises(ValueError, match=rf"optim.{name}.step: the gradient of Two.one is torch"):
        opt.step(model, grads, opt.init(model))


# -- distributed and nested tensors ---------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    store = dist.HashStore()  # type: ignore[attr-defined]  # torch imports it by a star
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
@pytest.mark.parametrize(
    ("name", "options"), [o for o in OPTIONS if o[0] not in ("Rprop", "Adafactor")], ids=label
)
def test_distributed_leaves_are_stepped_as_by_torch(
    name: str, options: Options, both: bool, mesh: Any
) -> None:
    def spread(one: Tensor, two: Tensor) -> list[Any]:
        sharded = distribute_tensor(one.clone(), mesh, [Shard(0)])
        return [sharded, distribute_tensor(two.clone(), mesh, [Replicate()]) if both else two]

    start = line(4, 3), line(4, 3) * 2
    theirs = expected(name, options, start)
    for donate in (False, True):
        opt, model = make(name, options), Two(*spread(*start))
        state = opt.init(model)
        for one, two in slopes(start):
            model, state = opt.step(model, Two(*spread(one, two)), state, donate=donate)
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in tree.leaves(model)]
        assert_close(whole, theirs)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_leaves_are_refused_by_name() -> None:
    nested = torch.nested.nested_tensor([line(2, 3), line(1, 3)])
    with pytest.raises(TypeError, match=r"optim.SGD.init: Two.one is a nested tensor.*to_padded"):
        optim.SGD().init(Two(nested, line(2)))


def test_jagged_leaves_are_stepped_where_torch_steps_them() -> None:
    jagged = torch.nested.nested_tensor([line(2, 3), line(1, 3)], layout=torch.jagged)
    model, opt = Two(jagged, line(2)), optim.SGD(lr=0.1, momentum=0.9)
    state = opt.init(model)
    for _ in range(2):
        model, state = opt.step(model, Two(model.one * 0 + 1, torch.ones(2)), state)
    for part, start in zip(model.one.unbind(), jagged.unbind(), strict=True):
        assert torch.allclose(part, start - 0.1 - 0.19)


# -- what is refused ------------------------------------------------------------------------------


def test_donate_is_a_bool() -> None:
    model = Two(line(4, 4), line(4, 4))
    for opt in (
        optim.SGD(),
        optim.chain(optim.ClipNorm(1.0), optim.SGD()),
        optim.Split({"one": optim.SGD()}, rest=optim.Adam()),
        optim.Accumulate(optim.SGD(), 2),
        optim.from_torch(torch.optim.SGD, lr=0.1),
    ):
        state: Any = opt.init(model)
        for wrong in ("no", "", 1, None, torch.tensor(True)):
            with pytest.raises(TypeError, match=r"donate must be True or False, got"):
                opt.step(model, model, state, donate=wrong)  # type: ignore[arg-type]
    assert torch.equal(model.one, line(4, 4))


@pytest.mark.parametrize("name", HAS_FUSED)
def test_a_fused_kernel_that_there_is_not_is_refused(name: str) -> None:
    model, opt = Two(line(4, 4) * 1j, line(4, 4)), make(name, {"fused": True})
    with pytest.raises(TypeError, match=r"fused=True steps floating-point leaves .*complex64"):
        opt.step(model, model, opt.init(model))
    integers = Two(torch.ones(2, dtype=torch.int64), line(2))
    with pytest.raises(TypeError, match=rf"optim.{name}.init: Two.one is torch.int64"):
        make(name, {}).init(integers)
