"""``parallax.compile`` computes what the function computes, whatever trees go in and out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.adam import adam as functional_adam

import parallax
from parallax import Buffer, Module, Parameter, effects, func, random, tree
from tests.corpus import MODULES, SIZE, Case, Dense, Scale, TiedModule, example_input


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def make_compiled(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``parallax.compile``, of functions without types, too."""
    return parallax.compile(fn, **options)


def graphs() -> int:
    """How many graphs dynamo has made since the test began."""
    return counters["stats"]["unique_graphs"]


def equal(one: Any, two: Any) -> None:
    """Asserts that two trees have the same structure and equal leaves."""
    assert tree.structure(one) == tree.structure(two)
    for a, b in zip(tree.leaves(one), tree.leaves(two), strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b)
        else:
            assert (type(a), a) == (type(b), b)


# -- what it computes ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_any_module_goes_in_and_out(case: Case) -> None:
    module = case.make()

    def fn(module: Any) -> Any:
        return tree.map(torch.clone, module), module

    compiled = make_compiled(fn, backend="eager")
    plus, same = compiled(module)
    equal(plus, module)
    assert tree.structure(plus) == tree.structure(module)
    assert all(a is b for a, b in zip(tree.leaves(same), tree.leaves(module), strict=True))
    compiled(plus)
    assert graphs() <= 1


