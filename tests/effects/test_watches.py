"""Capture, intervene and perturb against forward hooks on the same network of ``torch.nn``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import parallax
from parallax import effects, func, nn, tree
from parallax.effects import EffectError
from tests.effects.nets import call, calls_of, hooked, loss, nets


@pytest.fixture(params=["ours", "lifted"])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A network, ours or lifted, and the ``nn.Module``."""
    ours, lifted, theirs = nets()
    return (ours if request.param == "ours" else lifted), theirs


def tensors(found: Any) -> list[Tensor]:
    return [leaf for leaf in tree.leaves(found) if isinstance(leaf, Tensor)]


def checkpointed(net: Any, x: Tensor) -> Any:
    return checkpoint(loss, net, x, use_reentrant=False)


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


# -- capture --------------------------------------------------------------------------------------


def test_values_order_and_counts_are_those_of_hooks(both: Any, rows: Tensor) -> None:
    net, theirs = both
    expected = hooked(theirs, rows)
    out, found = effects.capture(call, "**", inputs=True)(net, rows)
    assert torch.equal(out, theirs(rows))
    assert [path for path, value in found.items() if value is not None] == list(expected)
    for path, records in expected.items():
        captured = [tuple(one) for one in calls_of(found[path])]
        torch.testing.assert_close(captured, records, msg=path)


def test_several_calls_are_a_tuple_and_none_is_none(both: Any, rows: Tensor) -> None:
    net, theirs = both
    expected = hooked(theirs, rows)
    _, found = effects.capture(call, "blocks.*", "*")(net, rows)
    assert [path for path in found if path != "blocks"] == [*[*found][:3], "unused"]
    assert [*found][:3] == ["blocks.0", "blocks.1", "pair"]
    assert isinstance(found["blocks.0"], tuple)
    torch.testing.assert_close(found["blocks.0"], tuple([c[2] for c in expected["blocks.0"]]))
    torch.testing.assert_close(found["blocks.1"], expected["blocks.1"][0][2])
    torch.testing.assert_close(found["pair"], expected["pair"][0][2])
    assert found["unused"] is None


def test_a_penalty_on_activations_is_differentiated(both: Any, rows: Tensor) -> None:
    net, theirs = both

    def penalty(net: Any, x: Tensor) -> Any:
        out, found = effects.capture(call, "blocks.1")(net, x)
        return out.sum() + found["blocks.1"].square().sum(), found

    grads, found = func.grad(penalty, has_aux=True)(net, rows)
    assert not found["blocks.1"].requires_grad
    kept: list[Tensor] = []
    handle = theirs.blocks[1].register_forward_hook(lambda *args: kept.append(args[2]))
    (theirs(rows).sum() + kept[0].square().sum()).backward()
    handle.remove()
    torch.testing.assert_close(grads.blocks[0].linear.weight, theirs.blocks[0].linear.weight.grad)


@pytest.mark.parametrize("recording", [True, False])
def test_around_a_gradient(recording: bool, both: Any, rows: Tensor) -> None:
    net, theirs = both
    expected = hooked(theirs, rows)
    with torch.set_grad_enabled(recording):
        grads, found = effects.capture(func.grad(loss), "blocks.1")(net, rows)
    torch.testing.assert_close(found["blocks.1"], expected["blocks.1"][0][2])
    assert not found["blocks.1"].requires_grad
    assert type(grads.blocks[1]) is type(net.blocks[1])
    assert tree.equal(grads, func.grad(loss)(net, rows))


def test_around_a_gradient_a_graph_that_leads_outside_is_kept(both: Any, rows: Tensor) -> None:
    net, _ = both
    x = rows.clone().requires_grad_()
    _, found = effects.capture(func.grad(loss), "blocks.1")(net, x)
    (slope,) = torch.autograd.grad(found["blocks.1"].square().sum(), x)
    _, plain = effects.capture(loss, "blocks.1")(net, x)
    (expected,) = torch.autograd.grad(plain["blocks.1"].square().sum(), x)
    torch.testing.assert_close(slope, expected)


