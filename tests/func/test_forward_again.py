"""Derivatives of forward derivatives, of torch's functions whose own are wrong.

https://github.com/pytorch/pytorch/issues/196700, https://github.com/pytorch/pytorch/issues/175754
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import parallax
from parallax import func

pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")

N = 3
WEIGHTS = torch.linspace(0.5, 1.5, N * N, dtype=torch.float64).reshape(N, N)


def matrix(x: Tensor) -> Tensor:
    """An invertible matrix of nine numbers."""
    eye = torch.eye(N, dtype=x.dtype)
    return x.reshape(N, N).sin() + 2 * eye + 0.3 * x.prod() * eye.flip(0)


def lower(x: Tensor) -> Tensor:
    return matrix(x).tril()


def complex_of(x: Tensor) -> Tensor:
    return torch.complex(matrix(x), 0.5 * x.reshape(N, N).cos())


def scattered(function: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Products of several entries, two of them with a zero among the factors."""
    index, moved = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3]), x - torch.tensor([0.9, *[0] * 7, 1.4])
    return function(x[:4].cos(), 0, index, moved, reduce="prod")


SCATTERED: dict[str, Callable[..., Tensor]] = {
    "torch.scatter_reduce": torch.scatter_reduce,
    "Tensor.scatter_reduce, itself left out": partial(Tensor.scatter_reduce, include_self=False),
    "scatter_reduce in place": Tensor.scatter_reduce_,
}

CHOSEN = torch.tensor([0, 2, 1])
LOSSES: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "nll_loss": (F.nll_loss, {}),
    "cross_entropy": (F.cross_entropy, {"ignore_index": 2}),
    "cross_entropy, smoothed": (F.cross_entropy, {"label_smoothing": 0.2, "reduction": "sum"}),
    "cross_entropy, smoothed mean": (F.cross_entropy, {"label_smoothing": 0.2, "ignore_index": 0}),
}


def weighted(function: Any, options: Any, by_scores: int, x: Tensor) -> Tensor:
    """A loss whose weights of classes depend on the point, and whose scores may."""
    scores = x.reshape(N, N) if by_scores else WEIGHTS
    found: Tensor = function(scores, CHOSEN, x[:N].exp(), **options)
    return found


def embedded(x: Tensor) -> Tensor:
    """Of each pair one is far off the margin."""
    target = torch.tensor([1, -1, 1])
    return F.cosine_embedding_loss(x.reshape(N, N), WEIGHTS.flip(0), target, margin=-0.9)


SEEN = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])