def adam(p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's own functional Adam, on private copies."""
    p, m, v, t = p.clone(), m.clone(), v.clone(), t.clone()
    functional_adam(
        [p], [g], [m], [v], [], [t], foreach=False, capturable=False, differentiable=False,
        fused=False, grad_scale=None, found_inf=None, has_complex=False, amsgrad=False,
        beta1=0.9, beta2=0.999, lr=0.01, weight_decay=0.0, eps=1e-8, maximize=False,
    )  # fmt: skip
    return p, m, v


class Net(Module):
    first: Dense
    second: Dense

    def forward(self, x: Tensor) -> Any:
        return self.second(torch.relu(self.first(x)))


def net(seed: int = 0) -> Any:
    return Net(Dense(SIZE, 8), Dense(8, 2)).initialize(seed)


def start(model: Any) -> dict[str, Any]:
    m, v = [tree.map(torch.zeros_like, model) for _ in range(2)]
    return {"m": m, "v": v, "t": torch.zeros(())}


def step(model: Any, state: Any, x: Tensor, y: Tensor) -> Any:
    grads, loss = torch.func.grad_and_value(lambda model: F.mse_loss(model(x), y))(model)
    leaves = [tree.leaves(part) for part in (model, grads, state["m"], state["v"])]
    moved = [adam(p, g, m, v, state["t"]) for p, g, m, v in zip(*leaves)]  # noqa: B905
    spec = tree.structure(model)
    p, m, v = [tree.unflatten(spec, list(part)) for part in zip(*moved)]  # noqa: B905
    return p, {"m": m, "v": v, "t": state["t"] + 1}, loss


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_whole_training_step_is_one_graph_and_equals_torch_optim(backend: str) -> None:
    torch.manual_seed(0)
    model = net()
    state, x, y = start(model), torch.randn(5, SIZE), torch.randn(5, 2)
    params = [leaf.clone().requires_grad_() for leaf in tree.leaves(model)]
    optimizer = torch.optim.Adam(params, lr=0.01)
    compiled = make_compiled(step, backend=backend)
    for _ in range(4):
        model, state, loss = compiled(model, state, x, y)
        w1, b1, w2, b2 = params
        expected = F.mse_loss(F.linear(torch.relu(F.linear(x, w1, b1)), w2, b2), y)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(loss, expected.detach())
    for ours, theirs in zip(tree.leaves(model), params, strict=True):
        torch.testing.assert_close(ours, theirs.detach())
    assert graphs() == 1
    assert not counters["graph_break"]
    assert not counters["recompiles"]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_gradients_flow_through_a_call(backend: str) -> None:
    model = tree.map(lambda leaf: leaf.requires_grad_(), net())
    x = torch.randn(3, SIZE, requires_grad=True)
    compiled = make_compiled(lambda model, x: (model(x), {"sum": x.sum()}), backend=backend)
    out, extra = compiled(model, x)
    got = torch.autograd.grad(out.sum() + extra["sum"], [*tree.leaves(model), x])
    expected = torch.autograd.grad(model(x).sum() + x.sum(), [*tree.leaves(model), x])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_ties_stay_and_their_gradients_sum() -> None:
    module = TiedModule().initialize(0)
    x = example_input()

    def fn(module: Any) -> Any:
        grads = torch.func.grad(lambda module: module(x).square().sum())(module)
        return tree.map(lambda p, g: p - g, module, grads)

    moved = make_compiled(fn, backend="aot_eager")(module)
    equal(moved, fn(module))
    assert len(tree.leaves(moved)) == len(tree.leaves(module))


def test_one_tensor_in_several_arguments_is_one_leaf() -> None:
    def fn(a: Tensor, b: Tensor) -> Any:
        return torch.func.grad(lambda a: (a * b).sum())(a)

    compiled = make_compiled(fn, backend="aot_eager")
    x, y = torch.randn(3), torch.randn(3)
    for _ in range(2):
        assert torch.equal(compiled(x, y), y)
        assert torch.equal(compiled(x, x), x)


class Pair(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize(
    "make",
    [
        lambda m, x: [m, (x, None)],
        lambda m, x: {"b": m, "a": {"x": x}},
        lambda m, x: Pair(m, [x]),
        lambda m, x: ((), {}, [], m, "text", 3, 2.5, True, x),
    ],
)
def test_containers_go_in_and_out(make: Callable[[Any, Any], Any]) -> None:
    given = make(Scale(torch.ones(2)), torch.ones(2))
    compiled = make_compiled(lambda value: value, backend="eager")
    for _ in range(2):
        out = compiled(given)
        assert type(out) is type(given)
        equal(out, given)


def test_the_order_of_a_dict_is_kept() -> None:
    compiled = make_compiled(lambda d: (d, sum(w * x for w, x in enumerate(d.values()))),
                                backend="eager")  # fmt: skip
    one, two = torch.tensor(1.0), torch.tensor(10.0)
    for given in ({"a": one, "b": two}, {"b": one, "a": two}, {"a": two, "b": one}):
        out, weighted = compiled(given)
        assert list(out.items()) == list(given.items())
        assert weighted == list(given.values())[1]


def test_keywords_and_defaults_bind_as_ever() -> None:
    def fn(
        x: Tensor, /, scale: float = 2.0, *rest: Tensor, shift: Tensor, **more: Tensor
    ) -> Tensor:
        return x * scale + sum(rest) + shift + sum(more.values())

    compiled = make_compiled(fn, backend="eager")
    x = torch.ones(2)
    calls: list[Callable[[Any], Any]] = [
        lambda f: f(x, shift=x),
        lambda f: f(x, 3.0, x, shift=x),
        lambda f: f(x, scale=3.0, shift=x, other=x, another=2 * x),
    ]
    for call in calls:
        assert torch.equal(call(compiled), call(fn))
    with pytest.raises(TypeError, match="shift"):
        make_compiled(fn, backend="eager", fullgraph=False)(x)


def test_it_decorates_functions_methods_and_modules() -> None:
    class Double(Module):
        by: Parameter

        @parallax.compile(backend="eager")
        def forward(self, x: Tensor) -> Tensor:
            return self.by * x

        def twice(self, x: Tensor) -> Any:
            return 2 * self(x)

    module, x = Double(torch.tensor([3.0])), torch.ones(1)
    assert module(x) == 3
    assert module(x) == 3
    assert make_compiled(module, backend="eager")(x) == 3
    assert make_compiled(module.twice, backend="eager")(x) == 6

    @parallax.compile
    def named(x: Tensor) -> Tensor:
        """Says something."""
        return x

    assert (named.__name__, named.__doc__) == ("named", "Says something.")


def test_modules_made_inside_come_out_whole() -> None:
    def fn(model: Any, x: Tensor) -> Any:
        return Scale(model.first.weight @ x), model.replace(first=model.first)

    model, x = net(), torch.randn(SIZE)
    compiled = make_compiled(fn, backend="eager")
    for _ in range(2):
        scale, replaced = compiled(model, x)
        torch.testing.assert_close(scale.by, model.first.weight @ x)
        equal(replaced, model)
        equal(tree.map(lambda leaf: leaf + 1, replaced), tree.map(lambda leaf: leaf + 1, model))
    assert graphs() == 1


def test_transforms_inside() -> None:
    def fn(models: Any, xs: Tensor) -> Any:
        return torch.vmap(lambda model, x: model(x))(models, xs)

    models, xs = tree.stack([net(0), net(1)]), torch.randn(2, SIZE)
    torch.testing.assert_close(make_compiled(fn, backend="aot_eager")(models, xs), fn(models, xs))


# -- where it steps aside -----------------------------------------------------------------------


def test_under_a_transform_the_function_itself_runs() -> None:
    compiled = make_compiled(lambda model, x: model(x).square().sum(), backend="eager")
    model, x = net(), torch.randn(5, SIZE)
    got = torch.vmap(torch.func.grad(compiled), in_dims=(None, 0))(model, x)
    expected = torch.vmap(
        torch.func.grad(lambda model, x: model(x).square().sum()), in_dims=(None, 0)
    )(model, x)
    equal(got, expected)
    assert graphs() == 0


def test_within_another_trace_it_is_inlined() -> None:
    inner = make_compiled(lambda model, x: model(x), backend="eager")
    outer = make_compiled(lambda model, x: inner(model, x) + 1, backend="eager")
    model, x = net(), torch.randn(SIZE)
    torch.testing.assert_close(outer(model, x), model(x) + 1)
    torch.testing.assert_close(torch.compile(outer, backend="eager")(model, x), model(x) + 1)
    assert graphs() == 2


def test_forward_mode_goes_through() -> None:
    compiled = make_compiled(lambda x: x.sin(), backend="eager")
    x = torch.randn(3)
    compiled(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones(3))
        tangent = torch.autograd.forward_ad.unpack_dual(compiled(dual)).tangent
    torch.testing.assert_close(tangent, x.cos())


def test_make_fx_and_fake_tensors_see_the_function() -> None:
    compiled = make_compiled(lambda scale, x: scale(x), backend="eager")
    scale, x = Scale(torch.ones(2)), torch.ones(2)
    compiled(scale, x)
    traced = make_fx(compiled)(scale, x)
    assert torch.ops.aten.mul.Tensor in {node.target for node in traced.graph.nodes}


def test_graph_breaks_are_allowed_on_request() -> None:
    def fn(model: Any, x: Tensor) -> Any:
        y = model(x)
        torch._dynamo.graph_break()
        return tree.map(lambda leaf: 2 * leaf, model), y + 1

    model, x = net(), torch.randn(SIZE)
    compiled = make_compiled(fn, backend="eager", fullgraph=False)
    for _ in range(3):
        doubled, y = compiled(model, x)
        equal(doubled, tree.map(lambda leaf: 2 * leaf, model))
        torch.testing.assert_close(y, model(x) + 1)
    with pytest.raises(Unsupported):
        make_compiled(fn, backend="eager")(model, x)


@pytest.mark.parametrize("stance", ["force_eager", "eager_on_recompile"])
def test_torchs_stances_are_obeyed(stance: Any) -> None:
    compiled = make_compiled(lambda scale, x: (scale, scale(x)), backend="eager")
    scale, x = Scale(torch.full((2,), 3.0)), torch.ones(2)
    with torch.compiler.set_stance(stance):
        for _ in range(2):
            out, y = compiled(scale, x)
            equal((out, y), (scale, scale(x)))
    assert graphs() == 0
    equal(compiled(scale, x)[1], scale(x))
    assert graphs() == 1


def test_disable_and_the_other_options_of_torch_compile() -> None:
    def fn(x: Tensor) -> Tensor:
        return x + 1

    assert parallax.compile(fn, disable=True) is fn
    with pytest.raises(TypeError, match="'backends'"):
        make_compiled(fn, backends="eager")
    with pytest.raises(TypeError, match="not both"):
        make_compiled(fn, mode="default", options={})
    with pytest.raises(RuntimeError, match="Unrecognized mode"):
        make_compiled(fn, mode="fast")
    seen: list[str] = []

    def theirs(entries: Any) -> list[bool]:
        seen.extend(entry.guard_type for entry in entries)
        return [True] * len(entries)

    make_compiled(fn, backend="eager", options={"guard_filter_fn": theirs})(torch.ones(2))
    assert "TENSOR_MATCH" in seen


@torch.library.custom_op("parallax_tests::positive", mutates_args=())
def positive(x: Tensor) -> Tensor:
    """Says no in its own words, and describes its result wrongly where asked for 7 rows."""
    if x.sum() < 0:
        raise ArithmeticError("it is negative")
    return x.t().contiguous().t() if x.shape[0] == 7 else x.clone()


@positive.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_inductor_on_the_cpu_gets_options_that_change_no_result() -> None:
    x = torch.ones(3, 3)
    compiled = make_compiled(lambda x: positive(x) + 1)
    expected, (code,) = run_and_get_code(compiled, x)
    assert torch.equal(expected, x + 1)
    assert "aoti" in code
    assert '"input")' not in code  # sizes and strides of inputs are checked before, at once
    with pytest.raises(ArithmeticError, match="it is negative"):
        compiled(-x)
    assert torch.equal(compiled(x), x + 1)
    with pytest.raises(RuntimeError, match="expected size"):  # results of kernels are checked
        make_compiled(lambda x: positive(x) + 1)(torch.ones(7, 3))


def test_the_options_given_are_the_last_word() -> None:
    def options(given: dict[str, Any], device: str = "cpu") -> Any:
        settings = parallax.compiler.dynamo.compile_settings(given)
        items = [torch.ones(1, device=device)]
        return parallax.compiler.dynamo.settings_for(settings, items, ())["options"]

    assert options({})["cpp_wrapper"] is True
    asked = {"cpp_wrapper": False, "size_asserts": True}
    assert options({"options": asked}) == asked
    assert options({"backend": "eager"}) == {}
    assert options({}, "meta") == {}


def test_what_inductor_writes_in_python_only_is_written_in_python() -> None:
    region = torch.compiler.nested_compile_region(lambda x: x.sin() + 1)
    x = torch.ones(2)
    compiled = make_compiled(lambda x: region(region(x)))
    for _ in range(2):
        torch.testing.assert_close(compiled(x), (x.sin() + 1).sin() + 1)


def test_mode_is_told_as_options() -> None:
    settings = parallax.compiler.dynamo.compile_settings({"mode": "reduce-overhead"})
    assert settings["options"] == {"triton.cudagraphs": True}
    assert "mode" not in settings


# -- threads, failures, purity ------------------------------------------------------------------


def test_threads_get_their_own_results() -> None:
    compiled = make_compiled(step, backend="eager")
    x, y = torch.randn(5, SIZE), torch.randn(5, 2)
    wrong: list[int] = []

    def work(seed: int) -> None:
        model = net(seed)
        if seed % 2:
            model = model.eval()
        expected = step(model, start(model), x, y)
        for _ in range(5):
            try:
                equal(compiled(model, start(model), x, y), expected)
            except BaseException:
                wrong.append(seed)
                raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert graphs() == 2


def test_a_failed_call_leaves_nothing_behind() -> None:
    def fn(x: Tensor) -> Tensor:
        if FLAG[0]:
            raise ValueError("not now")
        return x + 1

    compiled, x = make_compiled(fn, backend="eager"), torch.ones(2)
    FLAG[0] = True
    with pytest.raises(Exception, match="not now"):
        compiled(x)
    FLAG[0] = False
    assert torch.equal(compiled(x), x + 1)


FLAG = [False]


def test_nothing_given_is_changed_or_kept_alive() -> None:
    import weakref

    compiled = make_compiled(lambda scale: tree.map(torch.neg, scale), backend="aot_eager")
    scale = Scale(torch.ones(2))
    leaf = weakref.ref(scale.by)
    before = scale.by._version, torch.get_rng_state()
    compiled(scale)
    assert scale.by._version == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert not vars(scale.by)
    del scale
    assert leaf() is None


# -- with the rest of Parallax ------------------------------------------------------------------


class Noise(Module):
    """Draws, and counts its calls by an effect."""

    by: Parameter
    calls: Buffer

    def forward(self, x: Tensor) -> Tensor:
        self.emit(calls=self.calls + 1)
        return x * self.by * random.normal(self.rng, x.shape)


def test_a_key_is_an_input_of_the_graph() -> None:
    module, x = Noise(torch.ones(3), torch.zeros(())), torch.ones(3)

    def call(module: Any, x: Tensor) -> Any:
        return module(x)

    run = effects.collect(call)
    compiled = make_compiled(run, backend="aot_eager")
    for seed in range(4):
        given = module.train(random.key(seed))
        (y, after), (expected, expected_after) = compiled(given, x), run(given, x)
        torch.testing.assert_close(y, expected)
        equal(after, expected_after)
        assert after.calls == 1
    assert graphs() == 1


def test_parallax_func_inside_and_around() -> None:
    def loss(model: Any, x: Tensor) -> Any:
        return model(x).square().mean()

    model, x = net(), torch.randn(5, SIZE)
    inside = make_compiled(lambda model, x: func.grad_and_value(loss)(model, x), backend="eager")
    around = func.grad_and_value(make_compiled(loss, backend="aot_eager"))
    expected = func.grad_and_value(loss)(model, x)
    for _ in range(2):
        equal(inside(model, x), expected)
        equal(around(model, x), expected)
