"""What a step leaves alone, what it counts, and that it is pure."""

from __future__ import annotations

import io
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

import parallax
from parallax import Module, Parameter, UninitializedError, func, optim, tree
from parallax.optim import plan
from parallax.optim.checks import gather
from tests.corpus import MLP, MODULES, Case, Dense, Norm, TiedParameter, example_input
from tests.optim.cases import FIRST, Matrices, Net, Options, gradients, label, make, model_for


class Point(Module):
    at: Parameter


def ones(model: Any) -> Any:
    return tree.map(torch.ones_like, model)


def same(one: Any, two: Any) -> bool:
    pairs = zip(tree.leaves(one), tree.leaves(two), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# -- purity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_a_step_writes_into_nothing_it_was_given(name: str, options: Options) -> None:
    model, opt = model_for(name), make(name, options)
    first, second = gradients(model, 2)
    model, state = opt.step(model, first, opt.init(model))
    given = (model, second, state)
    leaves = tree.leaves(given)
    before, versions = [leaf.clone() for leaf in leaves], [leaf._version for leaf in leaves]
    rng = torch.get_rng_state()
    after, next_state = opt.step(*given)
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))
    assert [leaf._version for leaf in leaves] == versions
    assert torch.equal(rng, torch.get_rng_state())
    memory = {leaf.data_ptr() for leaf in leaves}
    assert memory.isdisjoint(leaf.data_ptr() for leaf in tree.leaves((after, next_state)))
    assert same(opt.step(*given), (after, next_state))


@pytest.mark.parametrize("case", [c for c in MODULES if c.name != "empty"], ids=str)
def test_every_kind_of_module_is_stepped_as_its_flat_leaves_are(case: Case) -> None:
    model = case.make()
    opt = optim.Adam(lr=0.1, weight_decay=0.1)
    state = opt.init(model)
    grads = tree.map(torch.ones_like, tree.partition(model, "trainable")[0])
    params = [leaf.clone().requires_grad_() for leaf in tree.leaves(grads)]
    values = tree.leaves(tree.partition(model, "trainable")[0])
    for param, value in zip(params, values, strict=True):
        param.data = value.clone()
        param.grad = torch.ones_like(value)
    twin = torch.optim.Adam(params, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        model, state = opt.step(model, grads, state)
        twin.step()
    stepped = tree.leaves(tree.partition(model, "trainable")[0])
    for mine, theirs in zip(stepped, params, strict=True):
        tolerance = 1e-6 if mine.dtype.itemsize >= 4 else 1e-2
        assert torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance)


def test_no_graph_is_built_though_everything_carries_one() -> None:
    point = Point(torch.ones(2, requires_grad=True) * 2)
    grads = Point(torch.ones(2, requires_grad=True) * 3)
    for opt in (optim.SGD(), optim.SGD(momentum=0.9), optim.Adam(), optim.RMSprop()):
        model, state = opt.step(point, grads, opt.init(point))
        assert not any(leaf.requires_grad for leaf in tree.leaves((model, state)))


def test_the_model_keeps_its_class_mode_and_random_state() -> None:
    model = MLP().initialize(0).train(7)
    opt = optim.SGD()
    stepped, _ = opt.step(model, ones(model), opt.init(model))
    assert type(stepped) is MLP and stepped.mode == "train" and stepped.rng is not None
    assert tree.structure(stepped) == tree.structure(model)


# -- holes, frozen leaves, ties --------------------------------------------------------------------


def test_a_hole_leaves_the_leaf_and_its_moments_alone() -> None:
    model, opt = Net().initialize(0), optim.AdamW(lr=0.1)
    state = opt.init(model)
    model, state = opt.step(model, ones(model), state)
    after, later = opt.step(model, tree.partition(ones(model), "bias")[1], state)
    assert after.bias is model.bias
    assert later.moments["exp_avg"].bias is state.moments["exp_avg"].bias
    assert not torch.equal(after.first, model.first)


@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_leaves_that_miss_steps_age_as_parameters_of_torch_do(name: str, options: Options) -> None:
    from tests.optim.cases import distance, twin_of

    model, opt = model_for(name), make(name, options)
    twin, state = twin_of(name, options, model), opt.init(model)
    paths = list(tree.named_leaves(model))
    missing = [[], [paths[0]], [paths[0], paths[1]], [], [paths[1]], paths, [paths[0]], []]
    for grads, gone in zip(gradients(model, len(missing)), missing, strict=True):
        if gone:
            grads = tree.partition(grads, *gone)[-1]  # noqa: PLW2901  # the same, with holes
        model, state = opt.step(model, grads, state)
        twin.step(grads)
    for path, leaf in tree.named_leaves(model).items():
        assert distance(leaf, twin.params[path]) <= 1e-6
    assert state.step.item() == len(missing)


