"""Tags, library and task of a revision, as the Hugging Face API shows and filters them.

Source: what huggingface.co answers for models and adapters; list_models filters on these exact words.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapterhub.hub.services.cards import Card
from adapterhub.hub.services.names import is_storable
from adapterhub.merging.patch import Facts

TRAINING_METHODS = ("sft", "dpo", "orpo", "kto", "ppo", "grpo", "rlhf", "reward-trainer", "cpt")
"""Words among a card's tags that say how a patch was trained; trl and its like write them."""

_TASK_OF_PEFT = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
    "SEQ_2_SEQ_LM": "text2text-generation",
}


@dataclass(frozen=True)
class Head:
    """What the head of an architecture is for. loader, processor: the classes of transformers that load it."""

    task: str
    loader: str
    processor: str = "AutoTokenizer"


_HEADS = {
    "ForCausalLM": Head("text-generation", "AutoModelForCausalLM"),
    "LMHeadModel": Head("text-generation", "AutoModelForCausalLM"),
    "ForSequenceClassification": Head("text-classification", "AutoModelForSequenceClassification"),
    "ForTokenClassification": Head("token-classification", "AutoModelForTokenClassification"),
    "ForQuestionAnswering": Head("question-answering", "AutoModelForQuestionAnswering"),
    "ForMaskedLM": Head("fill-mask", "AutoModelForMaskedLM"),
    "ForImageClassification": Head("image-classification", "AutoModelForImageClassification", "AutoImageProcessor"),
    "ForConditionalGeneration": Head("text2text-generation", "AutoModelForSeq2SeqLM"),
    "Model": Head("feature-extraction", "AutoModel"),
}
_SPECIAL_TOKENS = ("bos_token", "cls_token", "eos_token", "mask_token", "pad_token", "sep_token", "unk_token")


_LIBRARY_OF_FILE = {
    "model_index.json": "diffusers",
    "pytorch_lora_weights.safetensors": "diffusers",
    "modules.json": "sentence-transformers",
}
"""Files at the root that one library alone writes."""


@dataclass(frozen=True)
class Configs:
    """The configurations at a revision's root, {} where there is none."""

    model: Mapping[str, Any]
    adapter: Mapping[str, Any]
    tokenizer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_peft(self) -> bool:
        """Whether PEFT wrote the adapter's configuration."""
        return bool(self.adapter.get("peft_type"))

    @property
    def is_adapters(self) -> bool:
        """Whether AdapterHub's library, `adapters`, once `adapter-transformers`, wrote the adapter's configuration."""
        return not self.is_peft and {"config", "model_name", "model_type"} <= self.adapter.keys()

    @property
    def base(self) -> str | None:
        """What the adapter's configuration calls the model it was trained on."""
        key = "base_model_name_or_path" if self.is_peft else "model_name"
        return self._texts(key).get(key) if self.is_peft or self.is_adapters else None

    def shown(self) -> dict[str, Any]:
        """What of them the API shows."""
        shown = ("architectures", "model_type", "auto_map")
        found: dict[str, Any] = {k: self.model[k] for k in shown if k in self.model}
        written = {k: _token_text(self.tokenizer.get(k)) for k in _SPECIAL_TOKENS}
        if tokens := {k: text for k, text in written.items() if text}:
            found["tokenizer_config"] = tokens
        if self.is_peft:
            found["peft"] = self._texts("base_model_name_or_path", "task_type", "peft_type")
        if self.is_adapters:  # the library reads the one in its list of adapters and the other of a single one
            found["adapters"] = found["adapter_transformers"] = self._texts("model_name", "model_class")
        return found

    def _texts(self, *keys: str) -> dict[str, str]:
        return {key: value for key in keys if isinstance(value := self.adapter.get(key), str) and is_storable(value)}


def library(card: Card, configs: Configs, paths: Iterable[str]) -> str | None:
    """The library that loads the revision: as the card says, else by the files and configuration at the root."""
    if named := card.text_of("library_name"):
        return named
    if configs.is_peft:
        return "peft"
    if configs.is_adapters:
        return "adapter-transformers"
    if found := next((_LIBRARY_OF_FILE[path] for path in paths if path in _LIBRARY_OF_FILE), None):
        return found
    return "transformers" if configs.model.get("model_type") else None


def pipeline_tag(card: Card, configs: Configs) -> str | None:
    """The task: as the card says, else by PEFT's task type or the head of the architecture."""
    if named := card.text_of("pipeline_tag"):
        return named
    if task := _TASK_OF_PEFT.get(str(configs.adapter.get("task_type"))):
        return task
    head = _head(configs.model)
    return head.task if head else None


def transformers_info(config: Mapping[str, Any]) -> dict[str, str] | None:
    """The classes of transformers that load the revision, None where they do not. config: as `Configs.shown` gives it.

    Where the head is not known, AutoModel loads what is below it.
    """
    if not config.get("model_type"):
        return None
    head = _head(config)
    if head is None:
        return {"auto_model": "AutoModel"}
    info = {"auto_model": head.loader, "pipeline_tag": head.task, "processor": head.processor}
    own = config.get("auto_map")
    custom = own.get(head.loader) if isinstance(own, dict) else None
    return {**info, "custom_class": custom} if isinstance(custom, str) else info


def _head(config: Mapping[str, Any]) -> Head | None:
    architectures = config.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    return next((head for suffix, head in _HEADS.items() if name.endswith(suffix)), None)


def _token_text(token: Any) -> str | None:
    """A special token as text: some tokenizers write it as an object with its content."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and is_storable(content) else None


def training_method(card: Card) -> str | None:
    """How the patch was trained: as the card says, or by a known word among its tags."""
    named = card.text_of("training_method")
    return named or next((tag.lower() for tag in card.texts("tags") if tag.lower() in TRAINING_METHODS), None)


def base_models(card: Card, configs: Configs, facts: Sequence[Facts]) -> list[dict[str, str]]:
    """The declared bases as [{"name", "relation"}], those of the card first, each once."""
    is_patch = configs.base is not None or any(one.kind != "model" for one in facts)
    relation = card.text_of("base_model_relation") or ("adapter" if is_patch else "finetune")
    names = [*card.texts("base_model"), *(f.base.name for f in facts if f.base.name), configs.base]
    return [{"name": name, "relation": relation} for name in dict.fromkeys(names) if name]


def derive(card: Card, configs: Configs, bases: Iterable[Mapping[str, str]], paths: Sequence[str]) -> list[str]:
    """Every tag of the revision, each once: library and formats, the card's own, then what it declares.

    A card may name another library than the one whose adapter this is: transformers writes its own over PEFT's.
    """
    found = [
        library(card, configs, paths),
        "peft" if configs.is_peft else None,
        *(("adapters", "adapter-transformers") if configs.is_adapters else ()),
        "safetensors" if any(path.endswith(".safetensors") for path in paths) else None,
        *card.texts("tags"),
        pipeline_tag(card, configs),
        *card.texts("language"),
        *(f"dataset:{name}" for name in card.texts("datasets")),
        *(tag for b in bases for tag in (f"base_model:{b['name']}", f"base_model:{b['relation']}:{b['name']}")),
        *(f"license:{name}" for name in card.texts("license")),
    ]
    return [tag for tag in dict.fromkeys(found) if tag]