THIRD: dict[str, Callable[[Tensor], Tensor]] = {
    "vector_norm": lambda x: torch.linalg.vector_norm(x),
    "vector_norm of three": lambda x: torch.linalg.vector_norm(x.reshape(N, N), 3, dim=1),
    "matrix_norm": lambda x: torch.linalg.matrix_norm(x.reshape(N, N)),
    "linalg.norm": lambda x: torch.linalg.norm(x.reshape(N, N), dim=0),
    "norm": lambda x: torch.norm(x.reshape(N, N), dim=1, keepdim=True),
    "Tensor.norm with zeros": lambda x: torch.stack([x[:N], 0 * x[:N]]).norm(2.5, -1),
    "dist": lambda x: torch.dist(x[:4], x[4:8]),
    "norm of one number": lambda x: torch.norm(x[0], 2, 0),
    "renorm": lambda x: torch.renorm(x.reshape(N, N), 2, 0, 0.9),
    "std_mean": lambda x: torch.stack(torch.std_mean(x.reshape(N, N), 1)),
    "std": lambda x: torch.std(x.reshape(N, N), 1, correction=0),
    "Tensor.std of all": lambda x: x.std(),
    "normalize": lambda x: F.normalize(x.reshape(N, N)),
    "pairwise_distance": lambda x: F.pairwise_distance(x.reshape(N, N), WEIGHTS, keepdim=True),
    "cosine_similarity": lambda x: F.cosine_similarity(x.reshape(N, N), WEIGHTS[0], dim=0),
    "cosine_embedding_loss": embedded,
    "triplet_margin_loss": lambda x: F.triplet_margin_loss(
        x.reshape(N, N), WEIGHTS, 3 - WEIGHTS, margin=9.0, swap=True, reduction="none"
    ),
    "triplet_margin_with_distance_loss of a distance": lambda x: (
        F.triplet_margin_with_distance_loss(
            x.reshape(N, N),
            WEIGHTS,
            3 - WEIGHTS,
            margin=9.0,
            swap=True,
            distance_function=lambda x, y: torch.linalg.vector_norm(x - y, 3, dim=-1),
        )
    ),
    "mse_loss": lambda x: F.mse_loss(x[:4].sin(), x[4:8]),
    "eigvals": lambda x: torch.linalg.eigvals(matrix(x)).abs(),
    "eigvalsh": lambda x: torch.linalg.eigvalsh(matrix(x) + matrix(x).mT),
    "attention that sees nothing": lambda x: F.scaled_dot_product_attention(
        x.reshape(N, N), x.reshape(N, N).sin(), WEIGHTS, SEEN
    ),
    "triplet_margin_with_distance_loss": lambda x: F.triplet_margin_with_distance_loss(
        x.reshape(N, N), WEIGHTS, 3 - WEIGHTS, margin=9.0
    ),
}

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "solve a matrix": lambda x: torch.linalg.solve(matrix(x), x.reshape(N, N).exp()),
    "solve a vector": lambda x: torch.linalg.solve(matrix(x), x[:N]),
    "solve a batch of vectors": lambda x: torch.linalg.solve(
        torch.stack([matrix(x), matrix(2 * x)]), torch.stack([x[:N], x[N : 2 * N]])
    ),
    "solve from the right": lambda x: torch.linalg.solve(
        A=matrix(x), B=x.reshape(N, N).exp(), left=False
    ),
    "solve_ex": lambda x: torch.linalg.solve_ex(matrix(x), x.reshape(N, N))[0],
    "tensorsolve": lambda x: torch.linalg.tensorsolve(matrix(x).reshape(3, 1, 3), x[:3, None]),
    "tensorsolve with dims": lambda x: torch.linalg.tensorsolve(
        matrix(x).reshape(3, 3, 1), x[:3, None], dims=(0,)
    ),
    "triangular_solve": lambda x: torch.triangular_solve(x.reshape(N, N), lower(x), upper=False)[0],
    "det": lambda x: torch.linalg.det(matrix(x)),
    "Tensor.det": lambda x: matrix(x).det(),
    "det of complex numbers": lambda x: torch.view_as_real(torch.det(complex_of(x))),
    "slogdet": lambda x: torch.linalg.slogdet(matrix(x))[1],
    "slogdet of complex numbers": lambda x: torch.view_as_real(torch.slogdet(complex_of(x))[0]),
    "logdet": lambda x: torch.logdet(matrix(x) @ matrix(x).mT),
    "cholesky_inverse": lambda x: torch.cholesky_inverse(lower(x)),
    "cholesky_inverse, upper": lambda x: lower(x).mT.cholesky_inverse(upper=True),
    "householder_product": lambda x: torch.linalg.householder_product(matrix(x), x[:N]),
    "orgqr of two columns": lambda x: torch.orgqr(matrix(x)[:, :2], x[:2]),
    "prod with a zero": lambda x: (x - 0.9).reshape(N, N).prod(0),
    "prod of all with a zero": lambda x: torch.prod(x - 0.9),
    "cumprod with a zero": lambda x: (x - 0.9).cumprod(0),
    "sinc at zero": lambda x: torch.sinc(x - 0.9),
    "vander with a zero": lambda x: torch.linalg.vander((x - 0.9).reshape(N, N), N=4),
    "torch.vander with a zero": lambda x: torch.vander(x[:3] - 0.9, 4),
    **{f"{name} with zeros": partial(scattered, function) for name, function in SCATTERED.items()},
    "vectors of eigh": lambda x: torch.linalg.eigh(matrix(x) + matrix(x).mT)[1] ** 2,
    "vectors of eig": lambda x: torch.linalg.eig(matrix(x))[1].abs(),
    "layer_norm": lambda x: F.layer_norm(x.reshape(N, N), (N,), x[:N]),
    "torch.layer_norm": lambda x: torch.layer_norm(x.reshape(N, N), (N,), bias=x[:N]),
    "batch_norm": lambda x: F.batch_norm(x.reshape(N, N), None, None, x[:N], training=True),
    "instance_norm": lambda x: F.instance_norm(x.reshape(1, N, N), weight=x[:N]),
    **{
        f"{name} weighted by {x}": partial(weighted, function, options, k)
        for name, (function, options) in LOSSES.items()
        for k, x in enumerate(["class", "score"])
    },
    **(
        {
            "linear_cross_entropy weighted": lambda x: F.linear_cross_entropy(
                x.reshape(N, N), WEIGHTS, CHOSEN, weight=x[:N].exp()
            )
        }
        if hasattr(F, "linear_cross_entropy")
        else {}
    ),
    "glu": lambda x: F.glu(x[:8].reshape(2, 4)),
    "hardsigmoid": lambda x: F.hardsigmoid(x).pow(3),
    "soft_margin_loss by targets": lambda x: F.soft_margin_loss(x[:4], x[4:8]),
    "batch_norm by statistics": lambda x: F.batch_norm(x.reshape(N, N), x[:N], x[:N].exp()),
    "torch.batch_norm by statistics": lambda x: torch.batch_norm(
        x.reshape(N, N), None, None, x[:N], x[:N].exp(), False, 0.1, 1e-5, False
    ),
    **THIRD,
}

