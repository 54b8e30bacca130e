"""Tags, library and task of a revision, as the Hugging Face API shows and filters them.

Source: what huggingface.co answers for models and adapters; list_models filters on these exact words.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
_TASK_OF_HEAD = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "ForConditionalGeneration": "text2text-generation",
    "Model": "feature-extraction",
}


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
        found: dict[str, Any] = {k: self.model[k] for k in ("architectures", "model_type") if k in self.model}
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
    architectures = configs.model.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    return next((task for head, task in _TASK_OF_HEAD.items() if name.endswith(head)), None)


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
