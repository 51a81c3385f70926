"""Recurrent networks are torch's, in plain code and where torch's kernels do not work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.utils import _pytree as torch_pytree

from parallax import Module, bridge, func, nn, random, tree
from tests.nn.parity import assert_parity, assert_same, assert_same_start

NETS: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True}),
    ("RNN", {"bias": False, "batch_first": True}),
    ("GRU", {}),
    ("GRU", {"num_layers": 3, "bidirectional": True, "batch_first": True}),
    ("GRU", {"bias": False, "num_layers": 2}),
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("LSTM", {"bias": False, "num_layers": 2}),
    ("LSTM", {"proj_size": 1, "num_layers": 2}),
    ("LSTM", {"proj_size": 1, "bias": False, "bidirectional": True}),
]
every_net = pytest.mark.parametrize(("name", "arguments"), NETS, ids=str)
# What torch's own kernel says of projections.
projects = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
SIZES = {"input_size": 3, "hidden_size": 2}


def state(name: str, arguments: dict[str, Any], *batch: int, **keywords: Any) -> Any:
    rows = arguments.get("num_layers", 1) * (1 + arguments.get("bidirectional", False))
    c = torch.randn(rows, *batch, 2, **keywords)
    h = torch.randn(rows, *batch, arguments.get("proj_size", 0) or 2, **keywords)
    return (h, c) if name == "LSTM" else h


def sequence(arguments: dict[str, Any], steps: int, *batch: int) -> Tensor:
    shape = (*batch, steps, 3) if arguments.get("batch_first") else (steps, *batch, 3)
    return torch.randn(shape)


@projects
@every_net
@pytest.mark.parametrize("batch", [(5,), (), (1,)], ids=str)
@pytest.mark.parametrize("given", [True, False])
def test_numbers(name: str, arguments: dict[str, Any], batch: tuple[int, ...], given: bool) -> None:
    ours = getattr(nn, name)(**SIZES, **arguments)
    theirs = getattr(torch_nn, name)(**SIZES, **arguments)
    hx = (state(name, arguments, *batch),) if given else ()
    assert_parity(ours, theirs, sequence(arguments, 4, *batch), *hx)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str
)
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    ours = getattr(nn, name)(3, 2, dtype=dtype)
    theirs = getattr(torch_nn, name)(3, 2, dtype=dtype)
    assert_parity(ours, theirs, torch.randn(1, 5, 3, dtype=dtype), mode="train")


@projects
@every_net
def test_names_and_order_of_the_state_dict(name: str, arguments: dict[str, Any]) -> None:
    ours = getattr(nn, name)(**SIZES, **arguments).initialize(0)
    theirs = getattr(torch_nn, name)(**SIZES, **arguments)
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    found = {key: value.shape for key, value in bridge.state_dict(ours).items()}
    assert list(found.items()) == list(shapes.items())


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_it_starts_where_torchs_does(name: str) -> None:
    assert_same_start(lambda: getattr(nn, name)(7, 5), lambda: getattr(torch_nn, name)(7, 5))


def loss(net: Module, x: Tensor, hx: Any) -> Tensor:
    parts = [part for part in torch_pytree.tree_leaves(net(x, hx)) if part is not None]
    return torch.stack([(part * torch.arange(part.shape[-1] + 1.0)[1:]).sum() for part in parts])


def total(net: Module, x: Tensor, hx: Any) -> Tensor:
    return loss(net, x, hx).sum()


@projects
@every_net
def test_vmap_is_a_loop(name: str, arguments: dict[str, Any]) -> None:
    net = getattr(nn, name)(**SIZES, **arguments).initialize(0)
    hx = state(name, arguments, 2)
    xs = torch.stack([sequence(arguments, 4, 2) for _ in range(3)])
    expected = torch.stack([loss(net, x, hx) for x in xs])
    assert_same(torch.vmap(loss, (None, 0, None))(net, xs, hx), expected, 1e-5)
    grads = [tree.leaves(func.grad(total)(net, x, hx)) for x in xs]
    mapped = torch.vmap(func.grad(total), (None, 0, None))(net, xs, hx)
    assert_same(tree.leaves(mapped), [torch.stack(g) for g in zip(*grads, strict=True)], 1e-5)


@projects
@every_net
def test_examples_without_a_batch_vmap(name: str, arguments: dict[str, Any]) -> None:
    net = getattr(nn, name)(**SIZES, **arguments).initialize(0)
    xs = torch.stack([sequence({}, 4) for _ in range(3)])
    expected = torch.stack([loss(net, x, None) for x in xs])
    assert_same(torch.vmap(loss, (None, 0, None))(net, xs, None), expected, 1e-5)


@projects
@every_net
def test_forward_derivatives_and_graphs(name: str, arguments: dict[str, Any]) -> None:
    net = getattr(nn, name)(**SIZES, **arguments).initialize(0)
    x, hx = sequence(arguments, 2, 5), state(name, arguments, 5)
    along = torch.randn_like(x)
    found = torch.func.jvp(lambda x: total(net, x, hx), (x,), (along,))[1]
    expected = (torch.func.grad(lambda x: total(net, x, hx))(x) * along).sum()
    assert_same(found, expected, 1e-4)
    torch._dynamo.reset()
    compiled = torch.compile(total, fullgraph=True, backend="eager")
    assert_same(compiled(net, x, hx), total(net, x, hx), 1e-5)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_gradient_compiles(name: str) -> None:
    net = getattr(nn, name)(3, 2).initialize(0)
    x = sequence({}, 2, 5)
    compiled = torch.compile(func.grad(total), fullgraph=True, backend="aot_eager")
    expected = func.grad(total)(net, x, None)
    assert_same(tree.leaves(compiled(net, x, None)), tree.leaves(expected), 1e-5)


# -- dropout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_dropout_is_applied_between_the_layers_alone(name: str, bidirectional: bool) -> None:
    """Everything dropped: the last layer sees zeros, as torch's does."""
    arguments: Any = {"num_layers": 2, "dropout": 1.0, "bidirectional": bidirectional}
    theirs = getattr(torch_nn, name)(3, 2, **arguments)
    ours = getattr(nn, name)(3, 2, **arguments)
    assert repr(ours.initialize(0)) == repr(theirs)
    ours = bridge.load_state_dict(ours, theirs.state_dict()).train(random.key(0))
    x = sequence({}, 4, 5)
    assert_same(ours(x), theirs(x))
    assert_same(ours.eval()(x), theirs.eval()(x))