def test_within_and_around_vmap(both: Any, rows: Tensor) -> None:
    net, _ = both
    batch = torch.stack([rows, rows + 1, rows * 2])
    each = [effects.capture(call, "blocks.0", "pair", inputs=True)(net, x)[1] for x in batch]
    expected = [torch.stack(one) for one in zip(*map(tensors, each), strict=True)]
    mapped = func.vmap(call, in_dims=(None, 0))
    _, around = effects.capture(mapped, "blocks.0", "pair", inputs=True)(net, batch)
    within = func.vmap(effects.capture(call, "blocks.0", "pair", inputs=True), in_dims=(None, 0))
    for found in (around, within(net, batch)[1]):
        assert len(found["blocks.0"]) == 2
        torch.testing.assert_close(tensors(found), expected)


def test_around_per_sample_gradients(both: Any, rows: Tensor) -> None:
    net, _ = both
    run = func.per_sample_grad(loss, in_dims=(None, 0))
    grads, found = effects.capture(run, "blocks.1")(net, rows)
    torch.testing.assert_close(
        found["blocks.1"], effects.capture(call, "blocks.1")(net, rows)[1]["blocks.1"]
    )
    assert tree.allclose(grads, run(net, rows))


def test_a_raw_transform_would_let_its_wrappers_escape(both: Any, rows: Tensor) -> None:
    net, _ = both
    run = effects.capture(lambda net, x: torch.vmap(net)(x), "pair")
    with pytest.raises(EffectError, match=r"effects\.capture.*escape from pair.*parallax\.func"):
        run(net, rows)


def test_a_checkpoint_is_captured_once(both: Any, rows: Tensor) -> None:
    net, theirs = both

    _, found = effects.capture(func.grad(checkpointed), "blocks.0")(net, rows)
    expected = tuple([record[2] for record in hooked(theirs, rows)["blocks.0"]])
    torch.testing.assert_close(found["blocks.0"], expected)


# -- intervene ------------------------------------------------------------------------------------


def hook_zeros(theirs: Any) -> Any:
    return theirs.blocks[0].register_forward_hook(lambda *args: args[2].sin())


def test_an_intervention_is_what_a_hook_returns(both: Any, rows: Tensor) -> None:
    net, theirs = both
    patched = effects.intervene(loss, {"blocks.0": torch.sin})
    hook_zeros(theirs)
    expected = theirs(rows).square().mean()
    torch.testing.assert_close(patched(net, rows), expected)
    expected.backward()
    for run in (patched, lambda net, x: checkpoint(patched, net, x, use_reentrant=False)):
        grads = func.grad(run)(net, rows)
        for path, leaf in tree.named_leaves(grads).items():
            theirs_grad = theirs.get_parameter(path).grad
            expected_grad = torch.zeros_like(leaf) if theirs_grad is None else theirs_grad
            torch.testing.assert_close(leaf, expected_grad, msg=path)


def test_a_patch_sees_other_values_and_captures_see_the_patch(both: Any, rows: Tensor) -> None:
    net, _ = both
    _, clean = effects.capture(call, "pair")(net, rows + 1)
    changes = {"pair": lambda out: (clean["pair"][0], out[1])}
    around = effects.capture(effects.intervene(call, changes), "pair")
    out, seen = around(net, rows)
    within, seen_within = effects.intervene(effects.capture(call, "pair"), changes)(net, rows)
    _, plain = effects.capture(call, "pair")(net, rows)
    torch.testing.assert_close(out, clean["pair"][0] * plain["pair"][1])
    torch.testing.assert_close((within, seen_within), (out, seen))
    torch.testing.assert_close(seen["pair"], (clean["pair"][0], plain["pair"][1]))


