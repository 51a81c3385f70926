"""The example of low-rank adaptation: surgery on a lifted model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from parallax import bridge, tree
from parallax.examples import lora


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randint(0, 16, (32, 6), generator=torch.Generator().manual_seed(0))
    return x, x.sum(1) % 4


def test_an_adapted_model_begins_as_the_model_it_adapts() -> None:
    torch.manual_seed(0)
    model = lora.make_model()
    adapted = lora.adapt(model, rank=2, seed=0)
    x, _ = data()
    torch.testing.assert_close(adapted(x), model(x))
    assert adapted.layers[0].qkv.layer.weight.data_ptr() == model.layers[0].qkv.weight.data_ptr()  # type: ignore[union-attr, index]  # as built


def test_only_adapters_are_trained_and_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = lora.make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = lora.adapt(model, rank=2, seed=0)
    x, y = data()
    *_, (adapted, last) = lora.train(start, x, y, steps=30, rate=0.05)
    _, first = next(lora.train(start, x, y, steps=1, rate=0.05))
    assert last < first

    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    trained = tree.leaves(tree.partition(adapted, "trainable")[0])
    assert sum(leaf is not None for leaf in trained) == 2 * 5

    file = tmp_path / "adapters.pt"
    lora.save_adapters(adapted, file)
    loaded = lora.load_adapters(lora.adapt(model, rank=2, seed=1), file)
    torch.testing.assert_close(loaded(x), adapted(x))
    names = set(torch.load(file)["state_dict"])
    linears = ("layers.0.qkv", "layers.0.out", "layers.1.qkv", "layers.1.out", "head")
    assert names == {f"{linear}.{p}" for linear in linears for p in ("lora_A", "lora_B")}


def test_an_adapted_model_lowers() -> None:
    torch.manual_seed(0)
    adapted = lora.adapt(lora.make_model(), rank=2, seed=0)
    lowered = bridge.lower(adapted)
    x, _ = data()
    torch.testing.assert_close(lowered(x), adapted(x))
    assert sum(p.requires_grad for p in lowered.parameters()) == 10


def test_the_job_keeps_the_adapters_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "adapters.pt"
    lora.main(["--quick", "--save", str(file)])
    assert "they compute the same: True" in capsys.readouterr().out
    assert file.stat().st_size > 1000
