"""The empirical neural tangent kernel, two ways that agree.

The kernel of two inputs is the product of the Jacobians there (Jacot, Gabriel, Hongler, 2018).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from parallax import func, tree
from parallax.examples._command import command_line, run_quietly
from parallax.examples._comparison import Way, ways
from parallax.examples._digits import load
from parallax.examples._figures import new_figure, save_figure
from parallax.examples.per_sample_gradients import Net

IMAGES = 24


def kernel(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """The kernel between two sets of inputs.

    Returns:
        For each pair of inputs a matrix, ``(len(x), len(y), outputs, outputs)``.
    """
    rows, columns = (
        func.vmap(func.jacobian_matrix(Net.forward), (None, 0))(net, z) for z in (x, y)
    )
    return torch.einsum("iap,jbp->ijab", rows, columns)


def kernel_by_products(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """The same without any Jacobian: pull a basis back from one input, push it to the other."""

    def one(x: Tensor, y: Tensor) -> Tensor:
        out, pull = func.vjp(lambda net: net(x), net)
        basis = torch.eye(len(out))
        push = lambda row: func.jvp(lambda net: net(y), (net,), pull(row))[1]  # noqa: E731  # short
        return func.vmap(push)(basis)  # type: ignore[no-any-return]  # a tensor

    return func.vmap(func.vmap(one, (None, 0)), (0, None))(x, y)


def kernel_with_torch(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The same by ``torch.func`` and an ``nn.Module``."""
    weights = {name: value.detach() for name, value in net.named_parameters()}

    def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, weights, (x,))  # type: ignore[no-any-return]  # of any module

    def rows(x: Tensor) -> list[Tensor]:
        jacobian = torch.func.vmap(torch.func.jacrev(call), (None, 0))(weights, x)
        return [block.flatten(2) for block in jacobian.values()]

    pairs = zip(rows(x), rows(y), strict=True)
    return torch.stack([torch.einsum("iap,jbp->ijab", a, b) for a, b in pairs]).sum(0)


def compare(seed: int = 0, images: int = IMAGES) -> list[Way]:
    """The kernel of some images, computed in three ways."""
    x = load().train_x[:images]
    net = Net().initialize(seed)
    twin = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    twin.load_state_dict(dict(zip(dict(twin.named_parameters()), tree.leaves(net), strict=True)))
    return ways(
        ("parallax", lambda: kernel(net, x, x), (kernel,)),
        ("parallax, by products", lambda: kernel_by_products(net, x, x), (kernel_by_products,)),
        (
            "torch.func with nn.Module",
            lambda: kernel_with_torch(twin, x, x),
            (kernel_with_torch,),
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the kernel says of some images, the time and the lines of code."""
    asked = command_line(__file__, __doc__, "the kernel of images, by digit").parse_args(arguments)
    found = compare(asked.seed, images=8 if asked.quick else IMAGES)
    gram = found[0].result.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    largest = torch.linalg.eigvalsh(gram)[-1]
    print(f"kernel of {len(found[0].result)} images: {tuple(gram.shape)}")
    print(f"its largest eigenvalue is {largest:.1f}: a step of {2 / largest:.4f} is the longest")
    print(*found, sep="\n")
    if asked.picture:
        figure = new_figure(5, 4)
        axes = figure.add_subplot()
        traces = torch.einsum("ijaa->ij", found[0].result)
        figure.colorbar(axes.imshow(traces.numpy()))
        axes.set(xlabel="image", ylabel="image", title="trace of the kernel of two images")
        save_figure(figure, asked.picture)


if __name__ == "__main__":
    sys.exit(run_quietly(main))
