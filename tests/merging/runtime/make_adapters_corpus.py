"""Writes tests/merging/runtime/adapters_corpus with the library `adapters` 1.3.0, in an environment of its own.

Run by hand: adapters 1.3.0 needs transformers 4.57, so the tests read what lies there: tiny models, adapters of random
numbers as the library saves them, and the logits that it gives.
"""

import shutil
from pathlib import Path
from typing import Any

import adapters
import torch
from adapters import (
    CompacterConfig,
    CompacterPlusPlusConfig,
    DoubleSeqBnConfig,
    DoubleSeqBnInvConfig,
    IA3Config,
    LoRAConfig,
    ParBnConfig,
    SeqBnConfig,
    SeqBnInvConfig,
)
from safetensors.torch import save_file
from transformers.models.bert import BertConfig, BertForMaskedLM, BertForSequenceClassification
from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).parent / "adapters_corpus"
SIZES: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
BERT: dict[str, Any] = {**SIZES, "num_attention_heads": 4, "max_position_embeddings": 32}
LLAMA: dict[str, Any] = {**BERT, "num_key_value_heads": 2}
BASES: dict[str, Any] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**BERT)),
    "bert-mlm": lambda: BertForMaskedLM(BertConfig(**BERT)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=32, n_embd=16, n_layer=2, n_head=2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=False)),
}
CASES: dict[str, tuple[str, Any]] = {
    "houlsby": ("bert", DoubleSeqBnConfig(reduction_factor=4)),
    "pfeiffer": ("bert", SeqBnConfig(reduction_factor=4, use_gating=True)),
    "parallel": ("bert", ParBnConfig(reduction_factor=4, scaling="learned")),
    "compacter": ("bert", CompacterConfig(reduction_factor=2, phm_dim=2)),
    "compacter-plus-plus": ("bert", CompacterPlusPlusConfig(reduction_factor=2, phm_dim=2, factorized_phm_W=False)),
    "pfeiffer-invertible": ("bert-mlm", SeqBnInvConfig(reduction_factor=4)),
    "houlsby-invertible": ("bert", DoubleSeqBnInvConfig(reduction_factor=4)),
    "houlsby-gpt2": ("gpt2", DoubleSeqBnConfig(reduction_factor=4)),
    "pfeiffer-gpt2": ("gpt2", SeqBnConfig(reduction_factor=4, non_linearity="tanh")),
    "houlsby-llama": ("llama", DoubleSeqBnConfig(reduction_factor=4)),
    "pfeiffer-llama": ("llama", SeqBnConfig(reduction_factor=4, non_linearity="gelu")),
    "parallel-llama": ("llama", ParBnConfig(reduction_factor=4)),
    "lora": ("bert", LoRAConfig(r=3, alpha=5, intermediate_lora=True)),
    "lora-gpt2": ("gpt2", LoRAConfig(r=2, alpha=3, attn_matrices=["q", "v"], output_lora=True)),
    "lora-llama": ("llama", LoRAConfig(r=2, alpha=3)),
    "ia3": ("bert", IA3Config()),
    "ia3-gpt2": ("gpt2", IA3Config()),
    "ia3-llama": ("llama", IA3Config()),
}


def base(name: str) -> Any:
    torch.manual_seed(0)
    model = BASES[name]().eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    for name in BASES:
        base(name).save_pretrained(OUT / "bases" / name)
        (OUT / "bases" / name / "generation_config.json").unlink(missing_ok=True)
    for name, (base_name, config) in CASES.items():
        model = base(base_name)
        adapters.init(model)
        model.add_adapter("tiny", config=config)
        model.set_active_adapters("tiny")
        torch.manual_seed(1)
        for key, parameter in model.named_parameters():
            if "tiny" in key:
                parameter.data.copy_(torch.randn_like(parameter) * 0.4)
        model.eval()
        folder = OUT / "cases" / name
        folder.mkdir(parents=True)
        model.save_adapter(str(folder), "tiny", use_safetensors=True, with_head=base_name == "bert")
        ids = torch.arange(1, 9).view(1, 8)
        with torch.no_grad():
            save_file({"input_ids": ids, "logits": model(input_ids=ids).logits}, folder / "expected.safetensors")
        (folder / "base").write_text(base_name)


if __name__ == "__main__":
    main()
