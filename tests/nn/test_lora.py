"""Low-rank adapters compute what the dense weight W + s BA computes, in torch's own layers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn as torch_nn

import parallax
from parallax import Module, Parameter, bridge, effects, func, io, nn, optim, random, tree
from tests.nn.parity import assert_same

RANK, ALPHA = 2, 3.0
SCALE = ALPHA / RANK


def floats(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Case(NamedTuple):
    """A layer of torch's, the name of its weight, whether the input comes first in it, inputs."""

    name: str
    layer: Callable[[], torch_nn.Module]
    inputs: tuple[Any, ...]
    weight: str = "weight"


def case(
    name: str, sizes: tuple[Any, ...], *inputs: Any, weight: str = "weight", **more: Any
) -> Any:
    def layer() -> torch_nn.Module:
        torch.manual_seed(0)
        made: torch_nn.Module = getattr(torch_nn, name)(*sizes, **more, dtype=torch.float64)
        return made

    text = f"{name} {weight} {sizes}"
    return pytest.param(Case(name, layer, inputs, weight), (sizes, more), id=text)


IDS = torch.tensor([[1, 2, 1], [0, 3, 1]])
SEQUENCE = floats(5, 2, 4)
CASES = [
    case("Linear", (4, 3), floats(5, 4)),
    case("Linear", (4, 3), floats(4), bias=False),
    case("Linear", (4, 3), floats(2, 5, 4)),
    case("Embedding", (5, 3), IDS),
    case("Embedding", (5, 3), IDS, padding_idx=1),
    case("Embedding", (5, 3), IDS, scale_grad_by_freq=True),
    case("Conv1d", (4, 6, 3), floats(2, 4, 7), padding=1, stride=2),
    case(
        "Conv2d", (4, 6, (3, 2)), floats(2, 4, 5, 6), groups=2, padding_mode="circular", padding=1
    ),
    case("Conv3d", (2, 3, 2), floats(2, 2, 3, 4, 3)),
    case("ConvTranspose2d", (4, 6, 3), floats(2, 4, 5, 6), stride=2),
    case("Bilinear", (3, 4, 2), floats(5, 3), floats(5, 4, seed=1)),
    case("MultiheadAttention", (4, 2), SEQUENCE, SEQUENCE, SEQUENCE, weight="in_proj_weight"),
    case("LSTM", (4, 3), SEQUENCE, weight="weight_hh_l0"),
]


def ours_of(case: Case, arguments: Any) -> Any:
    sizes, more = arguments
    made = getattr(nn, case.name)(*sizes, **more, dtype=torch.float64)
    return bridge.load_state_dict(made, case.layer().state_dict())


def adapted(model: Any, case: Case) -> Any:
    made: Any = nn.lora(model, f"**.{case.weight}", rank=RANK, alpha=ALPHA).initialize(0)
    return tree.select(made, "lora_A", "lora_B").apply(lambda leaf: floats(*leaf.shape, seed=7))


def dense(case: Case, model: Any) -> torch_nn.Module:
    """Torch's layer with the sum of both as its weight."""
    layer = case.layer()
    weight = layer.get_parameter(case.weight)
    with torch.no_grad():
        weight.add_(SCALE * (model.lora_B @ model.lora_A.flatten(1)).reshape(weight.shape))
    return layer


def first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]  # a tensor


