"""sglang: LoRA as SGLang's own loader reads it.

Of adapter_config.json it reads peft_type, target_modules, r, lora_alpha and use_dora: one rank and one alpha / r are
those of all modules, so rsLoRA and alpha_pattern are served with another scale and nobody is told. Modules are told by
`layers.N.` and a name of theirs anywhere in a tensor's name; what has none is left out. q, k and v are joined before
they are served, and so are gate and up.

Source: sglang 0.5.15 and 0.5.23 `srt/lora/lora.py`, `lora_config.py`, `lora_manager.py`, `mem_pool.py`, `utils.py`.
"""

import re
from collections.abc import Iterator, Sequence

from adapterhub.merging.serving_rules import Found, Modules, Rule, ServingEngine

_UNREAD = "adapter_config.json's {} is not read"

_RULES = (
    Rule("kind", "refuses", "it loads adapters whose peft_type is LORA alone"),
    Rule("run_time", "refuses", "it serves LoRA and nothing that acts on the input"),
    Rule("activated", "misapplies", "it acts on every token: " + _UNREAD.format("alora_invocation_tokens")),
    Rule("training", "misapplies", "whatever is not called lora_A is taken for B"),
    Rule("dora", "refuses", "LoRA serving does not support DoRA adapters"),
    Rule("lora_bias", "misapplies", "whatever is not called lora_A is taken for B, the bias of lora_B too"),
    Rule("bias", "misapplies", "whatever is not called lora_A is taken for B, a module's bias too"),
    Rule("saved", "ignores", "modules_to_save are not read, and the base's own are served"),
    Rule("saved_in_layer", "refuses", "a tensor of a layer has to be of a module that is adapted"),
    Rule("head", "ignores", "modules_to_save are not read, and the base's own are served"),
    Rule("copy", "ignores", "the base's own embeddings are served"),
    Rule("whole_copy", "ignores", "the base's own embeddings are served"),
    Rule("rows", "ignores", "the base's own rows are served"),
    Rule("rslora", "misapplies", "it scales by alpha / r: " + _UNREAD.format("use_rslora")),
    Rule("rank_pattern", "refuses", _UNREAD.format("rank_pattern") + ", and factors of another rank fit no buffer"),
    Rule("alpha_pattern", "misapplies", "it scales all modules alike: " + _UNREAD.format("alpha_pattern")),
    Rule("base_changed", "misapplies", "what training took out of the base is still in it"),
    Rule("base_gradients", "misapplies", "it takes the factors for a plain LoRA's"),
    Rule("replication", "misapplies", _UNREAD.format("layer_replication")),
    Rule("blocks", "refuses", "factors that are blocks of a diagonal fit no buffer"),
    Rule("groups", "refuses", "an A for groups of inputs fits no buffer"),
    Rule("stacked_experts", "refuses", "the model's experts are adapted one by one"),
    Rule("layer", "refuses", "only linear layers and embeddings are adapted"),
    Rule("module", "ignores", "modules outside `layers.N.` are left out"),
    Rule("odd", "refuses", "it has no sizes of buffers for a module of that name, unless the class of the model does"),
    Rule("lone", "refuses", "q and v are looked for together, with k or without, and gate where there is up"),
    Rule("some_experts", "refuses", "gate and up of an expert are looked for together"),
    Rule("regex", "refuses", "target_modules has to be a list of names"),
)

NAMES = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj"),
        *("q_a_proj", "kv_a_proj_with_mqa", "fused_qkv_a_proj_with_mqa", "q_b_proj", "kv_b_proj"),
        *("wq_b", "wk", "weights_proj"),
    )
)
"""Modules of layers whose sizes SGLang works out of a model's configuration.

Experts' w1, w2 and w3 are called gate, down and up there. Source: `utils.py`, get_default_hidden_dim.
"""

_LAYER = re.compile(r"layers\.\d+\.")
_TOP = ("embed_tokens", "lm_head", "unembed_tokens")


def _looks(modules: Modules, version: str) -> Iterator[Found]:
    """What the names alone say."""
    for name, (layer, _) in modules.names.items():
        is_top = any(one in name for one in _TOP)
        if layer not in ("linear", "embedding"):
            yield name, "layer", ""
        elif not is_top and not _LAYER.search(name):
            yield name, "module", ""
        elif not is_top and name.rpartition(".")[2] not in NAMES | {"w1", "w2", "w3", "experts", "base_layer"}:
            yield name, "odd", ""
        if name.endswith((".experts", ".experts.base_layer")):
            yield name, "stacked_experts", "one adapter for each expert's own weights"


def _options(rank: int) -> Sequence[str]:
    return ("--enable-lora", f"--max-lora-rank {rank}")


SPEC = ServingEngine(
    name="sglang",
    title="SGLang",
    source="sglang 0.5.23 srt/lora",
    form="lora",
    tested="0.5.23",
    known="0.5.15",
    rules=_RULES,
    looks=_looks,
    whole=(("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")),
    spare=frozenset({"k_proj", "up_proj"}),
    options=_options,
)
