"""A key is used once: what says so, and what is exempt."""

from __future__ import annotations

import threading
from typing import Any

import optree
import pytest
import torch
from torch.utils import _pytree as torch_pytree
from torch.utils.checkpoint import checkpoint

from parallax import random, tree
from parallax.random import KeyReusedError
from tests.random.uses import USES


@pytest.mark.parametrize("name", USES)
def test_a_second_use_is_an_error_that_names_both_remedies(name: str) -> None:
    key = random.key(0)
    USES[name](key)
    with pytest.raises(KeyReusedError, match=rf"normal\(\) .* {name}\(\) .*split.*fold_in.*clone"):
        random.normal(key)


def test_fold_in_uses_nothing_up() -> None:
    key = random.key(0)
    random.normal(random.fold_in(key, 0))
    random.fold_in(key, 0)
    random.normal(key)
    random.normal(random.fold_in(key, 1))


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


# -- blocks of reuse ----------------------------------------------------------------------------


def is_checked() -> bool:
    key = random.key(0)
    random.normal(key)
    try:
        random.normal(key)
    except KeyReusedError:
        return True
    return False


@pytest.mark.filterwarnings("ignore")
def test_blocks_of_reuse_end_in_any_order() -> None:
    def stream() -> Any:
        with random.reuse():
            yield

    one, two = stream(), stream()
    next(one)
    next(two)
    one.close()
    assert not is_checked()
    two.close()
    assert is_checked()
    one = stream()
    next(one)
    with random.reuse():
        one.close()
        assert not is_checked()
    assert is_checked()
    one = stream()
    next(one)
    thread = threading.Thread(target=one.close)
    thread.start()
    thread.join()
    assert is_checked()
    one = stream()
    next(one)
    del one
    assert is_checked()


def test_one_block_of_reuse_may_be_entered_again() -> None:
    again = random.reuse()
    with again:
        with again:
            assert not is_checked()
        assert not is_checked()
    assert is_checked()


def test_an_interrupt_while_a_block_of_reuse_begins_leaves_nothing_behind() -> None:
    import sys

    for line in range(1, 12):

        def interrupt(frame: Any, event: str, _: Any, line: int = line) -> Any:
            code = random.reuse.__enter__.__code__
            if frame.f_code is not code:
                return None
            if event == "line" and frame.f_lineno == code.co_firstlineno + line:
                raise KeyboardInterrupt
            return interrupt

        sys.settrace(interrupt)
        try:
            with random.reuse():
                pass
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert is_checked()


def test_tasks_have_their_own_blocks_of_reuse() -> None:
    import asyncio

    async def within(entered: asyncio.Event, done: asyncio.Event) -> None:
        with random.reuse():
            entered.set()
            await done.wait()

    async def beside(entered: asyncio.Event, done: asyncio.Event) -> bool:
        await entered.wait()
        found = is_checked()
        done.set()
        return found

    async def both() -> bool:
        entered, done = asyncio.Event(), asyncio.Event()
        return (await asyncio.gather(within(entered, done), beside(entered, done)))[1]

    assert asyncio.run(both())


def test_marks_are_not_saved(tmp_path: Any) -> None:
    key = random.key(0)
    expected = random.normal(key)
    file = tmp_path / "key.pt"
    torch.save({"data": key.data, "child": random.fold_in(key, 1).data}, file)
    loaded = random.Key(torch.load(file, weights_only=True)["data"])
    assert torch.equal(random.normal(loaded), expected)