@pytest.mark.parametrize("lifted", [False, True], ids=["ours", "lifted"])
@pytest.mark.parametrize(("case", "arguments"), CASES)
def test_values_and_gradients_are_those_of_the_dense_weight(
    case: Case, arguments: Any, lifted: bool
) -> None:
    base = bridge.lift(case.layer()) if lifted else ours_of(case, arguments)
    model = adapted(base, case)
    layer = dense(case, model)
    out, expected = first(model(*case.inputs)), first(layer(*case.inputs))
    assert_same(out, expected.detach(), 1e-12)
    assert_same(first(nn.merge_lora(model)(*case.inputs)), expected.detach(), 1e-12)
    if hasattr(base, case.weight):
        assert_same(getattr(model, case.weight), layer.get_parameter(case.weight).detach(), 1e-12)

    grads = func.grad(lambda m: first(m(*case.inputs)).sin().sum())(model)
    assert set(tree.named_leaves(grads)) == {"lora_A", "lora_B"}
    expected.sin().sum().backward()
    whole: Any = layer.get_parameter(case.weight).grad
    whole = SCALE * whole.flatten(1)
    if case.layer().__dict__.get("scale_grad_by_freq"):
        assert model.form == "weight"
    assert_same(grads.lora_B, whole @ model.lora_A.flatten(1).T, 1e-11)
    assert_same(grads.lora_A, (model.lora_B.T @ whole).reshape(model.lora_A.shape), 1e-11)


@pytest.mark.parametrize(("case", "arguments"), CASES)
def test_an_adapter_changes_nothing_at_first(case: Case, arguments: Any) -> None:
    base = ours_of(case, arguments)
    model = nn.lora(base, f"**.{case.weight}", rank=RANK).initialize(0)
    assert_same(first(model(*case.inputs)), first(base(*case.inputs)), 0)
    assert tree.equal(nn.merge_lora(model), base)
    assert float(tree.norm(model.lora_A)) > 0


def test_initial_values_are_those_of_a_new_layer_drawn_by_path() -> None:
    base = nn.Sequential(nn.Linear(50, 40), nn.Embedding(60, 50)).initialize(0)
    one: Any = nn.lora(base, "*.0", "*.1", rank=30).initialize(3)
    alone: Any = nn.lora(base, "*.1", rank=30).initialize(3)
    assert torch.equal(one[1].lora_A, alone[1].lora_A)  # whatever else is adapted
    assert not one[0].lora_B.any() and not one[1].lora_B.any()
    bound = 50**-0.5
    assert one[0].lora_A.abs().max() <= bound and one[0].lora_A.abs().max() > 0.95 * bound
    assert abs(float(one[1].lora_A.std()) - 1) < 0.05
    assert tree.equal(one, nn.lora(base, "*.0", "*.1", rank=30).initialize(3))


# -- a whole model --------------------------------------------------------------------------------