def test_of_two_interventions_the_inner_one_comes_first(both: Any, rows: Tensor) -> None:
    net, _ = both
    inner = effects.intervene(call, {"blocks.1": torch.exp})
    _, found = effects.capture(effects.intervene(inner, {"blocks.1": torch.neg}), "blocks.1")(
        net, rows
    )
    _, plain = effects.capture(call, "blocks.1")(net, rows)
    torch.testing.assert_close(found["blocks.1"], -plain["blocks.1"].exp())


# -- perturb --------------------------------------------------------------------------------------


def test_the_gradient_of_an_intermediate_is_that_of_retain_grad(both: Any, rows: Tensor) -> None:
    net, theirs = both
    _, found = effects.capture(loss, "blocks.*", "pair")(net, rows)
    grads = func.grad(effects.perturb(loss), argnums=1)(net, tree.zeros_like(found), rows)
    kept: list[Tensor] = []

    def keep(_: Any, args: Any, out: Any) -> None:
        for one in out if isinstance(out, tuple) else (out,):
            one.retain_grad()
            kept.append(one)

    for module in (*theirs.blocks, theirs.pair):
        module.register_forward_hook(keep)
    theirs(rows).square().mean().backward()
    first, second, third, left, right = [one.grad for one in kept]
    torch.testing.assert_close(grads["blocks.0"], (first, third))
    torch.testing.assert_close(grads["blocks.1"], second)
    torch.testing.assert_close(grads["pair"], (left, right))


def test_perturbations_are_added_and_none_adds_nothing(both: Any, rows: Tensor) -> None:
    net, _ = both
    delta = torch.full((5, 4), 0.5)
    for given in ({"blocks.0": (None, delta), "unused": None}, {"blocks.0": (0 * delta, delta)}):
        out = effects.perturb(call)(net, given, rows)
        left, right = net.pair(
            net.blocks[0](net.blocks[1](net.blocks[0](rows, scale=0.5), scale=0.5)) + delta
        )
        torch.testing.assert_close(out, left * right)


def test_the_hessian_of_an_intermediate(both: Any, rows: Tensor) -> None:
    net, _ = both

    def after(value: Tensor) -> Any:
        left, right = net.pair(net.blocks[0](value))
        return (left * right).square().mean()

    _, found = effects.capture(loss, "blocks.1")(net, rows[0])
    zeros = tree.zeros_like(found)
    run = effects.perturb(loss)
    second = torch.func.hessian(lambda d: run(net, {"blocks.1": d}, rows[0]))(zeros["blocks.1"])
    torch.testing.assert_close(second, torch.func.hessian(after)(found["blocks.1"]))


# -- compiled -------------------------------------------------------------------------------------


def everything(net: Any, x: Tensor) -> Any:
    """All of it at once: a gradient and a perturbation's, of a patched loss that is captured."""
    patched = effects.intervene(loss, {"pair.left": torch.sin})
    zeros = {"blocks.0": (torch.zeros_like(x), torch.zeros_like(x))}
    run = func.grad(effects.perturb(patched), argnums=(0, 1))
    return effects.capture(run, "blocks.*", "*", inputs=True)(net, zeros, x)


@pytest.mark.slow
def test_compiled_on_the_default_backend_in_one_graph(both: Any, rows: Tensor) -> None:
    net, _ = both
    expected = everything(net, rows)
    found = parallax.compile(everything)(net, rows)
    assert list(found[1]) == list(expected[1])
    torch.testing.assert_close(tree.leaves(found), tree.leaves(expected))
    assert found[1]["unused"] is None and len(found[1]["blocks.0"]) == 2


