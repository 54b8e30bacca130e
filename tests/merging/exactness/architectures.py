"""Tiny random models of the architectures that patches are made for, built by transformers in no time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 32
"""Tokens of every language model here."""


@dataclass(frozen=True)
class Architecture:
    """One architecture. config, model: class names in transformers. sizes: what makes it tiny.

    linear: module names that peft may target, as the live model has them: attention and feed-forward. embedding: of the
    input embedding, None where there is none. inputs: arguments of one forward pass. has_conv1d: stored (in, out).
    """

    name: str
    config: str
    model: str
    sizes: Mapping[str, Any]
    linear: Sequence[str]
    inputs: Callable[[], dict[str, torch.Tensor]]
    feed_forward: Sequence[str] = ()
    embedding: str | None = None
    has_conv1d: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loader(self) -> Any:
        """The class whose from_pretrained reads a checkpoint of it."""
        return getattr(transformers, self.model)

    def make(self, *, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any) -> PreTrainedModel:
        """A random model, in evaluation mode, its norms and biases random too: at their usual 0 and 1 errors hide."""
        torch.manual_seed(seed)
        config = getattr(transformers, self.config)(**{**self.sizes, **sizes})
        model: Any = self.loader(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
        adjusted: PreTrainedModel = model.to(dtype).eval()
        return adjusted


def output(model: Any, architecture: Architecture) -> torch.Tensor:
    """What the model says to the architecture's own inputs: logits, or hidden states."""
    inputs = {
        name: value.to(next(model.parameters()).dtype) if value.is_floating_point() else value
        for name, value in architecture.inputs().items()
    }
    with torch.no_grad():
        found = model.eval()(**inputs)
    result: torch.Tensor = found.logits if getattr(found, "logits", None) is not None else found.last_hidden_state
    return result


def _tokens() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(12).view(1, 12) % (VOCABULARY - 1) + 1}


def _pair() -> dict[str, torch.Tensor]:
    return _tokens() | {"decoder_input_ids": torch.arange(5).view(1, 5) + 2}


def _noise(name: str, *shape: int) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {name: torch.randn(shape, generator=torch.Generator().manual_seed(7))}


_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WAV2VEC2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}

_ALL = (
    Architecture(
        "gpt2",
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2},
        ("c_attn", "c_proj", "c_fc"),
        _tokens,
        ("c_proj",),
        embedding="wte",
        has_conv1d=True,
    ),
    Architecture(
        "llama",
        "LlamaConfig",
        "LlamaForCausalLM",
        {**_GROUPED, "tie_word_embeddings": False},
        _LLAMA,
        _tokens,
        ("down_proj",),
        embedding="embed_tokens",
    ),
    Architecture(
        "llama-tied",
        "LlamaConfig",
        "LlamaForCausalLM",
        {**_GROUPED, "tie_word_embeddings": True},
        _LLAMA,
        _tokens,
        ("down_proj",),
        embedding="embed_tokens",
    ),
    Architecture(
        "bert",
        "BertConfig",
        "BertForSequenceClassification",
        _SMALL,
        ("query", "key", "value", "dense"),
        _tokens,
        ("output.dense",),
        embedding="word_embeddings",
    ),
    Architecture(
        "t5",
        "T5Config",
        "T5ForConditionalGeneration",
        {**_T5, "decoder_start_token_id": 0},
        ("q", "k", "v", "o", "wi", "wo"),
        _pair,
        ("wo",),
    ),
    Architecture(
        "mt5",
        "MT5Config",
        "MT5ForConditionalGeneration",
        {**_T5, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu"},
        ("q", "k", "v", "o", "wi_0", "wi_1", "wo"),
        _pair,
        ("wo",),
    ),
    Architecture("mistral", "MistralConfig", "MistralForCausalLM", _GROUPED, _LLAMA, _tokens, ("down_proj",)),
    Architecture(
        "gemma", "GemmaConfig", "GemmaForCausalLM", {**_GROUPED, "head_dim": 4}, _LLAMA, _tokens, ("down_proj",)
    ),
    Architecture(
        "opt",
        "OPTConfig",
        "OPTForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "word_embed_proj_dim": 16,
        },
        ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        _tokens,
        ("fc2",),
    ),
    Architecture(
        "phi3",
        "Phi3Config",
        "Phi3ForCausalLM",
        {**_GROUPED, **_ENDS},
        ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        _tokens,
        ("down_proj",),
    ),
    Architecture(
        "falcon",
        "FalconConfig",
        "FalconForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
        },
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        _tokens,
        ("dense_4h_to_h",),
    ),
    Architecture(
        "electra",
        "ElectraConfig",
        "ElectraForSequenceClassification",
        {**_SMALL, "embedding_size": 16},
        ("query", "key", "value", "dense"),
        _tokens,
        ("output.dense",),
    ),
    Architecture(
        "mixtral",
        "MixtralConfig",
        "MixtralForCausalLM",
        {**_GROUPED, "num_local_experts": 3, "num_experts_per_tok": 2},
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        _tokens,
    ),
    Architecture(
        "vit",
        "ViTConfig",
        "ViTForImageClassification",
        {
            "image_size": 8,
            "patch_size": 4,
            "num_channels": 1,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_labels": 3,
        },
        ("q_proj", "v_proj", "o_proj", "fc1", "fc2"),
        _noise("pixel_values", 2, 1, 8, 8),
        ("fc2",),
    ),
    Architecture(
        "whisper",
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {
            **_ENDS,
            "vocab_size": VOCABULARY,
            "num_mel_bins": 4,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_source_positions": 8,
            "max_target_positions": 16,
            "decoder_start_token_id": 1,
        },
        ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        lambda: _noise("input_features", 1, 4, 16)() | {"decoder_input_ids": torch.arange(5).view(1, 5) + 2},
        ("fc2",),
    ),
    Architecture(
        "wav2vec2",
        "Wav2Vec2Config",
        "Wav2Vec2ForCTC",
        {
            **_WAV2VEC2,
            "conv_dim": (8, 8),
            "conv_kernel": (4, 3),
            "conv_stride": (2, 2),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        ("q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"),
        _noise("input_values", 1, 64),
        ("output_dense",),
    ),
    Architecture(
        "w2v-bert",
        "Wav2Vec2BertConfig",
        "Wav2Vec2BertForCTC",
        {**_WAV2VEC2, "feature_projection_input_dim": 8, "conv_depthwise_kernel_size": 3},
        ("linear_q", "linear_k", "linear_v", "linear_out"),
        _noise("input_features", 1, 12, 8),
    ),
    Architecture(
        "ast",
        "ASTConfig",
        "ASTForAudioClassification",
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
            "frequency_stride": 4,
            "time_stride": 4,
            "max_length": 16,
            "num_mel_bins": 8,
            "num_labels": 3,
        },
        ("q_proj", "v_proj", "o_proj", "fc1", "fc2"),
        _noise("input_values", 1, 16, 8),
        ("fc2",),
    ),
)

ARCHITECTURES: Mapping[str, Architecture] = {one.name: one for one in _ALL}