class Block(Module):
    """A model with an attention, a norm, and one layer in two places."""

    embed: nn.Embedding
    attention: nn.MultiheadAttention
    norm: nn.LayerNorm
    twice: tuple[nn.Linear, ...]
    head: Parameter

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(4, 4)
        self.embed = nn.Embedding(6, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.twice = (shared, shared)
        self.head = Parameter((6, 4), torch.nn.init.xavier_normal_)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        for layer in self.twice:
            x = layer(x).tanh()
        return F.linear(x, self.head)


def block() -> Block:
    return Block().initialize(0, dtype=torch.float64)


def filled(model: Any, seed: int = 5) -> Any:
    """The model with adapters that are not zero."""
    made = model.initialize(1)
    leaves = [
        leaf for leaf in tree.leaves(tree.partition(made, "trainable")[0]) if leaf is not None
    ]
    values = [floats(*leaf.shape, seed=seed + k) for k, leaf in enumerate(leaves)]
    return tree.select(made, "trainable").set(values)


def same_structure(one: Any, two: Any) -> bool:
    """Whether trees differ in their leaves alone, apart from what is frozen."""
    trained = [tree.select(each, "parameter").unfreeze() for each in (one, two)]
    return tree.structure(trained[0]) == tree.structure(trained[1])


EVERYWHERE = ("embed", "attention.in_proj_weight", "attention.out_proj", "twice.*", "head")


def test_adapters_in_each_other_and_the_root_are_exact_when_merged() -> None:
    # ``head`` belongs to the root, the projection of the output lies in the attention.
    model = filled(nn.lora(block(), *EVERYWHERE, rank=1))
    merged = nn.merge_lora(model)
    assert same_structure(merged, block())
    assert_same(model(IDS), merged(IDS), 1e-12)
    names = {path.rpartition(".")[0] for path in tree.select(model, "trainable").paths}
    assert len(names) == 5


def test_one_layer_in_two_places_has_one_adapter() -> None:
    model: Any = filled(nn.lora(block(), nn.Linear, rank=1))
    assert model.twice[0].lora_A is model.twice[1].lora_A
    merged = nn.merge_lora(model)
    assert merged.twice[0].weight is merged.twice[1].weight
    assert_same(model(IDS), merged(IDS), 1e-12)
    layer = torch_nn.Linear(3, 3, bias=False)
    lifted: Any = bridge.lift(torch_nn.Sequential(layer, layer))
    both: Any = nn.lora(lifted, bridge.lifted_type(torch_nn.Linear), rank=1).initialize(0)
    assert both[0].lora_A is both[1].lora_A
    both = nn.lora(lifted, "0.weight", rank=1).initialize(0)
    assert both[0].lora_A is both[1].lora_A


def test_a_tied_weight_of_two_layers_stays_one_and_merging_unties_it() -> None:
    class Tied(Module):
        embed: nn.Embedding
        head: nn.Linear

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids))

    embed = nn.Embedding(6, 4)
    model = Tied(embed, nn.Linear(4, 6, bias=False).replace(weight=embed.weight)).initialize(0)
    assert model.embed.weight is model.head.weight
    made: Any = nn.lora(model, "embed", rank=1).initialize(1)
    assert made.embed.layer.weight is made.head.weight
    assert tree.select(made, "trainable").paths == ("embed.lora_A", "embed.lora_B")
    merged = nn.merge_lora(tree.select(made, "**.lora_B").apply(torch.ones_like))
    assert torch.equal(merged.head.weight, model.head.weight)
    assert not torch.equal(merged.embed.weight, model.embed.weight)
    with pytest.raises(ValueError, match=r"one weight of several modules.*'embed', 'head'"):
        nn.lora(model, "head.weight", rank=1)


def test_only_adapters_are_in_gradients_and_optimizer_states() -> None:
    model = nn.lora(block(), "**.out_proj", rank=1).initialize(0)
    adapters = {"attention.out_proj.lora_A", "attention.out_proj.lora_B"}
    grads = func.grad(lambda m: m(IDS).sum())(model)
    assert set(tree.named_leaves(grads)) == adapters
    adam = optim.AdamW(lr=0.1, weight_decay=0.1)
    state = adam.init(model)
    assert sum(leaf.numel() for leaf in tree.leaves(state) if leaf.dim()) == 2 * 8
    stepped, _ = adam.step(model, grads, state)
    one, two = tree.named_leaves(stepped), tree.named_leaves(model)
    assert {name for name in one if one[name] is not two[name]} == adapters


def test_a_second_call_keeps_the_first_adapters_and_frozen_ones_stay_frozen() -> None:
    model = nn.lora(block(), "embed", rank=1).initialize(0)
    both = nn.lora(model, "**.out_proj", rank=2).initialize(1)
    assert len(tree.select(both, "trainable").paths) == 4
    frozen = tree.select(model, "trainable").freeze()
    only = nn.lora(frozen, "**.out_proj", rank=2).initialize(1)
    assert all("out_proj" in path for path in tree.select(only, "trainable").paths)


def test_an_ensemble_of_adapters_maps_over_one_base() -> None:
    members = [filled(nn.lora(block(), *EVERYWHERE, rank=1), seed) for seed in (0, 50, 100)]
    parts = [tree.partition(member, "trainable") for member in members]
    base = parts[0][1]
    stacked = tree.stack([adapters for adapters, _ in parts])

    def call(adapters: Any, ids: Tensor) -> Any:
        return tree.combine(adapters, base)(ids)

    out = func.vmap(call, in_dims=(0, None))(stacked, IDS)
    assert_same(out, torch.stack([member(IDS) for member in members]), 1e-12)

    def loss(adapters: Any, ids: Tensor) -> Tensor:
        return call(adapters, ids).sin().sum()  # type: ignore[no-any-return]  # a tensor

    found = func.vmap(func.grad(loss), in_dims=(0, None))(stacked, IDS)
    expected = tree.stack([func.grad(loss)(adapters, IDS) for adapters, _ in parts])
    assert tree.allclose(found, expected, atol=1e-11)