def test_around_a_compiled_function_without_another_graph(both: Any, rows: Tensor) -> None:
    net, _ = both
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    for k in range(2):
        expected = effects.capture(call, "blocks.*")(net, rows + k)
        with torch._dynamo.config.patch(error_on_recompile=k > 0):
            found = effects.capture(compiled, "blocks.*")(net, rows + k)
        torch.testing.assert_close(tree.leaves(found), tree.leaves(expected))


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("blocks.00", r"no module of .*Net is at 'blocks\.00'\. Near misses: blocks\.0"),
        ("**.linaer", r"no module of .*Net is at '\*\*\.linaer'\. Near misses:.*blocks\.0\.linear"),
        ("pair.left.weight", r"'pair\.left\.weight' of .*Net is a parameter.*Write 'pair\.left'"),
        (nn.LSTM, r"Net has no LSTM"),
    ],
)
def test_what_selects_nothing(what: Any, message: str, both: Any, rows: Tensor) -> None:
    for run in (effects.capture(call, what), effects.intervene(call, {what: torch.sin})):
        with pytest.raises(LookupError, match=message):
            run(both[0], rows)


def test_what_is_never_called_is_told(both: Any, rows: Tensor) -> None:
    net, _ = both
    for run in (
        effects.capture(call, "blocks.*", "unused"),
        effects.intervene(call, {"unused": torch.sin}),
    ):
        with pytest.raises(EffectError, match=r"'unused' selects 1 module of .*none was called"):
            run(net, rows)
    with pytest.raises(EffectError, match="'unused' selects 1 module"):
        effects.perturb(call)(net, {"unused": rows}, rows)


def test_interventions_that_do_not_fit(both: Any, rows: Tensor) -> None:
    net, _ = both
    with pytest.raises(EffectError, match=r"for 'pair' got \(.*returned a tensor.*structure"):
        effects.intervene(call, {"pair": lambda out: out[0]})(net, rows)
    with pytest.raises(ValueError, match=r"'blocks\.\*' and 'blocks\.0' both select 'blocks\.0'"):
        effects.intervene(call, {"blocks.*": torch.sin, "blocks.0": torch.cos})(net, rows)
    with pytest.raises(TypeError, match=r"value for 'pair' must be a function.*got 0\.0"):
        effects.intervene(call, {"pair": 0.0})  # type: ignore[dict-item]  # the error under test
    with pytest.raises(TypeError, match="expected a dict of functions by path"):
        effects.intervene(call, {})


def test_perturbations_that_do_not_fit(both: Any, rows: Tensor) -> None:
    net, _ = both
    run = effects.perturb(call)
    with pytest.raises(ValueError, match=r"'pair' is \(.*zeros_like"):
        run(net, {"pair": rows}, rows)
    with pytest.raises(ValueError, match=r"shape \(5, 4\).*the perturbation .*shape \(4,\)"):
        run(net, {"blocks.1": torch.zeros(4)}, rows)
    with pytest.raises(EffectError, match=r"'blocks\.0' has 1 perturbation and was called several"):
        run(net, {"blocks.0": rows}, rows)
    with pytest.raises(
        EffectError, match=r"'blocks\.0' has 3 perturbations and was called 2 times"
    ):
        run(net, {"blocks.0": (rows, rows, rows)}, rows)
    with pytest.raises(EffectError, match=r"'blocks\.0' has 1 perturbation and was called more"):
        run(net, {"blocks.0": (rows,)}, rows)
    with pytest.raises(TypeError, match="a dict of perturbations by path"):
        run(net, rows, rows)  # type: ignore[arg-type]  # the error under test
    with pytest.raises(EffectError, match=r"a checkpoint calls 'blocks\.0' once more"):
        func.grad(effects.perturb(checkpointed))(net, {"blocks.0": (rows, rows)}, rows)


def test_conditions_that_are_none(both: Any, rows: Tensor) -> None:
    with pytest.raises(TypeError, match=r"cannot select modules by 3"):
        effects.capture(call, 3)(both[0], rows)  # type: ignore[call-overload]  # the error under test
    with pytest.raises(TypeError, match="say which modules' inputs"):
        effects.capture(call, inputs=True)
    with pytest.raises(TypeError, match=r"effects\.capture\(fn\) runs functions whose first"):
        effects.capture(call, "pair")(rows, rows)
