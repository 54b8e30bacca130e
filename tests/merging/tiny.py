"""Tiny random models and adapters, made by transformers and peft in a fraction of a second."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)


def llama(*, seed: int = 0, tied: bool = False, dtype: torch.dtype = torch.float32, layers: int = 2) -> PreTrainedModel:
    """Hidden size 16, grouped attention, 32 tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    )
    model: Any = LlamaForCausalLM(config)
    adjusted: PreTrainedModel = model.to(dtype)
    return adjusted


def gpt2(*, seed: int = 0) -> PreTrainedModel:
    """Two layers of width 16 with Conv1D and tied embeddings, 32 tokens."""
    torch.manual_seed(seed)
    model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=32, n_embd=16, n_layer=2, n_head=2))
    return model


def _bert_config() -> BertConfig:
    return BertConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )


def bert(*, seed: int = 0) -> PreTrainedModel:
    """The bare encoder, whose parameters have no "bert." before them."""
    torch.manual_seed(seed)
    model: PreTrainedModel = BertModel(_bert_config())
    return model


def bert_for_masked_lm(*, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model: PreTrainedModel = BertForMaskedLM(_bert_config())
    return model


def bert_classifier(*, seed: int = 0) -> PreTrainedModel:
    """The encoder below "bert." and a new head, "classifier"."""
    torch.manual_seed(seed)
    model: PreTrainedModel = BertForSequenceClassification(_bert_config())
    return model


def vit(*, seed: int = 0) -> PreTrainedModel:
    """An image classifier of two layers on 8x8 grey images: a convolution cuts them into patches."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16}
    sizes |= {"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
    model: PreTrainedModel = ViTForImageClassification(ViTConfig(**sizes))
    return model


def saved(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """`folder`, after save_pretrained."""
    model.save_pretrained(folder, **options)
    return folder


def adapter(model: PreTrainedModel, folder: Path, *, seed: int = 1, **config: Any) -> PeftModel:
    """A LoRA of this configuration with random factors in the model's dtype, saved to `folder`.

    `model` is changed: peft puts its layers into it.
    """
    model.name_or_path = "tiny/base"
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **config}), autocast_adapter_dtype=False)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "lora" in name:
            torch.nn.init.normal_(parameter, std=0.2)
        elif parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    is_embedding = bool({"wte", "embed_tokens", "lm_head", "word_embeddings"} & set(config["target_modules"]))
    # Said outright, because peft would otherwise ask the network whether the base's vocabulary was resized.
    adapted.save_pretrained(str(folder), save_embedding_layers=is_embedding)
    return adapted