def test_second_derivatives_are_those_of_the_dense_weight() -> None:
    layer = nn.Linear(3, 2, dtype=torch.float64).initialize(0)
    x = floats(4, 3)
    model: Any = filled(nn.lora(layer, nn.Linear, rank=1))

    def of_adapters(a: Tensor, b: Tensor) -> Tensor:
        return (model.replace(lora_A=a, lora_B=b)(x)).sin().sum()  # type: ignore[no-any-return]  # likewise

    def of_dense(a: Tensor, b: Tensor) -> Tensor:
        return F.linear(x, layer.weight + b @ a, layer.bias).sin().sum()

    given = (model.lora_A, model.lora_B)
    found = torch.func.hessian(of_adapters, (0, 1))(*given)
    expected = torch.func.hessian(of_dense, (0, 1))(*given)
    for one, two in zip(sum(found, ()), sum(expected, ()), strict=True):
        assert_same(one, two, 1e-12)


def test_a_compiled_gradient_is_the_eager_one() -> None:
    layers = nn.Embedding(6, 4), nn.Linear(4, 4), nn.WeightNorm(nn.Linear(4, 3))
    model = nn.Sequential(*layers).initialize(0, dtype=torch.float64)
    adapted = filled(nn.lora(model, "**.weight", rank=1))
    gradient = func.grad(lambda m: m(IDS).sin().sum())
    compiled = parallax.compile(gradient, backend="aot_eager")
    assert tree.allclose(compiled(adapted), gradient(adapted), atol=1e-12)


# -- dropout, modes, dtypes -----------------------------------------------------------------------


def test_dropout_acts_on_the_adapters_input_by_key() -> None:
    layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).initialize(0)
    model: Any = nn.lora(tree.zeros_like(layers), "*.0", "*.1", rank=64, dropout=0.25)
    eye = tree.select(model.initialize(0), "**.lora_?").set([torch.eye(64)] * 4)
    x = torch.ones(3, 64)
    assert torch.equal(eye.eval()(x), x)
    trained = eye[0].train(random.key(1))
    out = trained(x)  # what is left of the input itself
    assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert abs(float((out == 0).double().mean()) - 0.25) < 0.1
    assert torch.equal(eye[0].train(random.key(1))(x), out)
    assert not torch.equal(eye[0].train(random.key(2))(x), out)
    with pytest.raises(RuntimeError, match=r"rng"):
        eye(x)


def test_the_mode_and_the_rng_of_the_model_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).initialize(0)
    evaluated: Any = nn.lora(model.eval(), "*.0", rank=1, dropout=0.5).initialize(0)
    assert evaluated[0].mode == evaluated[0].dropout.mode == "eval"
    evaluated(torch.ones(2, 4))
    trained: Any = nn.lora(model.train(random.key(0)), "*.0", rank=1, dropout=0.5).initialize(0)
    assert trained[0].mode == "train"
    trained(torch.ones(2, 4))


def test_adapters_in_single_precision_beside_a_base_in_half() -> None:
    layer = nn.Linear(4, 3).initialize(0, dtype=torch.bfloat16)
    model: Any = nn.lora(layer, nn.Linear, rank=2).initialize(1, dtype=torch.float32)
    model = model.replace(lora_B=torch.randn(3, 2))
    x = torch.randn(5, 4, dtype=torch.bfloat16)
    change = (x.float() @ model.lora_A.T @ model.lora_B.T).bfloat16()
    out = model(x)
    assert out.dtype == torch.bfloat16 and torch.equal(out, layer(x) + change)
    grads = func.grad(lambda m: m(x).float().sum())(model)
    assert grads.lora_A.dtype == torch.float32


