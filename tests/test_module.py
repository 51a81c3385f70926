"""Modules are immutable trees: construction, the original's verbs, copies, Python's protocols."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import pickle
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import init

from parallax import Buffer, Module, Parameter, UninitializedError, tree
from tests.corpus import (
    FLOAT,
    MLP,
    MODULES,
    SIZE,
    TIED,
    TWINS,
    Case,
    Dense,
    Holder,
    Nested,
    Norm,
    Scale,
    Sequential,
    TiedModule,
    TiedParameter,
    Twig,
    chain,
    example_input,
)

# What a registered class holds itself is no Parameter, hence not trained.
TRAINED = [case for case in FLOAT if case.name != "foreign"]
every_module = pytest.mark.parametrize("case", MODULES, ids=str)


def pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


def saved(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def same(one: Any, other: Any) -> bool:
    """Whether two modules have equal leaves, bit by bit, and equal structures."""
    if tree.structure(one) != tree.structure(other):
        return False
    pairs = zip(tree.leaves(one), tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def sum_of(module: Any, x: Tensor) -> Any:
    return module(x).sum()


# -- what a module computes -----------------------------------------------------------------------


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_it_computes_what_its_twin_in_torch_does(case: Case) -> None:
    module, x = case.make(), example_input()
    torch.testing.assert_close(module(x), case.twin(module)(x))


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_reset_backward_grad_are_the_twins_gradients(case: Case) -> None:
    module, x = case.make(), example_input()
    twin = case.twin(module)
    if not list(twin.parameters()):
        return
    module = module.reset(0)
    sum_of(module, x).backward()
    twin(x).sum().backward()
    grads = tree.named_leaves(module.grad())
    expected = {path: p.grad for path, p in twin.named_parameters() if p.grad is not None}
    assert set(grads) == set(expected)
    for path, grad in grads.items():
        torch.testing.assert_close(grad, expected[path])


# -- immutable ------------------------------------------------------------------------------------


@every_module
def test_nothing_can_be_set_or_deleted(case: Case) -> None:
    module = case.make()
    names = [name for name in vars(module) if not name.startswith("_")]
    before = list(map(id, tree.leaves(module)))
    for name in [*names, "new", "mode", "forward", "__class__"]:
        with pytest.raises(FrozenInstanceError, match=rf"{type(module).__name__}\.{name}"):
            setattr(module, name, None)
        with pytest.raises(FrozenInstanceError, match=rf"{type(module).__name__}\.{name}"):
            delattr(module, name)
    assert list(map(id, tree.leaves(module))) == before


@pytest.mark.parametrize("make", [
    lambda m: m, copy.copy, copy.deepcopy, pickled, lambda m: tree.map(torch.relu, m),
    lambda m: m.replace(), lambda m: m.reset(0), lambda m: m.eval(), lambda m: m.split(1)[0],
])  # fmt: skip
def test_what_verbs_return_is_immutable_too(make: Callable[[Any], Any]) -> None:
    module = make(MLP().initialize(0))
    with pytest.raises(FrozenInstanceError, match=r"MLP\.activation.*module\.replace\(activation"):
        module.activation = torch.relu
    with pytest.raises(FrozenInstanceError, match=r"Dense\.weight.*module\.replace\(weight"):
        module.first.weight = torch.ones(1)
    with pytest.raises(FrozenInstanceError, match=r"Dense\.weight"):
        del module.first.weight


def test_a_module_made_by_new_alone_cannot_be_used_as_a_tree() -> None:
    half = Dense.__new__(Dense)
    with pytest.raises(RuntimeError, match="still being constructed"):
        tree.leaves(half)


def test_given_containers_are_neither_kept_nor_written_to() -> None:
    class Holds(Module):
        layers: list[Dense]
        named: dict[str, list[Dense]]

    layers, named = [Dense()], {"a": [Dense()]}
    module = Holds(layers, named)
    layers.append(Dense())
    named["a"].append(Dense())
    named["b"] = []
    assert type(layers) is list and type(named) is dict and type(named["a"]) is list
    assert len(module.layers) == 1 and list(module.named) == ["a"] and len(module.named["a"]) == 1
    changes: list[Callable[[Any], Any]] = [
        lambda d: d.update(b=()),
        lambda d: d.pop("a"),
        lambda d: d.clear(),
        lambda d: d.setdefault("b", ()),
        lambda d: d.popitem(),
        lambda d: d.__ior__({}),
    ]
    for change in changes:
        with pytest.raises(TypeError, match="frozen"):
            change(module.named)


def test_a_given_tensor_is_the_leaf_itself_and_is_not_written_to() -> None:
    weight = torch.ones(2, requires_grad=True)
    module = Scale(weight)
    assert module.by is weight
    stepped = module.reset(0)
    sum_of(stepped, torch.ones(2)).backward()
    assert weight.grad is None and weight.requires_grad
    assert stepped.by is not weight and stepped.by.data_ptr() == weight.data_ptr()


# -- equality, hash, copies -----------------------------------------------------------------------


@every_module
def test_equality_and_hash_are_identity(case: Case) -> None:
    one, other = case.make(), case.make()
    assert one != other and one.__eq__(one) is True
    assert len({one, other, one}) == 2
    assert hash(one) == hash(one)


WAYS: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, pickled, saved]


@every_module
@pytest.mark.parametrize("way", WAYS)
def test_copies_keep_values_structure_mode_and_ties(case: Case, way: Callable[[Any], Any]) -> None:
    module = case.make()
    other = way(module)
    assert type(other) is type(module)
    assert other.mode == module.mode
    assert same(module, other)
    assert repr(other) == repr(module)
    for ours, theirs in zip(module.modules(), other.modules(), strict=True):
        assert type(ours) is type(theirs)
        names = [name for name in vars(ours) if not name.startswith("_")]
        assert [name for name in vars(theirs) if not name.startswith("_")] == names


@every_module
@pytest.mark.parametrize("way", WAYS)
def test_uninitialised_modules_can_be_copied_and_then_initialised(
    case: Case, way: Callable[[Any], Any]
) -> None:
    declared = case.declare()
    other = way(declared)
    assert tree.structure(other) == tree.structure(declared)
    if any(isinstance(leaf, Tensor) for leaf in tree.leaves(declared)):
        assert same(declared, other)
    elif tree.leaves(declared):
        assert same(declared.initialize(0), other.initialize(0))


def test_a_copy_shares_the_leaves_and_a_deepcopy_none() -> None:
    module = MLP().initialize(0)
    for ours, theirs in zip(tree.leaves(module), tree.leaves(copy.copy(module)), strict=True):
        assert ours is theirs
    for ours, theirs in zip(tree.leaves(module), tree.leaves(copy.deepcopy(module)), strict=True):
        assert ours.data_ptr() != theirs.data_ptr()


def test_a_deepcopy_of_modules_that_share_a_leaf_keeps_them_sharing() -> None:
    module = Dense().initialize(0)
    pair = copy.deepcopy([module, module.replace(bias=None)])
    assert pair[0].weight is pair[1].weight
    assert pair[0].weight is not module.weight


def test_copies_keep_the_rng_and_what_it_draws() -> None:
    module = Dense().initialize(0).train(3)
    for way in WAYS:
        assert way(module).rng == module.rng


def test_pickles_hold_no_memo_and_no_derived_cache() -> None:
    module = MLP().initialize(0)
    before = len(pickle.dumps(module))
    tree.leaves(module.reset(0).eval())
    tree.structure(module)
    repr(module)
    assert len(pickle.dumps(module)) == before


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_works(protocol: int) -> None:
    module = Nested().initialize(0)
    assert same(module, pickle.loads(pickle.dumps(module, protocol)))


def test_unflatten_and_copies_run_no_user_code() -> None:
    calls: list[str] = []

    class Loud(Module):
        weight: Parameter

        def __init__(self) -> None:
            calls.append("init")
            self.weight = Parameter((1,), init.ones_)

        def __check_init__(self) -> None:
            calls.append("check")

        def __setattr__(self, name: str, value: Any) -> None:
            calls.append(f"set {name}")
            super().__setattr__(name, value)

        def __getattribute__(self, name: str) -> Any:
            return super().__getattribute__(name)

    module = Loud().initialize(0)
    assert calls == ["init", "set weight", "check"]
    tree.map(torch.relu, copy.deepcopy(copy.copy(module))).reset(0).eval().split(2)
    module.update(lambda a: a + 1)
    assert len(calls) == 3


# -- replace --------------------------------------------------------------------------------------


def test_replace_changes_fields_and_nothing_else() -> None:
    module = Norm().initialize(0).eval()
    other = module.replace(eps=0.5, weight=torch.zeros(SIZE))
    assert (other.eps, other.mode) == (0.5, "eval")
    assert torch.equal(other.weight, torch.zeros(SIZE))
    assert other.running_mean is module.running_mean
    assert module.eps == 1e-5 and torch.equal(module.weight, torch.ones(SIZE))


def test_replace_checks_as_construction_does() -> None:
    module = MLP().initialize(0)
    with pytest.raises(AttributeError, match=r"MLP declares no field 'third'.*'third: Dense'"):
        module.replace(third=Dense())
    with pytest.raises(TypeError, match=r"MLP\.first"):
        module.replace(first=torch.ones(1))
    with pytest.raises(TypeError, match=r"Dense\.weight.*None"):
        module.first.replace(weight=None)


def test_replace_runs_converters_on_new_values_only() -> None:
    from parallax import field

    seen: list[Any] = []

    def convert(value: Any) -> Any:
        seen.append(value)
        return value + 1

    class Counts(Module):
        a: int = field(converter=convert)
        b: int = field(converter=convert)

    module = Counts(1, 10)
    assert (module.a, module.b, seen) == (2, 11, [1, 10])
    other = module.replace(a=5)
    assert (other.a, other.b) == (6, 11)
    assert seen == [1, 10, 5]


def test_replace_makes_and_breaks_ties() -> None:
    tied = TiedParameter().initialize(0)
    assert len(tree.leaves(tied)) == 3
    apart = tied.replace(decoder=tied.decoder.replace(weight=torch.ones(SIZE, SIZE)))
    assert len(tree.leaves(apart)) == 4
    again = apart.replace(decoder=apart.decoder.replace(weight=apart.encoder.weight))
    assert tree.structure(again) == tree.structure(tied)


def test_replace_keeps_the_rng() -> None:
    module = Dense().initialize(0).train(3)
    assert module.replace(bias=None).rng == module.rng


# -- reset, train, eval ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", TRAINED, ids=str)
def test_reset_leaves_require_grad_without_graph_grad_or_copy(case: Case) -> None:
    module = case.make()
    ready = module.reset(1)
    for before, after in zip(tree.leaves(module), tree.leaves(ready), strict=True):
        assert after.requires_grad and after.is_leaf and after.grad is None
        assert after.data_ptr() == before.data_ptr() and not before.requires_grad
    assert [m.mode for m in ready.modules()] == ["train"] * len(list(module.modules()))


def test_reset_leaves_buffers_and_integers_alone() -> None:
    norm = Norm().initialize(0).reset(0)
    marks = {path: leaf.requires_grad for path, leaf in tree.named_leaves(norm).items()}
    assert marks == {
        "weight": True,
        "bias": True,
        "running_mean": False,
        "running_var": False,
        "num_batches_tracked": False,
    }


def test_reset_drops_stale_gradients_and_graphs() -> None:
    module = MLP().initialize(0).reset(0)
    sum_of(module, example_input()).backward()
    grown = tree.map(lambda leaf: leaf * 2, module)
    assert all(leaf.grad_fn is not None for leaf in tree.leaves(grown))
    for leaf in tree.leaves(grown.reset(1)) + tree.leaves(module.reset(1)):
        assert leaf.is_leaf and leaf.grad is None and leaf.requires_grad


def test_train_and_eval_change_the_mode_everywhere_and_no_leaf() -> None:
    module = Sequential(MLP(), torch.relu, Dense()).initialize(0)
    for other, mode in (
        (module.train(0), "train"),
        (module.eval(), "eval"),
        (module.train(), "train"),
    ):
        assert {m.mode for m in other.modules()} == {mode}
        for ours, theirs in zip(tree.leaves(module), tree.leaves(other), strict=True):
            assert ours is theirs
    assert module.mode == "train"


def test_modes_other_than_train_and_eval_are_refused() -> None:
    with pytest.raises(ValueError, match="'train' or 'eval', got 'test'"):
        Dense().initialize(0).reset(0, "test")


def test_reset_with_the_very_state_warns_and_another_does_not() -> None:
    state = torch.random.get_rng_state()
    module = Dense().initialize(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once = module.reset(state)
        once.reset(1).reset(2)
    for same_state in (state, state.clone()):
        with pytest.warns(UserWarning, match="every random number repeats") as caught:
            once.reset(same_state)
        assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "make",
    [
        lambda: 7,
        lambda: torch.Generator().manual_seed(7),
        lambda: torch.Generator().manual_seed(7).get_state(),
    ],
    ids=["seed", "generator", "state"],
)
def test_children_get_rngs_of_the_same_kind_and_what_is_given_is_only_read(
    make: Callable[[], Any],
) -> None:
    def state_of(rng: Any) -> Any:
        return rng.get_state() if isinstance(rng, torch.Generator) else torch.as_tensor(rng)

    given = make()
    before = state_of(given).clone()
    module = MLP().initialize(0).reset(given)
    kinds = {type(m.rng) for m in module.modules()}
    assert kinds == {type(given)}
    assert torch.equal(state_of(given), before)
    states = [state_of(m.rng) for m in module.modules()]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(states))
    again = MLP().initialize(0).reset(make())
    assert torch.equal(state_of(again.first.rng), state_of(module.first.rng))
    assert torch.equal(state_of(module.first.rng), state_of(module.first.rng))


def test_an_rng_that_was_never_handed_out_says_how_to() -> None:
    for module in (Dense().initialize(0), Dense().initialize(0).train(0).eval()):
        with pytest.raises(RuntimeError, match=r"Dense\.rng.*module\.reset\(rng\)"):
            module.rng


@pytest.mark.parametrize("rng", [None, 1.5, "0", True, torch.ones(3), object()])
def test_what_is_no_rng_is_refused(rng: Any) -> None:
    module = Dense()
    with pytest.raises(TypeError, match=r"rng must be .*int seed.*torch\.Generator"):
        module.initialize(rng)
    with pytest.raises(TypeError, match=r"rng must be .*int seed"):
        module.initialize(0).reset(rng)


@pytest.mark.parametrize("verb", ["reset"])
def test_reset_of_an_uninitialised_module_names_the_first_leaf(verb: str) -> None:
    with pytest.raises(UninitializedError, match=r"MLP\.first\.weight.*module\.initialize\(rng\)"):
        getattr(MLP(), verb)(0)
    with pytest.raises(UninitializedError, match=r"MLP\.second\.weight"):
        MLP().replace(first=Dense().initialize(0)).reset(0)


# -- split ----------------------------------------------------------------------------------------


def test_split_copies_share_leaves_and_differ_in_random_numbers() -> None:
    module = MLP().initialize(0).reset(5)
    copies = module.split(3)
    assert len(copies) == 3
    for other in copies:
        for ours, theirs in zip(tree.leaves(module), tree.leaves(other), strict=True):
            assert ours is theirs
    seeds = [m.rng for whole in (module, *copies) for m in whole.modules()]
    assert len(set(seeds)) == len(seeds)
    nested = [other.rng for whole in copies for other in whole.split(2)]
    assert len(set(nested) | set(seeds)) == len(nested) + len(seeds)
    assert [c.rng for c in module.split(3)] == [c.rng for c in copies]


def test_gradients_of_every_copy_reach_the_one_set_of_leaves() -> None:
    x = example_input()
    dense = Dense().initialize(0).reset(0)
    first, second = dense.split(2)
    second(torch.tanh(first(x))).sum().backward()
    twin = nn.Linear(SIZE, SIZE)
    twin.load_state_dict(tree.named_leaves(dense))
    twin(torch.tanh(twin(x))).sum().backward()
    torch.testing.assert_close(dense.grad().weight, twin.weight.grad)
    torch.testing.assert_close(first.grad().bias, twin.bias.grad)


def test_split_works_without_rng_and_uninitialised() -> None:
    first, second = Dense().split(2)
    assert first.weight is second.weight
    assert len(Dense().initialize(0).split(1)) == 1


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", None])
def test_split_into_less_than_one_is_refused(n: Any) -> None:
    with pytest.raises(ValueError, match=r"split\(n\): n must be a positive int"):
        Dense().initialize(0).split(n)


# -- grad -----------------------------------------------------------------------------------------


@every_module
def test_grad_without_backward_says_what_to_do(case: Case) -> None:
    module = case.make()
    message = rf"{type(module).__name__} has no gradients.*module\.reset\(rng\).*backward\(\)"
    for prepared in (module, module.reset(9)):
        with pytest.raises(RuntimeError, match=message):
            prepared.grad()


def test_grad_has_holes_where_nothing_flowed_and_update_leaves_those() -> None:
    module: Any = MLP().initialize(0).reset(0)
    module.first(example_input()).sum().backward()
    grads = module.grad()
    assert grads.second.weight is None and grads.second.bias is None
    torch.testing.assert_close(grads.first.bias, torch.full((SIZE,), 3.0))
    stepped = module.update(lambda p, g: p - g, grads)
    assert stepped.second.weight is module.second.weight
    torch.testing.assert_close(stepped.first.bias, module.first.bias - 3)


def test_grad_is_a_module_and_carries_a_graph_only_on_request() -> None:
    module = Scale(torch.tensor(3.0)).reset(0)
    with warnings.catch_warnings():  # torch's, of the cycle between a leaf and its gradient
        warnings.simplefilter("ignore")
        (module(torch.tensor(2.0)) ** 2).backward(create_graph=True)
    second = torch.autograd.grad(module.grad().by, module.by)[0]
    torch.testing.assert_close(second, torch.tensor(8.0))
    module = module.reset(1)
    (module(torch.tensor(2.0)) ** 2).backward()
    assert type(module.grad()) is Scale
    assert not module.grad().by.requires_grad


# -- update ---------------------------------------------------------------------------------------


def test_update_is_a_step_of_gradient_descent() -> None:
    module, x = MLP().initialize(0), example_input()
    twin = nn.ModuleDict({"first": nn.Linear(SIZE, SIZE), "second": nn.Linear(SIZE, SIZE)})
    twin.load_state_dict(tree.named_leaves(module))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for step in range(5):
        module = module.reset(step)
        sum_of(module, x).backward()
        module = module.update(lambda p, g: p - 0.1 * g, module.grad())
        optimizer.zero_grad()
        twin["second"](torch.tanh(twin["first"](x))).sum().backward()
        optimizer.step()
    for path, parameter in twin.named_parameters():
        torch.testing.assert_close(tree.named_leaves(module)[path], parameter.detach())


def test_an_ordinary_loop_never_grows_a_graph() -> None:
    module, x = MLP().initialize(0), example_input()
    velocity = tree.map(torch.zeros_like, module)
    counts = []
    for step in range(100):
        module = module.reset(step)
        sum_of(module, x).backward()
        velocity = velocity.update(lambda v, g: 0.9 * v + g, module.grad())
        module = module.update(lambda p, v: p - 0.01 * v, velocity)
        assert all(leaf.grad_fn is None for leaf in tree.leaves(module) + tree.leaves(velocity))
        if step % 33 == 0:
            gc.collect()
            counts.append(sum(type(o) is Tensor for o in gc.get_objects()))
    assert len(set(counts[1:])) == 1


def test_update_without_reset_between_steps_grows_no_graph_either() -> None:
    module, x = MLP().initialize(0).reset(0), example_input()
    sum_of(module, x).backward()
    stepped = module.update(lambda p, g: p - g, module.grad()).update(lambda p: p * 2)
    assert all(leaf.grad_fn is None for leaf in tree.leaves(stepped))


def test_meta_learning_through_update_is_exact() -> None:
    # https://github.com/pytorch/pytorch/issues/88851: the functional step users write by hand.
    x, y = example_input(1).double(), example_input(2).double()
    model = MLP().initialize(0, dtype=torch.float64)

    def loss_of(apply: Callable[[Tensor], Tensor]) -> Tensor:
        return ((apply(x) - y) ** 2).mean()

    outer = model.reset(0)
    inner = outer
    for _ in range(3):
        grads = torch.autograd.grad(loss_of(inner), tree.leaves(inner), create_graph=True)
        spec = tree.structure(inner)
        inner = inner.update(lambda p, g: p - 0.1 * g, tree.unflatten(spec, grads))
    assert all(leaf.requires_grad for leaf in tree.leaves(inner))
    outer_loss: Any = loss_of(inner)
    outer_loss.backward()

    def reference(weights: dict[str, Tensor]) -> Tensor:
        def run(w: dict[str, Tensor], inputs: Tensor) -> Tensor:
            hidden = torch.tanh(inputs @ w["first.weight"].T + w["first.bias"])
            return hidden @ w["second.weight"].T + w["second.bias"]

        for _ in range(3):
            grads = torch.func.grad(lambda w: ((run(w, x) - y) ** 2).mean())(weights)
            weights = {k: w - 0.1 * grads[k] for k, w in weights.items()}
        return ((run(weights, x) - y) ** 2).mean()

    expected = torch.func.grad(reference)(tree.named_leaves(model))
    for path, grad in tree.named_leaves(outer.grad()).items():
        torch.testing.assert_close(grad, expected[path])


def test_update_fits_trees_made_before_reset_train_and_eval() -> None:
    module = MLP().initialize(0)
    state = tree.map(torch.zeros_like, module)
    for changed in (module.reset(0), module.eval(), module.train(1), module.split(2)[1]):
        changed.update(lambda p, s: p + s, state)
        state.update(lambda s, p: p + s, changed)
        assert changed.update(lambda p, s: p + s, state).mode == changed.mode


def test_updates_of_tied_trees_keep_the_tie() -> None:
    for case in TIED:
        module = case.make().reset(0)
        sum_of(module, example_input()).backward()
        stepped = module.update(lambda p, g: p - g, module.grad())
        assert tree.structure(stepped) == tree.structure(module)
        assert len(tree.leaves(stepped)) == len(tree.leaves(module))
    stepped = TiedModule().initialize(0).update(lambda p: p + 1)
    assert stepped.one.weight is stepped.other.weight is stepped.several[0].weight


# -- modules, extra_repr --------------------------------------------------------------------------


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_modules_come_parents_first_and_each_object_once(case: Case) -> None:
    module = case.make()
    found = list(module.modules())
    assert found[0] is module
    assert len(set(map(id, found))) == len(found)
    # One module in two fields is one set of leaves and two places.
    dense = {id(m.weight) for m in found if isinstance(m, Dense)}
    assert len(dense) == len({id(m.weight) for m in case.twin(module).modules()
                              if isinstance(m, nn.Linear)})  # fmt: skip


def test_modules_goes_through_every_container() -> None:
    module = Nested()
    assert [type(m).__name__ for m in module.modules()] == ["Nested", *["Dense"] * 4]
    assert len(list(Twig(Twig(), Twig(Twig())).modules())) == 4


def test_extra_repr_is_the_constants_unless_overridden() -> None:
    class Plain(Module):
        rate: float
        name: str

    class Own(Plain):
        def extra_repr(self) -> str:
            return f"rate is {self.rate}"

    assert repr(Plain(0.5, "a")) == "Plain(rate=0.5, name='a')"
    assert repr(Own(0.5, "a")) == "Own(rate is 0.5)"


# -- depth ----------------------------------------------------------------------------------------


def test_two_hundred_levels_work_everywhere() -> None:
    deep = chain(200)
    assert "Twig" in repr(deep)
    module = deep.initialize(0)
    assert len(tree.leaves(module)) == 200
    doubled = tree.map(lambda x: 2 * x, module)
    for other in (copy.copy(doubled), copy.deepcopy(doubled), pickled(doubled), saved(doubled)):
        assert same(other, doubled)
        assert repr(other) == repr(doubled)
    ready = doubled.reset(0)
    sum_of(ready, example_input()).backward()
    stepped = ready.update(lambda p, g: p - g, ready.grad())
    assert stepped.eval().split(2)[0].mode == "eval"
    assert len(list(stepped.modules())) == 200
    assert len(tree.named_leaves(stepped)) == 200
    tree.map(torch.add, stepped, module)
    assert tree.structure(stepped.eval()) != tree.structure(stepped)


def test_deeper_is_a_clear_error_and_the_two_hundred_stay_usable() -> None:
    deep = chain(200)
    with pytest.raises(RecursionError, match=r"Twig nests modules more than 200 deep.*tuple\["):
        Twig(deep)
    assert len(tree.leaves(deep.initialize(0))) == 200


# -- raw trees of other libraries -----------------------------------------------------------------


@pytest.mark.parametrize("case", TRAINED, ids=str)
def test_float_trees_go_raw_through_torch_func(case: Case) -> None:
    module, x = case.make(), example_input()
    ready = module.reset(11)
    if not tree.leaves(module):
        return
    sum_of(ready, x).backward()
    grads = torch.func.grad(sum_of)(module, x)
    assert type(grads) is type(module)
    expected = tree.named_leaves(ready.grad())
    for path, grad in tree.named_leaves(grads).items():
        torch.testing.assert_close(grad, expected.get(path, torch.zeros_like(grad)))


def test_leaves_of_a_registered_class_are_carried_and_not_trained() -> None:
    holder = Holder().initialize(0).reset(0)
    marks = {path: leaf.requires_grad for path, leaf in tree.named_leaves(holder).items()}
    assert marks == {"pair.0.weight": True, "pair.0.bias": True, "pair.1": False}


def test_a_buffer_slot_takes_a_declaration_of_a_buffer_only() -> None:
    class Both(Module):
        a: Parameter
        b: Buffer

    with pytest.raises(TypeError, match=r"Both\.b is annotated Buffer.*'b: Parameter'"):
        Both(Parameter((1,), init.ones_), Parameter((1,), init.ones_))


def test_a_tree_with_holes_takes_replacements() -> None:
    """Gradients have holes where nothing is trained; one field of them can still be exchanged."""

    class Norm(Module):
        weight: Parameter
        mean: Buffer

    norm = Norm(torch.ones(2), torch.zeros(2)).reset(0)
    torch.autograd.backward(norm.weight.sum() + norm.mean.sum())
    grads = norm.grad()
    doubled = tree.named_leaves(grads.replace(weight=2 * grads.weight))
    assert list(doubled) == ["weight"]
    assert torch.equal(doubled["weight"], torch.full((2,), 2.0))
