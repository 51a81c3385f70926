"""Keys: how they are made, split and folded, and that each is used once."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree
from torch.utils.checkpoint import checkpoint

from parallax import Module, Parameter, func, random, tree
from parallax.random import Key, KeyReusedError, philox

# -- making ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_a_key_holds_the_bits_of_its_seed(seed: int) -> None:
    key = random.key(seed)
    assert key.data.dtype is torch.int64 and key.data.device.type == "cpu"
    assert key.shape == () and int(key.data) == seed


def test_unsigned_seeds_keep_all_64_bits() -> None:
    assert int(random.key(2**64 - 1).data) == -1
    assert int(random.key(2**63).data) == -(2**63)


def test_a_tensor_of_seeds_is_a_stack_of_keys() -> None:
    seeds = torch.arange(3, dtype=torch.int32)
    keys = random.key(seeds)
    assert [int(key.data) for key in keys] == [0, 1, 2]
    seeds += 1
    assert [int(key.data) for key in keys] == [0, 1, 2], "the seeds are copied"


@pytest.mark.parametrize("seed", [1.0, True, "1", None, torch.tensor(1.0), torch.tensor(True)])
def test_a_seed_is_an_integer(seed: Any) -> None:
    with pytest.raises(TypeError, match=r"key\(seed\)"):
        random.key(seed)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_fits_in_64_bits(seed: int) -> None:
    with pytest.raises(ValueError, match="at most 64 bits"):
        random.key(seed)


def test_from_state_reads_every_byte_and_advances_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    key = random.from_state(generator)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(random.from_state(state).data, key.data)
    torch.randn(1, generator=generator)
    assert not torch.equal(random.from_state(generator).data, key.data)


@pytest.mark.parametrize("state", [0, torch.zeros(3), torch.zeros(2, 2, dtype=torch.uint8), None])
def test_from_state_takes_states_only(state: Any) -> None:
    with pytest.raises(TypeError, match="from_state"):
        random.from_state(state)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros((), dtype=torch.int32), "int64"),
        (torch.zeros(()), "int64"),
        (torch.zeros((), dtype=torch.int64, device="meta"), "CPU"),
        (3, "int64 tensor"),
    ],
)
def test_a_key_is_int64_on_the_cpu(data: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Key(data)


def test_keys_are_immutable() -> None:
    key = random.key(0)
    with pytest.raises(AttributeError, match=r"Key\.data"):
        key.data = torch.tensor(1)
    with pytest.raises(AttributeError, match=r"Key\.data"):
        del key.data


def test_repr_shows_the_bits() -> None:
    assert repr(random.key(255)) == "Key(0x00000000000000ff)"
    assert repr(random.split(random.key(0), 3)) == "Key(shape=(3,))"
    torch.vmap(lambda key: (repr(key), key.data)[1])(random.split(random.key(0)))


# -- splitting --------------------------------------------------------------------------------


def test_children_are_the_halves_of_philox_blocks() -> None:
    blocks = [philox.block(7, index, 0, 0, 1) for index in range(2)]
    expected = [half for r in blocks for half in (r[0] | r[1] << 32, r[2] | r[3] << 32)]
    assert [int(k.data) % 2**64 for k in random.split(random.key(7), 4)] == expected


@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 100])
def test_the_first_children_do_not_depend_on_how_many_there_are(n: int) -> None:
    many = random.split(random.key(5), 200).data
    assert torch.equal(random.split(random.key(5), n).data, many[:n])


@pytest.mark.parametrize("n", [0, -1])
def test_split_makes_at_least_one(n: int) -> None:
    key = random.key(0)
    with pytest.raises(ValueError, match="at least 1"):
        random.split(key, n)
    random.split(key)  # it was not used up


@pytest.mark.parametrize("n", [1.0, True, "2"])
def test_split_counts_in_ints(n: Any) -> None:
    with pytest.raises(TypeError, match="n is an int"):
        random.split(random.key(0), n)


def test_fold_in_tells_ints_and_strings_and_children_apart() -> None:
    key = random.key(1)
    folded = [random.fold_in(key, data).data for data in (0, 1, -1, "0", "1", "")]
    children = random.split(key, 8).data
    bits = [int(data) for data in [*folded, *children, key.data]]
    assert len(set(bits)) == len(bits)


def test_fold_in_takes_a_step_counter_as_a_tensor() -> None:
    key = random.key(1)
    for dtype in (torch.int32, torch.int64):
        step = torch.tensor(12, dtype=dtype)
        assert torch.equal(random.fold_in(key, step).data, random.fold_in(key, 12).data)
    big = 2**64 - 1
    assert torch.equal(random.fold_in(key, big).data, random.fold_in(key, -1).data)


@pytest.mark.parametrize("data", [1.0, True, None, torch.tensor(1.0), torch.tensor([1])])
def test_fold_in_takes_ints_and_strings(data: Any) -> None:
    with pytest.raises(TypeError, match="fold_in"):
        random.fold_in(random.key(0), data)


@pytest.mark.parametrize(
    "use", [random.split, random.normal, lambda key: random.fold_in(key, 1), random.bits]
)
@pytest.mark.parametrize("given", [0, torch.tensor(0), None])
def test_only_keys_are_keys(use: Callable[[Any], Any], given: Any) -> None:
    with pytest.raises(TypeError, match="expected a Key"):
        use(given)


@pytest.mark.parametrize(
    "use", [random.split, random.normal, lambda key: random.fold_in(key, 1), random.permutation]
)
def test_a_stack_is_not_a_key(use: Callable[..., Any]) -> None:
    keys = random.split(random.key(0), 3)
    with pytest.raises(ValueError, match="single key"):
        use(keys) if use is not random.permutation else use(keys, 3)


def test_a_key_that_was_moved_or_cast_draws_nothing() -> None:
    key = random.key(0)
    leaf = torch.zeros((), dtype=torch.int64, device="meta")
    with pytest.raises(TypeError, match="CPU"):
        random.normal(tree.map(lambda _: leaf, {"k": key})["k"])
    with pytest.raises(TypeError, match="int64"):
        random.normal(torch_pytree.tree_map(lambda x: x.float(), key))


# -- a node of every tree -----------------------------------------------------------------------


def test_both_registries_see_one_leaf() -> None:
    key = random.key(3)
    node: Any = key
    assert optree.tree_leaves(node)[0] is key.data
    assert torch_pytree.tree_leaves(key)[0] is key.data
    assert tree.leaves({"a": key})[0] is key.data
    again: Any = optree.tree_map(lambda x: x, node)
    assert type(again) is Key and again.data is key.data


def test_a_key_can_be_a_field_of_a_module() -> None:
    class Noise(Module):
        key: Key

        def forward(self, x: Tensor) -> Tensor:
            return x + random.normal(self.key, x.shape)

    noise = Noise(random.key(0))
    assert torch.equal(noise(torch.zeros(3)), random.normal(random.key(0), (3,)))


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda k: pickle.loads(pickle.dumps(k))])
def test_copies_hold_the_same_bits(how: Callable[[Any], Any]) -> None:
    assert torch.equal(how(random.key(9)).data, random.key(9).data)


def test_a_used_leaf_can_be_saved_and_loaded_with_weights_only() -> None:
    key = random.key(1)
    random.normal(key)
    buffer = io.BytesIO()
    torch.save({"key": key.data}, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=True)["key"], key.data)


# -- used once ------------------------------------------------------------------------------


USES: dict[str, Callable[[Key], Any]] = {
    "bernoulli": random.bernoulli,
    "bits": random.bits,
    "categorical": lambda key: random.categorical(key, torch.zeros(3)),
    "choice": lambda key: random.choice(key, 3),
    "dropout_mask": lambda key: random.dropout_mask(key, (3,)),
    "exponential": random.exponential,
    "gumbel": random.gumbel,
    "normal": random.normal,
    "permutation": lambda key: random.permutation(key, 3),
    "randint": lambda key: random.randint(key, (3,), 0, 2),
    "split": random.split,
    "truncated_normal": random.truncated_normal,
    "uniform": random.uniform,
}


@pytest.mark.parametrize("name", USES)
def test_a_second_use_is_an_error_that_names_both_remedies(name: str) -> None:
    key = random.key(0)
    USES[name](key)
    with pytest.raises(KeyReusedError, match=rf"normal\(\) .* {name}\(\) .*split.*fold_in.*clone"):
        random.normal(key)


def test_fold_in_uses_nothing_up() -> None:
    key = random.key(0)
    random.fold_in(key, 0)
    random.fold_in(key, 0)
    random.normal(key)
    random.fold_in(key, 1)


def test_a_clone_repeats_on_purpose() -> None:
    key = random.key(0)
    first = random.normal(key, (3,))
    assert torch.equal(random.normal(random.clone(key), (3,)), first)


def test_reuse_is_for_closures() -> None:
    key = random.key(0)
    with random.reuse():
        one, two = random.normal(key), random.normal(key)
        assert torch.equal(one, two)
    random.normal(key)
    with pytest.raises(KeyReusedError):
        random.normal(key)
    with random.reuse():
        random.normal(key)
    with pytest.raises(ZeroDivisionError), random.reuse():
        _ = 1 / 0
    with pytest.raises(KeyReusedError):
        random.normal(key)


def test_reuse_is_for_this_thread_only() -> None:
    key = random.key(0)
    failures: list[BaseException] = []

    def draw() -> None:
        try:
            random.normal(key)
            random.normal(key)
        except KeyReusedError as error:
            failures.append(error)

    with random.reuse():
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join()
    assert len(failures) == 1


def test_bad_arguments_use_nothing_up() -> None:
    key = random.key(0)
    bad: Any
    for bad in (
        lambda: random.normal(key, (-1,)),
        lambda: random.normal(key, (2,), dtype=torch.int64),
        lambda: random.normal(key, (2,), device="no such device"),
        lambda: random.normal(key, (2,), 0.0, -1.0),
        lambda: random.uniform(key, (2,), 1.0, 0.0),
        lambda: random.bernoulli(key, (2,), 1.5),
        lambda: random.randint(key, (2,), 3, 3),
        lambda: random.choice(key, 2, (3,), replace=False),
    ):
        with pytest.raises((TypeError, ValueError)):
            bad()
    random.normal(key)


def test_rows_of_a_stack_are_used_once_each() -> None:
    keys = random.split(random.key(0), 2)
    random.normal(keys[0])
    with pytest.raises(KeyReusedError):
        random.normal(keys[0])
    with pytest.raises(KeyReusedError):
        next(random.normal(key) for key in keys)
    random.normal(keys[-1])


def test_marks_survive_rebuilding_the_tree() -> None:
    key = random.key(0)
    random.normal(key)
    node: Any = key
    rebuilt: Any
    for rebuilt in (
        tree.map(lambda x: x, {"k": key})["k"],
        optree.tree_map(lambda x: x, node),
        torch_pytree.tree_map(lambda x: x, key),
    ):
        with pytest.raises(KeyReusedError):
            random.normal(rebuilt)


def test_recomputation_in_backward_may_use_a_key_again() -> None:
    x = torch.ones(4, requires_grad=True)
    key = random.key(0)
    noise = random.normal(random.clone(key), (4,))
    y: Any = checkpoint(lambda x: (x * random.normal(key, (4,))).sin(), x, use_reentrant=False)
    y.sum().backward()
    torch.testing.assert_close(x.grad, noise * noise.cos())


def test_differentiating_detects_and_vmap_does_not() -> None:
    key = random.key(0)

    def twice(x: Tensor) -> Tensor:
        return (x * random.normal(key) * random.normal(key)).sum()

    with pytest.raises(KeyReusedError):
        torch.func.grad(twice)(torch.ones(2))
    key = random.key(0)
    torch.vmap(twice)(torch.ones(2))


# -- in modules -----------------------------------------------------------------------------


class Drop(Module):
    weight: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight * random.dropout_mask(random.as_key(self.rng), x.shape)


class Pair(Module):
    one: Drop
    two: Drop

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.one(x) + self.two(x)
        return out


def pair() -> Pair:
    return Pair(Drop(torch.ones(64)), Drop(torch.ones(64)))


X = torch.ones(64)
RNG_STATE = torch.Generator().manual_seed(3).get_state()


def test_each_module_has_a_key_of_its_own_by_its_path() -> None:
    key = random.key(0)
    module = pair().train(key)
    assert torch.equal(module.one.rng.data, random.fold_in(key, "one").data)
    assert torch.equal(module.two.rng.data, random.fold_in(key, "two").data)
    assert not torch.equal(module.one(X), module.two(X))


def test_a_second_forward_of_one_tree_is_a_second_use() -> None:
    module = pair().train(random.key(0))
    module(X)
    for again in (module, tree.map(lambda x: x + 1, module), copy.copy(module)):
        with pytest.raises(KeyReusedError):
            again(X)
    module.train(random.key(1))(X)


def test_func_grad_rebuilds_the_tree_and_still_detects() -> None:
    module = pair().train(random.key(0))

    def loss(module: Any) -> Any:
        return module(X).sum()

    func.grad(loss)(module)
    with pytest.raises(KeyReusedError):
        func.grad(loss)(module)
    with random.reuse():
        func.grad(loss)(module)


def test_the_same_key_handed_out_again_is_a_second_use() -> None:
    key = random.key(0)
    pair().train(key)(X)
    with pytest.raises(KeyReusedError):
        pair().train(key)(X)
    with random.reuse():
        pair().train(key)(X)


def test_split_copies_have_other_numbers() -> None:
    one, two = pair().train(random.key(0)).split(2)
    assert not torch.equal(one(X), two(X))


def test_split_before_train_gives_other_numbers_too() -> None:
    one, two = pair().split(2)
    assert not torch.equal(one.train(random.key(0))(X), two.train(random.key(0))(X))


def test_seeds_generators_and_states_come_as_they_were_given() -> None:
    state = torch.Generator().manual_seed(1).get_state()
    given: list[Any] = [random.key(0), 3, torch.Generator().manual_seed(1), state]
    for rng in given:
        module = pair().train(rng)
        assert type(module.one.rng) is type(rng)
        module(X)
    assert pair().train(state).one.rng.dtype is torch.uint8
    assert pair().train(state).one.rng.shape == state.shape


@pytest.mark.parametrize("verb", ["initialize", "reset", "train"])
@pytest.mark.parametrize("rng", [1.5, "0", None, torch.zeros(3), True])
def test_verbs_name_what_rng_may_be(verb: str, rng: Any) -> None:
    if verb == "train" and rng is None:
        return  # keeps the rng
    with pytest.raises(TypeError, match="rng must be a Key, an int seed"):
        getattr(pair(), verb)(rng)


def test_initialisation_and_reset_draw_from_separate_domains() -> None:
    class Declared(Module):
        weight: Parameter

        def __init__(self) -> None:
            super().__init__()
            self.weight = Parameter((64,), torch.nn.init.normal_)

    weight = Declared().initialize(random.key(0)).weight
    key = Declared().initialize(random.key(0)).train(random.key(0)).rng
    assert not torch.equal(weight, random.normal(key, (64,)))
    assert not torch.equal(weight, random.normal(random.key(0), (64,)))
    assert torch.equal(Declared().initialize(random.key(0)).weight, weight)


@pytest.mark.parametrize("rng", [lambda: 3, lambda: random.key(3), lambda: RNG_STATE])
def test_reset_with_the_state_the_tree_has_warns(rng: Callable[[], Any]) -> None:
    module = pair().reset(rng())
    with pytest.warns(UserWarning, match="every random number repeats"):
        module.reset(rng())
    module.reset(17)


def test_a_stack_of_modules_holds_a_stack_of_keys() -> None:
    keys = random.split(random.key(0), 3)
    members = [pair().train(key) for key in keys]
    stacked = torch_pytree.tree_map(lambda *leaves: torch.stack(leaves), *members)
    outs = torch.vmap(lambda module: module(X))(stacked)
    assert torch.equal(outs, torch.stack([member(X) for member in members]))


def test_stack_sources_makes_keys_of_every_form() -> None:
    members = [pair().train(seed) for seed in (1, 2)]
    stacked = random.stack_sources([member._rng for member in members])
    assert stacked is not None and stacked.key.shape == (2,)
    assert random.stack_sources([None, None]) is None
    with pytest.raises(ValueError, match="tree 1 does not"):
        random.stack_sources([members[0]._rng, None])


def test_handing_out_a_key_leaves_it_usable_and_leaves_alone() -> None:
    key, module = random.key(0), pair()
    trained = module.train(key)
    assert all(a is b for a, b in zip(tree.leaves(module), tree.leaves(trained), strict=True))
    assert module._rng is None
    random.normal(key)


def test_the_global_rng_stays() -> None:
    before = torch.random.get_rng_state()
    for use in USES.values():
        use(random.key(0))
    pair().train(random.key(0))(X)
    pair().reset(3)(X)
    assert torch.equal(torch.random.get_rng_state(), before)
