"""A number of torch's functions that is given as a tensor: its forward derivative is not lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallax import func

X = torch.tensor([0.3, -1.2, 0.8, 2.0], dtype=torch.float64)
AT = torch.tensor(0.7, dtype=torch.float64)

# By the argument that is named; torch's reverse mode refuses them, too.
NUMBERS: dict[str, tuple[str, Callable[[Any], Tensor]]] = {
    "add": ("alpha", lambda t: torch.add(X, X, alpha=t)),
    "Tensor.sub": ("alpha", lambda t: X.sub(X.sin(), alpha=t)),
    "addcmul": ("value", lambda t: torch.addcmul(X, X, X, value=t)),
    "addmm": ("beta", lambda t: torch.addmm(X[:1], X[:, None], X[None], beta=t)),
    "full": ("fill_value", lambda t: torch.full((3,), t)),
    "leaky_relu": ("negative_slope", lambda t: F.leaky_relu(X, t)),
    "softplus": ("beta", lambda t: F.softplus(X, t)),
    "layer_norm": ("eps", lambda t: F.layer_norm(X, (4,), None, None, t)),
    "huber_loss": ("delta", lambda t: F.huber_loss(X, X.sin(), delta=t)),
    "pad": ("value", lambda t: F.pad(X, (1, 1), value=t)),
    "vector_norm": ("ord", lambda t: torch.linalg.vector_norm(X, t + 1)),
}
# Here a tensor may stand, and has its derivative.
TENSORS: dict[str, Callable[[Any], Tensor]] = {
    "mul": lambda t: torch.mul(X, t),
    "pow": lambda t: X.exp() ** t,
    "rpow": lambda t: 2 ** (X * t),
    "clamp": lambda t: X.clamp(-t, t),
    "lerp": lambda t: torch.lerp(X, X.sin(), t),
    "where": lambda t: torch.where(X > 0, t, X),
    "quantile": lambda t: torch.quantile(X, t),
    "gaussian_nll_loss": lambda t: F.gaussian_nll_loss(X, X.sin(), X.exp() * t),
    "local_response_norm": lambda t: F.local_response_norm(X.reshape(1, 4, 1), 3, alpha=t),
    "lp_pool1d": lambda t: F.lp_pool1d(X.exp()[None], t + 1, 2),
    "a constant": lambda t: torch.add(X, X * t, alpha=t.item()),
    "a fraction": lambda t: F.leaky_relu(X * t, float(t)),
}


def modes(function: Callable[[Tensor], Tensor]) -> list[Callable[[], Any]]:
    def total(t: Tensor) -> Tensor:
        return function(t).sin().sum()

    one = torch.ones_like(AT)
    return [
        lambda: func.jvp(total, (AT,), (one,))[1],
        lambda: func.jacfwd(total)(AT),
        lambda: func.jet(total, (AT,), ((one,),))[1][0],
        lambda: func.jvp(lambda t: func.jvp(total, (t,), (one,))[0], (AT,), (one,))[1],
    ]


@pytest.mark.parametrize("name", NUMBERS)
def test_what_would_be_read_as_a_number_is_refused_by_name(name: str) -> None:
    argument, function = NUMBERS[name]
    for found in modes(function):
        with pytest.raises(TypeError, match=rf"\({argument}=\): takes a number"):
            found()


@pytest.mark.parametrize(
    "within",
    [
        lambda f: func.vmap(f)(X).sum(),
        lambda f: func.grad(f)(X[0]),
        lambda f: func.vmap(func.grad(f))(X).sum(),
        lambda f: func.jvp(f, (X[0],), (X[1],))[1],
    ],
    ids=["vmap", "grad", "vmap of grad", "jvp"],
)
def test_so_it_is_where_another_transform_runs_within(within: Any) -> None:
    add: Any = torch.add

    def lost(t: Tensor) -> Any:
        return within(lambda x: add(x, x * x, alpha=t))

    def kept(t: Tensor) -> Any:
        return within(lambda x: add(x, x * x * t, alpha=2 * torch.ones(())))

    with pytest.raises(TypeError, match=r"add\(alpha=\): takes a number"):
        func.jvp(lost, (AT,), (torch.ones_like(AT),))
    found = func.jvp(kept, (AT,), (torch.ones_like(AT),))[1]
    torch.testing.assert_close(found, (kept(AT + 1e-4) - kept(AT - 1e-4)) / 2e-4)


@pytest.mark.parametrize("name", TENSORS)
def test_where_a_tensor_is_meant_its_derivative_is_exact(name: str) -> None:
    function = TENSORS[name]
    constants: Any = {
        "a constant": lambda t: torch.add(X, X * t, alpha=0.7),
        "a fraction": lambda t: F.leaky_relu(X * t, 0.7),
    }
    plain = constants.get(name, function)
    step = 1e-4
    values = [plain(AT + k * step).sin().sum() for k in (-2, -1, 1, 2)]
    expected = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    for found in modes(function):
        torch.testing.assert_close(found(), expected, rtol=1e-7, atol=1e-9)