def test_dropout_is_a_function_of_the_key() -> None:
    net = nn.GRU(3, 4, num_layers=3, dropout=0.5).initialize(0)
    x = torch.randn(4, 5, 3)
    one, again, other = (net.train(random.key(seed))(x) for seed in (1, 1, 2))
    assert_same(one, again)
    assert not torch.equal(one[0], other[0])
    keys = random.split(random.key(0), 3)
    mapped = torch.vmap(lambda key: net.train(key)(x)[0])(keys)
    looped = torch.stack([net.train(random.clone(key))(x)[0] for key in keys])
    assert_same(mapped, looped, 1e-6)


def test_dropout_drops_as_often_as_it_should() -> None:
    """With identity weights the second layer hands on what it is given, dropped or doubled."""
    net = nn.RNN(100, 100, num_layers=2, dropout=0.3, nonlinearity="relu", bias=False)
    weights = {
        name: (torch.zeros if "hh" in name else torch.eye)(*[100] * (1 + ("hh" in name)))
        for name in bridge.state_dict(net.initialize(0))
    }
    net = bridge.load_state_dict(net, weights).train(random.key(0))
    out = net(torch.ones(20, 10, 100))[0]
    assert_same(out.unique(), torch.tensor([0, 1 / 0.7]), 1e-6)
    assert abs((out == 0).double().mean() - 0.3) < 5 * (0.21 / out.numel()) ** 0.5