COMPILED = tuple(
    [n for n in FUNCTIONS if not any(word in n for word in ("scatter", "eig", "of a distance"))]
)

every = pytest.mark.parametrize("name", FUNCTIONS)
some = pytest.mark.parametrize(
    "name", ["solve a vector", "det", "slogdet", "cholesky_inverse", "householder_product",
             "layer_norm", "batch_norm"],
)  # fmt: skip


@pytest.fixture
def at() -> Tensor:
    return torch.tensor([0.9, -0.4, 0.3, 0.2, 1.1, -0.7, 0.5, 0.8, 1.4], dtype=torch.float64)


@pytest.fixture
def along() -> Tensor:
    return torch.tensor([0.3, 1.0, -0.5, 0.2, -0.8, 0.6, 0.1, -0.3, 0.7], dtype=torch.float64)


def scalar(name: str) -> Callable[[Tensor], Tensor]:
    """A function to a number that weighs all results differently."""

    def of(x: Tensor) -> Tensor:
        found = FUNCTIONS[name](x).flatten()
        return (found * torch.linspace(0.5, 1.5, len(found), dtype=found.dtype)).sum().sin()

    return of


def difference(function: Callable[[Tensor], Tensor], x: Tensor, along: Tensor) -> Tensor:
    """The derivative by finite differences of fourth order."""
    h = 1e-3
    steps = [function(x + k * h * along) for k in (-2, -1, 1, 2)]
    return (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)


