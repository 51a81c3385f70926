"""A part that stays in eval: what is marked, what the marks survive, and what they mean."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

import parallax
from parallax import bridge, effects, func, io, nn, optim, tree
from parallax.core.structure import decode
from tests.corpus import MLP, TiedModule


def net() -> Any:
    return nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 4), nn.BatchNorm1d(4)
    ).initialize(0)


def marked() -> Any:
    return tree.select(net(), "layers.0").eval()


def modes(module: Any) -> dict[str, str]:
    entries = zip(tree.select(module, parallax.Module).paths, module.modules(), strict=True)
    return {path: part.mode for path, part in entries}


STAYING = {"layers.0", "layers.0.layers.0", "layers.0.layers.1"}


def check(module: Any, staying: set[str] | None = None) -> None:
    """Asserts which modules stay in eval, by what ``train`` does."""
    for mode, made in (
        ("train", module.train(1)),
        ("train", module.reset(1)),
        ("eval", module.eval()),
    ):
        for path, found in modes(made).items():
            assert found == ("eval" if path in (STAYING if staying is None else staying) else mode)


# -- what is marked -------------------------------------------------------------------------------


def test_neither_train_nor_reset_change_the_mode_and_train_of_the_selection_undoes_it() -> None:
    check(net(), set())
    check(marked())
    assert modes(marked()) == {p: "eval" if p in STAYING else "train" for p in modes(net())}
    undone = tree.select(marked(), "layers.0").train()
    check(undone, set())
    assert tree.structure(undone) == tree.structure(net())
    check(tree.select(marked(), "layers.0.layers.1").train(), STAYING - {"layers.0.layers.1"})
    part = tree.select(marked().eval(), "layers.0").train()
    assert (part.mode, part[0].mode, part[0][1].mode) == ("eval", "train", "train")


@pytest.mark.parametrize(
    ("what", "staying"),
    [
        (("**",), None),
        ((nn.BatchNorm1d,), {"layers.0.layers.1", "layers.2"}),
        (
            ("layers.?",),
            {"layers.0", "layers.0.layers.0", "layers.0.layers.1", "layers.1", "layers.2"},
        ),
        ((lambda m: m[2],), {"layers.2"}),
        (("layers.0.layers",), {"layers.0.layers.0", "layers.0.layers.1"}),
        (("",), {"", "layers.0", "layers.0.layers.0", "layers.0.layers.1", "layers.1", "layers.2"}),
    ],
)
def test_modules_at_and_below_what_is_selected(what: Any, staying: set[str] | None) -> None:
    if staying is None:
        with pytest.raises(
            TypeError, match=r"layers\.0\.layers\.0\.weight holds no module.*'layers"
        ):
            tree.select(net(), *what).eval()
        return
    check(tree.select(net(), *what).eval(), staying)


def test_in_trees_around_modules() -> None:
    subject = {"a": [net(), net()], "b": net(), "c": torch.ones(2)}
    made = tree.select(subject, "a").eval()
    assert made["a"][1].train().mode == "eval" and made["b"].train().mode == "train"
    assert tree.select(subject, "b").eval()["b"].train()[0].mode == "eval"
    with pytest.raises(TypeError, match=r"c holds no module, .* belongs to a module\. Select"):
        tree.select(subject, "c").eval()


def test_a_module_in_several_places_is_marked_in_each() -> None:
    module = tree.select(TiedModule().initialize(0), "one").eval().train(0)
    assert module.one.mode == module.other.mode == module.several[0].mode == "eval"
    assert module.apart.mode == "train"


def test_it_is_shown() -> None:
    assert repr(marked()[0]).endswith(") (stays in eval)")
    assert repr(marked()).count("(stays in eval)") == 1
    assert "stays" not in repr(net()) and "stays" not in str(tree.summary(net()))
    own = repr(tree.select(marked(), "layers.0.layers.0").train())
    assert own.count("(stays in eval)") == 1 and own.count("(stays in eval, not all below)") == 1
    assert "(stays in eval)" in marked()._repr_html_()
    summary = tree.summary(marked())
    assert str(summary).count("stays in eval") == 7
    assert next(row.path for row in summary.rows if not row.stays_eval) == "layers.1.weight"
    assert "stays" not in f"{summary:30}"


# -- what the marks survive -----------------------------------------------------------------------


def saved(module: Any, path: Path) -> Any:
    io.save(module, path)
    return io.load(path, like=module)


def raw_optree(module: Any) -> Any:
    return optree.tree_map(torch.neg, module)


def adam_step(module: Any) -> Any:
    opt = optim.Adam(lr=0.1)
    grads = tree.map(torch.ones_like, tree.partition(module, "trainable")[0])
    return opt.step(module, grads, opt.init(net()))[0]  # a state from before


@pytest.mark.parametrize(
    "change",
    [
        lambda m: tree.map(torch.neg, m),
        lambda m: m.update(torch.neg),
        lambda m: pickle.loads(pickle.dumps(m)),
        copy.deepcopy,
        lambda m: m.split(2)[1],
        lambda m: tree.unstack(tree.stack([m, m]))[1],
        lambda m: tree.stack([m, m]),
        lambda m: tree.combine(*tree.partition(m, "**.bias")),
        lambda m: tree.add(m, net()),
        lambda m: tree.select(m, "layers.1").freeze(),
        lambda m: tree.select(m, "layers.1.bias").set(torch.ones(4)),
        lambda m: tree.select(m, "layers.1").set(nn.Linear(4, 4).initialize(1)),
        lambda m: m.replace(layers=m.layers),
        lambda m: nn.Sequential(*m.layers),
        adam_step,
        raw_optree,
        lambda m: torch_pytree.tree_map(torch.neg, m),
        lambda m: effects.collect(lambda m: m.train(0)(torch.ones(2, 3)))(m)[1],
        lambda m: func.vmap(lambda m: tree.map(torch.neg, m))(tree.stack([m, m])),
        lambda m: torch.compile(lambda m: tree.map(torch.neg, m), backend="eager")(m),
    ],
)  # fmt: skip
def test_it_stays_through(change: Any) -> None:
    check(change(marked()))


def test_it_stays_through_files(tmp_path: Path) -> None:
    made = saved(marked(), tmp_path / "net.safetensors")
    check(made)
    assert tree.equal(made, marked())


def test_selections_in_compiled_code() -> None:
    def both(module: Any) -> Any:
        kept = tree.select(module, nn.BatchNorm1d).eval().train(0)
        return kept, tree.select(kept, "layers.2").train(), kept[2].mode

    kept, undone, mode = torch.compile(both, backend="eager", fullgraph=True)(net())
    assert mode == "eval"
    check(kept, {"layers.0.layers.1", "layers.2"})
    check(undone, {"layers.0.layers.1"})


def test_trees_made_before_fit_and_members_of_a_stack_must_agree() -> None:
    assert tree.equal(marked(), net())
    with pytest.raises(ValueError, match=r"layers\.0 .*'eval', in which it stays, .*mode 'train'"):
        tree.stack([marked(), net()])
    with pytest.raises(
        ValueError, match="mode 'eval', the other has mode 'eval', in which it stays"
    ):
        tree.stack([net().eval(), tree.select(net().eval(), "layers.0").eval()])


def test_a_structure_that_was_written_before_has_no_marks() -> None:
    structure: Any = tree.structure(MLP()).parts[0]
    _, nodes = structure.encode()
    old = [(cls, constants, note[:-1], *rest) for cls, constants, note, *rest in nodes]
    assert decode((None, old)) == structure


# -- what they mean -------------------------------------------------------------------------------


def torch_net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    inner = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    return torch.nn.Sequential(inner, torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))


def expected_steps(theirs: Any, xs: Tensor) -> dict[str, Tensor]:
    """What the idiom of torch gives: ``model.train()`` and then ``model.backbone.eval()``."""
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for x in xs:
        theirs.train()
        theirs[0].eval()
        sgd.zero_grad()
        (theirs(x) ** 2).mean().backward()
        sgd.step()
    return dict(theirs.state_dict())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("lifted", [False, True])
def test_steps_are_those_of_a_backbone_in_eval(lifted: bool, compiled: bool) -> None:
    theirs, xs = torch_net(), torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(0))
    ours: Any = (
        bridge.lift(theirs) if lifted else bridge.load_state_dict(net(), theirs.state_dict())
    )
    ours = tree.select(ours, "0" if lifted else "layers.0").eval()
    opt = optim.SGD(lr=0.1)
    state = opt.init(ours)

    def step(model: Any, state: Any, x: Tensor) -> Any:
        def loss(model: Any) -> Any:
            return (model(x) ** 2).mean()

        grads, model = func.grad(effects.collect(loss), has_aux=True)(model.train(0))
        return opt.step(model, grads, state)

    if compiled:
        step = parallax.compile(step, backend="eager")
    for x in xs:
        ours, state = step(ours, state, x)
    found = bridge.state_dict(ours)
    for name, value in expected_steps(theirs, xs).items():
        torch.testing.assert_close(found[name], value)
    assert not torch.equal(found["2.running_mean"], torch.zeros(4))
    assert torch.equal(found["0.1.running_mean"], torch.zeros(4))


def test_on_the_tape() -> None:
    theirs, x = torch_net(), torch.ones(4, 3) * torch.arange(4.0)[:, None]
    ours: Any = bridge.load_state_dict(net(), theirs.state_dict())
    ours = tree.select(ours, "layers.0").eval().reset(0)
    effects.collect(lambda m: (m(x) ** 2).mean())(ours)[0].backward()
    theirs[0].eval()
    (theirs(x) ** 2).mean().backward()
    grads = bridge.state_dict(tree.partition(ours.grad(), "parameter")[0])
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)


def test_members_of_an_ensemble() -> None:
    stack = tree.stack([tree.select(net(), "layers.0").eval(), marked()])
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))

    def loss(model: Any) -> Any:
        return (effects.collect(lambda m: m(x))(model.train(0))[0] ** 2).sum()

    grads = func.vmap(func.grad(loss))(stack)
    alone = func.grad(loss)(marked())
    assert tree.allclose(tree.unstack(grads)[1], alone, atol=1e-5)
    assert grads.train(0)[0].mode == "eval"


def test_a_lowered_module_goes_by_its_own_train() -> None:
    lowered = bridge.lower(marked().train(0))
    assert [part.training for part in lowered.modules()] == [True, False, False, False, True, True]
    found = bridge.lift(lowered.train())
    assert {part.mode for part in found.modules()} == {"train"}
