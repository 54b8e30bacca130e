"""vllm: LoRA as vLLM's own loader reads it.

It reads adapter_config.json field by field and refuses what it knows and cannot do; what it does not know it passes
over. Names of modules are checked by their last part alone: an adapter whose paths are not the model's loads, and does
nothing. Up to 0.31 neither rank_pattern nor alpha_pattern was read, and modules were served with another scale.

Source: vllm 0.17.0, 0.24.0, 0.30.0, 0.31.0, 0.32.0 and 0.33.0, `lora/peft_helper.py`, `lora/lora_model.py`,
`lora/model_manager.py`, `lora/utils.py`, `lora/lora_weights.py`, `config/lora.py`; which models take what:
`model_executor/models` of 0.33.0.
"""

import re
from collections.abc import Iterator, Sequence

from adapterhub.merging.serving_rules import Found, Modules, Rule, ServingEngine


def _listed(names: str) -> frozenset[str]:
    return frozenset(names.split())


WITHOUT = _listed(
    """
    BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM BloomForCausalLM Cohere2MoeForCausalLM DbrxForCausalLM
    DeepseekV4ForCausalLM DeepseekVLV2ForCausalLM FalconForCausalLM FalconMambaForCausalLM GPT2LMHeadModel
    GPTJForCausalLM Gemma3nForCausalLM IQuestLoopCoderForCausalLM Mamba2ForCausalLM MambaForCausalLM
    MiMoV2FlashForCausalLM OrionForCausalLM Ovis2_6ForCausalLM Ovis2_6_MoeForCausalLM Phi3VForCausalLM
    StableLmForCausalLM Step1ForCausalLM Step3TextForCausalLM Step3p5ForCausalLM Zamba2ForCausalLM
    """
)
"""Model classes of vLLM's own that do not declare SupportsLoRA."""

INPUTS = _listed(
    """
    ApertusForCausalLM ArceeForCausalLM Cohere2ForCausalLM CohereForCausalLM CwmForCausalLM DeciLMForCausalLM
    Ernie4_5ForCausalLM Exaone4ForCausalLM ExaoneForCausalLM ExaoneMoEForCausalLM ExaoneMoeForCausalLM
    FalconH1ForCausalLM FlexOlmoForCausalLM GPTBigCodeForCausalLM GPTNeoXForCausalLM GlmForCausalLM
    GraniteForCausalLM GraniteMoeForCausalLM GraniteMoeHybridForCausalLM GraniteMoeSWAForCausalLM
    GraniteMoeSharedForCausalLM GraniteSWAForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM
    HyperCLOVAXForCausalLM IQuestCoderForCausalLM InternLM3ForCausalLM Jais2ForCausalLM JambaForCausalLM
    K2HorizonForCausalLM Kolibri1ForCausalLM LLaMAForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM Llama4ForCausalLM
    LlamaForCausalLM MellumForCausalLM MiniCPM3ForCausalLM MiniCPMForCausalLM MixtralForCausalLM
    NanbeigeForCausalLM NemotronForCausalLM NemotronHForCausalLM NemotronHPuzzleForCausalLM Olmo2ForCausalLM
    Olmo3ForCausalLM OlmoForCausalLM Param2MoEForCausalLM Phi3ForCausalLM PhiForCausalLM PhiMoEForCausalLM
    Qwen3ForCausalLM Qwen3MoeForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM SolarForCausalLM
    Starcoder2ForCausalLM TeleChat2ForCausalLM TeleChat3ForCausalLM TeleFLMForCausalLM VaultGemmaForCausalLM
    """
)
"""Those whose embedding_modules have the input embedding."""

OUTPUTS = _listed(
    """
    ApertusForCausalLM DeciLMForCausalLM Ernie4_5ForCausalLM Exaone4ForCausalLM ExaoneForCausalLM
    ExaoneMoEForCausalLM ExaoneMoeForCausalLM FalconH1ForCausalLM GraniteForCausalLM GraniteMoeForCausalLM
    GraniteMoeHybridForCausalLM GraniteMoeSWAForCausalLM GraniteMoeSharedForCausalLM GraniteSWAForCausalLM
    HyperCLOVAXForCausalLM IQuestCoderForCausalLM InternLM3ForCausalLM JambaForCausalLM K2HorizonForCausalLM
    LLaMAForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM Llama4ForCausalLM LlamaForCausalLM MiniCPM3ForCausalLM
    MiniCPMForCausalLM MixtralForCausalLM NemotronForCausalLM NemotronHForCausalLM NemotronHPuzzleForCausalLM
    Param2MoEForCausalLM Phi3ForCausalLM PhiMoEForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM SolarForCausalLM
    TeleChat2ForCausalLM TeleChat3ForCausalLM TeleFLMForCausalLM
    """
)
"""Those whose embedding_modules have lm_head."""

STACKED = _listed(
    """
    GptOssForCausalLM InternS1ProForConditionalGeneration InternS2MobiusForConditionalGeneration
    InternS2PreviewForConditionalGeneration Qwen3OmniMoeForConditionalGeneration Qwen3VLMoeForConditionalGeneration
    Qwen3_5MoeForConditionalGeneration
    """
)
"""Those with is_3d_moe_weight: one adapter of all experts of a layer."""