def second(name: str, x: Tensor, along: Tensor) -> Tensor:
    """The second derivative along a direction by finite differences of plain values."""
    function = scalar(name)
    return difference(lambda y: difference(function, y, along), x, along)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def slope(name: str, along: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: func.jvp(scalar(name), (x,), (along,))[1]


@every
def test_a_jvp_of_a_jvp(name: str, at: Tensor, along: Tensor) -> None:
    found = func.jvp(slope(name, along), (at,), (along,))[1]
    close(found, second(name, at, along))


@every
def test_the_gradient_of_a_jvp(name: str, at: Tensor, along: Tensor) -> None:
    found = func.grad(slope(name, along))(at) @ along
    close(found, second(name, at, along))


@every
def test_a_jvp_of_a_gradient(name: str, at: Tensor, along: Tensor) -> None:
    found = func.jvp(func.grad(scalar(name)), (at,), (along,))[1] @ along
    close(found, second(name, at, along))


@every
def test_a_gradient_on_the_tape_of_a_jvp(name: str, at: Tensor, along: Tensor) -> None:
    """The point is captured by the function: nothing tells of it before the function runs."""
    leaf = at.clone().requires_grad_()
    zero = torch.zeros((), dtype=torch.float64)
    _, value = func.jvp(lambda t: scalar(name)(leaf + t * along), (zero,), (torch.ones_like(zero),))
    (found,) = torch.autograd.grad(value, leaf)
    close(found @ along, second(name, at, along))


@pytest.mark.parametrize("name", THIRD)
def test_third_derivatives(name: str, at: Tensor, along: Tensor) -> None:
    """The gradient of a jvp of either derivative, and a jvp of a gradient of a jvp."""
    taken: dict[str, Callable[[Any], Callable[[Tensor], Tensor]]] = {
        "R": lambda f: lambda x: func.grad(f)(x) @ along,
        "F": lambda f: lambda x: func.jvp(f, (x,), (along,))[1],
    }
    h = 1e-3
    steps = [second(name, at + k * h * along, along) for k in (-2, -1, 1, 2)]
    expected = (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)
    for word in ("RFF", "RFR", "FRF", "FRR", "RRF", "FFR", "FFF"):
        function: Any = scalar(name)
        for letter in reversed(word):
            function = taken[letter](function)
        torch.testing.assert_close(function(at), expected, rtol=1e-5, atol=1e-5)


@some
def test_a_jvp_of_a_jvp_of_each_of_a_batch(name: str, at: Tensor, along: Tensor) -> None:
    batch = torch.stack([at, 1.1 * at])
    found = func.vmap(lambda x: func.jvp(slope(name, along), (x,), (along,))[1])(batch)
    close(found, torch.stack([second(name, x, along) for x in batch]))


@some
def test_jacfwd_of_jacfwd(name: str, at: Tensor, along: Tensor) -> None:
    found = func.jacfwd(func.jacfwd(scalar(name)))(at)
    close(along @ found @ along, second(name, at, along))


@every
def test_values_and_first_derivatives(name: str, at: Tensor, along: Tensor) -> None:
    leaf = at.clone().requires_grad_()
    for x in (at, leaf):
        value, found = func.jvp(scalar(name), (x,), (along,))
        close(value.detach(), scalar(name)(at))
        close(found.detach(), difference(scalar(name), at, along))


@pytest.mark.parametrize(
    "names", [("det", "layer_norm"), pytest.param(COMPILED, marks=pytest.mark.slow)]
)
def test_compiled_they_are_right(names: Sequence[str], at: Tensor, along: Tensor) -> None:
    @parallax.compile(backend="aot_eager", fullgraph=True)
    def found(x: Tensor) -> Any:
        slopes = [slope(name, along) for name in names]
        return [(func.jvp(f, (x,), (along,))[1], func.grad(f)(x) @ along) for f in slopes]

    for name, (forward, reverse) in zip(names, found(at), strict=True):
        close(forward, second(name, at, along))
        close(reverse, second(name, at, along))


def test_compiled_jacfwd_of_jacfwd(at: Tensor, along: Tensor) -> None:
    """Also of what has no second derivative, and of a method that is not an operator."""
    name = "solve a vector"

    @parallax.compile(backend="eager", fullgraph=True)
    def found(x: Tensor) -> Any:
        twice = [func.jacfwd(func.jacfwd(f)) for f in (scalar(name), lambda x: (3 * x).sum())]
        method = func.jacfwd(lambda x: x.unflatten(0, (N, N)).sin())
        return [f(x) for f in [*twice, method]]

    hessian, zeros, slopes = found(at)
    close(along @ hessian @ along, second(name, at, along))
    assert torch.equal(zeros, torch.zeros(N * N, N * N, dtype=at.dtype))
    close(slopes.reshape(N * N, N * N), at.cos().diag())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["layer_norm", "batch_norm", "instance_norm"])
