"""``debug.check`` raises where a condition is false, and says for which sample; and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import debug, func
from parallax.debug import CheckError
from tests.compiling import make_compiled

GOOD = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
BAD = torch.tensor([[1.0, 2.0], [3.0, -4.0], [5.0, 6.0]])


def root(x: Tensor) -> Tensor:
    debug.check(x >= 0, "no root of {x}", x=x)
    return x.sqrt().sum()


def unchecked(x: Tensor) -> Tensor:
    return x.sqrt().sum()


# What is done with a function, and what the message of a check within says of BAD.
USES: dict[str, tuple[Callable[[Any], Callable[[Tensor], Any]], str]] = {
    "plain": (lambda f: f, r"false at \[1, 1\] \(1 of 6 numbers\)"),
    "vmap": (func.vmap, r"no root of tensor\(\[ 3., -4.\]\): false in sample 1 \(1 of 3 samples\)"),
    "vmap twice": (
        lambda f: func.vmap(func.vmap(f)), r"no root of -4.0: false in sample 1, 1 \(1 of 6 samp"
    ),
    "grad": (func.grad, r"false at \[1, 1\]"),
    "vmap of grad": (lambda f: func.vmap(func.grad(f)), "in sample 1"),
    "grad of vmap": (lambda f: func.grad(lambda x: func.vmap(f)(x).sum()), "in sample 1"),
    "grad twice": (lambda f: func.grad(lambda x: func.grad(f)(x).sum()), r"at \[1, 1\]"),
    "checkpoint": (lambda f: func.grad(func.checkpoint(f)), r"at \[1, 1\]"),
    "scan": (
        lambda f: lambda x: func.scan(lambda c, row: (c + f(row), f(row)), torch.zeros(()), x),
        r"no root of tensor\(\[ 3., -4.\]\): false at \[1\]",
    ),
    "cond": (lambda f: lambda x: func.cond(x.sum() > 0, f, lambda x: x.sum(), (x,)), r"\[1, 1\]"),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_in_eager_code(use: str) -> None:
    around, message = USES[use]
    torch.testing.assert_close(around(root)(GOOD), around(unchecked)(GOOD))
    with pytest.raises(CheckError, match=message):
        around(root)(BAD)


# The others are parts of these.
QUICK = {"vmap twice", "vmap of grad", "checkpoint", "scan", "cond"}


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    "use", [pytest.param(use, marks=() if use in QUICK else pytest.mark.slow) for use in USES]
)
def test_in_compiled_code(use: str) -> None:
    around, message = USES[use]
    compiled = make_compiled(around(root), backend="aot_eager")
    torch.testing.assert_close(compiled(GOOD), around(unchecked)(GOOD))
    with pytest.raises(CheckError, match=message):
        compiled(BAD)
    torch.testing.assert_close(compiled(GOOD), around(unchecked)(GOOD))


@pytest.mark.usefixtures("fresh_dynamo")
def test_forward_mode_goes_on_after_a_check_has_failed_in_a_graph() -> None:
    def tangent(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
        return lambda x: func.jvp(f, (x,), (torch.ones_like(x),))

    compiled = make_compiled(tangent(root), backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(GOOD), tangent(unchecked)(GOOD))
        with pytest.raises(CheckError, match=r"at \[1, 1\]"):
            compiled(BAD)
        with pytest.raises(CheckError, match=r"at \[1, 1\]"):
            tangent(root)(BAD)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_in_code_of_inductor() -> None:
    compiled = make_compiled(lambda x: func.vmap(func.grad(root))(x))
    torch.testing.assert_close(compiled(GOOD), func.vmap(func.grad(unchecked))(GOOD))
    with pytest.raises(CheckError, match="in sample 1"):
        compiled(BAD)


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_loss_that_backward_is_called_on() -> None:
    compiled = torch.compile(root, backend="aot_eager", fullgraph=True)
    x = GOOD.clone().requires_grad_()
    compiled(x).backward()
    torch.testing.assert_close(x.grad, 0.5 * GOOD**-0.5)
    with pytest.raises(CheckError, match=r"at \[1, 1\]"):
        compiled(BAD.clone().requires_grad_())


@pytest.mark.usefixtures("fresh_dynamo")
def test_values_of_all_kinds() -> None:
    def checked(x: Tensor, n: int, name: str) -> Tensor:
        debug.check(x.max() < n, "{name}: {x:.1f} in step {n:03d}", x=x.max(), n=n, name=name)
        return x * n

    def twice(x: Tensor, n: int, name: str) -> Tensor:
        debug.check(x.max() < n, "too large {{}}", x=x.max(), n=n, name=name)
        return x * n

    compiled = make_compiled(checked, backend="eager"), make_compiled(twice, backend="eager")
    for one, other in ((checked, twice), compiled):
        for n in (9, 8, 7):
            assert torch.equal(one(GOOD, n, "loss"), GOOD * n)
        with pytest.raises(CheckError, match=r"^loss: 6.0 in step 005$"):
            one(GOOD, 5, "loss")
        with pytest.raises(CheckError, match=r"^too large \{\}; .*x=6\.0"):
            other(GOOD, 5, "{x}")


def test_a_format_for_numbers_shows_a_vector_as_it_is() -> None:
    with pytest.raises(CheckError, match=r"^x is tensor\(\[1., 2.\]\): false at \[1\]"):
        debug.check(torch.tensor([True, False]), "x is {x:.2f}", x=torch.tensor([1.0, 2.0]))


def test_conditions_that_are_no_tensors() -> None:
    debug.check(True, "never")
    with pytest.raises(CheckError, match=r"^3 is not 4$"):
        debug.check(False, "{a} is not {b}", a=3, b=4)

    def never(x: Tensor) -> Tensor:
        debug.check(False, "no {x}", x=x)
        return x

    with pytest.raises(CheckError, match=r"no tensor\(\[1., 2.\]\)"):
        func.vmap(never)(GOOD)


def test_what_only_some_of_the_mapped_values_depend_on() -> None:
    def scaled(s: Tensor, x: Tensor) -> Tensor:
        debug.check(s > 0, "scale {s} of {x}", s=s, x=x)
        return s * x

    scales, x = torch.tensor([1.0, 2.0, -1.0]), torch.tensor(5.0)
    with pytest.raises(CheckError, match=r"^scale -1.0 of 5.0: false in sample 2 \(1 of 3"):
        func.vmap(scaled, (0, None))(scales, x)
    with pytest.raises(CheckError, match=r"^scale -1.0 of 1.0: false$|^scale -1.0 of 1.0$"):
        func.vmap(scaled, (None, 0))(scales[2], scales)


def test_models_and_samples_are_both_named() -> None:
    grads = func.vmap(func.per_sample_grad(lambda w, x: root(w * x)), (0, None))
    with pytest.raises(CheckError, match=r"false in sample 0, 1 \(2 of 6 samples\)"):
        grads(torch.ones(2, 2), BAD)


def test_without_numbers_nothing_is_checked() -> None:
    assert func.eval_shape(root, BAD).shape == ()
    assert root(BAD.to("meta")).device.type == "meta"
    debug.check(torch.zeros(0, dtype=torch.bool), "of nothing")


WRONG: dict[str, tuple[Callable[[], None], str]] = {
    "a condition of numbers": (lambda: debug.check(GOOD, "x"), "a tensor of torch.float32.*Write"),
    "another condition": (lambda: debug.check(1, "x"), "tensor of bools, got 1"),  # type: ignore[arg-type]  # what is refused
    "another message": (lambda: debug.check(True, 3), "message must be text, got 3"),  # type: ignore[arg-type]  # what is refused
    "an unknown name": (lambda: debug.check(True, "{y}", x=1), r"names \{y\}, and was given x"),
    "a number": (lambda: debug.check(True, "{}"), r"names \{\}, and was given no values"),
    "a part": (lambda: debug.check(True, "{x.shape}", x=GOOD), r"names \{x.shape\}"),
    "one brace": (lambda: debug.check(True, "{x", x=1), "no text to be formatted.*twice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_at_once(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(TypeError, match=message):
        call()