# -- lifted models --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.DistilBertConfig(
        vocab_size=11, dim=8, hidden_dim=16, n_layers=2, n_heads=2, max_position_embeddings=16
    )
    torch.manual_seed(0)
    return transformers.DistilBertForSequenceClassification(config).double().eval()


TOKENS = torch.arange(12).reshape(2, 6) % 11


def test_a_lifted_transformer_is_the_one_with_dense_weights(bert: Any) -> None:
    model = filled(nn.lora(bridge.lift(bert), "**.q_lin", "**.v_lin", rank=RANK, alpha=ALPHA))
    twin = copy.deepcopy(bert)
    for path in tree.select(model, nn.LoRA).paths:
        lora = tree.select(model, path).get()
        with torch.no_grad():
            twin.get_submodule(path).weight.add_(SCALE * lora.lora_B @ lora.lora_A)
    assert len(tree.select(model, nn.LoRA).paths) == 4
    assert_same(model(TOKENS).logits, twin(TOKENS).logits.detach(), 1e-12)
    merged = nn.merge_lora(model)
    assert same_structure(merged, bridge.lift(bert))
    assert_same(merged(TOKENS).logits, twin(TOKENS).logits.detach(), 1e-12)
    for name, value in bert.state_dict().items():
        assert value.data_ptr() == bridge.state_dict(model)[name].data_ptr()  # shared, by one name


def test_captured_outputs_of_a_lifted_layer_are_told(bert: Any) -> None:
    model: Any = filled(nn.lora(bridge.lift(bert), "**.q_lin", rank=RANK))
    path = "distilbert.transformer.layer.0.attention.q_lin"
    _, found = effects.capture(lambda m: m(TOKENS).logits, path, f"{path}.layer")(model)
    assert set(found) == {path, f"{path}.layer"}


def test_gpt2_keeps_its_weights_transposed() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    gpt = transformers.GPT2LMHeadModel(config).double().eval()
    model = filled(nn.lora(bridge.lift(gpt), "**.c_attn", "**.wte", rank=RANK, dropout=0.0))
    lora = tree.select(model, "**.c_attn").get()[0]
    assert lora.lora_A.shape == (RANK, 8) and lora.lora_B.shape == (24, RANK)
    twin = copy.deepcopy(gpt)
    with torch.no_grad():
        twin.transformer.h[0].attn.c_attn.weight.add_((lora.lora_B @ lora.lora_A).T)
        rows = tree.select(model, "**.wte").get()[0]
        whole = twin.transformer.wte.weight + rows.lora_B @ rows.lora_A
        twin.lm_head.weight = torch_nn.Parameter(gpt.lm_head.weight.clone())  # not adapted
        twin.transformer.wte.weight = torch_nn.Parameter(whole)
    tokens = torch.arange(8)[None]
    assert_same(model(tokens).logits, twin(tokens).logits.detach(), 1e-11)
    assert_same(nn.merge_lora(model)(tokens).logits, twin(tokens).logits.detach(), 1e-11)


def test_a_compiled_lifted_model_is_the_eager_one() -> None:
    layers = (
        torch_nn.Embedding(6, 4, dtype=torch.float64),
        torch_nn.Linear(4, 4, dtype=torch.float64),
    )
    model = filled(nn.lora(bridge.lift(torch_nn.Sequential(*layers)), "0", "1", rank=RANK))
    gradient = func.grad(lambda m: m(IDS).sin().sum())
    compiled = parallax.compile(gradient, backend="aot_eager")
    assert tree.allclose(compiled(model), gradient(model), atol=1e-12)


@pytest.mark.parametrize("name", ["in_proj_weight", "out_proj.weight"])
def test_attention_of_a_lifted_encoder_layer_in_eval_reads_what_it_needs(name: str) -> None:
    """Torch's fast path reads private attributes of the attention."""
    twin = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    model = nn.lora(bridge.lift(copy.deepcopy(twin)), f"self_attn.{name}", rank=2).initialize(0)
    up = tree.select(model, "**.lora_B")
    model = up.apply(torch.randn_like).eval()
    (adapter,) = tree.select(model, nn.LoRA).get()
    with torch.no_grad():
        twin.get_parameter(f"self_attn.{name}").add_(adapter.lora_B @ adapter.lora_A)
    x = torch.randn(3, 4, 8, dtype=torch.double)
    torch.testing.assert_close(model(x), twin(x))