def test_a_steady_pattern_of_holes_needs_no_more_clocks_than_there_are_patterns() -> None:
    model, opt = Net().initialize(0), optim.Adam()
    state = opt.init(model)
    for k in range(20):
        grads = tree.partition(ones(model), "bias")[1] if k % 2 else ones(model)
        model, state = opt.step(model, grads, state)
    assert len(state.clocks) == 1
    assert [state.step.item(), state.clocks[0].item()] == [20, 10]


def test_frozen_parameters_and_buffers_are_neither_stepped_nor_decayed() -> None:
    model = tree.select(Norm().initialize(0), "weight").freeze()
    opt = optim.AdamW(lr=0.1, weight_decay=0.5)
    state = opt.init(model)
    assert state.moments["exp_avg"].weight is None
    assert state.moments["exp_avg"].running_mean is None
    # Even where raw code gives them gradients.
    stepped, _ = opt.step(model, ones(model), state)
    for name in ("weight", "running_mean", "running_var", "num_batches_tracked"):
        assert getattr(stepped, name) is getattr(model, name)
    assert not torch.equal(stepped.bias, model.bias)


def test_a_tied_leaf_is_stepped_once_and_stays_tied() -> None:
    model = TiedParameter().initialize(0)
    opt = optim.SGD(lr=1.0)
    stepped, _ = opt.step(model, ones(model), opt.init(model))
    assert stepped.encoder.weight is stepped.decoder.weight
    assert torch.equal(stepped.encoder.weight, model.encoder.weight - 1)


def test_a_state_fits_after_train_eval_reset_and_freeze() -> None:
    model = MLP().initialize(0)
    opt = optim.Adam(lr=0.1)
    state = opt.init(model)
    expected, _ = opt.step(model, ones(model), state)
    for other in (model.train(1), model.eval(), model.reset(2)):
        assert same(opt.step(other, ones(model), state)[0], expected)
    frozen = tree.select(model, "first").freeze()
    stepped, later = opt.step(frozen, ones(model), state)
    assert stepped.first.weight is model.first.weight
    assert torch.equal(stepped.second.weight, expected.second.weight)
    # And moments made while a leaf was frozen begin when it no longer is.
    late = opt.init(frozen)
    assert late.moments["exp_avg"].first.weight is None
    unfrozen, late = opt.step(model, ones(model), opt.step(frozen, ones(model), late)[1])
    assert torch.equal(unfrozen.first.weight, expected.first.weight)
    assert late.moments["exp_avg"].first.weight is not None
    assert later.step.item() == 1


def test_what_reset_and_backward_leave_can_be_stepped() -> None:
    model, opt = MLP().initialize(0), optim.SGD(lr=0.01)
    state, x = opt.init(model), example_input()
    losses = []
    for seed in range(5):
        model = model.reset(seed)
        loss = model(x).square().sum()
        loss.backward()
        losses.append(loss.item())
        model, state = opt.step(model, model.grad(), state)
    assert losses == sorted(losses, reverse=True)


def test_gradients_laid_out_otherwise_in_memory_are_read_rightly() -> None:
    model, opt = Matrices().initialize(0), optim.Adam(lr=0.1)
    grads = next(gradients(model, 1))
    turned = tree.map(lambda g: g.T.contiguous().T, grads)
    assert not tree.leaves(turned)[0].is_contiguous()
    for other in (model, tree.map(lambda p: p.T.contiguous().T, model)):
        expected = opt.step(model, grads, opt.init(model))
        assert same(opt.step(other, turned, opt.init(other)), expected)
        assert same(opt.step(other, grads, opt.init(model)), expected)


def other_memory(value: Tensor) -> Tensor:
    return value.T.contiguous().T


