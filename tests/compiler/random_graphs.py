"""Random programs of what optimizers, norms and losses are made of, as source code.

A line that torch refuses is left out, so that every program runs. Floats are mostly of double
precision: what differs then by more than rounding was computed otherwise.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Program", "mismatch", "packed", "random_program"]

_SHAPES = [(4, 4), (4, 4), (4, 4), (4, 4), (4,), (1, 4), (4, 1), (), (3, 4, 4), (3, 4, 4), (1,)]
_DTYPES = ["float64"] * 8 + ["float32"] * 3 + ["bfloat16", "int64", "int32", "bool", "uint8"]
_NUMBERS = ["-2", "-0.5", "0", "0.25", "1", "1.0", "1.5", "3", "True"]
_UNARY = [
    "torch.neg(a)", "torch.abs(a)", "torch.sqrt(a.abs())", "torch.rsqrt(a.abs() + 0.5)",
    "torch.exp(a.clamp(max=2))", "torch.log1p(a.abs())", "torch.tanh(a)", "torch.sigmoid(a)",
    "torch.relu(a)", "torch.square(a)", "torch.reciprocal(a.abs() + 0.5)", "torch.sign(a)",
    "F.gelu(a)", "F.silu(a)", "F.softplus(a)", "F.softmax(a, -1)", "F.log_softmax(a, -1)",
    "torch.logsumexp(a, -1)", "torch.pow(a, 2)", "a.t()", "a.transpose(-1, -2)", "a.reshape(-1)",
    "a.flatten()", "a.unsqueeze(0)", "a.squeeze()", "a[0]", "a[..., 0]", "a[1:]", "a[..., ::2]",
    "a.expand(4, 4)", "a.sum()", "a.sum(-1)", "a.sum(0, keepdim=True)", "a.mean(-1, keepdim=True)",
    "a.amax(-1, keepdim=True)", "a.amin(0)", "a.var(-1, keepdim=True)", "a.std(unbiased=False)",
    "a.prod(-1)", "a.argmax(-1)", "a.cumsum(-1)", "a.norm()",
    "torch.linalg.vector_norm(a, dim=-1)", "a.sum(-1, dtype=torch.float64)",
    "a.cumsum(0, dtype=torch.float64)", "a.clone()", "a.detach()", "a.double()", "a.float()",
    "a.to(torch.bfloat16)", "a.long()", "a.bool()", "a.flip(-1)", "a.roll(1, -1)", "a.diagonal()",
    "a.tril()", "a.contiguous()", "torch.ones_like(a)", "torch.zeros_like(a)",
    "torch.full_like(a, NUMBER)", "a.new_ones(4, 4)", "a.new_zeros(4)", "F.layer_norm(a, (4,))",
    "F.normalize(a, dim=-1)", "F.pad(a, (1, 0))[..., :-1]", "torch.nan_to_num(a)", "a.mT @ a",
    "torch.stack([a, a])[1]", "torch.cat([a, a], -1)[..., :4]", "a * NUMBER", "a + NUMBER",
    "NUMBER - a", "a / (a.abs() + 1)", "torch.clamp(a, -1, NUMBER)", "a.clamp_min(NUMBER)",
    "torch.rsub(a, NUMBER, alpha=NUMBER)", "torch.add(a, NUMBER, alpha=NUMBER)",
    "torch.sub(a, NUMBER, alpha=NUMBER)", "torch.floor_divide(a, 2)", "a.round()", "a.floor()",
]  # fmt: skip
_BINARY = [
    "torch.add(a, b, alpha=NUMBER)", "torch.sub(a, b, alpha=NUMBER)",
    "torch.rsub(a, b, alpha=NUMBER)", "a + b", "a - b", "a * b", "a / (b.abs() + 0.5)", "a @ b",
    "torch.mm(a, b)", "torch.bmm(a, b)", "torch.add(a, a @ b, alpha=NUMBER)",
    "torch.add(a @ b, b, alpha=NUMBER)", "torch.sub(b, a @ b, alpha=NUMBER)",
    "torch.add(b, a.t() @ b, alpha=NUMBER)", "torch.maximum(a, b)", "torch.minimum(a, b)",
    "torch.where(a > b, a, b)", "torch.where(a > 0, a, NUMBER)", "a.masked_fill(b > 0, NUMBER)",
    "a.type_as(b)", "F.mse_loss(a, b)", "F.huber_loss(a, b.to(a.dtype))", "F.smooth_l1_loss(a, b)",
    "F.l1_loss(a, b)", "F.linear(a, b)", "F.cosine_similarity(a, b)", "torch.hypot(a, b)",
    "torch.dot(a.reshape(-1), b.reshape(-1))", "torch.outer(a, b)", "a.lerp(b, NUMBER)",
    "F.binary_cross_entropy_with_logits(a, b.sigmoid())",
    "F.kl_div(a.log_softmax(-1), b.softmax(-1))", "a.clone().add_(b, alpha=NUMBER)",
    "a.clone().sub_(b, alpha=NUMBER)", "a.clone().mul_(b)", "a.clone().add_(a @ b, alpha=NUMBER)",
    "a.clone().lerp_(b, NUMBER)", "a.clone().copy_(b)", "torch.cat([a, b])",
    "torch.stack([a, b]).sum(0)", "torch.atan2(a, b)", "a.eq(b)", "a.lt(b)",
    "a.clone().clamp_(max=NUMBER).add_(b)", "torch.einsum('ij,jk->ik', a, b)",
    "F.cross_entropy(a, b)", "a.mul(NUMBER).add(b @ b, alpha=NUMBER)",
    "torch.baddbmm(a, b, b, alpha=NUMBER, beta=NUMBER)", "(a - b.amax(-1, keepdim=True)).exp()",
    "torch.sub(a, a.amax(-1, keepdim=True), alpha=NUMBER)", "torch.copysign(a, b)",
    "torch.logaddexp(a, b)", "a.softmax(-1) @ b", "torch.mv(a, b)",
]  # fmt: skip
_TERNARY = [
    "torch.addcmul(a, b, c, value=NUMBER)",
    "torch.addcdiv(a, b, c.abs() + 0.5, value=NUMBER)",
    "torch.addmm(a, b, c, alpha=NUMBER, beta=NUMBER)",
    "torch.addmv(a, b, c, alpha=NUMBER, beta=NUMBER)",
    "torch.baddbmm(a, b, c, alpha=NUMBER, beta=NUMBER)",
    "torch.addbmm(a, b, c, alpha=NUMBER, beta=NUMBER)",
    "torch.addr(a, b, c, alpha=NUMBER, beta=NUMBER)", "torch.lerp(a, b, c)",
    "torch.where(a > 0, b, c)", "torch.add(a, b @ c, alpha=NUMBER)",
    "torch.add(b @ c, a, alpha=NUMBER)", "torch.sub(a, b @ c, alpha=NUMBER)",
    "torch.add(a @ b, b @ c, alpha=NUMBER)", "torch.clamp(a, b, c)",
    # Of integers inductor makes single precision of it (torch 2.13), and no layer asks for it.
    "a.clone().addcmul_(b, c, value=NUMBER) if a.is_floating_point() else a",
    "a.clone().addcdiv_(b, c.abs() + 0.5, value=NUMBER)",
    "a.clone().addmm_(b, c, alpha=NUMBER, beta=NUMBER)", "a.clone().addmv_(b, c, alpha=NUMBER)",
    "F.linear(a, b, c)", "(a @ b + c).relu()", "F.scaled_dot_product_attention(a, b, c)",
    "torch.add((a @ b).t(), c, alpha=NUMBER)", "(a @ b / 2 + c).softmax(-1) @ b",
    "torch.add(a @ b, c, alpha=NUMBER).softmax(-1) @ c", "torch.addmm(a, b, c.t()) * NUMBER",
]  # fmt: skip


class Program:
    """A function of tensors, its source, and tensors for it."""

    def __init__(self, source: str, inputs: list[Tensor]) -> None:
        self.source = source
        self.inputs = inputs
        space: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
        exec(compile(source, "<a random program>", "exec"), space)
        self.function: Callable[..., list[Tensor]] = space["program"]


def random_program(seed: int, lines: int = 10) -> Program:
    """The program of a seed."""
    choice = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = [_tensor(choice, generator) for _ in range(choice.randint(2, 4))]
    space: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
    names = [f"x{k}" for k in range(len(inputs))]
    space |= {name: value.clone() for name, value in zip(names, inputs, strict=True)}
    body: list[str] = []
    tries = 0
    while len(body) < lines and tries < 40 * lines:
        tries += 1
        template = choice.choice(choice.choice([_UNARY, _BINARY, _BINARY, _TERNARY, _TERNARY]))
        line = _filled(template, choice, names)
        try:
            value = eval(line, space)
        except (RuntimeError, IndexError, TypeError, ValueError):
            continue
        if not _is_good(value):
            continue
        names.append(f"v{len(body)}")
        space[names[-1]] = value
        body.append(f"    {names[-1]} = {line}")
    given = ", ".join(names[: len(inputs)])
    results = ", ".join(names[len(inputs) :])
    return Program("\n".join([f"def program({given}):", *body, f"    return [{results}]"]), inputs)


def packed(programs: list[Program]) -> tuple[Callable[..., Any], list[list[Tensor]]]:
    """One function of the inputs of several programs."""
    functions = [program.function for program in programs]

    def run(inputs: list[list[Tensor]]) -> list[list[Tensor]]:
        return [function(*given) for function, given in zip(functions, inputs)]  # noqa: B905  # dynamo traces no strict=

    return run, [program.inputs for program in programs]


def mismatch(program: Program, results: list[Tensor]) -> str | None:
    """What differs from eager, with the source."""
    expected = program.function(*program.inputs)
    for k, (got, want) in enumerate(zip(results, expected, strict=True)):
        if got.dtype != want.dtype or got.shape != want.shape:
            kinds = f"{got.dtype}{tuple(got.shape)}, not {want.dtype}{tuple(want.shape)}"
            return f"v{k}: {kinds}\n{program.source}"
        rounding = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 6e-2}
        tolerance = rounding.get(want.dtype, 0.0)
        # Numbers that came from coarser ones have their rounding.
        for dtype, coarse in rounding.items():
            if any(value.dtype == dtype for value in (*expected[:k], *program.inputs)):
                tolerance = max(tolerance, coarse) if tolerance else 0.0
        scale = max(
            [float(v.double().abs().max()) for v in expected[: k + 1] if v.numel()] or [1.0]
        )
        same = torch.isclose(
            got.double(), want.double(), tolerance, tolerance * max(scale, 1.0), True
        )
        if not bool(same.all()):
            return f"v{k}: {got}, not {want}\n{program.source}\n{program.inputs}"
    return None


def _tensor(choice: random.Random, generator: torch.Generator) -> Tensor:
    dtype = getattr(torch, choice.choice(_DTYPES))
    value = torch.randn(choice.choice(_SHAPES), generator=generator, dtype=torch.float64) * 1.5
    if choice.random() < 0.2 and value.ndim > 1:
        value = value.mT
    if dtype == torch.uint8:
        return value.abs().to(dtype)
    return value > 0 if dtype == torch.bool else value.to(dtype)


def _filled(template: str, choice: random.Random, names: list[str]) -> str:
    recent = names[-6:] if choice.random() < 0.5 else names
    line = ""
    for k, char in enumerate(template):
        before = template[k - 1] if k else " "
        after = template[k + 1] if k + 1 < len(template) else " "
        lone = not (before.isalnum() or before in "._'") and not (after.isalnum() or after in "_='")
        line += f"<{char}>" if lone and char in "abc" else char
    chosen = {char: choice.choice(recent) for char in "abc"}
    for char, name in chosen.items():
        line = line.replace(f"<{char}>", name)
    while "NUMBER" in line:
        line = line.replace("NUMBER", choice.choice(_NUMBERS), 1)
    return line


def _is_good(value: Any) -> bool:
    """Whether a value is a plain tensor of moderate size and finite numbers."""
    if not isinstance(value, Tensor) or value.numel() > 200 or value.dtype.is_complex:
        return False
    return bool(value.double().isfinite().all()) and (
        value.numel() == 0 or float(value.double().abs().max()) < 1e6
    )