def test_hooks_and_own_classes_get_the_changed_weight() -> None:
    class Squared(torch_nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as torch calls it
            return F.linear(input, self.weight.square(), self.bias)

    x = floats(5, 4)
    hooked = torch_nn.Linear(4, 3, dtype=torch.float64)
    hooked.register_forward_hook(lambda module, args, out: out.square())
    for layer in (Squared(4, 3, dtype=torch.float64), hooked):
        model = filled(nn.lora(bridge.lift(layer), "weight", rank=RANK, alpha=ALPHA))
        twin = copy.deepcopy(layer)
        with torch.no_grad():
            twin.weight.add_(SCALE * model.lora_B @ model.lora_A)
        assert_same(model(x), twin(x).detach(), 1e-12)

    class Cubed(nn.Linear, init=False):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as torch calls it
            return F.linear(input, self.weight**3, self.bias)

    ours = Cubed(4, 3, dtype=torch.float64).initialize(0)
    made = filled(nn.lora(ours, Cubed, rank=RANK))
    expected = F.linear(x, (ours.weight + made.lora_B @ made.lora_A) ** 3, ours.bias)
    assert_same(made(x), expected, 1e-12)


# -- files ----------------------------------------------------------------------------------------


def test_adapters_are_saved_alone_and_loaded_beside_a_fresh_base(tmp_path: Path) -> None:
    model = filled(nn.lora(block(), *EVERYWHERE, rank=1))
    adapters, _ = tree.partition(model, "trainable")
    io.save(adapters, tmp_path / "adapters.pt")
    assert len(io.read(tmp_path / "adapters.pt")) == 2 * 5

    fresh, rest = tree.partition(nn.lora(block(), *EVERYWHERE, rank=1), "trainable")
    again = tree.combine(io.load(tmp_path / "adapters.pt", like=fresh), rest)
    assert tree.equal(again, model)
    other, _ = tree.partition(nn.lora(block(), *EVERYWHERE, rank=2), "trainable")
    with pytest.raises(RuntimeError, match=r"size mismatch for .*lora_A"):
        io.load(tmp_path / "adapters.pt", like=other)
    fewer, _ = tree.partition(nn.lora(block(), "embed", rank=1), "trainable")
    with pytest.raises(RuntimeError):
        io.load(tmp_path / "adapters.pt", like=fewer)


def test_names_of_the_base_are_its_own_and_it_lowers_and_pickles(bert: Any) -> None:
    model = filled(nn.lora(block(), *EVERYWHERE, rank=1))
    assert set(bridge.state_dict(block())) <= set(bridge.state_dict(model))
    lowered = bridge.lower(model)
    assert_same(lowered(IDS), model(IDS), 1e-12)
    assert sum(p.requires_grad for p in lowered.parameters()) == 10
    assert tree.equal(bridge.lift(lowered), model)
    assert tree.equal(pickle.loads(pickle.dumps(model)), model)
    lifted = filled(nn.lora(bridge.lift(bert), "**.q_lin", rank=RANK))
    assert set(bert.state_dict()) <= set(bridge.state_dict(lifted))
    assert_same(bridge.lower(lifted)(TOKENS).logits, lifted(TOKENS).logits, 1e-12)


def test_a_reader_of_the_weight_gets_the_changed_one() -> None:
    model: Any = filled(
        nn.lora(nn.Linear(4, 3, dtype=torch.float64).initialize(0), "weight", rank=1)
    )
    assert_same(model.weight, model.layer.weight + model.lora_B @ model.lora_A, 1e-12)
    assert model.in_features == 4 and model.bias is model.layer.bias
    with pytest.raises(AttributeError, match=r"'Linear' object has no attribute 'wieght'"):
        _ = model.wieght
    # Torch's attention reads the weight of its projection without a call of it.
    attention = torch_nn.MultiheadAttention(4, 2, dtype=torch.float64)
    made: Any = filled(nn.lora(bridge.lift(attention), "out_proj", rank=1))
    twin = copy.deepcopy(attention)
    with torch.no_grad():
        twin.out_proj.weight.add_(made.out_proj.lora_B @ made.out_proj.lora_A)
    x = SEQUENCE
    assert_same(made(x, x, x)[0], twin(x, x, x)[0].detach(), 1e-12)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "options", "error", "message"),
    [
        ("**.qq_proj", {}, LookupError, r"nothing in Block"),
        (
            "norm",
            {},
            ValueError,
            r"Block\.norm: LoRA\(name='weight'\): weight of LayerNorm has the",
        ),
        (
            "attention",
            {},
            ValueError,
            r"attention is MultiheadAttention.*'attention\.in_proj_weight'",
        ),
        ("norm.bias", {}, ValueError, r"multiplies nothing"),
        ("twice", {}, ValueError, r"twice is tuple, which has no matrix"),
        (
            "embed",
            {"dropout": 0.5},
            ValueError,
            r"Block\.embed: .*weight of Embedding multiplies no",
        ),
        ("embed", {"dropout": 2}, ValueError, r"nn\.lora\(dropout=\): must be"),
        ("embed", {"rank": 0}, ValueError, r"nn\.lora\(rank=\): must be at least 1, got 0"),
        ("embed", {"rank": "8"}, TypeError, r"nn\.lora\(rank=\): expected an int"),
        ("embed", {"alpha": "8"}, TypeError, r"nn\.lora\(alpha=\): expected a number"),
        (3, {}, TypeError, r"cannot select by 3"),
    ],
)
def test_what_is_refused(
    where: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        nn.lora(block(), where, **{"rank": 1, **options})


def test_models_and_layers_that_are_refused() -> None:
    model = nn.lora(block(), "embed", rank=1).initialize(0)
    for again in ("embed", "embed.layer", "embed.lora_A", "embed.layer.weight"):
        with pytest.raises(ValueError, match=r"has an adapter already.*merge_lora"):
            nn.lora(model, again, rank=1)
    with pytest.raises(TypeError, match=r"Lift it first: bridge.lift\(module\)"):
        nn.lora(torch_nn.Linear(2, 2), "weight", rank=1)
    with pytest.raises(TypeError, match=r"say which layers"):
        nn.lora(block(), rank=1)
    norm = nn.Sequential(nn.BatchNorm1d(3)).initialize(0)
    with pytest.raises(ValueError, match=r"running_mean is a buffer"):
        nn.lora(norm, "**.running_mean", rank=1)
    stack = nn.Sequential(nn.Stack(nn.Linear(3, 3), 2)).initialize(0)
    with pytest.raises(ValueError, match=r"nn\.Stack\.of\(\[nn\.lora\(block, \.\.\., rank=1\)"):
        nn.lora(stack, nn.Linear, rank=1)
    blocks = [nn.lora(one, nn.Linear, rank=1).initialize(k) for k, one in enumerate(stack[0])]
    x = torch.ones(2, 3)
    assert torch.equal(nn.Stack.of(blocks)(x), stack(x))
    with pytest.raises(ValueError, match=r"is one of several that are stacked"):
        nn.lora(tree.stack([nn.Linear(3, 3).initialize(0)] * 2), "weight", rank=1)
    whole = nn.Linear(2, 2).initialize(0).replace(weight=torch.ones(2, 2, dtype=torch.int8))
    with pytest.raises(TypeError, match=r"Adapt the layer before it is quantized"):
        nn.lora(whole, "weight", rank=1)
    adapter: Any = nn.LoRA(nn.Linear(3, 2), rank=1)
    with pytest.raises(ValueError, match=r"the new layer is of another kind"):
        adapter.replace(layer=nn.Embedding(2, 3))
    with pytest.raises(parallax.UninitializedError):
        nn.merge_lora(adapter)