def test_dropout_without_an_rng_says_what_to_write() -> None:
    net = nn.LSTM(3, 2, num_layers=2, dropout=0.5).initialize(0)
    with pytest.raises(RuntimeError, match=r"LSTM\.rng: no random state .*module\.train\(rng\)"):
        net.train()(torch.randn(4, 5, 3))


def test_dropout_of_one_layer_warns_as_torchs() -> None:
    with pytest.warns(UserWarning, match=r"dropout comes between layers, and there is one"):
        nn.LSTM(3, 2, dropout=0.5)


# -- what does not fit --------------------------------------------------------------------------


class Net(Module):
    """Holds a network, so that an error has a path to name."""

    rnn: Module

    def forward(self, *args: Any) -> Any:
        return self.rnn(*args)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_misfit_names_the_path_and_the_shape(name: str, traced: bool) -> None:
    net = Net(getattr(nn, name)(3, 2, num_layers=2)).initialize(0)
    run: Any = (lambda *a: torch.vmap(lambda _: net(*a))(torch.zeros(2))) if traced else net
    start = rf"^Net\.rnn \({name}\): expected "
    for shape in [(4, 5, 2), (4,), (1, 4, 5, 3)]:
        with pytest.raises(ValueError, match=start + r"input of shape \(T, N, 3\) or \(T, 3\), g"):
            run(torch.ones(shape))
    for batch in [(4,), ()]:
        with pytest.raises(ValueError, match=start + r"(hx|h) of shape \(2, 5, 2\), got \("):
            run(torch.ones(4, 5, 3), state(name, {"num_layers": 2}, *batch))
    with pytest.raises(ValueError, match=start + r"(hx|h) of shape \(2, 2\), got \(1, 2\)"):
        run(torch.ones(4, 3), state(name, {}))
    with pytest.raises(ValueError, match=start + r"at least one step, got \(0, 5, 3\)"):
        run(torch.ones(0, 5, 3))
    with pytest.raises(TypeError, match=r"input must be a tensor, got list"):
        run([1.0])


def test_batch_first_is_part_of_the_expected_shape() -> None:
    with pytest.raises(ValueError, match=r"^GRU: expected input of shape \(N, T, 3\) or \(T, 3\)"):
        nn.GRU(3, 2, batch_first=True).initialize(0)(torch.ones(4, 5, 2))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_packed_input_says_what_to_do_instead(name: str) -> None:
    packed = torch_nn.utils.rnn.pack_sequence([torch.ones(3, 3), torch.ones(2, 3)])
    net = Net(getattr(nn, name)(3, 2)).initialize(0)
    with pytest.raises(TypeError, match=r"^Net\.rnn .*pad_packed_sequence\(packed\)"):
        net(packed)


def test_the_state_of_an_lstm_is_a_pair() -> None:
    lstm: Any = nn.LSTM(3, 2).initialize(0)  # checkers refuse the call, too
    with pytest.raises(TypeError, match=r"^LSTM: hx must be a pair of tensors \(h, c\)"):
        lstm(torch.ones(4, 5, 3), torch.zeros(1, 5, 2))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("GRU", {"hidden_size": 0}, r"GRU\(hidden_size=\): must be at least 1, got 0"),
        ("RNN", {"num_layers": 0}, r"RNN\(num_layers=\): must be at least 1, got 0"),
        ("RNN", {"nonlinearity": "gelu"}, r"RNN\(nonlinearity=\): expected one of 'tanh', 'r"),
        ("LSTM", {"proj_size": 2}, r"LSTM\(proj_size=\): .* less than hidden_size, 2, got 2"),
        ("LSTM", {"dropout": 1.5}, r"LSTM\(dropout=\): must be at least 0 and at most 1"),
    ],
)
def test_arguments_out_of_range_fail_at_construction(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(nn, name)(**{**SIZES, **arguments})
    with pytest.raises(TypeError, match=rf"{name}\(bidirectional=\): expected a bool, got 2"):
        getattr(nn, name)(3, 2, bidirectional=2)
    with pytest.raises(TypeError, match=r"expected an int, got 2.0"):
        getattr(nn, name)(3, 2.0)
