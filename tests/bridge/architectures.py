"""Architectures of ``transformers`` in tiny configurations, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_TEXT = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 32}  # fmt: skip
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = {**_TEXT, **_SPECIAL, "num_key_value_heads": 1}
_VISION = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2,
           "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip


class Architecture(NamedTuple):
    model: str
    config: str
    options: dict[str, Any]
    inputs: Callable[[], dict[str, Tensor]]
    kind: str


def _ids() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 32, (2, 6))}


def _pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 8, 8)}


def _pairs() -> dict[str, Tensor]:
    return {**_ids(), "decoder_input_ids": torch.randint(3, 32, (2, 4))}


ARCHITECTURES = {
    "bert": Architecture("BertForMaskedLM", "BertConfig", _TEXT, _ids, "encoder"),
    "roberta": Architecture(
        "RobertaForSequenceClassification", "RobertaConfig",
        {**_TEXT, **_SPECIAL, "max_position_embeddings": 40}, _ids, "encoder",
    ),
    "distilbert": Architecture(
        "DistilBertModel", "DistilBertConfig",
        {"vocab_size": 32, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
         "max_position_embeddings": 32}, _ids, "encoder",
    ),
    "electra": Architecture(
        "ElectraModel", "ElectraConfig", {**_TEXT, "embedding_size": 8}, _ids, "encoder"
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32,
         "bos_token_id": 1, "eos_token_id": 2}, _ids, "decoder",
    ),
    "llama": Architecture("LlamaForCausalLM", "LlamaConfig", _DECODER, _ids, "decoder"),
    "qwen2": Architecture(
        "Qwen2ForCausalLM", "Qwen2Config", {**_DECODER, "tie_word_embeddings": True}, _ids,
        "decoder",
    ),
    "gpt_neox": Architecture(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", {**_TEXT, **_SPECIAL}, _ids, "decoder"
    ),
    "mixtral": Architecture(
        "MixtralForCausalLM", "MixtralConfig",
        {**_DECODER, "num_local_experts": 3, "num_experts_per_tok": 2}, _ids, "mixture of experts",
    ),
    "t5": Architecture(
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
         "decoder_start_token_id": 0}, _pairs, "encoder-decoder",
    ),
    "bart": Architecture(
        "BartModel", "BartConfig",
        {"vocab_size": 32, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
         "decoder_ffn_dim": 32, "max_position_embeddings": 32}, _pairs, "encoder-decoder",
    ),
    "mamba": Architecture(
        "MambaForCausalLM", "MambaConfig",
        {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4,
         "time_step_rank": 2}, _ids, "state space",
    ),
    "vit": Architecture("ViTModel", "ViTConfig", _VISION, _pixels, "vision"),
    "convnext": Architecture(
        "ConvNextModel", "ConvNextConfig",
        {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2, "patch_size": 2}, _pixels,
        "vision",
    ),
    "resnet": Architecture(
        "ResNetForImageClassification", "ResNetConfig",
        {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"},
        lambda: {"pixel_values": torch.randn(2, 3, 32, 32)}, "vision",
    ),
}  # fmt: skip


def build(name: str, **options: Any) -> nn.Module:
    """The model of an architecture, in eval mode."""
    transformers = import_module("transformers")  # pyright would read all of it, half a minute

    found = ARCHITECTURES[name]
    config = getattr(transformers, found.config)(**found.options, **options)
    torch.manual_seed(0)
    return getattr(transformers, found.model)(config).eval()  # type: ignore[no-any-return]  # an nn.Module