def test_norms_of_half_precision_are_computed_in_single(
    name: str, dtype: torch.dtype, at: Tensor, along: Tensor
) -> None:
    half, moved = at.to(dtype), along.to(dtype)
    value, found = func.jvp(slope(name, moved), (half,), (moved,))
    assert value.dtype is found.dtype is dtype
    expected = second(name, half.double(), moved.double())
    torch.testing.assert_close(found.double(), expected, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("positional", [False, True])
def test_running_statistics_are_those_of_one_call(
    positional: bool, dtype: torch.dtype, at: Tensor, along: Tensor
) -> None:
    mean, var = torch.zeros(N, dtype=dtype), torch.ones(N, dtype=dtype)
    expected = [mean.clone(), var.clone()]

    def normed(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        x = x.reshape(N, N)
        if positional:
            return torch.batch_norm(x, None, None, mean, var, True, 0.2, 1e-5, False)
        return F.batch_norm(x, mean, var, training=True, momentum=0.2)

    leaf, moved = at.to(dtype).requires_grad_(), along.to(dtype)
    value, _ = func.jvp(
        lambda t: normed(leaf + t * moved, mean, var), (moved.new_zeros(()),), (moved.new_ones(()),)
    )
    atol = torch.finfo(dtype).eps  # an entry of about one, rounded
    torch.testing.assert_close(value.detach(), normed(at.to(dtype), *expected), rtol=0, atol=atol)
    assert torch.equal(mean, expected[0])
    assert torch.equal(var, expected[1])


def test_derivatives_at_a_singular_matrix(along: Tensor) -> None:
    """The determinant is a polynomial: one with two equal rows has derivatives."""
    x = torch.tensor([1.0, 2, 3, 1, 2, 3, 0, 1, 5], dtype=torch.float64)

    def det(x: Tensor) -> Tensor:
        found: Tensor = torch.linalg.det(x.reshape(N, N))
        return found

    value, found = func.jvp(lambda y: func.jvp(det, (y,), (along,))[1], (x,), (along,))
    close(value, difference(det, x, along))
    expected = difference(lambda y: difference(det, y, along), x, along)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_the_first_derivative_at_a_matrix_of_zeros(size: int) -> None:
    for det in (torch.det, torch.linalg.det):
        zero = torch.zeros(size, size, dtype=torch.float64)
        found = func.jvp(lambda x, det=det: det(x + x.mT), (zero,), (torch.ones_like(zero),))[1]
        expected = torch.tensor(2.0 if size == 1 else 0.0, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_both_results_of_triangular_solve_in_forward_mode(at: Tensor, along: Tensor) -> None:
    def both(x: Tensor) -> Tensor:
        found, copy = torch.triangular_solve(x[:N, None], x.reshape(N, N), upper=False)
        return found.sum() + (copy * WEIGHTS).sum()

    close(func.jvp(both, (at,), (along,))[1], difference(both, at, along))


def test_a_loss_in_chunks_is_refused(at: Tensor, along: Tensor) -> None:
    """torch computes its gradient within its forward, which forward mode passes by."""
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if options is None:
        pytest.skip("this torch has no such loss")

    def loss(x: Tensor) -> Tensor:
        weight, target = torch.cat([x.cos(), x[:6].sin()]).reshape(5, N), torch.tensor([0, 4, 1])
        losses: Any = F
        found: Tensor = losses.linear_cross_entropy(
            x.reshape(N, N), weight, target, options=options()
        )
        return found

    with pytest.raises(RuntimeError, match="forward AD with linear_cross_entropy with options"):
        func.jvp(loss, (at,), (along,))
    close(func.grad(loss)(at) @ along, difference(loss, at, along))


def test_a_third_derivative_of_a_product_with_a_zero() -> None:
    x = torch.tensor([0.0, 1, -2], dtype=torch.float64)
    along = torch.tensor([1.0, 0.5, 2], dtype=torch.float64)

    def derivative(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: func.jvp(function, (x,), (along,))[1]

    for product in (torch.prod, lambda x: x.cumprod(0)[-1]):
        found = derivative(derivative(derivative(product)))(x)
        close(found, 6 * along.prod())


def test_a_compiled_forward_derivative_of_a_scattered_product_is_refused(at: Tensor) -> None:
    """There reverse mode cannot take its place: what is wrong shows after the trace began."""
    product = partial(scattered, torch.scatter_reduce)
    compiled = parallax.compile(lambda x: func.jvp(product, (x,), (x,)), backend="eager")
    with pytest.raises(RuntimeError, match="forward AD with scatter_reduce of products"):
        compiled(at)


def test_wrong_calls_have_the_errors_of_torch(at: Tensor) -> None:
    leaf = at.clone().requires_grad_()

    def along_one(function: Callable[[Tensor], Tensor]) -> None:
        func.jvp(function, (leaf,), (torch.ones_like(at),))

    with pytest.raises(RuntimeError, match=r"linalg.solve: .* singular"):
        along_one(lambda x: torch.linalg.solve(0 * x.reshape(N, N), x[:N]))
    with pytest.raises(TypeError, match="linalg_det"):
        along_one(lambda x: torch.linalg.det())
    with pytest.raises(RuntimeError, match="square"):
        along_one(lambda x: torch.linalg.det(x.reshape(1, -1)))


def test_threads_do_not_end_the_derivatives_of_each_other(at: Tensor, along: Tensor) -> None:
    """torch has one level for the whole process: torch.func raises in most of these calls."""

    def derivatives() -> list[Tensor]:
        twice = func.jvp(slope("det", along), (at,), (along,))[1]
        return [twice, func.jacfwd(scalar("solve a vector"))(at)]

    expected = derivatives()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: derivatives(), range(24)))
    finally:
        sys.setswitchinterval(interval)
    for pair in found:
        torch.testing.assert_close(pair, expected, rtol=1e-12, atol=1e-12)