CHANGES: dict[str, Any] = {
    "transposed gradients": lambda m, g: (m, tree.map(other_memory, g)),
    "a transposed model": lambda m, g: (tree.map(other_memory, m), g),
    "gradients that require grad": lambda m, g: (m, tree.map(Tensor.requires_grad_, g)),
    "a model that requires grad": lambda m, g: (tree.map(Tensor.requires_grad_, m), g),
    "a hole": lambda m, g: (m, tree.partition(g, "first")[1]),
    "a frozen leaf": lambda m, g: (tree.select(m, "first").freeze(), g),
    "another mode": lambda m, g: (m.train(3), g),
    "parameters of torch": lambda m, g: (m, tree.map(torch.nn.Parameter, g)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_what_is_kept_from_step_to_step_is_not_believed_of_other_trees(
    name: str, change: Any
) -> None:
    opt: Any = make(name, {"lr": 0.1})
    model: Any = Matrices().initialize(0)
    kept, forgotten, state, other = model, model, opt.init(model), opt.init(model)
    for k, grads in enumerate(gradients(model, 6)):
        here, there = (kept, grads), (forgotten, grads)
        if k in (2, 3, 5):
            here, there = change(*here), change(*there)
        kept, state = opt.step(*here, state)
        # A state that was copied knows nothing but its leaves.
        forgotten, other = opt.step(*there, pickle.loads(pickle.dumps(other)))
        assert same((kept, state), (forgotten, other))
        kept = kept if k in (2, 3, 5) else tree.map(torch.clone, kept)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows whenever a step looks at its trees leaf by leaf."""
    found: list[Any] = []

    def counting(*arguments: Any) -> Any:
        found.append(arguments[0])
        return gather(*arguments)

    monkeypatch.setattr(plan, "gather", counting)
    return found


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("case", [c for c in MODULES if c.name != "empty"], ids=str)
def test_a_run_looks_at_its_trees_once(case: Case, donate: bool, looked: list[Any]) -> None:
    model, opt = case.make(), optim.Adam()
    state = opt.init(model)
    for _ in range(4):
        grads = tree.map(torch.ones_like, tree.partition(model, "trainable")[0])
        model, state = opt.step(model, grads, state, donate=donate)
    assert len(looked) == 1


def test_a_run_of_prepared_models_looks_at_its_trees_once(looked: list[Any]) -> None:
    model, opt, x = MLP().initialize(0), optim.SGD(lr=0.01), example_input()
    state = opt.init(model)
    for seed in range(5):
        model = model.reset(seed)
        model(x).square().sum().backward()
        model, state = opt.step(model, model.grad(), state)
    assert len(looked) == 1


def test_a_run_to_and_fro_looks_at_each_kind_of_tree_once(looked: list[Any]) -> None:
    model, opt = Matrices().initialize(0), optim.Adam()
    state = opt.init(model)
    for k, grads in enumerate(gradients(model, 9)):
        kinds = grads, tree.partition(grads, "first")[1], tree.map(other_memory, grads)
        model, state = opt.step(model, kinds[k % 3], state)
    assert len(looked) == 3


def test_a_step_after_others_refuses_what_the_first_would_refuse() -> None:
    model, opt = MLP().initialize(0), optim.Adam()
    state = opt.init(model)
    for _ in range(3):
        model, state = opt.step(model, ones(model), state)
    before = [leaf.clone() for leaf in tree.leaves((model, state))]
    wrong: list[tuple[Any, Any]] = [
        (tree.map(lambda g: g.sum(), ones(model)), r"and its gradient has \(\)"),
        (tree.map(lambda g: g.double(), ones(model)), "its gradient is torch.float64"),
        (MLP(torch.relu).initialize(0), "the gradients: .*activation"),
        (None, "pass the whole tree"),
    ]
    for grads, message in wrong:
        with pytest.raises(ValueError, match=message):
            opt.step(model, grads, state)
    wide: Any = tree.map(lambda p: torch.cat([p, p]), model)
    with pytest.raises(ValueError, match=r"made for another model: there MLP.first.weight has"):
        opt.step(wide, wide, state)
    grouped = optim.Adam(groups={"**.bias": {"lr": 1.0}, "**.weight": {"lr": 0.0}})
    state_of_groups = grouped.init(model)
    fewer = grouped.replace(groups={"**.bias": {"lr": 1.0}})
    with pytest.raises(ValueError, match=r"made for 2 groups or more, and the optimizer has 1"):
        fewer.step(model, ones(model), state_of_groups)
    assert same((model, state), before)


# -- the state as a tree ---------------------------------------------------------------------------


def test_moments_are_modules_of_the_models_shape() -> None:
    model = MLP().initialize(0)
    state = optim.Adam(amsgrad=True).init(model)
    assert list(state.moments) == ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    assert type(state.moments["exp_avg"]) is MLP
    assert state.moments["exp_avg_sq"].first.weight.shape == model.first.weight.shape
    assert state.step.shape == () and "moments.exp_avg.second.bias" in tree.named_leaves(state)
    doubled = tree.map(lambda leaf: 2 * leaf, state)
    assert type(doubled) is optim.State


def resume_by_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def resume_by_torch(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("resume", [resume_by_pickle, resume_by_torch])
@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_a_resumed_run_has_the_very_bits_of_one_that_was_not_interrupted(
    name: str, options: Options, resume: Any
) -> None:
    model, opt = model_for(name), make(name, options)
    state = opt.init(model)
    other, other_opt, other_state = model, opt, state
    for k, grads in enumerate(gradients(model, 6)):
        model, state = opt.step(model, grads, state)
        other, other_state = other_opt.step(other, grads, other_state)
        if k == 2:
            other, other_opt, other_state = resume((other, other_opt, other_state))
    assert same((model, state), (other, other_state))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_a_run_resumed_from_files_has_the_very_bits_of_one_that_was_not_interrupted(
    name: str, options: Options, suffix: str, tmp_path: Path
) -> None:
    model, opt = model_for(name), make(name, options)
    state = opt.init(model)
    first, second, third, fourth = gradients(model, 4)
    for grads in (first, second):
        model, state = opt.step(model, grads, state)
    files = tmp_path / f"model.{suffix}", tmp_path / f"state.{suffix}"
    parallax.io.save(model, files[0])
    parallax.io.save(state, files[1])
    fresh = model_for(name, seed=5)
    other = parallax.io.load(files[0], like=fresh)
    other_state = parallax.io.load(files[1], like=opt.init(fresh))
    for grads in (third, fourth):
        model, state = opt.step(model, grads, state)
        other, other_state = opt.step(other, grads, other_state)
    assert same((model, state), (other, other_state))


# -- an optimizer is a value -----------------------------------------------------------------------


def test_an_optimizer_is_immutable_and_says_how_to_change_it() -> None:
    opt = optim.Adam(lr=0.1)
    with pytest.raises(FrozenInstanceError, match=r"opt = opt.replace\(lr=...\)"):
        opt.lr = 0.2
    with pytest.raises(FrozenInstanceError):
        del opt.lr
    assert opt.replace(lr=0.2).lr == 0.2 and opt.lr == 0.1
    with pytest.raises(TypeError, match="no hyper-parameter 'rate'; it has lr, betas"):
        opt.replace(rate=1)
    assert repr(optim.SGD(0.1, groups={"**.bias": {"lr": 0.2}})).endswith(
        "groups={'**.bias': {'lr': 0.2}})"
    )


@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_names_and_defaults_are_those_of_torch(name: str, options: Options) -> None:
    del options
    theirs = getattr(torch.optim, name)([torch.zeros(1, 1)]).defaults
    mine = make(name, {}).hyper
    if name == "AdamW":
        theirs = {key: value for key, value in theirs.items() if key != "decoupled_weight_decay"}
    assert mine == theirs


def test_a_tensor_is_a_leaf_of_the_optimizer_and_a_number_is_not() -> None:
    opt = optim.Adam(lr=torch.tensor(0.5), groups={"bias": {"lr": torch.tensor(0.25)}})
    leaves, spec = torch_pytree.tree_flatten(opt)
    assert [leaf.item() for leaf in leaves] == [0.5, 0.25]
    again = torch_pytree.tree_unflatten([torch.tensor(1.0), torch.tensor(2.0)], spec)
    assert again.lr.item() == 1 and again.groups["bias"]["lr"].item() == 2
    assert tree.leaves(optim.Adam(lr=0.5)) == []


def test_a_tensor_rate_gives_the_numbers_of_a_number() -> None:
    for name, options in FIRST:
        model = model_for(name)
        grads = list(gradients(model, 3))
        one, two = (make(name, {**options, "lr": lr}) for lr in (0.125, torch.tensor(0.125)))
        state, other, other_state = one.init(model), model, two.init(model)
        for grad in grads:
            model, state = one.step(model, grad, state)
            other, other_state = two.step(other, grad, other_state)
        assert same(model, other), name


# -- groups ----------------------------------------------------------------------------------------


def test_groups_by_glob_class_and_predicate_are_torchs_parameter_groups() -> None:
    model = MLP().initialize(0)
    opt = optim.AdamW(
        lr=0.1,
        groups={
            "second.bias": {"lr": 0.5},
            "**.bias": {"weight_decay": 0.0},
            lambda path, leaf: path == "second.weight": {"betas": (0.5, 0.5)},
        },
        foreach=False,
    )
    names = tree.named_leaves(model)
    params = {path: leaf.clone().requires_grad_() for path, leaf in names.items()}
    parts: list[dict[str, Any]] = [
        {"params": [params["first.weight"]]},
        {"params": [params["second.bias"]], "lr": 0.5},
        {"params": [params["first.bias"]], "weight_decay": 0.0},
        {"params": [params["second.weight"]], "betas": (0.5, 0.5)},
    ]
    twin = torch.optim.AdamW(parts, lr=0.1)
    state = opt.init(model)
    assert state.labels == (0, 2, 3, 1)
    for grads in gradients(model, 10):
        for path, grad in tree.named_leaves(grads).items():
            params[path].grad = grad
        model, state = opt.step(model, grads, state)
        twin.step()
    for path, leaf in tree.named_leaves(model).items():
        assert torch.equal(leaf, params[path])
    by_class = optim.SGD(lr=1.0, groups={Dense: {"lr": 0.0}})
    stepped, _ = by_class.step(model, ones(model), by_class.init(model))
    assert same(stepped, model)


def test_groups_may_differ_in_the_moments_they_need() -> None:
    model = Net().initialize(0)
    opt = optim.SGD(lr=0.1, groups={"first": {"momentum": 0.9}})
    state = opt.init(model)
    assert list(tree.named_leaves(state.moments["momentum_buffer"])) == ["first"]
    for grads in gradients(model, 2):
        model, state = opt.step(model, grads, state)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ([1], TypeError, r"groups is a dict, got a list. Write groups=\{'\*\*.bias'"),
        ({"bias": 3}, TypeError, r"groups\['bias'\] is a dict of hyper-parameters, got 3"),
        ({"bias": {"rate": 3}}, TypeError, "has no hyper-parameter 'rate'; it has lr, betas"),
        ({"bias": {"fused": True}}, TypeError, "fused is of the whole step"),
        ({"bias": {"lr": -1.0}}, ValueError, r"in groups\['bias'\]: Invalid learning rate: -1.0"),
    ],
)
def test_bad_groups_are_refused(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optim.Adam(groups=groups)


def test_a_group_that_means_nothing_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"groups\['\*\*.gain'\].*nothing in MLP"):
        optim.Adam(groups={"**.gain": {"lr": 0.1}}).init(MLP().initialize(0))


# -- bad input -------------------------------------------------------------------------------------


def test_a_negative_learning_rate_is_refused() -> None:
    for name, _ in FIRST:
        with pytest.raises(ValueError, match=rf"optim.{name}: .*-0.1"):
            make(name, {"lr": -0.1})
    with pytest.raises(ValueError, match=r"optim.LBFGS: Invalid learning rate: -1"):
        optim.LBFGS(lr=-1)
    with pytest.raises(ValueError, match=r"optim.Adam: Invalid learning rate"):
        optim.Adam(lr=torch.tensor(-0.1))
    with pytest.raises(ValueError, match=r"Invalid beta parameter at index 0: 1.5"):
        optim.Adam(betas=(1.5, 0.9))


@pytest.mark.parametrize("donate", [False, True])
def test_gradients_of_another_structure_name_the_first_differing_path(donate: bool) -> None:
    model, opt = MLP().initialize(0), optim.Adam()
    state = opt.init(model)
    before = [leaf.clone() for leaf in tree.leaves((model, state))]
    other = MLP(bias=False).initialize(0)
    wrong = [
        (MLP(torch.relu).initialize(0), ValueError, "optim.Adam.step: the gradients: .*activation"),
        ({"first": 1}, ValueError, "the first has a MLP, the other has a dict"),
        (None, ValueError, "pass the whole tree, with None where there is no value"),
        (
            tree.map(lambda g: g.sum(), ones(model)),
            ValueError,
            r"MLP.first.weight has shape \(4, 4\) and its gradient has \(\)",
        ),
        (
            tree.map(lambda g: g.double(), ones(model)),
            ValueError,
            r"MLP.first.weight is torch.float32 and its gradient is torch.float64. Cast them",
        ),
    ]
    for grads, error, message in wrong:
        with pytest.raises(error, match=message):
            opt.step(model, grads, state, donate=donate)
    assert same((model, state), before)
    stepped, _ = opt.step(model, tree.map(torch.ones_like, other), state)
    assert stepped.first.bias is model.first.bias


def test_a_state_of_another_model_or_optimizer_is_refused() -> None:
    model, opt = MLP().initialize(0), optim.Adam()
    for other in (Net().initialize(0), MLP(torch.relu).initialize(0)):
        with pytest.raises(
            ValueError, match=r"made for another model: .*state = opt.init\(model\)"
        ):
            opt.step(model, ones(model), opt.init(other))
    narrow, wide = Dense(3, 2).initialize(0), Dense(3, 4).initialize(0)
    for name, _ in FIRST:
        if name != "Muon":
            other = make(name, {})
            with pytest.raises(
                ValueError, match=r"there Dense.weight has shape \(2, 3\), here \(4, 3\)"
            ):
                other.step(wide, wide, other.init(narrow))
    tampered = tree.map(lambda leaf: leaf.new_zeros(1) if leaf.ndim else leaf, opt.init(model))
    with pytest.raises(ValueError, match="the state's exp_avg has leaves of other shapes"):
        opt.step(model, ones(model), tampered)
    sgd = optim.SGD()
    with pytest.raises(ValueError, match="made for another model, of 4 leaves"):
        sgd.step(Point(torch.ones(1)), Point(torch.ones(1)), sgd.init(model))
    with pytest.raises(ValueError, match=r"the state was made by optim.SGD"):
        opt.step(model, ones(model), sgd.init(model))
    with pytest.raises(ValueError, match="the state has no 'max_exp_avg_sq'"):
        optim.Adam(amsgrad=True).step(model, ones(model), opt.init(model))
    with pytest.raises(TypeError, match="the state must be what init returned, got None"):
        opt.step(model, ones(model), None)  # type: ignore[arg-type]  # that is what is tested


def test_a_model_without_anything_to_train_is_refused() -> None:
    class Empty(Module):
        pass

    for name, _ in FIRST:
        with pytest.raises(ValueError, match=rf"optim.{name}.init: Empty has nothing to train"):
            make(name, {}).init(Empty())
    frozen = tree.select(Net().initialize(0), "trainable").freeze()
    with pytest.raises(ValueError, match=r"Unfreeze some: tree.select\(model, 'frozen'\)"):
        optim.SGD().init(frozen)
    with pytest.raises(UninitializedError, match=r"Net.first is not initialized"):
        optim.SGD().init(Net())
    with pytest.raises(TypeError, match=r"takes a module, got a dict. Hold what is trained in one"):
        optim.SGD().init({"w": torch.ones(1)})


def test_leaves_an_optimizer_cannot_step_are_named() -> None:
    with pytest.raises(TypeError, match=r"Net.bias is torch.float32 of shape \(4,\).*optim.Split"):
        optim.Muon().init(Net().initialize(0))
    with pytest.raises(TypeError, match=r"Point.at is complex, which Adafactor does not support"):
        optim.Adafactor().init(Point(torch.ones(2, dtype=torch.complex64)))


def test_a_rate_per_member_outside_of_vmap_is_refused() -> None:
    opt = optim.SGD(lr=torch.tensor([0.1, 0.2]))
    point = Point(torch.ones(2))
    with pytest.raises(ValueError, match="lr holds 2 numbers, one per member of an ensemble"):
        opt.step(point, point, opt.init(point))


def test_training_follows_torch_from_gradient_to_step() -> None:
    model = MLP().initialize(0)
    twin = next(case for case in MODULES if case.name == "mlp").twin(model)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.05, foreach=False)
    opt = optim.AdamW(lr=0.05, foreach=False)
    state, x = opt.init(model), example_input()

    def loss(net: Any, x: Tensor) -> Any:
        return net(x).square().mean()

    for _ in range(20):
        grads = func.grad(loss)(model, x)
        model, state = opt.step(model, grads, state)
        theirs.zero_grad()
        loss(twin, x).backward()
        theirs.step()
    assert torch.allclose(model(x), twin(x), rtol=1e-5)
