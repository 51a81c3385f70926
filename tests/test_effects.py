"""Effects: emissions are collected by path, intermediates captured, and nothing is written."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parallax import Buffer, Module, Parameter, effects, func, random, tree
from parallax.effects import EffectError

MOMENTUM = 0.1


class Norm(Module):
    """Batch normalisation of a batch of rows, as ``torch.nn.BatchNorm1d``."""

    weight: Parameter
    running_mean: Buffer
    running_var: Buffer
    count: Buffer
    merge: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "eval":
            return (x - self.running_mean) * torch.rsqrt(self.running_var + 1e-5) * self.weight
        var, mean = torch.var_mean(x, 0, correction=0)
        unbiased = var * (x.shape[0] / (x.shape[0] - 1))
        self.emit(
            running_mean=torch.lerp(self.running_mean, mean, MOMENTUM),
            running_var=torch.lerp(self.running_var, unbiased, MOMENTUM),
            merge=self.merge,
        )
        self.emit(count=self.count + 1, merge=None if self.merge is None else "last")
        self.sow(mean=mean)
        return (x - mean) * torch.rsqrt(var + 1e-5) * self.weight


class Stack(Module):
    layers: tuple[Module, ...]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Twice(Module):
    """Uses one normalisation twice, by ``split``."""

    norm: Norm

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.norm.split(2)
        out: Tensor = second(first(x) * 3 + 1)
        return out


def norm(n: int = 3, merge: str | None = None) -> Any:
    return Norm(torch.ones(n), torch.zeros(n), torch.ones(n), torch.tensor(0), merge)


def net(merge: str | None = None) -> Any:
    return Stack((norm(merge=merge), Stack((norm(merge=merge),))))


def reference() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3))


def forward(module: Any, x: Tensor) -> Tensor:
    return module(x)  # type: ignore[no-any-return]  # a Tensor


def loss(module: Any, x: Tensor) -> Any:
    return forward(module, x).sin().sum()


def norms(module: Any) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, Norm)]


def assert_stats(module: Any, expected: torch.nn.Sequential) -> None:
    for mine, theirs in zip(norms(module), expected, strict=True):
        torch.testing.assert_close(mine.running_mean, theirs.running_mean)
        torch.testing.assert_close(mine.running_var, theirs.running_var)
        assert torch.equal(mine.count, theirs.num_batches_tracked)  # type: ignore[arg-type]  # a Tensor


def backward(out: Any) -> None:
    """Of the loss of what ``nn`` computed."""
    out.sin().sum().backward()


@pytest.fixture
def x() -> Tensor:
    return random.normal(random.key(0), (8, 3)) * 2 + 1


# -- collecting -------------------------------------------------------------------------------


def test_running_statistics_are_those_of_nn_over_several_steps(x: Tensor) -> None:
    module, expected = net(), reference()
    for _ in range(3):
        out, module = effects.collect(forward)(module, x)
        torch.testing.assert_close(out, expected(x))
    assert_stats(module, expected)


def test_nothing_is_written_and_the_structure_stays(x: Tensor) -> None:
    module = net().train(random.key(1))
    before = {path: leaf.clone() for path, leaf in tree.named_leaves(module).items()}
    _, after = effects.collect(forward)(module, x)
    for path, leaf in tree.named_leaves(module).items():
        assert torch.equal(leaf, before[path]), path
    assert tree.structure(after) == tree.structure(module)
    assert after._rng is module._rng
    assert after.layers[0].weight is module.layers[0].weight, "what nobody emits is shared"


def test_a_module_itself_is_a_function_of_it(x: Tensor) -> None:
    run: Any = effects.collect(Stack.forward)
    out, after = run(net(), x)
    torch.testing.assert_close(out, reference()(x))
    assert after.layers[0].count == 1


def test_without_effects_the_very_module_comes_back(x: Tensor) -> None:
    module = net().eval()
    _, after = effects.collect(forward)(module, x)
    assert after is module


def test_effects_carry_no_graph(x: Tensor) -> None:
    module = net().reset(0)
    out, after = effects.collect(forward)(module, x)
    assert out.requires_grad
    assert not any(m.running_mean.requires_grad for m in norms(after))


def test_returned_modules_are_out_of_the_collection(x: Tensor) -> None:
    module = net().train(random.key(0))
    (inner, doubled), _ = effects.collect(lambda m, x: (m, {"d": tree.map(lambda p: 2 * p, m)}))(
        module, x
    )
    for found in (inner, doubled["d"]):
        assert found._rng is module._rng
        with pytest.raises(EffectError, match="nobody collects"):
            found(x)


def test_an_instance_kept_from_inside_says_so(x: Tensor) -> None:
    kept = []
    effects.collect(lambda m, x: kept.append(m))(net(), x)
    with pytest.raises(EffectError, match="is over"):
        kept[0](x)


def test_mode_and_rng_can_change_inside(x: Tensor) -> None:
    def inside(module: Any, x: Tensor) -> Tensor:
        module.layers[1].train(random.key(5))(x)
        return module.layers[0].train()(x)  # type: ignore[no-any-return]  # a Tensor

    _, after = effects.collect(inside)(net().eval(), x)
    assert [int(m.count) for m in norms(after)] == [1, 1]


def test_an_rng_goes_on_being_available_and_absent(x: Tensor) -> None:
    class Reads(Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + random.normal(self.rng, x.shape)

    module = Stack((Reads(),))
    expected = module.train(random.key(3))(x)
    out, _ = effects.collect(forward)(module.train(random.key(3)), x)
    assert torch.equal(out, expected)
    with pytest.raises(RuntimeError, match="no random state"):
        effects.collect(forward)(module, x)


def test_nested_collections_are_addressed_from_their_own_root(x: Tensor) -> None:
    def inside(module: Any, x: Tensor) -> Any:
        y, inner = effects.collect(forward)(module.layers[1], x)
        return module.layers[0](y), inner

    (_, inner), outer = effects.collect(inside)(net(), x)
    assert [int(m.count) for m in norms(outer)] == [1, 0]
    assert inner.layers[0].count == 1


def test_modules_are_addressed_in_the_tree_that_is_collected(x: Tensor) -> None:
    part = net().train(random.key(0)).layers[1]
    _, after = effects.collect(forward)(part, x)
    assert after.layers[0].count == 1


# -- several effects for one buffer ---------------------------------------------------------------


def test_two_effects_without_a_rule_are_an_error_that_names_the_buffer(x: Tensor) -> None:
    with pytest.raises(EffectError, match=r"two effects for 'norm\.running_mean'.*merge='mean'"):
        effects.collect(forward)(Twice(norm()), x)


@pytest.mark.parametrize(
    ("merge", "one"),
    [("last", lambda a, b: b), ("mean", lambda a, b: (a + b) / 2), ("sum", lambda a, b: a + b)],
)
def test_split_copies_merge_by_their_rule(
    merge: str, one: Callable[[Tensor, Tensor], Tensor], x: Tensor
) -> None:
    _, after = effects.collect(forward)(Twice(norm(merge=merge)), x)
    first = torch.nn.BatchNorm1d(3)
    second = torch.nn.BatchNorm1d(3)
    second(first(x) * 3 + 1)
    assert first.running_mean is not None and second.running_mean is not None
    expected = one(first.running_mean, second.running_mean)
    torch.testing.assert_close(after.norm.running_mean, expected)
    assert after.norm.count == 1


def test_rules_must_agree(x: Tensor) -> None:
    class Emits(Module):
        value: Buffer

        def forward(self, x: Tensor) -> None:
            self.emit(value=x, merge="last")
            self.emit(value=x, merge="sum")

    with pytest.raises(EffectError, match=r"merge='last' and merge='sum'"):
        effects.collect(Emits.forward)(Emits(torch.tensor(0.0)), torch.tensor(1.0))


def test_the_mean_of_integers_is_refused() -> None:
    class Emits(Module):
        value: Buffer

        def forward(self) -> None:
            self.emit(value=self.value + 1, merge="mean")
            self.emit(value=self.value + 2, merge="mean")

    with pytest.raises(EffectError, match="mean"):
        effects.collect(Emits.forward)(Emits(torch.tensor(0)))


def test_a_tied_buffer_is_one_buffer(x: Tensor) -> None:
    shared = norm(merge="last")
    module = Stack((shared, shared))
    _, after = effects.collect(forward)(module, x)
    assert after.layers[0].running_mean is after.layers[1].running_mean
    assert len(tree.leaves(after)) == len(tree.leaves(module)) == 4
    unruled = norm()
    with pytest.raises(EffectError, match="two effects"):
        effects.collect(forward)(Stack((unruled, unruled)), x)


# -- what is refused ----------------------------------------------------------------------------


class Emits(Module):
    """Emits what it is called with."""

    parameter: Parameter
    buffer: Buffer
    hole: Buffer | None
    buffers: tuple[Buffer, ...]
    constant: int

    def forward(self, merge: Any = None, **values: Any) -> None:
        self.emit(merge=merge, **values)


def call(module: Any, /, **values: Any) -> None:
    module(**values)


def emits() -> Any:
    cls: Any = Emits
    return cls(torch.zeros(2), torch.zeros(2), None, (torch.zeros(2),), 1)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"nothing": torch.zeros(2)}, AttributeError, "declares no field 'nothing'.*nothing: Buffer"),
    ({"parameter": torch.zeros(2)}, TypeError, "only buffers.*parameter: Buffer"),
    ({"constant": torch.zeros(2)}, TypeError, "only buffers"),
    ({"buffers": torch.zeros(2)}, TypeError, "only buffers"),
    ({"buffer": 1.0}, TypeError, "expected a tensor, got float"),
    ({"hole": torch.zeros(2)}, TypeError, "the buffer is None"),
    ({"buffer": torch.zeros(3)}, ValueError, r"shape \(2,\).*\(3,\)"),
    ({"buffer": torch.zeros(2, dtype=torch.float64)}, ValueError, r"float32.*float64"),
    ({"buffer": torch.zeros(2), "merge": "median"}, ValueError, "merge.*median"),
]


@pytest.mark.parametrize(("values", "error", "message"), BAD)
def test_bad_effects_name_the_class_and_the_field(
    values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        effects.collect(call)(emits(), **values)
    assert "Emits.emit(" in str(caught.value)
    with pytest.raises(error, match=message):
        emits()(**values)


def test_an_effect_that_nobody_collects_is_an_error(x: Tensor) -> None:
    with pytest.raises(EffectError, match=r"effects\.collect\(fn\)"):
        norm()(x)
    with pytest.raises(EffectError, match="nobody collects"):
        effects.capture(forward)(norm(), x)


def test_an_uninitialized_buffer_has_nothing_to_replace() -> None:
    declaring: Any = Emits
    declared = declaring(torch.zeros(2), Buffer((2,), torch.nn.init.zeros_), None, (), 1)
    with pytest.raises(TypeError, match="not initialized"):
        effects.collect(call)(declared, buffer=torch.zeros(2))


def test_an_effect_of_a_module_put_in_during_the_call_is_foreign(x: Tensor) -> None:
    foreign = Stack((norm(), norm(), norm()))

    def inside(module: Any, x: Tensor) -> Tensor:
        bigger = tree.map(lambda leaf: leaf, foreign)
        object.__setattr__(bigger.layers[2], "_rng", module._rng)
        object.__setattr__(bigger.layers[2], "_spec", with_path(bigger.layers[2], "layers.2"))
        return bigger.layers[2](x)  # type: ignore[no-any-return]  # a Tensor

    with pytest.raises(EffectError, match=r"layers\.2.*no such leaf"):
        effects.collect(inside)(net(), x)


def with_path(module: Any, path: str) -> Any:
    return module._spec.renote(lambda _, node: node.local.note._replace(path=path))


@pytest.mark.parametrize("wrap", [effects.collect, effects.capture])
@pytest.mark.parametrize("first", [3, None, torch.zeros(1), [norm()]])
def test_the_first_argument_is_a_module(wrap: Any, first: Any) -> None:
    with pytest.raises(TypeError, match="first argument is a module"):
        wrap(lambda m: m)(first)


def test_generators_and_coroutines_would_run_too_late() -> None:
    def generator(module: Any) -> Iterator[int]:
        yield 1

    async def coroutine(module: Any) -> int:
        return 1

    async def stream(module: Any) -> Any:
        yield 1

    for fn in (generator, coroutine, stream):
        with pytest.raises(TypeError, match="after the collection"):
            effects.collect(fn)(norm())


def test_fields_may_not_be_called_emit_or_sow() -> None:
    for name in ("emit", "sow"):
        with pytest.raises(TypeError, match=name):
            type("Bad", (Module,), {"__annotations__": {name: Buffer}})


# -- nothing leaks ------------------------------------------------------------------------------


def test_an_exception_leaves_nothing_behind(x: Tensor) -> None:
    module = net()

    def fails(module: Any, x: Tensor) -> None:
        module(x)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        effects.collect(fails)(module, x)
    _, after = effects.collect(forward)(module, x)
    assert [int(m.count) for m in norms(after)] == [1, 1]


def test_two_threads_do_not_see_each_other(x: Tensor) -> None:
    module = net()
    barrier, found = threading.Barrier(4), {}

    def work(k: int) -> None:
        def inside(module: Any, x: Tensor) -> None:
            barrier.wait(10)
            module(x)
            barrier.wait(10)

        found[k] = effects.collect(inside)(module, x + k)[1]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        _, alone = effects.collect(forward)(module, x + k)
        assert torch.equal(found[k].layers[0].running_mean, alone.layers[0].running_mean)
        assert found[k].layers[0].count == 1


def test_suspended_generators_and_tasks_do_not_leak(x: Tensor) -> None:
    def steps(module: Any) -> Iterator[Any]:
        for _ in range(2):
            _, module = effects.collect(forward)(module, x)
            yield module

    suspended = steps(net())
    next(suspended)
    with pytest.raises(EffectError, match="nobody collects"):
        net()(x)

    async def task(k: int) -> Any:
        module: Any = net()
        for _ in range(2):
            _, module = effects.collect(forward)(module, x + k)
            await asyncio.sleep(0)
        return module

    async def both() -> list[Any]:
        return list(await asyncio.gather(task(0), task(1)))

    one, two = asyncio.run(both())
    assert one.layers[0].count == two.layers[0].count == 2
    assert not torch.equal(one.layers[0].running_mean, two.layers[0].running_mean)


# -- transforms ---------------------------------------------------------------------------------


def test_collecting_within_grad_with_aux(x: Tensor) -> None:
    grads, after = torch.func.grad(effects.collect(loss), has_aux=True)(floats(net()), x)
    assert type(grads) is type(net())
    expected = reference()
    backward(expected(x))
    torch.testing.assert_close(grads.layers[0].weight, expected[0].weight.grad)
    torch.testing.assert_close(after.layers[0].running_mean, expected[0].running_mean)


def floats(module: Any) -> Any:
    """With a float for a counter: raw ``torch.func`` differentiates no integers."""
    return tree.map(lambda leaf: leaf.float(), module)


def test_grad_inside_a_collection_rebuilds_the_instance(x: Tensor) -> None:
    def inside(module: Any, x: Tensor) -> Any:
        prepared = module.reset(0)
        loss(prepared, x).backward()
        return prepared.grad()

    grads, after = effects.collect(inside)(net(), x)
    expected = reference()
    backward(expected(x))
    torch.testing.assert_close(grads.layers[0].weight, expected[0].weight.grad)
    assert_stats(after, expected)


def test_a_raw_transform_would_let_its_wrappers_escape(x: Tensor) -> None:
    batch = torch.stack([x, x + 1])
    with pytest.raises(EffectError, match=r"parallax\.func"):
        effects.collect(lambda m, xs: torch.vmap(lambda x: forward(m, x))(xs))(net(), batch)
    with pytest.raises(EffectError, match=r"parallax\.func"):
        effects.collect(lambda m, x: torch.func.grad(lambda x: loss(m, x))(x))(net(), x)
    with pytest.raises(EffectError, match=r"parallax\.func"):
        effects.capture(
            effects.collect(lambda m, x: torch.func.jvp(lambda x: loss(m, x), (x,), (x,)))
        )(net(), x)


def test_collecting_within_vmap_equals_a_loop(x: Tensor) -> None:
    batch = torch.stack([x, x + 1, 3 * x])
    mapped = torch.vmap(effects.collect(forward), in_dims=(None, 0))
    out, after = mapped(net(), batch)
    for k, row in enumerate(batch):
        one, alone = effects.collect(forward)(net(), row)
        torch.testing.assert_close(out[k], one)
        torch.testing.assert_close(
            after.layers[1].layers[0].running_var[k], alone.layers[1].layers[0].running_var
        )


def test_collecting_within_jvp(x: Tensor) -> None:
    run = effects.collect(loss)
    jvp: Any = torch.func.jvp
    (value, after), (tangent, _) = jvp(lambda x: run(floats(net()), x), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(value, loss_of_reference(x))
    _, expected = jvp(loss_of_reference, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, expected)
    torch.testing.assert_close(
        after.layers[0].running_mean, torch.lerp(torch.zeros(3), x.mean(0), MOMENTUM)
    )


def loss_of_reference(x: Tensor) -> Any:
    for _ in range(2):
        x = F.batch_norm(x, None, None, torch.ones(3), training=True)
    return x.sin().sum()


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_emits_nothing(reentrant: bool, x: Tensor) -> None:
    calls: list[None] = []

    def checkpointed(module: Any, x: Tensor) -> Any:
        def block(x: Tensor) -> Tensor:
            calls.append(None)
            return forward(module, x)

        return checkpoint(block, x, use_reentrant=reentrant).sin().sum()

    def inside(module: Any, x: Tensor) -> None:
        checkpointed(module, x).backward()

    module = net().reset(0)
    _, after = effects.collect(inside)(module, x.clone().requires_grad_())
    assert len(calls) == 2, "the forward ran again in backward"
    expected = reference()
    backward(expected(x))
    assert_stats(after, expected)
    torch.testing.assert_close(module.grad().layers[0].weight, expected[0].weight.grad)

    out, after = effects.collect(checkpointed)(net().reset(0), x.clone().requires_grad_())
    out.backward()  # the collection is over by now
    assert_stats(after, expected)


def gradient(module: Any, x: Tensor) -> Any:
    return func.grad(loss)(module, x)


def test_func_grad_hands_effects_on_whatever_its_engine(x: Tensor) -> None:
    expected = reference()
    backward(expected(x))
    on_tape = effects.collect(gradient)(net(), x)
    mapped = torch.vmap(lambda x: effects.collect(gradient)(net(), x))(x[None])
    compiled = torch.compile(effects.collect(gradient), backend="aot_eager", fullgraph=True)
    for grads, after in (on_tape, compiled(net(), x)):
        torch.testing.assert_close(grads.layers[0].weight, expected[0].weight.grad)
        assert_stats(after, expected)
    torch.testing.assert_close(mapped[0].layers[0].weight[0], expected[0].weight.grad)
    torch.testing.assert_close(mapped[1].layers[0].running_var[0], expected[0].running_var)


def test_func_vmap_hands_effects_on(x: Tensor) -> None:
    def over_batches(module: Any, xs: Tensor) -> Any:
        return func.vmap(forward, in_dims=(None, 0))(module, xs)

    def over_members(module: Any, x: Tensor) -> Any:
        return func.vmap(forward, in_dims=(0, None))(module, x)

    _, after = effects.collect(over_batches)(net(merge="mean"), torch.stack([x, x + 2]))
    torch.testing.assert_close(after.layers[0].running_mean, MOMENTUM * (x.mean(0) + 1))
    members = tree.stack([net(), tree.map(lambda leaf: leaf + 1, net())])
    _, after = effects.collect(over_members)(members, x)
    assert after.layers[0].count.tolist() == [1, 2]
    for k in range(2):
        _, alone = effects.collect(forward)(tree.unstack(members)[k], x)
        torch.testing.assert_close(after.layers[0].running_mean[k], alone.layers[0].running_mean)


def test_func_jvp_and_vjp_hand_effects_on(x: Tensor) -> None:
    def forwards(module: Any, x: Tensor) -> Any:
        return func.jvp(lambda x: loss(module, x), (x,), (torch.ones_like(x),))

    def backwards(module: Any, x: Tensor) -> Any:
        return func.vjp(lambda module: loss(module, x), module)[0]

    expected = reference()
    expected(x)
    _, after = effects.collect(backwards)(net(), x)
    assert_stats(after, expected)
    with pytest.raises(EffectError, match="wrapper"):
        effects.collect(forwards)(net(), x)  # the module is no argument of the transform


# -- compiled -----------------------------------------------------------------------------------


def test_collecting_inside_a_compiled_function(x: Tensor) -> None:
    module, expected = net(), reference()
    step = torch.compile(effects.collect(forward), backend="aot_eager", fullgraph=True)
    out, module = step(module, x)
    torch.testing.assert_close(out, expected(x))
    out, module = step(module, x)
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(out, expected(x))
        out, module = step(module, x + 1)
    torch.testing.assert_close(out, expected(x + 1))
    assert_stats(module, expected)


def test_a_compiled_function_inside_a_collection(x: Tensor) -> None:
    module, expected = net(), reference()
    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
    for k in range(3):
        out, module = effects.collect(compiled)(module, x + k)
        torch.testing.assert_close(out, expected(x + k))
    assert_stats(module, expected)


def test_train_split_and_rules_while_tracing(x: Tensor) -> None:
    def step(module: Any, key: random.Key, x: Tensor) -> Any:
        return effects.collect(forward)(module.train(key), x)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    module = Twice(norm(merge="mean"))
    out, after = compiled(module, random.key(0), x)
    expected, alone = step(module, random.key(0), x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(after.norm.running_mean, alone.norm.running_mean)
    assert after.mode == "train" and after.norm.count == 1


def test_capturing_inside_a_compiled_function(x: Tensor) -> None:
    run = effects.capture(effects.collect(forward))
    (out, after), found = torch.compile(run, backend="aot_eager", fullgraph=True)(net(), x)
    (expected, _), alone = run(net(), x)
    torch.testing.assert_close(out, expected)
    assert list(found) == list(alone) == ["layers.0.mean", "layers.1.layers.0.mean"]
    for path, value in alone.items():
        torch.testing.assert_close(found[path], value)
    assert after.layers[0].count == 1


@pytest.mark.parametrize("inside", [True, False])
def test_a_compiled_checkpoint_emits_once(inside: bool, x: Tensor) -> None:
    """Whether the collection begins inside of it or around it, and without any configuration."""

    def checkpointed(module: Any, x: Tensor) -> Any:
        return checkpoint(lambda x: loss(module, x), x, use_reentrant=False)

    def collected_inside(module: Any, x: Tensor) -> Any:
        return checkpoint(effects.collect(loss), module, x, use_reentrant=False)

    step = collected_inside if inside else effects.collect(checkpointed)
    module = net().reset(0)
    out, after = torch.compile(step, backend="aot_eager", fullgraph=True)(module, x)
    out.backward()
    expected = reference()
    backward(expected(x))
    assert_stats(after, expected)
    torch.testing.assert_close(module.grad().layers[0].weight, expected[0].weight.grad)


def test_a_compiled_checkpoint_lets_sown_tensors_out(x: Tensor) -> None:
    def checkpointed(module: Any, x: Tensor) -> Any:
        return checkpoint(lambda x: loss(module, x), x, use_reentrant=False)

    run = effects.capture(effects.collect(checkpointed))
    _, found = torch.compile(run, backend="aot_eager", fullgraph=True)(net().reset(0), x)
    assert list(found) == ["layers.0.mean", "layers.1.layers.0.mean"]
    torch.testing.assert_close(found["layers.0.mean"], x.mean(0))


def test_a_compiled_checkpoint_still_refuses_other_side_effects(x: Tensor) -> None:
    def step(module: Any, x: Tensor) -> Any:
        seen = []

        def block(x: Tensor) -> Any:
            value = loss(module, x)
            seen.append(value)
            return value

        return checkpoint(block, x, use_reentrant=False)

    with pytest.raises(torch._dynamo.exc.Unsupported, match="side effect"):
        torch.compile(effects.collect(step), backend="eager", fullgraph=True)(net().reset(0), x)


# -- capturing ----------------------------------------------------------------------------------


def test_intermediates_are_captured_by_path_as_part_of_the_graph(x: Tensor) -> None:
    module = net().reset(0)
    (_, after), found = effects.capture(effects.collect(forward))(module, x)
    assert list(found) == ["layers.0.mean", "layers.1.layers.0.mean"]
    sown: Any = found["layers.1.layers.0.mean"]
    assert sown.requires_grad
    torch.testing.assert_close(found["layers.0.mean"], x.mean(0))
    assert after.layers[0].count == 1
    _, (found_again, _) = effects.collect(effects.capture(forward))(module, x)[::-1], (found, 0)
    assert list(found_again) == list(found)


def test_what_is_sown_several_times_is_a_tuple(x: Tensor) -> None:
    (_, _), found = effects.capture(effects.collect(forward))(Twice(norm(merge="last")), x)
    assert isinstance(found["norm.mean"], tuple) and len(found["norm.mean"]) == 2


def test_sow_does_nothing_unless_somebody_captures(x: Tensor) -> None:
    class Sows(Module):
        def forward(self, x: Any) -> Any:
            self.sow(x=x)
            return x

    assert Sows()("anything") == "anything"
    with pytest.raises(TypeError, match=r"Sows\.sow\(x=\).*str"):
        effects.capture(Sows.forward)(Sows(), "anything")


# -- for transforms -----------------------------------------------------------------------------


def hand_on(module: Any, xs: Tensor) -> Any:
    """As a module-aware vmap does: collect inside, hand on outside."""
    outer, inners = module._rng, []

    def inside(x: Tensor) -> Any:
        inner = effects.nest(outer)
        inners.append(inner)
        rebuilt = tree.unflatten(tree.structure(module), tree.flatten(module)[0])
        for node in rebuilt.modules():
            object.__setattr__(node, "_rng", inner)
        return rebuilt(x), effects.emitted(inner)

    out, values = torch.vmap(inside)(xs)
    effects.relay(outer, inners[0], values)
    return out


def test_a_transform_hands_effects_on(x: Tensor) -> None:
    batch = torch.stack([x, x + 1])
    out, after = effects.collect(hand_on)(net(merge="mean"), batch)
    alone = [effects.collect(forward)(net(), row) for row in batch]
    torch.testing.assert_close(out, torch.stack([one for one, _ in alone]))
    mean = torch.stack([m.layers[0].running_mean for _, m in alone]).mean(0)
    torch.testing.assert_close(after.layers[0].running_mean, mean)
    assert after.layers[0].count == 1
    with pytest.raises(EffectError, match="came out of vmap"):
        effects.collect(hand_on)(net(), batch)


def test_nothing_is_nested_when_nothing_is_collected() -> None:
    assert effects.nest(None) is None and effects.emitted(None) == []
    effects.relay(None, None, [])