_UNREAD = "adapter_config.json's {} is not read"
_UNNAMED = "the loader knows no tensor of that name, and refuses the file"

_RULES = (
    Rule(
        "kind", "refuses", "its loader asks for r, lora_alpha and lora_A and lora_B of every module, as peft's LORA has"
    ),
    Rule("run_time", "refuses", "it serves LoRA and nothing that acts on the input"),
    Rule("activated", "refuses", "vLLM does not support Activated LoRA", since="0.32"),
    Rule("activated", "misapplies", "it acts on every token: " + _UNREAD.format("alora_invocation_tokens")),
    Rule("training", "refuses", _UNNAMED),
    Rule("dora", "refuses", "vLLM does not support DoRA"),
    Rule("lora_bias", "refuses", "vLLM does not support a bias of lora_B"),
    Rule("bias", "refuses", "adapter bias is not supported"),
    Rule("saved", "refuses", "modules_to_save may be nothing but a classifier's head"),
    Rule("saved_in_layer", "refuses", "modules_to_save may be nothing but a classifier's head"),
    Rule("head", "applies", "", since="0.32"),
    Rule("head", "refuses", "modules_to_save may not be set"),
    Rule("copy", "ignores", "a base_layer of an embedding is passed over"),
    Rule("whole_copy", "refuses", _UNNAMED),
    Rule("rows", "refuses", _UNNAMED),
    Rule("unused", "refuses", "it refuses the settings bias, modules_to_save and lora_bias, whatever the file holds"),
    Rule(
        "rank_pattern",
        "misapplies",
        _UNREAD.format("rank_pattern") + ", and scales by alpha / r of the whole",
        until="0.32",
    ),
    Rule("alpha_pattern", "misapplies", _UNREAD.format("alpha_pattern"), until="0.32"),
    Rule("base_changed", "refuses", "what training took out of the base would still be in it", since="0.32"),
    Rule("base_changed", "misapplies", "what training took out of the base is still in it"),
    Rule("base_gradients", "misapplies", "it takes the factors for a plain LoRA's"),
    Rule("replication", "refuses", "vLLM does not support layer_replication", since="0.32"),
    Rule("replication", "misapplies", _UNREAD.format("layer_replication")),
    Rule("blocks", "refuses", "vLLM does not support BD-LoRA", since="0.32"),
    Rule("blocks", "misapplies", _UNREAD.format("use_bdlora") + ", and a block fills a corner of its buffer"),
    Rule("groups", "refuses", "vLLM does not support QALoRA", since="0.32"),
    Rule("groups", "misapplies", _UNREAD.format("use_qalora") + ", and A fills a corner of its buffer"),
    Rule("stacked_experts", "ignores", "the model's experts are adapted one by one"),
    Rule("single_experts", "refuses", "the model's experts are adapted all in one"),
    Rule(
        "some_experts", "refuses", "it packs the adapters of all experts of a layer, and of each of their projections"
    ),
    Rule("embedding", "refuses", "the model takes no adapter of its embeddings"),
    Rule("layer", "refuses", "only linear layers are adapted"),
    Rule("architecture", "refuses", "its class of the model does not support LoRA"),
    Rule("prefix", "ignores", "an adapter of a path that the model does not have loads, and is applied nowhere"),
    Rule("module", "refuses", "the model has no module that ends so"),
    Rule("fused", "refuses", "the model has q, k and v (gate and up) as modules of their own"),
    Rule("split", "refuses", "the model has q, k and v (gate and up) as one module"),
    Rule("rank", "refuses", "its largest rank is one of 1, 8, 16, 32, 64, 128, 256, 320 and 512"),
)
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)")


def _looks(modules: Modules, version: str) -> Iterator[Found]:
    """What the model's class says: whether it takes adapters, of embeddings too, and how it has its experts."""
    config = modules.base.config if modules.base is not None else {}
    architecture = next(iter(config.get("architectures") or [""]), "")
    for name, (layer, _) in modules.names.items():
        if architecture in WITHOUT:
            yield name, "architecture", ""
        elif layer == "embedding" or name.rpartition(".")[2] == "lm_head":
            taking = OUTPUTS if name.rpartition(".")[2] == "lm_head" else INPUTS
            if architecture and architecture not in taking:
                yield name, "embedding", ""
        elif layer != "linear":
            yield name, "layer", ""
        if ".experts" in name and _EXPERT.fullmatch(name) and architecture in STACKED:
            yield name, "single_experts", ""
        elif name.endswith((".experts", ".experts.base_layer")) and architecture not in STACKED:
            yield name, "stacked_experts", "one adapter for each expert's own weights"


def _options(rank: int) -> Sequence[str]:
    fitting = next((one for one in _RANKS if one >= rank), _RANKS[-1])
    return ("--enable-lora", f"--max-lora-rank {fitting}")


SPEC = ServingEngine(
    name="vllm",
    title="vLLM",
    source="vllm 0.33.0 lora/peft_helper.py, lora/lora_model.py",
    form="lora",
    tested="0.33.0",
    known="0.17.0",
    rules=_RULES,
    looks=_looks,
    ranks=_RANKS,
    whole_experts=True,
    options=_options,
)
